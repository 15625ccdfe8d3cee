"""Rows of the table, and the table."""

from __future__ import annotations

import os
import platform
import sys
from dataclasses import dataclass
from pathlib import Path

__all__ = ["Row", "draw", "print_rows", "write_rows"]

PICTURE = Path(__file__).parents[1] / "docs" / "images" / "peers.svg"
PAGE = Path(__file__).parents[1] / "docs" / "benchmarks.md"
TABLE = "<!-- {0}:begin -->", "<!-- {0}:end -->"


@dataclass(frozen=True, slots=True)
class Row:
    """One measured figure."""

    name: str
    what: str
    value: float
    unit: str = ""
    bar: float | None = None
    """What it should reach; None: a yardstick or a peer."""
    at_least: bool = False

    @property
    def verdict(self) -> str:
        """Whether the bar is reached, and by how much it is missed."""
        if self.bar is None:
            return ""
        met = self.value >= self.bar if self.at_least else self.value <= self.bar
        if met:
            return "reached"
        return f"missed: {self.value / self.bar:.2f} of the bar" if self.bar else "missed"

    def cells(self) -> tuple[str, str, str, str, str]:
        """As text."""
        sign = "≥" if self.at_least else "≤"
        bar = "" if self.bar is None else f"{sign} {self.bar:g}"
        return self.name, self.what, f"{self.value:.4g} {self.unit}".strip(), bar, self.verdict


def environment() -> str:
    """What it was measured on."""
    return (
        f"{platform.python_implementation()} {platform.python_version()} on {sys.platform}, "
        f"{os.cpu_count()} cores"
    )


def print_rows(rows: list[Row]) -> None:
    """For a terminal."""
    print(environment())
    widths = [max(len(row.cells()[i]) for row in rows) for i in range(5)]
    for row in rows:
        print("  ".join(cell.ljust(width) for cell, width in zip(row.cells(), widths, strict=True)))


def write_rows(rows: list[Row]) -> None:
    """Into the documentation, between its markers; a table of which nothing was measured stays."""
    text = PAGE.read_text()
    added = [row for row in rows if row.name == "adds"]
    others = [row for row in rows if row.name != "adds"]
    if others:
        lines = ["| row | what | measured | bar | |", "|---|---|---|---|---|"]
        lines += ["| " + " | ".join(row.cells()) + " |" for row in others]
        text = replaced(text, "table", lines)
    if added:
        lines = ["| strategy | adds |", "|---|---|"]
        lines += [f"| {row.what} | {row.value:.2g} {row.unit} |" for row in added]
        text = replaced(text, "adds", lines)
    PAGE.write_text(text)


def replaced(text: str, name: str, lines: list[str]) -> str:
    begin, end = (marker.format(name) for marker in TABLE)
    before, _, rest = text.partition(begin)
    _, _, after = rest.partition(end)
    return "\n".join([before + begin, environment() + ".", "", *lines, end]) + after


def draw(rows: list[Row]) -> None:
    """The contest of the limiters as a picture in the documentation, if it took place."""
    if not any(row.name == "peers" for row in rows):
        return
    import matplotlib as mpl

    mpl.use("svg")
    mpl.rcParams["svg.hashsalt"] = "peers"  # the same figures give the same file
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(1, 2, figsize=(9, 3), layout="constrained", sharey=True)
    for axis, suffix, title, bar in (
        (axes[0], "/s: most in a second ÷ limit", "most starts in any second ÷ limit", 1.0),
        (axes[1], "/s: CPU s per s", "CPU seconds per second", None),
    ):
        found = [row for row in rows[::-1] if row.name == "peers" and row.what.endswith(suffix)]
        names = [row.what.rsplit(", ", 1)[0] for row in found]
        ours = ["#2a6f97" if name == "async_task_manager" else "#b8c4cc" for name in names]
        axis.barh(names, [row.value for row in found], color=ours)
        axis.set_title(title, fontsize=10)
        axis.spines[["top", "right"]].set_visible(False)
        if bar is not None:
            axis.axvline(bar, color="#c1121f", linewidth=1)
    PICTURE.parent.mkdir(exist_ok=True)
    figure.savefig(PICTURE, metadata={"Date": None})
