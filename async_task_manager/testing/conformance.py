"""The contract of a strategy as checks that any strategy, ours or yours, can be put through."""

from __future__ import annotations

import asyncio
import copy
import json
import math
import random
from collections.abc import Callable, Hashable, Iterator
from functools import partial
from typing import Any

from async_task_manager.errors import TaskRejected
from async_task_manager.manager import TaskManager
from async_task_manager.strategies.base import (
    BaseStrategy,
    Feedback,
    GroupOrder,
    Hold,
    Limit,
    Order,
    RetryAt,
    Role,
    Router,
)
from async_task_manager.strategies.chain import Chain, is_foreign
from async_task_manager.strategies.concurrent_limit import ConcurrentLimitStrategy
from async_task_manager.strategies.priority_queue import PriorityQueueStrategy
from async_task_manager.task import Outcome, Task
from async_task_manager.testing.virtual_time import run_virtual

__all__ = ["check_strategy"]

Metadata = Callable[[int], dict[str, Any]]

TASKS = 12
ROUNDS = 200


def check_strategy(
    factory: Callable[[], BaseStrategy],
    *,
    metadata: Metadata = lambda _: {},
    within: float = 3600.0,
) -> None:
    """Puts a strategy through the contract; returns if it holds.

    Any strategy, alone and at every place in a chain: each task that is added runs exactly once;
    failures, cancels and restarts lose and leak nothing. A policy also by its roles: a limit is
    pure and exact, gives back what it took, and survives a dump; ranks are fixed and sortable;
    copies are independent.

    Args:
        factory: Makes a new strategy each time it is called.
        metadata: What the i-th task carries, for strategies that need some.
        within: Virtual seconds in which twelve tasks of up to 0.3 s must be done.

    Raises:
        AssertionError: the contract is broken; the message says where.
    """
    strategy = factory()
    assert isinstance(strategy, BaseStrategy), f"{strategy!r} is not a BaseStrategy"
    assert factory() is not strategy, "the factory must make a new strategy each time"
    assert strategy.get_next_task() is None, "a strategy without tasks must give None"
    for place, build in _places():
        for life in (_all_run_once, _failures_and_cancels, _restarts):
            try:
                run_virtual(life(build(factory()), metadata, within))
            except AssertionError as error:
                raise AssertionError(f"{factory()!r} {place}, {life.__doc__}: {error}") from error
    if isinstance(strategy, Role) and not is_foreign(strategy):
        _check_copies(factory)
        tasks = [Task(_nothing, metadata(i)) for i in range(TASKS)]
        if isinstance(strategy, Order):
            _check_order(strategy, tasks)
        if isinstance(strategy, Hold):
            _check_hold(strategy, tasks)
        if isinstance(strategy, Router):
            _check_router(strategy, tasks)
        if isinstance(strategy, Limit):
            _check_limit(factory, tasks)
        if isinstance(strategy, Feedback):
            _check_feedback(strategy, tasks)


def _places() -> Iterator[tuple[str, Callable[[BaseStrategy], BaseStrategy]]]:
    yield "alone", lambda strategy: strategy
    yield "first", lambda strategy: Chain(strategy, ConcurrentLimitStrategy(2))
    yield (
        "in the middle",
        lambda strategy: Chain(PriorityQueueStrategy(), strategy, ConcurrentLimitStrategy(3)),
    )
    yield "last", lambda strategy: Chain(PriorityQueueStrategy(), strategy)


async def _nothing() -> None:
    pass


# ---- whole lives, in a manager ------------------------------------------------------------------


async def _done(manager: TaskManager, tasks: list[Task[Any]], within: float) -> None:
    try:
        async with asyncio.timeout(within):
            await manager.join()
    except TimeoutError:
        waiting = [task for task in tasks if not task.done()]
        raise AssertionError(f"after {within} s there still wait {waiting}") from None


