"""Where a task says something: under a name in its metadata, or as a callable makes of it."""

from __future__ import annotations

from collections.abc import Callable, Hashable
from typing import TYPE_CHECKING, Any

from async_task_manager.errors import InvalidType

if TYPE_CHECKING:
    from async_task_manager.task import Task

__all__ = ["check_field", "hashable", "said"]


def check_field(name: str, field: object, *, optional: bool = False) -> None:
    """Raises InvalidType unless the parameter is a metadata name or a callable; or None, where that
    may be.
    """
    if not (isinstance(field, str) or callable(field) or (optional and field is None)):
        kinds = (
            "a metadata name, a callable or None" if optional else "a metadata name or a callable"
        )
        raise InvalidType(f"{name} must be {kinds}, not {field!r}")


def said(field: str | Callable[[Task], Any], task: Task) -> Any:
    """What the task says there; a name that is missing: None."""
    if callable(field):
        return field(task)
    metadata = task._metadata  # `.metadata` would make a dict for each task that has none
    return None if metadata is None else metadata.get(field)


def hashable(whose: object, task: Task, key: Any) -> Hashable:
    """The task's key, if it can be one; InvalidType, which says ``whose`` key it is, otherwise."""
    try:
        hash(key)
    except TypeError:
        raise InvalidType(f"{whose!r}: the key of {task!r} must be hashable, not {key!r}") from None
    return key  # type: ignore[no-any-return]  # that is what was just seen
