"""The bound of a manager's queue: what happens to one task too many."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable
from functools import partial
from heapq import heapify, heappop, heappush
from typing import TYPE_CHECKING, Any

from async_task_manager.errors import QueueFull

if TYPE_CHECKING:
    from async_task_manager.strategies.chain import Chain
    from async_task_manager.task import Task

__all__ = ["OVERFLOW", "Room"]

OVERFLOW = ("raise", "drop_oldest", "drop_lowest")


class Room:
    """How many tasks may be queued, who waits to come in, and who goes when it is too many.

    To find the one to drop takes O(log n).
    """

    def __init__(self, chain: Chain, most: int, overflow: str) -> None:
        self.chain = chain
        self.most = most
        self.overflow = overflow
        self.victims: Victims | None = None
        if overflow != "raise":
            lowest = partial(Lowest, chain.last_rank)
            self.victims = Victims(Longest if overflow == "drop_oldest" else lowest)
        self.waiters: deque[asyncio.Future[None]] = deque()
        self.invited = 0
        """Waiters that were told to come in, and have not yet."""

    def check(self) -> None:
        """Raises `QueueFull` where one more must not come in."""
        if self.victims is None and self.chain.queued >= self.most:
            raise QueueFull(
                f"{self.chain.queued} tasks are queued, and max_queued is {self.most}: "
                "await manager.put(...) waits for room"
            )

    def came(self, task: Task[Any]) -> Task[Any] | None:
        """The task was queued; gives the one that has to go for it, perhaps itself."""
        if self.victims is None:
            return None
        self.victims.push(task)
        return self.victims.pop() if self.chain.queued > self.most else None

    def came_back(self, task: Task[Any]) -> None:
        """The task is queued again, for another attempt, or has another rank: it may have to go for
        a later one.
        """
        if self.victims is not None:
            self.victims.push(task)

    async def wait(self) -> None:
        """Until there is room, in the order of the calls."""
        if self.chain.queued + self.invited < self.most and not self.waiters:
            return
        waiters = self.waiters
        loop = asyncio.get_running_loop()
        turn = loop.create_future()
        waiters.append(turn)
        while True:
            try:
                await turn
            except asyncio.CancelledError:
                if turn.cancelled():
                    if turn in waiters:
                        waiters.remove(turn)
                else:
                    self.invited -= 1
                    self.invite()
                raise
            self.invited -= 1
            if self.chain.queued < self.most:
                return
            turn = loop.create_future()  # `add_task` was quicker
            waiters.appendleft(turn)

    def invite(self, everyone: bool = False) -> None:
        """Lets in as many waiters as there is room for."""
        while self.waiters and (everyone or self.chain.queued + self.invited < self.most):
            turn = self.waiters.popleft()
            if not turn.done():
                self.invited += 1
                turn.set_result(None)


class Victims:
    """Queued tasks, the one that goes first on top of a heap."""

    def __init__(self, entry: Callable[[Task[Any]], Longest]) -> None:
        self._entry = entry
        self._heap: list[Longest] = []
        self._sweep_at = 64

    def push(self, task: Task[Any]) -> None:
        if len(self._heap) >= self._sweep_at:  # what has started meanwhile is still in it
            self._heap = [entry for entry in self._heap if entry.valid()]
            heapify(self._heap)
            self._sweep_at = 2 * len(self._heap) + 64
        heappush(self._heap, self._entry(task))

    def pop(self) -> Task[Any]:
        while True:  # the one that was pushed just now is queued
            entry = heappop(self._heap)
            if entry.valid():
                return entry.task


class Longest:
    """The task that has been queued longest goes first."""

    __slots__ = ("task",)

    def __init__(self, task: Task[Any]) -> None:
        self.task = task

    def valid(self) -> bool:
        """Whether it still says what is so."""
        return self.task._state == "queued"

    def __lt__(self, other: Longest) -> bool:
        return self.task._seq < other.task._seq


class Lowest(Longest):
    """The task of the lowest rank goes first, of several the one that came last."""

    __slots__ = ("own", "rank")

    def __init__(self, rank: Callable[[Task[Any]], Any], task: Task[Any]) -> None:
        super().__init__(task)
        self.own = task._rank
        self.rank = rank(task)
        """With those of its groups, at the time: it must not change in a heap."""

    def valid(self) -> bool:
        return super().valid() and bool(self.own == self.task._rank)

    def __lt__(self, other: Longest) -> bool:
        assert isinstance(other, Lowest)
        if self.rank != other.rank:
            return bool(other.rank < self.rank)
        return other.task._seq < self.task._seq
