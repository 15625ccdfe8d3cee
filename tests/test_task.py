"""A task by itself: outcomes, waiters, callbacks; and life without a manager."""

from __future__ import annotations

import asyncio
import copy
import gc
import logging
import pickle
from collections.abc import Callable
from datetime import timedelta
from functools import partial
from typing import Any

import pytest

from async_task_manager import (
    Chain,
    InvalidState,
    MissingExtra,
    QueueTimeout,
    StrategyInUse,
    Task,
    TaskManager,
    TaskRejected,
    current_task,
)
from async_task_manager._run import Run
from async_task_manager.strategies import (
    ALL,
    ConcurrentLimitStrategy,
    PriorityQueueStrategy,
    SlidingWindowStrategy,
    TimeBasedStrategy,
)
from async_task_manager.strategies.base import Limit, Usage
from async_task_manager.task import Outcome
from async_task_manager.testing import VirtualTimeLoop, run_virtual


async def give(value: Any = 1) -> Any:
    await asyncio.sleep(1)
    return value


async def fail(error: BaseException) -> None:
    raise error


def some_key(task: Task[Any]) -> int:
    return task.id


# ---- by itself ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "work", [give, partial(give, 1), give()], ids=["fn", "partial", "coroutine"]
)
def test_it_runs_alone(work: Any) -> None:
    task: Task[int] = Task(work)
    assert (task.state, task.attempt, task.done()) == ("new", 0, False)
    assert run_virtual(task.run()) == 1
    assert (task.state, task.attempt, task.result(), task.exception()) == ("succeeded", 1, 1, None)
    assert task.created_at is None


async def test_alone_it_says_when_it_ran() -> None:
    loop = asyncio.get_running_loop()
    assert isinstance(loop, VirtualTimeLoop)
    task = Task(lambda: asyncio.sleep(3))
    await asyncio.sleep(2)
    begins = loop.wall_time()
    await task.run()
    assert (task.started_at, task.finished_at) == (begins, begins + 3)


async def test_a_future_is_work_too() -> None:
    future: asyncio.Future[int] = asyncio.get_running_loop().create_future()
    future.set_result(5)
    assert await Task(future).run() == 5


async def test_alone_it_fails_cancels_and_settles() -> None:
    task = Task(lambda: fail(ZeroDivisionError()))
    with pytest.raises(ZeroDivisionError):
        await task.run()
    assert isinstance(task.exception(), ZeroDivisionError)
    with pytest.raises(InvalidState, match="cannot be run by hand"):
        await task.run()

    async def settles() -> None:
        current_task().settle(3)  # type: ignore[union-attr]
        current_task().settle({"tokens": 2})  # type: ignore[union-attr]

    await Task(settles).run()

    slow: Task[int] = Task(give)
    running = asyncio.create_task(slow.run())
    await asyncio.sleep(0)
    assert slow.cancel()
    with pytest.raises(asyncio.CancelledError):
        await running
    assert slow.state == "cancelled"


def test_cancelled_before_it_was_ever_added() -> None:
    work: Any = give()
    task = Task(work)
    assert task.cancel()
    assert not task.cancel()
    with pytest.raises(asyncio.CancelledError):
        task.result()
    assert work.cr_frame is None


@pytest.mark.parametrize("actual", [-1, float("nan"), "x", {"tokens": -1}])
async def test_a_bad_actual_cost(actual: Any) -> None:
    async def settles() -> None:
        with pytest.raises(ValueError if actual != "x" else TypeError, match="actual cost"):
            current_task().settle(actual)  # type: ignore[union-attr]

    await Task(settles).run()


def test_only_what_runs_can_settle() -> None:
    with pytest.raises(InvalidState, match="nothing to settle"):
        Task(give).settle(1)


def test_names() -> None:
    assert Task(give).name.startswith("give-")
    assert Task(partial(give, 2)).name.startswith("give-")
    future: Any = asyncio.Future(loop=asyncio.new_event_loop())
    assert Task(future).name.startswith("task-")
    future.get_loop().close()
    manager = TaskManager(ConcurrentLimitStrategy(1))
    task = manager.add_task(give, name="mine")
    assert task.name == "mine"
    assert "mine queued" in repr(task)


def test_metadata_is_made_when_asked_for() -> None:
    task: Task[int] = Task(give)
    assert task._metadata is None
    assert task.metadata is task.metadata == {}
    given = {"a": 1}
    assert Task(give, given).metadata is given


def test_what_has_not_happened_reads_as_nothing() -> None:
    run = Run()
    assert (run.attempt, run.value, run.provider) == (0, None, None)
    assert not hasattr(run, "nonsense")


def test_there_is_no_result_before_the_end() -> None:
    task: Task[int] = Task(give)
    for ask in (task.result, task.exception):
        with pytest.raises(InvalidState, match="has not ended"):
            ask()


# ---- waiting ------------------------------------------------------------------------------------


