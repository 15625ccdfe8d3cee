"""What is taken from the environment: sent to where it belongs, and shown nowhere."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterable
from typing import Final

__all__ = ["check_header", "expanded", "hidden", "secrets_of"]

FRAMING: Final = ("connection", "content-length", "transfer-encoding")
"""Headers that say where a request ends: the HTTP client's own."""

_VARIABLE: Final = re.compile(r"\$\{(\w+)\}")
_TOKEN: Final = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+")  # RFC 9110, section 5.6.2
_SECRETIVE: Final = re.compile(r"auth|cookie|key|password|secret|token", re.IGNORECASE)
_SECRET: Final = 8
"""Characters from which on a value is surely no ordinary word of an answer."""


def check_header(name: str, value: str) -> None:
    """Raises a ValueError, which keeps the value to itself, unless HTTP can carry the header."""
    if not _TOKEN.fullmatch(name):
        raise ValueError("that is no name of a header")
    if name.lower() in FRAMING:
        raise ValueError("the HTTP client itself sets that")
    if not (value.isascii() and value.replace("\t", " ").isprintable()):
        raise ValueError("the value must be printable ASCII, in one line")


def expanded(text: str) -> str:
    """The text with each ${NAME} from the environment.

    Raises:
        ValueError: a variable is not set, or empty.
    """

    def looked_up(match: re.Match[str]) -> str:
        found = os.environ.get(match[1])
        if not found:
            raise ValueError(f"the environment variable {match[1]} is not set, or empty")
        return found

    return _VARIABLE.sub(looked_up, text)


def secrets_of(headers: Iterable[tuple[str, str]]) -> tuple[str, ...]:
    """What no one else may see of these unexpanded headers, in each form that JSON may give it.

    All that comes from the environment, and what is written out in a header whose name tells that
    it is secret ("X-Api-Key"); unless it is too short to be one.
    """
    found = set()
    for name, text in headers:
        found |= {os.environ.get(variable, "") for variable in _VARIABLE.findall(text)}
        if _SECRETIVE.search(name) and not _VARIABLE.search(text):
            found |= {text, text.rpartition(" ")[2]}  # "Bearer sk-..." and "sk-..."
    secrets = {secret for secret in found if len(secret) >= _SECRET}
    for secret in tuple(secrets):
        escaped = json.dumps(secret)[1:-1]
        secrets |= {escaped, escaped.replace("/", "\\/")}
    return tuple(sorted(secrets, key=len, reverse=True))


def hidden(text: str, secrets: Iterable[str]) -> str:
    """The text with each secret blotted out."""
    for secret in secrets:
        text = text.replace(secret, "***")
    return text
