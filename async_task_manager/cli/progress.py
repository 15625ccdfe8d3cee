"""What a person sees while a batch runs: a live view, or where no terminal is, lines."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, suppress

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from async_task_manager.runner import Batch
from async_task_manager.runner.report import LimitUse, ProviderSummary

__all__ = ["line", "picture", "shown"]

DRAW_EVERY = 0.25
"""Seconds between pictures on a terminal."""

ASK_EVERY = 8
"""Pictures between questions of what is waited for: it looks at each that waits."""

LOG_EVERY = 5.0
"""Seconds between lines where there is none."""

Expected = Callable[[], int | None]


@asynccontextmanager
async def shown(batch: Batch, expected: Expected, console: Console) -> AsyncIterator[None]:
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


async def _draw(batch: Batch, expected: Expected, console: Console) -> None:
    why, pictures = "", 0
    # Drawn by this task, not by a thread of its own, which would look while counts change.
    with Live(console=console, auto_refresh=False, transient=True) as live:
        while True:
            if pictures % ASK_EVERY == 0:
                why = waiting(batch)
            pictures += 1
            live.update(picture(batch, expected(), why, console.width), refresh=True)
            await asyncio.sleep(DRAW_EVERY)


async def _log(batch: Batch, expected: Expected, console: Console) -> None:
    while True:
        await asyncio.sleep(LOG_EVERY)
        print(line(batch, expected()), file=console.file, flush=True)


def line(batch: Batch, expected: int | None) -> str:
    """How far it is, in a line, and which providers stand still."""
    parts = []
    for name, part in batch.summary.providers.items():
        stopped = part.stopped(batch.now)
        why = f", {stopped}" if stopped else ""
        parts.append(f"{name} sent {part.sent}, running {part.running}{why}")
    return (
        f"{time.strftime('%H:%M:%S')} {_far(batch)} of {_text(expected)} done, "
        f"{_left(batch, expected)}; {'; '.join(parts)}; 429s: {batch.summary.too_many}"
    )


def waiting(batch: Batch) -> str:
    """What most of those that were read are waiting for."""
    causes = batch.explain().causes
    return str(causes[0]) if causes else ""


def picture(batch: Batch, expected: int | None, why: str, width: int) -> RenderableType:
    """The live view, for a terminal so many columns wide."""
    done = _far(batch)
    head = Table.grid(padding=(0, 1), expand=True)
    head.add_column()
    head.add_column(ratio=1)
    head.add_column(justify="right")
    share = "" if not expected else f" {done / expected:4.0%}"
    bar = ProgressBar(total=expected, completed=done, pulse=expected is None)
    head.add_row(f"{done:,} of {_text(expected)}{share}", bar, _left(batch, expected))
    lines: list[RenderableType] = [head]
    names = max(map(len, batch.summary.providers))
    for name, part in batch.summary.providers.items():
        lines.append(_counts(name.ljust(names), part, batch.now))
        lines += _limits(part, batch.now, names + 2, width)
    if why:
        lines.append(Text(why, style="dim"))  # it ends with the instant: rather two lines than none
    return Group(*lines)


def _counts(name: str, part: ProviderSummary, now: float) -> Text:
    text = Text(f"{name}  ", style="bold", no_wrap=True, overflow="ellipsis")
    text.append(f"sent {part.sent}  running {part.running}", style="not bold")
    for count, word in ((part.failed, "failed"), (part.too_many, "429s")):
        text.append(f"  {word} {count}", style="not bold red" if count else "not bold dim")
    stopped = part.stopped(now)
    if stopped:
        text.append(f"  {stopped}", style="not bold yellow")
    return text


def _limits(part: ProviderSummary, now: float, indent: int, width: int) -> Iterator[Text]:
    """As many limits in a line as fit, each with its bar."""
    line = Text(" " * indent)
    for use in part.limits:
        cell = _bar(use, now, width - indent)
        if line.cell_len > indent and line.cell_len + 3 + cell.cell_len > width:
            yield line
            line = Text(" " * indent)
        if line.cell_len > indent:
            line.append("   ")
        line.append_text(cell)
    yield line


def _bar(use: LimitUse, now: float, width: int) -> Text:
    usage = use.now(now)
    share = min(1.0, usage.used / usage.capacity)
    filled = round(8 * share)
    text = Text(no_wrap=True, overflow="ellipsis")
    text.append("█" * filled, style="red" if share >= 1 else "green")
    text.append("░" * (8 - filled), style="dim")
    text.append(f" {usage.used:,.0f} of {use.label}")
    text.truncate(width, overflow="ellipsis")
    return text


def _far(batch: Batch) -> int:
    return batch.summary.done + batch.summary.skipped


def _left(batch: Batch, expected: int | None) -> str:
    """The pace, and how long the rest will take at it."""
    pace = batch.summary.pace()
    words = f"{pace:.1f}/s" if pace < 100 else f"{pace:,.0f}/s"
    if expected is None or not pace:
        return words
    seconds = max(0, round((expected - _far(batch)) / pace))
    return f"{words}, {seconds // 3600}:{seconds // 60 % 60:02}:{seconds % 60:02} left"


def _text(total: int | None) -> str:
    return "?" if total is None else f"{total:,}"
