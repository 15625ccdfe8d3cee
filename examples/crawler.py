"""A crawler: two requests at once per host, ten a second in all, in bounded memory."""

import asyncio
import random
from collections import Counter
from collections.abc import AsyncIterator

from async_task_manager import Chain, TaskManager
from async_task_manager.strategies import ConcurrentLimitStrategy, SlidingWindowStrategy

HOSTS = ["a.example", "b.example", "c.example"]


async def pages(dice: random.Random) -> AsyncIterator[str]:
    """What there is to fetch; a database cursor, say."""
    for number in range(300):
        if number % 50 == 0:
            await asyncio.sleep(0.1)
        yield f"https://{dice.choice(HOSTS)}/{number}"


async def main() -> None:
    dice = random.Random(3)
    chain = Chain(SlidingWindowStrategy(10, 1.0), ConcurrentLimitStrategy(2, key="host"))
    found: Counter[str] = Counter()

    async with TaskManager(chain, max_queued=100, history=5) as manager:

        async def fetch(url: str) -> str:
            await asyncio.sleep(dice.uniform(0.1, 0.5))
            return url.split("/")[2]

        def metadata(url: str) -> dict[str, str]:
            return {"host": url.split("/")[2]}

        async for host in manager.map(fetch, pages(dice), metadata=metadata):
            found[host] += 1
            if found.total() % 100 == 0:
                lengths = manager.queue_lengths()
                print(f"{found.total():3} done, {lengths.total:2} queued, {lengths.by_key['host']}")

        async with manager.turn(host="a.example"):
            print("the robots.txt of a.example, under the same limits")

        print("last:", ", ".join(task.state for task in manager.history))
    print(dict(found))


if __name__ == "__main__":
    asyncio.run(main())
