"""`atm run`: opens the files, runs the batch, and turns what became of it into an exit code."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import BinaryIO

from rich.console import Console

from async_task_manager.cli.progress import shown
from async_task_manager.config import ConfigError, load_config
from async_task_manager.runner import Batch, Summary

__all__ = ["Lines", "run_command"]

SUCCEEDED, FAILED, BAD_USAGE, INTERRUPTED = 0, 1, 2, 130


class Lines:
    """The lines of a file, and how many there are or will have been."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self._size = os.fstat(file.fileno()).st_size
        self._bytes = self._count = 0

    def __iter__(self) -> Iterator[bytes]:
        for line in self._file:
            self._bytes += len(line)
            self._count += bool(line.strip())
            yield line

    @property
    def expected(self) -> int | None:
        """Extrapolated from what was read; exact once all was. None: there is no telling."""
        if not self._bytes or not self._size:
            return None
        return max(self._count, round(self._count * self._size / self._bytes))


def run_command(requests: Path, config: Path, output: Path, *, force: bool, look_ahead: int) -> int:
    """Runs the batch and gives the exit code."""
    console = Console()
    running = False
    try:
        with ExitStack() as files:
            batch = Batch(load_config(config), look_ahead=look_ahead)
            lines = Lines(files.enter_context(requests.open("rb")))
            if output.exists() and any(map(output.samefile, (requests, config))):
                raise ConfigError(f"{output} is an input; the results need a file of their own")
            sink = files.enter_context(output.open("wb" if force else "xb"))
            running = True
            summary = asyncio.run(_interruptible(batch, lines, sink, console))
    except FileExistsError:
        return _refuse(f"{output} exists already; --force overwrites it")
    except ConfigError as error:
        return _refuse(str(error))
    except OSError as error:
        what = f"{error.filename}: " if error.filename else ""
        return _refuse(f"{what}{error.strerror or error}", FAILED if running else BAD_USAGE)
    except KeyboardInterrupt:  # before the run took it over
        return INTERRUPTED
    return _conclude(batch, summary, console)


async def _interruptible(batch: Batch, lines: Lines, sink: BinaryIO, console: Console) -> Summary:
    """The run, with Ctrl-C as its interrupt."""
    loop = asyncio.get_running_loop()

    def interrupt() -> None:
        batch.interrupt()
        running = sum(part.running for part in batch.summary.providers.values())
        console.print(f"interrupted: finishing {running} that run; Ctrl-C again cancels them")

    before = signal.signal(signal.SIGINT, lambda *_: loop.call_soon_threadsafe(interrupt))
    try:
        async with shown(batch, lambda: lines.expected, console):
            return await batch.run(lines, sink)
    finally:
        signal.signal(signal.SIGINT, before)


def _conclude(batch: Batch, summary: Summary, console: Console) -> int:
    for table in summary.tables():
        console.print(table)
    if batch.interrupted:
        console.print(
            f"interrupted: {summary.unsent} requests that were read were not sent, "
            "nor was what comes after them"
        )
    console.print(f"429s: {summary.too_many}", highlight=False)
    if batch.interrupted:
        return INTERRUPTED
    return SUCCEEDED if summary.all_succeeded else FAILED


def _refuse(message: str, code: int = BAD_USAGE) -> int:
    for line in message.splitlines():
        print(f"atm: {line}", file=sys.stderr)
    return code
