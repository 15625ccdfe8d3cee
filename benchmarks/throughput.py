"""Rows A, B, S, K: what a task costs, beside bare asyncio and peers that do the same work."""

from __future__ import annotations

import asyncio
import gc
import time
from collections.abc import Awaitable, Callable
from statistics import median

from aiolimiter import AsyncLimiter

from async_task_manager import Chain, TaskManager
from async_task_manager.events import Event
from async_task_manager.strategies import (
    BaseStrategy,
    ConcurrentLimitStrategy,
    PriorityQueueStrategy,
    SlidingWindowStrategy,
)
from benchmarks.report import Row

__all__ = ["throughput"]

Case = Callable[[int], Awaitable[None]]
AT_ONCE = 100
NEVER = 10**9


async def trivial() -> None:
    """The smallest job."""


async def real() -> None:
    """Awaits fifty times, as a request over HTTP does."""
    for _ in range(50):
        await asyncio.sleep(0)


def bare(job: Callable[[], Awaitable[None]] = trivial) -> Case:
    """create_task and gather of all."""

    async def run(n: int) -> None:
        await asyncio.gather(*[asyncio.ensure_future(job()) for _ in range(n)])

    return run


def floor(job: Callable[[], Awaitable[None]] = trivial) -> Case:
    """W: a real asyncio.Task per job, with only a hundred alive."""

    async def run(n: int) -> None:
        loop = asyncio.get_running_loop()
        alive: set[asyncio.Task[None]] = set()
        ended = asyncio.Event()
        left = n

        def start() -> None:
            nonlocal left
            if left:
                left -= 1
                task: asyncio.Task[None] = asyncio.Task(job(), loop=loop)  # type: ignore[arg-type]
                alive.add(task)
                task.add_done_callback(end)
            elif not alive:
                ended.set()

        def end(task: asyncio.Task[None]) -> None:
            alive.discard(task)
            start()

        for _ in range(AT_ONCE):
            start()
        await ended.wait()

    return run


def semaphore(job: Callable[[], Awaitable[None]] = trivial) -> Case:
    """A Semaphore around each of n tasks."""

    async def run(n: int) -> None:
        slots = asyncio.Semaphore(AT_ONCE)

        async def one() -> None:
            async with slots:
                await job()

        await asyncio.gather(*[asyncio.ensure_future(one()) for _ in range(n)])

    return run


def limiter(job: Callable[[], Awaitable[None]] = trivial) -> Case:
    """aiolimiter, with a limit that never binds, and a Semaphore."""

    async def run(n: int) -> None:
        slots, rate = asyncio.Semaphore(AT_ONCE), AsyncLimiter(NEVER, 1)

        async def one() -> None:
            async with slots, rate:
                await job()

        await asyncio.gather(*[asyncio.ensure_future(one()) for _ in range(n)])

    return run


def ours(
    build: Callable[[], BaseStrategy],
    job: Callable[[], Awaitable[None]] = trivial,
    *,
    metadata: bool = False,
) -> Case:
    """The manager, with factories as work."""

    async def run(n: int) -> None:
        manager = TaskManager(build())
        await manager.idle()
        for i in range(n):
            manager.add_task(job, {"priority": i % 3, "id": i} if metadata else None)
        await manager.join()
        await manager.stop()

    return run


def both() -> BaseStrategy:
    """Priorities, a window that never binds, and a hundred at once."""
    return Chain(
        PriorityQueueStrategy(),
        SlidingWindowStrategy(NEVER, 3600),
        ConcurrentLimitStrategy(AT_ONCE),
    )


def keyed() -> BaseStrategy:
    """The same with both limits per key, and every task with a key of its own."""
    return Chain(
        PriorityQueueStrategy(),
        SlidingWindowStrategy(NEVER, 3600, key="id"),
        ConcurrentLimitStrategy(AT_ONCE, key="id"),
    )


def slots() -> BaseStrategy:
    """A hundred at once."""
    return ConcurrentLimitStrategy(AT_ONCE)


def observed(build: Callable[[], BaseStrategy]) -> Case:
    """The same, while somebody observes all that happens."""

    async def run(n: int) -> None:
        manager = TaskManager(build())
        told = 0

        def observer(record: Event) -> None:
            nonlocal told
            told += 1

        manager.subscribe(observer)
        await manager.idle()
        for i in range(n):
            manager.add_task(trivial, {"priority": i % 3, "id": i})
        await manager.join()
        await manager.stop()
        assert told >= 3 * n

    return run


def timed(cases: dict[str, Case], n: int, rounds: int) -> dict[str, float]:
    """Microseconds per task: medians of rounds that take the cases in turn."""
    times: dict[str, list[float]] = {name: [] for name in cases}
    for _ in range(rounds):
        for name, case in cases.items():
            gc.collect()
            began = time.perf_counter()
            asyncio.run(_run(case, n))
            times[name].append((time.perf_counter() - began) / n * 1e6)
    return {name: median(values) for name, values in times.items()}


async def _run(case: Case, n: int) -> None:
    await case(n)


def throughput(quick: bool) -> list[Row]:
    """All rows of the group."""
    rows: list[Row] = []
    rounds = 3 if quick else 7
    cases: dict[str, Case] = {
        "bare": bare(),
        "W": floor(),
        "semaphore": semaphore(),
        "aiolimiter": limiter(),
        "A1": ours(Chain),
        "A2": ours(slots),
        "B": ours(both, metadata=True),
        "K": ours(keyed, metadata=True),
        "O": observed(both),
    }
    for n in (10_000,) if quick else (10_000, 100_000):
        took = timed(cases, n, rounds)
        at = f"{n // 1000}k"
        rows += [
            Row("bare", f"create_task + gather, {at}", took["bare"], "µs"),
            Row("W", f"a hundred asyncio.Tasks alive, {at}", took["W"], "µs"),
            Row("", f"Semaphore + gather, {at}, to bare", took["semaphore"] / took["bare"]),
            Row("", f"aiolimiter + Semaphore, {at}, to bare", took["aiolimiter"] / took["bare"]),
            Row(
                "A1",
                f"no limit, {at}, to bare",
                took["A1"] / took["bare"],
                "",
                0.9 if n < 5e4 else 0.6,
            ),
            Row("A2", f"concurrency, {at}, to W", took["A2"] / took["W"], "", 1.5),
            Row(
                "B", f"priority + window + concurrency, {at}, to W", took["B"] / took["W"], "", 1.9
            ),
            Row("K", f"B with {at} keys, to B", took["K"] / took["B"], "", 3),
            Row("O", f"B with an observer that counts, {at}, to B without", took["O"] / took["B"]),
        ]
    n = 1_000 if quick else 5_000
    took = timed({"W": floor(real), "S": ours(slots, real)}, n, rounds)
    rows.append(Row("S", "jobs of 50 awaits, to W", took["S"] / took["W"], "", 1.05))
    return rows
