"""The manager: life, time limits, failures; nothing lost, doubled or leaked."""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import gc
import logging
import math
import subprocess
import sys
import threading
import time
import weakref
from collections import deque
from collections.abc import Callable, Coroutine
from datetime import timedelta
from typing import Any

import pytest

from async_task_manager import (
    Chain,
    DeadlineExceeded,
    InvalidState,
    InvalidType,
    InvalidValue,
    ManagerClosed,
    NotRunning,
    QueueTimeout,
    StrategyError,
    StrategyInUse,
    Task,
    TaskManager,
    TaskTimeout,
    current_task,
)
from async_task_manager.strategies import (
    BaseStrategy,
    ConcurrentLimitStrategy,
    Feedback,
    Limit,
    PriorityQueueStrategy,
    Provider,
    ProviderRouterStrategy,
    RetryAt,
    SlidingWindowStrategy,
    Source,
    TimeBasedStrategy,
    Usage,
)
from async_task_manager.task import Outcome
from async_task_manager.testing import VirtualTimeLoop, run_virtual


def now() -> float:
    return asyncio.get_running_loop().time()


async def nap(seconds: float = 10.0) -> float:
    await asyncio.sleep(seconds)
    return seconds


async def fail(error: BaseException) -> None:
    raise error


def one() -> ConcurrentLimitStrategy:
    return ConcurrentLimitStrategy(1)


class Polled(BaseStrategy):
    def __init__(self, interval: Any = None) -> None:
        self.queue: deque[Task] = deque()
        self.interval = interval
        self.done = 0

    def __repr__(self) -> str:
        return "Polled()"

    def add_task(self, task: Task) -> None:
        self.queue.append(task)

    def get_next_task(self) -> Task | None:
        return self.queue.popleft() if self.queue else None

    async def get_sleep_interval(self) -> Any:
        return self.interval

    async def on_task_done(self) -> None:
        self.done += 1


# ---- the program of the first page --------------------------------------------------------------


async def test_eight_tasks_three_at_once() -> None:
    ends: list[tuple[float, str]] = []

    async def sample_task(name: str, seconds: float) -> None:
        await asyncio.sleep(seconds)
        ends.append((now(), name))

    strategy = ConcurrentLimitStrategy(max_concurrent=3)
    manager = TaskManager(strategy, poll_interval=0.2)
    for i in range(8):
        manager.add_task(sample_task(f"task-{i}", 1.0))
    await manager.idle()
    assert not ends
    await asyncio.sleep(10)
    await manager.stop()
    assert [at for at, _ in ends] == [1, 1, 1, 2, 2, 2, 3, 3]
    assert [name for _, name in ends] == [f"task-{i}" for i in range(8)]


@pytest.mark.parametrize("interval", [0.1, None, 0])
@pytest.mark.parametrize(
    "build",
    [
        lambda mine: mine,
        lambda mine: Chain(mine, ConcurrentLimitStrategy(3)),
        lambda mine: Chain(PriorityQueueStrategy(), mine, ConcurrentLimitStrategy(3)),
        lambda mine: Chain(ConcurrentLimitStrategy(3), mine),
    ],
    ids=["alone", "first", "middle", "last"],
)
async def test_a_strategy_of_four_methods(
    interval: float | None, build: Callable[[BaseStrategy], BaseStrategy]
) -> None:
    mine = Polled(interval)
    async with TaskManager(build(mine), poll_interval=0.2) as manager:
        tasks = [manager.add_task(nap(1.0)) for _ in range(8)]
    assert [await task for task in tasks] == [1.0] * 8
    assert mine.done == 8


# ---- starting and stopping ----------------------------------------------------------------------


async def test_run_works_until_stop() -> None:
    manager = TaskManager(one())
    running = asyncio.create_task(manager.run())
    assert await manager.add_task(lambda: nap(1)) == 1
    await manager.stop()
    await running


async def test_a_second_run_is_refused() -> None:
    manager = TaskManager(one())
    running = asyncio.create_task(manager.run())
    await asyncio.sleep(0)
    with pytest.raises(InvalidState, match="under way"):
        await manager.run()
    await manager.stop()
    await running


async def test_a_cancelled_run_cancels_what_runs_and_keeps_the_queue() -> None:
    manager = TaskManager(ConcurrentLimitStrategy(2))
    running = asyncio.create_task(manager.run())
    tasks = [manager.add_task(nap) for _ in range(4)]
    await asyncio.sleep(1)
    running.cancel()
    with pytest.raises(asyncio.CancelledError):
        await running
    assert [task.state for task in tasks] == ["cancelled", "cancelled", "queued", "queued"]
    await manager.idle()
    await manager.join()
    await manager.stop()
    assert [task.state for task in tasks[2:]] == ["succeeded", "succeeded"]


async def test_stop_before_the_start_and_twice() -> None:
    manager = TaskManager(one())
    await manager.stop()
    await manager.idle()
    await manager.idle()
    await asyncio.gather(manager.stop(), manager.stop())


async def test_stop_from_inside_a_task() -> None:
    manager = TaskManager(ConcurrentLimitStrategy(2))
    inside = manager.add_task(manager.stop)
    other = manager.add_task(nap)
    await manager.run()
    assert inside.state == other.state == "succeeded"


async def test_stop_waits_or_cancels_after_its_grace() -> None:
    manager = TaskManager(one())
    await manager.idle()
    task = manager.add_task(nap)
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    await manager.stop(grace=3)
    assert now() == 3
    assert task.state == "cancelled"


