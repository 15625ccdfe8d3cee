"""One at a time, with a pause between."""

from __future__ import annotations

from collections.abc import Hashable, Iterable
from math import inf
from typing import TYPE_CHECKING, Any, TypeAlias

from async_task_manager._validate import exact, number, one_of
from async_task_manager.strategies._keys import (
    States,
    call,
    per_key,
    plain,
    read_cost,
    read_key,
    too_large,
    write_cost,
    write_key,
)
from async_task_manager.strategies.base import Cost, CostSpec, KeySpec, Limit, Usage

if TYPE_CHECKING:
    from async_task_manager.task import Outcome

__all__ = ["DelayedStrategy"]


LONGEST = 1e12
"""Seconds; a delay of thirty thousand years is a mistake, and far longer ones no timer can take."""


Grant: TypeAlias = "list[Any]"
"""[pace, cost]. A list, since `settle` may change the cost."""


class _Pace:
    """One key: who holds it, and the latest instant that counts, with the cost it counts for."""

    __slots__ = ("cost", "holder", "last", "since")

    def __init__(self) -> None:
        self.holder: Grant | None = None
        self.last: Grant | None = None
        """Whose delay it is that counts, while that may still be settled."""
        self.since = -inf
        self.cost: Cost = 0


_FRESH = _Pace()


class DelayedStrategy(Limit):
    """One task at a time, each starting at least ``delay_seconds`` after the previous one ended.

    With ``measure_from="start"`` it only spaces starts: each first instruction comes at least the
    delay after the previous one, and tasks may overlap.

    Args:
        delay_seconds: Seconds, finite, at least 0. It can be set at any time, and counts at once
            for the pause that is under way.
        key: What splits the limit, a metadata name or a callable: each key goes at its own pace.
            None: one pace for all.
        cost: A task of cost c keeps the next one away for c times the delay. None: 1; a number, a
            callable, or the name of a unit in ``metadata["cost"]``. `settle` corrects it.
        default_cost: For tasks that don't say.
        measure_from: "completion", however the task ended, or "start".

    Raises:
        InvalidValue, InvalidType: A parameter is out of range or has the wrong type.

    A task that is cancelled before its first instruction leaves no delay behind. Every operation is
    O(1). A key is forgotten once its delay is over.
    """

    def __init__(
        self,
        delay_seconds: float,
        *,
        key: KeySpec = None,
        cost: CostSpec = None,
        default_cost: float | None = None,
        measure_from: str = "completion",
    ) -> None:
        super().__init__(key=key, cost=cost, default_cost=default_cost)
        self._delay = plain(number("delay_seconds", delay_seconds, at_least=0))
        self._from_start = one_of("measure_from", measure_from, ("completion", "start")) == "start"
        self._paces: States[_Pace] = States()

    @property
    def delay_seconds(self) -> float:
        """Seconds between one task and the next."""
        return self._delay

    @delay_seconds.setter
    def delay_seconds(self, value: float) -> None:
        self._delay = plain(number("delay_seconds", value, at_least=0))
        self.changed()

    @property
    def measure_from(self) -> str:
        """From "completion" or from "start"."""
        return "start" if self._from_start else "completion"

    def check(self, key: Hashable, cost: Cost) -> None:
        """Raises `TaskTooLarge` for a cost whose delay no clock could count."""
        if cost * self._delay > LONGEST:
            raise too_large(self, cost, f"{LONGEST:g} s / delay_seconds", LONGEST / self._delay)

    def ready_at(self, key: Hashable, cost: Cost, now: float) -> float:
        """The end of the delay; inf while only an event (a start, an end) can begin it."""
        pace = self._paces.get(key, _FRESH)
        return pace.since + pace.cost * self._delay if pace.holder is None else inf

    def acquire(self, key: Hashable, cost: Cost, now: float) -> Grant:
        """Closes the key until the delay can begin."""
        paces = self._paces
        pace = paces.get(key)
        if pace is None:
            pace = paces.add(key, _Pace())
        pace.holder = grant = [pace, cost]
        if paces.ring:
            paces.sweep(self._idle, now)
        return grant

    def started(self, grant: Grant, now: float) -> None:
        """The first instruction: where starts are spaced, the delay begins."""
        if self._from_start:
            self._begin(grant, now)

    def release(self, grant: Grant, outcome: Outcome, now: float) -> None:
        """The end: the delay begins, unless its start began it or the work never started."""
        if grant[0].holder is grant:
            if outcome.started_at is not None:
                self._begin(grant, now)
            else:
                grant[0].holder = None

        if grant[0].last is grant:
            grant[0].last = None

    def settle(self, grant: Grant, actual: Cost, now: float) -> None:
        """The delay that follows, or that has begun with the start, is for the actual cost."""
        pace = grant[0]
        cost = exact(number("the actual cost", actual, at_least=0))
        if cost * self._delay > LONGEST:
            cost = exact(LONGEST / self._delay)
        grant[1] = cost
        if pace.last is grant:
            pace.cost = cost

    def _begin(self, grant: Grant, now: float) -> None:
        pace, cost = grant
        pace.holder = None
        pace.last = grant
        pace.since = now
        pace.cost = cost

    def _idle(self, pace: _Pace, now: float) -> bool:
        return pace.holder is None and pace.since + pace.cost * self._delay <= now

    def usage(self, key: Hashable, now: float) -> Usage:
        """1 of 1 while the key is closed."""
        ready = self.ready_at(key, 0, now)
        return Usage(int(ready > now), 1, ready if now < ready < inf else None)

    def keys(self) -> Iterable[Hashable]:
        """The keys that have state."""
        return self._paces

    def dump(self) -> Any:
        """The delays that have begun, by key; what runs is not in it."""
        return [
            [write_key(key), pace.since, write_cost(pace.cost)]
            for key, pace in self._paces.items()
            if pace.since > -inf
        ]

    def load(self, state: Any) -> None:
        """Takes the delays back."""
        for key, since, cost in state:
            pace = self._paces.add(read_key(key), _Pace())
            pace.since, pace.cost = since, read_cost(cost)

    def describe(self) -> str:
        """In words: "one at a time, 2 s apart"."""
        way = "starts at least" if self._from_start else "one at a time,"
        return f"{way} {self._delay} s apart{per_key(self)}"

    def tell(self, usage: Usage) -> str:
        """In a sentence: "runs one task at a time, 2 s apart"."""
        way = "starts tasks at least" if self._from_start else "runs one task at a time,"
        return f"{way} {self._delay:g} s apart"

    def __repr__(self) -> str:
        return call(self, self._delay, measure_from="start" if self._from_start else None)
