"""Tasks that become one: the batches of a chain, open, queued and running.

Which tasks wait together, when a batch closes, and what becomes of it when its members leave, or
when the ways that they could go change.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable, Iterator
from math import inf
from typing import TYPE_CHECKING, Any

from async_task_manager.errors import TaskManagerError, TaskTooLarge
from async_task_manager.strategies._batch import CLOSED, Batch
from async_task_manager.strategies._calendar import Calendar
from async_task_manager.strategies._dispatch import Dispatch
from async_task_manager.strategies._fields import hashable
from async_task_manager.strategies._gates import Gate
from async_task_manager.strategies.base import Collector, Limit
from async_task_manager.task import Accounts, Task

if TYPE_CHECKING:
    from async_task_manager.strategies.chain import Chain

__all__ = ["Batches", "leave_call"]

MAX_CLOSED = 256
"""Batches closed in one pull: 100,000 that have waited long enough must not stall the loop."""


class Batches:
    """Which tasks wait together, for how long, and what becomes of them."""

    def __init__(self, chain: Chain, collector: Collector) -> None:
        self.chain = chain
        self.collector = collector
        self.keys: dict[Task[Any], Hashable] = {}
        """The bulk key of every task that is collected, from its intake to its end."""
        self.open: dict[Hashable, Batch] = {}
        self.of: dict[Task[Any], Batch] = {}
        """The batch of every task that is in one, until it ends or the call does."""
        self.calls = 0
        """Batches that run."""
        self.hurried = 0
        """How many wait for all to be done: then no batch waits for more tasks to come."""
        self._calendar: Calendar[Batch] = Calendar(_is_due)
        self._loose: list[Task[Any]] = []
        """Tasks whose batches were dissolved, while branches of a router come or go."""
        self._thinned: dict[Batch, None] = {}
        """Batches that lost a member, or of which one has another rank: what they cost and where
        they stand is found anew in the next pull, once, however many are cancelled in a row."""

    # ---- tasks come and go ------------------------------------------------------------------

    def admit(self, task: Task[Any]) -> None:
        """Notes the task's bulk key, if it is one that is collected: asked once, at intake."""
        if self.collector.collects(task):
            self.keys[task] = hashable(self.collector, task, self.collector.key_of(task))

    def join(self, task: Task[Any], now: float, since: float | None = None) -> None:
        """The task waits in its batch from now on; it came at ``since``.

        A task that failed before is its own batch: what is wrong with it harms no others again.
        """
        if task.attempt:
            self.chain.enqueue(self.alone(task, now), now)
            return
        if since is None:
            since = now
        if isinstance(self.chain.dispatch, Dispatch):
            self.chain.dispatch.share(task)
        place = self._place(task)
        batch = self.open.get(place)
        if batch is not None and batch in self._thinned:
            self._refold(batch, now)
        if batch is not None and not self._take(batch, task, since):
            self._close(batch, now)
            batch = None
        if batch is None:
            batch = self.open[place] = self._new(task, place, since)
            self._arm(batch)
        size = len(batch.members)
        enough = self.collector.min_size if batch.due == inf else self.collector.max_size
        if size >= enough:
            self._close(batch, now)

    def alone(self, task: Task[Any], now: float) -> Batch:
        """A batch of this task alone, which takes no other."""
        batch = self._new(task, self._place(task), now)
        if task._run is not None:
            batch._progress().failed_at = task._run.failed_at  # it prefers other branches
        return batch

    def gather(self, tasks: Iterable[Task[Any]], now: float) -> None:
        """Queues tasks that have waited, in as few batches as may be."""
        batches: dict[Hashable, Batch] = {}
        closed: list[Batch] = []
        for task in tasks:
            if task.attempt:
                closed.append(self.alone(task, now))
                continue
            place = self._place(task)
            batch = batches.get(place)
            if (
                batch is None
                or len(batch.members) >= self.collector.max_size
                or not self._take(batch, task, now)
            ):
                batch = batches[place] = self._new(task, place, now)
                closed.append(batch)
        for batch in closed:
            self.chain.enqueue(batch, now)

    def lose(self, task: Task[Any], now: float) -> None:
        """The task, which was queued, waits no longer: the others go on without it."""
        batch = self.of.pop(task)
        del batch.members[task]
        if batch.members:
            self._thinned[batch] = None
            return
        self._thinned.pop(batch, None)
        if batch.due != CLOSED:
            self._shut(batch)
        else:
            self.chain.take_out(batch, "cancelled", now)

    def reranked(self, task: Task[Any]) -> None:
        """The rank of a queued member is another now."""
        self._thinned[self.of[task]] = None

    def _place(self, task: Task[Any]) -> Hashable:
        assert task._lane is not None
        return self.keys[task], task._lane.identity

    def _new(self, task: Task[Any], place: Hashable, now: float) -> Batch:
        batch = Batch(self.collector, place, task, now)
        batch.members[task] = now
        self.of[task] = batch
        return batch

    def _take(self, batch: Batch, task: Task[Any], now: float) -> bool:
        """Adds the task to the batch; False if a limit would never admit them together."""
        try:
            batch._costs = self._together(batch, task, check=True)
        except TaskManagerError:
            return False
        self._count_in(batch, task)
        batch.members[task] = now
        self.of[task] = batch
        return True

    def _count_in(self, batch: Batch, task: Task[Any]) -> None:
        batch._seq = min(batch._seq, task._seq)
        if self.chain.orders:
            batch._rank = min(batch._rank, task._rank)

    def _together(self, batch: Batch, task: Task[Any], *, check: bool) -> Any:
        """What the batch would cost with the task; raises where a limit refuses that."""
        dispatch = self.chain.dispatch
        if not isinstance(dispatch, Dispatch):
            plain = zip(dispatch.limits, batch._costs, task._costs, strict=True)
            return tuple([_sum(limit, None, *both, check=check) for limit, *both in plain])
        assert batch._lane is not None
        costs: list[Any] = []
        for gate, key, mine, its in zip(
            dispatch.gates, batch._lane.keys, batch._costs, task._costs, strict=True
        ):
            if isinstance(gate, Gate):
                costs.append(_sum(gate.limit, key, mine, its, check=check))
                continue
            inside: dict[Any, tuple[Any, ...]] = {}
            for branch, keys in key[1].items():
                limits = zip(branch.limits, keys, mine[branch], its[branch], strict=True)
                inside[branch] = tuple([_sum(*terms, check=check) for terms in limits])
            costs.append(inside)
        return costs

    # ---- batches close ----------------------------------------------------------------------

    def turn(self, now: float) -> bool:
        """Batches that have waited long enough are queued; False if there may be more of them."""
        while self._thinned:
            self._refold(next(iter(self._thinned)), now)
        for _ in range(MAX_CLOSED):
            batch = self._calendar.pop(now)
            if batch is None:
                return True
            batch.due = inf
            if self.hurried or len(batch.members) >= self.collector.min_size:
                self._close(batch, now)
        return False

    def next_wake(self, now: float) -> float:
        """When `turn` has something to do: now, an instant, or inf."""
        return now if self._thinned else self._calendar.next()

    def flush(self, now: float) -> bool:
        """Closes all that is open, however few there are in it; False if nothing is."""
        batches = list(self.open.values())
        for batch in batches:
            self._close(batch, now)
        return bool(batches)

    def changed(self) -> None:
        """The collector's parameters are others now: what is open is looked at again."""
        for batch in self.open.values():
            self._arm(batch)

    def hurry(self, by: int) -> None:
        """Somebody begins to wait for all to be done, or ends it."""
        self.hurried += by
        self.changed()

    def _waited(self, batch: Batch) -> float:
        """When the oldest will have waited long enough."""
        oldest = next(iter(batch.members.values()))
        return oldest + self.collector.max_wait

    def _arm(self, batch: Batch) -> None:
        full = len(batch.members) >= self.collector.max_size
        batch.due = self.chain.now if full else self._waited(batch)
        self._calendar.push(batch.due, batch)

    def _close(self, batch: Batch, now: float) -> None:
        if batch in self._thinned:
            self._refold(batch, now)
        self._shut(batch)
        self.chain.enqueue(batch, now)

    def _shut(self, batch: Batch) -> None:
        del self.open[batch.place]
        batch.due = CLOSED

    def _refold(self, batch: Batch, now: float) -> None:
        """Members have left the batch: it costs less, and may have another place in the queue."""
        del self._thinned[batch]
        waits = batch.due != CLOSED
        if not waits and not self.chain.is_inside(batch):
            # A queue finds its entries by what they were when they came: another one takes over.
            self.chain.take_out(batch, "cancelled", now)
            since = next(iter(batch.members.values()))
            old, batch = batch, Batch(self.collector, batch.place, next(iter(batch.members)), since)
            batch._run = old._run
            batch.members.update(old.members)
            self.of.update(dict.fromkeys(batch.members, batch))
        first, *others = batch.members
        batch._costs, batch._rank, batch._seq = first._costs, first._rank, first._seq
        for other in others:
            batch._costs = self._together(batch, other, check=False)
            self._count_in(batch, other)
        if waits:
            self._arm(batch)
        elif not self.chain.is_inside(batch):
            self.chain.enqueue(batch, now)

    # ---- batches start and end --------------------------------------------------------------

    def begin(self, batch: Batch) -> None:
        """The batch is handed out to be run, and its members with it."""
        self.calls += 1
        assert batch._run is not None
        for member in batch.members:
            member._enter(None)  # permits are the call's
            member._progress().provider = batch._run.provider

    def left(self, task: Task[Any]) -> bool:
        """The task, which runs, ends in whatever way; False if it runs in no batch."""
        batch = self.of.pop(task, None)
        if batch is None:
            return False
        del batch.members[task]
        return True

    def reject(self, batch: Batch, error: Exception, now: float) -> None:
        """A limit refused the batch, which the dispatch has taken out, for good: so it does its
        members; but where it is too large, each of them may fit by itself.
        """
        batch._state = "rejected"
        members = self.dissolve(batch)
        for member in members:
            if len(members) > 1 and isinstance(error, TaskTooLarge):
                self.chain.enqueue(self.alone(member, now), now)
            else:
                self.chain.reject(member, error, now)

    # ---- what changes from outside ----------------------------------------------------------

    def dissolve(self, batch: Batch) -> list[Task[Any]]:
        """Its members, which are in no batch any more."""
        members = list(batch.members)
        batch.members.clear()
        batch.due = CLOSED
        self._thinned.pop(batch, None)
        for member in members:
            del self.of[member]
        return members

    def loosen(self, batch: Batch) -> None:
        """The batch, which is in no queue any more, is to be made anew."""
        self._loose += self.dissolve(batch)

    def bind_anew(self, now: float, plan: Callable[[Task[Any]], bool]) -> None:
        """Makes batches of what was loosened, and of what is open: tasks go other ways now."""
        loose, self._loose = self._loose, []
        opened = [came for batch in self.open.values() for came in batch.members.items()]
        for batch in self.open.values():
            self.dissolve(batch)
        self.open.clear()
        self.gather(filter(plan, loose), now)
        for task, since in sorted(opened, key=lambda came: (came[1], came[0]._seq)):
            if plan(task):
                self.join(task, now, since)

    def replan(self, batch: Batch, now: float, plan: Callable[[Task[Any]], bool]) -> None:
        """The batch is inside a custom strategy while its members are asked about branches anew:
        those that now go other ways than the first have to leave it.
        """
        left = [member for member in tuple(batch.members) if plan(member)]
        if not left:
            return
        batch._lane = left[0]._lane
        way = self._place(left[0])
        apart = [member for member in left if self._place(member) != way]
        for member in apart:
            del batch.members[member], self.of[member]
        self._thinned[batch] = None
        self.gather(apart, now)

    def waiting(self) -> Iterator[Task[Any]]:
        """What is in an open batch."""
        for batch in self.open.values():
            yield from batch.members


def _is_due(instant: float, batch: Batch) -> bool:
    return batch.due == instant


def _sum(limit: Limit, key: Hashable, mine: Any, its: Any, *, check: bool) -> Any:
    """What two cost together at a limit. One that counts tasks sees one: the call."""
    if limit.cost is None and type(limit).cost_of is Limit.cost_of:
        return mine
    cost = mine + its
    if check:
        limit.check(key, cost)
    return cost


def leave_call(host: Accounts, batches: Batches | None, task: Task[Any]) -> bool:
    """Cancels a task that runs in a batch: the others go on, and the call as long as there are any.

    False if it runs in none.
    """
    batch = None if batches is None else batches.of.get(task)
    if batch is None:
        return False
    host.ended(task, "cancelled", None)
    if not batch.members and batch._driver is not None:
        batch._driver.cancel()
    return True
