"""A report as a PNG, drawn by matplotlib."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from async_task_manager.errors import MissingExtra
from async_task_manager.simulation._lanes_of import running_of
from async_task_manager.simulation.words import span, ticks

if TYPE_CHECKING:
    from async_task_manager.simulation.report import Report

__all__ = ["save_png"]


def save_png(report: Report, path: Path, title: str | None = None) -> None:
    """Draws what ran at each provider, the queue and the use of each limit, over time.

    Raises:
        MissingExtra: matplotlib isn't there.
    """
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError as error:
        raise MissingExtra("plot", "matplotlib") from error
    attempts, providers, chosen, _, _ = report.timeline
    series = report.series
    figure: Any = Figure(figsize=(10, 6.5), layout="constrained")
    FigureCanvasAgg(figure)
    above, middle, below = figure.subplots(3, 1, sharex=True)
    until = max([*series.times, 1e-9])
    for number, provider in enumerate(providers):
        seats = [i for i, p in enumerate(chosen) if p == number]
        points = running_of(attempts, seats, until, 800)
        above.step(*zip(*points, strict=True), where="post", label=provider)
    above.set_ylabel("running")
    if providers != ["none"]:
        above.legend(fontsize=8, loc="upper right")
    middle.fill_between(series.times, series.queued, step="post", color="#9fb3c8")
    middle.set_ylabel("queued")
    limits = [tracked for tracked in reversed(series.limits) if tracked.peak]
    for row, tracked in enumerate(limits):
        top = [row + 0.85 * use for use in tracked.use]
        below.fill_between(series.times, row, top, step="post", color="#2a6f97")
    below.set_yticks(
        [row + 0.4 for row in range(len(limits))],
        [tracked.label for tracked in limits],
        fontsize=7,
    )
    below.set_title("use of the limits", fontsize=9, loc="left")
    below.set_xticks(ticks(until), [span(at) if at else "0" for at in ticks(until)])
    for axis in (above, middle, below):
        axis.set_ylim(bottom=0)
        axis.spines[["top", "right"]].set_visible(False)
    figure.suptitle(title or f"{report.tasks:,} tasks in {span(report.makespan)}")
    figure.savefig(path, dpi=110, metadata={"Software": None})
