"""What became of messages, told to the queue in batches."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from contextlib import suppress
from math import inf

from async_task_manager.errors import LeaseLost, StoreError
from async_task_manager.queues.base import MessageQueue
from async_task_manager.worker._verdicts import Verdict

__all__ = ["Settling"]

logger = logging.getLogger("async_task_manager.worker")

LAST = 10.0
"""Seconds for which the queue is tried when the worker ends."""
LINGER = 0.02
"""Seconds for which a few verdicts wait for others to go along."""
BATCH = 10
"""So many don't wait: a batch of SQS."""


class Settling:
    """Tells the queue verdicts, again where it can't be reached, as long as the leases last.

    Args:
        queue: Where the messages are from.
        settled: Called with each verdict, and None or the error, once it is settled.
    """

    def __init__(
        self, queue: MessageQueue, settled: Callable[[Verdict, Exception | None], None]
    ) -> None:
        self._queue = queue
        self._settled = settled
        self._pending: list[Verdict] = []
        self._came = asyncio.Event()
        self._urgent = asyncio.Event()
        self._waiters: list[asyncio.Future[None]] = []
        self._last = inf

    def add(self, verdict: Verdict) -> None:
        """Will be told soon."""
        verdict.held.settled = True
        self._pending.append(verdict)
        self._came.set()

    async def flush(self) -> None:
        """Until the queue was told all that was added so far."""
        waiter = asyncio.get_running_loop().create_future()
        self._waiters.append(waiter)
        self._urgent.set()
        self._came.set()
        await waiter

    def hurry(self) -> None:
        """Waits for others no more, and not for ever for a queue that can't be reached."""
        self._last = asyncio.get_running_loop().time() + LAST

    async def run(self) -> None:
        """Tells what comes, until it is cancelled; then another run tells the rest."""
        while True:
            await self._came.wait()
            if len(self._pending) < BATCH and self._last == inf:
                with suppress(TimeoutError):
                    await asyncio.wait_for(self._urgent.wait(), LINGER)
            batch, self._pending = self._pending, []
            waiters, self._waiters = self._waiters, []
            self._came.clear()
            self._urgent.clear()
            try:
                await asyncio.gather(*(self._tell(kind, batch) for kind in KINDS))
            except asyncio.CancelledError:  # perhaps they were told, perhaps not
                self._pending = batch + self._pending
                self._came.set()
                raise
            for waiter in waiters:
                if not waiter.done():
                    waiter.set_result(None)

    async def _tell(self, kind: str, batch: list[Verdict]) -> None:
        left = [verdict for verdict in batch if verdict.kind == kind]
        pause = 0.1
        while left:
            results = await self._ask(kind, left)
            now = asyncio.get_running_loop().time()
            again = []
            for verdict, error in zip(left, results, strict=True):
                temporary = isinstance(error, StoreError) and not isinstance(error, LeaseLost)
                if temporary and now + pause < min(verdict.held.until, self._last):
                    again.append(verdict)
                else:
                    self._settled(verdict, error)
            if again:
                logger.warning("could not %s %d messages; trying again", kind, len(again))
                await asyncio.sleep(pause)
                pause = min(2 * pause, 5.0)
            left = again

    async def _ask(self, kind: str, verdicts: list[Verdict]) -> list[Exception | None]:
        messages = [verdict.held.message for verdict in verdicts]
        delays = [verdict.delay for verdict in verdicts]
        reasons = [verdict.reason for verdict in verdicts]
        try:
            if kind == "acknowledge":
                return await self._queue.acknowledge(messages)
            if kind == "bury":
                return await self._queue.dead_letter(messages, reasons)
            counted = kind == "release"
            return await self._queue.release(messages, delays, reason=reasons, counted=counted)
        except StoreError as error:
            return [error] * len(verdicts)
        except Exception as error:  # the queue was closed, say: then their leases run out
            logger.exception("could not %s %d messages", kind, len(verdicts))
            return [error] * len(verdicts)


KINDS = ("acknowledge", "release", "return", "bury")
