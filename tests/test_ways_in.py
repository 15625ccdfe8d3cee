"""Turns, wrapped functions, map, gather and the rest: other ways into a manager."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import logging
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
from functools import partial
from typing import Any

import pytest

from async_task_manager import (
    Chain,
    InvalidState,
    InvalidType,
    InvalidValue,
    NotRunning,
    QueueFull,
    QueueTimeout,
    Task,
    TaskManager,
    TaskRejected,
    TaskTimeout,
    TaskTooLarge,
    current_task,
)
from async_task_manager.strategies import (
    ConcurrentLimitStrategy,
    Feedback,
    Limit,
    PriorityQueueStrategy,
    Provider,
    ProviderRouterStrategy,
    SlidingWindowStrategy,
    Usage,
)
from async_task_manager.task import Outcome
from async_task_manager.testing import run_virtual


def now() -> float:
    return asyncio.get_running_loop().time()


def one() -> ConcurrentLimitStrategy:
    return ConcurrentLimitStrategy(1)


async def nap(seconds: float = 10.0) -> float:
    await asyncio.sleep(seconds)
    return seconds


class Outcomes(Limit):
    """Admits everything, and remembers how it ended."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[Outcome] = []

    def ready_at(self, key: object, cost: float, now: float) -> float:
        return now

    def acquire(self, key: object, cost: float, now: float) -> None:
        pass

    def release(self, grant: Any, outcome: Outcome, now: float) -> None:
        self.seen.append(outcome)

    def usage(self, key: object, now: float) -> Usage:
        return Usage(0, 1)


# ---- turns --------------------------------------------------------------------------------------


async def test_a_turn_holds_its_permits_as_long_as_the_body_runs() -> None:
    manager = TaskManager(one())
    await manager.idle()
    came: list[tuple[str, float]] = []
    ended: list[str] = []

    async def user(name: str) -> None:
        async with manager.turn(name=name) as task:
            assert current_task() is task
            assert task.state == "running"
            came.append((task.name, now()))
            await asyncio.sleep(2)
        assert current_task() is None
        ended.append(task.state)

    await asyncio.gather(*(user(name) for name in "abc"))
    assert came == [("a", 0.0), ("b", 2.0), ("c", 4.0)]
    assert ended == ["succeeded"] * 3
    assert manager.stats().running == 0
    await manager.stop()


async def test_a_turn_pays_its_cost_and_has_its_priority() -> None:
    chain = Chain(PriorityQueueStrategy(), SlidingWindowStrategy(10, 60, cost="tokens"))
    manager = TaskManager(chain)
    await manager.idle()
    order: list[str] = []

    async def user(name: str, priority: str, tokens: int) -> None:
        async with manager.turn(priority=priority, cost={"tokens": tokens}):
            order.append(f"{name} {now():g}")

    users = [user("low", "low", 6), user("normal", "normal", 6), user("high", "high", 4)]
    await asyncio.gather(*users)
    assert order == ["high 0", "normal 0", "low 60"]
    with pytest.raises(TaskTooLarge):
        async with manager.turn(cost={"tokens": 11}):
            pytest.fail("a cost that never fits got its turn")
    await manager.stop()


async def test_the_error_of_the_body_is_the_callers_and_the_tasks() -> None:
    outcomes = Outcomes()
    manager = TaskManager(outcomes)
    await manager.idle()
    error = ValueError("no")
    with pytest.raises(ValueError, match="no") as caught:
        async with manager.turn() as task:
            raise error
    assert caught.value is error
    frames = [entry.name for entry in caught.traceback]
    assert "_hold" not in frames
    assert task.state == "failed"
    assert outcomes.seen[0].error is error
    with pytest.raises(StopIteration):
        async with manager.turn() as task:
            raise StopIteration
    assert task.state == "cancelled"
    await manager.stop()


