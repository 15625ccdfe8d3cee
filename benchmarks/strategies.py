"""What each strategy adds: microseconds per task, beside the same chain without it.

A new strategy is one line in `ADDED`. It stands before a hundred slots, in a chain whose tasks
carry metadata; nothing of it ever binds, so that the figure is what its questions and accounts
cost. CPU time is measured, each time beside the slots alone, and the median of the differences
taken: they are small against what a shared machine does to either of the two.
"""

from __future__ import annotations

import asyncio
import gc
import time
from collections.abc import Callable, Sequence
from statistics import median
from typing import Any

from async_task_manager import Chain, TaskManager
from async_task_manager.strategies import (
    AdaptiveStrategy,
    BaseStrategy,
    BulkStrategy,
    CircuitBreakerStrategy,
    ConcurrentLimitStrategy,
    CooldownStrategy,
    CostEstimator,
    DeadlineStrategy,
    DelayedStrategy,
    FairShareStrategy,
    FixedWindowStrategy,
    Item,
    PriorityQueueStrategy,
    Provider,
    ProviderRouterStrategy,
    RetryStrategy,
    SlidingWindowStrategy,
    TimeBasedStrategy,
    TokenBucketStrategy,
    WeightedRoundRobinStrategy,
)
from benchmarks.report import Row
from benchmarks.throughput import AT_ONCE, NEVER, Case, trivial

__all__ = ["strategies"]


def providers() -> list[Provider]:
    return [Provider(name, [ConcurrentLimitStrategy(AT_ONCE)]) for name in "ABC"]


async def handle(values: Sequence[Any]) -> list[Any]:
    return list(values)


ADDED: dict[str, Callable[[], BaseStrategy]] = {
    "ConcurrentLimit": lambda: ConcurrentLimitStrategy(NEVER),
    "ConcurrentLimit, a key per task": lambda: ConcurrentLimitStrategy(1, key="id"),
    "SlidingWindow": lambda: SlidingWindowStrategy(NEVER, 3600),
    "SlidingWindow with a CostEstimator": lambda: SlidingWindowStrategy(
        NEVER, 3600, cost=CostEstimator("tokens")
    ),
    "FixedWindow": lambda: FixedWindowStrategy(NEVER, 3600),
    "TokenBucket": lambda: TokenBucketStrategy(NEVER, NEVER),
    "TokenBucket, a key per task": lambda: TokenBucketStrategy(NEVER, NEVER, key="id"),
    "Delayed": lambda: DelayedStrategy(0, measure_from="start"),
    "Adaptive": lambda: AdaptiveStrategy(initial_limit=AT_ONCE, min_limit=AT_ONCE),
    "Adaptive, a hundred keys": lambda: AdaptiveStrategy(initial_limit=10, key="user_id"),
    "CircuitBreaker": CircuitBreakerStrategy,
    "CircuitBreaker, a hundred keys": lambda: CircuitBreakerStrategy(key="user_id"),
    "Cooldown, a hundred keys": lambda: CooldownStrategy(key="user_id"),
    "Retry": RetryStrategy,
    "PriorityQueue": PriorityQueueStrategy,
    "PriorityQueue with aging": lambda: PriorityQueueStrategy(aging=60),
    "Deadline": lambda: DeadlineStrategy(key="due"),
    "FairShare by levels, a hundred users": FairShareStrategy,
    "FairShare by share, a hundred users": lambda: FairShareStrategy(by="share"),
    "TimeBased": TimeBasedStrategy,
    "ProviderRouter, three providers": lambda: ProviderRouterStrategy(providers()),
    "ProviderRouter, least loaded": lambda: ProviderRouterStrategy(
        providers(), policy="least_loaded"
    ),
    "WeightedRoundRobin": lambda: WeightedRoundRobinStrategy({"a": 5, "b": 1}),
}
"""By name, the stage that is put before the slots."""


def metadata(i: int) -> dict[str, Any]:
    due = 1.9e9 + i % 1000
    return {"priority": i % 3, "id": i, "user_id": i % 100, "cost": {"tokens": 100}, "due": due}


def chain(build: Callable[[], BaseStrategy]) -> Case:
    async def run(n: int) -> None:
        manager = TaskManager(Chain(build(), ConcurrentLimitStrategy(AT_ONCE)))
        await manager.idle()
        for i in range(n):
            manager.add_task(trivial, metadata(i))
        await manager.join()
        await manager.stop()

    return run


async def items(n: int) -> None:
    """A hundred in a call: less than a task each."""
    manager = TaskManager(Chain(BulkStrategy(handle), ConcurrentLimitStrategy(AT_ONCE)))
    await manager.idle()
    for i in range(n):
        manager.add_task(Item(i), metadata(i))
    await manager.join()
    await manager.stop()


async def took(case: Case, n: int) -> float:
    """Microseconds of CPU time per task."""
    gc.collect()
    began = time.process_time()
    await case(n)
    return (time.process_time() - began) / n * 1e6


def strategies(quick: bool) -> list[Row]:
    """All rows of the group."""
    n, rounds = (5_000, 5) if quick else (20_000, 9)
    alone = chain(Chain)
    cases = {name: chain(build) for name, build in ADDED.items()}
    cases["Bulk, items by the hundred"] = items
    bases: list[float] = []
    differences: dict[str, list[float]] = {name: [] for name in cases}
    for _ in range(rounds):
        for name, case in cases.items():
            base = asyncio.run(took(alone, n))
            bases.append(base)
            differences[name].append(asyncio.run(took(case, n)) - base)
    rows = [Row("adds", "a task through a hundred slots, alone", median(bases), "µs")]
    return rows + [Row("adds", name, median(found), "µs") for name, found in differences.items()]
