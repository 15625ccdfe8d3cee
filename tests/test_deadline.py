"""What is due first goes first: as many deadlines are met as any order could meet."""

from __future__ import annotations

import asyncio
import copy
import math
from datetime import UTC, datetime, timedelta
from functools import partial
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from async_task_manager import Chain, DeadlineExceeded, Task, TaskManager
from async_task_manager._run import Options
from async_task_manager.errors import InvalidType, InvalidValue
from async_task_manager.strategies import (
    ConcurrentLimitStrategy,
    DeadlineStrategy,
    PriorityQueueStrategy,
)
from async_task_manager.strategies.base import WallTime
from async_task_manager.testing import VirtualTimeLoop


async def nothing() -> None: ...


def task(deadline: float | None = None, **metadata: Any) -> Task[None]:
    one = Task(nothing, metadata)
    if deadline is not None:
        one._options = Options(deadline=deadline)
    return one


# ---------------------------------------------------------------- ranks


def test_the_rank_is_the_instant_at_which_it_is_due() -> None:
    policy = DeadlineStrategy()
    policy.set_wall_offset(1.7e9, 0.0)
    assert policy.rank(task(5.0), 2.0) == 5.0
    assert policy.rank(task(WallTime(1.7e9 + 4)), 2.0) == 4.0
    assert policy.rank(task(), 2.0) == policy.rank(Task(nothing), 2.0) == math.inf


@pytest.mark.parametrize("key", ["due", lambda task: task.metadata.get("due")])
def test_a_key_names_a_time_instead(key: Any) -> None:
    policy = DeadlineStrategy(key=key)
    policy.set_wall_offset(1.7e9, 0.0)
    due = datetime.fromtimestamp(1.7e9 + 60, UTC)
    assert policy.rank(task(1.0, due=due), 3.0) == 60.0
    assert policy.rank(task(due=timedelta(seconds=60)), 3.0) == 63.0
    assert policy.rank(task(due=1.7e9 + 9), 3.0) == 9.0
    assert policy.rank(task(due=None), 3.0) == policy.rank(task(), 3.0) == math.inf
    assert copy.deepcopy(policy).rank(task(due=1.7e9 + 9), 3.0) == 9.0


def test_no_dict_is_made_for_a_task_without_metadata() -> None:
    bare = Task(nothing)
    assert DeadlineStrategy(key="due").rank(bare, 0.0) == math.inf
    assert bare._metadata is None


# ---------------------------------------------------------------- the best order there is


def feasible(jobs: list[tuple[int, int]]) -> bool:
    """Whether each job of one unit finds a slot of its own in (arrival, due): augmenting paths."""
    taken: dict[int, int] = {}

    def place(job: int, tried: set[int]) -> bool:
        arrival, due = jobs[job]
        for slot in range(arrival, due):
            if slot not in tried:
                tried.add(slot)
                if slot not in taken or place(taken[slot], tried):
                    taken[slot] = job
                    return True
        return False

    return all(place(job, set()) for job in range(len(jobs)))


@given(st.lists(st.tuples(st.integers(0, 8), st.integers(1, 9)), min_size=1, max_size=9))
def test_if_any_order_meets_all_deadlines_this_one_does(jobs: list[tuple[int, int]]) -> None:
    jobs = [(arrival, arrival + length) for arrival, length in jobs]

    async def life() -> list[Task[None]]:
        manager = TaskManager(Chain(DeadlineStrategy(), ConcurrentLimitStrategy(1)))
        await manager.idle()
        tasks = []
        for second in range(9):
            for arrival, due in jobs:
                if arrival == second:
                    # A hair later: what is done exactly in time is done in time.
                    until = timedelta(seconds=due - arrival + 0.001)
                    tasks.append(manager.add_task(partial(asyncio.sleep, 1), deadline=until))
            await asyncio.sleep(1)
        await manager.join()
        await manager.stop()
        return tasks

    with asyncio.Runner(loop_factory=VirtualTimeLoop) as runner:
        tasks = runner.run(life())
    for one in tasks:
        if one.state != "succeeded":
            assert isinstance(one.exception(), DeadlineExceeded)
    met = all(one.state == "succeeded" for one in tasks)
    assert met is feasible(jobs)


# ---------------------------------------------------------------- in a manager


async def order_of(manager: TaskManager, tasks: list[tuple[str, Any]]) -> list[str]:
    order: list[str] = []

    async def work(name: str) -> None:
        order.append(name)
        await asyncio.sleep(1)

    for name, deadline in tasks:
        manager.add_task(partial(work, name), deadline=deadline)
    await manager.idle()
    await manager.join()
    await manager.stop()
    return order


def in_seconds(seconds: float) -> datetime:
    loop: Any = asyncio.get_running_loop()
    return datetime.fromtimestamp(loop.wall_time() + seconds, UTC)


