"""Where tasks are kept: one SQLite file, written by one thread."""

from __future__ import annotations

import json
import secrets
import sqlite3
from asyncio import Future
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any
from urllib.parse import unquote

from async_task_manager._sqlite import SqliteFile
from async_task_manager.errors import InvalidState, InvalidValue
from async_task_manager.service.records import COLUMNS, NewTask, Record, Status
from async_task_manager.service.tickets import Tickets

__all__ = ["Store", "path_of"]

APPLICATION_ID = 0x61746D73  # "atms"

SCHEMA = (
    "CREATE TABLE facts (name TEXT PRIMARY KEY, value) WITHOUT ROWID",
    """CREATE TABLE tasks (
    number INTEGER PRIMARY KEY,
    task TEXT NOT NULL,
    user_id TEXT NOT NULL,
    metadata TEXT NOT NULL,
    status TEXT NOT NULL,
    attempt INTEGER NOT NULL DEFAULT 0,
    interrupted INTEGER NOT NULL DEFAULT 0,
    submitted REAL NOT NULL,
    started REAL,
    finished REAL,
    provider TEXT,
    earlier TEXT,
    ranks TEXT,
    revoke INTEGER NOT NULL DEFAULT 0,
    idempotency_key TEXT,
    fingerprint BLOB,
    result BLOB,
    args BLOB
    )""",
    "CREATE INDEX ended ON tasks (finished) WHERE finished IS NOT NULL",
    "CREATE INDEX users ON tasks (user_id)",
    "CREATE INDEX keys ON tasks (user_id, idempotency_key) WHERE idempotency_key IS NOT NULL",
)

Row = tuple[Any, ...]

PRUNED_AT_ONCE = 500
"""Rows deleted in one transaction: the tasks that come in meanwhile wait for it."""


def path_of(url: str) -> Path:
    """The file that a URL names: ``sqlite:///tasks.db`` is relative, ``sqlite:////var/tasks.db``
    absolute.

    Raises:
        InvalidValue: it names none.
    """
    if not isinstance(url, str) or not url.startswith("sqlite:///") or len(url) <= 10:
        raise InvalidValue(f"store must be a URL such as 'sqlite:///tasks.db', not {url!r}")
    return Path(unquote(url.removeprefix("sqlite:///")))


