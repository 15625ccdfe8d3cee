"""Work that says itself from when on the windows count it."""

from __future__ import annotations

import asyncio
from functools import partial
from typing import Any, Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from async_task_manager import Chain, Task, TaskManager, current_task
from async_task_manager.errors import InvalidState, InvalidValue, NonRetryable
from async_task_manager.strategies import (
    ConcurrentLimitStrategy,
    FixedWindowStrategy,
    Limit,
    RetryStrategy,
    SlidingWindowStrategy,
    TokenBucketStrategy,
    fixed,
)
from async_task_manager.testing import run_virtual


async def departures(limit: Limit, delays: list[float | None], stamp: Any = "said") -> list[float]:
    """When each of these came to its point, after so long; None: it failed before."""
    left: list[float] = []

    async def work(delay: float | None) -> None:
        task = current_task()
        assert task is not None
        if delay is None:
            await asyncio.sleep(1)
            raise NonRetryable("no connection")
        await asyncio.sleep(delay)
        task.stamp()
        task.stamp()
        left.append(manager.time())
        await asyncio.sleep(5)

    async with TaskManager(Chain(limit), stamp=stamp) as manager:
        tasks = [manager.add_task(partial(work, delay)) for delay in delays]
        await asyncio.gather(*(task.wait() for task in tasks), return_exceptions=True)
    return left


async def test_a_window_counts_from_what_was_said() -> None:
    late = await departures(SlidingWindowStrategy(1, 10), [3, 0, 2])
    assert late == [3, 13, 25]
    at_start = await departures(SlidingWindowStrategy(1, 10), [3, 0, 2], stamp="start")
    assert at_start == [3, 10, 22]


@pytest.mark.real_time
async def test_it_may_be_said_from_a_thread() -> None:
    limit = SlidingWindowStrategy(1, 60)

    async def work() -> float:
        task = current_task()
        assert task is not None
        await asyncio.to_thread(task.stamp)
        await asyncio.sleep(0)
        said = limit.usage(None, manager.time()).frees_at
        assert said is not None
        return said

    async with TaskManager(limit, stamp="said") as manager:
        assert 60 < await manager.add_task(work) < 61


async def test_what_never_says_it_counts_from_its_end() -> None:
    assert await departures(SlidingWindowStrategy(1, 10), [None, 0]) == [11]
    assert await departures(FixedWindowStrategy(1, 10), [None, 0]) == [11]


async def test_limits_that_count_at_once_don_t_care() -> None:
    assert await departures(ConcurrentLimitStrategy(1), [3, 0]) == [3, 8]
    assert await departures(TokenBucketStrategy(0.1, 1), [3, 0]) == [3, 10]


async def test_each_attempt_says_it_anew() -> None:
    left: list[float] = []

    async def work() -> None:
        task = current_task()
        assert task is not None
        await asyncio.sleep(2)
        task.stamp()
        left.append(manager.time())
        if task.attempt == 1:
            raise OSError

    chain = Chain(SlidingWindowStrategy(1, 10), RetryStrategy(2, backoff=fixed(0)))
    async with TaskManager(chain, stamp="said") as manager:
        await manager.add_task(work).wait()
    assert left == [2, 14]


async def test_cancelled_before_it_is_said() -> None:
    limit = SlidingWindowStrategy(1, 10)
    async with TaskManager(limit, stamp="said") as manager:
        task = manager.add_task(lambda: asyncio.sleep(9))
        await asyncio.sleep(1)
        task.cancel()
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        assert limit.usage(None, manager.time()).frees_at == 11, "it had begun: who knows what left"
        unborn = manager.add_task(lambda: asyncio.sleep(9))
        unborn.cancel()


@given(
    st.lists(st.floats(0, 3), min_size=1, max_size=30),
    st.integers(1, 5),
    st.sampled_from(["start", "said"]),
)
def test_no_window_holds_more_departures(
    delays: list[float], limit: int, stamp: Literal["start", "said"]
) -> None:
    left = run_virtual(departures(SlidingWindowStrategy(limit, 10), list(delays), stamp))
    if stamp == "said":
        for first, last in zip(left, left[limit:], strict=False):
            assert last >= first + 10
    assert len(left) == len(delays)


class Broken(SlidingWindowStrategy):
    def started(self, grant: Any, now: float) -> None:
        raise RuntimeError("broken")


async def test_a_strategy_that_raises_there_is_named() -> None:
    manager = TaskManager(Broken(1, 10), stamp="said")
    await manager.idle()
    task = manager.add_task(lambda: asyncio.sleep(1))
    await asyncio.sleep(2)
    with pytest.raises(Exception, match="Broken"):
        await manager.join()
    assert task.done()
    await manager.close()


async def test_bad_use() -> None:
    with pytest.raises(InvalidValue, match="stamp must be one of 'start', 'said', not 'never'"):
        TaskManager(ConcurrentLimitStrategy(1), stamp="never")  # type: ignore[arg-type]
    async with TaskManager(ConcurrentLimitStrategy(1)) as manager:
        task = manager.add_task(lambda: asyncio.sleep(0))
        with pytest.raises(InvalidState, match="nothing to stamp"):
            task.stamp()


async def test_by_hand_it_changes_nothing() -> None:
    limit = SlidingWindowStrategy(1, 10)

    async def work() -> None:
        task = current_task()
        assert task is not None
        task.stamp()

    await Task(work).run()
    limit.add_task(mine := Task(work))
    task = limit.get_next_task()
    assert task is mine
    await task.run()
