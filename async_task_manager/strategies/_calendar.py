"""Instants at which something is to be looked at again."""

from __future__ import annotations

from collections.abc import Callable
from heapq import heapify, heappop, heappush
from math import inf
from typing import Any, Generic, TypeVar

__all__ = ["Calendar"]

T = TypeVar("T")


class Calendar(Generic[T]):
    """A heap of (instant, item). Items that no longer matter are dropped lazily.

    ``matters(instant, item)`` tells them apart; they are swept whenever the heap has doubled since
    the last sweep, so that it never holds more than twice what matters, plus a constant.
    """

    __slots__ = ("_matters", "_pushed", "_sweep_at", "heap")

    def __init__(self, matters: Callable[[float, T], bool]) -> None:
        self.heap: list[tuple[float, int, T]] = []
        """Empty or not says whether anything is noted at all."""
        self._pushed = 0  # no itertools.count: a policy that has a calendar is copied
        self._matters = matters
        self._sweep_at = 256

    def push(self, instant: float, item: T) -> None:
        if len(self.heap) >= self._sweep_at:
            matters: Any = self._matters
            self.heap = [entry for entry in self.heap if matters(entry[0], entry[2])]
            heapify(self.heap)
            self._sweep_at = max(256, 2 * len(self.heap))
        self._pushed += 1
        heappush(self.heap, (instant, self._pushed, item))

    def next(self) -> float:
        """The first instant with something that matters; inf if there is none."""
        heap = self.heap
        while heap:
            instant, _, item = heap[0]
            if self._matters(instant, item):
                return instant
            heappop(heap)
        return inf

    def pop(self, now: float) -> T | None:
        """The next item that matters and is due; None if there is none."""
        if self.next() > now:
            return None
        return heappop(self.heap)[2]