async def test_any_number_of_waiters_before_and_after_the_end() -> None:
    async with TaskManager(ConcurrentLimitStrategy(1)) as manager:
        task = manager.add_task(give)
        assert await asyncio.gather(*(task.wait() for _ in range(5))) == [1] * 5
        assert await task == await task.wait() == 1


async def test_a_wait_that_ends_early_leaves_the_task_alone() -> None:
    async with TaskManager(ConcurrentLimitStrategy(1)) as manager:
        task = manager.add_task(give)
        for _ in range(1000):
            with pytest.raises(TimeoutError):
                await asyncio.wait_for(task.wait(), 0.0005)
        assert task._watchers is not None
        assert not task._watchers.waiters
        assert await task == 1


@pytest.mark.real_time
async def test_waiters_in_other_loops() -> None:
    async def quick() -> str:
        await asyncio.sleep(0.05)
        return "from over there"

    async with TaskManager(ConcurrentLimitStrategy(1)) as manager:
        task = manager.add_task(quick)
        there = await asyncio.to_thread(lambda: asyncio.run(_wait_for(task)))
        assert there == "from over there"


async def _wait_for(task: Task[Any]) -> Any:
    return await task


def test_a_waiter_whose_loop_stands_still() -> None:
    task: Task[int] = Task(give)
    loop = asyncio.new_event_loop()
    waiter = loop.create_task(task.wait())
    loop.run_until_complete(asyncio.sleep(0))
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        loop.run_until_complete(waiter)
    loop.close()


def test_a_waiter_whose_loop_is_gone() -> None:
    task: Task[int] = Task(give)
    loop = asyncio.new_event_loop()
    waiting = task.wait()
    waiter = loop.create_task(waiting)
    loop.run_until_complete(asyncio.sleep(0))
    waiter._log_destroy_pending = False  # type: ignore[attr-defined]
    loop.close()
    assert run_virtual(task.run()) == 1


async def test_the_traceback_does_not_grow_with_the_waiters() -> None:
    async with TaskManager(ConcurrentLimitStrategy(1)) as manager:
        task = manager.add_task(lambda: fail(ZeroDivisionError()))
        lengths = []
        for _ in range(5):
            with pytest.raises(ZeroDivisionError) as caught:
                await task
            lengths.append(len(caught.traceback))
        assert len(set(lengths)) == 1


# ---- callbacks ----------------------------------------------------------------------------------


async def test_callbacks_of_all_kinds(caplog: pytest.LogCaptureFixture) -> None:
    seen: list[str] = []

    async def later(task: Task[Any]) -> None:
        await asyncio.sleep(0)
        seen.append(f"async {task.result()}")

    async def breaks(task: Task[Any]) -> None:
        raise LookupError("async")

    def bad(task: Task[Any]) -> None:
        raise LookupError("sync")

    callbacks: list[Callable[[Task[Any]], object]] = [
        lambda task: seen.append(f"sync {task.result()}"),
        later,
        bad,
        breaks,
    ]
    async with TaskManager(ConcurrentLimitStrategy(1)) as manager:
        task = manager.add_task(give)
        for callback in callbacks:
            task.add_done_callback(callback)
        await task
        await asyncio.sleep(1)
        task.add_done_callback(lambda _: seen.append("after the end"))
        await asyncio.sleep(1)
    assert seen == ["sync 1", "async 1", "after the end"]
    assert [record.levelno for record in caplog.records] == [logging.ERROR] * 2
    with pytest.raises(TypeError, match="callable"):
        task.add_done_callback("no")  # type: ignore[arg-type]


def test_a_callback_without_a_loop() -> None:
    seen: list[str] = []
    task: Task[int] = Task(give)
    task.add_done_callback(lambda done: seen.append(done.state))
    task.cancel()
    assert seen == ["cancelled"]


# ---- by hand: the four methods ------------------------------------------------------------------


async def test_a_policy_used_by_hand() -> None:
    limit = ConcurrentLimitStrategy(1)
    tasks: list[Task[Any]] = [Task(give) for _ in range(3)]
    for task in tasks:
        limit.add_task(task)
    first = limit.get_next_task()
    assert first is tasks[0]
    assert limit.get_next_task() is None
    assert await limit.get_sleep_interval() is None
    assert await first.run() == 1
    assert first.started_at is not None
    assert first.finished_at is not None
    second = limit.get_next_task()
    assert second is tasks[1]
    running = asyncio.create_task(second.run())
    await asyncio.sleep(0)
    second.settle(4)
    assert second.cancel()
    with pytest.raises(asyncio.CancelledError):
        await running
    assert tasks[2].cancel()
    assert limit.get_next_task() is None
    await limit.on_task_done()


async def test_a_chain_by_hand_names_its_intervals() -> None:
    chain = Chain(SlidingWindowStrategy(1, 60))
    for _ in range(2):
        chain.add_task(Task(give))
    task = chain.get_next_task()
    assert task is not None
    await task.run()
    assert chain.get_next_task() is None
    interval = await chain.get_sleep_interval()
    assert interval is not None
    assert 58 < interval <= 60


