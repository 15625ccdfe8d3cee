"""The chain: policies composed, and the tasks that wait for them."""

from __future__ import annotations

import weakref
from collections.abc import Hashable, Iterator
from functools import partial
from math import inf
from typing import TYPE_CHECKING, Any

from async_task_manager.errors import (
    InvalidType,
    InvalidValue,
    StrategyError,
    StrategyInUse,
    TaskManagerError,
)
from async_task_manager.strategies._batch import Batch
from async_task_manager.strategies._batches import Batches
from async_task_manager.strategies._by_hand import ByHand
from async_task_manager.strategies._dispatch import Dispatch
from async_task_manager.strategies._foreign import ForeignStage
from async_task_manager.strategies._gates import Gate, RouterGate
from async_task_manager.strategies._names import named
from async_task_manager.strategies._outcomes import Outcomes
from async_task_manager.strategies._reasons import Waiting, waiting
from async_task_manager.strategies._single_lane import SingleLane
from async_task_manager.strategies._snapshot import snapshot_of
from async_task_manager.strategies._usages import usages
from async_task_manager.strategies.base import (
    ALL,
    BaseStrategy,
    Collector,
    Feedback,
    GroupOrder,
    Hold,
    Limit,
    Order,
    Role,
    Router,
    Source,
    _Home,
)
from async_task_manager.task import Host, Task, TaskState

if TYPE_CHECKING:
    from collections.abc import Iterable

__all__ = ["Chain"]


class Chain(Outcomes, BaseStrategy):
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
        super().__init__()
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
        self._absorbed = False

    # ---- composition -----------------------------------------------------------------------------

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

    def foreigners(self) -> list[BaseStrategy]:
        """The stages that speak the four methods only."""
        return [stage for stage in self.stages if is_foreign(stage)]

    # ---- the next task ---------------------------------------------------------------------------

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
            if task is not None:
                self._handed_out(task, now)
        except (StrategyError, KeyboardInterrupt, SystemExit):
            raise
        except BaseException as error:  # a CancelledError, too: it would pass for one of the loop
            raise self.blame(error) from error
        return task

    def _handed_out(self, task: Task[Any], now: float) -> None:
        """The task leaves the queue to be run: of a batch, all its members do."""
        self.running += 1
        parts: Iterable[Task[Any]] = (task,)
        if self.batches is not None and isinstance(task, Batch):
            self.batches.begin(task)
            parts = task.members
            self.queued += 1 - len(task.members)
        self.queued -= 1
        if self._visited:
            for part in parts:
                for order, group in self.groups_of(part):
                    order.leave(group, now)
                for router, pin in self.pins(part):
                    router.leave(pin)
            if self.groupings:
                assert isinstance(self.dispatch, Dispatch) and task._lane is not None
                self.dispatch.regroup(task._lane, now)

    def _collect(self, now: float) -> None:
        for source in self.sources:
            if source.next_due(now) <= now:
                for task in source.emit(now):
                    self._adopt(task, source, now)

    def _adopt(self, task: object, source: Source, now: float) -> None:
        """A task that a source brought along: taken in as if it were added now."""
        if not isinstance(task, Task) or task._state != "new":
            raise StrategyError(f"{source!r}: emit must give new Tasks, not {task!r}")
        try:
            self.add(task, now)
        except TaskManagerError as error:
            task._state = "rejected"
            self.out.append((task, error))

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

    def cancel(self, task: Task[Any], now: float, state: TaskState = "cancelled") -> None:
        """A queued task shall not run: it leaves whatever it waits for at once."""
        self.now = now
        self._withdraw(task, state, now)

    def clear(self, now: float) -> list[Task[Any]]:
        """Takes out everything that is queued."""
        tasks = self.tasks()
        for task in tasks:
            self._withdraw(task, "rejected", now)
        return tasks

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

    # ---- what changes from outside ---------------------------------------------------------------

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

    # ---- what people ask -------------------------------------------------------------------------

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
        return usages(self.gated, now)

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

    # ---- by hand: the four methods ---------------------------------------------------------------

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


def is_foreign(strategy: BaseStrategy) -> bool:
    """Whether a strategy brings its own queue, whatever it derives from."""
    kind = type(strategy)
    for base in (Role, Chain):
        if isinstance(strategy, base):
            return (
                kind.add_task is not base.add_task or kind.get_next_task is not base.get_next_task
            )
    return True
