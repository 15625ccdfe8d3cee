"""What becomes of a message when its handler has ended."""

from __future__ import annotations

import logging
import re
import time
from collections.abc import Callable
from typing import Any, Literal, NamedTuple

from async_task_manager._validate import number
from async_task_manager.errors import NonRetryable, RateLimited, StrategyError, TaskRejected
from async_task_manager.strategies._retry_after import retry_after
from async_task_manager.task import Outcome, Task
from async_task_manager.worker._held import Held

__all__ = ["Verdict", "described", "verdict_of"]

logger = logging.getLogger("async_task_manager.worker")

_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff]")
"""What a terminal would obey or take for the end of a line, and what no UTF-8 can hold."""


class Verdict(NamedTuple):
    """What the queue is to be told about a message."""

    held: Held
    kind: Literal["acknowledge", "release", "return", "bury"]
    """Return: a release that doesn't count, of what was not looked at."""
    delay: float = 0.0
    reason: str = ""


def verdict_of(held: Held, task: Task[Any], backoff: Callable[[int], float], now: float) -> Verdict:
    """What its outcome means for the message; ``now`` in chain time."""
    state = task.state
    if state == "succeeded":
        return Verdict(held, "acknowledge")
    if state == "cancelled":
        return Verdict(held, "release" if held.begun else "return", reason="cancelled")
    error = task.exception()
    assert error is not None
    reason = described(error)
    if isinstance(error, StrategyError):
        return Verdict(held, "return")
    if isinstance(error, TaskRejected):
        return Verdict(held, "return", 1.0 if error.until is None else max(0.0, error.until - now))
    if state == "expired" or isinstance(error, NonRetryable):
        return Verdict(held, "bury", reason=reason)
    delay = max(pause(backoff, held.message.receive_count), asked_for(error))
    # Another's limit is no fault of the message: it doesn't count.
    return Verdict(held, "return" if isinstance(error, RateLimited) else "release", delay, reason)


def pause(backoff: Callable[[int], float], receive_count: int) -> float:
    """The backoff in seconds; a policy that fails must not keep the message from coming again."""
    try:
        return number("the backoff", backoff(receive_count), at_least=0)
    except Exception:
        logger.exception("the backoff %r failed for %s; taking 1 s", backoff, receive_count)
        return 1.0


def described(error: BaseException) -> str:
    """The error in a line; one whose text raises is still told by its type."""
    try:
        text = str(error)
    except Exception:
        text = ""
    told = f"{type(error).__name__}: {text}".rstrip(": ")
    return _CONTROL.sub(lambda found: repr(found[0])[1:-1], told)[:1000]


def asked_for(error: BaseException) -> float:
    """Seconds from now that the error itself asks for."""
    instant, wall = retry_after(Outcome("failure", 0.0, 0.0, error), 0.0)
    return max(0.0, instant, wall - time.time())