async def test_cancelling_the_caller_ends_the_turn() -> None:
    manager = TaskManager(one())
    await manager.idle()
    inside: list[Task] = []

    async def user() -> None:
        async with manager.turn() as task:
            inside.append(task)
            await asyncio.sleep(100)

    first, second = asyncio.create_task(user()), asyncio.create_task(user())
    await asyncio.sleep(1)
    assert len(inside) == 1
    second.cancel()  # in the queue
    await asyncio.wait([second])
    assert manager.stats().queued == 0
    first.cancel()  # in its turn
    await asyncio.wait([first])
    assert first.cancelled()
    assert second.cancelled()
    assert inside[0].state == "cancelled"
    assert manager.stats().running == 0
    async with manager.turn():
        pass
    await manager.stop()


async def test_cancelling_the_task_cancels_the_body() -> None:
    manager = TaskManager(one())
    await manager.idle()
    inside: list[Task] = []

    async def user() -> str:
        try:
            async with manager.turn() as task:
                inside.append(task)
                await asyncio.sleep(100)
        except asyncio.CancelledError:
            return "cancelled"
        return "went on"

    running = asyncio.create_task(user())
    await asyncio.sleep(1)
    inside[0].cancel()
    assert await running == "cancelled"
    assert inside[0].state == "cancelled"
    await manager.stop()


async def test_time_limits_hold_for_turns() -> None:
    manager = TaskManager(one())
    await manager.idle()
    with pytest.raises(TaskTimeout):
        async with manager.turn(run_timeout=3):
            await asyncio.sleep(100)
    assert now() == 3
    me = asyncio.current_task()
    assert me is not None
    assert me.cancelling() == 0

    async with manager.turn():
        with pytest.raises(QueueTimeout):
            async with manager.turn(queue_timeout=2):
                pytest.fail("two got their turn at once")
    assert now() == 5
    await manager.stop()


async def test_a_body_that_outlives_its_time_keeps_its_own_end() -> None:
    manager = TaskManager(one())
    await manager.idle()

    async def stumble() -> None:
        async with manager.turn(run_timeout=1):
            try:
                await asyncio.sleep(100)
            except asyncio.CancelledError:
                raise KeyError from None

    with pytest.raises(KeyError):
        await stumble()
    async with manager.turn(run_timeout=1) as task:
        try:
            await asyncio.sleep(100)
        except asyncio.CancelledError:
            pass
    assert task.state == "failed"
    await manager.stop()


async def test_a_body_cancelled_twice_is_cancelled() -> None:
    manager = TaskManager(one())
    await manager.idle()

    async def user() -> None:
        async with manager.turn(run_timeout=1):
            await asyncio.sleep(100)

    running = asyncio.create_task(user())
    asyncio.get_running_loop().call_at(1.0, running.cancel)
    await asyncio.wait([running])
    assert running.cancelled()
    await manager.stop()


async def test_a_turn_that_is_cancelled_as_it_leaves() -> None:
    manager = TaskManager(one())
    await manager.idle()

    async with manager.turn() as task:
        task.cancel()  # the body doesn't wait for anything any more
    assert task.state == "cancelled"
    await manager.stop()


async def test_turns_are_taken_once_and_need_a_manager_that_runs() -> None:
    manager = TaskManager(one())
    with pytest.raises(NotRunning, match=r"turn\(\)"):
        async with manager.turn():
            pytest.fail("nobody gives turns")
    await manager.idle()
    turn = manager.turn()
    async with turn:
        pass
    with pytest.raises(InvalidState, match="once"):
        async with turn:
            pytest.fail("the same turn twice")
    await manager.stop()

    class Never(Feedback):
        def review(self, task: Task, outcome: Outcome, now: float) -> None:
            return None

    retrying = TaskManager(Chain(Never(), one()))
    await retrying.idle()
    with pytest.raises(InvalidState, match="wrap"):
        async with retrying.turn():
            pytest.fail("a body cannot be repeated")
    await retrying.stop()


