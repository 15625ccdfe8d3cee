"""What an important task waits for becomes important, for as long as it waits."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextlib import suppress
from datetime import timedelta
from functools import partial
from typing import Any

import pytest

from async_task_manager import Chain, Task, TaskManager
from async_task_manager.strategies import (
    ConcurrentLimitStrategy,
    FairShareStrategy,
    PriorityQueueStrategy,
    RetryStrategy,
    TimeBasedStrategy,
)

LOW, NORMAL, HIGH = {"priority": "low"}, {"priority": "normal"}, {"priority": "high"}


class World:
    """A manager with some slots, and the order in which its tasks start."""

    def __init__(self, slots: int, *stages: Any, **options: Any) -> None:
        chain = Chain(
            *stages or (PriorityQueueStrategy(**options),), ConcurrentLimitStrategy(slots)
        )
        self.manager = TaskManager(chain)
        self.order: list[str] = []

    def add(
        self, name: str, metadata: dict[str, Any], work: Callable[[], Any] | None = None
    ) -> Task[Any]:
        async def job() -> Any:
            self.order.append(name)
            return await work() if work is not None else await asyncio.sleep(1)

        return self.manager.add_task(job, dict(metadata), name=name)

    def crowd(self, count: int = 5, metadata: dict[str, Any] = NORMAL) -> None:
        for i in range(count):
            self.add(f"crowd {i}", metadata)

    async def close(self) -> None:
        await self.manager.join()
        waits = self.manager._waits
        assert not (waits._for or waits._by or waits._own)
        await self.manager.close()


async def inversion(world: World) -> None:
    """A task of high priority waits for one of low, and a crowd stands between them."""
    await world.manager.idle()
    low = world.add("low", LOW)
    low_work = low.wait
    world.crowd()
    world.add("high", HIGH, low_work)
    await asyncio.sleep(0)
    await world.close()


async def test_the_one_waited_for_goes_before_the_crowd() -> None:
    world = World(2)
    blocker = [world.add("blocker", HIGH) for _ in range(2)]
    await inversion(world)
    assert all(task.done() for task in blocker)
    assert world.order[:5] == ["blocker", "blocker", "high", "crowd 0", "low"]


async def test_without_inheritance_it_waits_for_the_whole_crowd() -> None:
    world = World(2, inherit=False)
    for _ in range(2):
        world.add("blocker", HIGH)
    await inversion(world)
    assert world.order.index("low") == len(world.order) - 1


async def in_place(manager: TaskManager) -> None:
    async with manager.turn(**LOW):
        pass


async def one_by_one(manager: TaskManager) -> None:
    async for _ in manager.map(lambda _: asyncio.sleep(1), [1], metadata=LOW):
        pass


@pytest.mark.parametrize(
    "wait",
    [
        in_place,
        one_by_one,
        lambda manager: manager.gather(lambda: asyncio.sleep(1), metadata=LOW),
        lambda manager: manager.wrap(asyncio.sleep, metadata=LOW)(1),
    ],
)
async def test_it_is_so_whichever_way_it_waits(wait: Callable[[TaskManager], Any]) -> None:
    world = World(2)
    await world.manager.idle()
    high = world.add("high", HIGH, lambda: wait(world.manager))
    world.crowd()
    await high
    assert world.order[:2] == ["high", "crowd 0"]
    assert "crowd 2" not in world.order
    await world.close()


async def test_it_goes_through_any_number_of_waits() -> None:
    """High waits for middle, which runs and waits for low."""
    world = World(3)
    await world.manager.idle()
    for _ in range(3):
        world.add("blocker", HIGH)
    low = world.add("low", LOW)
    middle = world.add("middle", {"priority": -0.5}, low.wait)
    first = world.add("first", NORMAL, lambda: asyncio.sleep(0.5))
    await asyncio.sleep(1.2)
    assert world.order[3:] == ["first", "middle", "low"]
    await asyncio.gather(first, middle)

    world.order.clear()
    for _ in range(2):
        world.add("blocker", HIGH, lambda: asyncio.sleep(0.5))
    gate = asyncio.Event()
    low = world.add("low", LOW)
    held = world.add("middle", HIGH, partial(_after, gate, low))
    await asyncio.sleep(0.1)
    world.crowd(6)
    world.add("high", {"priority": 5}, held.wait)
    world.add("next", {"priority": 3})
    await asyncio.sleep(0.5)
    assert "high" in world.order
    gate.set()
    await world.close()
    assert world.order.index("low") < world.order.index("crowd 2")


async def _after(gate: asyncio.Event, task: Task[Any]) -> Any:
    await gate.wait()
    return await task


async def waits_for(box: list[Task[Any]], begin: float, end: float) -> None:
    """Runs for long, and waits meanwhile for what will be in the box."""
    await asyncio.sleep(begin)
    with suppress(TimeoutError):
        async with asyncio.timeout(end - begin):
            await box[0]
    await asyncio.sleep(100)


async def test_ranks_go_back_as_the_waiters_give_up() -> None:
    chain = Chain(PriorityQueueStrategy(), ConcurrentLimitStrategy(2))
    manager = TaskManager(chain)
    await manager.idle()
    box: list[Task[Any]] = []
    manager.add_task(partial(waits_for, box, 1, 3), {"priority": 7})
    manager.add_task(partial(waits_for, box, 2, 5), {"priority": 4})
    await asyncio.sleep(0.5)
    box.append(manager.add_task(lambda: asyncio.sleep(0), LOW))
    seen = []
    for _ in range(5):
        seen.append(chain.ranks(box[0]))
        await asyncio.sleep(1)
    assert seen == [(1,), (-7,), (-7,), (-4,), (-4,)]
    assert chain.ranks(box[0]) == (1,)
    waits = manager._waits
    assert not (waits._for or waits._by or waits._own)
    await manager.close()


async def test_only_the_priority_is_inherited() -> None:
    """Not the user's level: it says how much that user has asked for."""
    chain = Chain(FairShareStrategy(), PriorityQueueStrategy(), ConcurrentLimitStrategy(1))
    manager = TaskManager(chain)
    await manager.idle()

    async def outer(task: Task[Any]) -> None:
        async with asyncio.timeout(5):
            await task

    inner = [manager.add_task(asyncio.Event().wait, {"user_id": "bob", **LOW}) for _ in range(3)]
    manager.add_task(partial(outer, inner[-1]), {"user_id": "ann", **HIGH})
    assert chain.ranks(inner[-1]) == (1, 1)
    inner[0].cancel()
    await asyncio.sleep(1)
    assert chain.ranks(inner[-1]) == (1, -1)
    await manager.close()


