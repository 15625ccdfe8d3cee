"""Three users share one slow function: one floods it, one asks now and then, one pays for more."""

import asyncio
from collections import Counter

from async_task_manager import Chain, TaskManager, current_task
from async_task_manager.strategies import ConcurrentLimitStrategy, FairShareStrategy


async def flood_and_quiet() -> None:
    """By levels: whoever asked more in the last hour waits longer."""
    fair = FairShareStrategy()
    order: list[str] = []

    async def answer(user: str) -> None:
        order.append(user)
        await asyncio.sleep(0.01)

    async with TaskManager(Chain(fair, ConcurrentLimitStrategy(1))) as manager:
        for _ in range(40):
            manager.add_task(lambda: answer("flood"), {"user_id": "flood"})
        await asyncio.sleep(0.025)
        manager.add_task(lambda: answer("quiet"), {"user_id": "quiet"})
        print("flood:", fair.standing("flood", manager.time()))
        print("quiet:", fair.standing("quiet", manager.time()))
        print("queued:", manager.queue_lengths().by_priority)
    print(f"the quiet user's task came as number {order.index('quiet') + 1} of {len(order)}\n")


async def equal_shares() -> None:
    """By share: tokens, as they were really used; the one who pays gets twice as many."""
    fair = FairShareStrategy(by="share", cost="tokens", weights={"pays": 2}, maximum=2)
    used: Counter[str] = Counter()

    async def complete(user: str, tokens: int) -> None:
        await asyncio.sleep(tokens / 50_000)
        task = current_task()
        assert task is not None
        task.settle({"tokens": tokens})
        used[user] += tokens

    manager = TaskManager(Chain(fair, ConcurrentLimitStrategy(3)))
    for _ in range(200):
        for user, tokens in (("pays", 500), ("honest", 500), ("says too little", 900)):
            job = lambda user=user, tokens=tokens: complete(user, tokens)  # noqa: E731  # a factory
            manager.add_task(job, {"user_id": user, "cost": {"tokens": 300}})
    async with manager:
        await asyncio.sleep(1)
        await manager.close()
    for user, tokens in used.items():
        print(f"{user:16} {tokens:6} tokens, a share of {tokens / used.total():.0%}")


asyncio.run(flood_and_quiet())
asyncio.run(equal_shares())
