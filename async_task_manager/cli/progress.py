"""What a person sees while a batch runs: a live view, or where no terminal is, lines."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress

from rich.console import Console, Group
from rich.live import Live
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn
from rich.table import Table

from async_task_manager.runner import Batch

__all__ = ["shown"]

DRAW_EVERY = 0.25
"""Seconds between pictures on a terminal."""

LOG_EVERY = 5.0
"""Seconds between lines where there is none."""


@asynccontextmanager
async def shown(
    batch: Batch, expected: Callable[[], int | None], console: Console
) -> AsyncIterator[None]:
    """Shows how far the batch has come, for as long as the block runs.

    Args:
        batch: What runs.
        expected: How many results there will be; None: nobody knows.
        console: Where to show it.
    """
    showing = asyncio.create_task(
        (_draw if console.is_terminal else _log)(batch, expected, console)
    )
    try:
        yield
    finally:
        showing.cancel()
        with suppress(asyncio.CancelledError):
            await showing


async def _draw(batch: Batch, expected: Callable[[], int | None], console: Console) -> None:
    progress = Progress(
        TextColumn("{task.completed} of {task.fields[total_text]}"),
        BarColumn(bar_width=None),
        TaskProgressColumn(),
        TimeRemainingColumn(elapsed_when_finished=True),
        console=console,
        expand=True,
    )
    bar = progress.add_task("", total=None, total_text="?")
    # Drawn by this task, not by a thread of its own, which would look while counts change.
    with Live(console=console, auto_refresh=False, transient=True) as live:
        while True:
            total = expected()
            progress.update(bar, completed=batch.summary.done, total=total, total_text=_text(total))
            live.update(Group(progress, _providers(batch)), refresh=True)
            await asyncio.sleep(DRAW_EVERY)


def _providers(batch: Batch) -> Table:
    table = Table.grid(padding=(0, 2))
    for name, part in batch.summary.providers.items():
        table.add_row(
            f"  {name}",
            f"sent {part.sent}",
            f"running {part.running}",
            f"failed {part.failed}",
            f"429s {part.too_many}",
        )
    return table


async def _log(batch: Batch, expected: Callable[[], int | None], console: Console) -> None:
    while True:
        await asyncio.sleep(LOG_EVERY)
        summary = batch.summary
        parts = "; ".join(
            f"{name} sent {part.sent}, running {part.running}"
            for name, part in summary.providers.items()
        )
        print(
            f"{time.strftime('%H:%M:%S')} {summary.done} of {_text(expected())} done; {parts}; "
            f"429s: {summary.too_many}",
            file=console.file,
            flush=True,
        )


def _text(total: int | None) -> str:
    return "?" if total is None else str(total)
