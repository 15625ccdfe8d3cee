"""When somebody submitted tasks: a true sliding count."""

from __future__ import annotations

from array import array
from bisect import bisect_right
from collections.abc import Iterable

__all__ = ["Submissions"]


class Submissions:
    """The instants of the last window, oldest first: 8 bytes each. Counting is O(log n)."""

    __slots__ = ("_first", "_stamps")

    def __init__(self, stamps: Iterable[float] = ()) -> None:
        self._stamps = array("d", stamps)
        self._first = 0
        """Instants before it have left the window, and are cut off when they are the half."""

    def add(self, now: float, window: float) -> None:
        """Notes one at ``now``, and lets go of what has left the window: amortised O(1)."""
        stamps, first = self._stamps, self._first
        while first < len(stamps) and stamps[first] + window <= now:
            first += 1
        if first > 32 and 2 * first > len(stamps):
            del stamps[:first]
            first = 0
        self._first = first
        stamps.append(now)

    def count(self, now: float, window: float) -> int:
        """How many the window that ends now holds: those after ``now - window``."""
        gone = bisect_right(self._stamps, now, self._first, key=lambda stamp: stamp + window)
        return len(self._stamps) - gone

    def idle(self, now: float, window: float) -> bool:
        """Whether it holds none."""
        return not self._stamps or self._stamps[-1] + window <= now

    def copy(self) -> Submissions:
        """The same instants, for another to go on from."""
        return Submissions(self._stamps[self._first :])

    def dump(self) -> list[float]:
        """The instants that may still count."""
        return self._stamps[self._first :].tolist()
