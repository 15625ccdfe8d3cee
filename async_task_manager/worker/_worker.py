"""The worker: receives what its chain can use soon, and brings each message to an end."""

from __future__ import annotations

import asyncio
import logging
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

from async_task_manager._validate import number, whole
from async_task_manager.errors import (
    InvalidState,
    InvalidType,
    StoreCorrupt,
    StoreError,
)
from async_task_manager.manager import TaskManager
from async_task_manager.queues import MessageQueue, open_queue
from async_task_manager.strategies import (
    BaseStrategy,
    BulkStrategy,
    Chain,
    ConcurrentLimitStrategy,
    exponential,
)
from async_task_manager.task import Task
from async_task_manager.worker._ahead import Ahead
from async_task_manager.worker._ending import as_a_whole
from async_task_manager.worker._handlers import Handling, MessageHandler
from async_task_manager.worker._held import Held, HeldMessages
from async_task_manager.worker._leases import keep
from async_task_manager.worker._settling import Settling
from async_task_manager.worker._stats import WorkerStats
from async_task_manager.worker._verdicts import Verdict, described, verdict_of

__all__ = ["Worker"]

logger = logging.getLogger("async_task_manager.worker")

WAIT = 20.0
"""Seconds of one long poll."""


class Worker:
    """Takes messages from a queue through a strategy to a handler.

    A message is acknowledged when its handler has returned. If the handler raises, the message is
    given back, to come again after a backoff; after ``max_receives`` of the queue it becomes a dead
    letter with the error as its reason. `NonRetryable` makes it one at once. `RateLimited`, and
    what a strategy rejects, comes again without being counted. Leases are renewed while a message
    waits or runs; if one is lost all the same, its handler is cancelled, and nothing is
    acknowledged.

    Args:
        queue: A queue, or its URL; of a URL the worker closes it again.
        handler: A function of one `Message`; an async one runs in the event loop, any other in a
            thread. What it returns doesn't matter. Or a `BulkStrategy`, whose handler gets lists of
            messages: an exception in the list that it returns is the failure of that message alone.
            It is the worker's then.
        strategy: What limits and orders the handling: messages are tasks whose metadata are their
            attributes.
        max_held: How many messages are held at most, at least 1: begun, or received ahead.
        max_held_bytes: No more are received while those held have so many bytes, at least 1.
        max_threads: Threads for a handler that isn't async, at least 1.
        backoff: Seconds until a message comes again, from how often it was received.
        grace: Seconds, at least 0, for what runs to finish after `stop`; then it is cancelled.

    Ahead is received what the strategy has begun within a second of late, one message or batch at
    least. Among what is held, the strategy chooses; over the whole queue priorities and turns reach
    where the queue knows them, as the one in SQLite does.

    Raises:
        InvalidValue, InvalidType: a parameter is out of range or has the wrong type.
    """

    def __init__(
        self,
        queue: MessageQueue | str,
        handler: MessageHandler | BulkStrategy,
        strategy: BaseStrategy,
        *,
        max_held: int = 1000,
        max_held_bytes: int = 64 * 2**20,
        max_threads: int = 10,
        backoff: Callable[[int], float] = exponential(1, factor=2, maximum=600),  # noqa: B008  # no state
        grace: float = 30.0,
    ) -> None:
        if not isinstance(queue, MessageQueue | str):
            raise InvalidType(f"queue must be a MessageQueue or a URL, not {queue!r}")
        if not isinstance(strategy, BaseStrategy):
            raise InvalidType(f"strategy must be a strategy, not {strategy!r}")
        if not callable(backoff):
            raise InvalidType(f"backoff must be a callable that gives seconds, not {backoff!r}")
        self.queue = open_queue(queue) if isinstance(queue, str) else queue
        self._owned = isinstance(queue, str)
        self.strategy = strategy
        self.max_held = whole("max_held", max_held, at_least=1)
        self.max_held_bytes = whole("max_held_bytes", max_held_bytes, at_least=1)
        self.backoff = backoff
        self.grace = number("grace", grace, at_least=0)
        self._ran = False
        self._stats = WorkerStats()
        self._held = HeldMessages()
        whole("max_threads", max_threads, at_least=1)
        self._handling = Handling(handler, max_threads, self._held, self._begin)
        self._ahead = Ahead(self._held, self._handling.at_once, max_held, max_held_bytes)
        self._stopping = asyncio.Event()
        self._moved = asyncio.Event()
        """Set when there may be room for more."""

    @property
    def in_threads(self) -> int:
        """Handlers that run in threads now: nothing can stop those."""
        return self._handling.busy

    def configure(
        self,
        queue: str | None = None,
        max_concurrent: int | None = None,
        max_threads: int | None = None,
        grace: float | None = None,
    ) -> None:
        """Changes, before it runs, what is not None: another queue by its URL; at most so many
        messages at once, whatever the strategy allows.
        """
        if queue is not None:
            self.queue, self._owned = open_queue(queue), True
        if max_concurrent is not None:
            self.strategy = Chain(self.strategy, ConcurrentLimitStrategy(max_concurrent))
        if max_threads is not None:
            self._handling.max_threads = whole("max_threads", max_threads, at_least=1)
        if grace is not None:
            self.grace = number("grace", grace, at_least=0)

    def stop(self) -> None:
        """Receives no more, gives back at once what has not begun, and lets `run` end when the rest
        has, or ``grace`` seconds are over. A second call cancels what still runs.
        """
        if self._stopping.is_set():
            self._cancel_all()
        self._stopping.set()

    def _cancel_all(self) -> None:
        for held in self._held:
            if held.task is not None:
                held.task.cancel()

    def stats(self) -> WorkerStats:
        """What it has done so far, and what it holds."""
        self._stats.held, self._stats.waiting = len(self._held), self._held.waiting
        return self._stats

    async def run(self, *, until_empty: bool = False, signals: bool = False) -> None:
        """Works until `stop`. Cancelled, it gives back what has not begun, cancels what runs, and
        gives that back, too.

        Args:
            until_empty: Ends as well when the queue holds nothing but dead letters.
            signals: SIGTERM and SIGINT stop it; the second one cancels what runs. In the main
                thread alone.

        Raises:
            StrategyError: the strategy raised or broke the contract.
            StoreError: the queue can't be opened; StoreCorrupt: its file is damaged.
            InvalidState: it has run before.
        """
        if self._ran:
            raise InvalidState("a worker runs once; make another one")
        self._ran = True
        try:
            await self.queue.open()
            with self._listening(signals):
                await self._work(until_empty)
        finally:
            if self._owned:
                await self.queue.close()

    @contextmanager
    def _listening(self, signals: bool) -> Iterator[None]:
        numbers = (signal.SIGTERM, signal.SIGINT) if signals else ()
        loop = asyncio.get_running_loop()
        for n in numbers:
            loop.add_signal_handler(n, self.stop)
        try:
            yield
        finally:
            for n in numbers:
                loop.remove_signal_handler(n)

    async def _work(self, until_empty: bool) -> None:
        self._manager = TaskManager(self._handling.chain(self.strategy))
        self._settling = Settling(self.queue, self._settled)
        telling = asyncio.create_task(self._settling.run())
        parts = [
            asyncio.create_task(part)
            for part in (
                self._manager.run(),
                keep(self.queue, self._held, self._lose),
                self._count(),
            )
        ]
        receiver = asyncio.create_task(self._receive(until_empty))
        stopping = asyncio.create_task(self._stopping.wait())
        grace = 0.0
        try:
            await asyncio.wait(
                [stopping, receiver, telling, *parts], return_when=asyncio.FIRST_COMPLETED
            )
            grace = self.grace
        finally:
            stopping.cancel()
            await as_a_whole(self._end(receiver, telling, parts, grace), self._cancel_all)

    async def _end(
        self,
        receiver: asyncio.Task[None],
        telling: asyncio.Task[None],
        parts: list[asyncio.Task[None]],
        grace: float,
    ) -> None:
        receiver.cancel()
        await asyncio.wait([receiver])
        if telling.cancelling():  # `asyncio.run` cancels all tasks at its end
            await asyncio.wait([telling])
            telling = asyncio.create_task(self._settling.run())
        await self._finish(grace)
        parts = [receiver, telling, *parts]
        for part in parts:
            part.cancel()
        await asyncio.wait(parts)
        for part in parts:
            if not part.cancelled():
                part.result()

    async def _finish(self, grace: float) -> None:
        """Ends what runs, gives back what has not begun, and tells the queue all of it."""
        self._settling.hurry()
        for held in self._held:
            if held.task is None and not held.settled:
                self._settle(Verdict(held, "return"))
        await self._manager.close(grace)
        for held in self._held:
            if held.task is not None and not held.task.done():
                logger.error("message %s: its handler can't be stopped", held.message.id)
                self._forget(held)
        while len(self._held):
            self._moved.clear()
            await self._moved.wait()
        self._handling.close()

    # ---- in ---------------------------------------------------------------------------------

    async def _receive(self, until_empty: bool) -> None:
        """Receives whenever there is room, until nothing comes any more."""
        loop = asyncio.get_running_loop()
        pause = 0.5
        while True:
            room = self._ahead.room()
            if not room:
                self._moved.clear()
                await self._moved.wait()
                continue
            wait = min(1.0, WAIT) if until_empty else WAIT
            try:
                messages = await self.queue.receive(room, wait, ahead=True)
                pause = 0.5
            except StoreCorrupt:
                raise
            except StoreError as error:
                logger.error("cannot receive, trying again in %s s: %s", pause, error)
                await asyncio.sleep(pause)
                pause = min(2 * pause, 30.0)
                continue
            self._stats.received += len(messages)
            until = loop.time() + self.queue.visibility_timeout
            for message in messages:
                held, first = self._held.add(message, until)
                if first:
                    self._start(held)
            self._ahead.came(len(messages), room)
            if until_empty and not messages and not len(self._held):
                depth = await self.queue.depth()
                if not (depth.ready or depth.delayed or depth.in_flight):
                    return

    async def _count(self) -> None:
        """Once a second: what has begun in it is what may be received ahead."""
        while True:
            await asyncio.sleep(1.0)
            self._ahead.tick()
            self._moved.set()

    def _start(self, held: Held) -> None:
        metadata = dict(held.message.attributes)
        try:
            task = self._manager.add_task(self._handling.work(held), metadata)
        except Exception as error:  # what a strategy has against it, it will have for ever
            self._settle(Verdict(held, "bury", reason=described(error)))
            return
        held.task = task
        task.add_done_callback(partial(self._ended, held))

    # ---- out --------------------------------------------------------------------------------

    async def _begin(self, batch: list[Held]) -> None:
        """A handler gets them now."""
        begun = [held for held in batch if self._held.begin(held)]
        self._ahead.begun(len(begun))
        self._moved.set()
        again = [held for held in begun if held.message.receive_count > 1]
        if not again:
            return
        # One of them may be what killed the process last time. What was done by then shall not be
        # done again, and again, because it was never said.
        await self._settling.flush()
        try:
            results = await self.queue.begin([held.message for held in again])
        except StoreError as error:  # its count of attempts may be one too low then
            logger.warning("could not say that %d messages begin: %s", len(again), error)
            return
        for held, lost in zip(again, results, strict=True):
            if lost is not None:
                self._lose(held, lost)
        await asyncio.sleep(0)  # where the handler of what was lost is cancelled

    def _ended(self, held: Held, task: Task[Any]) -> None:
        """The chain is done with it: decides what becomes of the message."""
        if task.state == "failed":
            task.exception()  # it has been looked at
        if held not in self._held:
            return
        if held.lost:
            self._forget(held)
        elif task.state == "cancelled" and held.begun and self._handling.in_thread:
            # Its thread may go on: until its lease runs out, nobody else shall begin.
            logger.error("message %s: its thread can't be stopped", held.message.id)
            self._forget(held)
        else:
            self._settle(verdict_of(held, task, self.backoff, self._manager.time()))

    def _settle(self, verdict: Verdict) -> None:
        self._settling.add(verdict)

    def _settled(self, verdict: Verdict, error: Exception | None) -> None:
        """The queue was told, or could not be."""
        held, kind = verdict.held, verdict.kind
        if held not in self._held:
            return  # told twice, as the first time was cancelled
        if error is not None:
            self._stats.lost += 1
            logger.warning("message %s: it will come again: %s", held.message.id, error)
        elif kind == "acknowledge":
            self._stats.acknowledged += 1
        elif kind == "release":
            self._stats.released += 1
        elif kind == "return":
            self._stats.returned += 1
        else:
            self._stats.dead += 1
            logger.error("message %s is a dead letter: %s", held.message.id, verdict.reason)
        self._forget(held, done=error is None and kind in ("acknowledge", "bury"))

    def _forget(self, held: Held, *, done: bool = False) -> None:
        """It is held no more. Those behind it in its group follow only if it is done for good."""
        behind = self._held.behind(held)
        following = self._held.remove(held)
        self._moved.set()
        if done and following is not None and not self._stopping.is_set():
            if not following.settled:  # else it goes back just now, as the one before it was lost
                self._start(following)
            return
        for other in behind:
            if not other.settled:
                self._settle(Verdict(other, "return"))

    def _lose(self, held: Held, error: Exception) -> None:
        """Its lease is another's: whoever works on it here stops."""
        if held.lost or held not in self._held:
            return
        held.lost = True
        self._stats.lost += 1
        logger.warning("message %s: stopping its handler: %s", held.message.id, error)
        if held.task is None:
            self._forget(held)
        else:
            held.task.cancel()

    def __repr__(self) -> str:
        return f"<Worker of {self.queue!r}: {len(self._held)} held>"
