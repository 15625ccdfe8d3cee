"""The contract of a strategy as checks that any strategy, ours or yours, can be put through."""

from __future__ import annotations

import asyncio
import copy
import math
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

from async_task_manager.manager import TaskManager
from async_task_manager.strategies.base import (
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
)
from async_task_manager.strategies.chain import Chain, is_foreign
from async_task_manager.strategies.concurrent_limit import ConcurrentLimitStrategy
from async_task_manager.strategies.priority_queue import PriorityQueueStrategy
from async_task_manager.task import Outcome, Task, discard
from async_task_manager.testing._limit_life import ROUNDS, LimitLife
from async_task_manager.testing.virtual_time import run_virtual

__all__ = ["check_strategy"]

Metadata = Callable[[int], dict[str, Any]]

TASKS = 12


def check_strategy(
    factory: Callable[[], BaseStrategy],
    *,
    metadata: Metadata = lambda _: {},
    within: float = 3600.0,
) -> None:
    """Puts a strategy through the contract; returns if it holds.

    Any strategy, alone and at every place in a chain: each task that is added runs exactly once;
    failures, cancels and restarts lose and leak nothing. A policy also by its roles: a limit is
    pure and exact, gives back what it took, and survives a dump; ranks are fixed and sortable; a
    source is due when it says so; every item that a collector takes comes to an end; copies are
    independent.

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
    if isinstance(strategy, Source):
        _check_source(strategy)  # first: one that is due and emits nothing would hang all else
        strategy = factory()
    else:
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
        if isinstance(strategy, Collector):
            _check_collector(strategy, tasks)
            run_virtual(_all_end(factory(), metadata, within))


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
    lives = LimitLife(limit, twin, plans)
    for _ in range(ROUNDS):
        lives.step()
    lives.drain()
    lives.hand_down(heir)


def _check_source(source: Source) -> None:
    """It is due when it says so, and what it emits brings it forward."""
    now = 0.0
    if source.uses_wall_time:
        source.set_wall_offset(1_700_000_000.0, now)
    seen: list[Task[Any]] = []
    for _ in range(ROUNDS):
        due = source.next_due(now)
        assert due == due, "next_due must not be NaN"
        assert due == source.next_due(now), "next_due must be pure"
        if due == math.inf:
            return
        now = max(now, due)
        made = list(source.emit(now))
        for task in made:
            assert isinstance(task, Task), f"emit gives Tasks, not {task!r}"
            assert task.state == "new" and task not in seen, f"emit gives new Tasks, not {task!r}"
            discard(task)
            seen.append(task)
        assert made or source.next_due(now) > now, f"it is due at {now}, and emits nothing"


def _check_collector(collector: Collector, tasks: list[Task[Any]]) -> None:
    for task in tasks:
        collector.collects(task)
        hash(collector.key_of(task))
    assert 1 <= collector.min_size <= collector.max_size, "1 <= min_size <= max_size must hold"
    assert 0 <= collector.max_wait < math.inf, "max_wait must be finite, and not negative"


async def _all_end(strategy: BaseStrategy, metadata: Metadata, within: float) -> None:
    """What becomes of an item is the handler's affair, which may want other ones."""
    manager = TaskManager(Chain(strategy, ConcurrentLimitStrategy(2)))
    tasks = [manager.add_task(Item(i), metadata(i)) for i in range(TASKS)]
    for task in tasks:
        task.add_done_callback(lambda done: done.state == "failed" and done.exception())
    await manager.idle()
    tasks[0].cancel()
    await _done(manager, tasks, within)
    await manager.stop()
    assert manager.stats().queued == manager.stats().running == 0, "items are left over"
