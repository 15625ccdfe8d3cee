"""The chain: policies composed, and the tasks that wait for them."""

from __future__ import annotations

import weakref
from collections import deque
from collections.abc import Hashable, Iterator, Mapping
from contextlib import suppress
from functools import partial
from itertools import islice
from math import inf
from typing import TYPE_CHECKING, Any, NoReturn

from async_task_manager.errors import (
    DeadlineExceeded,
    InvalidState,
    InvalidType,
    InvalidValue,
    QueueTimeout,
    StrategyError,
    StrategyInUse,
    TaskManagerError,
)
from async_task_manager.events import Observers, Queued
from async_task_manager.strategies._batches import Batch, Batches
from async_task_manager.strategies._by_hand import ByHand
from async_task_manager.strategies._calendar import Calendar
from async_task_manager.strategies._dispatch import Dispatch
from async_task_manager.strategies._foreign import ForeignStage
from async_task_manager.strategies._gates import Gate, RouterGate
from async_task_manager.strategies._names import named
from async_task_manager.strategies._reasons import Waiting, waiting
from async_task_manager.strategies._single_lane import SingleLane
from async_task_manager.strategies._snapshot import snapshot_of
from async_task_manager.strategies.base import (
    ALL,
    BaseStrategy,
    Collector,
    Feedback,
    GroupOrder,
    Hold,
    Item,
    Limit,
    Order,
    RetryAt,
    Role,
    Router,
    Source,
    Usage,
    WallTime,
    _Home,
)
from async_task_manager.strategies.cost_estimator import CostEstimator
from async_task_manager.task import Host, Options, Outcome, Task, TaskState, arrivals

if TYPE_CHECKING:
    from collections.abc import Iterable

__all__ = ["Chain"]

MAX_BOUNDS = 256
"""Tasks that expire, or whose time has come, in one pull: 100,000 at once must not stall the loop.
"""


MAX_KEYS = 100
"""Keys of one limit whose usage is told: it is for people, and there may be a million."""


