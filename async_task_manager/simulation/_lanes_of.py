"""Attempts as bars side by side, or as how many ran at once."""

from __future__ import annotations

from collections.abc import Sequence
from heapq import heappop, heappush
from itertools import accumulate
from typing import TYPE_CHECKING, TypeAlias

if TYPE_CHECKING:
    from async_task_manager.simulation.report import Attempts

__all__ = ["Bar", "bars_of", "running_of"]

Bar: TypeAlias = "tuple[float, float, int]"
"""From when, until when, in which lane."""


def bars_of(attempts: Attempts, seats: Sequence[int], until: float) -> tuple[list[Bar], int]:
    """The attempts in lanes, so that no two overlap, and how many lanes that takes."""
    free: list[int] = []
    busy: list[tuple[float, int]] = []
    bars = []
    lanes = 0
    for seat in seats:
        start, end = attempts.start[seat], attempts.end[seat]
        end = until if end != end else end
        while busy and busy[0][0] <= start:
            heappush(free, heappop(busy)[1])
        if free:
            lane = heappop(free)
        else:
            lane, lanes = lanes, lanes + 1
        heappush(busy, (end, lane))
        bars.append((start, end, lane))
    return bars, lanes


def running_of(
    attempts: Attempts, seats: Sequence[int], until: float, bins: int
) -> list[tuple[float, float]]:
    """How many ran at once, on average over each of so many parts of the time."""
    parts, whole = [0.0] * (bins + 1), [0] * (bins + 2)
    for seat in seats:
        start, end = attempts.start[seat], attempts.end[seat]
        begins, ends = start / until * bins, (until if end != end else end) / until * bins
        first, last = int(begins), int(ends)
        if first == last:
            parts[first] += ends - begins
        else:
            parts[first] += first + 1 - begins
            parts[last] += ends - last
            whole[first + 1] += 1
            whole[last] -= 1
    through = accumulate(whole)
    return [(until * i / bins, parts[i] + next(through)) for i in range(bins)]
