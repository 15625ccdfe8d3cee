"""What a policy wants to have measured is measured while it wants it, and harms nothing."""

from __future__ import annotations

import asyncio
import logging
import weakref
from collections.abc import Callable
from math import inf
from typing import Any

import pytest

from async_task_manager import Chain, StrategyError, TaskManager, current_task
from async_task_manager.errors import InvalidValue
from async_task_manager.strategies import (
    ConcurrentLimitStrategy,
    Provider,
    ProviderRouterStrategy,
    Sampling,
)
from async_task_manager.testing import VirtualTimeLoop, run_virtual
from async_task_manager.testing.virtual_time import Deadlock


class Measured(ConcurrentLimitStrategy):
    """Wants a sample every two seconds while something of it runs."""

    def __init__(self, sample: Callable[[], Any], max_concurrent: float = 2) -> None:
        super().__init__(max_concurrent)
        self.sample = sample
        self.interval = 2.0
        self.seen: list[tuple[float, Any]] = []

    def sampling(self, now: float) -> Sampling | None:
        return Sampling(self.sample, self.interval) if self._used else None

    def observe(self, sample: Any, now: float, key: Any = None, grant: Any = None) -> None:
        self.seen.append((now, sample))


def counter() -> Callable[[], int]:
    seen: list[None] = []

    def sample() -> int:
        seen.append(None)
        return len(seen)

    return sample


async def nap() -> None:
    await asyncio.sleep(7)


async def test_it_measures_at_intervals_as_long_as_it_is_wanted() -> None:
    limit = Measured(counter())
    async with TaskManager(limit) as manager:
        await asyncio.sleep(10)
        manager.add_task(nap)
        await asyncio.sleep(30)
        assert limit.seen == [(12, 1), (14, 2), (16, 3)]
        manager.add_task(nap)
        await asyncio.sleep(3)
        limit.interval = 0.5
        await manager.join()
        assert [now for now, _ in limit.seen[3:]] == [42, 44, 44.5, 45, 45.5, 46, 46.5]


async def test_an_async_sampler_is_awaited_in_a_context_of_its_own() -> None:
    async def sample() -> Any:
        await asyncio.sleep(1)
        return current_task()

    limit = Measured(sample)

    async def parent() -> None:
        manager.add_task(nap)

    async with TaskManager(limit) as manager:
        manager.add_task(parent)
    assert limit.seen == [(3, None), (6, None)]


def test_when_nothing_is_wanted_nothing_wakes() -> None:
    async def main() -> None:
        manager = TaskManager(Measured(counter()))
        await manager.idle()
        manager.add_task(nap)
        await manager.join()
        await asyncio.sleep(2)  # for the last look
        await asyncio.Event().wait()

    with pytest.raises(Deadlock):
        run_virtual(main())


async def test_a_manager_that_is_dropped_measures_nothing_more() -> None:
    class Always(Measured):
        def sampling(self, now: float) -> Sampling | None:
            return Sampling(self.sample, self.interval)

    limit = Always(counter())
    manager = TaskManager(limit)
    await manager.idle()
    await asyncio.sleep(5)
    gone = weakref.ref(manager)
    del manager
    assert gone() is None
    await asyncio.sleep(5)
    assert limit.seen == [(2, 1), (4, 2)]
    assert not any("_follow" in repr(task) for task in asyncio.all_tasks())


async def test_a_sampler_that_raises_is_logged_once_and_harms_nothing(
    caplog: pytest.LogCaptureFixture,
) -> None:
    count = counter()

    def sample() -> int:
        if count() < 3:
            raise ZeroDivisionError("no load today")
        return 3

    limit = Measured(sample)
    async with TaskManager(limit) as manager:
        task = manager.add_task(nap)
    assert task.state == "succeeded"
    assert limit.seen == [(6, 3)]
    [record] = caplog.records
    assert record.levelno == logging.WARNING
    assert "a sample for Measured(2) failed: ZeroDivisionError('no load today')" in record.message


async def test_it_stops_with_the_manager_and_goes_on_with_it() -> None:
    ended: list[float] = []

    async def sample() -> None:
        try:
            await asyncio.sleep(inf)
        finally:
            ended.append(asyncio.get_running_loop().time())

    limit = Measured(sample)
    manager = TaskManager(limit)
    await manager.idle()
    manager.add_task(nap)
    await asyncio.sleep(3)
    stopping = asyncio.create_task(manager.stop())
    await asyncio.sleep(1)
    assert ended == [3]
    await stopping
    limit.sample = counter()
    await manager.idle()
    manager.add_task(nap)
    await asyncio.sleep(6.5)
    await manager.stop(grace=0)
    assert [number for _, number in limit.seen] == [1, 2, 3]
    assert asyncio.all_tasks() == {asyncio.current_task()}


async def test_not_while_paused() -> None:
    limit = Measured(counter())
    async with TaskManager(limit) as manager:
        manager.add_task(nap)
        await asyncio.sleep(3)
        manager.pause()
        await asyncio.sleep(3)
        assert [now for now, _ in limit.seen] == [2]
        manager.resume()
        manager.add_task(nap)
    assert [now for now, _ in limit.seen] == [2, 8, 10, 12]


@pytest.mark.parametrize("method", ["sampling", "observe"])
async def test_a_policy_that_raises_is_a_strategy_error(method: str) -> None:
    limit = Measured(counter())

    def fails(*_: Any) -> None:
        raise ZeroDivisionError

    setattr(limit, method, fails)
    # What the class overrides is what counts.
    manager = TaskManager(limit)
    await manager.idle()
    manager.add_task(nap)
    with pytest.raises(StrategyError, match=r"Measured\(2\) raised ZeroDivisionError"):
        await manager.join()


async def test_limits_inside_a_router_are_measured_too() -> None:
    limit = Measured(counter())
    router = ProviderRouterStrategy([Provider("A", [limit])])
    async with TaskManager(Chain(router)) as manager:
        manager.add_task(nap)
        await asyncio.sleep(5)
        assert [now for now, _ in limit.seen] == [2, 4]
        router.remove("A", force=True)


def test_a_loop_that_is_closed_over_it() -> None:
    limit = Measured(counter())
    manager = TaskManager(limit)
    loop = VirtualTimeLoop()

    async def leave() -> None:
        await manager.idle()
        await asyncio.sleep(5)

    task = manager.add_task(nap)
    loop.run_until_complete(leave())
    abandoned = asyncio.all_tasks(loop)
    for one in abandoned:
        one._log_destroy_pending = False  # type: ignore[attr-defined]  # on purpose
    loop.close()

    async def again() -> None:
        await manager.stop()
        await manager.idle()
        manager.add_task(nap)
        await manager.join()
        await manager.stop()

    run_virtual(again())
    assert task.state == "cancelled"
    assert [number for _, number in limit.seen] == [1, 2, 3, 4, 5]


@pytest.mark.parametrize("interval", [0, -1, float("nan")])
def test_intervals_that_no_clock_could_keep(interval: float) -> None:
    with pytest.raises(InvalidValue, match="interval must be a finite number above 0"):
        Sampling(counter(), interval)