async def test_a_task_that_ignores_cancels_is_left_behind(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async def stubborn() -> None:
        for _ in range(10):
            try:
                await asyncio.sleep(100)
            except asyncio.CancelledError:
                continue

    manager = TaskManager(one())
    await manager.idle()
    task = manager.add_task(stubborn)
    await asyncio.sleep(1)
    await manager.stop(grace=1)
    assert now() < 10
    assert "left behind" in caplog.text
    for _ in range(10):
        task.cancel()
        await asyncio.sleep(0)
    assert task.done()


async def test_thirty_restarts_lose_no_slot_and_gain_no_quota() -> None:
    window = SlidingWindowStrategy(3, 100.0)
    manager = TaskManager(Chain(window, ConcurrentLimitStrategy(2)))
    tasks = [manager.add_task(lambda: nap(0.5)) for _ in range(9)]
    for _ in range(30):
        await manager.idle()
        await asyncio.sleep(1)
        await manager.stop(grace=0)
    assert sum(task.state == "succeeded" for task in tasks) == 3
    await manager.idle()
    await manager.join()
    await manager.stop()
    assert 200 <= now() < 202


def test_it_goes_on_in_another_loop() -> None:
    manager = TaskManager(SlidingWindowStrategy(2, 100))
    tasks = [manager.add_task(lambda: nap(1)) for _ in range(3)]

    async def go(seconds: float) -> None:
        await manager.idle()
        await asyncio.sleep(seconds)
        await manager.stop()

    run_virtual(go(5))
    run_virtual(go(5))
    assert [task.state for task in tasks] == ["succeeded", "succeeded", "queued"]
    run_virtual(go(200))
    assert tasks[2].state == "succeeded"


def test_a_loop_that_was_closed_without_stop() -> None:
    manager = TaskManager(one())
    tasks = [manager.add_task(nap) for _ in range(2)]

    async def leave() -> None:
        await manager.idle()
        await asyncio.sleep(1)

    run_virtual(leave())
    late = nap()
    with pytest.raises(InvalidState, match="closed"):
        manager.add_task(late)
    with pytest.raises(NotRunning):
        manager.add_task_threadsafe(nap)

    async def again() -> None:
        await manager.idle()
        await manager.join()
        await manager.stop()

    run_virtual(again())
    assert all(task.done() for task in tasks)


def test_a_loop_closed_over_a_running_task() -> None:
    manager = TaskManager(one())
    loop = VirtualTimeLoop()
    task = manager.add_task(nap)

    async def leave() -> None:
        await manager.idle()
        await asyncio.sleep(1)

    loop.run_until_complete(leave())
    driver: Any = task._driver
    driver._log_destroy_pending = False
    loop.close()
    del driver

    async def again() -> float:
        await manager.idle()
        return await manager.add_task(lambda: nap(1))

    assert run_virtual(again()) == 1
    assert task.state in ("cancelled", "failed")


async def test_two_loops_at_once_are_refused() -> None:
    manager = TaskManager(one())
    await manager.idle()

    def other() -> None:
        with pytest.raises(InvalidState, match="another loop"):
            asyncio.run(manager.idle())

    await asyncio.to_thread(other)
    await manager.stop()


async def test_pause_and_resume() -> None:
    async with TaskManager(one()) as manager:
        first = manager.add_task(lambda: nap(1))
        await asyncio.sleep(0.5)
        manager.pause()
        second = manager.add_task(lambda: nap(1))
        await asyncio.sleep(5)
        assert (first.state, second.state) == ("succeeded", "queued")
        manager.resume()
        await second
        assert now() == 6.5


async def test_close_takes_no_more() -> None:
    manager = TaskManager(one())
    await manager.idle()
    running, queued = manager.add_task(lambda: nap(1)), manager.add_task(nap())
    await asyncio.sleep(0.5)
    await manager.close()
    assert (running.state, queued.state) == ("succeeded", "cancelled")
    with pytest.raises(ManagerClosed):
        manager.add_task(nap())
    with pytest.raises(ManagerClosed):
        await manager.idle()


async def test_async_with_cancels_everything_on_an_error() -> None:
    async def body() -> None:
        async with TaskManager(one()) as manager:
            tasks.extend(manager.add_task(nap()) for _ in range(2))
            await asyncio.sleep(1)
            raise ZeroDivisionError

    tasks: list[Task[float]] = []
    with pytest.raises(ZeroDivisionError):
        await body()
    assert [task.state for task in tasks] == ["cancelled"] * 2
    assert now() == 1


async def test_async_with_cancelled_while_it_waits() -> None:
    async def body() -> None:
        async with TaskManager(one()) as manager:
            tasks.append(manager.add_task(nap))

    tasks: list[Task[float]] = []
    outer = asyncio.create_task(body())
    await asyncio.sleep(1)
    outer.cancel()
    with pytest.raises(asyncio.CancelledError):
        await outer
    assert tasks[0].state == "cancelled"


async def test_join() -> None:
    manager = TaskManager(ConcurrentLimitStrategy(2))
    with pytest.raises(NotRunning, match="idle"):
        await manager.join()
    await manager.idle()
    await manager.join()
    inside = manager.add_task(manager.join)
    manager.add_task(lambda: nap(2))
    await inside
    assert now() == 2
    await manager.stop()


def test_a_manager_that_is_dropped_is_silent(recwarn: pytest.WarningsRecorder) -> None:
    manager = TaskManager(one())
    for _ in range(3):
        manager.add_task(nap())
    ref = weakref.ref(manager)
    del manager
    gc.collect()
    assert ref() is None
    assert not recwarn.list


def test_a_process_that_forgets_to_stop_ends_quietly() -> None:
    program = """
import asyncio
from async_task_manager import TaskManager
from async_task_manager.strategies import ConcurrentLimitStrategy
async def main():
    manager = TaskManager(ConcurrentLimitStrategy(1))
    for _ in range(3):
        manager.add_task(asyncio.sleep(60))
    await manager.idle()
    await asyncio.sleep(0.05)
asyncio.run(main())
"""
    ran = subprocess.run(
        [sys.executable, "-W", "error", "-c", program],
        capture_output=True,
        text=True,
        timeout=20,
        check=False,
    )
    assert (ran.returncode, ran.stdout, ran.stderr) == (0, "", "")


@pytest.mark.parametrize("value", [0, -1, float("nan"), float("inf"), True, "1"])
def test_bad_poll_intervals(value: Any) -> None:
    with pytest.raises((InvalidValue, InvalidType), match="poll_interval"):
        TaskManager(one(), poll_interval=value)


def test_what_is_no_strategy() -> None:
    with pytest.raises(InvalidType, match="needs a strategy"):
        TaskManager(object())  # type: ignore[arg-type]


def test_a_strategy_belongs_to_one_manager() -> None:
    strategy = one()
    manager = TaskManager(strategy)
    with pytest.raises(StrategyInUse):
        TaskManager(strategy)
    chain = Chain(one())
    other = TaskManager(chain)
    with pytest.raises(StrategyInUse):
        TaskManager(chain)
    assert "1" in repr(manager)
    assert "0 queued" in repr(other)
    del manager
    gc.collect()
    TaskManager(strategy)


# ---- adding -------------------------------------------------------------------------------------


@pytest.mark.parametrize("work", [3, None, "work", [1]])
async def test_work_must_be_awaitable(work: Any) -> None:
    with pytest.raises(TypeError, match="awaitable"):
        TaskManager(one()).add_task(work)


async def test_a_coroutine_runs_once() -> None:
    async with TaskManager(one()) as manager:
        work = nap(1)
        task = manager.add_task(work)
        with pytest.raises(RuntimeError, match="added already"):
            manager.add_task(work)
        assert await task == 1
        with pytest.raises(RuntimeError, match="used already"):
            manager.add_task(work)


async def test_what_is_refused_is_closed() -> None:
    manager = TaskManager(SlidingWindowStrategy(10, 1, cost="tokens"))
    for metadata, error in (({}, ValueError), ({"cost": 11}, ValueError), ([], TypeError)):
        work: Any = nap()
        with pytest.raises(error):
            manager.add_task(work, metadata)  # type: ignore[arg-type]
        assert work.cr_frame is None  # closed
    with pytest.raises(InvalidType, match="name must be"):
        manager.add_task(nap, {"cost": 1}, name=3)  # type: ignore[arg-type]
    with pytest.raises(InvalidValue, match="queue_timeout"):
        manager.add_task(nap, {"cost": 1}, queue_timeout=0)


async def test_a_task_made_by_hand_can_be_added() -> None:
    async with TaskManager(one()) as manager:
        task = Task(lambda: nap(1), {"a": 1})
        assert manager.add_task(task) is task
        with pytest.raises(InvalidState, match="added before"):
            manager.add_task(task)
        assert await task == 1


async def test_other_threads() -> None:
    manager = TaskManager(one())
    with pytest.raises(NotRunning):
        manager.add_task_threadsafe(nap())
    await manager.idle()
    seen: list[Any] = []

    def thread() -> None:
        seen.append(manager.add_task_threadsafe(lambda: nap(0)).result(5))
        with pytest.raises(InvalidState, match="threadsafe"):
            manager.add_task(nap)
        with pytest.raises(TypeError):
            manager.add_task_threadsafe(5).result(5)  # type: ignore[arg-type]
        with pytest.raises(ZeroDivisionError):
            manager.add_task_threadsafe(lambda: fail(ZeroDivisionError())).result(5)

    await asyncio.to_thread(thread)
    assert seen == [0]
    future = manager.add_task_threadsafe(nap)
    await asyncio.sleep(1)
    assert manager.stats().running == 1
    future.cancel()
    await asyncio.sleep(1)
    assert manager.stats().running == 0
    await manager.stop()


async def test_context_follows_the_caller() -> None:
    var: contextvars.ContextVar[str] = contextvars.ContextVar("var", default="none")

    async def look() -> tuple[str, Task | None]:
        before = var.get()
        var.set("leaked?")
        await asyncio.sleep(0)
        return before, await asyncio.create_task(inner())

    async def inner() -> Task | None:
        return await asyncio.to_thread(current_task)

    async with TaskManager(one()) as manager:
        tasks = []
        for value in ("a", "a", "b"):
            var.set(value)
            tasks.append(manager.add_task(look))
        results = [await task for task in tasks]
    assert [value for value, _ in results] == ["a", "a", "b"]
    assert [task for _, task in results] == tasks
    assert current_task() is None


# ---- time limits --------------------------------------------------------------------------------


async def test_time_limits_strike_at_their_instants() -> None:
    async with TaskManager(one()) as manager:
        slow = manager.add_task(nap, run_timeout=2)
        unborn = manager.add_task(nap, queue_timeout=1)
        late = manager.add_task(nap, deadline=timedelta(seconds=5))
        hopeless = manager.add_task(nap, deadline=timedelta(seconds=1))
        ends: dict[int, float] = {}
        for task in (slow, unborn, late, hopeless):
            task.add_done_callback(lambda done: ends.setdefault(done.id, now()))
        for task, error in (
            (slow, TaskTimeout),
            (unborn, QueueTimeout),
            (late, DeadlineExceeded),
            (hopeless, DeadlineExceeded),
        ):
            with pytest.raises(error):
                await task
        await asyncio.sleep(0)
    assert [ends[task.id] for task in (slow, unborn, late, hopeless)] == [2, 1, 5, 1]
    assert (slow.state, unborn.state, late.state) == ("failed", "expired", "failed")


async def test_a_deadline_by_the_wall_clock() -> None:
    loop = asyncio.get_running_loop()
    assert isinstance(loop, VirtualTimeLoop)
    async with TaskManager(one()) as manager:
        first = manager.add_task(nap, deadline=loop.wall_time() + 4)
        second = manager.add_task(nap, deadline=loop.wall_time() + 3)
        with pytest.raises(DeadlineExceeded):
            await first
        assert now() == 4
        with pytest.raises(DeadlineExceeded):
            await second


async def test_work_that_finishes_in_spite_of_its_timeout() -> None:
    async def deaf() -> str:
        try:
            await asyncio.sleep(10)
        except asyncio.CancelledError:
            return "done all the same"
        return ""

    async with TaskManager(one()) as manager:
        assert await manager.add_task(deaf, run_timeout=1) == "done all the same"
        assert await manager.add_task(lambda: nap(1), run_timeout=1.5) == 1


async def test_steps_of_the_wall_clock() -> None:
    loop = asyncio.get_running_loop()
    assert isinstance(loop, VirtualTimeLoop)
    async with TaskManager(Chain(TimeBasedStrategy(), SlidingWindowStrategy(1, 5000))) as manager:
        task = manager.add_task(nap, {"valid_after": loop.wall_time() + 3600})
        await asyncio.sleep(10)
        loop.step_wall(3000)
        await task
        assert task.started_at is not None
        assert 600 <= task.started_at - manager.epoch <= 601
        second = manager.add_task(nap)
        loop.step_wall(10_000)
        await second
        assert second.started_at is not None
        assert second.started_at - task.started_at == 5000


# ---- cancelling ---------------------------------------------------------------------------------


@pytest.mark.parametrize("steps", range(6))
async def test_cancelled_after_any_number_of_steps(steps: int) -> None:
    limit = one()
    manager = TaskManager(limit)
    await manager.idle()
    work: Any = nap()
    task = manager.add_task(work)
    for _ in range(steps):
        await asyncio.sleep(0)
    assert task.cancel()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert not task.cancel()
    assert limit.usage(None, 0.0).used == 0
    assert work.cr_frame is None
    assert await manager.add_task(lambda: nap(1)) == 1
    await manager.stop()


@pytest.mark.parametrize("eager", [False, True])
async def test_under_a_task_factory(eager: bool) -> None:
    loop = asyncio.get_running_loop()
    if eager:
        factory = getattr(asyncio, "eager_task_factory", None)
        if factory is None:
            return  # 3.11 has none
    else:

        def factory(
            loop: asyncio.AbstractEventLoop, coro: Coroutine[Any, Any, Any], **options: Any
        ) -> asyncio.Task[Any]:
            return asyncio.Task(coro, loop=loop, **options)

    loop.set_task_factory(factory)  # type: ignore[arg-type]
    try:
        async with TaskManager(one()) as manager:
            quick = [manager.add_task(lambda: nap(0)) for _ in range(3)]
            slow = manager.add_task(nap)
            await asyncio.gather(*quick)
            while slow.state != "running":
                await asyncio.sleep(0)
            slow.cancel()
            with pytest.raises(asyncio.CancelledError):
                await slow
            assert await manager.add_task(lambda: nap(1), run_timeout=5) == 1
    finally:
        loop.set_task_factory(None)


# ---- failures -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "error", [ValueError("x"), MemoryError(), GeneratorExit(), BaseException("b"), TimeoutError()]
)
async def test_errors_of_any_kind_reach_every_waiter(error: BaseException) -> None:
    async with TaskManager(one()) as manager:
        task = manager.add_task(lambda: fail(error))
        waits = await asyncio.gather(*(task.wait() for _ in range(3)), return_exceptions=True)
        assert all(caught is error for caught in waits)
        assert await manager.add_task(lambda: nap(1)) == 1


