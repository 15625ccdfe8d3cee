"""What is due first goes first."""

from __future__ import annotations

from collections.abc import Callable
from math import inf
from typing import TYPE_CHECKING

from async_task_manager.strategies._fields import check_field, said
from async_task_manager.strategies.base import Order, WallTime
from async_task_manager.strategies.time_based import instant_of

if TYPE_CHECKING:
    from async_task_manager.task import Task

__all__ = ["DeadlineStrategy"]


class DeadlineStrategy(Order):
    """Earliest deadline first; tasks without one come last; ties first come, first served.

    The deadline is that of ``add_task(..., deadline=)``, which the manager enforces: past it, a
    task isn't started, or is cancelled, and ends with `DeadlineExceeded`. With ``key`` it is a
    wish, by which tasks are ordered and no more.

    Args:
        key: Where the time is at which a task is due, instead of its deadline: a metadata name, or
            a callable that gets the task. It gives epoch seconds, a datetime (aware, or naive =
            local time), or a timedelta from now; None or missing: no time.

    Raises:
        InvalidType: `key` is neither.
        InvalidValue, InvalidType: from ``add_task``, for what names no time.

    What a running task waits for is due no later than the task itself, as long as it waits. O(1)
    per task here; in the queue O(log n), since deadlines differ.
    """

    inherits = True
    uses_wall_time = True

    def __init__(self, *, key: str | Callable[[Task], object] | None = None) -> None:
        check_field("key", key, optional=True)
        self._key = key
        self._offset = 0.0

    def set_wall_offset(self, offset: float, now: float) -> None:
        """From now on, times of the wall clock and of the chain are compared by this."""
        self._offset = offset

    def rank(self, task: Task, now: float) -> float:
        """When it is due, in chain time: by the wall clock as it stands now. inf: at no time."""
        due = self._due(task, now)
        return due - self._offset if isinstance(due, WallTime) else due

    def _due(self, task: Task, now: float) -> float:
        key = self._key
        if key is None:
            deadline = task._options.deadline if task._options is not None else None
            return inf if deadline is None else deadline
        value = said(key, task)
        if value is None:
            return inf
        return instant_of(f"the time at which {task!r} is due", value, now)

    def __repr__(self) -> str:
        given = "" if self._key is None else f"key={self._key!r}"
        return f"{type(self).__name__}({given})"
