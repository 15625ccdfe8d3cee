"""What can go wrong on every way into a manager, and what must happen then.

A caller is cancelled after each number of turns of the loop; errors of any kind; a manager that
stops, closes or breaks under its callers. Nothing is leaked, and nobody is left waiting.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
from collections.abc import AsyncIterator, Callable, Coroutine, Hashable
from functools import partial
from typing import Any, TypeAlias

import pytest

from async_task_manager import ManagerClosed, StrategyError, TaskDropped, TaskManager, current_task
from async_task_manager.events import Event, Finished, Queued, Started
from async_task_manager.strategies import ConcurrentLimitStrategy

Way: TypeAlias = "Callable[[TaskManager], Coroutine[Any, Any, Any]]"
Work: TypeAlias = "Callable[[], Coroutine[Any, Any, Any]]"


class Slots(ConcurrentLimitStrategy):
    """Two at once; it can be told to fail."""

    broken = False

    def __init__(self) -> None:
        super().__init__(2)

    def ready_at(self, key: Hashable, cost: Any, now: float) -> float:
        if self.broken:
            raise ZeroDivisionError
        return super().ready_at(key, cost, now)


async def nap(seconds: float = 1.0) -> float:
    await asyncio.sleep(seconds)
    return seconds


# ---- the ways in, each with work of the test's choice -------------------------------------------


async def by_turn(manager: TaskManager, work: Work) -> Any:
    async with manager.turn():
        return await work()


async def by_wrap(manager: TaskManager, work: Work) -> Any:
    return await manager.wrap(work)()


async def by_map(manager: TaskManager, work: Work) -> Any:
    return [result async for result in manager.map(lambda _: work(), range(5), ahead=3)]


async def by_async_map(manager: TaskManager, work: Work) -> Any:
    async def items() -> AsyncIterator[int]:
        for i in range(5):
            yield i
            await asyncio.sleep(0)

    return [result async for result in manager.map(lambda _: work(), items(), ordered=True)]


async def by_gather(manager: TaskManager, work: Work) -> Any:
    return await manager.gather(*[work] * 4)


async def by_put(manager: TaskManager, work: Work) -> Any:
    task = await manager.put(work)
    try:
        return await task.wait()
    except asyncio.CancelledError:
        task.cancel()
        raise


WAYS = [by_turn, by_wrap, by_map, by_async_map, by_gather, by_put]
ways = pytest.mark.parametrize("way", WAYS, ids=lambda way: way.__name__[3:])


async def started() -> tuple[TaskManager, Slots]:
    slots = Slots()
    manager = TaskManager(slots, max_queued=10)
    await manager.idle()
    return manager, slots


async def clean(manager: TaskManager, slots: Slots) -> None:
    """Nothing is left, and the next task runs."""
    await asyncio.sleep(0.001)
    stats = manager.stats()
    assert (stats.queued, stats.running) == (0, 0)
    assert slots.usage(None, 0).used == 0
    assert await manager.add_task(partial(nap, 0.5)).wait() == 0.5
    await manager.stop()


@ways
async def test_a_caller_may_be_cancelled_at_any_step(
    way: Any, caplog: pytest.LogCaptureFixture
) -> None:
    for steps in range(14):
        for busy in (0, 3):  # slots are free, or taken with one more waiting
            manager, slots = await started()
            others = manager.add_tasks([nap] * busy)
            caller = asyncio.create_task(way(manager, nap))
            for _ in range(steps):
                await asyncio.sleep(0)
            caller.cancel()
            with pytest.raises(asyncio.CancelledError):
                await caller
            await asyncio.gather(*others)
            await clean(manager, slots)
            assert manager.stats().failed == 0  # nobody failed, so nobody learns of a failure
            assert not caplog.records


async def brief(seconds: float = 0) -> float:
    """Over after one turn of the loop."""
    await asyncio.sleep(0)
    return seconds


async def by_brief_turn(manager: TaskManager, work: Work) -> Any:
    async with manager.turn():
        return await work()


@pytest.mark.parametrize("way", [*WAYS, by_brief_turn], ids=lambda way: way.__name__[3:])
async def test_a_caller_may_be_cancelled_as_it_leaves(
    way: Any, caplog: pytest.LogCaptureFixture
) -> None:
    for steps in range(20):
        manager, slots = await started()
        caller = asyncio.create_task(way(manager, brief))
        for _ in range(steps):
            await asyncio.sleep(0)
        caller.cancel()
        await asyncio.wait([caller])
        assert caller.cancelled() or caller.result() is not None
        await clean(manager, slots)
        assert manager.stats().failed == 0
        assert not caplog.records


class Odd(BaseException):
    """An error of an unusual kind."""


@ways
@pytest.mark.parametrize("error", [ValueError("a", 1), MemoryError(), Odd(7), TimeoutError()])
async def test_errors_of_any_kind_reach_the_caller_as_they_are(
    way: Any, error: BaseException
) -> None:
    async def fail() -> None:
        await asyncio.sleep(0.1)
        raise error

    manager, slots = await started()
    with pytest.raises(type(error)) as caught:
        await way(manager, fail)
    assert caught.value is error
    assert any(entry.name == "fail" for entry in caught.traceback)
    if way is by_gather:
        with contextlib.suppress(BaseException):
            await manager.join()  # the others go on
    await clean(manager, slots)


@ways
async def test_work_that_cancels_itself_is_cancelled(way: Any) -> None:
    async def give_up() -> None:
        raise asyncio.CancelledError

    manager, slots = await started()
    with pytest.raises(asyncio.CancelledError):
        await way(manager, give_up)
    me = asyncio.current_task()
    assert me is not None and not me.cancelling()
    await clean(manager, slots)


@ways
async def test_a_strategy_that_fails_tells_whoever_waits(
    way: Any, caplog: pytest.LogCaptureFixture
) -> None:
    manager, slots = await started()
    others = manager.add_tasks([nap] * 2)
    caller = asyncio.create_task(way(manager, nap))
    await asyncio.sleep(0.5)
    slots.broken = True
    slots.changed()
    with pytest.raises(StrategyError, match="Slots"):
        await caller
    slots.broken = False
    assert await asyncio.gather(*others) == [1.0, 1.0]  # what ran delivers
    await manager.idle()
    await clean(manager, slots)


@ways
async def test_a_manager_that_closes_tells_whoever_waits(way: Any) -> None:
    manager, _ = await started()
    manager.add_tasks([partial(nap, 5)] * 2)
    caller = asyncio.create_task(way(manager, nap))
    await asyncio.sleep(0.5)
    await manager.close(grace=0)
    done, _ = await asyncio.wait([caller], timeout=1)
    assert done
    assert caller.cancelled() or isinstance(caller.exception(), ManagerClosed)
    assert manager.stats().running == 0


@ways
async def test_a_manager_that_stops_keeps_what_waits_for_the_next_start(way: Any) -> None:
    manager, slots = await started()
    manager.add_tasks([nap] * 2)
    caller = asyncio.create_task(way(manager, nap))
    await asyncio.sleep(0.5)
    await manager.stop()
    await asyncio.sleep(10)
    assert not caller.done()
    await manager.idle()
    await caller
    await clean(manager, slots)


async def test_a_thousand_waits_that_were_given_up_leave_nothing() -> None:
    manager = TaskManager(ConcurrentLimitStrategy(1), max_queued=1)
    await manager.idle()
    running, queued = manager.add_task(partial(nap, 100)), None
    await asyncio.sleep(0.1)
    queued = manager.add_task(nap)
    callers = [asyncio.create_task(manager.put(nap)) for _ in range(1_000)]
    waits = [asyncio.create_task(queued.wait()) for _ in range(1_000)]
    await asyncio.sleep(1)
    for each in (*callers, *waits):
        each.cancel()
    await asyncio.gather(*callers, *waits, return_exceptions=True)
    assert queued._watchers is not None and not queued._watchers.waiters
    assert manager._room is not None and not manager._room.waiters
    running.cancel()
    assert await queued.wait() == 1.0
    await manager.stop()


async def test_a_task_that_is_dropped_tells_its_waiter_and_closes_its_work(
    recwarn: pytest.WarningsRecorder,
) -> None:
    manager = TaskManager(ConcurrentLimitStrategy(1), max_queued=1, overflow="drop_oldest")
    await manager.idle()
    manager.add_task(nap())
    await asyncio.sleep(0.1)
    oldest = manager.add_task(nap())
    waiter = asyncio.create_task(oldest.wait())
    await asyncio.sleep(0.1)
    newest = manager.add_task(nap())
    with pytest.raises(TaskDropped):
        await waiter
    assert await newest.wait() == 1.0
    gc.collect()
    assert not recwarn.list
    await manager.stop()


async def test_by_id_whatever_becomes_of_the_task() -> None:
    manager, slots = await started()
    ids: list[int] = []

    async def inside() -> None:
        me = current_task()
        assert me is not None
        ids.append(me.id)
        status = manager.status(me.id)
        assert status is not None and status.state == "running"
        assert manager.cancel(me.id)
        await asyncio.sleep(1)

    task = manager.add_task(inside)
    with pytest.raises(asyncio.CancelledError):
        await task.wait()  # it cancels itself, by its id
    assert ids == [task.id]
    assert not manager.cancel(task.id)
    assert manager.status(task.id) is None
    await clean(manager, slots)


async def test_an_observer_may_cancel_add_and_leave_while_it_is_told() -> None:
    manager, slots = await started()
    seen: list[str] = []

    def observer(record: Event) -> None:
        seen.append(type(record).__name__)
        if isinstance(record, Queued) and len(seen) == 1:
            manager.add_task(partial(nap, 0.1))
        elif isinstance(record, Started):
            record.task.cancel()
        elif isinstance(record, Finished):
            leave()
            leave()

    leave = manager.subscribe(observer)
    task = manager.add_task(nap)
    await manager.join()
    assert task.state == "cancelled"
    assert seen[:2] == ["Queued", "Queued"]
    assert seen.count("Finished") == 1  # it left on hearing of the first
    await clean(manager, slots)