async def test_a_task_that_is_held_or_retried_keeps_what_it_inherits() -> None:
    chain = Chain(
        TimeBasedStrategy(),
        PriorityQueueStrategy(),
        RetryStrategy(3, backoff=lambda n: 5.0),
        ConcurrentLimitStrategy(2),
    )
    manager = TaskManager(chain)
    await manager.idle()
    attempts = 0

    async def fails_once() -> None:
        nonlocal attempts
        attempts += 1
        if attempts == 1:
            raise ConnectionError

    held = manager.add_task(fails_once, {"priority": "low", "valid_after": timedelta(seconds=5)})
    high = manager.add_task(held.wait, HIGH)
    await asyncio.sleep(1)
    assert chain.ranks(held) == (-1,)
    await asyncio.sleep(6)
    assert (attempts, chain.ranks(held)) == (1, (-1,))
    await high
    assert attempts == 2
    await manager.close()


async def test_before_a_custom_strategy_it_moves_in_what_is_to_be_fed() -> None:
    from test_conformance import Polled

    order: list[str] = []
    chain = Chain(PriorityQueueStrategy(), Polled(1.0), ConcurrentLimitStrategy(5))
    manager = TaskManager(chain)

    async def work(name: str, other: Task[Any] | None = None) -> None:
        order.append(name)
        if other is not None:
            await other

    low = manager.add_task(partial(work, "low"), LOW)
    for i in range(3):
        manager.add_task(partial(work, f"crowd {i}"))
    manager.add_task(partial(work, "high", low), HIGH)
    async with manager:
        pass
    assert order == ["high", "low", "crowd 0", "crowd 1", "crowd 2"]


async def test_two_that_wait_for_each_other_harm_nobody() -> None:
    manager = TaskManager(PriorityQueueStrategy())
    await manager.idle()
    tasks: list[Task[Any]] = []

    async def wait_for(i: int) -> None:
        await asyncio.sleep(1)
        with suppress(TimeoutError):
            async with asyncio.timeout(3):
                await tasks[i].wait()

    tasks += [manager.add_task(partial(wait_for, 1 - i), {"priority": i}) for i in range(2)]
    await manager.join()
    waits = manager._waits
    assert not (waits._for or waits._by)
    await manager.close()


async def test_what_is_waited_for_is_not_dropped_as_the_lowest() -> None:
    chain = Chain(PriorityQueueStrategy(), ConcurrentLimitStrategy(1))
    manager = TaskManager(chain, max_queued=2, overflow="drop_lowest")
    await manager.idle()

    box: list[Task[Any]] = []
    manager.add_task(partial(waits_for, box, 1, 50), HIGH)
    await asyncio.sleep(0.5)
    box.append(manager.add_task(lambda: asyncio.sleep(0), LOW))
    await asyncio.sleep(1)
    normal = [manager.add_task(lambda: asyncio.sleep(0)) for _ in range(2)]
    assert [task.state for task in (*box, *normal)] == ["queued", "queued", "rejected"]
    await asyncio.sleep(60)  # nobody waits for it any more
    last = manager.add_task(lambda: asyncio.sleep(0))
    assert [task.state for task in (*box, normal[0], last)] == ["rejected", "queued", "queued"]
    await manager.close()
