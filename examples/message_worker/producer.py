"""Puts orders into a queue that is a file in the working directory, orders.db.

    python examples/message_worker/producer.py 200
    python examples/message_worker/orders.py

Three customers order; the third one's are urgent. One order is poison: nobody could import it.
"""

from __future__ import annotations

import asyncio
import sys

from async_task_manager.queues import Message, open_queue

QUEUE = "sqlite:///orders.db"
CUSTOMERS = ("ann", "bob", "eve")


def orders(count: int) -> list[Message]:
    messages = []
    for number in range(count):
        customer = CUSTOMERS[number % 3]
        attributes = {"user_id": customer, "priority": "high" if customer == "eve" else "normal"}
        messages.append(Message({"order": number, "amount": 10 + number}, attributes))
    messages.append(Message({"order": "poison", "amount": "twelve"}))
    return messages


async def main(count: int) -> None:
    async with open_queue(QUEUE) as queue:
        ids = await queue.send(orders(count))  # on disk when this returns
        print(f"{len(ids)} orders sent; the queue holds {(await queue.depth()).ready}")


if __name__ == "__main__":
    asyncio.run(main(int(sys.argv[1]) if len(sys.argv) > 1 else 200))
