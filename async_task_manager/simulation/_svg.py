"""A report as a picture: SVG made of plain text, without any dependency."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from html import escape
from math import ceil
from typing import TYPE_CHECKING

from async_task_manager.simulation._lanes_of import Bar, bars_of, running_of
from async_task_manager.simulation.words import span, ticks

if TYPE_CHECKING:
    from async_task_manager.simulation.report import Report

__all__ = ["drawing"]

WIDTH, LEFT, RIGHT = 960, 56, 24
PLOT = WIDTH - LEFT - RIGHT

INK, FAINT, GRID, FILL = "#1f2933", "#616e7c", "#e4e7eb", "#9fb3c8"
COLORS = ("#2a6f97", "#e0a030", "#3c8d5a", "#6d597a", "#2ec4b6", "#8d6e63")
"""By class; a seventh begins anew."""

FULL = "#d1495b"
"""A limit of which nothing is left."""

MOST_BARS = 800
"""Attempts drawn one by one; more of them would be a grey block, and are drawn as an area."""

MOST_LANES = 24


def drawing(report: Report, title: str | None) -> str:
    """The whole picture."""
    return _Drawing(report).whole(title)


class _Drawing:
    def __init__(self, report: Report) -> None:
        self.report = report
        ends = [end for end in report.timeline[0].end if end == end]
        self.span = max([*report.series.times, *ends, 1e-9])
        self.parts: list[str] = []
        self.y = 0.0

    def whole(self, title: str | None) -> str:
        self.head(title)
        top = self.y
        self.timeline()
        self.queue()
        self.limits()
        self.axis(top)
        height = ceil(self.y + 34)
        return (
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" '
            f'width="{WIDTH}" height="{height}" font-family="system-ui, sans-serif" '
            f'font-size="12" fill="{INK}">\n<rect width="100%" height="100%" fill="#fff"/>\n'
            + "\n".join(self.parts)
            + "\n</svg>\n"
        )

    # ---- pieces -----------------------------------------------------------------------------

    def x(self, seconds: float) -> float:
        return LEFT + PLOT * seconds / self.span

    def text(
        self, x: float, y: float, words: str, *, anchor: str = "start", style: str = ""
    ) -> None:
        self.parts.append(
            f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}" {style}>{escape(words)}</text>'
        )

    def rect(self, x: float, y: float, width: float, height: float, style: str) -> None:
        self.parts.append(
            f'<rect x="{x:.2f}" y="{y:.2f}" width="{width:.2f}" height="{height:.2f}" {style}/>'
        )

    def heading(self, words: str) -> None:
        self.y += 22
        self.text(LEFT, self.y, words, style='font-weight="600"')
        self.y += 8

    def area(self, points: Sequence[tuple[float, float]], most: float, height: float) -> None:
        """Steps: a value holds until the next. The axis at the left goes from 0 to the most."""
        bottom = self.y + height
        path = [f"M{LEFT} {bottom:.1f}"]
        for seconds, value in points:
            path.append(f"H{self.x(seconds):.1f}V{bottom - height * value / most:.1f}")
        path.append(f"H{self.x(self.span):.1f}V{bottom:.1f}Z")
        self.parts.append(f'<path d="{"".join(path)}" fill="{FILL}"/>')
        small = f'font-size="10" fill="{FAINT}"'
        self.text(LEFT - 6, self.y + 9, f"{most:,.3g}", anchor="end", style=small)
        self.text(LEFT - 6, bottom, "0", anchor="end", style=small)
        self.y = bottom

    # ---- panels -----------------------------------------------------------------------------

    def head(self, title: str | None) -> None:
        report = self.report
        self.y = 28
        words = title or f"{report.tasks:,} tasks in {span(report.makespan)}"
        self.text(LEFT, self.y, words, style='font-size="16" font-weight="600"')
        waits = report.waits
        facts = [
            f"{report.throughput:,.3g} a second",
            f"wait p50 {span(waits.p50)}, p95 {span(waits.p95)}, p99 {span(waits.p99)}",
        ]
        if title:
            facts.insert(0, f"{report.tasks:,} tasks in {span(report.makespan)}")
        if report.jain is not None:
            facts.append(f"fairness {report.jain:.2f}")
        self.y += 18
        self.text(LEFT, self.y, "; ".join(facts), style=f'fill="{FAINT}"')
        names = report.timeline[3]
        if len(names) > 1:
            x = float(LEFT)
            self.y += 20
            for name, color in zip(sorted(names), _colors(len(names)), strict=True):
                self.rect(x, self.y - 9, 10, 10, f'rx="2" fill="{color}"')
                self.text(x + 15, self.y, name)
                x += 30 + 7 * len(name)

    def timeline(self) -> None:
        attempts, providers, chosen, names, classes = self.report.timeline
        color = dict(zip(sorted(names), _colors(len(names)), strict=True))
        for number, provider in enumerate(providers):
            seats = [i for i, p in enumerate(chosen) if p == number]
            who = "what runs" if provider == "none" else f"{provider}: what runs there"
            count = f"{len(seats):,} attempts" if len(seats) != 1 else "1 attempt"
            self.heading(f"{who} ({count})")
            if len(seats) <= MOST_BARS:
                bars, lanes = bars_of(attempts, seats, self.span)
                if lanes <= MOST_LANES:
                    colors = [color[names[classes[attempts.task[i]]]] for i in seats]
                    self.bars(bars, lanes, colors)
                    continue
            points = running_of(attempts, seats, self.span, PLOT // 2)
            self.area(points, max(value for _, value in points) or 1, 60)

    def bars(self, bars: Sequence[Bar], lanes: int, colors: Sequence[str]) -> None:
        height = 12 if lanes <= 8 else 8
        for (start, end, lane), color in zip(bars, colors, strict=True):
            width = max(0.8, self.x(end) - self.x(start) - 0.6)
            self.rect(
                self.x(start), self.y + lane * height, width, height - 2, f'rx="1.5" fill="{color}"'
            )
        self.y += lanes * height

    def queue(self) -> None:
        series = self.report.series
        self.heading("queued")
        points = list(zip(series.times, map(float, series.queued), strict=True))
        self.area(points, max(1, *series.queued, 1), 70)

    def limits(self) -> None:
        series = self.report.series
        used = [tracked for tracked in series.limits if tracked.peak]
        if not used:
            return
        self.heading("use of the limits")
        for tracked in used:
            self.y += 16
            use = f"{series.mean(tracked.use):.0%} used, at most {tracked.peak:.0%}"
            self.text(LEFT, self.y, tracked.label, style='font-size="11"')
            self.text(
                WIDTH - RIGHT, self.y, use, anchor="end", style=f'font-size="11" fill="{FAINT}"'
            )
            self.y += 5
            self.rect(LEFT, self.y, PLOT, 10, f'fill="{GRID}"')
            for start, end, shade in _runs(series.times, tracked.use, self.span):
                if shade:
                    color = FULL if shade >= 1 else COLORS[0]
                    self.rect(
                        self.x(start),
                        self.y,
                        self.x(end) - self.x(start) + 0.05,
                        10,
                        f'fill="{color}" fill-opacity="{0.15 + 0.85 * min(shade, 1):.2f}"',
                    )
            self.y += 12

    def axis(self, top: float) -> None:
        """Lines of time through all panels, under what they show."""
        self.y += 6
        lines = []
        for seconds in ticks(self.span):
            x = self.x(seconds)
            lines.append(
                f'<line x1="{x:.1f}" y1="{top + 8:.1f}" x2="{x:.1f}" y2="{self.y:.1f}" '
                f'stroke="{GRID}"/>'
            )
            self.text(
                x,
                self.y + 16,
                span(seconds) if seconds else "0",
                anchor="middle",
                style=f'font-size="11" fill="{FAINT}"',
            )
        self.parts[:0] = lines


def _colors(count: int) -> list[str]:
    return [COLORS[i % len(COLORS)] for i in range(count)]


def _runs(
    times: Sequence[float], values: Sequence[float], until: float
) -> Iterator[tuple[float, float, float]]:
    """Stretches of one shade, in steps of a tenth: few rectangles where little changes."""
    since, shade = 0.0, -1.0
    for instant, value in zip(times, values, strict=True):
        now = 1.0 if value >= 0.999 else ceil(value * 10) / 10 if value < 0.9 else 0.9
        if now != shade:
            if shade >= 0:
                yield since, instant, shade
            since, shade = instant, now
    yield since, until, shade  # there always is a sample
