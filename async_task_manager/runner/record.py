"""A run as a simulation writes it down, so that both are reported and drawn alike."""

from __future__ import annotations

from array import array
from collections import Counter
from math import nan
from typing import TYPE_CHECKING, Any, cast

from async_task_manager.simulation.report import Attempts, Report

if TYPE_CHECKING:
    from async_task_manager.simulation._run import _Simulation
    from async_task_manager.strategies import Chain

__all__ = ["Record"]


class _Names:
    """Names as numbers."""

    def __init__(self) -> None:
        self.numbers = array("l")
        self.known: dict[Any, int] = {}

    def of(self, name: Any) -> int:
        return self.known.setdefault(name, len(self.known))

    def names(self) -> list[Any]:
        return list(self.known)


class Record:
    """Who came when, which attempts there were, how full the limits and the queue."""

    def __init__(self, chain: Chain) -> None:
        from async_task_manager.simulation._series import Series

        self.attempts = Attempts()
        self.arrived = array("d")
        self.ids: list[Any] = []
        self.ends: Counter[str] = Counter()
        self.refusals: Counter[str] = Counter()
        self.classes, self.providers, self.users = _Names(), _Names(), _Names()
        self.series = Series(chain)
        self.began = 0.0
        """Epoch seconds."""

    def came(self, id: str | int, now: float) -> int:
        """A request was taken in; gives its place."""
        self.ids.append(id)
        self.arrived.append(now)
        self.classes.numbers.append(self.classes.of("not sent"))
        self._look(now)
        return len(self.ids) - 1

    def attempt(self, place: int, provider: str, now: float) -> int:
        """An attempt at it began; gives the attempt's number."""
        self.attempts.task.append(place)
        self.attempts.start.append(now)
        self.attempts.end.append(nan)
        self.providers.numbers.append(self.providers.of(provider))
        self._look(now)
        return len(self.attempts.start) - 1

    def ended(self, attempt: int, now: float) -> None:
        """The attempt ended."""
        self.attempts.end[attempt] = now
        self._look(now)

    def over(self, place: int, state: str) -> None:
        """What became of the request."""
        self.classes.numbers[place] = self.classes.of(state)
        if state != "cancelled":
            self.ends[state] += 1

    def _look(self, now: float) -> None:
        if now >= self.series.next:
            self.series.note(now)

    def report(self) -> Report:
        """What it came to."""
        if not self.ids:
            self.arrived.append(0.0)  # of nothing there is no report; of a task that is not there
            self.ids.append(None)
            self.classes.numbers.append(self.classes.of("not sent"))
        if not self.series.times:
            self.series.note(0.0)
        return Report.of(cast("_Simulation", self))
