"""Ids that nobody can guess, and that say by themselves whether they are genuine."""

from __future__ import annotations

import hmac
from base64 import urlsafe_b64encode
from hashlib import blake2s

__all__ = ["Tickets"]

MARK_BYTES = 16
LONGEST = 80


class Tickets:
    """Makes a task's id from its number, and the number from the id.

    An id is the number and a keyed hash of it: without the secret none can be made, and an id that
    is genuine was once given out, although nothing is left of its task: "expired" can be told from
    "unknown" without a list of all that ever was.

    Args:
        secret: Random bytes, kept with the tasks.
    """

    def __init__(self, secret: bytes) -> None:
        self._secret = secret

    def id_of(self, number: int) -> str:
        """The id of the task with this number."""
        mark = blake2s(b"%d" % number, digest_size=MARK_BYTES, key=self._secret).digest()
        return f"{number}-{urlsafe_b64encode(mark).rstrip(b'=').decode()}"

    def number_of(self, id: str) -> int | None:
        """The number in a genuine id; None: this id was never given out."""
        number, _, mark = id.partition("-")
        if not mark or len(id) > LONGEST or not (number.isascii() and number.isdecimal()):
            return None
        if not mark.isascii() or not hmac.compare_digest(self.id_of(int(number)), id):
            return None
        return int(number)