class Store:
    """The tasks of a service, durable: what a method's future gives is on the disk.

    Methods that write give a future, and writes happen in the order of the calls. Those that read
    answer at once, from a connection of their own, and see what is committed: a look by number
    takes microseconds, less than it would take to ask a thread.

    Args:
        path: The file. It belongs to one process at a time, from `open` to `close`.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._file = SqliteFile(path, SCHEMA, application_id=APPLICATION_ID)

    async def open(self) -> None:
        """Opens the file, or makes it.

        Raises:
            InvalidState: another process has it open.
            StoreError, StoreCorrupt: it is none of ours, or damaged.
        """
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self._owner = _owned(self.path)
        try:
            secret = await self._file.write(_secret)
            self._read = sqlite3.connect(self.path, isolation_level=None)
        except BaseException:
            await self._file.close()
            self._owner.close()
            raise
        self.tickets = Tickets(secret)
        (last,) = self._read.execute("SELECT max(number) FROM tasks").fetchone()
        self._last = max(last or 0, self._fact("last_number") or 0)
        self.kept, self.kept_bytes = self._read.execute(
            "SELECT count(*), coalesce(sum(length(result) + length(args)), 0) FROM tasks "
            "WHERE finished IS NOT NULL"
        ).fetchone()

    async def close(self) -> None:
        """Writes what is outstanding, and lets go of the file."""
        await self._file.close()
        self._read.close()
        self._owner.close()

    def _fact(self, name: str) -> Any:
        row = self._read.execute("SELECT value FROM facts WHERE name = ?", (name,)).fetchone()
        return row[0] if row else None

    # ---- a task's life ----------------------------------------------------------------------

    def next_number(self) -> int:
        """A number that no task of this file ever had."""
        self._last += 1
        return self._last

    def insert(self, new: NewTask) -> Future[None]:
        """A new task, PENDING."""
        return self._file.write_together(_insert, new)

    def start(self, number: int, now: float, provider: str | None) -> Future[tuple[int, bytes]]:
        """Another attempt begins; gives its number and the arguments."""
        return self._file.write_together(_start, (now, provider, number))

    def retry(self, number: int, attempt: int, earlier: dict[str, Any]) -> Future[None]:
        """The attempt ended, and another will come."""
        return self._file.write_together(_retry, (json.dumps(earlier), number, attempt))

    def finish(self, number: int, status: Status, result: bytes, now: float) -> Future[None]:
        """The end."""
        return self._file.write_together(self._finish, (status, result, now, number))

    def _finish(self, connection: sqlite3.Connection, rows: list[Row]) -> Sequence[None]:
        for row in rows:
            found = connection.execute(
                "UPDATE tasks SET status = ?, result = ?, finished = ? "
                "WHERE number = ? AND finished IS NULL RETURNING length(args) + length(result)",
                row,
            ).fetchone()
            if found is not None:
                self.kept += 1
                self.kept_bytes += found[0]
        return [None] * len(rows)

    def interrupt(self, number: int) -> Future[None]:
        """The service stops under a task that runs: it waits for another attempt."""
        return self._file.write_together(_interrupt, (number,))

    def revoke(self, number: int) -> Future[None]:
        """Somebody wants a running task to end: should the process die, it won't run again."""
        return self._file.write_together(_revoke, (number,))

    def recover(self, now: float, most: int) -> Future[int]:
        """What ran when the process died waits again; gives how many those are.

        What was to end has ended, REVOKED; what ran at ``most`` deaths of the process is suspected
        of them, and has failed.
        """
        return self._file.write(partial(self._recover, now=now, most=most))

    def _recover(self, connection: sqlite3.Connection, now: float, most: int) -> int:
        revoked = connection.execute(
            "UPDATE tasks SET status = 'REVOKED', finished = ?, result = ? "
            "WHERE status = 'STARTED' AND revoke",
            (now, b"null"),
        )
        connection.execute("UPDATE tasks SET interrupted = interrupted + 1 WHERE status='STARTED'")
        message = f"it ran when the process died, {most} times: it may be the cause"
        suspected = connection.execute(
            "UPDATE tasks SET status = 'FAILURE', finished = ?, result = ? "
            "WHERE status = 'STARTED' AND interrupted >= ?",
            (now, json.dumps({"type": "Interrupted", "message": message}).encode(), most),
        )
        self.kept += revoked.rowcount + suspected.rowcount
        numbers = connection.execute("SELECT number FROM tasks WHERE status = 'STARTED'").fetchall()
        _interrupt(connection, numbers)
        return len(numbers)

    # ---- what is kept, and for how long -----------------------------------------------------

    def has_old(self, before: float, count: int, size: int) -> bool:
        """Whether `prune` would find something: known without a write."""
        if self.kept > count or self.kept_bytes > size:
            return True
        (oldest,) = self._read.execute(
            "SELECT min(finished) FROM tasks WHERE finished IS NOT NULL"
        ).fetchone()
        return oldest is not None and oldest <= before

    def prune(self, before: float, count: int, size: int) -> Future[int]:
        """Forgets ended tasks: those that ended before an instant, and the oldest beyond the
        bounds; gives how many, at most a few hundred at once.
        """
        return self._file.write(partial(self._prune, bounds=(before, count, size)))

    def _prune(self, connection: sqlite3.Connection, bounds: tuple[float, int, int]) -> int:
        before, count, size = bounds
        gone = 0
        oldest = connection.execute(
            "SELECT number, finished, length(args) + length(result) FROM tasks "
            "WHERE finished IS NOT NULL ORDER BY finished LIMIT ?",
            (PRUNED_AT_ONCE,),
        ).fetchall()
        for number, finished, length in oldest:
            if finished > before and self.kept <= count and self.kept_bytes <= size:
                break
            connection.execute("DELETE FROM tasks WHERE number = ?", (number,))
            self.kept -= 1
            self.kept_bytes -= length
            gone += 1
        if gone:
            # Numbers are not used twice, even if the last of them is forgotten.
            _write_fact(connection, ("last_number", self._last))
        return gone

    def keep(self, name: str, text: str) -> Future[None]:
        """A fact about the service that survives a restart, as JSON."""
        return self._file.write(partial(_write_fact, row=(name, text)))

    def kept_fact(self, name: str) -> Any:
        """What `keep` was given; None: nothing."""
        value = self._fact(name)
        return None if value is None else json.loads(value)

    # ---- questions --------------------------------------------------------------------------

    def record(self, number: int) -> Record | None:
        """The task with this number."""
        row = self._read.execute(
            f"SELECT {COLUMNS} FROM tasks WHERE number = ?", (number,)
        ).fetchone()
        return None if row is None else Record.of(row)

    def result(self, number: int) -> tuple[Status, bytes, float | None] | None:
        """The task's status, result, and when it ended."""
        row: tuple[Status, bytes, float | None] | None = self._read.execute(
            "SELECT status, result, finished FROM tasks WHERE number = ?", (number,)
        ).fetchone()
        return row

    def by_key(self, user_id: str, key: str) -> tuple[int, bytes | None] | None:
        """The number and the fingerprint of the task that was submitted with this key."""
        found: tuple[int, bytes | None] | None = self._read.execute(
            "SELECT number, fingerprint FROM tasks WHERE user_id = ? AND idempotency_key = ?",
            (user_id, key),
        ).fetchone()
        return found

    def of_user(self, user_id: str, most: int) -> list[Record]:
        """The user's tasks, the latest first."""
        rows = self._read.execute(
            f"SELECT {COLUMNS} FROM tasks WHERE user_id = ? ORDER BY number DESC LIMIT ?",
            (user_id, most),
        )
        return [Record.of(row) for row in rows]

    def unfinished(self) -> Iterator[Record]:
        """What waits, in the order of arrival."""
        rows = self._read.execute(
            f"SELECT {COLUMNS} FROM tasks WHERE finished IS NULL ORDER BY number"
        )
        yield from map(Record.of, rows)


