"""A run as one HTML page that needs nothing else: figures, pictures, and no script."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from html import escape
from typing import TYPE_CHECKING

from async_task_manager.simulation.words import span

if TYPE_CHECKING:
    from async_task_manager.runner.report import Distribution, Summary
    from async_task_manager.simulation import Report

__all__ = ["page"]

STYLE = """
:root { color-scheme: light dark; --line: #8885; --bar: #2a6f97; --full: #d1495b }
body { font: 15px/1.5 system-ui, sans-serif; max-width: 62rem; margin: 2rem auto; padding: 0 1rem }
table { border-collapse: collapse; margin: .5rem 0 1.5rem } caption { text-align: left }
th, td { padding: .2rem .8rem .2rem 0; border-bottom: 1px solid var(--line); text-align: right }
th:first-child, td:first-child { text-align: left }
meter { width: 12rem } .picture { background: #fff; border-radius: 6px; overflow-x: auto }
.bars rect { fill: var(--bar) } .bars text { fill: currentColor; font-size: 11px }
"""

BINS = 24
"""Bars of a histogram."""


def page(summary: Summary, report: Report, title: str) -> str:
    """The page: what became of the requests, where they went, how full the limits were, how long
    they waited and took, and all of it over time.
    """
    counts = [(status, f"{count:,}") for status, count in summary.statuses.most_common()]
    if summary.skipped:
        counts.append(("finished before", f"{summary.skipped:,}"))
    if summary.failed_before:
        counts.append(("of them without success", f"{summary.failed_before:,}"))
    if summary.unsent:
        counts.append(("read and not sent", f"{summary.unsent:,}"))
    rate = summary.done / summary.seconds if summary.seconds else 0.0
    parts = [
        f"<h1>{escape(title)}</h1>",
        f"<p>{summary.done:,} requests in {span(summary.seconds)}, {rate:,.3g} a second; "
        f"429s: {summary.too_many}</p>",
        _table(("", "requests"), counts),
        "<h2>Providers</h2>",
        _table(
            ("", "sent", "ok", "failed", "retried", "429s", "wait p50 / p95", "took p50 / p95"),
            [
                (
                    name,
                    *map(str, (part.sent, part.succeeded, part.failed)),
                    *map(str, (max(0, part.errors - part.failed), part.too_many)),
                    _pair(part.waits),
                    _pair(part.durations),
                )
                for name, part in summary.providers.items()
            ],
        ),
        "<h2>Limits</h2>",
        "<p>The largest share that was used in any one window, or at once: what stands at 100 % is "
        "what held the run up.</p>",
        _limits(summary),
        "<h2>Over time</h2>",
        f'<div class="picture">{report.svg(title=title)}</div>',
        "<h2>Waits and durations</h2>",
    ]
    for name, part in summary.providers.items():
        parts.append(_histogram(f"{name}: how long requests waited", part.waits))
        parts.append(_histogram(f"{name}: how long attempts took", part.durations))
    return (
        f'<!doctype html>\n<html lang="en"><head><meta charset="utf-8"><title>{escape(title)}'
        f'</title>\n<meta name="viewport" content="width=device-width">\n<style>{STYLE}</style>'
        "</head>\n<body>\n" + "\n".join(part for part in parts if part) + "\n</body></html>\n"
    )


def _table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = ["<table><tr>" + "".join(f"<th>{escape(cell)}</th>" for cell in head) + "</tr>"]
    lines += [
        "<tr>" + "".join(f"<td>{escape(cell)}</td>" for cell in row) + "</tr>" for row in rows
    ]
    return "\n".join((*lines, "</table>"))


def _limits(summary: Summary) -> str:
    lines = (
        f"<tr><td>{escape(name)}</td><td>{escape(use.label)}</td>"
        f'<td><meter value="{use.peak:.3f}" high=".99" optimum="0"></meter></td>'
        f"<td>{use.peak:.0%}</td></tr>"
        for name, part in summary.providers.items()
        for use in part.limits
    )
    return "\n".join(("<table>", *lines, "</table>"))


def _pair(values: Distribution) -> str:
    low, high = values.quantile(0.5), values.quantile(0.95)
    return "-" if low is None or high is None else f"{span(low)} / {span(high)}"


def _histogram(title: str, values: Distribution) -> str:
    """Bars of equal shares of the range up to the 99th percentile."""
    most = values.quantile(0.99)
    if most is None:
        return ""
    most = max(most, 1e-6)
    bins = [0] * (BINS + 1)
    for value, count in values.counts():
        bins[min(BINS, int(value / most * BINS))] += count
    top, width, height = max(bins), 24, 80
    bars = "".join(
        f'<rect x="{i * width}" y="{height - height * count / top:.1f}" width="{width - 2}" '
        f'height="{height * count / top:.1f}"><title>{count}</title></rect>'
        for i, count in enumerate(bins)
        if count
    )
    return (
        f"<h3>{escape(title)}</h3>\n"
        f'<svg class="bars" viewBox="0 0 {(BINS + 1) * width} {height + 16}" role="img">{bars}'
        f'<text x="0" y="{height + 13}">0</text>'
        f'<text x="{BINS * width}" y="{height + 13}" text-anchor="end">{span(most)}</text></svg>'
    )