@pytest.mark.parametrize("error", [SystemExit(3), KeyboardInterrupt()])
def test_an_exit_ends_the_program(error: BaseException) -> None:
    task: Any = None

    async def main() -> None:
        nonlocal task
        manager = TaskManager(one())
        await manager.idle()
        task = manager.add_task(lambda: fail(error))
        await asyncio.sleep(10)

    with pytest.raises(type(error)):
        run_virtual(main())
    assert task.exception() is error


def test_an_interrupt_is_told_once(caplog: pytest.LogCaptureFixture) -> None:
    async def main() -> None:
        manager = TaskManager(one())
        manager.add_task(lambda: fail(KeyboardInterrupt()))
        await manager.run()

    with pytest.raises(KeyboardInterrupt):
        asyncio.run(main())
    gc.collect()
    assert caplog.records == []


async def test_time_limits_hold_while_paused() -> None:
    manager = TaskManager(one())
    await manager.idle()
    running = manager.add_task(lambda: nap(2))
    await asyncio.sleep(1)
    manager.pause()
    soon = manager.add_task(nap, queue_timeout=1)
    later = manager.add_task(nap, deadline=timedelta(seconds=7))
    patient = manager.add_task(lambda: nap(1))
    with pytest.raises(QueueTimeout):
        await soon
    assert now() == 2
    with pytest.raises(DeadlineExceeded):
        await later
    assert now() == pytest.approx(8)
    assert (running.state, patient.state) == ("succeeded", "queued")
    manager.resume()
    await manager.join()
    assert now() == pytest.approx(9)
    await manager.stop()


