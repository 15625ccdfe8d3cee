"""What `atm serve` shows where no service is named: four users, two providers, real HTTP."""

from __future__ import annotations

import asyncio
import random
import threading
from collections.abc import Callable, Sequence
from pathlib import Path

import httpx

from async_task_manager.service.service import TaskService
from async_task_manager.strategies import (
    ConcurrentLimitStrategy,
    FairShareStrategy,
    PriorityQueueStrategy,
    Provider,
    ProviderRouterStrategy,
    RetryStrategy,
    SlidingWindowStrategy,
)
from async_task_manager.strategies.backoff import exponential
from async_task_manager.strategies.chain import Chain

__all__ = ["demonstration", "visit"]

USERS = {"ada": 1, "grace": 2, "alan": 1, "a busy robot": 12}
"""How often each comes, compared with the others."""

ENOUGH = 60
"""Tasks in the queue at which the users wait for a while."""


def demonstration(folder: Path) -> TaskService:
    """A service that keeps its tasks in the folder."""
    swift = Provider("swift", [SlidingWindowStrategy(40, 30), ConcurrentLimitStrategy(4)])
    steady = Provider("steady", [SlidingWindowStrategy(20, 30), ConcurrentLimitStrategy(2)])
    service = TaskService(
        Chain(
            PriorityQueueStrategy(),
            FairShareStrategy(window_seconds=300),
            RetryStrategy(max_attempts=3, backoff=exponential(1)),
            ProviderRouterStrategy([swift, steady]),
        ),
        store=f"sqlite:///{folder / 'demo.db'}",
        result_ttl=3600,
        grace=1,
    )

    @service.task
    async def summarize(text: str) -> dict[str, str | int]:
        """Takes a second or two, fails now and then, and counts words."""
        await asyncio.sleep(random.uniform(0.5, 3))
        if random.random() < 0.1:
            raise ConnectionError("the provider hung up; it does so for one task in ten")
        return {"summary": text[:20], "words": len(text.split())}

    return service


def visit(
    url: str,
    over: threading.Event,
    tokens: Sequence[str] = (),
    pause: Callable[[], float] = lambda: 0.4,
) -> None:
    """Submits tasks as those users would, until it is over; with one of the tokens, if any."""
    names = random.Random()
    headers = {"authorization": f"Bearer {tokens[0]}"} if tokens else {}
    with httpx.Client(base_url=url, headers=headers, timeout=10, trust_env=False) as client:
        number = 0
        while not over.wait(pause()):
            try:
                if client.get("/queues").json()["queued"] < ENOUGH:
                    number += 1
                    (user,) = names.choices(list(USERS), list(USERS.values()))
                    task = {"x": f"text number {number}", "user_id": user}
                    urgent = {"priority": "high"} if names.random() < 0.1 else {}
                    client.post("/task", json={**task, **urgent})
            except httpx.HTTPError:  # it stops, or has too much to do
                continue
