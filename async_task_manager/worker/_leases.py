"""The leases of what a worker holds."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence

from async_task_manager.errors import LeaseLost, StoreError
from async_task_manager.queues.base import MessageQueue
from async_task_manager.worker._held import Held, HeldMessages

__all__ = ["keep"]


async def keep(
    queue: MessageQueue, held: HeldMessages, lose: Callable[[Held, Exception], None]
) -> None:
    """Renews all leases, of what runs and of what waits, until it is cancelled.

    What the queue says is another's, and what could not be renewed before its time was over, is
    lost.
    """
    loop = asyncio.get_running_loop()
    while True:
        lease = queue.visibility_timeout
        await asyncio.sleep(lease / 3)
        kept = list(held)
        if not kept:
            continue
        until = loop.time() + lease
        try:
            messages = [one.message for one in kept]
            results: Sequence[Exception | None] = await queue.extend(messages, lease)
        except StoreError as error:
            results = [error] * len(kept)
        for one, failure in zip(kept, results, strict=True):
            if failure is None:
                one.until = max(one.until, until)
            elif one.settled or one.lost or one not in held:
                pass  # acknowledged meanwhile, say
            elif isinstance(failure, LeaseLost) or loop.time() >= one.until:
                lose(one, failure)
