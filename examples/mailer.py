"""Letters from a web application: bounded, watched, asked about by id, and called back.

The handlers of the application just call `send`; what limits it, stands in one place.
"""

import asyncio
import logging
import sys
from collections import Counter, defaultdict
from functools import partial

from async_task_manager import Chain, QueueFull, TaskManager, current_task
from async_task_manager.events import Event, StageClosed, StageOpened
from async_task_manager.observers import LogObserver, track
from async_task_manager.strategies import (
    ConcurrentLimitStrategy,
    PriorityQueueStrategy,
    TokenBucketStrategy,
)

# The first letter starts it; nobody has to remember to.
manager = TaskManager(
    Chain(PriorityQueueStrategy(), TokenBucketStrategy(5, 10), ConcurrentLimitStrategy(3)),
    autostart=True,
    max_queued=50,
    history=200,
)
waits: defaultdict[str, float] = defaultdict(float)
closed: dict[str, float] = {}


@manager.wrap(metadata=lambda to, urgent=False: {"priority": "high" if urgent else "normal"})
async def send(to: str, urgent: bool = False) -> str:
    """A letter, by SMTP."""
    await asyncio.sleep(0.4)
    if to.endswith("@nowhere"):
        raise ConnectionRefusedError(to)
    task = current_task()
    return f"letter {task.id if task else '?'} to {to}"


def watch(record: Event) -> None:
    """What the dashboard shows: when letters have to wait, and for how long."""
    if isinstance(record, StageClosed):
        closed[record.stage.describe()] = record.at
    elif isinstance(record, StageOpened):
        limit = record.stage.describe()
        waits[limit] += record.at - closed.pop(limit)


async def main() -> None:
    logging.basicConfig(level=logging.WARNING, stream=sys.stdout, format="%(message)s")
    manager.subscribe(LogObserver())  # failures as lines with fields
    leave = manager.subscribe(watch)

    # A handler that waits for its letter; the urgent one goes before what is queued.
    letters = [asyncio.create_task(send(f"user{i}@home")) for i in range(30)]
    await asyncio.sleep(1)
    print(await send("admin@home", urgent=True))

    # A newsletter in the background: as many as there is room for, the others later.
    queued = []
    try:
        for i in range(100):
            queued += [manager.add_task(partial(asyncio.sleep, 0.4, f"news {i}"), name="news")]
    except QueueFull as error:
        print(f"{len(queued)} news queued: {error}")
    queued += [await manager.put(partial(asyncio.sleep, 0.4, "news")) for _ in range(10)]

    # Somebody asks for one of them by its id, and doesn't want it any more.
    last = queued[-1].id
    print(manager.status(last), manager.queue_lengths().by_priority)
    print("cancelled" if manager.cancel(last) else "too late")

    results = await asyncio.gather(*letters, send("ann@nowhere"), return_exceptions=True)
    print(Counter(type(result).__name__ for result in results))
    async with track(manager):  # a progress bar on a terminal, a line now and then elsewhere
        await manager.join()
    leave()
    for limit, seconds in waits.items():
        print(f"letters had to wait for {limit!r}: {seconds:.1f} s")
    print(f"ended: {len(manager.history)}")
    await manager.close()


asyncio.run(main())
