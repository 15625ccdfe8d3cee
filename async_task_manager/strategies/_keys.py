"""What the limits share: states by key that forget idle keys, and how they are written down."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Hashable
from fractions import Fraction
from typing import TYPE_CHECKING, Any, TypeVar

from async_task_manager.errors import InvalidType, TaskTooLarge

if TYPE_CHECKING:
    from async_task_manager.strategies.base import Cost, Limit

__all__ = [
    "States",
    "call",
    "per_key",
    "plain",
    "read_cost",
    "read_key",
    "shown",
    "shown_value",
    "span_words",
    "too_large",
    "words",
    "write_cost",
    "write_key",
]

S = TypeVar("S")

SPANS: dict[float, str] = {1: "second", 60: "minute", 3600: "hour", 86400: "day"}

ROOMY = 1024
"""Keys for which a table is not worth making smaller."""


class States(dict[Hashable, S]):
    """The states of a limit by key. `sweep` drops idle ones, a few at each operation."""

    __slots__ = ("high", "ring")

    ring: deque[Hashable]
    """The keys to look at next. The first key of a dict is O(n) away once its front was deleted."""
    high: int
    """How many keys the table has room for."""

    def __init__(self) -> None:
        super().__init__()
        self.ring = deque()
        self.high = ROOMY

    def add(self, key: Hashable, state: S) -> S:
        """Gives a key that has none its state."""
        self[key] = state
        if key is not None:
            self.ring.append(key)
            if len(self) > self.high:
                self.high = 2 * len(self)
        return state

    def sweep(self, idle: Callable[[S, float], bool], now: float) -> None:
        """Drops the next key if its state is ``idle(state, now)``, as good as none; then one more.

        Two for one, so that keys go faster than they come.
        """
        ring = self.ring
        for _ in range(min(2, len(ring))):
            if not idle(self[ring[0]], now):
                ring.rotate(-1)
                return
            del self[ring.popleft()]
            if len(self) * 16 < self.high > ROOMY:
                self._shrink()

    def _shrink(self) -> None:
        # A dict keeps the table that its keys once needed, until it is made anew.
        left = dict(self)
        self.clear()
        self.update(left)
        self.high = max(ROOMY, 2 * len(left))


def too_large(limit: Limit, cost: Cost, parameter: str, capacity: Cost) -> TaskTooLarge:
    """The error for a cost that the limit could not admit even if nothing else were in use."""
    return TaskTooLarge(
        f"{limit!r}: a cost of {plain(cost)} is above {parameter}, {plain(capacity)}: "
        "no wait could ever admit it"
    )


def plain(cost: Cost) -> float:
    """The number as people write it: an int, or the float that prints as it was given."""
    if isinstance(cost, Fraction):
        return cost.numerator if cost.denominator == 1 else float(cost)
    return cost


def words(limit: Limit, amount: Cost, one: str = "task") -> str:
    """The amount in the limit's own unit: "5 tasks", "6000 tokens"; ``one``: what is counted."""
    cost = limit.cost
    unit = cost if isinstance(cost, str) else getattr(cost, "unit", None)  # a cost that learns
    unit = unit or (one if cost is None else "unit")
    return f"{plain(amount)} {unit}{'' if amount == 1 or unit.endswith('s') else 's'}"


def shown(amount: Cost) -> str:
    """The number as it is said: two decimals are enough."""
    return f"{round(float(amount), 2):.12g}"


def span_words(seconds: float) -> str:
    """A length of time as it is said: "minute", "90 s"."""
    return SPANS.get(seconds, f"{seconds:g} s")


def per_key(limit: Limit) -> str:
    """What `Limit.describe` ends with: " for each user_id", or nothing for a limit without keys."""
    if limit.key is None:
        return ""
    return f" for each {limit.key if isinstance(limit.key, str) else 'key'}"


def call(limit: Limit, *arguments: object, **options: object) -> str:
    """The constructor call that makes such a limit; options that are None are left out."""
    options |= {"key": limit.key, "cost": limit.cost, "default_cost": limit.default_cost}
    given = [repr(argument) for argument in arguments]
    given += [
        f"{name}={shown_value(value)}" for name, value in options.items() if value is not None
    ]
    return f"{type(limit).__name__}({', '.join(given)})"


def shown_value(value: object) -> str:
    """As in the source: a function by its name, since nobody wrote its address."""
    return str(getattr(value, "__qualname__", repr(value)))


def write_key(key: Hashable) -> Any:
    """The key as JSON-able data.

    Raises:
        InvalidType: it is something that JSON cannot bring back.
    """
    if isinstance(key, tuple):
        return [write_key(part) for part in key]
    if key is None or isinstance(key, str | int | float):
        return key
    raise InvalidType(
        "a key that is dumped must be a str, int, float, bool, None or a tuple of them, "
        f"not {key!r}"
    )


def read_key(data: Any) -> Hashable:
    """The key that `write_key` wrote."""
    return tuple(read_key(part) for part in data) if isinstance(data, list) else data


def write_cost(cost: Cost) -> int | str:
    """The cost as JSON-able data that loses nothing: an int, or a fraction as text."""
    return cost if isinstance(cost, int) else str(cost)


def read_cost(data: int | str) -> Cost:
    """The cost that `write_cost` wrote."""
    return data if isinstance(data, int) else Fraction(data)