async def _all_run_once(strategy: BaseStrategy, metadata: Metadata, within: float) -> None:
    """Every task runs once"""
    runs: list[int] = []

    async def work(i: int) -> int:
        runs.append(i)
        await asyncio.sleep(i % 4 / 10)
        return i

    manager = TaskManager(strategy, poll_interval=0.5)
    tasks = [manager.add_task(partial(work, i), metadata(i)) for i in range(TASKS // 2)]
    await manager.idle()
    for i in range(TASKS // 2, TASKS):
        await asyncio.sleep(0.05)
        tasks.append(manager.add_task(partial(work, i), metadata(i)))
    await _done(manager, tasks, within)
    await manager.stop()
    assert sorted(runs) == list(range(TASKS)), f"ran {sorted(runs)} of {TASKS} tasks"
    assert [await task for task in tasks] == list(range(TASKS)), "a result went astray"


async def _failures_and_cancels(strategy: BaseStrategy, metadata: Metadata, within: float) -> None:
    """Failures and cancels leak nothing"""

    async def work(i: int) -> None:
        await asyncio.sleep(0.1)
        if i % 3 == 0:
            raise ZeroDivisionError(i)

    manager = TaskManager(strategy, poll_interval=0.5)
    tasks = [manager.add_task(partial(work, i), metadata(i)) for i in range(TASKS)]
    for task in tasks:
        task.add_done_callback(lambda done: done.state == "failed" and done.exception())
    tasks[1].cancel()  # before the start
    await manager.idle()
    tasks[2].cancel()
    for steps in range(6):
        await asyncio.sleep(0)
        running = [task for task in tasks if task.state == "running"]
        if running and steps > 1:
            running[0].cancel()  # before or in the middle of its work
    await _done(manager, tasks, within)
    more = [manager.add_task(_nothing, metadata(i)) for i in range(TASKS)]
    await _done(manager, more, within)
    await manager.stop()
    assert all(task.state == "succeeded" for task in more), "what failed took permits with it"
    assert manager.stats().queued == manager.stats().running == 0, "tasks are left over"


async def _restarts(strategy: BaseStrategy, metadata: Metadata, within: float) -> None:
    """Stops and starts lose nothing"""
    runs = 0

    async def work() -> None:
        nonlocal runs
        runs += 1
        await asyncio.sleep(0.1)

    manager = TaskManager(strategy, poll_interval=0.5)
    tasks = [manager.add_task(work, metadata(i)) for i in range(TASKS)]
    for _ in range(3):
        await manager.idle()
        await asyncio.sleep(0.15)
        await manager.stop()
    await manager.idle()
    await _done(manager, tasks, within)
    await manager.stop()
    assert runs == TASKS, f"{runs} runs of {TASKS} tasks"


# ---- policies, by their roles -------------------------------------------------------------------


def _check_copies(factory: Callable[[], BaseStrategy]) -> None:
    strategy = factory()
    chain = Chain(strategy)
    twin = copy.deepcopy(strategy)
    assert type(twin) is type(strategy), "a copy must be of the same class"
    assert isinstance(twin, Role)
    assert twin._home is None, "a copy must not report to the chain of its original"
    Chain(twin)
    del chain


def _check_order(order: Order, tasks: list[Task[Any]]) -> None:
    ranks = [order.rank(task, 1.0) for task in tasks]
    assert all(rank == rank for rank in ranks), "a rank must not be NaN"
    assert ranks == [order.rank(task, 1.0) for task in tasks], "the same question, another rank"
    sorted(ranks)
    for rank in ranks:
        hash(rank)
    if isinstance(order, GroupOrder):
        groups = [order.group(task) for task in tasks]
        places = [order.group_rank(group, 1.0) for group in groups]
        assert all(place == place for place in places), "a rank must not be NaN"
        assert places == [order.group_rank(group, 1.0) for group in groups], (
            "the same question, another rank of the group"
        )
        sorted(places)
        for group in groups:
            hash(group)


def _check_hold(hold: Hold, tasks: list[Task[Any]]) -> None:
    for task in tasks:
        for bound in (hold.not_before, hold.not_after):
            instant = bound(task, 1.0)
            assert instant == instant, f"{bound.__name__} must not be NaN"
            assert instant == bound(task, 1.0), f"{bound.__name__} must be pure"


def _check_router(router: Router, tasks: list[Task[Any]]) -> None:
    everything = list(router.all_branches(None))
    assert len({branch.name for branch in everything}) == len(everything), "names must differ"
    for task in tasks:
        pin = router.pin_of(task)
        matching = router.all_branches(pin)
        assert set(matching) <= set(everything), "a pin leads to a branch that doesn't exist"
        open_now = list(router.branches(pin))
        assert set(open_now) <= set(matching), "branches() must match the pin"
        chosen = [list(router.choose(open_now, task, 1.0)) for _ in range(2)]
        assert chosen[0] == chosen[1], "choose() must be pure"
        assert sorted(map(id, chosen[0])) == sorted(map(id, open_now)), (
            "choose() must give all of the branches, in some order"
        )


def _check_feedback(feedback: Feedback, tasks: list[Task[Any]]) -> None:
    """A copy answers as the original does, whatever it was asked before; and in form."""
    twin = copy.deepcopy(feedback)
    for task in tasks:
        task._enter([])  # it runs, as every task does that is reviewed
        for kind, error in (("failure", OSError()), ("success", None), ("cancelled", None)):
            outcome = Outcome(kind, 1.0, 2.0, error)  # type: ignore[arg-type]  # it is one of them
            answer = feedback.review(task, outcome, 2.0)
            assert answer == twin.review(task, outcome, 2.0), "a copy gives another answer"
            if answer is not None:
                assert isinstance(answer, RetryAt), f"review gives None or RetryAt, not {answer!r}"
                soon = answer.instant < math.inf and answer.wall < math.inf
                assert soon, f"review must name a finite instant, not {answer!r}"


def _check_limit(factory: Callable[[], BaseStrategy], tasks: list[Task[Any]]) -> None:
    limit, twin = factory(), factory()
    assert isinstance(limit, Limit)
    assert isinstance(twin, Limit)
    plans = [(limit.key_of(task), limit.cost_of(task)) for task in tasks]
    for key, cost in plans:
        hash(key)
        limit.check(key, cost)
    heir = factory()
    assert isinstance(heir, Limit)
    for policy in (limit, twin, heir):
        if policy.uses_wall_time:
            policy.set_wall_offset(1_700_000_000.0, 0.0)
    lives = _LimitLife(limit, twin, plans)
    for _ in range(ROUNDS):
        lives.step()
    lives.drain()
    lives.hand_down(heir)


def ready_at(limit: Limit, key: Hashable, cost: Any, now: float) -> float:
    """The limit's answer; what one that fails fast says in an error is one, too."""
    try:
        return limit.ready_at(key, cost, now)
    except TaskRejected as error:
        until = math.inf if error.until is None else error.until
    assert until > now, f"it refuses at {now} until {until}, which is not later"
    return until


class _LimitLife:
    """A random life of a limit beside a twin to which the same happens, but which is asked less."""

    def __init__(self, limit: Limit, twin: Limit, plans: list[tuple[Hashable, Any]]) -> None:
        self.limit, self.twin, self.plans = limit, twin, plans
        self.random = random.Random(1)  # a fixed seed: the same life every time
        self.now = 0.0
        self.held: list[tuple[Any, Any, Hashable, bool]] = []

    def step(self) -> None:
        key, cost = self.random.choice(self.plans)
        match self.random.randrange(4):
            case 0:
                self.now += self.random.choice((0.0, 0.01, 0.1, 1.0, 7.0))
            case 1:
                self.wait(key, cost)
            case 2:
                self.take(key, cost)
            case 3 if self.held:
                self.give_back()

    def ask(self, key: Hashable, cost: Any, now: float) -> float:
        instant = ready_at(self.limit, key, cost, now)
        again = ready_at(self.limit, key, cost, now)
        assert instant == again, f"ready_at must be pure: first {instant}, then {again}"
        assert instant == instant, "ready_at must not be NaN"
        return instant

    def wait(self, key: Hashable, cost: Any) -> None:
        """To the advertised instant: shut just before it, open exactly at it."""
        instant = self.ask(key, cost, self.now)
        if self.now < instant < math.inf:
            before = math.nextafter(instant, -math.inf)
            if before > self.now:
                assert self.ask(key, cost, before) > before, (
                    f"it said {instant}, and is open at {before} already"
                )
            at = self.ask(key, cost, instant)
            assert at <= instant, f"it said {instant}, and says {at} when that comes"
            self.now = instant

    def take(self, key: Hashable, cost: Any) -> None:
        if self.ask(key, cost, self.now) > self.now:
            return
        usage = self.limit.usage(key, self.now)
        assert usage.used == usage.used, "usage must be a number"
        grants = (
            self.limit.acquire(key, cost, self.now),
            self.twin.acquire(key, cost, self.now),
        )
        started = self.random.random() < 0.8
        if started:
            self.limit.started(grants[0], self.now)
            self.twin.started(grants[1], self.now)
        try:
            self.limit.observe(object(), self.now, key, grants[0])
        except Exception as error:
            raise AssertionError(
                f"observe must pass over what it doesn't know: {error!r}"
            ) from error
        self.held.append((*grants, key, started))

    def give_back(self) -> None:
        mine, twins, key, started = self.held.pop(self.random.randrange(len(self.held)))
        kind = self.random.choice(("success", "failure", "cancelled")) if started else "cancelled"
        outcome = Outcome(kind, self.now if started else None, self.now)  # type: ignore[arg-type]
        self.limit.release(mine, outcome, self.now)
        self.twin.release(twins, outcome, self.now)
        cost = next(cost for own, cost in self.plans if own == key)
        answers = [ready_at(policy, key, cost, self.now) for policy in (self.limit, self.twin)]
        assert answers[0] == answers[1], "the same life, another answer: it is not deterministic"

    def drain(self) -> None:
        """Everything back: nobody waits for ever."""
        while self.held:
            self.give_back()
        for key, cost in self.plans:
            ends = self.ask(key, cost, self.now)
            assert ends < math.inf, f"nothing is held, and key {key!r} would wait for ever"

    def hand_down(self, heir: Limit) -> None:
        """What is used up, as far as use and end can, is so for an heir that loads the dump."""
        used = Outcome("success", self.now, self.now)
        for key, cost in self.plans:
            for _ in range(ROUNDS):
                if self.ask(key, cost, self.now) > self.now:
                    break
                grant = self.limit.acquire(key, cost, self.now)
                self.limit.started(grant, self.now)
                self.limit.release(grant, used, self.now)
        state = json.loads(json.dumps(self.limit.dump()))
        if state is None:
            return
        heir.load(state)
        for key, cost in self.plans:
            mine, its = [
                (ready_at(limit, key, cost, self.now), limit.usage(key, self.now))
                for limit in (self.limit, heir)
            ]
            assert mine == its, f"dump and load must keep it: {mine} became {its}"
