"""At most so many at once."""

from __future__ import annotations

from collections.abc import Hashable, Iterable
from math import inf
from typing import TYPE_CHECKING

from async_task_manager._validate import exact, number
from async_task_manager.strategies._keys import call, per_key, plain, shown, too_large, words
from async_task_manager.strategies.base import Cost, CostSpec, KeySpec, Limit, Usage

if TYPE_CHECKING:
    from async_task_manager.task import Outcome

__all__ = ["ConcurrentLimitStrategy"]


class ConcurrentLimitStrategy(Limit):
    """At most ``max_concurrent`` tasks run at once; with ``cost``, slots of different width.

    A task holds its slots from the moment it is let go until its end, however it ends. The sum of
    the costs that run never exceeds ``max_concurrent``, and a task that fits never waits here.

    Args:
        max_concurrent: Slots; a finite number above 0. It can be set at any time: raising it
            starts what waits at once; lowering it below what runs stops nothing, and nothing
            more starts until enough has ended.
        key: What splits the limit, a metadata name or a callable: each key has that many slots
            of its own. None: one limit for all.
        cost: The slots that a task takes: None: 1; a number, a callable, or the name of a unit
            in ``metadata["cost"]``.
        default_cost: For tasks that don't say.

    Raises:
        InvalidValue, InvalidType: A parameter is out of range or has the wrong type.

    Every operation is O(1), and a key is kept only while something of it runs. `settle` changes
    nothing: a task gives back what it was charged. `dump` has nothing to keep: what ran does not
    run any more after a restart.
    """

    def __init__(
        self,
        max_concurrent: float,
        *,
        key: KeySpec = None,
        cost: CostSpec = None,
        default_cost: float | None = None,
    ) -> None:
        super().__init__(key=key, cost=cost, default_cost=default_cost)
        self._max = exact(number("max_concurrent", max_concurrent, above=0))
        self._used: dict[Hashable, Cost] = {}

    @property
    def max_concurrent(self) -> float:
        """Slots, for each key."""
        return plain(self._max)

    @max_concurrent.setter
    def max_concurrent(self, value: float) -> None:
        self._max = exact(number("max_concurrent", value, above=0))
        self.changed()

    def check(self, key: Hashable, cost: Cost) -> None:
        """Raises `TaskTooLarge` for a cost above ``max_concurrent``."""
        if cost > self._max:
            raise too_large(self, cost, "max_concurrent", self._max)

    def ready_at(self, key: Hashable, cost: Cost, now: float) -> float:
        """Now, if there are slots enough; else inf: only an end frees any."""
        if self._used.get(key, 0) + cost <= self._max:
            return now
        self.check(key, cost)
        return inf

    def acquire(self, key: Hashable, cost: Cost, now: float) -> tuple[Hashable, Cost]:
        """Takes the slots."""
        used = self._used
        used[key] = used.get(key, 0) + cost
        return key, cost

    def release(self, grant: tuple[Hashable, Cost], outcome: Outcome, now: float) -> None:
        """Gives the slots back, whatever the outcome."""
        key, cost = grant
        used = self._used
        left = used.get(key, 0) - cost  # a cost of 0 may find that its key is gone already
        if left:
            used[key] = left
            return
        used.pop(key, None)
        if not used:
            used.clear()  # a dict that is merely emptied keeps its table

    def usage(self, key: Hashable, now: float) -> Usage:
        """The slots taken; only an end frees them."""
        return Usage(plain(self._used.get(key, 0)), plain(self._max))

    def keys(self) -> Iterable[Hashable]:
        """The keys that have state."""
        return self._used

    def describe(self) -> str:
        """In words: "at most 5 tasks at once"."""
        return f"at most {words(self, self._max)} at once{per_key(self)}"

    def tell(self, usage: Usage) -> str:
        """In a sentence: "runs 5 of 5 tasks at once"."""
        return f"runs {shown(usage.used)} of {words(self, self._max)} at once"

    def __repr__(self) -> str:
        return call(self, self.max_concurrent)