async def test_many_that_lapse_while_paused_do_not_stall_the_loop() -> None:
    manager = TaskManager(one())
    await manager.idle()
    manager.pause()
    tasks = [manager.add_task(nap, queue_timeout=1) for _ in range(1000)]
    await asyncio.sleep(1)
    turns = 0
    while not all(task.done() for task in tasks):
        await asyncio.sleep(0)
        turns += 1
    assert 3 <= turns <= 8  # a few hundred in each
    assert all(isinstance(task.exception(), QueueTimeout) for task in tasks)
    await manager.stop()


async def test_a_source_that_changes_is_asked_again() -> None:
    class Bell(Source):
        due = math.inf

        def next_due(self, now: float) -> float:
            return self.due

        def emit(self, now: float) -> list[Task[Any]]:
            self.due = math.inf
            return [Task(lambda: nap(1))]

    bell = Bell()
    manager = TaskManager(bell)
    await manager.idle()
    await asyncio.sleep(5)
    bell.due = manager.time() + 2
    bell.changed()
    await asyncio.sleep(2.5)
    assert manager.stats().running == 1
    await manager.join()
    assert manager.stats().succeeded == 1
    await manager.stop()


async def test_work_that_cancels_itself() -> None:
    async with TaskManager(one()) as manager:
        task = manager.add_task(lambda: fail(asyncio.CancelledError()))
        with pytest.raises(asyncio.CancelledError):
            await task


