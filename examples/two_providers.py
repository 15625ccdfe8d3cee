"""Two providers of an LLM API: requests, tokens and slots limited, one switched off on the way."""

import asyncio
import random
from functools import partial

from async_task_manager import Chain, TaskManager, current_task
from async_task_manager.strategies import (
    ConcurrentLimitStrategy,
    PriorityQueueStrategy,
    Provider,
    ProviderRouterStrategy,
    SlidingWindowStrategy,
)


async def complete(prompt: str, seconds: float) -> str:
    task = current_task()
    assert task is not None
    await asyncio.sleep(seconds)  # here the request would go to task.provider
    return f"{prompt} by {task.provider}"


async def main() -> None:
    dice = random.Random(7)
    router = ProviderRouterStrategy(
        [
            Provider(
                "cheap",
                limits=[
                    SlidingWindowStrategy(20, 60),
                    SlidingWindowStrategy(6_000, 60, cost="tokens"),
                ],
            ),
            Provider("dear", limits=[SlidingWindowStrategy(60, 60), ConcurrentLimitStrategy(4)]),
        ]
    )
    async with TaskManager(Chain(PriorityQueueStrategy(), router)) as manager:
        tasks = [
            manager.add_task(
                partial(complete, f"prompt {i}", dice.uniform(0.5, 3)),
                {
                    "priority": dice.choice(["high", "normal", "low"]),
                    "cost": {"tokens": dice.randrange(50, 900)},
                },
            )
            for i in range(120)
        ]
        await asyncio.sleep(20)
        router["dear"].disable()  # acts at once on what waits; what runs goes on
        await asyncio.sleep(30)
        router["dear"].enable()

    for name in router.names:
        print(name, sum(task.provider == name for task in tasks), "requests")
    for level in ("high", "normal", "low"):
        waits = [
            task.started_at - task.created_at
            for task in tasks
            if task.metadata["priority"] == level and task.started_at and task.created_at
        ]
        print(f"{level:7} waited {sum(waits) / len(waits):5.1f} s on average")


if __name__ == "__main__":
    asyncio.run(main())
