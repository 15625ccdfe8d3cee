"""Tasks in: every question about them is asked once; from then on they wait, until they leave."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Hashable, Iterable, Iterator
from math import inf
from typing import Any

from async_task_manager._run import Options
from async_task_manager.errors import (
    DeadlineExceeded,
    InvalidState,
    InvalidType,
    InvalidValue,
    QueueTimeout,
    StrategyError,
    TaskManagerError,
)
from async_task_manager.events import Observers, Queued
from async_task_manager.strategies._batch import Batch
from async_task_manager.strategies._batches import Batches
from async_task_manager.strategies._calendar import Calendar
from async_task_manager.strategies._dispatch import Dispatch
from async_task_manager.strategies._foreign import ForeignStage
from async_task_manager.strategies._gates import RouterGate
from async_task_manager.strategies._single_lane import SingleLane
from async_task_manager.strategies.base import (
    Feedback,
    GroupOrder,
    Hold,
    Item,
    Order,
    Router,
    WallTime,
)
from async_task_manager.task import Host, Task, TaskState, arrivals

__all__ = ["Intake"]

MAX_BOUNDS = 256
"""Tasks that expire, or whose time has come, in one pull: 100,000 at once must not stall the loop.
"""


class Intake(ABC):
    """The part of a chain that knows where each queued task is: held until its time has come, in a
    batch, inside a custom strategy, or in a lane.

    Each is in one of them, and leaves through here in whatever way it doesn't start.
    """

    # What the chain is made of: it says so.
    orders: tuple[Order, ...]
    groupings: tuple[GroupOrder, ...]
    holds: tuple[Hold, ...]
    feedbacks: tuple[Feedback, ...]
    batches: Batches | None
    foreign: ForeignStage | None
    dispatch: Dispatch | SingleLane
    _one_order: bool
    _whole: ForeignStage | None
    _direct: bool
    _visited: bool

    def __init__(self) -> None:
        self.now = 0.0
        """Chain time as last heard."""
        self.out: deque[tuple[Task[Any], Exception]] = deque()
        """Tasks that were rejected or expired, for the host to finish."""
        self.queued = 0
        self.observers: Observers | None = None
        """Who observes the manager."""
        self._inside: dict[Task[Any], ForeignStage] = {}
        self._held: dict[Task[Any], None] = {}
        self._offset: float | None = None
        self._bounds: Calendar[_Bound] = Calendar(_matters)
        self._wall_bounds: Calendar[_Bound] = Calendar(_matters)
        self._last_arrival = 0

    @property
    @abstractmethod
    def host(self) -> Host:
        """Whoever runs the tasks."""

    @abstractmethod
    def blame(self, error: BaseException) -> StrategyError:
        """The error of a strategy, with its name."""

    # ---- in --------------------------------------------------------------------------------------

    def add(self, task: Task[Any], now: float, *, ranks: tuple[Any, ...] | None = None) -> None:
        """Takes a task in: every question about it is asked here, before anything is charged.

        Args:
            task: A new one.
            now: The instant.
            ranks: Of a task that was queued before, in an earlier process: what `ranks` gave there.
                It keeps them, and is not counted as another arrival.

        Raises what a strategy has against it; then nothing has changed.
        """
        if task._state != "new":
            raise InvalidState(f"{task!r} was added before; a task runs once")
        if self.feedbacks and not callable(task._work):
            raise unrepeatable(task)
        if type(task._work) is Item and self.batches is None:
            raise InvalidType(
                f"{task!r} is an {task._work!r}: it needs a BulkStrategy in the chain"
            )
        self.now = now
        dispatch = self.dispatch
        if dispatch.fixed is not None:
            task._costs, task._lane = dispatch.fixed, dispatch.only
        else:
            self._plan(task)
        again = ranks is not None
        if ranks is None:
            task._rank = self._rank(task, now) if self.orders else None
        else:
            task._rank = self._one(ranks)
        if self._direct and task._options is None:
            self._accept(task, now, again)
            dispatch.join(task, now)
            if self.observers:
                self.observers.tell(Queued(now, task))
            return
        opens, opens_wall, closes = self._span(task, now)
        if self.batches is not None:
            self.batches.admit(task)
        whole = self._whole
        if whole is not None:
            # The strategy is the whole chain: what it says against the task reaches the caller.
            task._state = "queued"
            try:
                whole.strategy.add_task(task)
            except BaseException:
                task._state = "new"
                raise
            whole.fed()
            self._inside[task] = whole
        self._accept(task, now, again)
        for bound, error in closes:
            self._close(task, bound, error)
        if whole is None:
            self._hold_or_join(task, opens, opens_wall, now)
        if self.observers:
            self.observers.tell(Queued(now, task))

    def _span(
        self, task: Task[Any], now: float
    ) -> tuple[float, float, list[tuple[float, type[Exception]]]]:
        """From when on the task may start, in chain time and by the wall clock, and until when."""
        opens, opens_wall = 0.0, -inf
        closes: list[tuple[float, type[Exception]]] = []
        for hold in self.holds:
            first, last = hold.not_before(task, now), hold.not_after(task, now)
            if first != first or last != last:
                raise StrategyError(f"{hold!r}: a bound of {task!r} is NaN, not an instant")
            if isinstance(first, WallTime):
                opens_wall = max(opens_wall, first)
            else:
                opens = max(opens, first)
            closes.append((last, QueueTimeout))
        options = task._options
        if options is not None:
            if options.queue_timeout is not None:
                closes.append((now + options.queue_timeout, QueueTimeout))
            if options.deadline is not None:
                closes.append((options.deadline, DeadlineExceeded))
        return opens, opens_wall, closes

    def _accept(self, task: Task[Any], now: float, again: bool = False) -> None:
        if task.id > self._last_arrival:
            task._seq = self._last_arrival = task.id
        else:
            task._seq = self._last_arrival = next(arrivals)
        task._created = now
        task._state = "queued"
        self.queued += 1
        if self._visited:
            self._arrive(task, now, again=again)

    def _plan(self, task: Task[Any]) -> None:
        """Keys and costs, once and for all; the lane follows from them."""
        dispatch = self.dispatch
        if isinstance(dispatch, SingleLane):
            task._costs = dispatch.costs(task)
            task._lane = dispatch.only
            return
        keys, costs = [], []
        for gate in dispatch.gates:
            key, cost = gate.plan(task)
            keys.append(key)
            costs.append(cost)
        groups = tuple([order.group(task) for order in self.groupings])
        try:
            hash(groups)
        except TypeError:
            raise InvalidType(f"the groups of {task!r} must be hashable, not {groups!r}") from None
        task._costs = costs
        task._lane = dispatch.lane(tuple(keys), groups)

    def _arrive(self, task: Task[Any], now: float, *, again: bool) -> None:
        for order, group in self.groups_of(task):
            order.arrive(group, now, again)
        for router, pin in self.pins(task):
            router.arrive(pin)

    def _welcome(self, task: Task[Any], now: float) -> bool:
        """A task that a foreign stage made itself: True if it is accepted, where it is by now."""
        try:
            if self.feedbacks and not callable(task._work):
                raise unrepeatable(task)
            self._plan(task)
            task._rank = self._rank(task, now) if self.orders else None
            if self.batches is not None:
                self.batches.admit(task)
        except TaskManagerError as error:
            task._state = "rejected"
            self.out.append((task, error))
            return False
        self._accept(task, now)
        if self.observers:
            self.observers.tell(Queued(now, task))
        return True

    # ---- where it waits --------------------------------------------------------------------------

    def _hold_or_join(self, task: Task[Any], opens: float, opens_wall: float, now: float) -> None:
        if opens > now:
            self._hold(task)
            self._bounds.push(opens, _Bound(task, None, opens_wall))
        elif opens_wall > -inf and (self._offset is None or opens_wall - self._offset > now):
            self._hold(task)
            self._wall_bounds.push(opens_wall, _Bound(task, None))
        elif self.batches is not None and task in self.batches.keys:
            self.batches.join(task, now)
        else:
            self.enqueue(task, now)

    def enqueue(self, task: Task[Any], now: float) -> None:
        """Nothing but limits and custom strategies keep the task, or the batch, any more."""
        if self.foreign is None:
            self.dispatch.join(task, now)
        else:
            self._first().queue.push(task)

    def _hold(self, task: Task[Any]) -> None:
        self._held[task] = None
        if isinstance(self.dispatch, Dispatch):
            self.dispatch.share(task)

    def _first(self) -> ForeignStage:
        stage = self.foreign
        assert stage is not None
        while stage.above is not None:
            stage = stage.above
        return stage

    def is_inside(self, task: Task[Any]) -> bool:
        """Whether a custom strategy has it."""
        return task in self._inside

    def tasks(self) -> list[Task[Any]]:
        """Everything that is queued, in no particular order; of a batch, its members."""
        found = [*self._held, *self._inside, *self.dispatch.waiting()]
        if self.foreign is not None:
            found += self._first().queue
        if self.batches is not None:
            apart = [task.members if isinstance(task, Batch) else (task,) for task in found]
            found = [task for some in apart for task in some] + list(self.batches.waiting())
        return found

    def groups_of(self, task: Task[Any]) -> Iterable[tuple[GroupOrder, Hashable]]:
        """The task's group in each of the orders that have groups."""
        groups = task._lane.groups if task._lane is not None else ()
        return zip(self.groupings, groups, strict=True)

    def pins(self, task: Task[Any]) -> Iterator[tuple[Router, Hashable]]:
        """What ties the task to branches, for each router."""
        if isinstance(self.dispatch, Dispatch) and task._lane is not None:
            for gate, key in zip(self.dispatch.gates, task._lane.keys, strict=True):
                if isinstance(gate, RouterGate):
                    yield gate.router, key[0]

    # ---- ranks -----------------------------------------------------------------------------------

    def _rank(self, task: Task[Any], now: float) -> Any:
        orders = self.orders
        if self._one_order:
            rank = orders[0].rank(task, now)
        else:
            rank = tuple([order.rank(task, now) for order in orders])
        try:
            hash(rank)
        except TypeError:
            raise InvalidType(f"the rank of {task!r} must be hashable, not {rank!r}") from None
        for part in rank if type(rank) is tuple else (rank,):
            if part != part:
                raise InvalidValue(f"the rank of {task!r} must be sortable, not {part!r}")
        return rank

    def ranks(self, task: Task[Any]) -> tuple[Any, ...]:
        """The ranks of the task, one from each order."""
        return (task._rank,) if self._one_order else task._rank or ()

    def _one(self, ranks: tuple[Any, ...]) -> Any:
        """The ranks of the orders as the rank of a task."""
        return ranks[0] if self._one_order else ranks or None

    def last_rank(self, task: Task[Any]) -> Any:
        """Where the task stands that came just now, and all of its groups' before it."""
        if not self.groupings:
            return task._rank
        ranks = list(self.ranks(task))
        for order, group in self.groups_of(task):
            place = self.orders.index(order)
            ranks[place] = (order.last_rank(group, self.now), ranks[place])
        return tuple(ranks)

    def rerank(self, task: Task[Any], ranks: tuple[Any, ...], now: float) -> None:
        """Other ranks for the task, one from each order: a queued one goes to its new place."""
        rank = self._one(ranks)
        if task._state != "queued" or task in self._held or task in self._inside:
            task._rank = rank
        elif self.batches is not None and task in self.batches.of:
            task._rank = rank
            self.batches.reranked(task)
            self.host.wake()
        elif self.foreign is None or next(self.dispatch.waiting(), None) is task:
            self.dispatch.move(task, rank, now)
            self.host.wake()
        else:
            self._first().queue.move(task, rank)

    # ---- from when, until when -------------------------------------------------------------------

    def _close(self, task: Task[Any], bound: float, error: type[Exception]) -> None:
        """The task may not start at ``bound`` or later."""
        if bound == inf:
            return
        if task._options is None:
            task._options = Options()
        options = task._options
        if isinstance(bound, WallTime):
            options.not_after_wall = min(bound, options.not_after_wall)
            self._wall_bounds.push(bound, _Bound(task, error))
        else:
            options.not_after = min(bound, options.not_after)
            self._bounds.push(bound, _Bound(task, error))

    def _turn(self, now: float) -> bool:
        """Tasks whose bounds are reached: expired ones go, held ones join; False if there may be
        more of them, so that nothing may start yet.
        """
        for _ in range(MAX_BOUNDS):
            bound = self._bounds.pop(now)
            # One expression decides here and in next_wake: instant - offset <= now.
            if bound is None and self._offset is not None:
                if self._wall_bounds.next() - self._offset <= now:
                    bound = self._wall_bounds.pop(inf)
            if bound is None:
                return True
            task = bound.task
            if bound.error is None:
                del self._held[task]
                self._hold_or_join(task, -inf, bound.opens_wall, now)
            else:
                self._withdraw(task, "expired", now)
                self.out.append((task, bound.error(f"{task!r} was not started in time")))
        return False

    def next_bound(self) -> float:
        """The next instant from which on a task may start, or may no longer; inf: none."""
        bound = self._bounds.next() if self._bounds.heap else inf
        if self._wall_bounds.heap and self._offset is not None:
            bound = min(bound, self._wall_bounds.next() - self._offset)
        return bound

    # ---- out, without a start --------------------------------------------------------------------

    def _withdraw(self, task: Task[Any], state: TaskState, now: float) -> None:
        """Takes a queued task out of wherever it waits."""
        self._leave(task, now)
        if self.batches is not None and task in self.batches.of:
            task._state = state
            self.batches.lose(task, now)
        else:
            self.take_out(task, state, now)

    def take_out(self, task: Task[Any], state: TaskState, now: float) -> None:
        """The task, or the batch, is in no queue any more."""
        in_lane = self.foreign is None or next(self.dispatch.waiting(), None) is task
        task._state = state
        if task in self._held:
            del self._held[task]
        elif task in self._inside:
            del self._inside[task]  # should the stage still yield it, it is passed over
        elif in_lane:
            self.dispatch.remove(task, now)
        else:
            self._first().queue.lost()

    def _leave(self, task: Task[Any], now: float) -> None:
        """The task leaves the queue in another way than by starting."""
        self.queued -= 1
        if self.batches is not None:
            self.batches.keys.pop(task, None)
        for order, group in self.groups_of(task):
            order.leave(group, now)
        for router, pin in self.pins(task):
            router.leave(pin)

    def reject(self, task: Task[Any], error: Exception, now: float) -> None:
        """Called by the dispatch: a limit refused the task, which it has taken out, for good."""
        if self.batches is not None and type(task) is Batch:
            self.batches.reject(task, error, now)
            return
        self._leave(task, now)
        task._state = "rejected"
        self.out.append((task, error))

    # ---- when a router has other branches --------------------------------------------------------

    def _still_goes(self, task: Task[Any], *, queued: bool = True) -> bool:
        """Asks the routers anew; rejects the task where that fails. ``queued``: it stands in a
        queue, from which it has to be taken then.
        """
        assert isinstance(self.dispatch, Dispatch)
        error = self._plan_again(task, self.dispatch)
        if error is None:
            return True
        if queued:
            self._withdraw(task, "rejected", self.now)
            self.out.append((task, error))
        else:
            self.reject(task, error, self.now)
        return False

    def _plan_again(self, task: Task[Any], dispatch: Dispatch) -> TaskManagerError | None:
        """Only the router's part: what other limits were told stays. The error: the branch to which
        the task was pinned is gone, or no other takes it.
        """
        assert task._lane is not None
        keys, costs = list(task._lane.keys), list(task._costs)
        for i, gate in enumerate(dispatch.gates):
            if isinstance(gate, RouterGate):
                try:
                    keys[i], costs[i] = gate.plan_for(task, keys[i][0], lenient=True)
                except TaskManagerError as error:
                    return error
        task._costs = costs
        task._lane = dispatch.lane(tuple(keys), task._lane.groups)
        dispatch.share(task)
        return None


class _Bound:
    """An instant in the life of a queued task: it may start from there on, or not any more."""

    __slots__ = ("error", "opens_wall", "task")

    def __init__(
        self, task: Task[Any], error: type[Exception] | None, opens_wall: float = -inf
    ) -> None:
        self.task = task
        self.error = error
        self.opens_wall = opens_wall


def _matters(instant: float, bound: _Bound) -> bool:
    return bound.task._state == "queued"


def unrepeatable(task: Task[Any]) -> InvalidType:
    """The error for work that could not run again, in a chain that may want it to."""
    return InvalidType(
        f"{task!r} cannot be retried, since a coroutine runs once: pass a callable, "
        "add_task(lambda: work(...)), not add_task(work(...))"
    )
