"""What peers do with the same work, in the same run: those that are installed (extra `bench`)."""

from __future__ import annotations

import asyncio
import sys
import time
from bisect import bisect_left
from collections.abc import Awaitable, Callable
from importlib.util import find_spec

from async_task_manager import TaskManager
from async_task_manager.strategies import SlidingWindowStrategy
from benchmarks.report import Row
from benchmarks.throughput import AT_ONCE, Case, bare, ours, semaphore, slots, timed, trivial

__all__ = ["peers"]

RATE = 200
"""Starts per second in the contest of the limiters."""

Contest = Callable[[Callable[[], Awaitable[None]], int], Awaitable[None]]
"""Runs the job so many times, at `RATE`."""


def peers(quick: bool) -> list[Row]:
    """A hundred at once, and 200 per second, as others do them."""
    known = {package for package, _ in (*CASES.values(), *CONTESTS.values())}
    if missing := sorted(package for package in known if not here(package)):
        print(f"(left out, not installed: {', '.join(missing)})", end=" ", file=sys.stderr)
    n = 2_000 if quick else 20_000
    cases = {name: case for name, (package, case) in CASES.items() if here(package)}
    took = timed(cases, n, 3 if quick else 5)
    rows = [
        Row("peers", f"{name}, {n // 1000}k trivial jobs, a hundred at once, to bare", per_task)
        for name, per_task in ((name, took[name] / took["bare"]) for name in cases)
    ]
    seconds = 2 if quick else 4
    for name, (package, contest) in CONTESTS.items():
        if here(package):
            most, last, cpu = asyncio.run(_measured(contest, RATE * seconds))
            rows += [
                Row("peers", f"{name}, {RATE}/s: most in a second ÷ limit", most),
                Row("peers", f"{name}, {RATE}/s: start {RATE * seconds} comes after", last, "s"),
                Row("peers", f"{name}, {RATE}/s: CPU s per s", cpu),
            ]
    return rows


def here(package: str) -> bool:
    """Whether it is installed."""
    return find_spec(package) is not None


# ---- a hundred at once --------------------------------------------------------------------------


async def task_group(n: int) -> None:
    """TaskGroup and Semaphore."""
    gate = asyncio.Semaphore(AT_ONCE)

    async def one() -> None:
        async with gate:
            await trivial()

    async with asyncio.TaskGroup() as group:
        for _ in range(n):
            group.create_task(one())


async def aiojobs(n: int) -> None:
    """A Scheduler with a limit."""
    from aiojobs import Scheduler

    scheduler = Scheduler(limit=AT_ONCE, pending_limit=0, wait_timeout=None)
    for _ in range(n):
        await scheduler.spawn(trivial())
    await scheduler.wait_and_close()


async def anyio(n: int) -> None:
    """A CapacityLimiter in a task group."""
    from anyio import CapacityLimiter, create_task_group

    gate = CapacityLimiter(AT_ONCE)

    async def one() -> None:
        async with gate:
            await trivial()

    async with create_task_group() as group:
        for _ in range(n):
            group.start_soon(one)


async def aiometer(n: int) -> None:
    """run_on_each with max_at_once."""
    from aiometer import run_on_each

    async def one(_: int) -> None:
        await trivial()

    await run_on_each(one, range(n), max_at_once=AT_ONCE)


CASES: dict[str, tuple[str, Case]] = {
    "bare": ("asyncio", bare()),
    "async_task_manager": ("asyncio", ours(slots)),
    "Semaphore + gather": ("asyncio", semaphore()),
    "TaskGroup + Semaphore": ("asyncio", task_group),
    "aiojobs": ("aiojobs", aiojobs),
    "anyio CapacityLimiter": ("anyio", anyio),
    "aiometer": ("aiometer", aiometer),
}


# ---- 200 per second -----------------------------------------------------------------------------


async def _measured(contest: Contest, n: int) -> tuple[float, float, float]:
    """The most starts in any second to the limit, seconds from the first to the last, and CPU per
    second.
    """
    stamps: list[float] = []

    async def stamp() -> None:
        stamps.append(time.monotonic())

    before, began = time.process_time(), time.monotonic()
    await contest(stamp, n)
    cpu = (time.process_time() - before) / (time.monotonic() - began)
    assert len(stamps) == n
    ends = [bisect_left(stamps, start + 1.0) for start in stamps]
    most = max(end - start for start, end in enumerate(ends)) / RATE
    return most, stamps[-1] - stamps[0], cpu


async def window(job: Callable[[], Awaitable[None]], n: int) -> None:
    """Ours."""
    async with TaskManager(SlidingWindowStrategy(RATE, 1.0)) as manager:
        for _ in range(n):
            manager.add_task(job)


async def with_aiolimiter(job: Callable[[], Awaitable[None]], n: int) -> None:
    """A leaky bucket."""
    from aiolimiter import AsyncLimiter

    rate = AsyncLimiter(RATE, 1)

    async def one() -> None:
        async with rate:
            await job()

    await asyncio.gather(*[one() for _ in range(n)])


async def with_asyncio_throttle(job: Callable[[], Awaitable[None]], n: int) -> None:
    """A window that is polled."""
    from asyncio_throttle.throttler import Throttler

    rate = Throttler(RATE, 1.0)

    async def one() -> None:
        async with rate:
            await job()

    await asyncio.gather(*[one() for _ in range(n)])


async def with_pyrate_limiter(job: Callable[[], Awaitable[None]], n: int) -> None:
    """A sliding log."""
    from pyrate_limiter import Duration, Limiter, Rate

    rate = Limiter(Rate(RATE, Duration.SECOND))

    async def one() -> None:
        await rate.try_acquire_async("all")
        await job()

    await asyncio.gather(*[one() for _ in range(n)])


async def with_limits(job: Callable[[], Awaitable[None]], n: int) -> None:
    """A moving window, asked again when it says that it may have room."""
    from limits import RateLimitItemPerSecond
    from limits.aio.storage import MemoryStorage
    from limits.aio.strategies import MovingWindowRateLimiter

    rate, item = MovingWindowRateLimiter(MemoryStorage()), RateLimitItemPerSecond(RATE)

    async def one() -> None:
        while not await rate.hit(item, "all"):
            reset = (await rate.get_window_stats(item, "all")).reset_time
            await asyncio.sleep(max(0.005, reset - time.time()))
        await job()

    await asyncio.gather(*[one() for _ in range(n)])


async def with_throttled(job: Callable[[], Awaitable[None]], n: int) -> None:
    """A token bucket that waits."""
    from throttled.asyncio import Throttled, per_sec

    rate = Throttled(key="all", using="token_bucket", quota=per_sec(RATE, RATE), timeout=60)

    async def one() -> None:
        await rate.limit()
        await job()

    await asyncio.gather(*[one() for _ in range(n)])


async def with_aiometer(job: Callable[[], Awaitable[None]], n: int) -> None:
    """run_on_each with max_per_second: evenly spaced."""
    from aiometer import run_on_each

    async def one(_: int) -> None:
        await job()

    await run_on_each(one, range(n), max_per_second=RATE)


CONTESTS: dict[str, tuple[str, Contest]] = {
    "async_task_manager": ("asyncio", window),
    "aiolimiter": ("aiolimiter", with_aiolimiter),
    "asyncio-throttle": ("asyncio_throttle", with_asyncio_throttle),
    "pyrate-limiter": ("pyrate_limiter", with_pyrate_limiter),
    "limits, moving window": ("limits", with_limits),
    "throttled-py, token bucket": ("throttled", with_throttled),
    "aiometer": ("aiometer", with_aiometer),
}
