"""Told to slow down: three ways to deal with a server's limit, over real HTTP, side by side.

python examples/retry_and_cooldown.py  (needs httpx: pip install 'async-task-manager[cli]')

The server on loopback admits 15 requests in any 1.5 seconds, and says so only in its answers; it
also fails three of them. Each way sends 40 requests, up to eight at once, until all are done.
"""

import asyncio
import time
from functools import partial

import httpx
from fake_provider import FakeProvider

from async_task_manager import Chain, NonRetryable, RateLimited, TaskManager, current_task
from async_task_manager.headers import retry_after
from async_task_manager.strategies import (
    BaseStrategy,
    ConcurrentLimitStrategy,
    CooldownStrategy,
    RetryStrategy,
    SlidingWindowStrategy,
    exponential,
)


class Refused(NonRetryable):
    """The request itself is wrong: sent again, it would be refused again."""


class Failed(Exception):
    """The server's fault: worth another attempt."""


async def complete(client: httpx.AsyncClient, prompt: str) -> str:
    response = await client.post("/v1/completions", json={"prompt": prompt})
    task = current_task()
    assert task is not None
    task.observe(response.headers)  # whatever limit wants to know what remains
    if response.status_code == 429:
        raise RateLimited(response.text, retry_after=retry_after(response.headers))
    if response.status_code >= 500:
        raise Failed(response.text)
    if response.status_code >= 400:
        raise Refused(response.text)
    return str(response.json()["id"])


WAYS: list[tuple[str, list[BaseStrategy]]] = [
    ("retries alone", []),
    ("and a cooldown", [CooldownStrategy(key=None)]),
    # The most that we would send by ourselves; what the server says makes it less.
    ("and the server's own count", [CooldownStrategy(key=None), SlidingWindowStrategy(1000, 1.5)]),
]


async def main() -> None:
    print(f"{'':28}{'sent':>6}{'429s':>6}{'done':>6}{'seconds':>9}")
    for name, limits in WAYS:
        retry = RetryStrategy(5, backoff=exponential(0.1, maximum=2), max_rate_limited=None)
        chain = Chain(retry, *limits, ConcurrentLimitStrategy(8))
        async with FakeProvider(limits=["15/1.5s"], latency="0.01-0.05", fail_next=3) as provider:
            began = time.perf_counter()
            async with (
                httpx.AsyncClient(base_url=provider.url, trust_env=False) as client,
                TaskManager(chain) as manager,
            ):
                tasks = [
                    manager.add_task(partial(complete, client, f"prompt {i}")) for i in range(40)
                ]
            seconds = time.perf_counter() - began
        done = sum(task.state == "succeeded" for task in tasks)
        stats = provider.stats
        print(f"{name:28}{stats.received:6}{stats.rejected:6}{done:6}{seconds:9.1f}")


if __name__ == "__main__":
    asyncio.run(main())
