"""Which ids have a result: any number of them, in bounded memory."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterable
from types import TracebackType
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from typing import Self

__all__ = ["Ids"]


class Ids:
    """Ids and what became of them, in a database that spills to a temporary file, and is gone with
    this process. A few microseconds for each.
    """

    def __init__(self) -> None:
        self._db = sqlite3.connect("", isolation_level=None)
        self._db.execute("PRAGMA journal_mode = OFF")
        self._db.execute("PRAGMA cache_size = -16384")  # kibibytes
        self._db.execute(
            "CREATE TABLE ids (id TEXT PRIMARY KEY, done INT NOT NULL, line INT) WITHOUT ROWID"
        )
        self._db.execute("BEGIN")

    def finish(self, results: Iterable[tuple[str, bool]]) -> None:
        """These ids have a result, that either need not be asked for again or may be."""
        self._db.executemany("INSERT OR REPLACE INTO ids VALUES (?, ?, NULL)", results)

    def done(self, id: str) -> bool | None:
        """What `finish` was told last; None: nothing."""
        row = self._db.execute("SELECT done FROM ids WHERE id = ?", (id,)).fetchone()
        return None if row is None or row[0] < 0 else bool(row[0])

    def take(self, id: str, line: int) -> int | None:
        """The line of the input that had this id before; None: this is the first that has it."""
        row = self._db.execute("SELECT line FROM ids WHERE id = ?", (id,)).fetchone()
        if row is None:
            self._db.execute("INSERT INTO ids VALUES (?, -1, ?)", (id, line))
            return None
        if row[0] is None:
            self._db.execute("UPDATE ids SET line = ? WHERE id = ?", (line, id))
        return row[0]  # type: ignore[no-any-return]  # an int or None, as the table has it

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._db.close()

    def __del__(self) -> None:
        # Newer Pythons complain of a database that is let go open.
        self._db.close()