async def test_a_turn_in_an_async_generator_may_end_in_another_context() -> None:
    manager = TaskManager(one())
    await manager.idle()

    async def numbers() -> AsyncIterator[int]:
        async with manager.turn():
            yield 1

    source = numbers()
    assert await anext(source) == 1
    await asyncio.create_task(source.aclose())  # type: ignore[attr-defined]
    assert manager.stats().running == 0
    await manager.stop()


# ---- wrapped functions --------------------------------------------------------------------------


async def test_each_call_of_a_wrapped_function_goes_through() -> None:
    manager = TaskManager(one())
    await manager.idle()

    @manager.wrap
    async def double(x: int, *, plus: int = 0) -> int:
        """Twice x."""
        await asyncio.sleep(1)
        return 2 * x + plus

    assert double.__doc__ == "Twice x."
    assert list(await asyncio.gather(double(1), double(2, plus=5))) == [2, 9]
    assert now() == 2
    await manager.stop()


async def test_a_wrapped_function_has_metadata_and_options() -> None:
    manager = TaskManager(Chain(PriorityQueueStrategy(), one()))
    await manager.idle()
    order: list[str] = []

    async def say(what: str, level: str) -> str | None:
        order.append(what)
        await asyncio.sleep(1)
        task = current_task()
        return None if task is None else task.name

    by_level = manager.wrap(say, metadata=lambda what, level: {"priority": level}, name="say it")
    names = await asyncio.gather(by_level("a", "low"), by_level("b", "high"))
    assert order == ["b", "a"]
    assert list(names) == ["say it", "say it"]

    @manager.wrap(metadata={"priority": "high"}, run_timeout=0.5)
    async def slow() -> None:
        await asyncio.sleep(1)

    with pytest.raises(TaskTimeout):
        await slow()
    await manager.stop()


async def test_a_cancelled_call_cancels_its_task() -> None:
    manager = TaskManager(one())
    await manager.idle()
    call = asyncio.create_task(manager.wrap(nap)(100))
    await asyncio.sleep(1)
    call.cancel()
    await asyncio.wait([call])
    await manager.join()
    assert now() == 1
    assert manager.stats().cancelled == 1
    await manager.stop()


async def test_what_cannot_be_wrapped() -> None:
    manager = TaskManager(one())
    with pytest.raises(InvalidType, match="async function"):
        manager.wrap(3)  # type: ignore[call-overload]
    with pytest.raises(NotRunning, match="wrapped"):
        await manager.wrap(nap)(1)


# ---- map ----------------------------------------------------------------------------------------


async def inverse(x: int) -> int:
    await asyncio.sleep(10 - x)
    return x


async def test_map_gives_results_as_they_come_or_in_order() -> None:
    async with TaskManager(ConcurrentLimitStrategy(10)) as manager:
        assert [x async for x in manager.map(inverse, range(4))] == [3, 2, 1, 0]
        assert now() == 10
        assert [x async for x in manager.map(inverse, range(4), ordered=True)] == [0, 1, 2, 3]
        assert now() == 20
        assert [x async for x in manager.map(inverse, [])] == []


async def test_map_takes_items_as_they_are_needed() -> None:
    taken = 0

    def items() -> Iterator[int]:
        nonlocal taken
        while True:
            taken += 1
            yield taken

    async with TaskManager(ConcurrentLimitStrategy(2)) as manager:
        seen = 0
        results = manager.map(nap, items(), ahead=5)
        async for _ in results:
            seen += 1
            assert taken <= seen + 5
            if seen == 20:
                break
        await results.aclose()
        await manager.join()
    assert taken <= 25


async def test_map_over_async_items_does_not_wait_for_the_next_to_give_the_last() -> None:
    async def items() -> AsyncIterator[float]:
        for seconds in (1.0, 1.0, 1.0):
            await asyncio.sleep(5)
            yield seconds

    async with TaskManager(one()) as manager:
        times = [now() async for _ in manager.map(nap, items())]
    assert times == [6, 11, 16]


