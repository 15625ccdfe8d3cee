"""Costs that learn from what work really consumed."""

from __future__ import annotations

import copy
from array import array
from bisect import bisect_left, insort
from collections.abc import Callable, Collection, Hashable
from fractions import Fraction
from math import ceil, inf
from typing import TYPE_CHECKING, Any, TypeAlias
from weakref import WeakKeyDictionary

from async_task_manager._validate import exact, number, optional, whole
from async_task_manager.errors import InvalidType, InvalidValue
from async_task_manager.strategies._fields import check_field, hashable, said
from async_task_manager.strategies._keys import plain, read_key, shown_value, write_key

if TYPE_CHECKING:
    from async_task_manager.strategies.base import Cost, KeySpec
    from async_task_manager.task import Task

__all__ = ["CostEstimator"]

Estimate: TypeAlias = "float | str | Callable[[Task], float]"

NEARLY = 1 - 1e-12
"""900 * 1.1 is a little more than 990: that is no reason to charge 991."""


class _Ratios:
    """The last so many ratios of a key, in the order of their coming and of their size."""

    __slots__ = ("by_size", "count", "recent", "size")

    def __init__(self, size: int) -> None:
        self.size = size
        self.recent = array("d")
        self.by_size = array("d")
        self.count = 0
        """How many there have ever been: the number of the next."""

    def put(self, ratio: float, number: int | None = None) -> int:
        """Adds a ratio, or puts it in the place of an earlier one; gives its number."""
        if number is None or number < self.count - self.size:
            number = self.count
            self.count += 1
        place = number % self.size
        if place < len(self.recent):
            del self.by_size[bisect_left(self.by_size, self.recent[place])]
            self.recent[place] = ratio
        else:
            self.recent.append(ratio)
        insort(self.by_size, ratio)
        return number

    def in_order(self) -> list[float]:
        """As they came."""
        first = self.count % self.size if len(self.recent) == self.size else 0
        return [*self.recent[first:], *self.recent[:first]]

    @classmethod
    def of(cls, ratios: list[float], size: int) -> _Ratios:
        """The last of these ratios."""
        made = cls(size)
        for ratio in ratios:
            made.put(ratio)
        return made

    def quantile(self, share: Fraction) -> float:
        """The smallest ratio that is at least as large as such a share of them."""
        return self.by_size[ceil(share * len(self.by_size)) - 1]


