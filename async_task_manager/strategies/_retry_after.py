"""What an outcome says about when to come back."""

from __future__ import annotations

from datetime import datetime, timedelta
from math import inf
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from async_task_manager.task import Outcome

__all__ = ["retry_after"]


def retry_after(outcome: Outcome, now: float) -> tuple[float, float]:
    """The earliest instant that the error names, in chain time and in epoch seconds; -inf: none.

    Any error may name one by an attribute ``retry_after``: seconds from now, a timedelta, or an
    aware datetime. What is none of these says nothing.
    """
    try:
        after = outcome.retry_after
        if isinstance(after, datetime):
            return -inf, after.timestamp() if after.utcoffset() is not None else -inf
        if isinstance(after, timedelta):
            after = after.total_seconds()
    except Exception:  # a property of somebody's error, or a date that no clock could show
        return -inf, -inf
    if isinstance(after, int | float) and not isinstance(after, bool) and 0 <= after < inf:
        return now + after, -inf
    return -inf, -inf