async def test_the_first_error_ends_a_map_and_what_it_took_in() -> None:
    async def fail_at_two(x: int) -> int:
        await asyncio.sleep(x)
        if x == 2:
            raise ValueError(x)
        return x

    async with TaskManager(ConcurrentLimitStrategy(10)) as manager:
        results = manager.map(fail_at_two, range(100))
        assert [await anext(results), await anext(results)] == [0, 1]
        with pytest.raises(ValueError, match="2"):
            await anext(results)
        await manager.join()
        assert now() == 2
        assert manager.stats().succeeded == 2


async def test_of_the_errors_of_a_map_the_first_is_news(caplog: pytest.LogCaptureFixture) -> None:
    async with TaskManager(ConcurrentLimitStrategy(10)) as manager:
        with pytest.raises(ValueError, match="1"):
            await anext(manager.map(boom, [1, 1, 1]))
        await manager.join()
        assert manager.stats().failed == 3

        def items() -> Iterator[float]:
            yield 1.0
            raise LookupError("no more")

        results = manager.map(nap, items(), ordered=True)
        assert await anext(results) == 1
        await results.aclose()  # left before the items' error
    gc.collect()
    assert not caplog.records


async def test_the_error_of_the_items_ends_a_map() -> None:
    def items() -> Iterator[float]:
        yield 1.0
        raise LookupError("no more")

    async with TaskManager(one()) as manager:
        with pytest.raises(LookupError, match="no more"):
            await anext(manager.map(nap, items()))
    async with TaskManager(Chain(PriorityQueueStrategy(), one())) as manager:
        with pytest.raises(InvalidValue, match="priority"):
            await anext(manager.map(nap, [1.0], metadata={"priority": "urgent"}))


async def test_a_map_respects_the_bound_of_the_queue() -> None:
    longest = 0

    async def look(_: int) -> None:
        nonlocal longest
        await asyncio.sleep(1)
        longest = max(longest, manager.stats().queued)

    async with TaskManager(one(), max_queued=3) as manager:
        async for _ in manager.map(look, range(20)):
            pass
    assert longest == 3


async def test_bad_arguments_of_map() -> None:
    manager = TaskManager(one())
    with pytest.raises(NotRunning, match=r"map\(\)"):
        manager.map(nap, [])
    await manager.idle()
    with pytest.raises(InvalidType, match="async function"):
        manager.map(None, [])  # type: ignore[arg-type]
    with pytest.raises(InvalidType, match="not 3"):
        manager.map(nap, 3)  # type: ignore[arg-type]
    with pytest.raises(InvalidValue, match="ahead"):
        manager.map(nap, [], ahead=0)
    await manager.stop()


# ---- gather and add_tasks -----------------------------------------------------------------------


async def test_gather_gives_results_in_order() -> None:
    async with TaskManager(ConcurrentLimitStrategy(2)) as manager:
        assert await manager.gather(lambda: nap(3), nap(1), lambda: nap(2)) == [3, 1, 2]
        assert now() == 3
        assert await manager.gather() == []


async def boom(seconds: float) -> None:
    await asyncio.sleep(seconds)
    raise ValueError(seconds)


