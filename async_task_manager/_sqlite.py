"""One SQLite file, written by one thread: what is asked for during a commit shares the next one."""

from __future__ import annotations

import asyncio
import sqlite3
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass
from functools import partial
from itertools import groupby
from pathlib import Path
from typing import Any, Final, TypeVar, cast

from async_task_manager._validate import number
from async_task_manager.errors import InvalidState, StoreCorrupt, StoreError

__all__ = ["SqliteFile"]

A = TypeVar("A")
R = TypeVar("R")

Result = tuple[BaseException | None, Any]


@dataclass(slots=True)
class _Entry:
    """One thing to be done, and who waits for it."""

    operation: Callable[..., Any]
    argument: Any
    kind: str
    """"read"; "alone": a write of its own; "together": one of many that one call does."""
    future: asyncio.Future[Any]


class SqliteFile:
    """A SQLite file that several processes share, each through one thread with group commit.

    What `write` or `write_together` is given runs in that thread, in one transaction
    (``BEGIN IMMEDIATE``) with all else that came since the last commit began; their futures are
    done when it is on disk (WAL, ``synchronous=FULL``). An operation that raises undoes its own
    changes alone. What undoes the transaction (a disk that is full at its commit, a file that stays
    locked) is everyone's error; the next one starts anew.

    The file is opened with the first operation. An existing one is checked as a whole then
    (``integrity_check``: it reads all of it), and a damaged one is refused and left as it is.

    Args:
        path: Where the file is; it is made if it doesn't exist. Not on a network file system.
        schema: The statements that make the tables in a new file.
        application_id: A number of one's own, kept in the file, so that nobody else's is taken.
        version: The version of the schema; a file of another one is refused.
        busy_timeout: Seconds to wait for other processes' transactions, at least 0.

    A future's exception is `StoreError` (`StoreCorrupt` for a damaged file), or what the operation
    raised. A future that is cancelled before its transaction begins is left out of it.
    """

    def __init__(
        self,
        path: str | Path,
        schema: Sequence[str],
        *,
        application_id: int,
        version: int = 1,
        busy_timeout: float = 5.0,
    ) -> None:
        self.path: Final = Path(path)
        self._schema = schema
        self._application_id = application_id
        self._version = version
        self._busy_timeout = number("busy_timeout", busy_timeout, at_least=0)
        self._executor: ThreadPoolExecutor | None = None
        self._connection: sqlite3.Connection | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._pending: list[_Entry] = []
        self._busy: asyncio.Future[list[Result]] | None = None
        self.closed = False
        """It takes nothing more."""

    # ---- for the loop -----------------------------------------------------------------------

    def write(self, operation: Callable[[sqlite3.Connection], R]) -> asyncio.Future[R]:
        """Does ``operation(connection)`` in the next transaction; done when that is on disk."""
        return self._submit(_Entry(operation, None, "alone", self._future()))

    def write_together(
        self, operation: Callable[[sqlite3.Connection, list[A]], Sequence[R]], argument: A
    ) -> asyncio.Future[R]:
        """The same for one of many: ``operation(connection, arguments)`` gives a result for each.

        Neighbours with an equal operation are done by one call. If that raises, they are done one
        by one, so that the error is only its own.
        """
        return self._submit(_Entry(operation, argument, "together", self._future()))

    def read(self, operation: Callable[[sqlite3.Connection], R]) -> asyncio.Future[R]:
        """Does ``operation(connection)`` outside any transaction, waiting for nobody's lock."""
        return self._submit(_Entry(operation, None, "read", self._future()))

    async def close(self) -> None:
        """Ends what was asked for, and closes the file; twice is as good as once."""
        self.closed = True
        while self._pending or self._busy is not None:
            if self._busy is None:
                self._begin()
            if self._busy is not None:
                await asyncio.wait([self._busy])
        executor, self._executor = self._executor, None
        if executor is not None:
            await asyncio.get_running_loop().run_in_executor(executor, self._disconnect)
            executor.shutdown()

    def _future(self) -> asyncio.Future[Any]:
        loop = asyncio.get_running_loop()
        if self.closed:
            raise InvalidState(f"{self.path} was closed here; open it anew")
        if loop is not self._loop:
            if self._loop is not None and not self._loop.is_closed():
                raise InvalidState(f"{self.path} is in use in another event loop")
            self._loop, self._pending, self._busy = loop, [], None
        return loop.create_future()

    def _submit(self, entry: _Entry) -> asyncio.Future[Any]:
        self._pending.append(entry)
        if len(self._pending) == 1 and self._busy is None:
            assert self._loop is not None
            self._loop.call_soon(self._begin)  # what others ask for in this turn goes along
        return entry.future

    def _begin(self) -> None:
        batch = [entry for entry in self._pending if not entry.future.done()]
        self._pending = []
        if not batch or self._busy is not None:
            self._pending = batch
            return
        if self._executor is None:
            self._executor = ThreadPoolExecutor(1, f"sqlite {self.path.name}")
        loop = cast("asyncio.AbstractEventLoop", self._loop)
        # No asyncio.Task: whoever cancels all tasks must not cut results off from a commit.
        self._busy = loop.run_in_executor(self._executor, self._do, batch)
        self._busy.add_done_callback(partial(self._deliver, batch))

    def _deliver(self, batch: list[_Entry], done: asyncio.Future[list[Result]]) -> None:
        self._busy = None
        for entry, (error, value) in zip(batch, done.result(), strict=True):
            if entry.future.done():
                continue  # cancelled meanwhile
            if error is None:
                entry.future.set_result(value)
            else:
                entry.future.set_exception(error)
        if self._pending:
            self._begin()

    # ---- in the thread ----------------------------------------------------------------------

    def _do(self, batch: list[_Entry]) -> list[Result]:
        try:
            if self._connection is None:
                self._connection = self._connect()
            reads = [entry for entry in batch if entry.kind == "read"]
            writes = [entry for entry in batch if entry.kind != "read"]
            results: dict[int, Result] = {}
            for entry in reads:
                results[id(entry)] = _attempt(entry.operation, self._connection)
            if writes:
                self._transact(self._connection, writes, results)
            return [self._told(results[id(entry)]) for entry in batch]
        except Exception as error:
            return [self._told((error, None)) for _ in batch]

    def _transact(
        self, connection: sqlite3.Connection, entries: list[_Entry], results: dict[int, Result]
    ) -> None:
        """All of them in one transaction; raises what undid it."""
        connection.execute("BEGIN IMMEDIATE")
        try:
            for (operation, kind), run in groupby(entries, key=lambda e: (e.operation, e.kind)):
                same = list(run)
                if kind == "alone":
                    outcomes = [_undoable(connection, operation) for _ in same]
                else:
                    outcomes = _together(connection, operation, [e.argument for e in same])
                for entry, outcome in zip(same, outcomes, strict=True):
                    results[id(entry)] = outcome
            connection.execute("COMMIT")
        except BaseException:
            if connection.in_transaction:
                connection.execute("ROLLBACK")
            raise

    def _told(self, result: Result) -> Result:
        """SQLite's errors as the library's."""
        error, _ = result
        if not isinstance(error, sqlite3.Error):
            return result
        name = getattr(error, "sqlite_errorname", "")
        if name.startswith(("SQLITE_CORRUPT", "SQLITE_NOTADB")):
            told: StoreError = StoreCorrupt(self.path, str(error))
        elif name.startswith(("SQLITE_BUSY", "SQLITE_LOCKED")):
            told = StoreError(
                f"{self.path} was locked by another process for more than {self._busy_timeout} s"
            )
        else:
            told = StoreError(f"{self.path}: {error}")
        told.__cause__ = error
        return told, None

    def _connect(self) -> sqlite3.Connection:
        if self.path.exists() and self.path.stat().st_size:
            try:
                self._examine()
            except UnicodeDecodeError as error:  # in the name of a table, or in what SQLite says
                raise StoreCorrupt(self.path, f"a name in it is no text: {error}") from error
        connection = sqlite3.connect(
            self.path, timeout=0, isolation_level=None, check_same_thread=False
        )
        connection.text_factory = readable
        try:
            self._switch_to_wal(connection)
            connection.execute(f"PRAGMA busy_timeout={round(self._busy_timeout * 1000)}")
            connection.execute("PRAGMA synchronous=FULL")
            connection.execute("BEGIN IMMEDIATE")
            found = self._identity(connection)
            if found == (0, 0):
                for statement in self._schema:
                    connection.execute(statement)
                connection.execute(f"PRAGMA application_id={self._application_id}")
                connection.execute(f"PRAGMA user_version={self._version}")
            connection.execute("COMMIT")
        except BaseException:
            connection.close()
            raise
        return connection

    def _examine(self) -> None:
        """Raises for a file that is damaged or somebody else's, and changes nothing in it."""
        uri = f"{self.path.absolute().as_uri()}?mode=ro"
        with closing(sqlite3.connect(uri, timeout=self._busy_timeout, uri=True)) as connection:
            identity = self._identity(connection)
            if identity not in ((self._application_id, self._version), (0, 0)):
                raise StoreError(
                    f"{self.path} is no file of this kind and version (application_id and "
                    f"user_version are {identity}, not {(self._application_id, self._version)}): "
                    "use another file, or the version of the library that made this one"
                )
            connection.text_factory = readable
            (verdict,) = connection.execute("PRAGMA integrity_check(1)").fetchone()
            if verdict != "ok":
                raise StoreCorrupt(self.path, verdict)
            made = {sql for (sql,) in connection.execute("SELECT sql FROM sqlite_master")}
            if identity == (0, 0):
                if made:
                    raise StoreError(f"{self.path} holds tables of something else: use another")
            elif not made.issuperset(self._schema):
                raise StoreCorrupt(self.path, "its tables are not those that it was made with")

    def _identity(self, connection: sqlite3.Connection) -> tuple[int, int]:
        (application_id,) = connection.execute("PRAGMA application_id").fetchone()
        (version,) = connection.execute("PRAGMA user_version").fetchone()
        return application_id, version

    def _switch_to_wal(self, connection: sqlite3.Connection) -> None:
        # Where several make a file at once, SQLite refuses this without waiting for its timeout.
        give_up = time.monotonic() + self._busy_timeout
        while True:
            try:
                connection.execute("PRAGMA journal_mode=WAL").fetchall()
                return
            except sqlite3.OperationalError:
                if time.monotonic() >= give_up:
                    raise
                time.sleep(0.01)

    def _disconnect(self) -> None:
        if self._connection is not None:
            self._connection.close()
            self._connection = None


def readable(text: bytes) -> str:
    """Text that may be damaged must not raise where it is read, but be judged by whoever reads."""
    return str(text, "utf-8", "replace")


def _attempt(operation: Callable[..., Any], *arguments: Any) -> Result:
    try:
        return None, operation(*arguments)
    except Exception as error:
        return error, None


def _undoable(connection: sqlite3.Connection, operation: Callable[..., Any], *args: Any) -> Result:
    """Its result, or its error with its changes undone; raises what undid everything."""
    connection.execute("SAVEPOINT one")
    result = _attempt(operation, connection, *args)
    error, _ = result
    if error is not None:
        if not connection.in_transaction:
            raise error  # after some failures of the disk SQLite undoes the whole transaction
        connection.execute("ROLLBACK TO one")
    connection.execute("RELEASE one")
    return result


def _together(
    connection: sqlite3.Connection, operation: Callable[..., Any], arguments: list[Any]
) -> list[Result]:
    error, values = _undoable(connection, operation, arguments)
    if error is None:
        return [(None, value) for value in values]
    if len(arguments) == 1:
        return [(error, None)]
    singly = [_undoable(connection, operation, [argument]) for argument in arguments]
    return [(error, None if error else values[0]) for error, values in singly]