class CostEstimator:
    """A cost for any limit: an estimate, times what work like this really took lately.

    ``SlidingWindowStrategy(6000, 60, cost=CostEstimator("tokens"))`` charges a task its estimate
    times the ratio that all but a tenth of the last hundred tasks of its key did not exceed.
    Whenever work says what it consumed, ``current_task().settle(812)`` or
    ``settle({"tokens": 812})``, the limits correct their charge, and the estimator takes in the
    ratio of the two. What an attempt settles last is what counts.

    A quantile, not a mean: with estimates that are right on average, half of the tasks take more
    than they were charged for, and a limit would be overrun until they settle.

    Args:
        estimate: What a task is thought to consume: a number, a callable of the task, or the name
            of a unit in ``metadata["cost"]``.
        quantile: The share of tasks that shall consume no more than they are charged; above 0, at
            most 1.
        key: What is learned apart, a metadata name or a callable (a model, a kind of request). A
            key with too few samples goes by those of all keys together. None: all is one.
        unit: The unit by which `settle` names the actual cost; None: that of the estimate.
        initial: The ratio as long as nothing is known; above 0.
        min_samples: Ratios from which on they are believed; at least 1, at most ``window``.
        window: How many of the latest ratios count; at least 1.
        maximum: The most that is charged, above 0, such as what the limit can hold at all; None:
            what comes out.
        max_keys: Keys that are remembered; the one that learned nothing for longest goes first.

    Raises:
        InvalidValue, InvalidType: A parameter is out of range or has the wrong type; or, when it is
            asked, the estimate is missing or no number of at least 0.

    ``quantile``, ``initial``, ``min_samples`` and ``maximum`` can be set at any time. It may serve
    several limits, and then learns once for all of them. O(1) to ask, O(log window) to learn (and a
    move of a few hundred bytes); 16 bytes per ratio, ``window`` of them per key.
    """

    def __init__(
        self,
        estimate: Estimate,
        *,
        quantile: float = 0.9,
        key: KeySpec = None,
        unit: str | None = None,
        initial: float = 1.0,
        min_samples: int = 10,
        window: int = 100,
        maximum: float | None = None,
        max_keys: int = 10_000,
    ) -> None:
        if not isinstance(estimate, str) and not callable(estimate):
            number("estimate", estimate, at_least=0)
        if unit is not None and not isinstance(unit, str):
            raise InvalidType(f"unit must be the name of a unit or None, not {unit!r}")
        check_field("key", key, optional=True)
        self.estimate = estimate
        """What a task is thought to consume."""
        self.key = key
        """What is learned apart."""
        self.unit = estimate if unit is None and isinstance(estimate, str) else unit
        """The unit by which `settle` names the actual cost."""
        self.window = whole("window", window, at_least=1)
        """How many of the latest ratios count."""
        self.max_keys = whole("max_keys", max_keys, at_least=1)
        """Keys that are remembered."""
        self.quantile = quantile
        self.initial = initial
        self.min_samples = min_samples
        self.maximum = maximum
        self._all = _Ratios(window)
        self._keys: dict[Hashable, _Ratios] = {}
        self._settled: WeakKeyDictionary[Task, tuple[int, int, int]] = WeakKeyDictionary()
        """By task: the attempt, and the numbers of its ratio, in its key's and among all."""

    # ---- live change ------------------------------------------------------------------------

    @property
    def quantile(self) -> float:
        """The share of tasks that shall consume no more than they are charged."""
        return plain(self._quantile)

    @quantile.setter
    def quantile(self, value: float) -> None:
        self._quantile = Fraction(exact(number("quantile", value, above=0, at_most=1)))

    @property
    def initial(self) -> float:
        """The ratio as long as nothing is known."""
        return self._initial

    @initial.setter
    def initial(self, value: float) -> None:
        self._initial = plain(number("initial", value, above=0))

    @property
    def min_samples(self) -> int:
        """Ratios from which on they are believed."""
        return self._min_samples

    @min_samples.setter
    def min_samples(self, value: int) -> None:
        self._min_samples = whole("min_samples", value, at_least=1, at_most=self.window)

    @property
    def maximum(self) -> float | None:
        """The most that is charged."""
        return self._maximum

    @maximum.setter
    def maximum(self, value: float | None) -> None:
        self._maximum = optional(number, "maximum", value, above=0)

    # ---- asked, and told --------------------------------------------------------------------

    def __call__(self, task: Task) -> float:
        """What the task is charged; whole, rounded up, where the estimate is whole."""
        estimate = self._estimated(task)
        ratio = self.ratio(self._key_of(task))
        cost = estimate * ratio
        if ratio != 1 and isinstance(estimate, int):
            cost = ceil(cost * NEARLY)
        return cost if self._maximum is None or cost < self._maximum else self._maximum

    def ratio(self, key: Hashable = None) -> float:
        """What an estimate of this key is multiplied with now."""
        for ratios in (self._keys.get(key), self._all):
            if ratios is not None and len(ratios.by_size) >= self._min_samples:
                return ratios.quantile(self._quantile)
        return self._initial

    def settled(self, task: Task, actual: float) -> None:
        """A task says what it really consumed: called by the chain, once for all limits."""
        try:
            key, ratio = self._key_of(task), float(actual / self._estimated(task))
        except Exception:
            # The estimate is 0, of which every multiple is nothing; or it was changed since, and
            # there is nothing left to compare with.
            return
        if ratio == inf:
            return
        ratios = self._keys.pop(key, None)
        attempt, mine, among_all = self._settled.get(task, (0, None, None))
        if attempt != task.attempt or ratios is None:
            mine = among_all = None
        if ratios is None:
            ratios = _Ratios(self.window)
            if len(self._keys) >= self.max_keys:
                del self._keys[next(iter(self._keys))]
        self._keys[key] = ratios  # the last one now
        numbers = ratios.put(ratio, mine), self._all.put(ratio, among_all)
        self._settled[task] = (task.attempt, *numbers)

    def settled_together(self, tasks: Collection[Task], actual: float) -> None:
        """A batch says what all of it consumed: each has its part, as it was estimated."""
        try:
            ratio = actual / sum(self._estimated(task) for task in tasks)
        except Exception:
            return  # as above
        for task in tasks:
            self.settled(task, ratio * self._estimated(task))

    def _estimated(self, task: Task) -> Cost:
        spec = self.estimate
        if callable(spec):
            return exact(number(f"the estimate for {task!r}", spec(task), at_least=0))
        if not isinstance(spec, str):
            return exact(spec)
        given = said("cost", task)
        if isinstance(given, dict):
            given = given.get(spec)
        if given is None:
            raise InvalidValue(
                f"{self!r}: {task!r} has no metadata['cost'][{spec!r}], a number of at least 0; "
                "give it one, or estimate by a callable"
            )
        return exact(number(f"cost {spec!r} of {task!r}", given, at_least=0))

    def _key_of(self, task: Task) -> Hashable:
        if self.key is None:
            return None
        return hashable(self, task, said(self.key, task))

    # ---- copies and restarts ----------------------------------------------------------------

    def dump(self) -> Any:
        """The ratios of every key, and of all together, as JSON-able data."""
        keys = [[write_key(key), ratios.in_order()] for key, ratios in self._keys.items()]
        return {"all": self._all.in_order(), "keys": keys}

    def load(self, state: Any) -> None:
        """Takes the ratios back."""
        self._all = _Ratios.of(state["all"], self.window)
        self._keys = {
            read_key(key): _Ratios.of(ratios, self.window) for key, ratios in state["keys"]
        }

    def __deepcopy__(self, memo: dict[int, Any]) -> CostEstimator:
        # A chain that is run ahead must not teach this one.
        twin = copy.copy(self)
        memo[id(self)] = twin
        twin._all = copy.deepcopy(self._all)
        twin._keys = {key: copy.deepcopy(ratios) for key, ratios in self._keys.items()}
        # By the tasks of the copied chain, where there is one: what they settle may be corrected.
        settled = [(memo.get(id(task), task), said) for task, said in self._settled.items()]
        twin._settled = WeakKeyDictionary(settled)
        return twin

    def __repr__(self) -> str:
        options = {
            "quantile": self.quantile,
            "key": self.key,
            "unit": self.unit if self.unit != self.estimate else None,
            "initial": self._initial if self._initial != 1 else None,
            "maximum": self._maximum,
        }
        given = [f"{name}={shown_value(value)}" for name, value in options.items() if value]
        return f"CostEstimator({', '.join([shown_value(self.estimate), *given])})"
