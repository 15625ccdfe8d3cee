"""Rows of the table, and the table."""

from __future__ import annotations

import os
import platform
import sys
from dataclasses import dataclass
from pathlib import Path

__all__ = ["Row", "print_rows", "write_rows"]

PAGE = Path(__file__).parents[1] / "docs" / "benchmarks.md"
BEGIN, END = "<!-- table:begin -->", "<!-- table:end -->"


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
        return "reached" if met else f"missed: {self.value / self.bar:.2f} of the bar"

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
    """Into the documentation, between its markers."""
    lines = [environment() + ".", "", "| row | what | measured | bar | |", "|---|---|---|---|---|"]
    lines += ["| " + " | ".join(row.cells()) + " |" for row in rows]
    text = PAGE.read_text()
    before, _, rest = text.partition(BEGIN)
    _, _, after = rest.partition(END)
    PAGE.write_text(before + BEGIN + "\n" + "\n".join(lines) + "\n" + END + after)
