"""Imports the orders of producer.py in batches, at most 40 batches a second, two at once.

    python examples/message_worker/orders.py               # until the queue is empty
    cd examples/message_worker && atm worker orders:worker --queue sqlite:////path/to/orders.db

The other side fails now and then: those batches come again. What no attempt could import is a dead
letter, with its reason. Kill it at any moment and start it again: no order is lost.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Sequence

from async_task_manager import Chain, NonRetryable
from async_task_manager.queues import Message
from async_task_manager.strategies import (
    BulkStrategy,
    ConcurrentLimitStrategy,
    PriorityQueueStrategy,
    SlidingWindowStrategy,
    fixed,
)
from async_task_manager.worker import Worker

QUEUE = "sqlite:///orders.db?max_receives=5"

chance = random.Random(7)


async def import_orders(messages: list[Message]) -> Sequence[Exception | None]:
    """One call for many orders; gives what became of each."""
    await asyncio.sleep(0.02)  # the other side
    if chance.random() < 0.1:
        raise ConnectionError("the other side hung up")
    return [imported(message) for message in messages]


def imported(message: Message) -> Exception | None:
    if not isinstance(message.body["amount"], int):
        return NonRetryable(f"order {message.body['order']}: an amount must be a number")
    return None


worker = Worker(
    QUEUE,
    BulkStrategy(import_orders, max_size=25, max_wait=0.1),
    Chain(PriorityQueueStrategy(), SlidingWindowStrategy(40, 1), ConcurrentLimitStrategy(2)),
    backoff=fixed(0.1),
)


if __name__ == "__main__":
    asyncio.run(worker.run(until_empty=True, signals=True))
    stats = worker.stats()
    print(f"{stats.acknowledged} imported, {stats.released} came again, {stats.dead} given up")
