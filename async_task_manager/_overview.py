"""What a manager tells about itself: counts, queue lengths, how much of each limit is used."""

from __future__ import annotations

from collections import Counter
from collections.abc import Hashable, Iterator
from dataclasses import dataclass, field
from itertools import islice
from typing import TYPE_CHECKING, Any

from async_task_manager.strategies._usages import MAX_KEYS
from async_task_manager.strategies.base import Limit
from async_task_manager.strategies.chain import Chain

if TYPE_CHECKING:
    from async_task_manager.task import Task, TaskState

__all__ = ["LimitStatus", "QueueLengths", "Stats", "Status", "TaskStatus"]


@dataclass(frozen=True, slots=True)
class Stats:
    """What a manager has to do, does and has done."""

    queued: int
    running: int
    succeeded: int
    failed: int
    cancelled: int
    expired: int
    rejected: int
    usage: dict[str, Any] = field(default_factory=dict)
    """Per limit its `Usage`; for a router, per branch."""


@dataclass(frozen=True, slots=True)
class TaskStatus:
    """A task at an instant; the times are epoch seconds."""

    id: int
    name: str
    state: TaskState
    attempt: int
    provider: str | None
    created_at: float | None
    started_at: float | None
    finished_at: float | None

    @classmethod
    def of(cls, task: Task[Any]) -> TaskStatus:
        return cls(
            task.id,
            task.name,
            task.state,
            task.attempt,
            task.provider,
            task.created_at,
            task.started_at,
            task.finished_at,
        )


@dataclass(frozen=True, slots=True)
class QueueLengths:
    """How many tasks are queued."""

    total: int
    by_priority: dict[str, int]
    """By what the chain's orders call their levels: the names of a `PriorityQueueStrategy`, or its
    numbers.
    """
    by_key: dict[str, dict[Hashable, int]]
    """By the field or function that splits a limit, and by key."""

    @classmethod
    def of(cls, chain: Chain) -> QueueLengths:
        """Counts them. O(queued)."""
        levels: Counter[str] = Counter()
        split = [
            (i, stage.key if isinstance(stage.key, str) else repr(stage.key))
            for i, stage in enumerate(chain.gated)
            if isinstance(stage, Limit) and stage.key is not None
        ]
        keys: dict[str, Counter[Hashable]] = {name: Counter() for _, name in split}
        for task in chain.tasks():
            for order, rank in zip(chain.orders, chain.ranks(task), strict=True):
                label = order.label(task, rank)
                if label is not None:
                    levels[label] += 1
            assert task._lane is not None
            for name, key in {name: task._lane.keys[i] for i, name in split}.items():
                keys[name][key] += 1
        return cls(chain.queued, dict(levels), {name: dict(found) for name, found in keys.items()})


@dataclass(frozen=True, slots=True)
class LimitStatus:
    """How much of one limit is in use."""

    limit: str
    """What it allows, in words."""
    provider: str | None
    """The router's branch to which it belongs."""
    key: Hashable
    """Of a limit with a key: for whom (the first 100 that are in use); of any other None."""
    used: float
    capacity: float
    frees_at: float | None
    """Epoch seconds at which some of it frees if nothing else happens; None: only an event can free
    it, or nothing is used.
    """

    @classmethod
    def of(cls, chain: Chain, now: float, epoch: float) -> Iterator[LimitStatus]:
        """Every limit of the chain, of its branches, and for every key that is in use."""
        for stage in chain.gated:
            if isinstance(stage, Limit):
                yield from cls._of(stage, None, now, epoch)
            else:
                for branch in stage.all_branches(None):
                    for limit in branch.limits:
                        yield from cls._of(limit, branch.name, now, epoch)

    @classmethod
    def _of(
        cls, limit: Limit, provider: str | None, now: float, epoch: float
    ) -> Iterator[LimitStatus]:
        for key in [None] if limit.key is None else islice(limit.keys(), MAX_KEYS):
            usage = limit.usage(key, now)
            frees_at = None if usage.frees_at is None else epoch + usage.frees_at
            yield cls(limit.describe(), provider, key, usage.used, usage.capacity, frees_at)


@dataclass(frozen=True, slots=True)
class Status:
    """A manager at an instant."""

    queued: QueueLengths
    running: int
    limits: tuple[LimitStatus, ...]
