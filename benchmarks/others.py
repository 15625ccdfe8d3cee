"""Rows C to G, V and the moves: memory, exactness in real time, latency, queues, virtual time."""

from __future__ import annotations

import asyncio
import gc
import sys
import time
import tracemalloc
from bisect import bisect_left
from collections.abc import Callable
from statistics import median
from typing import Any

from async_task_manager import Chain, Task, TaskManager
from async_task_manager.simulation import generate, simulate
from async_task_manager.strategies import (
    BaseStrategy,
    ConcurrentLimitStrategy,
    Limit,
    PriorityQueueStrategy,
    Provider,
    ProviderRouterStrategy,
    SlidingWindowStrategy,
    TokenBucketStrategy,
)
from async_task_manager.strategies._dispatch import Dispatch
from async_task_manager.strategies._lanes import Queue
from async_task_manager.task import Outcome
from async_task_manager.testing import run_virtual
from benchmarks.report import Row
from benchmarks.throughput import ours, slots, timed, trivial

__all__ = ["keys", "latency", "limits", "memory", "moves", "queues", "virtual"]


def memory(quick: bool) -> list[Row]:
    """C: bytes per queued task, and whether a deep queue slows anything."""
    rows = []
    n = 20_000 if quick else 100_000
    for name, bar, make in (
        ("factory", 200, lambda: trivial),
        ("coroutine object", 400, trivial),
    ):
        manager = TaskManager(slots())
        gc.collect()
        tracemalloc.start()
        for _ in range(n):
            manager.add_task(make())
        used = tracemalloc.get_traced_memory()[0] / n
        tracemalloc.stop()
        rows.append(Row("C", f"bytes per queued task, {name}", used, "B", bar))
        del manager
    few, many = (10_000, 100_000) if quick else (10_000, 1_000_000)
    small = timed({"ours": ours(slots)}, few, 3)["ours"]
    large = timed({"ours": ours(slots)}, many, 1 if quick else 3)["ours"]
    rows.append(Row("C", f"µs per task at {many:.0e} queued to {few:.0e}", large / small, "", 1.5))
    return rows


def limits(quick: bool) -> list[Row]:
    """D: used to the full and never exceeded, in real time, stamped at the first instruction."""
    rows = []
    seconds = 2.0 if quick else 5.0
    cases: list[tuple[str, int, Callable[[int], BaseStrategy], float, float, float]] = [
        ("window", 200, lambda rate: SlidingWindowStrategy(rate, 1.0), 0, 1.0, 0.01),
        ("window", 1000, lambda rate: SlidingWindowStrategy(rate, 1.0), 0, 1.0, 0.01),
        ("bucket", 200, lambda rate: TokenBucketStrategy(rate, 5), 5, 1.01, 0.02),
        ("bucket", 1000, lambda rate: TokenBucketStrategy(rate, 5), 5, 1.01, 0.02),
    ]
    for rate in (200, 1000):
        cpu = asyncio.run(_timers(rate, seconds))
        rows.append(Row("D", f"bare: a timer and a task {rate} times a second, CPU s per s", cpu))
    for name, rate, build, burst, most_bar, cpu_bar in cases:
        stamps, cpu = asyncio.run(_stamped(build(rate), rate, seconds))
        allowed = rate * (int(seconds) if name == "window" else seconds) + burst
        ends = [bisect_left(stamps, stamp + 1.0) for stamp in stamps]
        most = max(end - start for start, end in enumerate(ends)) / (rate + burst)
        rows += [
            Row(
                "D", f"{name} of {rate}/s: started ÷ allowed", len(stamps) / allowed, "", 0.99, True
            ),
            Row("D", f"{name} of {rate}/s: most in a second ÷ limit", most, "", most_bar),
            Row("D", f"{name} of {rate}/s: CPU s per s", cpu / seconds, "", cpu_bar),
        ]
    return rows


async def _timers(rate: int, seconds: float) -> float:
    """What the loop itself takes to wake up so often and to run a task each time."""
    loop = asyncio.get_running_loop()
    began, left = loop.time(), int(rate * seconds)
    alive: set[asyncio.Task[None]] = set()
    ended = loop.create_future()

    def ring() -> None:
        nonlocal left
        left -= 1
        task = loop.create_task(trivial())
        alive.add(task)
        task.add_done_callback(alive.discard)
        if left:
            loop.call_at(began + seconds - left / rate, ring)
        else:
            ended.set_result(None)

    before = time.process_time()
    ring()
    await ended
    return (time.process_time() - before) / seconds