async def test_a_failure_that_nobody_saw_is_logged_once(caplog: pytest.LogCaptureFixture) -> None:
    async with TaskManager(one()) as manager:
        manager.add_task(lambda: fail(ZeroDivisionError("unseen")), name="lonely")
        seen = manager.add_task(lambda: fail(ZeroDivisionError("seen")))
        with pytest.raises(ZeroDivisionError):
            await seen
    gc.collect()
    (record,) = caplog.records
    assert "lonely" in record.getMessage()
    assert record.exc_info
    assert "unseen" in caplog.text


class Breaks(ConcurrentLimitStrategy):
    """Raises in one of its methods."""

    def __init__(self, where: str) -> None:
        super().__init__(1)
        self.where = where

    def _maybe(self, name: str) -> None:
        if name == self.where:
            self.where = ""
            raise LookupError(name)

    def ready_at(self, *args: Any) -> float:
        self._maybe("ready_at")
        return super().ready_at(*args)

    def acquire(self, *args: Any) -> Any:
        self._maybe("acquire")
        return super().acquire(*args)

    def started(self, *args: Any) -> None:
        self._maybe("started")

    def release(self, *args: Any) -> None:
        super().release(*args)
        self._maybe("release")


@pytest.mark.parametrize("where", ["ready_at", "acquire", "started", "release"])
async def test_a_strategy_that_raises(where: str, caplog: pytest.LogCaptureFixture) -> None:
    manager = TaskManager(Breaks(where))
    tasks = [manager.add_task(lambda: nap(1)) for _ in range(2)]
    with pytest.raises(StrategyError, match="Breaks"):
        await asyncio.wait_for(manager.run(), 60)
    with pytest.raises(StrategyError):
        await manager.join()
    with pytest.raises(StrategyError):
        await tasks[1]
    with pytest.raises(StrategyError):
        await manager.add_task(nap())
    await manager.stop()
    assert sum(record.levelno == logging.ERROR for record in caplog.records) == 1
    if where in ("ready_at", "started", "release"):
        await manager.idle()
        assert await manager.add_task(lambda: nap(1)) == 1
        await manager.stop()


@pytest.mark.parametrize("interval", [float("nan"), float("inf"), -1, "x", True])
async def test_a_junk_interval(interval: Any) -> None:
    manager = TaskManager(Polled(interval))
    manager.add_task(nap)
    with pytest.raises(StrategyError, match=r"Polled\(\).*get_sleep_interval"):
        await manager.run()


class Raises(Polled):
    async def get_sleep_interval(self) -> float | None:
        raise LookupError("interval")


class NotAsync(Polled):
    def on_task_done(self) -> None:  # type: ignore[override]
        pass


class Junk(Polled):
    def get_next_task(self) -> Any:
        return "junk"


class Twice(Polled):
    def get_next_task(self) -> Task | None:
        return self.queue[0] if self.queue else None


@pytest.mark.parametrize("kind", [Raises, NotAsync, Junk, Twice])
async def test_poisoned_custom_strategies(kind: type[Polled]) -> None:
    manager = TaskManager(kind(0.1))
    manager.add_task(lambda: nap(1))
    with pytest.raises(StrategyError, match="Polled"):
        await asyncio.wait_for(manager.run(), 60)


async def test_an_add_task_that_raises_reaches_the_caller() -> None:
    class Full(Polled):
        def add_task(self, task: Task) -> None:
            raise LookupError("full")

    manager = TaskManager(Full())
    work: Any = nap()
    with pytest.raises(LookupError, match="full"):
        manager.add_task(work)
    assert work.cr_frame is None
    assert manager.stats().queued == 0


async def test_a_hanging_hook_hangs_no_waiter() -> None:
    class Hangs(Polled):
        async def on_task_done(self) -> None:
            await asyncio.sleep(1e9)

    manager = TaskManager(Hangs())
    await manager.idle()
    assert await manager.add_task(lambda: nap(1)) == 1
    await manager.stop()
    assert now() < 2


async def test_retries_are_finished_before_join_returns() -> None:
    class Again(Feedback):
        def review(self, task: Task, outcome: Any, now: float) -> RetryAt | None:
            return RetryAt(now + 5) if outcome.kind == "failure" and task.attempt < 3 else None

    attempts: list[float] = []

    async def flaky() -> str:
        attempts.append(now())
        if len(attempts) < 3:
            raise ConnectionError
        return "at last"

    async with TaskManager(Chain(Again(), one())) as manager:
        with pytest.raises(TypeError, match="lambda"):
            manager.add_task(flaky())
        task = manager.add_task(flaky, run_timeout=1)
    assert await task == "at last"
    assert (attempts, task.attempt) == ([0, 5, 10], 3)
    assert manager.stats().succeeded == 1


# ---- load ---------------------------------------------------------------------------------------


async def test_results_are_not_kept() -> None:
    class Big:
        pass

    async def work() -> Big:
        return Big()

    async with TaskManager(one()) as manager:
        ref = weakref.ref(await manager.add_task(work))
        await asyncio.sleep(0)
        assert ref() is None


async def test_nothing_is_left_to_the_collector() -> None:
    manager = TaskManager(one())
    await manager.idle()
    await manager.add_task(lambda: nap(1))
    gc.collect()
    gc.disable()
    try:
        for _ in range(5):
            with pytest.raises(ValueError, match="x"):
                await manager.add_task(lambda: fail(ValueError("x")))
            await manager.add_task(lambda: nap(1))
        gc.set_debug(gc.DEBUG_SAVEALL)
        gc.collect()
        ours = [found for found in gc.garbage if isinstance(found, Task)]
        assert not ours
    finally:
        gc.set_debug(0)
        gc.garbage.clear()
        gc.enable()
    await manager.stop()


