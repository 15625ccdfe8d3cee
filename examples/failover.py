"""Two providers, one of them unwell: breakers, a cooldown, and retries that go elsewhere."""

import asyncio
from collections import Counter
from functools import partial

from async_task_manager import Chain, RateLimited, TaskManager, current_task
from async_task_manager.strategies import (
    CircuitBreakerStrategy,
    ConcurrentLimitStrategy,
    CooldownStrategy,
    Limit,
    Provider,
    ProviderRouterStrategy,
    RetryStrategy,
)
from async_task_manager.strategies.backoff import exponential

asked: Counter[str] = Counter()


async def ask(question: int) -> str:
    task = current_task()
    assert task is not None
    where = str(task.provider)
    asked[where] += 1
    await asyncio.sleep(0.01)
    if where == "cheap" and 20 <= question < 60:
        raise ConnectionError("cheap is down")
    if where == "dear" and asked[where] == 10:
        raise RateLimited(retry_after=0.1)
    return where


def limits() -> list[Limit]:
    return [
        CircuitBreakerStrategy(min_calls=3, cooldown=0.2),
        CooldownStrategy(key=None),
        ConcurrentLimitStrategy(4),
    ]


async def main() -> None:
    router = ProviderRouterStrategy(
        [Provider("dear", limits(), price=10), Provider("cheap", limits(), price=1)],
        policy="cheapest",
    )
    retry = RetryStrategy(5, backoff=exponential(0.05))
    served: Counter[str] = Counter()
    async with TaskManager(Chain(retry, router)) as manager:
        tasks = []
        for question in range(100):
            tasks.append(manager.add_task(partial(ask, question)))
            await asyncio.sleep(0.01)
        served.update([await task for task in tasks])
    print("served by:", dict(served))
    print("calls made:", dict(asked))
    print("more than one attempt:", sum(task.attempt > 1 for task in tasks))


asyncio.run(main())
