"""What is foreseen under fair shares, deadlines and routers is what happens: their copies go on as
they would themselves.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable
from datetime import timedelta
from functools import partial
from typing import Any

import pytest

from async_task_manager import Chain, TaskManager
from async_task_manager.strategies import (
    BaseStrategy,
    ConcurrentLimitStrategy,
    DeadlineStrategy,
    FairShareStrategy,
    PriorityQueueStrategy,
    Provider,
    ProviderRouterStrategy,
    SlidingWindowStrategy,
    WeightedRoundRobinStrategy,
)


def router(policy: Any) -> ProviderRouterStrategy:
    many = [SlidingWindowStrategy(3, 7), ConcurrentLimitStrategy(2)]
    return ProviderRouterStrategy(
        [Provider("a", many, weight=2, price=2), Provider("b", [ConcurrentLimitStrategy(1)])],
        policy=policy,
    )


CHAINS: dict[str, Callable[[], list[BaseStrategy]]] = {
    "levels": lambda: [FairShareStrategy(weights={"b": 2}), ConcurrentLimitStrategy(2)],
    "shares": lambda: [
        FairShareStrategy(
            by="share", cost="tokens", weights={"b": 2}, maximum=2, guaranteed={"c": 1}
        ),
        ConcurrentLimitStrategy(3),
    ],
    "shares of a priority": lambda: [
        PriorityQueueStrategy(),
        FairShareStrategy(by="share"),
        ConcurrentLimitStrategy(3),
    ],
    "deadlines": lambda: [DeadlineStrategy(key="due"), ConcurrentLimitStrategy(3)],
    "resources": lambda: [
        WeightedRoundRobinStrategy({"a": 2, "b": 1}),
        ConcurrentLimitStrategy(3),
    ],
}


def shared(policy: str) -> list[BaseStrategy]:
    return [FairShareStrategy(by="share"), router(policy)]


for policy in ("ordered", "weighted", "least_loaded", "fastest", "cheapest", "earliest"):
    CHAINS[policy] = partial(shared, policy)


@pytest.mark.parametrize("name", CHAINS)
async def test_every_task_starts_when_it_was_foreseen(name: str) -> None:
    rng = random.Random(name)
    manager = TaskManager(Chain(*CHAINS[name]()))

    async def nap() -> None:
        await asyncio.sleep(1)

    async with manager:
        for _ in range(3):  # by then it knows how long they take
            await manager.add_task(nap, {"user_id": "w", "cost": 1})
        tasks = [
            manager.add_task(
                nap,
                {
                    "user_id": rng.choice("aaabc"),
                    "priority": rng.choice([0, 1]),
                    "cost": {"tokens": rng.choice([1, 2, 5])},
                    "due": timedelta(seconds=rng.randrange(60)),
                },
            )
            for _ in range(30)
        ]
        await asyncio.sleep(2.5)
        foreseen = {task: manager.eta(task).starts_at for task in tasks if task.state == "queued"}
    assert len(foreseen) > 15
    for task, starts_at in foreseen.items():
        assert starts_at == pytest.approx(task.started_at, abs=1e-6)
