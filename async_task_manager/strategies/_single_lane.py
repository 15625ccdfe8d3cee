"""The dispatch of chains without keys, groups and routers."""

from __future__ import annotations

from collections.abc import Hashable, Iterator
from math import inf
from typing import TYPE_CHECKING, Any

from async_task_manager.errors import TaskRejected, TaskTooLarge
from async_task_manager.strategies._gates import later
from async_task_manager.strategies._lanes import Lane
from async_task_manager.strategies.base import Limit

if TYPE_CHECKING:
    from async_task_manager.events import Turn
    from async_task_manager.strategies.chain import Chain
    from async_task_manager.task import Outcome, Task

__all__ = ["SingleLane"]


MAX_REJECTED = 256
"""Tasks rejected in one pull: a limit that fails fast must not stall the loop with a long queue."""


class SingleLane:
    """The same for a chain without keys, groups and routers: one lane; peek, ask, commit.

    What runs once per task is written out here: a method call more is felt in every benchmark.
    """

    def __init__(self, chain: Chain, limits: tuple[Limit, ...]) -> None:
        self.chain = chain
        self.limits = limits
        self.only = Lane(chain, None, (None,) * len(limits), ())
        self.wake = inf
        self.parked: Task[Any] | None = None
        """The head, once a limit refused it: it waits for that very limit, ``at``."""
        self.at = 0
        self.fixed: tuple[Any, ...] | None = None
        """The costs of every task, where no limit looks at the task; checked once a change."""
        self.stamped = tuple(
            (i, limit) for i, limit in enumerate(limits) if type(limit).started is not Limit.started
        )

    def costs(self, task: Task[Any]) -> tuple[Any, ...]:
        """What the task costs at each limit; raises where it can never pass."""
        costs = []
        for limit in self.limits:
            cost = limit.cost_of(task)
            limit.check(None, cost)
            costs.append(cost)
        if all(
            type(limit).cost_of is Limit.cost_of
            and (limit.cost is None or isinstance(limit.cost, int | float))
            for limit in self.limits
        ):
            self.fixed = tuple(costs)
        return tuple(costs)

    def join(self, task: Task[Any], now: float) -> None:
        lane = self.only
        lane.push(task)
        if lane.front[0] is task:
            self.wake = now
            self.parked = None

    def remove(self, task: Task[Any], now: float) -> None:
        self.only.lost()
        self.wake = now

    def move(self, task: Task[Any], rank: Any, now: float) -> None:
        """As `Dispatch.move`."""
        before = self.only.peek()
        self.only.move(task, rank)
        if self.only.peek() is not before or before is task:
            self.wake = now
            self.parked = None

    def pull(self, now: float) -> Task[Any] | None:
        """As `Dispatch.pull`."""
        lane = self.only
        limits = self.limits
        while front := lane.front:
            task = front[0]
            if task._state != "queued":
                lane.peek()
                continue
            if self.at and self.parked is task and self.still_closed(task, now):
                return None
            costs = task._costs
            i = 0
            try:
                for limit in limits:
                    instant = limit.ready_at(None, costs[i], now)
                    if not instant <= now:
                        self.wake = later(instant, limit, now)
                        self.parked = task
                        self.at = i
                        return None
                    i += 1
            except (TaskRejected, TaskTooLarge) as error:
                lane.pop()
                self.chain.reject(task, error, now)
                if len(self.chain.out) % MAX_REJECTED == 0:
                    self.wake = now
                    return None
                continue
            if len(front) > 1:
                front.popleft()
                lane.size -= 1
            else:
                lane.pop()
            i = 0
            grants = []
            try:
                for limit in limits:
                    grants.append(limit.acquire(None, costs[i], now))
                    i += 1  # enumerate makes this loop half as fast
            except Exception as error:
                self.chain.undo(task, zip(limits, grants, strict=False), error, now)
            task._enter(grants)
            return task
        self.wake = inf
        return None

    def still_closed(self, task: Task[Any], now: float) -> bool:
        """Whether the limit at which the head waits has not opened: no other is asked until then.

        One that fails fast would otherwise reject the head or not as the pulls happen to fall.
        """
        self.parked = None
        limit = self.limits[self.at]
        try:
            instant = limit.ready_at(None, task._costs[self.at], now)
        except (TaskRejected, TaskTooLarge):
            return False
        if instant <= now:
            return False
        self.wake = later(instant, limit, now)
        self.parked = task
        return True

    def look(self, now: float) -> None:
        """Limits were used or given back: when the one at which the head waits is open now."""
        if self.wake > now:
            head = self.parked
            if head is None or head._state != "queued" or not self.still_closed(head, now):
                self.wake = now

    def begun(self, task: Task[Any], now: float) -> bool:
        if not self.stamped:
            return False
        grants = self.grants_of(task)
        for i, limit in self.stamped:
            limit.started(grants[i], now)
        if self.only.size:
            self.look(now)
            return True
        return False

    def release(self, task: Task[Any], outcome: Outcome, now: float) -> None:
        grants = self.grants_of(task)
        i = 0
        failed: Exception | None = None
        for limit in self.limits:
            try:
                limit.release(grants[i], outcome, now)
            except Exception as error:
                failed = error  # the others get theirs back all the same
            i += 1  # noqa: SIM113  # as in `pull`
        if failed is not None:
            raise failed
        if self.only.size:
            self.look(now)

    def settle(self, task: Task[Any], actual_of: Any, now: float) -> None:
        for limit, grant in zip(self.limits, self.grants_of(task), strict=True):
            actual = actual_of(limit)
            if actual is not None:
                limit.settle(grant, actual, now)
        self.look(now)

    def observe(self, task: Task[Any], sample: Any, now: float) -> None:
        for limit, grant in zip(self.limits, self.grants_of(task), strict=True):
            limit.observe(sample, now, None, grant)
        self.look(now)

    @staticmethod
    def grants_of(task: Task[Any]) -> Any:
        return task._run.grants  # type: ignore[union-attr]  # it runs, so it has one

    def limit_changed(self, limit: Limit, key: Hashable) -> None:
        self.fixed = None
        self.wake = self.chain.now

    def next_wake(self, now: float) -> float:
        return self.wake if self.only.size else inf

    def watch(self, on: bool) -> None:
        """As `Dispatch.watch`: what is observed here can be told at any time."""

    def turned(self) -> Iterator[Turn]:
        """As `Dispatch.turned`: only the head waits, for one limit."""
        head = self.only.peek()
        closed = self.at if self.parked is head else 0
        for i, limit in enumerate(self.limits):
            yield limit, None, None, self.wake if head is not None and i == closed else None

    def waiting(self) -> Iterator[Task[Any]]:
        yield from self.only
