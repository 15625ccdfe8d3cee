"""`atm run`: progress while it runs, a table when it is done."""

from __future__ import annotations

import asyncio
import signal
import sys
import time
from contextlib import ExitStack
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from async_task_manager.config import ConfigError, load_config
from async_task_manager.runner import Batch, Summary

__all__ = ["run_command"]

LOG_EVERY = 5.0
"""Seconds between log lines where there is no terminal."""


def run_command(requests: Path, config: Path, output: Path, *, force: bool, look_ahead: int) -> int:
    """Runs the batch and gives the exit code."""
    console = Console()
    try:
        flow = load_config(config)
        with ExitStack() as files:
            lines = files.enter_context(requests.open(encoding="utf-8"))
            sink = files.enter_context(output.open("w" if force else "x", encoding="utf-8"))
            total = sum(1 for line in requests.open(encoding="utf-8") if line.strip())
            batch = Batch(flow, look_ahead=look_ahead)
            with _shown(batch, console, total):
                summary = asyncio.run(_interruptible(batch, lines, sink))
    except FileExistsError:
        print(f"atm: {output} exists already; --force overwrites it", file=sys.stderr)
        return 2
    except (ConfigError, OSError) as error:
        print(f"atm: {error}", file=sys.stderr)
        return 2
    return _conclude(batch, summary, console)


async def _interruptible(batch: Batch, lines: object, sink: object) -> Summary:
    loop = asyncio.get_running_loop()
    loop.add_signal_handler(signal.SIGINT, batch.interrupt)
    try:
        return await batch.run(lines, sink)  # type: ignore[arg-type]
    finally:
        loop.remove_signal_handler(signal.SIGINT)


def _conclude(batch: Batch, summary: Summary, console: Console) -> int:
    for table in summary.tables():
        console.print(table)
    if summary.invalid:
        console.print(f"invalid lines: {summary.invalid}; the output says why")
    if summary.not_sent:
        console.print(f"not sent: {summary.not_sent}; the output says why")
    console.print(f"429s: {summary.too_many}")
    if batch.interrupted:
        console.print(f"interrupted; {summary.unsent} requests that were read were not sent")
        return 130
    return 0 if summary.all_succeeded else 1


class _shown:  # noqa: N801  # used as a function: `with _shown(...)`
    """Shows a bar on a terminal, a line every few seconds elsewhere."""

    def __init__(self, batch: Batch, console: Console, total: int) -> None:
        self.batch, self.console, self.total = batch, console, total
        self.progress: Progress | None = None
        self.logged = time.monotonic()

    def __enter__(self) -> None:
        if self.console.is_terminal:
            self.progress = Progress(
                TextColumn("sending"),
                BarColumn(),
                MofNCompleteColumn(),
                TextColumn("{task.fields[by]}"),
                TimeElapsedColumn(),
                console=self.console,
            )
            self.bar = self.progress.add_task("", total=self.total, by="")
            self.progress.start()
        self.batch.on_change = self.update

    def __exit__(self, *_: object) -> None:
        if self.progress is not None:
            self.progress.stop()

    def update(self) -> None:
        summary = self.batch.summary
        done = summary.done + summary.invalid
        by = "  ".join(f"{name} {part.sent}" for name, part in summary.providers.items())
        if self.progress is not None:
            self.progress.update(self.bar, completed=done, by=by)
        elif time.monotonic() - self.logged >= LOG_EVERY:
            self.logged = time.monotonic()
            print(f"{done} of {self.total} done: {by}; 429s: {summary.too_many}", flush=True)
