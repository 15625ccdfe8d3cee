"""A queue in a SQLite file: the embedded default, shared by the processes of one machine."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Sequence
from functools import partial
from pathlib import Path

from async_task_manager._sqlite import SqliteFile
from async_task_manager._validate import number, whole
from async_task_manager.errors import SendFailed, StoreError
from async_task_manager.queues import _operations as operations
from async_task_manager.queues._drafts import Draft
from async_task_manager.queues._schema import APPLICATION_ID, SCHEMA
from async_task_manager.queues.base import (
    DeadLetter,
    Depth,
    Message,
    MessageQueue,
    delays,
    reasons,
    receipts,
)

__all__ = ["SqliteQueue"]


class SqliteQueue(MessageQueue):
    """A queue in a SQLite file.

    Messages are given out by priority over the whole queue; among equals users take turns, and a
    user's messages go in the order of their sending. What `send` has returned, and what was
    acknowledged, survives a power cut. Time is SQLite's, one clock for all processes.

    The file is opened with the first call, and checked as a whole; a damaged one is refused.

    Args:
        path: Where the file is. It is made if it doesn't exist; its folder isn't.
        visibility_timeout: Seconds of a lease, above 0.
        max_receives: How often a message may fail before it becomes a dead letter, at least 1.
        busy_timeout: Seconds to wait while other processes write, at least 0.
        poll_interval: Seconds, above 0, after which a receiver that waits notices what another
            process sent.

    Every call may raise `StoreError`; `StoreCorrupt` for a damaged file.
    """

    def __init__(
        self,
        path: str | Path,
        *,
        visibility_timeout: float = 30.0,
        max_receives: int = 5,
        busy_timeout: float = 5.0,
        poll_interval: float = 0.1,
    ) -> None:
        self.visibility_timeout = number("visibility_timeout", visibility_timeout, above=0)
        self.max_receives = whole("max_receives", max_receives, at_least=1)
        self._poll_interval = number("poll_interval", poll_interval, above=0)
        self._file = SqliteFile(
            path,
            SCHEMA,
            application_id=APPLICATION_ID,
            busy_timeout=busy_timeout,
        )
        self._arrival = asyncio.Event()
        """Set, and replaced by another, when something was sent or given back here."""

    async def open(self) -> None:
        """See `MessageQueue.open`."""
        await self._file.read(operations.data_version)

    async def _send(self, drafts: list[Draft]) -> list[str]:
        try:
            ids = await self._file.write_together(operations.insert, drafts)
        except StoreError as error:
            raise SendFailed(
                [None] * len(drafts), dict.fromkeys(range(len(drafts)), error)
            ) from error
        self._tell()
        return ids

    async def receive(
        self, max_messages: int = 10, wait_seconds: float = 0.0, *, ahead: bool = False
    ) -> list[Message]:
        """See `MessageQueue.receive`."""
        whole("max_messages", max_messages, at_least=1)
        number("wait_seconds", wait_seconds, at_least=0)
        claim = partial(
            operations.claim,
            most=max_messages,
            lease=self.visibility_timeout,
            max_receives=self.max_receives,
            ahead=ahead,
        )
        time = asyncio.get_running_loop().time
        give_up = time() + wait_seconds
        while True:
            arrival = self._arrival
            claiming = self._file.write(claim)
            try:
                claimed = await asyncio.shield(claiming)
            except asyncio.CancelledError:
                claiming.add_done_callback(self._give_back)
                raise
            if claimed.messages or time() >= give_up:
                return claimed.messages
            await self._change(arrival, claimed.seen, min(give_up, time() + claimed.due_in))

    async def _change(self, arrival: asyncio.Event, seen: int, wake: float) -> None:
        """Until something was sent, here or by another process, or it is time to wake."""
        time = asyncio.get_running_loop().time
        while time() < wake:
            try:
                async with asyncio.timeout_at(min(wake, time() + self._poll_interval)):
                    await arrival.wait()
                    return
            except TimeoutError:
                if await self._file.read(operations.data_version) != seen:
                    return

    def _give_back(self, claiming: asyncio.Future[operations.Claimed]) -> None:
        """Whoever received these was cancelled meanwhile: nobody has looked at them."""
        if claiming.cancelled() or claiming.exception() is not None or self._file.closed:
            return
        items = [(message.receipt, 0.0, "") for message in claiming.result().messages]
        if items:
            given = operations.Release(items, False, self.max_receives)
            self._file.write_together(operations.release, given).add_done_callback(self._given_back)

    def _given_back(self, done: asyncio.Future[operations.Results]) -> None:
        if not done.cancelled():
            done.exception()  # failed: then the leases run out
        self._tell()

    async def begin(self, batch: Sequence[Message]) -> list[Exception | None]:
        """See `MessageQueue.begin`."""
        return await self._file.write_together(operations.begin, receipts(batch))

    async def acknowledge(self, batch: Sequence[Message]) -> list[Exception | None]:
        """See `MessageQueue.acknowledge`."""
        results = await self._file.write_together(operations.delete, receipts(batch))
        self._tell_of_groups(batch)
        return results

    async def extend(self, batch: Sequence[Message], seconds: float) -> list[Exception | None]:
        """See `MessageQueue.extend`."""
        number("seconds", seconds, at_least=0)
        results = await self._file.write_together(operations.extend, (receipts(batch), seconds))
        if seconds < self.visibility_timeout:
            self._tell()  # it may be due before whoever waits would look
        return results

    async def release(
        self,
        batch: Sequence[Message],
        delay: float | Sequence[float] = 0.0,
        *,
        reason: str | Sequence[str] = "",
        counted: bool = True,
    ) -> list[Exception | None]:
        """See `MessageQueue.release`."""
        seconds, why = delays(batch, delay), reasons(batch, reason)
        items = list(zip(receipts(batch), seconds, why, strict=True))
        given = operations.Release(items, counted, self.max_receives)
        results = await self._file.write_together(operations.release, given)
        self._tell()
        return results

    async def dead_letter(
        self, batch: Sequence[Message], reason: str | Sequence[str]
    ) -> list[Exception | None]:
        """See `MessageQueue.dead_letter`."""
        items = list(zip(receipts(batch), reasons(batch, reason), strict=True))
        results = await self._file.write_together(operations.bury, items)
        self._tell_of_groups(batch)
        return results

    async def dead_letters(self, limit: int = 100) -> list[DeadLetter]:
        """See `MessageQueue.dead_letters`."""
        whole("limit", limit, at_least=1)
        ask = partial(operations.dead_letters, limit=limit, max_receives=self.max_receives)
        return await self._file.write(ask)

    async def redrive(self, ids: Iterable[str] | None = None) -> int:
        """See `MessageQueue.redrive`."""
        chosen = None if ids is None else list(dict.fromkeys(ids))
        count = await self._file.write(partial(operations.redrive, ids=chosen))
        self._tell()
        return count

    async def depth(self) -> Depth:
        """See `MessageQueue.depth`."""
        return await self._file.write(partial(operations.depth, max_receives=self.max_receives))

    async def close(self) -> None:
        """See `MessageQueue.close`."""
        await self._file.close()

    def _tell_of_groups(self, batch: Sequence[Message]) -> None:
        """What stood behind one of these may be ready now."""
        if any(message.attributes.get("group_id") is not None for message in batch):
            self._tell()

    def _tell(self) -> None:
        arrival, self._arrival = self._arrival, asyncio.Event()
        arrival.set()

    def __repr__(self) -> str:
        return f"SqliteQueue({str(self._file.path)!r})"
