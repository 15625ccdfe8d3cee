"""Not before a certain time."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING

from async_task_manager._validate import number
from async_task_manager.errors import InvalidType, InvalidValue
from async_task_manager.strategies.base import Hold, WallTime

if TYPE_CHECKING:
    from async_task_manager.task import Task

__all__ = ["TimeBasedStrategy", "instant_of"]

EPOCH_FROM = 1e8
"""Numbers below, up to March 1973, are delays that somebody meant: 5, 3600, a month of seconds."""


class TimeBasedStrategy(Hold):
    """A task starts at the time that it names, or later; one that names none isn't held.

    The time is, in ``metadata["valid_after"]``:

    - an aware `datetime`, or a naive one, which is local time as the system has it (in the hour
      that the clocks repeat, ``fold`` says which of the two; a time that they skip is read as
      PEP 495 does: with the offset that applied before the change, so 02:30 means 03:30);
    - epoch seconds, at least 1e8 (a smaller number is surely a delay, and refused);
    - a `timedelta` from now: from ``add_task``, or from the manager's first start if that is
      later. Negative: now.

    Datetimes and epoch seconds follow the wall clock, when it is set and when the machine was
    asleep; a timedelta counts seconds that don't jump.

    Args:
        field: Where the time is: a metadata name, or a callable that gets the task. None or
            missing: no hold.

    Raises:
        InvalidValue, InvalidType: at construction, and from `not_before`, and so from
            ``add_task``, for a time that is none of these.

    Held tasks cost nothing until they are due: O(log n) for each in the chain's calendar.
    """

    def __init__(self, *, field: str | Callable[[Task], object] = "valid_after") -> None:
        if not isinstance(field, str) and not callable(field):
            raise InvalidType(f"field must be a metadata name or a callable, not {field!r}")
        self._field = field

    def not_before(self, task: Task, now: float) -> float:
        """The time that the task names: `WallTime`, or chain time for a timedelta or for none."""
        field = self._field
        if isinstance(field, str):
            metadata = task._metadata  # `.metadata` would make a dict for each task that has none
            value = None if metadata is None else metadata.get(field)
        else:
            value = field(task)
        if value is None:
            return now
        return instant_of(f"the time before which {task!r} must not start", value, now)

    def __repr__(self) -> str:
        given = "" if self._field == "valid_after" else f"field={self._field!r}"
        return f"{type(self).__name__}({given})"


def instant_of(what: str, value: object, now: float) -> float:
    """The time that a value names: `WallTime`, or chain time for a timedelta from ``now``.

    Raises:
        InvalidValue, InvalidType: it names none; the message says ``what`` it is for.
    """
    if isinstance(value, timedelta):
        return now + max(0.0, value.total_seconds())
    if isinstance(value, datetime):
        return WallTime(_epoch(value))
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise InvalidType(f"{what} must be a datetime, a timedelta or epoch seconds, not {value!r}")
    if number(what, value) < EPOCH_FROM:
        raise InvalidValue(
            f"{what}, in epoch seconds, must be at least {EPOCH_FROM:.0e}, not {value!r}; "
            f"a delay from now is timedelta(seconds={value!r})"
        )
    return WallTime(value)


def _epoch(moment: datetime) -> float:
    try:
        return moment.timestamp()
    except (OverflowError, ValueError, OSError):
        # Local time at the rim of the calendar or of what the system converts: ages away, so that
        # the hours between zones make no difference.
        return moment.replace(tzinfo=UTC).timestamp()
