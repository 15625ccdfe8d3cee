"""A progress bar for whatever a manager has to do."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

from async_task_manager.errors import MissingExtra
from async_task_manager.manager import TaskManager

if TYPE_CHECKING:
    from rich.console import Console

    from async_task_manager._overview import Stats

__all__ = ["track"]

logger = logging.getLogger("async_task_manager")

DRAW_EVERY = 0.1
"""Seconds between pictures on a terminal."""

LOG_EVERY = 5.0
"""Seconds between lines in the log where there is none."""


@asynccontextmanager
async def track(manager: TaskManager, console: Console | None = None) -> AsyncIterator[None]:
    """Shows what the manager has done and has to do, for as long as the block runs.

    Args:
        manager: Whose tasks; those that are added in the block count, too.
        console: A rich console; None: standard error.

    On leaving it waits for all that is queued or runs, as `TaskManager.join` does, unless the
    manager is stopped. Where there is no terminal, a line goes to the log ``async_task_manager``
    every 5 s and at the end.

    Raises:
        MissingExtra: rich is not installed.
    """
    try:
        from rich.console import Console
    except ImportError as error:
        raise MissingExtra("cli", "rich") from error
    if console is None:
        console = Console(stderr=True)
    before = _done(manager.stats())
    show = _bar(manager, console, before) if console.is_terminal else _lines(manager, before)
    showing = asyncio.create_task(show)
    try:
        yield
        if manager._going:
            await manager.join()
    finally:
        showing.cancel()
        await asyncio.wait([showing])


async def _bar(manager: TaskManager, console: Console, before: int) -> None:
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )

    columns = (
        BarColumn(bar_width=None),
        MofNCompleteColumn(),
        TextColumn("{task.description}"),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
    )
    # Drawn by this task, not by a thread of its own, which would look while counts change.
    with Progress(*columns, console=console, expand=True, auto_refresh=False) as progress:
        bar = progress.add_task("", total=None)

        def draw() -> None:
            stats = manager.stats()
            done = _done(stats) - before
            total = done + stats.queued + stats.running
            progress.update(bar, completed=done, total=total, description=_words(stats))
            progress.refresh()

        try:
            while True:
                draw()
                await asyncio.sleep(DRAW_EVERY)
        finally:
            draw()


async def _lines(manager: TaskManager, before: int) -> None:
    def write() -> None:
        stats = manager.stats()
        done = _done(stats) - before
        total = done + stats.queued + stats.running
        logger.info("%d of %d done; %s", done, total, _words(stats))

    try:
        while True:
            await asyncio.sleep(LOG_EVERY)
            write()
    finally:
        write()


def _done(stats: Stats) -> int:
    return stats.succeeded + stats.failed + stats.cancelled + stats.expired + stats.rejected


def _words(stats: Stats) -> str:
    """What a person wants to know besides the bar; what is zero goes without saying."""
    parts = [f"{stats.running} running"]
    parts += [
        f"{number} {name}"
        for name in ("failed", "cancelled", "expired", "rejected")
        if (number := getattr(stats, name))
    ]
    return ", ".join(parts)
