"""What a manager tells: by id, history, queue lengths, status."""

from __future__ import annotations

import asyncio
from collections import deque
from functools import partial
from typing import Any

import pytest

from async_task_manager import Chain, Task, TaskManager
from async_task_manager.strategies import (
    BaseStrategy,
    ConcurrentLimitStrategy,
    DelayedStrategy,
    FixedWindowStrategy,
    Limit,
    Order,
    PriorityQueueStrategy,
    Provider,
    ProviderRouterStrategy,
    SlidingWindowStrategy,
    TokenBucketStrategy,
    Usage,
)


async def nap(seconds: float = 10.0) -> float:
    await asyncio.sleep(seconds)
    return seconds


async def test_a_task_of_an_earlier_process_is_found_by_id() -> None:
    chain = Chain(PriorityQueueStrategy(), ConcurrentLimitStrategy(1))
    async with TaskManager(chain) as manager:
        manager.add_task(nap)
        assert manager.status(0) is None  # from here on ids are kept
        low, again = manager.add_task(nap, {"priority": "low"}), Task(nap, {"priority": "low"})
        manager.readmit(again, (-1,), attempt=2)  # "high", which it was there
        status = manager.status(again.id)
        assert status is not None
        assert (status.state, status.attempt) == ("queued", 2)
        await again
        assert (again.attempt, low.state) == (3, "queued")


async def test_tasks_are_found_by_id_until_they_end() -> None:
    manager = TaskManager(ConcurrentLimitStrategy(1))
    await manager.idle()
    first, second = manager.add_task(nap, name="first"), manager.add_task(nap, name="second")
    await asyncio.sleep(1)
    status = manager.status(first.id)
    assert status is not None
    assert (status.name, status.state, status.attempt) == ("first", "running", 1)
    assert status.started_at == first.started_at
    third = manager.add_task(nap, name="third")  # after the first question
    assert [manager.status(t.id).state for t in (second, third)] == [  # type: ignore[union-attr]
        "queued",
        "queued",
    ]
    assert manager.cancel(second.id)
    assert not manager.cancel(second.id)
    assert manager.cancel(third)
    assert manager.status(second.id) is None
    assert manager.cancel(first.id)
    assert not manager.cancel(10**9)
    await manager.join()
    assert first.state == "cancelled"
    assert manager.status(first.id) is None
    assert manager._by_id == {}
    await manager.stop()


async def test_only_tasks_of_its_own_are_cancelled() -> None:
    manager, other = (TaskManager(ConcurrentLimitStrategy(1)) for _ in range(2))
    queued, loose = other.add_task(nap), Task(nap)
    for state in ("queued", "running"):
        assert queued.state == state
        for task in (queued, loose):
            assert not manager.cancel(task)
            assert not manager.cancel(task.id)
        assert manager.stats().queued == 0
        for each in (manager, other):
            await each.idle()
        await asyncio.sleep(1)
    assert other.cancel(queued)
    assert loose.cancel()
    for each in (manager, other):
        await each.join()
        await each.stop()


async def test_a_task_that_a_custom_strategy_made_is_found() -> None:
    made = Task(nap)

    class Maker(BaseStrategy):
        def __init__(self) -> None:
            self.queue = deque([made])

        def add_task(self, task: Task) -> None:
            self.queue.append(task)

        def get_next_task(self) -> Task | None:
            return self.queue.popleft() if self.queue else None

        async def get_sleep_interval(self) -> None:
            return None

    manager = TaskManager(Maker())
    await manager.idle()
    assert manager.status(made.id) is None
    await asyncio.sleep(1)
    assert manager.status(made.id).state == "running"  # type: ignore[union-attr]
    await manager.join()
    await manager.stop()


