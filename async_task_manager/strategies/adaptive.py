"""As many at once as the other side can take."""

from __future__ import annotations

import copy
from collections.abc import Hashable, Iterable, Mapping
from inspect import signature
from math import inf
from typing import TYPE_CHECKING, Any, TypeAlias

from async_task_manager._validate import number, one_of, whole
from async_task_manager.errors import InvalidType
from async_task_manager.strategies._failing import Failing, check_failing, tells_of_failure
from async_task_manager.strategies._keys import States, call, per_key, read_key, write_key
from async_task_manager.strategies.adaptive_algorithms import (
    Aimd,
    Gradient,
    LimitAlgorithm,
    Sample,
    Vegas,
)
from async_task_manager.strategies.base import KeySpec, Limit, Sampling, Usage
from async_task_manager.strategies.resources import Load, Resources

if TYPE_CHECKING:
    from async_task_manager.strategies.base import Cost
    from async_task_manager.task import Outcome

__all__ = ["AdaptiveStrategy"]

ALGORITHMS: dict[str, type[LimitAlgorithm]] = {"aimd": Aimd, "gradient": Gradient, "vegas": Vegas}

ROUND = 100
"""The most outcomes that make a round."""

FORGET, FORGET_UNLEARNED = 3600.0, 60.0
"""Seconds after its last task for which a key is remembered; the second, one without a round."""


class _Adapted:
    """One key: its limit, and the round that is under way."""

    __slots__ = (
        "algorithm",
        "allowed",
        "began",
        "ceiling",
        "count",
        "inside",
        "key",
        "limit",
        "peak",
        "seen",
        "total",
    )

    def __init__(self, key: Hashable, limit: float) -> None:
        self.key = key
        self.limit = limit
        """What the algorithm says."""
        self.ceiling = inf
        """What the load of this machine allows."""
        self.allowed = int(limit)
        """How many may run at once, from both."""
        self.algorithm: LimitAlgorithm | None = None
        self.inside = 0
        self.seen = 0.0
        """When something of the key last began or ended."""
        self.began = -inf
        """The round's begin: what began before doesn't count."""
        self.count = 0
        self.total = 0.0
        """Of the times that they took."""
        self.peak = 0
        """The most that ran at once in the round."""


Grant: TypeAlias = _Adapted