# ---- in the writer's thread -----------------------------------------------------------------


def _insert(connection: sqlite3.Connection, rows: list[NewTask]) -> Sequence[None]:
    connection.executemany(
        "INSERT INTO tasks (number, task, user_id, metadata, status, submitted, idempotency_key, "
        "fingerprint, ranks, args) VALUES (?, ?, ?, ?, 'PENDING', ?, ?, ?, ?, ?)",
        rows,
    )
    return [None] * len(rows)


def _start(connection: sqlite3.Connection, rows: list[Row]) -> list[tuple[int, bytes]]:
    begun = []
    for row in rows:
        found: tuple[int, bytes] | None = connection.execute(
            "UPDATE tasks SET status = 'STARTED', attempt = attempt + 1, started = ?, "
            "provider = ? WHERE number = ? AND finished IS NULL RETURNING attempt, args",
            row,
        ).fetchone()
        if found is None:
            raise InvalidState("the task is not in the store: it could not be written")
        begun.append(found)
    return begun


def _retry(connection: sqlite3.Connection, rows: list[Row]) -> Sequence[None]:
    connection.executemany(
        "UPDATE tasks SET status = 'RETRY', "
        "earlier = json_insert(coalesce(earlier, '[]'), '$[#]', json(?)) "
        "WHERE number = ? AND attempt = ? AND finished IS NULL",
        rows,
    )
    return [None] * len(rows)


def _interrupt(connection: sqlite3.Connection, rows: list[Row]) -> Sequence[None]:
    connection.executemany(
        "UPDATE tasks SET status = 'PENDING', "
        "earlier = json_insert(coalesce(earlier, '[]'), '$[#]', json_object('attempt', attempt, "
        "'started_at', started, 'error', json_object('type', 'Interrupted', 'message', "
        "'the service stopped while it ran'))) "
        "WHERE number = ? AND status = 'STARTED'",
        rows,
    )
    return [None] * len(rows)


def _revoke(connection: sqlite3.Connection, rows: list[Row]) -> Sequence[None]:
    connection.executemany("UPDATE tasks SET revoke = 1 WHERE number = ?", rows)
    return [None] * len(rows)


def _write_fact(connection: sqlite3.Connection, row: Row) -> None:
    connection.execute("INSERT OR REPLACE INTO facts VALUES (?, ?)", row)


def _secret(connection: sqlite3.Connection) -> bytes:
    """What the ids are made with: from the file, or new where the file is."""
    new = secrets.token_bytes(32)
    connection.execute("INSERT OR IGNORE INTO facts VALUES ('secret', ?)", (new,))
    (secret,) = connection.execute("SELECT value FROM facts WHERE name = 'secret'").fetchone()
    return bytes(secret)


# ---- the file ---------------------------------------------------------------------------------


def _owned(path: Path) -> sqlite3.Connection:
    """A lock on the file's name, which the system gives back whatever becomes of the process."""
    owner = sqlite3.connect(f"{path}.owner", isolation_level=None, timeout=0)
    try:
        owner.execute("BEGIN EXCLUSIVE")
    except sqlite3.OperationalError as error:
        owner.close()
        raise InvalidState(
            f"{path} is in use by another service: one process serves a store ({error})"
        ) from error
    return owner
