"""What becomes of the messages: `atm worker worker:handle --queue sqlite:///messages.db`."""

import asyncio

from async_task_manager.queues import Message


async def handle(message: Message) -> None:
    """One message; returning acknowledges it, an error brings it back later."""
    await asyncio.sleep(0.1)
    print(f"message {message.id}: {message.body}", flush=True)