class Chain(BaseStrategy):
    """A conjunction of strategies: a task starts at the earliest instant at which all agree.

    Holds and limits allow the same wherever they stand; orders compare left to right; limits are
    asked in their order, and a task that one refuses doesn't block the limits behind it. A
    strategy that speaks the four methods only (a *foreign* one) may stand anywhere: it gets tasks
    in the order of the orders before it. A chain inside a chain is its stages.

    Raises:
        InvalidType: a stage is no strategy.
        StrategyInUse: a stage belongs to another chain already.
    """

    def __init__(self, *stages: BaseStrategy) -> None:
        self.stages: tuple[BaseStrategy, ...] = tuple(self._flat(stages))
        """The strategies, in order, without nesting."""
        policies = [s for s in self.stages if isinstance(s, Role) and not is_foreign(s)]
        self.orders = tuple(s for s in policies if isinstance(s, Order))
        self.groupings = tuple(s for s in self.orders if isinstance(s, GroupOrder))
        self._one_order = len(self.orders) == 1 and not self.groupings
        """The rank of a task is that of the order; else a tuple, of one from each."""
        self.inherited = tuple(i for i, order in enumerate(self.orders) if order.inherits)
        """The places of orders whose ranks pass to what a task waits for."""
        self.holds = tuple(s for s in policies if isinstance(s, Hold))
        self.feedbacks = tuple(s for s in policies if isinstance(s, Feedback))
        self.sources = tuple(s for s in policies if isinstance(s, Source))
        self.gated = tuple(s for s in policies if isinstance(s, Limit | Router))
        self.batches = self._batching(policies)
        self._inside: dict[Task[Any], ForeignStage] = {}
        self.foreign = self._pipeline()
        self._whole = self.foreign if len(self.stages) == 1 else None
        self.dispatch = self._machine()
        self._direct = not self.holds and self.foreign is None and self.batches is None
        """A task without time limits of its own joins its lane at once."""
        self.stamps = any(
            type(policy).started is not Limit.started
            for policy in self._policies()
            if isinstance(policy, Limit)
        ) or any(isinstance(stage, Router) for stage in self.gated)
        """Limits want to know of first instructions (branches may bring some at any time)."""
        self._visited = bool(self.groupings) or any(isinstance(s, Router) for s in policies)
        """Policies exist that want to know who comes and goes."""
        self._bound: dict[int, Role] = {}
        self._bind()

        self._by_hand = ByHand(self)
        self._manager: weakref.ref[Host] | None = None
        self.now = 0.0
        """Chain time as last heard."""
        self.out: deque[tuple[Task[Any], Exception]] = deque()
        """Tasks that were rejected or expired, for the host to finish."""
        self.queued = 0
        self.running = 0
        self.observers: Observers | None = None
        """Who observes the manager."""
        self._offset: float | None = None
        self._bounds: Calendar[_Bound] = Calendar(_matters)
        self._wall_bounds: Calendar[_Bound] = Calendar(_matters)
        self._held: dict[Task[Any], None] = {}
        self._last_arrival = 0
        self._absorbed = False

    # ---- composition ------------------------------------------------------------------------

    def _flat(self, stages: Iterable[object]) -> Iterator[BaseStrategy]:
        for stage in stages:
            if isinstance(stage, Chain) and not is_foreign(stage):
                stage.absorb()
                yield from stage.stages
            elif isinstance(stage, BaseStrategy):
                if isinstance(stage, Role) and stage._private is not None:
                    stage._private.absorb()
                    stage._private = None
                yield stage
            else:
                raise InvalidType(f"a stage of a chain must be a strategy, not {stage!r}")

    def absorb(self) -> None:
        """Gives the stages up to an outer chain; only while nothing waits here."""
        if self.queued or self.running or self.host is not self._by_hand:
            raise StrategyInUse(f"{self!r} is in use and cannot become a part of another chain")
        self._absorbed = True
        for policy in self._bound.values():
            policy._home = None

    def _policies(self) -> Iterator[Role]:
        for stage in self.stages:
            if isinstance(stage, Role) and not is_foreign(stage):
                yield stage
                if isinstance(stage, Router):
                    for branch in stage.all_branches(None):
                        yield from branch.limits

    def _pipeline(self) -> ForeignStage | None:
        """The last foreign stage, linked to those above it."""
        last: ForeignStage | None = None
        for stage in self.stages:
            if is_foreign(stage):
                last = ForeignStage(stage, last, self._inside, self._welcome)
        return last

    def _batching(self, policies: Iterable[Role]) -> Batches | None:
        collectors = [policy for policy in policies if isinstance(policy, Collector)]
        if len(collectors) > 1:
            raise InvalidValue(
                f"a chain takes one strategy that makes batches, not {len(collectors)}: "
                f"{collectors}; give one a key, and let its handler tell the items apart"
            )
        return Batches(self, collectors[0]) if collectors else None

    def _machine(self) -> Dispatch | SingleLane:
        plain = not self.groupings and all(
            isinstance(stage, Limit) and stage.key is None and type(stage).key_of is Limit.key_of
            for stage in self.gated
        )
        if plain:
            return SingleLane(self, self.gated)  # type: ignore[arg-type]  # all are limits
        return Dispatch(
            self,
            tuple(
                RouterGate(stage, i) if isinstance(stage, Router) else Gate(stage, i)
                for i, stage in enumerate(self.gated)
            ),
        )

    def _bind(self) -> None:
        """Listens to every policy, and lets go of those that are no part any more."""
        mine = {id(policy): policy for policy in self._policies()}
        all_of_them = [*self._policies(), *self.foreigners()]
        if len(all_of_them) > len({id(strategy) for strategy in all_of_them}):
            raise StrategyInUse("the same strategy stands twice in a chain; make a second one")
        for policy in mine.values():
            owner = policy._home() if policy._home is not None else None
            if owner is not None and owner is not self:
                raise StrategyInUse(
                    f"{policy!r} belongs to another chain: two that count apart would both "
                    "overshoot; give each its own, or put both under one manager"
                )
        for gone in self._bound.keys() - mine.keys():
            self._bound[gone]._home = None
        for policy in mine.values():
            policy._home = _Home(self)
        self._bound = mine
        self._by_wall = tuple(policy for policy in mine.values() if policy.uses_wall_time)
        self.sampled = tuple(p for p in mine.values() if type(p).sampling is not Role.sampling)
        """Policies for which something may have to be measured."""

    @classmethod
    def of(cls, strategy: BaseStrategy) -> Chain:
        """The strategy as a chain: itself, the private one in which it has tasks, or a new one."""
        if isinstance(strategy, Chain) and not is_foreign(strategy):
            return strategy
        if not isinstance(strategy, BaseStrategy):
            raise InvalidType(f"a manager needs a strategy, not {strategy!r}")
        if isinstance(strategy, Role) and strategy._private is not None:
            return strategy._private
        return cls(strategy)

    def __repr__(self) -> str:
        return f"Chain({', '.join(map(repr, self.stages))})"

    @property
    def host(self) -> Host:
        """Whoever runs the tasks: a manager, or a person with the four methods."""
        manager = self._manager() if self._manager is not None else None
        return self._by_hand if manager is None else manager

    def hosted_by(self, manager: Host) -> None:
        """The manager runs the tasks from now on.

        Raises:
            StrategyInUse: another one does.
        """
        if self._absorbed:
            raise StrategyInUse(f"{self!r} has become a part of another chain")
        if self.host is not self._by_hand:
            raise StrategyInUse(f"{self!r} belongs to another manager; give each its own")
        if self.running:
            raise StrategyInUse(f"{self!r} has tasks running that were started by hand")
        self._manager = weakref.ref(manager)

    # ---- intake -----------------------------------------------------------------------------

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

    def _arrive(self, task: Task[Any], now: float, *, again: bool) -> None:
        for order, group in self.groups_of(task):
            order.arrive(group, now, again)
        for router, pin in self.pins(task):
            router.arrive(pin)

    def _leave(self, task: Task[Any], now: float) -> None:
        """The task leaves the queue in another way than by starting."""
        self.queued -= 1
        if self.batches is not None:
            self.batches.keys.pop(task, None)
        for order, group in self.groups_of(task):
            order.leave(group, now)
        for router, pin in self.pins(task):
            router.leave(pin)

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

    # ---- the next task ----------------------------------------------------------------------

    def pull(self, now: float) -> Task[Any] | None:
        """The task to start at this instant, its permits acquired; None if there is none.

        What was rejected or expired meanwhile is in `out`. A pull does a bounded number of steps:
        `next_wake` says ``now`` where it has not finished.

        Raises:
            StrategyError: a strategy raised or broke the contract.
        """
        self.now = now
        try:
            if (self._bounds.heap or self._wall_bounds.heap) and not self._turn(now):
                return None
            if self.sources:
                self._collect(now)
            if self.batches is not None and not self.batches.turn(now):
                return None
            if self.foreign is None:
                task = self.dispatch.pull(now)
            else:
                task = self._pull_foreign(self.foreign, now)
        except (StrategyError, KeyboardInterrupt, SystemExit):
            raise
        except BaseException as error:  # a CancelledError, too: it would pass for one of the loop
            raise self.blame(error) from error
        if task is not None:
            self.queued -= self.batches.begin(task, now) if type(task) is Batch else 1  # type: ignore[union-attr]  # who made it
            self.running += 1
        return task

    def _collect(self, now: float) -> None:
        for source in self.sources:
            if source.next_due(now) <= now:
                for task in source.emit(now):
                    self._adopt(task, source, now)

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

    def _adopt(self, task: object, source: Source, now: float) -> None:
        """A task that a source brought along: taken in as if it were added now."""
        if not isinstance(task, Task) or task._state != "new":
            raise StrategyError(f"{source!r}: emit must give new Tasks, not {task!r}")
        try:
            self.add(task, now)
        except TaskManagerError as error:
            task._state = "rejected"
            self.out.append((task, error))

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

    def _pull_foreign(self, stage: ForeignStage, now: float) -> Task[Any] | None:
        while True:
            task = self.dispatch.pull(now)
            if task is not None:
                return task
            if next(self.dispatch.waiting(), None) is not None:
                return None  # the slot is taken
            given = stage.next(now)
            if given is None:
                return None
            if self.batches is not None and given in self.batches.keys:
                given = self.batches.alone(given, now)  # the strategy made it
            self.dispatch.join(given, now)

    def lapse(self, now: float) -> float:
        """What is due happens without a pull: tasks whose time has passed are in `out`. The next
        such instant.
        """
        self.now = now
        return self.next_bound() if self._turn(now) else now

    def next_bound(self) -> float:
        """The next instant from which on a task may start, or may no longer; inf: none."""
        bound = self._bounds.next() if self._bounds.heap else inf
        if self._wall_bounds.heap and self._offset is not None:
            bound = min(bound, self._wall_bounds.next() - self._offset)
        return bound

    def next_wake(self, now: float) -> float:
        """When to pull again if nothing happens until then: now, an instant, or inf."""
        wake = self.dispatch.next_wake(now)
        if self._bounds.heap or self._wall_bounds.heap:
            wake = min(wake, self.next_bound())
        for source in self.sources:
            wake = min(wake, source.next_due(now))
        if self.batches is not None:
            wake = min(wake, self.batches.next_wake(now))
        if self.foreign is not None and next(self.dispatch.waiting(), None) is None:
            wake = min(wake, self.foreign.wake(now))
        return wake

    def asking(self) -> Iterator[ForeignStage]:
        """Foreign stages that were asked for a task, and whose interval has to be asked for now."""
        stage = self.foreign
        while stage is not None:
            if stage.asking:
                yield stage
            stage = stage.above

    # ---- what happens to a task -------------------------------------------------------------

    def begun(self, task: Task[Any], now: float) -> bool:
        """The work's first instruction runs; True if that may let others start."""
        self.now = now
        return self.dispatch.begun(task, now)

    def finish(self, task: Task[Any], outcome: Outcome, now: float, *, last: bool = False) -> bool:
        """An attempt has ended: permits go back; True if the task is to run again, and queued for
        it. Not if it was the ``last``, whatever a feedback says.

        Of a batch, this is the end of the call; each of its members ends by itself after that.
        """
        self.now = now
        batches = self.batches
        if batches is None or not batches.left(task):
            self.running -= 1
            if outcome.cost is not None:
                self._settle_late(task, outcome, now)
            self.dispatch.release(task, outcome, now)
            if type(task) is Batch:
                batches.calls -= 1  # type: ignore[union-attr]  # who made it
                return False
        elif outcome.kind == "failure" and task.provider is not None:
            task._progress().failed_at_branch(task.provider)
        if self.feedbacks and self._again(task, outcome, now, last):
            return True
        if batches is not None:
            batches.keys.pop(task, None)
        return False

    def _again(self, task: Task[Any], outcome: Outcome, now: float, last: bool) -> bool:
        answers = [
            checked_retry(feedback, answer)
            for feedback in self.feedbacks
            if (answer := feedback.review(task, outcome, now)) is not None
        ]
        if not answers or outcome.kind == "cancelled" or last:
            return False
        again = max(now, *(answer.instant for answer in answers))
        wall = max(answer.wall for answer in answers)
        options = task._options
        if options is not None and self._too_late(options, again, wall):
            return False
        task._tried(outcome.error)
        task._state = "queued"
        self.queued += 1
        if self._visited:
            self._arrive(task, now, again=True)
        if isinstance(self.dispatch, Dispatch) and self.dispatch.routed:
            error = self._plan_again(task, self.dispatch)  # branches may have come or gone
            if error is not None:
                self.reject(task, error, now)
                return True
        if options is not None:
            for bound in (options.not_after, options.not_after_wall):
                late = DeadlineExceeded if bound == options.deadline else QueueTimeout
                self._close(task, bound, late)
        self._hold_or_join(task, again, wall, now)
        return True

    def _too_late(self, options: Options, again: float, wall: float) -> bool:
        """Whether a retry at this instant, and not before this wall time, could never start."""
        offset = self._offset
        if offset is None:
            return options.not_after <= again or options.not_after_wall <= wall
        again = max(again, wall - offset)
        return options.not_after <= again or options.not_after_wall - offset <= again

    def settle(self, task: Task[Any], actual: Any, now: float) -> None:
        """The actual cost of a running task is known: a number, or a dict of units."""
        self.now = now

        learning: dict[int, tuple[CostEstimator, Any]] = {}

        def actual_of(limit: Limit) -> Any:
            cost = limit.cost
            if cost is None or isinstance(cost, int | float):
                return None  # it counts tasks
            value = actual
            if isinstance(actual, dict):
                unit = cost.unit if isinstance(cost, CostEstimator) else cost
                value = actual.get(unit) if isinstance(unit, str) else None
            if value is not None and isinstance(cost, CostEstimator):
                learning[id(cost)] = cost, value
            return value

        self.dispatch.settle(task, actual_of, now)
        for estimator, value in learning.values():
            if isinstance(task, Batch):
                estimator.settled_together(task.members, value)
            else:
                estimator.settled(task, value)

    def _settle_late(self, task: Task[Any], outcome: Outcome, now: float) -> None:
        """The outcome brings an actual cost: told by the work before, or by whoever ran it now."""
        if outcome.started and task._run is not None and task._run.actual is None:
            self.settle(task, outcome.cost, now)

    def observe(self, task: Task[Any], sample: Any, now: float) -> None:
        """A running task was told something, such as the headers of a response: whatever limits it
        holds a grant of hear of it.
        """
        self.now = now
        if isinstance(sample, Mapping) and self._offset is not None:
            from async_task_manager.headers import dated  # slow to load, and few need it

            sample = dated(sample, now + self._offset)
        self.dispatch.observe(task, sample, now)

    def cancel(self, task: Task[Any], now: float, state: TaskState = "cancelled") -> None:
        """A queued task shall not run: it leaves whatever it waits for at once."""
        self.now = now
        self._withdraw(task, state, now)

    def _withdraw(self, task: Task[Any], state: TaskState, now: float) -> None:
        """Takes a queued task out of wherever it waits."""
        self._leave(task, now)
        if self.batches is not None and task in self.batches.of:
            task._state = state
            self.batches.lose(task, now)
        else:
            self.take_out(task, state, now)

    def is_inside(self, task: Task[Any]) -> bool:
        """Whether a custom strategy has it."""
        return task in self._inside

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

    def reject(self, task: Task[Any], error: Exception, now: float) -> None:
        """Called by the dispatch: a limit refused the task, which it has taken out, for good."""
        if self.batches is not None and type(task) is Batch:
            self.batches.reject(task, error, now)
            return
        self._leave(task, now)
        task._state = "rejected"
        self.out.append((task, error))

    def undo(
        self, task: Task[Any], taken: Iterable[tuple[Limit, Any]], error: Exception, now: float
    ) -> NoReturn:
        """Called by the dispatch: a limit raised instead of granting. The others get back what they
        granted; the task, which it has taken out, gets the error.
        """
        never_ran = Outcome("cancelled", None, now)
        for limit, grant in taken:
            with suppress(Exception):  # one error is told
                limit.release(grant, never_ran, now)
        blamed = self.blame(error)
        self.reject(task, blamed, now)
        raise blamed from error

    # ---- what changes from outside ----------------------------------------------------------

    def set_wall_offset(self, offset: float, now: float) -> None:
        """Wall time is chain time plus ``offset``, from now on: at the start and after steps."""
        first = self._offset is None
        self._offset = offset
        self.now = max(self.now, now)
        for policy in tuple(self._bound.values()):
            if policy.uses_wall_time:
                policy.set_wall_offset(offset, now)
                self.policy_changed(policy, ALL)
        if first and any(order.uses_wall_time for order in self.orders):
            # Of what was added before the start, nobody could tell how late that is.
            for task in self.tasks():
                ranks = [
                    order.rank(task, now) if order.uses_wall_time else rank
                    for order, rank in zip(self.orders, self.ranks(task), strict=True)
                ]
                self.rerank(task, tuple(ranks), now)

    @property
    def watches_wall_time(self) -> bool:
        """Whether something that waits depends on the wall clock."""
        if self._wall_bounds.heap:
            return True
        if not self._by_wall:
            return False
        return any(policy.awaits_wall_time(self.queued) for policy in self._by_wall)

    @property
    def makes_tasks(self) -> bool:
        """Whether tasks may appear that nobody added."""
        return bool(self.sources) or self.foreign is not None

    def policy_changed(self, policy: Role, key: Hashable) -> None:
        """A policy says that its answers may differ from now on."""
        dispatch = self.dispatch
        if self.batches is not None and policy is self.batches.collector:
            self.batches.changed()
        if isinstance(policy, Source):  # it may have waited to be told the time
            if policy.uses_wall_time:
                self.host.look_at_wall()
            policy.next_due(self.host.time())
        if isinstance(policy, Limit):
            dispatch.limit_changed(policy, key)
        if isinstance(dispatch, Dispatch):
            if isinstance(policy, Router):
                dispatch.router_changed(policy)
            if isinstance(policy, GroupOrder):
                dispatch.order_changed(policy, key)
        self.host.wake()

    def policy_restructured(self, policy: Role) -> None:
        """A router has other branches: every waiting task is asked about them anew."""
        dispatch = self.dispatch
        assert isinstance(dispatch, Dispatch)
        before = self._bound
        self._bind()
        for number in self._bound.keys() - before.keys():
            newcomer = self._bound[number]
            if newcomer.uses_wall_time and self._offset is not None:
                newcomer.set_wall_offset(self._offset, self.now)
        for task in dispatch.emptied():
            if self.batches is not None and isinstance(task, Batch):
                self.batches.loosen(task)
            elif self._still_goes(task, queued=False):
                dispatch.join(task, self.now)
        elsewhere = [*self._held, *self._inside]
        if self.foreign is not None:
            elsewhere += self._first().queue
        for task in elsewhere:
            if self.batches is not None and isinstance(task, Batch):
                if self.is_inside(task):
                    self.batches.replan(task, self.now, self._still_goes)
                else:
                    self.take_out(task, "cancelled", self.now)
                    self.batches.loosen(task)
            else:
                self._still_goes(task)
        if self.batches is not None:
            self.batches.bind_anew(self.now, partial(self._still_goes, queued=False))
        self.host.wake()

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

    # ---- what people ask --------------------------------------------------------------------

    def __getitem__(self, name: str | int) -> Any:
        """A stage, or a provider of a router among them.

        Args:
            name: A provider's name; or that of a stage's class, also as people write it
                ("sliding_window", "SlidingWindow"); or its place, from 0.

        Raises:
            InvalidValue: nothing has that name, or several stages have.
            IndexError: there is no such place.
        """
        return self.stages[name] if isinstance(name, int) else named(self, name)

    def __iter__(self) -> Iterator[BaseStrategy]:
        return iter(self.stages)

    def explain(self, task: Task[Any], now: float) -> Waiting:
        """Why a task that is queued here has not started: its place in line, and what binds.

        O(tasks that wait for the same).
        """
        return waiting(self, task, now)

    def snapshot(self, running: Iterable[Task[Any]] = ()) -> Chain:
        """A copy of the chain as it stands, to be run ahead: policies in the same state, and a
        ghost of every queued task, with the same id, work and metadata and a state of its own.

        Args:
            running: The tasks that run, whose ghosts can be finished there. Without them, what they
                hold stays taken.

        Raises:
            InvalidState: a stage speaks the four methods only (nobody knows what it would do), or
                cannot be copied.

        Some 10 microseconds per queued task. Listeners are not copied.
        """
        return snapshot_of(self, running)[0]

    def usage(self, now: float) -> dict[str, Any]:
        """Per limit its `Usage`; per limit with a key one for each key, of the first hundred that
        are in use; per branch of a router a dict of these. Namesakes are numbered.
        """
        return self._usages(self.gated, now)

    def _usages(
        self, stages: Iterable[Limit | Router], now: float
    ) -> dict[str, Usage | dict[Any, Any]]:
        found: dict[str, Usage | dict[Any, Any]] = {}

        def put(name: str, usage: Usage | dict[Any, Any]) -> None:
            number = sum(other == name or other.startswith(f"{name} #") for other in found)
            found[f"{name} #{number + 1}" if number else name] = usage

        for stage in stages:
            if isinstance(stage, Router):
                for branch in stage.all_branches(None):
                    put(branch.name, self._usages(branch.limits, now))
            elif stage.key is None:
                put(repr(stage), stage.usage(None, now))
            else:
                keys = islice(stage.keys(), MAX_KEYS)
                put(repr(stage), {key: stage.usage(key, now) for key in keys})
        return found

    def blame(self, error: BaseException, strategy: BaseStrategy | None = None) -> StrategyError:
        """The error of a strategy, with its name as far as the traceback tells it."""
        if isinstance(error, StrategyError):
            return error
        mine = {id(stage) for stage in self.stages} | self._bound.keys()
        traceback = error.__traceback__
        while strategy is None and traceback is not None:
            holder = traceback.tb_frame.f_locals.get("self")
            if id(holder) in mine:
                strategy = holder
            traceback = traceback.tb_next
        blamed = StrategyError(f"{strategy or self!r} raised {error!r}")
        blamed.__cause__ = error
        return blamed

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

    def foreigners(self) -> list[BaseStrategy]:
        """The stages that speak the four methods only."""
        return [stage for stage in self.stages if is_foreign(stage)]

    def tasks(self) -> list[Task[Any]]:
        """Everything that is queued, in no particular order; of a batch, its members."""
        found = [*self._held, *self._inside, *self.dispatch.waiting()]
        if self.foreign is not None:
            found += self._first().queue
        if self.batches is not None:
            apart = [task.members if isinstance(task, Batch) else (task,) for task in found]
            found = [task for some in apart for task in some] + list(self.batches.waiting())
        return found

    def flush(self, now: float) -> bool:
        """Closes every batch that waits for more tasks; False if none does."""
        return self.batches is not None and self.batches.flush(now)

    def hurry(self, by: int) -> None:
        """1: somebody waits for all to be done, so that no batch waits for tasks that may never
        come; -1: no longer.
        """
        if self.batches is not None:
            self.batches.hurry(by)
            self.host.wake()

    @property
    def calls(self) -> int:
        """How many of the running tasks are batches."""
        return 0 if self.batches is None else self.batches.calls

    def clear(self, now: float) -> list[Task[Any]]:
        """Takes out everything that is queued."""
        tasks = self.tasks()
        for task in tasks:
            self._withdraw(task, "rejected", now)
        return tasks

    # ---- by hand: the four methods ----------------------------------------------------------

    def add_task(self, task: Task[Any]) -> None:
        """Takes a task in at this instant, by the host's clock."""
        if self._absorbed:
            raise StrategyInUse(f"{self!r} has become a part of another chain: add tasks there")
        host = self.host
        self.add(task, host.time())
        host.wake()

    def get_next_task(self) -> Task[Any] | None:
        """The task to start now; its permits go back when its ``run()`` ends."""
        if self.host is not self._by_hand:
            raise StrategyInUse(f"{self!r} belongs to a manager, which runs its tasks")
        self._by_hand.start()
        task = self.pull(self._by_hand.time())
        while self.out:
            gone, error = self.out.popleft()
            gone._end(gone._state, error)
        return task

    async def get_sleep_interval(self) -> float | None:
        """Seconds until `get_next_task` may give something; None: only an event can change that."""
        for stage in tuple(self.asking()):
            interval = await stage.strategy.get_sleep_interval()
            stage.answer(interval, self.host.time(), 0.01)
        now = self.host.time()
        wake = self.next_wake(now)
        return None if wake == inf else max(0.0, wake - now)


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


def is_foreign(strategy: BaseStrategy) -> bool:
    """Whether a strategy brings its own queue, whatever it derives from."""
    kind = type(strategy)
    for base in (Role, Chain):
        if isinstance(strategy, base):
            return (
                kind.add_task is not base.add_task or kind.get_next_task is not base.get_next_task
            )
    return True


def unrepeatable(task: Task[Any]) -> InvalidType:
    """The error for work that could not run again, in a chain that may want it to."""
    return InvalidType(
        f"{task!r} cannot be retried, since a coroutine runs once: pass a callable, "
        "add_task(lambda: work(...)), not add_task(work(...))"
    )


def checked_retry(feedback: Feedback, answer: object) -> RetryAt:
    """What a feedback answers, if it names an instant at which the task runs again."""
    # NaN isn't less than anything, either.
    if not isinstance(answer, RetryAt) or not (answer.instant < inf and answer.wall < inf):
        raise StrategyError(
            f"{feedback!r}: review must give None, or RetryAt with a finite instant, not {answer!r}"
        )
    return answer