class AdaptiveStrategy(Limit):
    """A concurrency limit that finds itself: from how long work takes, and from what fails.

    The limit is raised while work takes no longer for it, and lowered when it does or when it
    fails, by an algorithm that sees one sample per round: the mean time of as many outcomes as the
    limit (a hundred at most), all of work that began under that limit. What began before, what is
    cancelled, and a caller's mistakes are no samples. A failure ends the round at once.

    With ``resources``, the load of this machine is measured, too, while something runs. Above a
    bound, no more run at once than four fifths of those that did, and so on step by step; once it
    is below again, that grows back by a tenth with each measurement.

    Args:
        initial_limit: The limit of a key of which nothing is known; between the other two.
        min_limit: It never falls below; at least 1.
        max_limit: It never rises above; at least ``min_limit``.
        algorithm: "gradient" (for most servers), "vegas" (keeps a shorter queue), "aimd" (for
            what refuses rather than slows down), or a `LimitAlgorithm`, copied for each key.
        resources: `Resources` with the bounds for the load of this machine, or a mapping of its
            parameters; needs psutil. None: it isn't looked at.
        key: What splits the limit, a metadata name or a callable: each key has a limit of its own.
            None: one limit for all.
        is_failure: Which errors are a sign that it was too much: an exception class, a tuple of
            them, or a callable of the error. Others are no sample. None: every error but
            `NonRetryable`.

    Raises:
        InvalidValue, InvalidType: A parameter is out of range or has the wrong type.
        MissingExtra: `Resources` without psutil.

    The three limits can be set at any time. Every operation is O(1). A key is forgotten an hour
    after its last task, and a minute after it if it never came to a round.
    """

    def __init__(
        self,
        *,
        initial_limit: int = 10,
        min_limit: int = 1,
        max_limit: int = 1000,
        algorithm: str | LimitAlgorithm = "gradient",
        resources: Resources | Mapping[str, Any] | None = None,
        key: KeySpec = None,
        is_failure: Failing = None,
    ) -> None:
        super().__init__(key=key)
        if isinstance(resources, Mapping):
            unknown = [name for name in resources if name not in signature(Resources).parameters]
            if unknown:
                raise InvalidType(f"resources must be parameters of Resources, not {unknown}")
            resources = Resources(**resources)
        elif resources is not None and not isinstance(resources, Resources):
            raise InvalidType(f"resources must be Resources or None, not {resources!r}")
        if not isinstance(algorithm, LimitAlgorithm):
            algorithm = ALGORITHMS[one_of("algorithm", algorithm, tuple(ALGORITHMS))]()
        self._min = whole("min_limit", min_limit, at_least=1)
        self._max = whole("max_limit", max_limit, at_least=self._min)
        self._initial = self._checked("initial_limit", initial_limit)
        self.algorithm = algorithm
        """Which algorithm; each key has a copy of it."""
        self.resources = resources
        """The bounds for the load of this machine."""
        self._failing = check_failing(is_failure)
        self._inside = 0
        self._keys: States[_Adapted] = States()

    # ---- live change ------------------------------------------------------------------------

    @property
    def initial_limit(self) -> int:
        """The limit of a key of which nothing is known."""
        return self._initial

    @initial_limit.setter
    def initial_limit(self, value: int) -> None:
        self._initial = self._checked("initial_limit", value)
        self.changed()

    @property
    def min_limit(self) -> int:
        """No limit falls below."""
        return self._min

    @min_limit.setter
    def min_limit(self, value: int) -> None:
        self._min = whole("min_limit", value, at_least=1, at_most=self._max)
        self._bounded()

    @property
    def max_limit(self) -> int:
        """No limit rises above."""
        return self._max

    @max_limit.setter
    def max_limit(self, value: int) -> None:
        self._max = whole("max_limit", value, at_least=self._min)
        self._bounded()

    def _bounded(self) -> None:
        self._initial = max(self._min, min(self._max, self._initial))
        for state in self._keys.values():
            self._allow(state, state.limit)
        self.changed()

    def _checked(self, name: str, value: int) -> int:
        return whole(name, value, at_least=self._min, at_most=self._max)

    # ---- the limit --------------------------------------------------------------------------

    def limit(self, key: Hashable = None) -> int:
        """How many may run at once now."""
        state = self._keys.get(key)
        return self._initial if state is None else state.allowed

    def ready_at(self, key: Hashable, cost: Cost, now: float) -> float:
        """Now, if fewer run than the limit; else inf: an end frees a place, or the limit rises."""
        state = self._keys.get(key)
        if state is None or state.inside < state.allowed:
            return now
        return inf

    def acquire(self, key: Hashable, cost: Cost, now: float) -> Grant:
        """Takes a place."""
        state = self._keys.get(key)
        if state is None:
            state = self._keys.add(key, _Adapted(key, self._initial))
        elif not state.inside and self._idle(state, now):
            state = self._keys[key] = _Adapted(key, self._initial)
        self._inside += 1
        state.inside += 1
        state.seen = now
        if state.inside > state.peak:
            state.peak = state.inside
        if self._keys.ring:
            self._keys.sweep(self._idle, now)
        return state

    def release(self, grant: Grant, outcome: Outcome, now: float) -> None:
        """Gives the place back, and learns."""
        state = grant
        self._inside -= 1
        state.inside -= 1
        state.seen = now
        began = outcome.started_at
        if began is None or began < state.began or outcome.kind == "cancelled":
            return
        if outcome.kind == "success":
            state.count += 1
            state.total += outcome.finished_at - began
            if state.count >= state.limit or state.count >= ROUND:
                self._learn(state, now, dropped=False)
        elif tells_of_failure(self._failing, outcome.error):
            self._learn(state, now, dropped=True)

    def _learn(self, state: _Adapted, now: float, *, dropped: bool) -> None:
        if state.algorithm is None:
            state.algorithm = copy.deepcopy(self.algorithm)
        rtt = state.total / state.count if state.count else 0.0
        limit = state.algorithm.update(state.limit, Sample(rtt, state.peak, dropped))
        self._allow(state, number(f"the limit that {state.algorithm!r} gives", limit))
        state.began, state.count, state.total, state.peak = now, 0, 0.0, state.inside

    def _allow(self, state: _Adapted, limit: float) -> None:
        state.limit = max(self._min, min(self._max, limit))
        state.allowed = int(max(self._min, min(state.limit, state.ceiling)))

    def _idle(self, state: _Adapted, now: float) -> bool:
        forget = FORGET if state.algorithm is not None else FORGET_UNLEARNED
        return not state.inside and state.seen + forget <= now

    # ---- the load of this machine -----------------------------------------------------------

    def sampling(self, now: float) -> Sampling | None:
        """The load, while something runs."""
        resources = self.resources
        if resources is None or not self._inside:
            return None
        return Sampling(resources.measure, resources.interval)

    def observe(self, sample: Any, now: float, key: Hashable = None, grant: Any = None) -> None:
        """Lowers what is in use under load, and lets it grow back without; O(keys)."""
        if not isinstance(sample, Load) or self.resources is None:
            return
        exceeded = self.resources.exceeded(sample)
        for state in tuple(self._keys.values()):
            if exceeded:
                # The next step only once the one before has come into effect.
                if 0 < state.inside <= state.ceiling:
                    state.ceiling = max(self._min, state.inside * 0.8)
                    self._allow(state, state.limit)
            elif state.ceiling < inf:
                state.ceiling = state.ceiling * 1.1 + 1
                if state.ceiling >= state.limit:
                    state.ceiling = inf
                self._allow(state, state.limit)
                self.changed(state.key)

    # ---- what people see --------------------------------------------------------------------

    def usage(self, key: Hashable, now: float) -> Usage:
        """How many run, and how many may."""
        state = self._keys.get(key)
        if state is None or self._idle(state, now):
            return Usage(0, self._initial)
        return Usage(state.inside, state.allowed)

    def keys(self) -> Iterable[Hashable]:
        """The keys that have state."""
        return self._keys

    def dump(self) -> Any:
        """The limits that were learned, by key."""
        return [
            [write_key(key), state.limit, state.seen, state.algorithm.dump()]
            for key, state in self._keys.items()
            if state.algorithm is not None
        ]

    def load(self, state: Any) -> None:
        """Takes the limits back."""
        for written, limit, seen, learned in state:
            key = read_key(written)
            adapted = self._keys.add(key, _Adapted(key, self._initial))
            adapted.seen = seen
            adapted.algorithm = copy.deepcopy(self.algorithm)
            adapted.algorithm.load(learned)
            self._allow(adapted, limit)

    def describe(self) -> str:
        """In words: "as many at once as it can take, 1 to 1000"."""
        return f"as many at once as it can take, {self._min} to {self._max}{per_key(self)}"

    def tell(self, usage: Usage) -> str:
        """In a sentence: "runs 7 at once, and the other side can take 7"."""
        return f"runs {usage.used:g} at once, and the other side can take {usage.capacity:g}"

    def __repr__(self) -> str:
        return call(
            self,
            initial_limit=self._initial,
            min_limit=self._min,
            max_limit=self._max,
            algorithm=self.algorithm,
            resources=self.resources,
            is_failure=self._failing,
        )