async def test_the_history_holds_the_last_outcomes() -> None:
    async with TaskManager(ConcurrentLimitStrategy(1), history=2) as manager:
        tasks = [manager.add_task(partial(nap, i), name=f"nap {i}") for i in (1, 2, 3)]
        await manager.join()
        assert manager.history == (tasks[1], tasks[2])
        assert manager.history[-1].result() == 3
        assert manager.status(tasks[0].id) is None
        assert manager.status(tasks[2].id).state == "succeeded"  # type: ignore[union-attr]
    assert TaskManager(ConcurrentLimitStrategy(1)).history == ()


async def test_the_lengths_of_the_queue() -> None:
    chain = Chain(
        PriorityQueueStrategy(),
        SlidingWindowStrategy(1, 60, key="user_id"),
        ConcurrentLimitStrategy(1, key="user_id"),
        ConcurrentLimitStrategy(1, key=lambda task: task.metadata["user_id"][0]),
        ConcurrentLimitStrategy(1),
    )
    manager = TaskManager(chain)
    for user, priority in (("ann", "high"), ("bob", 7), ("ann", None), ("al", "low")):
        manager.add_task(nap, {"user_id": user, "priority": priority})
    lengths = manager.queue_lengths()
    assert lengths.total == 4
    assert lengths.by_priority == {"high": 1, "7": 1, "normal": 1, "low": 1}
    assert lengths.by_key["user_id"] == {"ann": 2, "bob": 1, "al": 1}
    (other,) = lengths.by_key.keys() - {"user_id"}
    assert lengths.by_key[other] == {"a": 3, "b": 1}
    await manager.close()


async def test_an_order_without_labels_is_not_counted() -> None:
    class Shortest(Order):
        def rank(self, task: Task, now: float) -> Any:
            return 1

    manager = TaskManager(Chain(Shortest(), ConcurrentLimitStrategy(1)))
    manager.add_task(nap)
    assert manager.queue_lengths().by_priority == {}
    await manager.close()


async def test_the_status_tells_of_every_limit_and_key() -> None:
    chain = Chain(
        SlidingWindowStrategy(5, 60, key="user_id"),
        FixedWindowStrategy(5, 60, key="user_id"),
        TokenBucketStrategy(1, 5, key="user_id"),
        DelayedStrategy(2, key="user_id", measure_from="start"),
        ConcurrentLimitStrategy(3),
        ProviderRouterStrategy([Provider("P1", limits=[ConcurrentLimitStrategy(2, key="model")])]),
    )
    manager = TaskManager(chain)
    await manager.idle()
    manager.add_task(nap, {"user_id": "ann", "model": "m"})
    manager.add_task(nap, {"user_id": "bob", "model": "m"})
    await asyncio.sleep(1)
    status = manager.get_status()
    assert status.running == 2
    assert status.queued.total == 0
    found = {
        (limit.provider, limit.limit, limit.key): (limit.used, limit.capacity)
        for limit in status.limits
    }
    for key in ("ann", "bob"):
        assert found[None, chain.stages[0].describe(), key] == (1, 5)  # type: ignore[attr-defined]
        assert found[None, chain.stages[1].describe(), key] == (1, 5)  # type: ignore[attr-defined]
        assert found[None, chain.stages[3].describe(), key] == (1, 1)  # type: ignore[attr-defined]
    assert found[None, chain.stages[4].describe(), None] == (2, 3)  # type: ignore[attr-defined]
    assert found["P1", "at most 2 tasks at once for each model", "m"] == (2, 2)
    window = next(limit for limit in status.limits if "60" in limit.limit)
    assert window.frees_at == pytest.approx(manager.epoch + 60)
    await manager.close(grace=0)


def test_a_custom_limit_without_keys_is_passed_over() -> None:
    class Free(Limit):
        def ready_at(self, key: object, cost: float, now: float) -> float:
            return now

        def acquire(self, key: object, cost: float, now: float) -> None: ...

        def usage(self, key: object, now: float) -> Usage:
            return Usage(0, 1)

    assert TaskManager(Free(key="a")).get_status().limits == ()
    (status,) = TaskManager(Free()).get_status().limits
    assert status.limit == "Free()"