async def test_by_hand_tasks_expire_too() -> None:
    manager = TaskManager(Chain())
    task = manager.add_task(give, queue_timeout=0.001)
    chain = Chain(TimeBasedStrategy())
    held: Task[Any] = Task(give, {"valid_after": timedelta(seconds=100)})
    held._options = task._options
    chain.add_task(held)
    assert chain.get_next_task() is None
    await asyncio.to_thread(asyncio.run, asyncio.sleep(0.01))
    assert chain.get_next_task() is None
    with pytest.raises(QueueTimeout):
        await held
    await manager.close()


async def test_a_manager_adopts_what_a_policy_already_holds() -> None:
    order = PriorityQueueStrategy()
    low: Task[Any] = Task(give, {"priority": "low"})
    high: Task[Any] = Task(give, {"priority": "high"})
    order.add_task(low)
    order.add_task(high)
    async with TaskManager(order) as manager:
        await asyncio.gather(low.wait(), high.wait())
    assert manager.stats().succeeded == 2


async def test_a_chain_with_running_tasks_has_its_person() -> None:
    chain = Chain(ConcurrentLimitStrategy(2))
    chain.add_task(Task(give))
    task = chain.get_next_task()
    assert task is not None
    with pytest.raises(StrategyInUse, match="by hand"):
        TaskManager(chain)
    with pytest.raises(StrategyInUse, match="in use"):
        Chain(chain)
    await task.run()
    TaskManager(chain)


# ---- small things -------------------------------------------------------------------------------


def test_outcomes() -> None:
    class Later(Exception):
        retry_after = 7

    ran = Outcome("failure", 1.0, 2.0, Later())
    assert ran.started
    assert ran.retry_after == 7
    assert not Outcome("cancelled", None, 2.0).started
    assert Outcome("success", 1.0, 2.0).retry_after is None


def test_errors_carry_what_they_say() -> None:
    error = MissingExtra("cli", "typer")
    assert str(error) == "typer is missing: pip install 'async-task-manager[cli]'"
    assert isinstance(error, ImportError)
    rejected = TaskRejected("busy", until=4.0)
    assert (str(rejected), rejected.until, TaskRejected().until) == ("busy", 4.0, None)


def test_all_is_one_of_a_kind() -> None:
    assert copy.copy(ALL) is copy.deepcopy(ALL) is ALL
    assert repr(ALL) == "ALL"


def test_copies_of_a_policy_are_free() -> None:
    limit = ConcurrentLimitStrategy(1, key=some_key)
    chain = Chain(limit)
    for twin in (copy.deepcopy(limit), copy.copy(limit)):
        assert twin.key is some_key
    free = copy.deepcopy(limit)
    assert free._home is None
    assert copy.deepcopy(limit._home) is None
    assert copy.copy(limit._home) is None
    assert pickle.loads(pickle.dumps(limit._home)) is None
    Chain(free)
    del chain
    gc.collect()
    assert limit._home is not None
    assert limit._home() is None
    limit.changed()  # nobody listens any more
    limit.restructured()
    Chain(limit)


def test_the_defaults_of_a_limit() -> None:
    class Bare(Limit):
        __slots__ = ("level",)

        def __init__(self) -> None:
            self.level = 3  # no super().__init__(): it need not be called

        def ready_at(self, key: Any, cost: Any, now: float) -> float:
            return now

        def acquire(self, key: Any, cost: Any, now: float) -> None:
            pass

        def usage(self, key: Any, now: float) -> Usage:
            return Usage(0, 1)

    bare = Bare()
    assert bare.dump() is None
    bare.load(None)
    bare.observe(None, 0.0)
    bare.set_wall_offset(0.0, 0.0)
    bare.check(None, 1)
    assert bare.describe() == repr(bare) == "Bare()"
    assert copy.deepcopy(bare).level == 3


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"key": 3}, "key must be"),
        ({"cost": []}, "cost must be"),
        ({"cost": -1}, "cost must be"),
        ({"default_cost": -1}, "default_cost must be"),
    ],
)
def test_bad_keys_and_costs(options: dict[str, Any], says: str) -> None:
    with pytest.raises((TypeError, ValueError), match=says):
        ConcurrentLimitStrategy(1, **options)


def test_a_key_must_be_hashable() -> None:
    manager = TaskManager(ConcurrentLimitStrategy(1, key="user"))
    with pytest.raises(TypeError, match="hashable"):
        manager.add_task(give, {"user": []})


def test_a_failure_says_whose_it_was(caplog: pytest.LogCaptureFixture) -> None:
    class Mute(Exception):
        def __repr__(self) -> str:
            raise LookupError("no repr")

    async def main() -> None:
        async with TaskManager(ConcurrentLimitStrategy(1)) as manager:
            manager.add_task(lambda: fail(Mute()), name="mute")

    run_virtual(main())
    gc.collect()
    assert "mute failed" in caplog.text


async def test_whoever_runs_a_task_by_hand_is_not_inside_it_afterwards() -> None:
    async def inner() -> None:
        assert current_task() is task

    task: Task[None] = Task(inner)
    await task.run()
    assert current_task() is None