async def _stamped(strategy: BaseStrategy, rate: int, seconds: float) -> tuple[list[float], float]:
    stamps: list[float] = []

    async def stamp() -> None:
        stamps.append(time.monotonic())

    manager = TaskManager(strategy)
    for _ in range(int(rate * (seconds + 2))):
        manager.add_task(stamp)
    before = time.process_time()
    await manager.idle()
    await asyncio.sleep(seconds - 0.005)
    manager.pause()
    cpu = time.process_time() - before
    await manager.close(grace=0)
    return stamps, cpu


def latency(quick: bool) -> list[Row]:
    """E: from add to the first instruction, from a freed slot to the next start, and idling."""
    n = 200 if quick else 2_000
    to_start, bare, freed, idle = asyncio.run(_latencies(n, 1.0 if quick else 5.0))
    return [
        Row("E", "idle: add → first instruction, p50, to bare", to_start / bare, "", 1.5),
        Row("E", "freed slot → next start, p50", freed * 1e6, "µs", 25),
        Row("E", "idle CPU", idle * 1e3, "ms/s", 0.2),
    ]


async def _latencies(n: int, idle_seconds: float) -> tuple[float, float, float, float]:
    began = 0.0
    starts: list[float] = []
    plain: list[float] = []
    gaps: list[float] = []

    async def first(into: list[float]) -> None:
        into.append(time.perf_counter() - began)

    manager = TaskManager(slots())
    await manager.idle()
    for _ in range(n):
        await asyncio.sleep(0.001)
        began = time.perf_counter()
        await asyncio.create_task(first(plain))
        await asyncio.sleep(0.001)
        began = time.perf_counter()
        await manager.add_task(lambda: first(starts))
    before = time.process_time()
    await asyncio.sleep(idle_seconds)
    idle = (time.process_time() - before) / idle_seconds
    await manager.stop()

    last = 0.0

    async def ends() -> None:
        nonlocal last
        now = time.perf_counter()
        if last:
            gaps.append(now - last)
        await asyncio.sleep(0)
        last = time.perf_counter()

    one = TaskManager(ConcurrentLimitStrategy(1))
    for _ in range(n):
        one.add_task(ends)
    await one.idle()
    await one.join()
    await one.stop()
    return median(starts), median(plain), median(gaps), idle


def queues(quick: bool) -> list[Row]:
    """F: push and pop of the queue at depth."""
    depth = 20_000 if quick else 100_000
    rows = []
    for name, levels, bar in (("few levels", 3, 0.5), ("all distinct", depth, 1.5)):
        tasks = []
        for i in range(depth):
            task: Task[Any] = Task(trivial)
            task._rank, task._seq, task._state = (i * 7919) % levels, i, "queued"
            tasks.append(task)
        queue = Queue()
        began = time.perf_counter()
        for task in tasks:
            queue.push(task)
        while queue.peek() is not None:
            queue.pop()
        took = (time.perf_counter() - began) / depth * 1e6
        rows.append(Row("F", f"push + pop at {depth:.0e}, {name}", took, "µs", bar))
    return rows