@pytest.mark.parametrize("started", [False, True])
async def test_times_of_the_wall_clock_and_delays_compare_also_before_the_start(
    started: bool,
) -> None:
    manager = TaskManager(Chain(DeadlineStrategy(), ConcurrentLimitStrategy(1)))
    if started:
        await manager.idle()
        manager.pause()
    order = asyncio.create_task(
        order_of(
            manager,
            [
                ("never", None),
                ("in 40", timedelta(seconds=40)),
                ("at 30", in_seconds(30)),
                ("in 20", timedelta(seconds=20)),
                ("at 10", in_seconds(10).timestamp()),
                ("never, too", None),
            ],
        )
    )
    await asyncio.sleep(0)
    if started:
        manager.resume()
    assert await order == ["at 10", "in 20", "at 30", "in 40", "never", "never, too"]


async def test_what_is_added_before_the_start_goes_before_what_comes_later_and_is_due_later() -> (
    None
):
    manager = TaskManager(Chain(DeadlineStrategy(), ConcurrentLimitStrategy(1)))
    order: list[str] = []

    async def work(name: str) -> None:
        order.append(name)
        await asyncio.sleep(1)

    manager.add_task(partial(work, "first"))
    manager.add_task(partial(work, "at 30"), deadline=in_seconds(30))
    await manager.idle()
    await asyncio.sleep(0.5)
    manager.add_task(partial(work, "in 20"), deadline=timedelta(seconds=20))
    manager.add_task(partial(work, "in 90"), deadline=timedelta(seconds=90))
    await manager.join()
    await manager.stop()
    assert order == ["at 30", "in 20", "in 90", "first"]


async def test_what_is_too_late_is_not_run() -> None:
    order: list[str] = []
    manager = TaskManager(Chain(DeadlineStrategy(), ConcurrentLimitStrategy(1)))

    async def work(name: str) -> None:
        order.append(name)
        await asyncio.sleep(2)

    async with manager:
        busy = manager.add_task(partial(work, "busy"))
        await asyncio.sleep(0.5)
        late = manager.add_task(partial(work, "late"), deadline=timedelta(seconds=1))
        slow = manager.add_task(partial(work, "slow"), deadline=timedelta(seconds=3))
        with pytest.raises(DeadlineExceeded, match="not started in time"):
            await late
        with pytest.raises(DeadlineExceeded, match="not done in time"):
            await slow
        await busy
    assert order == ["busy", "slow"]


async def test_among_equals_of_another_order_the_deadline_decides() -> None:
    chain = Chain(PriorityQueueStrategy(), DeadlineStrategy(key="due"), ConcurrentLimitStrategy(1))
    manager = TaskManager(chain)
    order: list[str] = []

    async def work(name: str) -> None:
        order.append(name)

    for name, priority, due in [("c", 0, 9), ("a", 1, 8), ("d", 0, None), ("b", 0, 7)]:
        seconds = None if due is None else timedelta(seconds=due)
        manager.add_task(partial(work, name), {"priority": priority, "due": seconds})
    async with manager:
        pass
    assert "".join(order) == "abcd"


async def test_what_a_task_waits_for_is_due_no_later_than_itself() -> None:
    chain = Chain(DeadlineStrategy(key="due"), ConcurrentLimitStrategy(2))
    async with TaskManager(chain) as manager:
        order: list[str] = []

        async def work(name: str, other: Task[Any] | None = None) -> None:
            order.append(name)
            await (other if other is not None else asyncio.sleep(1))

        needed = manager.add_task(partial(work, "needed"))
        for i in range(3):
            manager.add_task(partial(work, f"crowd {i}"), {"due": timedelta(seconds=50)})
        manager.add_task(partial(work, "urgent", needed), {"due": timedelta(seconds=5)})
    assert order.index("needed") == 2


# ---------------------------------------------------------------- what is refused


@pytest.mark.parametrize("key", [3, ["due"], True])
def test_bad_keys(key: Any) -> None:
    with pytest.raises(InvalidType, match=r"key must be a metadata name, .* not"):
        DeadlineStrategy(key=key)


@pytest.mark.parametrize(
    ("due", "error", "says"),
    [
        ("tomorrow", InvalidType, "must be a datetime, a timedelta or epoch seconds, not 'tom"),
        (60, InvalidValue, "a delay from now is timedelta"),
        (math.nan, InvalidValue, "not nan"),
    ],
)
def test_bad_times(due: Any, error: type[Exception], says: str) -> None:
    with pytest.raises(error, match=f"the time at which <Task .*{says}"):
        DeadlineStrategy(key="due").rank(task(due=due), 0.0)


@pytest.mark.parametrize("text", ["DeadlineStrategy()", "DeadlineStrategy(key='due')"])
def test_repr_is_the_call(text: str) -> None:
    assert repr(eval(text)) == text
