"""What a run leaves on disk, so that it can go on where it was: the results, and a journal.

The **output** gets one line per result, as they come. The **journal** beside it gets a line for
each start, before the request is sent, and one for each actual cost. A line is handed to the
operating system at once, so that a killed process loses none; it is forced to the disk about once
a second, many at a time, so that of a power cut a second is lost. A last line that was torn is cut
off before anything is appended.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any, BinaryIO, Final

from async_task_manager.errors import TaskManagerError
from async_task_manager.runner.ids import Ids
from async_task_manager.runner.results import FORMATS, dumps

try:
    import fcntl
except ImportError:  # pragma: no cover  # Windows: nobody keeps a second run out there
    fcntl = None  # type: ignore[assignment]

__all__ = ["Ledger", "OutputError", "journal_of", "open_ledger"]

_BLOCK: Final = 65_536
_AT: Final = re.compile(rb'"at":(\d+(?:\.\d+)?)')
"""A request cannot bring this into a line of the journal: its quotes are escaped there."""


class OutputError(TaskManagerError, ValueError):
    """The output can't be used: another run writes it, or it is something else."""


def journal_of(output: Path) -> Path:
    """Where the journal of an output is."""
    return output.with_name(f"{output.name}.journal")


class Ledger:
    """Takes down starts and results, and knows what was finished before.

    Args:
        results: Where the lines of results go: opened for appending, and unbuffered.
        journal: Where the starts go; None: nowhere.
        format: "jsonl" or "openai-batch".
        ids: What was finished before.
        retry_failed: Only what succeeded counts as finished.
    """

    def __init__(
        self,
        results: BinaryIO,
        journal: BinaryIO | None = None,
        *,
        format: str = "jsonl",
        ids: Ids | None = None,
        retry_failed: bool = False,
    ) -> None:
        self._results, self._journal = results, journal
        self._encode = FORMATS[format].encode
        self._ids = Ids() if ids is None else ids
        self._retry_failed = retry_failed
        self._dirty: set[int] = set()
        self.resumed = False
        """Whether there was an output before."""
        self.in_flight = 0
        """Requests that had been sent when the run before ended, and had no result."""

    # ---- what was before --------------------------------------------------------------------

    def twin(self, id: str | int, line: int) -> int | None:
        """The line of the input that had this id before; None: this is the first that has it."""
        return self._ids.take(str(id), line)

    def finished(self, id: str | int) -> bool:
        """Whether the request need not be sent."""
        done = self._ids.done(str(id))
        return done is True or (done is False and not self._retry_failed)

    def succeeded(self, id: str | int) -> bool:
        """Whether it was finished with success."""
        return self._ids.done(str(id)) is True

    def told(self, line: int) -> bool:
        """Whether it was written down before that this line is no request."""
        return self._ids.done(f"\0{line}") is not None

    def starts(self) -> Iterator[dict[str, Any]]:
        """The starts, and the actual costs, of runs before, the oldest first."""
        if self._journal is not None and self.resumed:
            with open(self._journal.name, "rb") as file:
                for line in file:
                    yield json.loads(line)

    # ---- what happens now -------------------------------------------------------------------

    def begun(
        self, id: str | int, provider: str, at: float, cost: Any, keys: dict[str, Any]
    ) -> None:
        """A request is about to be sent. It must not be if this raises."""
        self._note({"start": id, "provider": provider, "at": at, "cost": cost, "keys": keys})

    def settled(self, id: str | int, at: float, actual: dict[str, float]) -> None:
        """What it really cost, and when that was known."""
        self._note({"settle": id, "at": at, "actual": actual})

    def ended(self, result: dict[str, Any]) -> None:
        """A result. Either all of it is written or, with an error, nothing."""
        self._append(self._results, dumps(self._encode(result)) + b"\n")

    def _note(self, record: dict[str, Any]) -> None:
        if self._journal is not None:
            self._append(self._journal, dumps(record) + b"\n")

    def _append(self, file: BinaryIO, line: bytes) -> None:
        rest = memoryview(line)
        try:
            while rest:
                rest = rest[file.write(rest) :]
        except BaseException:
            with suppress(OSError):
                file.truncate(file.seek(0, os.SEEK_END) - (len(line) - len(rest)))
                file.seek(0, os.SEEK_END)
            raise
        with suppress(OSError, AttributeError):  # what is no file needs no disk
            self._dirty.add(file.fileno())

    def sync(self) -> None:
        """Forces to the disk what was written. It may be called from another thread."""
        while self._dirty:
            with suppress(OSError):  # a pipe, a terminal, /dev/null
                os.fsync(self._dirty.pop())


