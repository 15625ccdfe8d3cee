"""The smallest program: eight tasks, three at once."""

import asyncio

from async_task_manager import TaskManager
from async_task_manager.strategies import ConcurrentLimitStrategy


async def sample_task(name: str, seconds: float) -> None:
    print("start", name)
    await asyncio.sleep(seconds)
    print("  end", name)


async def main() -> None:
    strategy = ConcurrentLimitStrategy(max_concurrent=3)
    manager = TaskManager(strategy, poll_interval=0.2)
    for i in range(8):
        manager.add_task(sample_task(f"task-{i}", 1.0))
    await manager.idle()  # returns at once, runs in the background
    await asyncio.sleep(10)
    await manager.stop()


if __name__ == "__main__":
    asyncio.run(main())
