"""Which errors tell of the other side's trouble, for the strategies that learn from outcomes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeAlias, cast

from async_task_manager.errors import InvalidType, NonRetryable

__all__ = ["Failing", "check_failing", "tells_of_failure"]

Failing: TypeAlias = (
    "type[BaseException] | tuple[type[BaseException], ...] | Callable[[BaseException], bool] | None"
)
"""Exception classes, or a callable of the error; None: everything but `NonRetryable`, by which the
work says that the mistake was its own."""


def check_failing(value: object) -> Failing:
    """The value, if it is one; InvalidType otherwise."""
    classes = value if isinstance(value, tuple) else (value,)
    if all(isinstance(one, type) and issubclass(one, BaseException) for one in classes):
        return value  # type: ignore[return-value]  # that is what was just seen
    if value is None or (callable(value) and not isinstance(value, type)):
        return cast("Failing", value)
    raise InvalidType(
        "is_failure must be an exception class, a tuple of them, a callable of the error, or None, "
        f"not {value!r}"
    )


def tells_of_failure(failing: Failing, error: Any) -> bool:
    """Whether the error counts as a failure."""
    if failing is None:
        return not isinstance(error, NonRetryable)
    if isinstance(failing, type | tuple):
        return isinstance(error, failing)
    return bool(failing(error))