def keys(quick: bool) -> list[Row]:
    """G: what the state of a key costs."""
    n = 20_000 if quick else 100_000
    rows = []
    limits: list[tuple[str, Limit, float]] = [
        ("concurrency", ConcurrentLimitStrategy(5, key="user"), 0.0),
        ("bucket", TokenBucketStrategy(1, 5, key="user"), 100.0),
    ]
    outcome = Outcome("success", 0.0, 0.0)
    for name, limit, later in limits:
        users = [f"user {i}" for i in range(n)]  # the keys themselves are the caller's
        gc.collect()
        tracemalloc.start()
        empty = tracemalloc.get_traced_memory()[0]
        grants = [limit.acquire(user, 1, 0.0) for user in users]
        held = len(grants) * (sys.getsizeof(grants[0]) if isinstance(grants[0], list) else 0)
        full = tracemalloc.get_traced_memory()[0] - sys.getsizeof(grants) - held
        for grant in grants:
            limit.release(grant, outcome, 0.0)
        del grants
        for i in range(n):  # whoever comes later sweeps out what is idle
            limit.release(limit.acquire(f"late {i % 2}", 1, later + i), outcome, later + i)
        gc.collect()  # also empties Python's stocks of small objects
        idle = tracemalloc.get_traced_memory()[0]
        tracemalloc.stop()
        began = time.perf_counter()
        for user in users:
            if limit.ready_at(user, 1, later + n) <= later + n:
                limit.release(limit.acquire(user, 1, later + n), outcome, later + n)
        took = (time.perf_counter() - began) / n * 1e6
        rows += [
            Row("G", f"{name}: µs per use of a key", took, "µs", 1.5),
            Row("G", f"{name}: bytes per key", (full - empty) / n, "B", 130),
            Row("G", f"{name}: bytes per key when idle again", max(0, idle - empty) / n, "B", 0.5),
        ]
    return rows


def three_policies() -> Chain:
    """Priorities, a window, and a hundred at once."""
    return Chain(
        PriorityQueueStrategy(),
        SlidingWindowStrategy(1_000, 60),
        ConcurrentLimitStrategy(100),
    )


def virtual(quick: bool) -> list[Row]:
    """V: a day of a million tasks, simulated, and by the manager under virtual time."""
    tasks, day = (100_000, 8_640.0) if quick else (1_000_000, 86_400.0)

    def simulated() -> int:
        jobs = generate(
            tasks, rate=tasks / day, duration=2.0, priorities={"high": 1, "normal": 1, "low": 1}
        )
        return simulate(three_policies(), jobs).succeeded

    async def live() -> int:
        async with TaskManager(three_policies()) as manager:
            for second in range(int(day)):
                for i in range(tasks * second // int(day), tasks * (second + 1) // int(day)):
                    manager.add_task(lambda: asyncio.sleep(2), {"priority": i % 3})
                await asyncio.sleep(1)
        return manager.stats().succeeded

    rows = []
    for how, run, bar in (
        ("simulated", simulated, 20),
        ("by the manager on virtual time", lambda: run_virtual(live()), None),
    ):
        began = time.perf_counter()
        assert run() == tasks
        took = (time.perf_counter() - began) * 1_000_000 / tasks
        rows.append(Row("V", f"a day of 1e6 tasks through three policies, {how}", took, "s", bar))
    return rows


def moves(quick: bool) -> list[Row]:
    """Lanes looked at per task started, by the shape of the chain."""
    n = 2_000 if quick else 10_000
    shapes: dict[str, tuple[Callable[[], Chain], Callable[[int], dict[str, Any]]]] = {
        "one keyed limit, a key per task": (
            lambda: Chain(ConcurrentLimitStrategy(1, key="a")),
            lambda i: {"a": i},
        ),
        "a thousand keys behind one limit": (
            lambda: Chain(ConcurrentLimitStrategy(10), ConcurrentLimitStrategy(1, key="a")),
            lambda i: {"a": i % 1000},
        ),
        "a router of three providers": (
            lambda: Chain(
                ProviderRouterStrategy(
                    [Provider(name, limits=[ConcurrentLimitStrategy(5)]) for name in "abc"]
                )
            ),
            lambda i: {"provider": "abc"[i % 3]} if i % 2 else {},
        ),
        "two contended keys": (
            lambda: Chain(ConcurrentLimitStrategy(1, key="a"), ConcurrentLimitStrategy(1, key="b")),
            lambda i: {"a": i % 30, "b": i * 7 % 31},
        ),
    }
    rows = []
    for name, (build, metadata) in shapes.items():
        chain = build()
        for i in range(n):
            chain.add(Task(trivial, metadata(i)), 0.0)
        running: list[Task[Any]] = []
        now, started = 0.0, 0
        while chain.queued:
            now += 1.0
            for task in running:
                chain.finish(task, Outcome("success", now, now), now)
            running.clear()
            while chain.next_wake(now) <= now:
                given = chain.pull(now)
                if given is not None:
                    chain.begun(given, now)
                    running.append(given)
                    started += 1
        assert isinstance(chain.dispatch, Dispatch)
        rows.append(Row("moves", name, chain.dispatch.moves / started, "per task"))
    return rows
