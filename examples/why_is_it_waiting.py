"""Somebody asks why his report isn't ready: the line, the limit, when, and what would help."""

import asyncio

from async_task_manager import Chain, TaskManager
from async_task_manager.strategies import (
    ConcurrentLimitStrategy,
    PriorityQueueStrategy,
    Provider,
    ProviderRouterStrategy,
    SlidingWindowStrategy,
)


async def report() -> None:
    await asyncio.sleep(12)


async def main() -> None:
    groq = Provider("groq", [SlidingWindowStrategy(30, 60), ConcurrentLimitStrategy(8)])
    spare = Provider("spare", [SlidingWindowStrategy(10, 60)], enabled=False)
    chain = Chain(PriorityQueueStrategy(), ProviderRouterStrategy([groq, spare]))
    async with TaskManager(chain) as manager:
        others = manager.add_tasks([report] * 60)
        mine = manager.add_task(report, name="the report for Ann")
        await asyncio.sleep(20)

        print(manager.explain())
        print(f"{mine.name}: {manager.explain(mine)}")
        print(f"{mine.name}: {manager.eta(mine)}")

        print("With 16 at once:")
        print(" ", manager.what_if(lambda c: setattr(c["groq"], "max_concurrent", 16), mine))
        print("With the spare provider:")
        print(" ", manager.what_if(lambda c: c["spare"].enable(), mine))

        foreseen = manager.what_if(lambda c: c["spare"].enable(), mine).after
        spare.enable()
        await mine.wait()
        print("As foreseen:", mine.started_at == foreseen.starts_at)
        for task in others:
            task.cancel()


asyncio.run(main())
