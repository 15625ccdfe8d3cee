"""Tasks that wait for tasks of the same manager: what follows from that."""

from __future__ import annotations

import logging
from collections.abc import Collection, Hashable, Iterator
from math import inf
from typing import TYPE_CHECKING, Any

from async_task_manager.errors import TaskManagerError
from async_task_manager.strategies.base import Limit, Router

if TYPE_CHECKING:
    from async_task_manager.strategies.chain import Chain
    from async_task_manager.task import Task

__all__ = ["Waits"]

logger = logging.getLogger("async_task_manager")


class Waits:
    """Which running task waits for which others.

    The one waited for inherits the ranks of those who wait, for as long as they do: or a task of
    high priority would wait for whatever is more important than the task that it needs (priority
    inversion). And where the wait can never end, there is a warning.
    """

    def __init__(self, chain: Chain) -> None:
        self._chain = chain
        self._for: dict[Task[Any], dict[Task[Any], None]] = {}
        """What each one waits for."""
        self._by: dict[Task[Any], dict[Task[Any], None]] = {}
        """Who waits for each."""
        self._own: dict[Task[Any], tuple[Any, ...]] = {}
        """The ranks that those had before which have inherited better ones."""
        self._warned: set[Task[Any]] = set()
        """Those that wait for a queue of others need to hear of it once."""

    def begin(
        self, task: Task[Any], other: Task[Any], running: Collection[Task[Any]], now: float
    ) -> list[Task[Any]]:
        """A running task waits for another one; gives those that have other ranks now."""
        self._for.setdefault(task, {})[other] = None
        self._by.setdefault(other, {})[task] = None
        if other._state == "queued" and task._state == "running" and task not in self._warned:
            self._warn(task, other, running, now)
        return list(self._pass_on(other, now))

    def end(self, task: Task[Any], other: Task[Any], now: float) -> list[Task[Any]]:
        """The wait is over, in whatever way; gives those that have other ranks now."""
        for table, one, another in ((self._for, task, other), (self._by, other, task)):
            found = table.get(one, {})
            found.pop(another, None)
            if not found:
                table.pop(one, None)
        if task not in self._for:
            self._warned.discard(task)
        return list(self._pass_on(other, now))

    def _pass_on(self, task: Task[Any], now: float) -> Iterator[Task[Any]]:
        """Others wait for the task than before: it, and what it waits for itself, follow suit."""
        chain = self._chain
        if not chain.inherited:
            return
        own = self._own.get(task) or chain.ranks(task)
        ranks = list(own)
        for waiter in self._by.get(task, ()):
            for i in chain.inherited:
                ranks[i] = min(ranks[i], chain.ranks(waiter)[i])
        better = tuple(ranks)
        if better == own:
            self._own.pop(task, None)
        else:
            self._own[task] = own
        if better != chain.ranks(task):
            chain.rerank(task, better, now)
            yield task
            for other in self._for.get(task, ()):
                yield from self._pass_on(other, now)

    def _warn(
        self, task: Task[Any], other: Task[Any], running: Collection[Task[Any]], now: float
    ) -> None:
        """Warns if the other needs what only the end of a running task gives back, and all that
        hold a part of it wait for queued tasks, too, perhaps through tasks that run.
        """
        found = blocked_by(self._chain, other, running, now)
        if found is None:
            return
        stage, holders = found
        lines = [self._line(holder) for holder in holders]
        if any(task in line for line in lines) and all(map(self._stuck, lines)):
            self._warned.add(task)
            logger.warning(
                "deadlock: %r waits for %r, which waits for its place in %s: await it after the "
                "work, or give the two different limits",
                task,
                other,
                stage,
            )

    def _line(self, task: Task[Any]) -> dict[Task[Any], None]:
        """The running tasks that have to go on before this one can: itself, those it waits for, and
        so forth.
        """
        line = {task: None}
        ends = [task]
        while ends:
            for other in self._for.get(ends.pop(), ()):
                if other._state == "running" and other not in line:
                    line[other] = None
                    ends.append(other)
        return line

    def _stuck(self, line: Collection[Task[Any]]) -> bool:
        """Whether one of them waits for a queued task."""
        return any(other._state == "queued" for one in line for other in self._for.get(one, ()))


def blocked_by(
    chain: Chain, queued: Task[Any], running: Collection[Task[Any]], now: float
) -> tuple[Limit | Router, list[Task[Any]]] | None:
    """A stage that only the end of a running task can open for the queued one, and all that hold a
    part of it; None if there is none.
    """
    assert queued._lane is not None
    for i, (stage, key) in enumerate(zip(chain.gated, queued._lane.keys, strict=True)):
        holders: list[Task[Any]] = []
        if isinstance(stage, Router):
            holders = _holders(i, stage, queued, running, now)
        elif _shut(stage, key, queued._costs[i], now):
            holders = [task for task in running if _key(task, i) == key]
        if holders:
            return stage, holders
    return None


def _holders(
    i: int, router: Router, queued: Task[Any], running: Collection[Task[Any]], now: float
) -> list[Task[Any]]:
    """Who holds the branches of a router, if only ends can open each of them; else nobody."""
    pin, keys = _key(queued, i)
    found: list[Task[Any]] = []
    for branch in router.branches(pin):
        if branch in keys:
            costs = queued._costs[i][branch]
            shut = [
                j
                for j, limit in enumerate(branch.limits)
                if _shut(limit, keys[branch][j], costs[j], now)
            ]
            there = [
                task
                for task in running
                if task._run.grants[i][0] is branch  # type: ignore[union-attr]  # it runs
                and any(_key(task, i)[1][branch][j] == keys[branch][j] for j in shut)
            ]
            if not there:
                return []
            found += there
    return found


def _key(task: Task[Any], i: int) -> Any:
    return task._lane.keys[i]  # type: ignore[union-attr]  # it was planned at intake


def _shut(limit: Limit, key: Hashable, cost: Any, now: float) -> bool:
    """Whether only an event can open the limit."""
    try:
        return limit.ready_at(key, cost, now) == inf
    except TaskManagerError:
        return False  # it opens by itself, or refuses
