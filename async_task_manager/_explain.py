"""Why tasks wait, in words that a person would use."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from async_task_manager._forecast import clock_words
from async_task_manager.strategies._names import name_of
from async_task_manager.strategies._reasons import Reason, causes_of
from async_task_manager.strategies.base import Collector, Feedback, Hold, Limit, Router, Usage

if TYPE_CHECKING:
    from async_task_manager.strategies.chain import Chain
    from async_task_manager.task import Task, TaskState

__all__ = ["Backlog", "Cause", "Explanation", "Reason"]

MOST = 3
"""Reasons, and causes, that a sentence names."""


@dataclass(frozen=True, slots=True)
class Explanation:
    """Why one task waits, or what else it does. ``str()`` is a sentence."""

    task: str
    """Its name."""
    state: TaskState
    position: int | None = None
    """1 for the first of the queued tasks that wait for the same; None: it stands in no line."""
    reasons: tuple[Reason, ...] = ()
    """What keeps it from starting now: what binds comes first. Instants are epoch seconds."""
    note: str | None = None
    """What else there is to say: the manager is paused, the task runs since ..."""

    @classmethod
    def of(
        cls, chain: Chain, task: Task[Any], now: float, offset: float, note: str | None
    ) -> Explanation:
        """Of a task at this chain time, with what is to be said of its manager."""
        if task._state == "queued":
            answer = chain.explain(task, now)
            reasons = tuple(_by_wall(reason, offset) for reason in answer.reasons)
            return cls(task.name, "queued", answer.position, reasons, note)
        run = task._run
        if task._state != "running" or run is None:
            return cls(task.name, task._state)
        where = f" on {run.provider}" if run.provider else ""
        since = (
            f"since {clock_words(run.started + offset)}"
            if run.started is not None
            else "from now on"
        )
        again = f", attempt {run.attempt}" if run.attempt > 1 else ""
        return cls(task.name, "running", note=f"runs{where} {since}{again}")

    def __str__(self) -> str:
        if self.state != "queued":
            return self.note or f"{self.state}"
        parts = [self.note] if self.note else []
        if self.position is not None:
            parts.append(f"{_ordinal(self.position)} in line")
        parts += [_words(reason) for reason in self.reasons[:MOST]]
        if not self.reasons and not self.note:
            behind = self.position is not None and self.position > 1
            parts.append("the line is moving" if behind else "nothing holds it back")
        return "; ".join(parts)


@dataclass(frozen=True, slots=True)
class Cause:
    """What a number of queued tasks wait for."""

    tasks: int
    reason: Reason

    def __str__(self) -> str:
        return f"{self.tasks} {'waits' if self.tasks == 1 else 'wait'}: {_words(self.reason)}"


@dataclass(frozen=True, slots=True)
class Backlog:
    """What the queued tasks of a manager wait for, the most of them first. ``str()`` is a sentence.

    A task counts with what binds it.
    """

    queued: int
    running: int
    causes: tuple[Cause, ...] = ()
    note: str | None = None

    @classmethod
    def of(cls, chain: Chain, running: int, now: float, offset: float, note: str | None) -> Backlog:
        """At this chain time."""
        found = causes_of(chain, now)
        causes = tuple(
            Cause(count, _by_wall(reason, offset))
            for reason, count in sorted(found.items(), key=lambda pair: -pair[1])
        )
        return cls(chain.queued, running, causes, note)

    def __str__(self) -> str:
        parts = [f"{self.queued} queued, {self.running} running"]
        if self.note:
            parts.append(self.note)
        parts += [str(cause) for cause in self.causes[:MOST]]
        rest = sum(cause.tasks for cause in self.causes[MOST:])
        if rest:
            parts.append(f"{rest} for {len(self.causes) - MOST} other reasons")
        return "; ".join(parts)


def _by_wall(reason: Reason, offset: float) -> Reason:
    """The reason in epoch seconds."""
    usage, opens_at = reason.usage, reason.opens_at
    if usage is not None and usage.frees_at is not None:
        usage = Usage(usage.used, usage.capacity, usage.frees_at + offset)
    return replace(reason, usage=usage, opens_at=None if opens_at is None else opens_at + offset)


def _words(reason: Reason) -> str:
    stage = reason.stage
    at = None if reason.opens_at is None else clock_words(reason.opens_at)
    if isinstance(stage, Limit) and reason.usage is not None:
        then = f"next at {at}" if at is not None else "next when something ends"
        return f"{_subject(stage, reason)} {stage.tell(reason.usage)}, {then}"
    if isinstance(stage, Collector) and reason.usage is not None:
        there = f"{reason.usage.used} of {stage.max_size} items are in its batch"
        then = f"at {at}" if at is not None else f"when there are {stage.min_size}"
        return f"{there}, which closes {then}"
    if isinstance(stage, Router):
        return "no provider is open" if reason.key is None else f"{reason.key} is disabled"
    if isinstance(stage, Feedback) and at is not None:
        return f"to be tried again at {at}"
    if isinstance(stage, Hold) and at is not None:
        return f"held until {at} by {name_of(stage)}"
    return f"inside {stage!r}, which doesn't say what for"


def _subject(limit: Limit, reason: Reason) -> str:
    words = []
    if reason.provider is not None:
        words.append(f"provider {reason.provider}")
    if limit.key is not None:
        field = limit.key if isinstance(limit.key, str) else "key"
        words.append(f"{field} {reason.key!r}")
    return " for ".join(words) or "the manager"


def _ordinal(number: int) -> str:
    last = number % 100
    if 10 < last < 20:
        return f"{number}th"
    return f"{number}{ {1: 'st', 2: 'nd', 3: 'rd'}.get(number % 10, 'th') }"