async def test_gather_raises_the_first_error_or_gives_them_all(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async with TaskManager(ConcurrentLimitStrategy(9)) as manager:
        with pytest.raises(ValueError, match=r"1\.5"):
            await manager.gather(boom(2), boom(1.5), nap(9))
        assert now() == 1.5
        assert manager.stats().running == 2
        await manager.join()
        results = await manager.gather(boom(1), nap(2), return_exceptions=True)
        assert isinstance(results[0], ValueError)
        assert results[1] == 2
        tasks = [Task(lambda: nap(5)), Task(lambda: nap(6))]
        asyncio.get_running_loop().call_later(1, tasks[0].cancel)
        with pytest.raises(asyncio.CancelledError):
            await manager.gather(*tasks)
        tasks[1].cancel()
    gc.collect()
    assert "nobody waited" not in caplog.text


async def test_a_cancelled_gather_cancels_its_tasks() -> None:
    async with TaskManager(one()) as manager:
        both = asyncio.create_task(manager.gather(nap(5), nap(5)))
        await asyncio.sleep(1)
        both.cancel()
        await asyncio.wait([both])
        await manager.join()
        assert now() == 1
        assert manager.stats().cancelled == 2


async def test_gather_needs_a_manager_that_runs() -> None:
    with pytest.raises(NotRunning, match=r"gather\(\)"):
        await TaskManager(one()).gather(nap(1))


async def test_add_tasks_takes_all_or_none() -> None:
    manager = TaskManager(Chain(PriorityQueueStrategy(), one()))
    await manager.idle()
    tasks = manager.add_tasks([nap(1), nap(2)], {"priority": "high"}, name="both")
    assert [await task for task in tasks] == [1, 2]
    assert {task.name for task in tasks} == {"both"}
    with pytest.raises(InvalidType, match="not 3"):
        manager.add_tasks([nap(1), 3, nap(2), Task(nap(3))])  # type: ignore[arg-type]
    assert manager.stats().queued == 0
    with pytest.raises(InvalidType, match="iterable of works, not 3"):
        manager.add_tasks(3)  # type: ignore[arg-type]

    def works() -> Iterator[Coroutine[Any, Any, float]]:
        yield nap(1)  # a warning that nobody awaited it would be an error here
        raise LookupError("no more")

    with pytest.raises(LookupError, match="no more"):
        manager.add_tasks(works())
    queued = nap(1)
    task = manager.add_task(queued)
    with pytest.raises(InvalidState, match="added already"):
        manager.add_tasks([queued])
    assert await task == 1
    await manager.stop()


# ---- autostart ----------------------------------------------------------------------------------


def test_the_first_task_in_a_running_loop_starts_it() -> None:
    manager = TaskManager(one(), autostart=True)
    early = manager.add_task(lambda: nap(1))

    async def first() -> None:
        assert not early.done()
        await manager.add_task(lambda: nap(2))
        assert early.result() == 1

    async def second() -> None:
        async with manager.turn():
            await asyncio.sleep(1)
        await manager.stop()
        queued = manager.add_task(lambda: nap(1))
        await asyncio.sleep(5)
        assert queued.state == "queued"  # stopped is stopped
        await manager.close()

    run_virtual(first())
    run_virtual(second())  # another loop, after the first one was closed over the manager


async def test_autostart_does_not_revive_what_was_closed() -> None:
    manager = TaskManager(one(), autostart=True)
    await manager.close()
    with pytest.raises(InvalidState, match="closed"):
        manager.add_task(nap(1))


# ---- a task that waits for one that its own slot holds up ---------------------------------------


async def test_a_task_that_waits_for_its_own_slot_is_warned_about(
    caplog: pytest.LogCaptureFixture,
) -> None:
    manager = TaskManager(one())
    await manager.idle()

    async def outer() -> None:
        await manager.add_task(lambda: nap(1), name="inner")

    task = manager.add_task(outer, name="outer")
    await asyncio.sleep(1)
    (record,) = caplog.records
    assert record.levelno == logging.WARNING
    assert "outer" in record.getMessage()
    assert "inner" in record.getMessage()
    assert "ConcurrentLimitStrategy(1)" in record.getMessage()
    task.cancel()
    await manager.join()
    await manager.stop()


async def by_turn(manager: TaskManager) -> None:
    async with manager.turn(name="inner"):
        pass


async def by_map(manager: TaskManager) -> None:
    async for _ in manager.map(nap, [1, 2, 3]):
        pass


@pytest.mark.parametrize(
    "wait",
    [
        lambda manager: manager.add_task(nap),
        lambda manager: manager.gather(nap, nap, nap),
        lambda manager: manager.wrap(nap)(),
        lambda manager: asyncio.gather(*[manager.wrap(nap)() for _ in range(3)]),
        by_turn,
        by_map,
    ],
)
async def test_whichever_way_it_waits_it_is_warned_about_once(
    wait: Callable[[TaskManager], Any], caplog: pytest.LogCaptureFixture
) -> None:
    manager = TaskManager(one())
    await manager.idle()

    async def outer() -> None:
        await wait(manager)

    for times in (1, 2):
        task = manager.add_task(outer, name="outer")
        await asyncio.sleep(1)
        assert ["deadlock" in record.getMessage() for record in caplog.records] == [True] * times
        task.cancel()
        await manager.join()
    waits = manager._waits
    assert not (waits._for or waits._by or waits._own or waits._warned)
    await manager.stop()


@pytest.mark.parametrize("key", [None, "k"])
@pytest.mark.parametrize("helped", [False, True])
async def test_a_deadlock_through_a_task_that_runs(
    key: str | None, helped: bool, caplog: pytest.LogCaptureFixture
) -> None:
    """The first waits for the second, and the second for a third that needs the first one's slot,
    unless the first gives up waiting.
    """
    manager = TaskManager(ConcurrentLimitStrategy(1 if key else 2, key=key))
    await manager.idle()

    async def second() -> None:
        await asyncio.sleep(2)
        await manager.add_task(lambda: nap(1), {"k": "first"}, name="third")

    async def first() -> None:
        other = manager.add_task(second, {"k": "second"}, name="second")
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(1 if helped else None):
                await other
        await asyncio.sleep(5)

    task = manager.add_task(first, {"k": "first"}, name="first")
    await asyncio.sleep(3)
    assert ["third" in record.getMessage() for record in caplog.records] == [True] * (not helped)
    task.cancel()
    await manager.join()
    await manager.stop()


async def test_it_is_a_deadlock_only_if_all_holders_wait(caplog: pytest.LogCaptureFixture) -> None:
    manager = TaskManager(ConcurrentLimitStrategy(2))
    await manager.idle()

    async def outer(first: float) -> None:
        await asyncio.sleep(first)
        await asyncio.gather(manager.add_task(lambda: nap(1)).wait(), asyncio.sleep(0))

    manager.add_task(lambda: outer(0), name="first")
    manager.add_task(lambda: nap(5))
    await manager.join()
    assert not caplog.records  # the nap's slot helped it out

    stuck = [manager.add_task(partial(outer, s), name=f"outer {s}") for s in (1, 2)]
    await asyncio.sleep(1.5)
    assert not caplog.records
    await asyncio.sleep(1)
    assert ["outer 2" in record.getMessage() for record in caplog.records] == [True]
    stuck[0].cancel()
    await manager.join()
    await manager.stop()


@pytest.mark.parametrize("places", [1, 2])
@pytest.mark.parametrize("key", [None, "model"])
async def test_a_deadlock_inside_a_routers_branches(
    places: int, key: str | None, caplog: pytest.LogCaptureFixture
) -> None:
    """Only once all providers that the other may take are held by tasks that wait."""
    router = ProviderRouterStrategy(
        [Provider(f"P{i}", [ConcurrentLimitStrategy(1, key=key)]) for i in range(places)]
    )
    manager = TaskManager(router)
    await manager.idle()

    async def outer(**metadata: str) -> None:
        await asyncio.sleep(1)
        await manager.add_task(lambda: nap(1), {"model": "x", **metadata}, name="inner")

    stuck = manager.add_task(outer, {"model": "x"}, name="outer")
    await asyncio.sleep(2)
    assert bool(caplog.records) is (places == 1)
    if key:
        manager.add_task(outer, {"model": "y"})  # holds nothing of x
        await asyncio.sleep(2)
        assert len(caplog.records) == 2 - places
    if places == 2:
        await stuck  # the other provider helped it out
        stuck, other = [manager.add_task(outer, {"model": "x"}) for _ in range(2)]
        await asyncio.sleep(2)
        assert len(caplog.records) == 1  # when the second began to wait
        other.cancel()
    assert "its place in ProviderRouterStrategy" in caplog.records[0].getMessage()
    stuck.cancel()
    await manager.join()
    pinned = manager.add_task(partial(outer, provider="P0"), {"model": "x", "provider": "P0"})
    await asyncio.sleep(2)
    assert len(caplog.records) == 2
    pinned.cancel()
    await manager.join()
    await manager.stop()


async def test_a_provider_that_cannot_take_the_task_helps_nobody_out(
    caplog: pytest.LogCaptureFixture,
) -> None:
    router = ProviderRouterStrategy(
        [
            Provider("small", [ConcurrentLimitStrategy(1, cost="size", default_cost=1)]),
            Provider("large", [ConcurrentLimitStrategy(5, cost="size", default_cost=1)]),
            Provider("off", enabled=False),
        ]
    )
    manager = TaskManager(router)
    await manager.idle()

    async def outer() -> None:
        await manager.add_task(lambda: nap(1), {"cost": 3})

    stuck = manager.add_task(outer, {"cost": 3})
    await asyncio.sleep(1)
    assert len(caplog.records) == 1
    stuck.cancel()
    await manager.join()
    await manager.stop()


async def test_waiting_for_what_runs_or_refuses_is_no_deadlock(
    caplog: pytest.LogCaptureFixture,
) -> None:
    class Refusing(Limit):
        def ready_at(self, key: object, cost: float, now: float) -> float:
            if now >= 5:
                raise TaskRejected("closed for today")
            return now

        def acquire(self, key: object, cost: float, now: float) -> None: ...

        def usage(self, key: object, now: float) -> Usage:
            return Usage(0, 1)

    manager = TaskManager(Refusing())
    await manager.idle()
    first, second = manager.add_task(lambda: nap(7)), manager.add_task(lambda: nap(3))

    async def outer() -> None:
        await asyncio.gather(first.wait(), second.wait())
        await manager.add_task(nap)

    with pytest.raises(TaskRejected):
        await manager.add_task(outer)
    assert not caplog.records
    waits = manager._waits
    assert not (waits._for or waits._by or waits._own)
    await manager.stop()


async def test_tasks_of_a_chain_by_hand_may_wait_for_each_other() -> None:
    chain = Chain(one())
    chain.add_task(first := Task(lambda: nap(1)))
    assert chain.get_next_task() is first
    running = asyncio.create_task(first.run())

    async def outer() -> float:
        return await first

    other = Chain(ConcurrentLimitStrategy(2))
    other.add_task(second := Task(outer))
    other.add_task(third := Task(second.wait))
    assert [other.get_next_task(), other.get_next_task()] == [second, third]
    assert list(await asyncio.gather(second.run(), third.run(), running)) == [1, 1, 1]


async def test_waiting_for_what_can_start_is_no_deadlock(caplog: pytest.LogCaptureFixture) -> None:
    apart = TaskManager(ConcurrentLimitStrategy(1, key="a"))
    await apart.idle()

    async def outer(manager: TaskManager) -> float:
        return await manager.add_task(lambda: nap(1), {"a": 2})

    assert await apart.add_task(lambda: outer(apart), {"a": 1}) == 1
    window = TaskManager(SlidingWindowStrategy(1, 60))
    await window.idle()
    assert await window.add_task(lambda: outer(window)) == 1
    assert await apart.add_task(lambda: outer(window), {"a": 1}) == 1  # of another manager
    assert not caplog.records
    await apart.stop()
    await window.stop()


# ---- put ----------------------------------------------------------------------------------------


async def test_put_waits_for_room_in_the_order_of_the_calls() -> None:
    manager = TaskManager(one(), max_queued=1)
    await manager.idle()
    came: list[tuple[int, float]] = []

    async def producer(i: int) -> None:
        task = await manager.put(lambda: nap(1))
        came.append((i, now()))
        await task

    await asyncio.gather(*(producer(i) for i in range(5)))
    assert came == [(0, 0), (1, 0), (2, 1), (3, 2), (4, 3)]
    with pytest.raises(InvalidType):
        await manager.put(3)  # type: ignore[arg-type]
    with pytest.raises(QueueFull, match="max_queued is 1"):
        manager.add_tasks([nap(1), nap(1), nap(1)])
    await manager.stop()


async def test_a_task_made_by_hand_has_its_own_metadata() -> None:
    manager = TaskManager(one())
    await manager.idle()
    with pytest.raises(InvalidType, match="metadata of its own"):
        manager.add_task(Task(nap), {"priority": 1})
    with pytest.raises(InvalidType, match="metadata of its own"):
        await manager.put(Task(nap), {"priority": 1})
    assert await (await manager.put(Task(lambda: nap(1), {"priority": 1}))) == 1
    await manager.stop()


async def test_a_put_that_is_cancelled_leaves_its_place_to_the_next() -> None:
    manager = TaskManager(one(), max_queued=1)
    await manager.idle()
    running = manager.add_task(lambda: nap(10))
    await asyncio.sleep(1)
    manager.add_task(lambda: nap(10))
    puts = [asyncio.create_task(manager.put(nap(i))) for i in range(3)]
    await asyncio.sleep(1)
    puts[0].cancel()  # waits
    await asyncio.sleep(0)
    running.cancel()  # makes room for the second ...
    while not manager._room.invited:  # type: ignore[union-attr]
        await asyncio.sleep(0)
    puts[1].cancel()  # ... which is cancelled with the invitation in its hands
    await asyncio.wait(puts)
    assert [put.cancelled() for put in puts] == [True, True, False]
    late = [asyncio.create_task(manager.put(nap(i))) for i in range(2)]
    await asyncio.sleep(0)
    late[0].cancel()
    manager._room.invite(everyone=True)  # type: ignore[union-attr]  # at the same time
    await asyncio.wait(late, timeout=0.5)
    assert [each.done() for each in late] == [True, False]
    await manager.join()
    await late[1]
    await manager.join()
    assert manager.stats().succeeded == 3
    await manager.stop()


async def test_add_task_may_be_quicker_than_a_put_that_was_let_in() -> None:
    manager = TaskManager(one(), max_queued=1)
    await manager.idle()
    running = manager.add_task(lambda: nap(10))
    await asyncio.sleep(1)
    queued = manager.add_task(lambda: nap(10))
    put = asyncio.create_task(manager.put(lambda: nap(1)))
    await asyncio.sleep(1)
    queued.cancel()  # the put is let in
    queued = manager.add_task(lambda: nap(10))
    await asyncio.sleep(1)
    assert not put.done()
    running.cancel()
    await (await put)
    assert now() == 14
    await manager.stop()


async def test_a_put_learns_that_the_manager_was_closed_or_never_started() -> None:
    manager = TaskManager(one(), max_queued=1)
    with pytest.raises(NotRunning, match=r"put\(\)"):
        await manager.put(nap(1))
    await manager.idle()
    manager.add_task(lambda: nap(10))
    await asyncio.sleep(1)
    manager.add_task(lambda: nap(10))
    put = asyncio.create_task(manager.put(nap(1)))
    await asyncio.sleep(1)
    await manager.close(grace=0)
    with pytest.raises(InvalidState, match="closed"):
        await put


async def test_a_put_learns_that_a_strategy_failed() -> None:
    class Fragile(ConcurrentLimitStrategy):
        broken = False

        def ready_at(self, key: Any, cost: Any, now: float) -> float:
            if self.broken:
                raise RuntimeError("broken")
            return super().ready_at(key, cost, now)

    limit = Fragile(1)
    manager = TaskManager(limit, max_queued=1)
    await manager.idle()
    manager.add_task(lambda: nap(1))
    await asyncio.sleep(0.5)
    manager.add_task(lambda: nap(1))
    puts = [asyncio.create_task(manager.put(lambda: nap(1))) for _ in range(2)]
    await asyncio.sleep(0)
    limit.broken = True
    tasks = await asyncio.gather(*puts)
    for task in tasks:
        with pytest.raises(RuntimeError, match="broken"):
            await task
    await manager.stop()