@contextmanager
def open_ledger(
    output: Path,
    *,
    format: str = "jsonl",
    force: bool = False,
    retry_failed: bool = False,
    since: float = 0.0,
) -> Iterator[Ledger]:
    """The ledger of an output, which goes on where it was left, or begins.

    Args:
        output: The file of results; the journal is beside it.
        format: "jsonl" or "openai-batch"; that of the file, if there is one.
        force: Begin anew, whatever there is.
        retry_failed: Only what succeeded counts as finished.
        since: Epoch seconds: starts before it are forgotten.

    Raises:
        OutputError: it is no output of this format, or another run writes it.
        OSError: it cannot be read or written.
    """
    with ExitStack() as stack:
        results = stack.enter_context(output.open("ab+", buffering=0))
        _lock(results, output)
        if not os.path.isfile(output):  # a pipe, /dev/null: nothing to go on from
            yield Ledger(results, format=format)
            return
        ids = stack.enter_context(Ids())
        path = journal_of(output)
        known = path.exists()
        journal = stack.enter_context(path.open("ab+", buffering=0))
        if force:
            results.truncate(0)
            journal.truncate(0)
        ledger = Ledger(results, journal, format=format, ids=ids, retry_failed=retry_failed)
        if results.seek(0, os.SEEK_END) or journal.seek(0, os.SEEK_END):
            ledger.resumed = True
            _read(results, output, format, ids, known)
            _cut(results)
            _cut(journal)
            ledger.in_flight = _forget(journal, since, ids)
        yield ledger
        ledger.sync()


def _lock(file: BinaryIO, path: Path) -> None:
    if fcntl is not None:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise OutputError(f"{path}: another run writes it now") from None
        except OSError:
            pass  # a file system without locks


def _cut(file: BinaryIO) -> None:
    """Ends the file with its last whole line."""
    end = file.seek(0, os.SEEK_END)
    at = end
    while at > 0:
        start = max(0, at - _BLOCK)
        file.seek(start)
        last = file.read(at - start).rfind(b"\n")
        if last >= 0:
            at = start + last + 1
            break
        at = start
    if at < end:
        file.truncate(at)


def _read(results: BinaryIO, path: Path, format: str, ids: Ids, known: bool) -> None:
    """Takes in which ids have a result. The last line of an id wins."""
    read = FORMATS[format].read

    def pairs() -> Iterator[tuple[str, bool]]:
        with path.open("rb") as file:
            for number, line in enumerate(file, 1):
                if not line.endswith(b"\n"):
                    if number == 1 and not known:
                        raise OutputError(f"{path} is no output of atm run; --force overwrites it")
                    return  # torn
                try:
                    pair = read(line)
                except (ValueError, TypeError, KeyError, RecursionError):
                    raise OutputError(
                        f"{path}: line {number} is no result in the format {format}; "
                        "--force overwrites the file"
                    ) from None
                if pair is not None:
                    yield pair

    ids.finish(pairs())


def _forget(journal: BinaryIO, since: float, ids: Ids) -> int:
    """Drops the starts that count nowhere any more; gives how many have no result."""
    path = Path(journal.name)
    lost: set[str] = set()
    keep_from = None
    with path.open("rb") as file:
        offset = 0
        for line in file:
            found = _AT.search(line)
            if keep_from is None and (found is None or float(found[1]) >= since):
                keep_from = offset
            offset += len(line)
            id = str(json.loads(line).get("start", ""))
            if id and ids.done(id) is None:
                lost.add(id)
    if keep_from is None:
        journal.truncate(0)
    elif keep_from:
        _drop_front(journal, path, keep_from)
    return len(lost)


def _drop_front(journal: BinaryIO, path: Path, keep_from: int) -> None:
    """Cuts off the beginning of the file, in place, since it is open for appending: what is left
    is written beside it first, so that a crash loses nothing.
    """
    kept = path.with_name(f"{path.name}.new")
    with path.open("rb") as old, kept.open("wb") as new:
        old.seek(keep_from)
        while block := old.read(_BLOCK):
            new.write(block)
        new.flush()
        os.fsync(new.fileno())
    os.replace(kept, path)
    replaced = os.open(path, os.O_RDWR | os.O_APPEND)
    os.dup2(replaced, journal.fileno())
    os.close(replaced)
