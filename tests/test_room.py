"""The bound of the queue: what has to go when one task is too many."""

from __future__ import annotations

import asyncio
import gc
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from async_task_manager import (
    Chain,
    InvalidType,
    InvalidValue,
    QueueFull,
    Task,
    TaskDropped,
    TaskManager,
)
from async_task_manager.strategies import (
    ConcurrentLimitStrategy,
    FairShareStrategy,
    Feedback,
    PriorityQueueStrategy,
    RetryAt,
)
from async_task_manager.task import Outcome


async def nap(seconds: float = 10.0) -> float:
    await asyncio.sleep(seconds)
    return seconds


def names(manager: TaskManager) -> list[str]:
    return sorted(task.name for task in manager._chain.tasks())


async def test_a_full_queue_refuses_and_nothing_is_lost() -> None:
    manager = TaskManager(ConcurrentLimitStrategy(1), max_queued=2)
    first, second = manager.add_task(nap), manager.add_task(nap)
    coroutine = nap()
    with pytest.raises(QueueFull, match="2 tasks are queued") as caught:
        manager.add_task(coroutine)
    assert isinstance(caught.value, RuntimeError)
    with pytest.raises(RuntimeError, match="already awaited"):  # closed: no warning about it
        coroutine.send(None)
    await manager.idle()
    assert [await first, await second] == [10, 10]
    await manager.stop()


async def test_the_oldest_goes(caplog: pytest.LogCaptureFixture) -> None:
    manager = TaskManager(ConcurrentLimitStrategy(1), max_queued=2, overflow="drop_oldest")
    tasks = [manager.add_task(nap, name=name) for name in "abcd"]
    assert names(manager) == ["c", "d"]
    assert [task.state for task in tasks] == ["rejected", "rejected", "queued", "queued"]
    with pytest.raises(TaskDropped, match=r"^a had to leave"):
        await tasks[0]
    tasks[2].cancel()
    manager.add_task(nap, name="e")
    assert names(manager) == ["d", "e"]
    assert manager.stats().rejected == 2
    await manager.close()
    del tasks
    gc.collect()
    assert "nobody waited" not in caplog.text


async def test_the_lowest_goes_be_it_the_new_one() -> None:
    chain = Chain(PriorityQueueStrategy(), ConcurrentLimitStrategy(1))
    manager = TaskManager(chain, max_queued=2, overflow="drop_lowest")
    for name, priority in (("a", 0), ("b", 5), ("c", 3)):
        manager.add_task(nap, {"priority": priority}, name=name)
    assert names(manager) == ["b", "c"]
    low = manager.add_task(nap, {"priority": 1}, name="d")
    assert low.state == "rejected"
    same = manager.add_task(nap, {"priority": 3}, name="e")  # of equals the latest
    assert same.state == "rejected"
    assert names(manager) == ["b", "c"]
    await manager.close()


async def test_what_has_started_is_swept_from_the_candidates() -> None:
    manager = TaskManager(ConcurrentLimitStrategy(1000), max_queued=1, overflow="drop_oldest")
    for _ in range(200):
        manager.add_task(nap)
        assert manager._chain.pull(0.0) is not None
    assert manager._room is not None
    assert manager._room.victims is not None
    assert len(manager._room.victims._heap) < 100
    first, second = manager.add_task(nap), manager.add_task(nap)
    assert [first.state, second.state] == ["rejected", "queued"]


async def test_a_retried_task_may_have_to_go_later() -> None:
    class Again(Feedback):
        def review(self, task: Task, outcome: Outcome, now: float) -> RetryAt | None:
            return RetryAt(now + 5) if outcome.kind == "failure" else None

    async def fail() -> None:
        raise ValueError

    manager = TaskManager(
        Chain(ConcurrentLimitStrategy(1), Again()), max_queued=1, overflow="drop_oldest"
    )
    await manager.idle()
    retried = manager.add_task(fail)
    await asyncio.sleep(1)
    assert retried.state == "queued"
    manager.add_task(nap)
    with pytest.raises(TaskDropped):
        await retried
    await manager.close()

    patient = TaskManager(Chain(ConcurrentLimitStrategy(1), Again()), max_queued=1)
    await patient.idle()
    patient.add_task(fail)
    await asyncio.sleep(1)
    with pytest.raises(QueueFull):  # what waits for its next attempt counts
        patient.add_task(nap)
    await patient.close()


def test_bad_bounds() -> None:
    for parameters, message in (
        ({"max_queued": 0}, "max_queued must be a finite number at least 1, not 0"),
        ({"max_queued": 1.5}, "max_queued must be a whole number"),
        ({"overflow": "drop"}, "overflow must be one of 'raise', 'drop_oldest', 'drop_lowest'"),
        ({"history": -1}, "history must be a finite number at least 0, not -1"),
    ):
        with pytest.raises((InvalidValue, InvalidType), match=message):
            TaskManager(ConcurrentLimitStrategy(1), **parameters)


@given(
    st.sampled_from(["drop_oldest", "drop_lowest"]),
    st.integers(1, 5),
    st.lists(st.one_of(st.integers(0, 3), st.just("start"), st.just("cancel")), max_size=200),
)
def test_it_drops_what_a_naive_queue_drops(overflow: Any, most: int, steps: list[Any]) -> None:
    chain = Chain(PriorityQueueStrategy(), ConcurrentLimitStrategy(10**6))
    manager = TaskManager(chain, max_queued=most, overflow=overflow)
    model: list[Task] = []  # in the order of arrival
    for step in steps:
        if step == "start":
            task = chain.pull(0.0)
            best = min(model, key=lambda task: task._rank, default=None)
            assert task is best
        elif step == "cancel":
            task = model[len(model) // 2] if model else None
            if task is not None:
                assert task.cancel()
        else:
            model.append(manager.add_task(nap, {"priority": step}))
            task = None
            if len(model) > most:
                worst = max(task._rank for task in model)
                task = model[0]
                if overflow == "drop_lowest":
                    task = [task for task in model if task._rank == worst][-1]
                assert task.state == "rejected"
        if task is not None:
            model.remove(task)
        assert sorted(task.id for task in chain.tasks()) == [task.id for task in model]
    assert chain.queued == len(model) <= most


@pytest.mark.parametrize("by", ["levels", "share"])
async def test_a_flood_drops_its_own_tasks(by: Any) -> None:
    chain = Chain(FairShareStrategy(by=by, weights={"bob": 0.5}), ConcurrentLimitStrategy(1))
    manager = TaskManager(chain, max_queued=8, overflow="drop_lowest")
    ann = [manager.add_task(work, {"user_id": "ann"}) for _ in range(8)]
    bob = [manager.add_task(work, {"user_id": "bob"}) for _ in range(2)]
    ann += [manager.add_task(work, {"user_id": "ann"}) for _ in range(5)]
    assert [task.state for task in bob] == ["queued"] * 2
    assert [task.state for task in ann] == ["queued"] * 6 + ["rejected"] * 7
    if by == "share":
        bob += [manager.add_task(work, {"user_id": "bob"}) for _ in range(3)]
        # The third counts as six, as many as ann has; the fourth would be more.
        assert [task.state for task in bob[2:]] == ["rejected"] * 3
    async with manager:
        pass


async def work() -> None: ...