@pytest.mark.real_time
async def test_fifty_thousand_ready_tasks_do_not_stall_the_loop() -> None:
    async def nothing() -> None:
        pass

    gaps: list[float] = []

    async def ticker() -> None:
        last = time.perf_counter()
        while True:
            await asyncio.sleep(0.005)
            gaps.append(time.perf_counter() - last)
            last = time.perf_counter()

    manager = TaskManager(Chain())
    for _ in range(50_000):
        manager.add_task(nothing)
    ticking = asyncio.create_task(ticker())
    await manager.idle()
    await manager.join()
    ticking.cancel()
    await manager.stop()
    assert sorted(gaps)[len(gaps) // 2] < 0.05


async def test_an_idle_manager_sets_no_timer() -> None:
    manager = TaskManager(SlidingWindowStrategy(1, 10))
    await manager.idle()
    await manager.add_task(lambda: nap(1))
    await asyncio.sleep(100)
    loop: Any = asyncio.get_running_loop()
    assert [handle for handle in loop._scheduled if not handle.cancelled()] == []
    await manager.stop()


def test_it_can_be_built_and_filled_without_a_loop() -> None:
    manager = TaskManager(one())
    tasks = [manager.add_task(lambda: nap(1)) for _ in range(3)]
    assert manager.stats().queued == 3
    assert tasks[2].cancel()
    assert threading.active_count() >= 1

    async def main() -> list[float]:
        async with manager:
            return [await task for task in tasks[:2]]

    assert run_virtual(main()) == [1, 1]


# ---- corners ------------------------------------------------------------------------------------


async def test_a_chain_that_was_in_use_keeps_its_time() -> None:
    chain = Chain(SlidingWindowStrategy(1, 60))
    before = TaskManager(chain)
    await before.idle()
    await asyncio.sleep(100)
    await before.add_task(lambda: nap(0))
    await before.stop()
    del before
    await asyncio.sleep(0)
    gc.collect()
    manager = TaskManager(chain)
    began = now()
    await manager.idle()
    await manager.add_task(lambda: nap(0))
    assert now() - began == 60
    await manager.stop()


def test_it_can_be_filled_between_two_runs_of_its_loop() -> None:
    manager = TaskManager(one())
    loop = VirtualTimeLoop()
    loop.run_until_complete(manager.idle())
    task = manager.add_task(lambda: nap(1))
    assert loop.run_until_complete(task.wait()) == 1
    loop.run_until_complete(manager.stop())
    loop.close()


def test_a_live_change_after_the_loop_was_closed() -> None:
    limit = one()
    manager = TaskManager(limit)
    loop = VirtualTimeLoop()
    loop.run_until_complete(manager.idle())
    loop.run_until_complete(asyncio.sleep(1))
    keeper: Any = manager._keeper
    loop.close()
    limit.max_concurrent = 2
    assert keeper is not None

    async def again() -> float:
        await manager.idle()
        return await manager.add_task(lambda: nap(1))

    assert run_virtual(again()) == 1


async def test_an_interval_that_takes_its_time_is_asked_for_once() -> None:
    class Slow(Polled):
        asked = 0

        async def get_sleep_interval(self) -> float:
            self.asked += 1
            await asyncio.sleep(3)
            return 0

    strategy = Slow()
    manager = TaskManager(strategy)
    await manager.idle()
    await asyncio.sleep(1)
    tasks = [manager.add_task(lambda: nap(1)) for _ in range(2)]
    await asyncio.sleep(1)
    assert strategy.asked == 1
    await asyncio.gather(*(task.wait() for task in tasks))
    await manager.stop()


async def test_under_a_factory_that_runs_a_task_at_once() -> None:
    def factory(
        loop: asyncio.AbstractEventLoop, coro: Coroutine[Any, Any, Any], **_: Any
    ) -> asyncio.Future[Any]:
        with contextlib.suppress(StopIteration):
            coro.send(None)
        done = loop.create_future()
        done.set_result(None)
        return done

    async def quick() -> str:
        return "at once"

    manager = TaskManager(one())
    await manager.idle()
    loop = asyncio.get_running_loop()
    task = manager.add_task(quick, run_timeout=5)
    loop.set_task_factory(factory)  # type: ignore[arg-type]
    await asyncio.sleep(0)
    loop.set_task_factory(None)
    assert task.result() == "at once"
    await manager.stop()


async def test_the_nearer_of_two_time_limits() -> None:
    async with TaskManager(one()) as manager:
        task = manager.add_task(nap, run_timeout=1, deadline=timedelta(seconds=5))
        with pytest.raises(TaskTimeout):
            await task
        assert now() == 1


async def test_chain_time_never_goes_back() -> None:
    manager = TaskManager(one())
    await manager.idle()
    task = manager.add_task(lambda: nap(1))
    while task.state != "running":
        await asyncio.sleep(0)
    manager._now = 5.0  # as a timer does whose instant the clock had not quite reached
    await task
    assert task.started_at == task.finished_at == manager.epoch + 5
    await manager.stop()


async def test_the_work_settles_its_cost() -> None:
    async def work() -> None:
        task = current_task()
        assert task is not None
        task.settle({"tokens": 10})

    async with TaskManager(SlidingWindowStrategy(100, 60, cost="tokens")) as manager:
        for _ in range(2):
            await manager.add_task(work, {"cost": {"tokens": 90}})
        assert now() == 0


async def test_a_strategy_that_breaks_in_the_background() -> None:
    manager = TaskManager(Breaks("ready_at"))
    await manager.idle()
    with pytest.raises(StrategyError):
        await manager.add_task(nap)
    await manager.stop()


async def test_waits_that_are_cancelled_as_the_end_comes() -> None:
    manager = TaskManager(one())
    await manager.idle()
    running, queued = manager.add_task(nap), manager.add_task(nap)
    joining = asyncio.create_task(manager.join())
    waiting = asyncio.create_task(queued.wait())
    await asyncio.sleep(1)
    joining.cancel()
    waiting.cancel()
    queued.cancel()
    await asyncio.sleep(0)
    assert joining.cancelled()
    assert waiting.cancelled()
    assert await running == 10
    await manager.stop()


async def test_a_strategy_that_fails_to_settle_breaks_the_manager_not_the_work() -> None:
    class Fragile(SlidingWindowStrategy):
        def settle(self, grant: Any, actual: Any, now: float) -> None:
            raise RuntimeError("no")

    async def work() -> str:
        task = current_task()
        assert task is not None
        task.settle(3)
        return "done"

    manager = TaskManager(Fragile(5, 60, cost="tokens", default_cost=1))
    await manager.idle()
    task = manager.add_task(work)
    assert await task == "done"
    with pytest.raises(StrategyError, match="Fragile"):
        await manager.join()


async def test_settling_lets_others_start_though_the_manager_is_about_to_look_anyway() -> None:
    manager = TaskManager(SlidingWindowStrategy(10, 60, cost="tokens"))
    await manager.idle()

    async def work() -> None:
        manager.add_task(lambda: nap(1), {"cost": {"tokens": 8}})
        task = current_task()
        assert task is not None
        task.settle(2)

    manager.add_task(work, {"cost": {"tokens": 9}})
    await manager.join()
    assert now() == 1
    await manager.stop()


async def test_a_slow_interval_is_asked_for_once_at_a_time() -> None:
    class Slow(Polled):
        asked = 0

        async def get_sleep_interval(self) -> float:
            self.asked += 1
            await asyncio.sleep(5)
            return 0.0

    strategy = Slow()
    manager = TaskManager(strategy)
    await manager.idle()
    for _ in range(3):
        await asyncio.sleep(1)
        manager.add_task(lambda: nap(1))
        manager.resume()  # which looks around, though it was not paused
    await asyncio.sleep(0)
    assert strategy.asked == 1
    await manager.join()
    await manager.stop()


async def test_close_ends_though_what_runs_waits_for_what_is_queued() -> None:
    manager = TaskManager(one())
    await manager.idle()

    async def outer() -> None:
        await manager.add_task(nap)

    task = manager.add_task(outer)
    await asyncio.sleep(1)
    await manager.close()
    assert task.state == "cancelled"
    assert now() == 1


# ---- a limit that fails -------------------------------------------------------------------------


class Bad(Limit):
    """Admits everything, and raises once, where it is told."""

    def __init__(self, where: str) -> None:
        super().__init__()
        self.where = where

    def _raise(self, where: str) -> None:
        if where == self.where:
            self.where = ""
            raise ValueError("boom")

    def ready_at(self, key: Any, cost: Any, now: float) -> float:
        return now

    def acquire(self, key: Any, cost: Any, now: float) -> None:
        self._raise("acquire")

    def release(self, grant: Any, outcome: Outcome, now: float) -> None:
        self._raise("release")

    def usage(self, key: Any, now: float) -> Usage:
        return Usage(0, 1)


@pytest.mark.parametrize("shape", ["plain", "keyed", "routed"])
@pytest.mark.parametrize("first", [True, False])
@pytest.mark.parametrize("where", ["acquire", "release"])
async def test_a_limit_that_fails_leaks_nothing_and_leaves_nobody_waiting(
    where: str, first: bool, shape: str
) -> None:
    bad = Bad(where)
    slots = ConcurrentLimitStrategy(1, key="a" if shape == "keyed" else None)
    window = SlidingWindowStrategy(5, 60)
    stages = [bad, slots, window] if first else [slots, window, bad]
    chain = (
        Chain(ProviderRouterStrategy([Provider("P1", stages)]), ConcurrentLimitStrategy(9))
        if shape == "routed"
        else Chain(*stages)
    )
    manager = TaskManager(chain)
    await manager.idle()
    task, other = manager.add_task(lambda: nap(1)), manager.add_task(lambda: nap(1))
    if where == "release":
        assert await task == 1
    for each in (task, other)[where == "release" :]:
        with pytest.raises(StrategyError, match=r"Bad\(\)"):
            await each
    assert other.state == "rejected"
    assert task.state == ("rejected" if where == "acquire" else "succeeded")
    with pytest.raises(StrategyError):
        await manager.join()
    assert (manager.stats().queued, manager.stats().running) == (0, 0)
    assert slots.usage(None, now()).used == 0
    assert window.usage(None, now()).used == (0 if where == "acquire" else 1)
    await manager.idle()
    assert await manager.add_task(lambda: nap(2)) == 2
    await manager.join()
    await manager.stop()


@pytest.mark.parametrize("answer", [RetryAt(float("nan")), RetryAt(float("inf")), 5])
async def test_a_feedback_that_names_no_instant(answer: Any) -> None:
    class Vague(Feedback):
        def review(self, task: Task, outcome: Outcome, now: float) -> Any:
            return answer

        def __repr__(self) -> str:
            return "Vague()"

    manager = TaskManager(Vague())
    await manager.idle()
    assert await manager.add_task(lambda: nap(1)) == 1
    with pytest.raises(StrategyError, match=r"Vague\(\): review must give"):
        await manager.join()


@pytest.mark.parametrize("hook", ["get_next_task", "get_sleep_interval", "on_task_done"])
async def test_a_custom_strategy_that_is_cancelled_from_inside(
    hook: str, caplog: pytest.LogCaptureFixture
) -> None:
    strategy = Polled(0)

    def give_up() -> Any:
        raise asyncio.CancelledError

    async def give_up_later() -> Any:
        give_up()

    setattr(strategy, hook, give_up if hook == "get_next_task" else give_up_later)
    manager = TaskManager(strategy)
    runner = asyncio.create_task(manager.run())
    await asyncio.sleep(0)
    tasks = [manager.add_task(lambda: nap(1)) for _ in range(3)]
    with pytest.raises(StrategyError, match=r"Polled\(\)"):
        await runner
    await asyncio.wait([asyncio.ensure_future(task.wait()) for task in tasks], timeout=5)
    assert all(task.done() for task in tasks)
    assert len([r for r in caplog.records if "nothing more is started" in r.getMessage()]) == 1
    for task in tasks:
        task.exception()
    await manager.stop()


async def test_a_hook_that_is_under_way_is_cancelled_by_stop_without_blame() -> None:
    class Slow(Polled):
        async def on_task_done(self) -> None:
            await asyncio.sleep(100)

    manager = TaskManager(Slow(0))
    await manager.idle()
    await manager.add_task(lambda: nap(1))
    await manager.stop()
    await manager.join()
    assert now() < 2


@pytest.mark.real_time
async def test_a_second_loop_is_refused_and_the_first_goes_on() -> None:
    manager = TaskManager(one())
    await manager.idle()
    task = manager.add_task(lambda: asyncio.sleep(0.05, "done"))

    async def elsewhere() -> None:
        for call in (manager.join, manager.stop, manager.close):
            with pytest.raises(InvalidState, match="another loop"):
                await call()
        for act in (manager.pause, manager.resume):
            with pytest.raises(InvalidState, match="another loop"):
                act()

    await asyncio.to_thread(asyncio.run, elsewhere())
    assert await task == "done"
    await manager.stop()


def test_an_interrupt_starts_nothing_more() -> None:
    manager = TaskManager(one())
    started = []

    async def interrupted() -> None:
        raise KeyboardInterrupt

    async def later() -> None:
        started.append(now())

    async def main() -> None:
        await manager.idle()
        manager.add_task(interrupted)
        manager.add_task(later)
        await asyncio.sleep(5)

    with pytest.raises(KeyboardInterrupt):
        asyncio.run(main())
    assert started == []
    assert manager.stats().queued == 1


@pytest.mark.real_time
async def test_other_threads_cannot_cancel_but_have_it_done() -> None:
    async with TaskManager(one()) as manager:
        running, queued = manager.add_task(lambda: nap(1)), manager.add_task(lambda: nap(1))
        await asyncio.sleep(0.5)
        loop = asyncio.get_running_loop()
        for task in (running, queued):
            with pytest.raises(InvalidState, match="call_soon_threadsafe"):
                await asyncio.to_thread(task.cancel)
            with pytest.raises(InvalidState, match="call_soon_threadsafe"):
                await asyncio.to_thread(manager.cancel, task.id)
        assert (running.state, queued.state) == ("running", "queued")
        for task in (running, queued):
            await asyncio.to_thread(loop.call_soon_threadsafe, task.cancel)
        await manager.join()
        assert manager.stats().cancelled == 2


async def test_a_thread_that_gives_up_before_its_task_was_added() -> None:
    manager = TaskManager(one())
    await manager.idle()
    refused: Any = manager.add_task_threadsafe(3)  # type: ignore[arg-type]
    coroutine = nap(1)
    unwanted = manager.add_task_threadsafe(coroutine)
    refused.cancel()
    unwanted.cancel()
    await asyncio.sleep(0.01)
    assert manager.stats().queued == manager.stats().running == 0
    with pytest.raises(RuntimeError, match="already awaited"):
        coroutine.send(None)
    await manager.stop()


async def test_usage_tells_limits_with_one_name_apart_and_every_key() -> None:
    chain = Chain(
        ConcurrentLimitStrategy(3),
        ConcurrentLimitStrategy(3),
        ConcurrentLimitStrategy(2, key="user"),
    )
    manager = TaskManager(chain)
    await manager.idle()
    for user in ("ann", "ann", "bob"):
        manager.add_task(lambda: nap(1), {"user": user})
    await asyncio.sleep(0.5)
    usage = manager.stats().usage
    name = "ConcurrentLimitStrategy(3)"
    assert [usage[name].used, usage[f"{name} #2"].used] == [3, 3]
    keyed = usage[repr(chain.stages[2])]
    assert {key: found.used for key, found in keyed.items()} == {"ann": 2, "bob": 1}
    await manager.close(grace=0)


async def test_a_coroutine_belongs_to_one_manager() -> None:
    first, second = TaskManager(one()), TaskManager(one())
    coroutine = nap(1)
    task = first.add_task(coroutine)
    with pytest.raises(InvalidState, match="added already"):
        second.add_task(coroutine)
    await first.idle()
    assert await task == 1
    await first.stop()


async def test_a_manager_that_is_dropped_tells_whoever_waits() -> None:
    manager = TaskManager(one())
    waiting = asyncio.create_task(manager.add_task(nap).wait())
    await asyncio.sleep(0)
    del manager
    gc.collect()
    with pytest.raises(asyncio.CancelledError):
        await waiting


async def test_the_next_attempt_starts_without_the_cost_of_the_one_before() -> None:
    costs = []

    class Twice(Feedback):
        def review(self, task: Task, outcome: Outcome, now: float) -> RetryAt | None:
            costs.append(outcome.cost)
            return RetryAt(now) if task.attempt < 2 else None

    async def work() -> None:
        task = current_task()
        assert task is not None
        if task.attempt == 1:
            task.settle(70)

    manager = TaskManager(Twice())
    await manager.idle()
    await manager.add_task(work)
    assert costs == [70, None]
    await manager.stop()


async def test_a_custom_strategy_is_named_whatever_it_calls_itself() -> None:
    class Odd(Polled):
        def get_next_task(this) -> Task | None:  # noqa: N805
            raise KeyError("x")

    manager = TaskManager(Chain(Odd(), one()))
    await manager.idle()
    with pytest.raises(StrategyError, match=r"^Polled\(\) raised KeyError"):
        await manager.add_task(lambda: nap(1))
    await manager.stop()
