"""Where queued tasks wait: lanes, and the nodes at which the heads of lanes are parked.

A lane holds the tasks that share every key, group and pin: whatever its head waits for, all wait
for. A node is one key of one limit; lanes that it refused are parked there, best first.
"""

from __future__ import annotations

from bisect import insort
from collections import deque
from collections.abc import Hashable, Iterator
from heapq import heapify, heappop, heappush
from math import inf
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from async_task_manager.strategies._gates import Gate
    from async_task_manager.strategies.chain import Chain
    from async_task_manager.task import Task

__all__ = ["Lane", "Node", "Queue"]

PRUNE_AT = 64
"""How many cancelled entries a queue may hold before it is swept."""


def _arrival(task: Task[Any]) -> int:
    return task._seq


class Queue:
    """Tasks by rank; within one rank first come, first served.

    The tasks of the best rank stand in `front`; other ranks wait in a dict of levels and a heap of
    ranks: O(1) within a rank, O(log levels) between them, and tasks are never compared. A level
    with a single task is that task itself. Cancelled tasks stay until they come to the front, or
    until they are the majority.
    """

    __slots__ = ("_dead", "_levels", "_ranks", "best", "front", "size")

    def __init__(self) -> None:
        self.size = 0
        self.front: deque[Task[Any]] = deque()
        self.best: Any = None
        """The rank of those in front, if there are any."""
        self._levels: dict[Any, Any] = {}
        self._ranks: list[Any] = []
        self._dead = 0

    def push(self, task: Task[Any]) -> None:
        """Adds a task; one that comes back (a retry) regains its place by arrival."""
        self.size += 1
        front = self.front
        if front:
            rank = task._rank
            if rank != self.best:
                if rank < self.best:
                    self._levels[self.best] = front
                    heappush(self._ranks, self.best)
                    self.best = rank
                    self.front = deque((task,))
                else:
                    self._stash(task, rank)
            elif front[-1]._seq < task._seq:
                front.append(task)
            else:
                insert(front, task)
        else:
            self.best = task._rank
            front.append(task)

    def _stash(self, task: Task[Any], rank: Any) -> None:
        level = self._levels.get(rank)
        if level is None:
            heappush(self._ranks, rank)
            self._levels[rank] = task
        elif type(level) is deque:
            insert(level, task)
        else:
            self._levels[rank] = level = deque((level,))
            insert(level, task)

    def peek(self) -> Task[Any] | None:
        """The best task that still waits; None if there is none. Amortised O(log levels)."""
        front = self.front
        while front:
            task = front[0]
            if task._state == "queued":
                return task
            self._dead -= 1
            self.size += 1  # `lost` has counted it already
            self.pop()
            front = self.front
        return None

    def pop(self) -> None:
        """Removes the first, which `peek` gave just now."""
        self.size -= 1
        front = self.front
        front.popleft()
        if not front and self._ranks:
            self._advance()

    def _advance(self) -> None:
        """The next rank comes to the front."""
        self.best = heappop(self._ranks)
        level = self._levels.pop(self.best)
        self.front = level if type(level) is deque else deque((level,))

    def move(self, task: Task[Any], rank: Any) -> None:
        """Gives one that waits here another rank. O(tasks of its rank, and ranks): it is rare."""
        own = task._rank
        level = self.front if own == self.best else self._levels[own]
        if type(level) is deque:
            level.remove(task)
        if level is self.front:
            if not level and self._ranks:
                self._advance()
        elif type(level) is not deque or not level:
            del self._levels[own]
            self._ranks.remove(own)
            heapify(self._ranks)
        self.size -= 1
        task._rank = rank
        self.push(task)

    def lost(self) -> None:
        """One of the tasks no longer waits; it is dropped when it comes up, or in a sweep."""
        self.size -= 1
        self._dead += 1
        if self._dead > PRUNE_AT and self._dead > self.size:
            waiting = sorted(self, key=_arrival)
            self.front.clear()
            self._levels.clear()
            self._ranks.clear()
            self._dead = self.size = 0
            for task in waiting:
                self.push(task)

    def __iter__(self) -> Iterator[Task[Any]]:
        """The tasks that wait, rank by rank (ranks in no order)."""
        for level in (self.front, *self._levels.values()):
            tasks = level if isinstance(level, deque) else (level,)
            yield from (task for task in tasks if task._state == "queued")


def insert(level: deque[Task[Any]], task: Task[Any]) -> None:
    """Puts a task into its place by arrival: nearly always at one of the ends."""
    if level[-1]._seq < task._seq:
        level.append(task)
    elif task._seq < level[0]._seq:
        level.appendleft(task)
    else:
        insort(level, task, key=_arrival)


class Lane(Queue):
    """The tasks that share every key, and the place of their head among the other lanes."""

    __slots__ = (
        "__weakref__",
        "chain",
        "groups",
        "identity",
        "kept",
        "keys",
        "listed",
        "moves",
        "nodes",
        "rank",
        "seq",
        "version",
    )

    def __init__(
        self, chain: Chain, identity: Hashable, keys: tuple[Any, ...], groups: tuple[Any, ...]
    ) -> None:
        super().__init__()
        self.chain = chain
        self.identity = identity
        self.keys = keys
        """One per gate, in order; for a router its pin and the keys inside each branch."""
        self.groups = groups
        self.rank: Any = None
        """The rank of the head, with the ranks of its groups; with ``seq`` a total order of lanes.
        """
        self.seq = -1
        """The arrival number of the head; -1: no head has been looked at."""
        self.version = 0
        """Heap entries that name another version are void."""
        self.listed = -1
        """The version under which the lane stands among the ready ones."""
        self.nodes: tuple[Node, ...] = ()
        """Where it is parked and will be woken."""
        self.kept: dict[Node, None] | None = None
        """Nodes that it left but holds its place at."""
        self.moves = 0


class Node:
    """One key of one limit (or one pin of a router), and the lanes that wait there, best first.

    Nobody overtakes here: a lane of lower rank waits behind what waits, even where its smaller
    cost would fit, or small tasks would starve a large one.
    """

    __slots__ = ("due", "gate", "heap", "key", "live")

    def __init__(self, gate: Gate, key: Hashable) -> None:
        self.gate = gate
        self.key = key
        self.heap: list[tuple[Any, int, int, Lane]] = []
        self.live = 0
        self.due = inf
        """The instant in the calendar at which the first lane is to be looked at again."""

    def enter(self, lane: Lane) -> None:
        heappush(self.heap, (lane.rank, lane.seq, lane.version, lane))
        self.live += 1
        if len(self.heap) > 2 * self.live + 16:
            self.heap = [entry for entry in self.heap if entry[3].version == entry[2]]
            heapify(self.heap)

    def first(self) -> Lane | None:
        """The best lane that waits here, kept places included."""
        heap = self.heap
        while heap:
            entry = heap[0]
            if entry[3].version == entry[2]:
                return entry[3]
            heappop(heap)
        return None

    def blocks(self, lane: Lane) -> bool:
        """Whether a better lane waits here."""
        first = self.first()
        return (
            first is not None
            and first is not lane
            and (first.rank, first.seq) < (lane.rank, lane.seq)
        )
