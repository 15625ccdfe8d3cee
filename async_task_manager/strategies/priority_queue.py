"""More important tasks first."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import TYPE_CHECKING

from async_task_manager._validate import number, optional
from async_task_manager.errors import InvalidType, InvalidValue
from async_task_manager.strategies._fields import check_field, said
from async_task_manager.strategies.base import Order

if TYPE_CHECKING:
    from async_task_manager.task import Task

__all__ = ["PriorityQueueStrategy"]

LEVELS: Mapping[str, float] = MappingProxyType({"high": 1, "normal": 0, "low": -1})


class PriorityQueueStrategy(Order):
    """Higher priority first; among equals first come, first served.

    Strict priority (``aging=None``) promises nothing against starvation: while more important
    tasks keep coming, a less important one waits. With ``aging=s`` a task gains one level for
    every ``s`` seconds that it waits, and starvation is bounded: a task of priority p waits
    behind those tasks of a priority q alone that arrived less than (q - p) * s seconds after it.

    Args:
        key: Where the priority is: a metadata name, or a callable that gets the task. It gives an
            int, another real number, or a name in ``levels``; None or missing: ``default``.
        levels: Names for priorities. Copied.
        default: The priority of tasks that don't say: a number, or a name in ``levels``.
        aging: Seconds of waiting that are worth one level, above 0; None: strict priority.
        inherit: While a running task waits for a queued one of the same manager, the queued one
            goes at least as early as if it had the rank of the other: through any number of waits.

    Raises:
        InvalidValue, InvalidType: at construction for parameters, and from `rank`, and so from
            ``add_task``, for a task's priority: NaN, infinite, an unknown name, another type.

    The parameters are fixed: what waits keeps the rank that it came with, or inherits. O(1) per
    task here; in the queue O(1) for a priority that others share, O(log n) for one of its own,
    which with aging is the rule.
    """

    def __init__(
        self,
        *,
        key: str | Callable[[Task], object] = "priority",
        levels: Mapping[str, float] = LEVELS,
        default: float | str = 0,
        aging: float | None = None,
        inherit: bool = True,
    ) -> None:
        check_field("key", key)
        if not isinstance(levels, Mapping):
            raise InvalidType(f"levels must map names to priorities, not {levels!r}")
        for name, level in levels.items():
            if not isinstance(name, str):
                raise InvalidType(f"the name of a level must be a str, not {name!r}")
            number(f"levels[{name!r}]", level)
        self._key = key
        self._levels = dict(levels)
        self._default = self._number("default", default)
        self._aging = optional(number, "aging", aging, above=0)
        if not isinstance(inherit, bool):
            raise InvalidType(f"inherit must be True or False, not {inherit!r}")
        self.inherits = inherit

    def rank(self, task: Task, now: float) -> float:
        """The priority, negated: lower ranks go first. An int for an int.

        Aging needs no clock afterwards. At an instant t a task that arrived at a with priority p
        has reached p + (t - a) / s. All waiting tasks gain at one speed, so that t is the
        same for each of them: they compare as p - a / s does, which is fixed.
        """
        value = said(self._key, task)
        if value is None:
            priority = self._default
        elif type(value) is int:
            priority = value
        else:
            priority = self._number(f"the priority of {task!r}", value)
        if self._aging is None:
            return -priority
        try:
            return now / self._aging - priority
        except OverflowError:
            raise InvalidValue(
                f"the priority of {task!r} must be below 1.8e308 with aging, not {value!r}"
            ) from None

    def label(self, task: Task, rank: object) -> str:
        """The name of the task's level, or its priority where that has none."""
        value = said(self._key, task)
        priority = self._default if value is None else self._number("", value)
        return next((name for name, p in self._levels.items() if p == priority), str(priority))

    def _number(self, what: str, value: object) -> float:
        if not isinstance(value, str):
            return number(what, value)
        level = self._levels.get(value)
        if level is None:
            known = ", ".join(map(repr, self._levels))
            raise InvalidValue(
                f"{what} must be a number or one of {known or 'no names'}, not {value!r}"
            )
        return level

    def __repr__(self) -> str:
        given = [
            f"{name}={value!r}"
            for name, value, usual in (
                ("key", self._key, "priority"),
                ("levels", self._levels, LEVELS),
                ("default", self._default, 0),
                ("aging", self._aging, None),
                ("inherit", self.inherits, True),
            )
            if value != usual
        ]
        return f"{type(self).__name__}({', '.join(given)})"
