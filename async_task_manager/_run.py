"""What a task has at certain times only: once it started or ended, or where somebody asked for it.

Queued tasks are many, and are kept small: these are made when they are needed.
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from math import inf
from types import TracebackType
from typing import Any, Final

from async_task_manager.errors import RateLimited, StrategyError, TaskDropped

__all__ = ["Failure", "Options", "Run"]

logger = logging.getLogger("async_task_manager")

ERRORS_KEPT: Final = 100
"""Errors of earlier attempts that a task keeps: one may be told to slow down for days."""


class Failure:
    """An error as an outcome: raised anew for every waiter, logged if nobody ever looks."""

    __slots__ = ("error", "label", "retrieved", "traceback")

    def __init__(self, error: BaseException, label: str) -> None:
        self.error = error
        self.label = label
        self.traceback: TracebackType | None = error.__traceback__
        # The manager has logged the first; the second is no news to whoever chose to drop; the
        # others end the program, and are seen there.
        self.retrieved = isinstance(
            error, StrategyError | TaskDropped | KeyboardInterrupt | SystemExit
        )

    def __del__(self) -> None:
        if not self.retrieved:
            error = self.error.with_traceback(self.traceback)
            logger.error("%s failed, and nobody waited for it", self.label, exc_info=error)


class Run:
    """The attempts of a task, and its outcome."""

    __slots__ = (
        "actual",
        "attempt",
        "driver",
        "errors",
        "failed_at",
        "finished",
        "grants",
        "provider",
        "rate_limited",
        "stamped",
        "started",
        "value",
    )

    driver: asyncio.Task[None] | None
    grants: Any
    provider: str | None
    failed_at: tuple[str, ...] | None
    """The branches of routers at which attempts failed, one after another."""
    attempt: int
    started: float | None
    finished: float | None
    value: Any
    actual: float | dict[str, float] | None
    errors: deque[BaseException] | None
    rate_limited: int
    stamped: bool | None
    """Whether it has said that it counts from now on; None: it counts from its start."""

    def __getattr__(self, name: str) -> Any:
        # Slots are filled when the thing happens, for speed; until then each reads as nothing.
        if name not in Run.__slots__:
            raise AttributeError(name)
        return 0 if name in ("attempt", "rate_limited") else None

    def tried(self, error: BaseException | None) -> None:
        """The attempt is over, and another one will follow."""
        if error is None:
            return  # a feedback did not like its result
        if self.errors is None:
            self.errors = deque(maxlen=ERRORS_KEPT)
        self.errors.append(error)
        if isinstance(error, RateLimited):
            self.rate_limited += 1

    def failed_at_branch(self, name: str) -> None:
        """An attempt failed there: the next one prefers another."""
        self.failed_at = (*(self.failed_at or ()), name)


class Options:
    """What few tasks have: a name of their own and time limits."""

    __slots__ = (
        "deadline",
        "expired",
        "name",
        "not_after",
        "not_after_wall",
        "queue_timeout",
        "run_timeout",
        "timer",
    )

    def __init__(
        self,
        name: str | None = None,
        queue_timeout: float | None = None,
        run_timeout: float | None = None,
        deadline: float | None = None,
    ) -> None:
        self.name = name
        self.queue_timeout = queue_timeout
        self.run_timeout = run_timeout
        self.deadline = deadline
        self.not_after = inf
        self.not_after_wall = inf
        self.expired: Exception | None = None
        self.timer: asyncio.TimerHandle | None = None
