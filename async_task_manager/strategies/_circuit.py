"""One circuit of a breaker: its state, its probes, and the outcomes of its window."""

from __future__ import annotations

from collections import deque
from collections.abc import Hashable
from math import inf
from typing import Any, Literal, TypeAlias

from async_task_manager.strategies._keys import read_key, write_key

__all__ = ["Circuit", "CircuitState"]

CircuitState: TypeAlias = Literal["closed", "open", "half_open"]

SLICES = 10
"""Parts of the window: what is older than the window is forgotten a part at a time."""


class Circuit:
    """One key. What began in an earlier generation has nothing to say about the present one."""

    __slots__ = (
        "calls",
        "failures",
        "generation",
        "inside",
        "key",
        "numbers",
        "passed",
        "probes",
        "room",
        "since",
        "slices",
        "state",
    )

    def __init__(self, key: Hashable) -> None:
        self.key = key
        self.state: CircuitState = "closed"
        self.since = 0.0
        """When it came into this state."""
        self.generation = 0
        self.inside = 0
        """How many of this generation run."""
        self.slices: deque[list[Any]] = deque()
        """The window: [instant of the first outcome, outcomes, failures]."""
        self.calls = self.failures = 0
        """The sums of the window."""
        self.room = inf
        """How many may run at once for a cooldown after it closed."""
        self.probes: dict[int, float] = {}
        """By number, when those that hold a place were let through; the oldest first."""
        self.numbers = 0
        self.passed = 0
        """Probes that succeeded."""

    def turn(self, state: CircuitState, now: float) -> None:
        """Comes into another state, in which nothing counts that began before."""
        self.state, self.since = state, now
        self.generation += 1
        self.inside = self.passed = self.calls = self.failures = 0
        self.room = inf
        self.probes.clear()
        self.slices.clear()

    # ---- the window -------------------------------------------------------------------------

    def count(self, failed: bool, now: float, window: float) -> None:
        """An outcome."""
        slices = self.slices
        while slices and slices[0][0] + window <= now:
            _, calls, failures = slices.popleft()
            self.calls -= calls
            self.failures -= failures
        if not slices or slices[-1][0] + window / SLICES <= now:
            slices.append([now, 0, 0])
        slices[-1][1] += 1
        self.calls += 1
        if failed:
            slices[-1][2] += 1
            self.failures += 1

    def share(self, now: float, window: float) -> tuple[float, float | None]:
        """Failures to outcomes, and when the last of them is forgotten."""
        counted = [part for part in self.slices if part[0] + window > now]
        failures = sum(part[2] for part in counted)
        if not failures:
            return 0, None
        return failures / sum(part[1] for part in counted), counted[-1][0] + window

    def empty(self, now: float, window: float) -> bool:
        """Whether every outcome is forgotten."""
        return not self.slices or self.slices[-1][0] + window <= now

    # ---- probes -----------------------------------------------------------------------------

    def full(self, most: int) -> bool:
        """Whether all probes are under way, or have succeeded."""
        return bool(self.probes) and self.passed + len(self.probes) >= most

    def oldest(self) -> float:
        """When the oldest probe that holds a place was let through."""
        return next(iter(self.probes.values()))

    def probe(self, now: float, most: int) -> int:
        """Lets a probe through, in place of the oldest if all are under way; gives its number."""
        if self.full(most):
            del self.probes[next(iter(self.probes))]
        self.numbers += 1
        self.probes[self.numbers] = now
        return self.numbers

    # ---- across a restart -------------------------------------------------------------------

    def dump(self) -> list[Any]:
        """As JSON-able data. What runs does not run any more after a restart."""
        slices = [list(part) for part in self.slices]
        room = None if self.room == inf else self.room
        return [write_key(self.key), self.state, self.since, room, self.passed, slices]

    @classmethod
    def load(cls, data: list[Any]) -> Circuit:
        """The circuit that `dump` wrote."""
        key, state, since, room, passed, slices = data
        circuit = cls(read_key(key))
        circuit.state, circuit.since, circuit.passed = state, since, passed
        circuit.room = inf if room is None else room
        circuit.slices = deque(list(part) for part in slices)
        circuit.calls = sum(part[1] for part in slices)
        circuit.failures = sum(part[2] for part in slices)
        return circuit
