"""Providers with breakers, cooldowns and adaptive limits: where tasks go while one is unwell."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest

from async_task_manager import Chain, CircuitOpen, RateLimited, Task, TaskManager, current_task
from async_task_manager.strategies import (
    AdaptiveStrategy,
    CircuitBreakerStrategy,
    ConcurrentLimitStrategy,
    CooldownStrategy,
    Limit,
    Provider,
    ProviderRouterStrategy,
    RetryStrategy,
    SlidingWindowStrategy,
)
from async_task_manager.strategies.backoff import fixed

POLICIES = ["ordered", "weighted", "least_loaded", "fastest", "cheapest", "earliest"]


class Network:
    """Two providers; what each does is up to the test."""

    def __init__(self, policy: Any, limits: Callable[[], list[Limit]], *more: Any) -> None:
        self.router = ProviderRouterStrategy(
            [Provider(name, limits()) for name in ("A", "B")], policy=policy
        )
        self.manager = TaskManager(Chain(*more, self.router))
        self.down: set[str] = set()
        self.calls: list[tuple[float, str]] = []

    async def call(self) -> str:
        task = current_task()
        assert task is not None
        where = str(task.provider)
        self.calls.append((asyncio.get_running_loop().time(), where))
        await asyncio.sleep(0.5)
        if where in self.down or f"{where} {task.metadata.get('model')}" in self.down:
            raise ConnectionError(where)
        return where

    async def send(self, count: int, **metadata: Any) -> Counter[str]:
        """So many tasks, one a second; gives where they were served in the end."""
        tasks = []
        for _ in range(count):
            tasks.append(self.manager.add_task(self.call, dict(metadata)))
            await asyncio.sleep(1)
        return Counter([await task for task in tasks])

    def took(self, where: str, since: float = 0.0) -> int:
        return sum(name == where and at >= since for at, name in self.calls)


@pytest.mark.parametrize("policy", POLICIES)
async def test_a_broken_provider_is_left_alone_until_its_breaker_probes_it(policy: Any) -> None:
    def limits() -> list[Limit]:
        return [CircuitBreakerStrategy(min_calls=3, cooldown=20, window_seconds=60)]

    network = Network(policy, limits, RetryStrategy(4, backoff=fixed(0.1)))
    await network.manager.idle()
    network.down.add("A")
    assert await network.send(15) == {"B": 15}  # nobody notices
    assert network.took("A") <= 4  # as many as it took to be sure
    network.down.clear()
    await asyncio.sleep(25)
    network.calls.clear()
    network.router["B"].disable()
    assert await network.send(10) == {"A": 10}  # the first of them was the probe
    await network.manager.close()


async def test_tasks_go_elsewhere_while_one_provider_cools_down() -> None:
    network = Network("ordered", lambda: [CooldownStrategy(key=None)], RetryStrategy(3))
    await network.manager.idle()

    async def refused() -> None:
        raise RateLimited(retry_after=10)

    first = network.manager.add_task(refused)
    await asyncio.sleep(0.5)
    assert await network.send(8) == {"B": 8}
    await asyncio.sleep(3)
    assert await network.send(2) == {"A": 2}
    first.cancel()
    await network.manager.close()


async def test_what_a_provider_with_an_adaptive_limit_cannot_take_goes_to_the_next() -> None:
    network = Network(
        "ordered",
        lambda: [AdaptiveStrategy(initial_limit=8, min_limit=1, algorithm="aimd")],
        RetryStrategy(20, backoff=fixed(0.1)),
    )
    await network.manager.idle()
    capacity = {"A": 3, "B": 100}
    running: Counter[str] = Counter()
    served: Counter[str] = Counter()

    async def call() -> None:
        task = current_task()
        assert task is not None
        where = str(task.provider)
        running[where] += 1
        try:
            if running[where] > capacity[where]:
                raise ConnectionError("too much")
            await asyncio.sleep(0.5)
            served[where] += 1
        finally:
            running[where] -= 1

    for _ in range(60):
        for _ in range(4):
            network.manager.add_task(call)
        await asyncio.sleep(0.5)
    await network.manager.join()
    assert served["A"] > 100
    assert served["B"] > 40
    limit = network.router["A"].limits[0]
    assert limit.usage(None, 0.0).capacity < 8
    await network.manager.close()


async def test_breakers_that_fail_fast_send_tasks_elsewhere_until_all_do() -> None:
    def limits() -> list[Limit]:
        return [CircuitBreakerStrategy(min_calls=2, cooldown=30, on_open="reject")]

    network = Network("ordered", limits)
    await network.manager.idle()
    network.down |= {"A", "B"}
    ends: list[str] = []
    for _ in range(6):
        task = network.manager.add_task(network.call)
        await asyncio.wait([asyncio.ensure_future(_settled(task))])
        ends.append(type(task.exception()).__name__)
    assert ends == ["ConnectionError"] * 4 + ["CircuitOpen"] * 2
    assert [where for _, where in network.calls] == ["A", "A", "B", "B"]
    with pytest.raises(CircuitOpen) as caught:
        await network.manager.add_task(network.call)
    assert caught.value.until == 31.0  # A's, which opened a second in
    network.down.clear()
    await asyncio.sleep(30)
    assert await network.send(3) == {"A": 3}
    await network.manager.close()


async def _settled(task: Task[Any]) -> None:
    while not task.done():
        await asyncio.sleep(0.1)


async def test_one_models_breaker_never_blocks_anothers_tasks() -> None:
    def limits() -> list[Limit]:
        return [CircuitBreakerStrategy(min_calls=2, cooldown=1000, key="model")]

    network = Network("ordered", limits, RetryStrategy(3, backoff=fixed(0.1)))
    await network.manager.idle()
    network.down.add("A x")
    assert await network.send(6, model="x") == {"B": 6}
    assert await network.send(6, model="y") == {"A": 6}
    pinned = network.manager.add_task(network.call, {"model": "x", "provider": "A"})
    assert await network.send(3, model="y", provider="A") == {"A": 3}
    assert pinned.state == "queued"
    await network.manager.close()


@pytest.mark.parametrize("policy", POLICIES)
async def test_all_together_lose_nothing(policy: Any) -> None:
    """A provider that comes and goes, with everything that one may have."""

    def limits() -> list[Limit]:
        return [
            CircuitBreakerStrategy(min_calls=3, cooldown=3, window_seconds=10),
            CooldownStrategy(key="model", default_seconds=0.5),
            AdaptiveStrategy(initial_limit=4, max_limit=8, key="model"),
            SlidingWindowStrategy(20, 1.0),
            ConcurrentLimitStrategy(6),
        ]

    network = Network(policy, limits, RetryStrategy(50, backoff=fixed(0.2)))
    await network.manager.idle()
    tasks = []
    for second in range(40):
        network.down = {"A"} if second % 10 < 3 else {"B x"} if second % 10 > 7 else set()
        for model in ("x", "y"):
            tasks += [network.manager.add_task(network.call, {"model": model}) for _ in range(3)]
        await asyncio.sleep(1)
    network.down.clear()
    await network.manager.join()
    assert all(task.state == "succeeded" for task in tasks)
    assert network.took("A") + network.took("B") >= len(tasks)
    for provider in network.router:
        for limit in provider.limits:
            if isinstance(limit, ConcurrentLimitStrategy):
                assert limit.usage(None, 100.0).used == 0
    assert all(load.running == 0 for load in network.router._loads.values())
    await network.manager.close()
