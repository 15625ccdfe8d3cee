"""The middle of the service: tasks come in, are stored, wait in the chain, run, and end."""

from __future__ import annotations

import asyncio
import json
import logging
import time
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple

from async_task_manager.errors import (
    InvalidState,
    ManagerClosed,
    QueueFull,
    StoreError,
    TaskManagerError,
)
from async_task_manager.events import Event, Expired, Finished, Queued, Rejected, Retried, Started
from async_task_manager.manager import TaskManager
from async_task_manager.queues import open_queue
from async_task_manager.runner.results import dumps
from async_task_manager.service.entry import Entry, clean, error_of
from async_task_manager.service.idempotency import IdempotencyKeys
from async_task_manager.service.live import Live
from async_task_manager.service.metrics import Metrics
from async_task_manager.service.records import NewTask, Record, Status
from async_task_manager.service.registry import Function, Registry
from async_task_manager.service.state import (
    load_state,
    read_ranks,
    write_ranks,
)
from async_task_manager.service.store import Store
from async_task_manager.service.threads import Threads
from async_task_manager.service.upkeep import Upkeep
from async_task_manager.strategies.base import BaseStrategy
from async_task_manager.strategies.chain import Chain
from async_task_manager.strategies.provider_router import ProviderRouterStrategy
from async_task_manager.strategies.time_based import TimeBasedStrategy
from async_task_manager.task import Task

if TYPE_CHECKING:
    from async_task_manager.service.settings import Settings

__all__ = ["Core", "Unstored", "Wanted"]

logger = logging.getLogger("async_task_manager.service")

RETRY_EVERY = 1.0
"""Seconds between attempts to store that a task begins."""


class Wanted(NamedTuple):
    """What is to be done."""

    function: Function
    args: bytes
    """A JSON object, checked against the function."""
    user_id: str
    metadata: dict[str, Any]
    """priority, cost, provider, valid_after (epoch seconds)."""


class End(NamedTuple):
    """How a task ended, until that is stored."""

    entry: Entry
    status: Status
    result: bytes
    at: float


class Unstored(TaskManagerError):
    """The task could not be stored, and will not be done."""


class Core:
    """A manager whose tasks are kept in a store.

    Args:
        strategy: What decides when a task starts.
        registry: The functions.
        settings: Bounds and times.
    """

    def __init__(self, strategy: BaseStrategy, registry: Registry, settings: Settings) -> None:
        chain = Chain.of(strategy)
        if not any(isinstance(stage, TimeBasedStrategy) for stage in chain.stages):
            chain = Chain(TimeBasedStrategy(), chain)  # for `valid_after`
        self.chain = chain
        self.router = next(
            (stage for stage in self.chain.stages if isinstance(stage, ProviderRouterStrategy)),
            None,
        )
        self.registry = registry
        self.settings = settings
        self.max_result_bytes = settings.max_result_bytes
        self.store = Store(settings.path)
        self.queue = None if settings.queue is None else open_queue(settings.queue)
        self.live = Live(self)
        self.metrics = Metrics(self)
        self.entries: dict[int, Entry] = {}
        """What has not ended, by number."""
        self.happenings = 0
        """Grows whenever something happens that a limit may remember."""
        self.stopping = self.closing = False
        self.wall: Callable[[], float] = time.time
        self._keys = IdempotencyKeys(self.store)
        self._writes: set[asyncio.Future[Any]] = set()
        self._unstored: list[End] = []
        self.threads = Threads(settings.threads)
        self._manager: TaskManager | None = None

    @property
    def manager(self) -> TaskManager:
        """The manager, from `start` on."""
        if self._manager is None:
            raise InvalidState("the service was not started")
        return self._manager

    # ---- life -------------------------------------------------------------------------------

    async def start(self) -> None:
        """Opens the store, takes up what waits in it, and begins."""
        store = self.store
        await store.open()
        now = self.wall()
        interrupted = await store.recover(now, self.settings.max_interruptions)
        saved_at = load_state(self.chain, store.kept_fact("state"), now)
        manager = self._manager = TaskManager(self.chain)
        self._unsubscribe = [
            manager.subscribe(self._observe),
            manager.subscribe(self.metrics.observer),
        ]
        await manager.idle()  # from here on there is a wall time
        manager.pause()
        found, unknown = self._resume(saved_at)
        manager.resume()
        if found:
            logger.info("%d tasks taken up, %d of which ran before", found, interrupted)
        for name, count in unknown.items():
            logger.warning(
                "%d tasks wait for a function %r, which is not registered", count, clean(name)
            )
        self._upkeep = Upkeep(self)

    def _resume(self, saved_at: float) -> tuple[int, dict[str, int]]:
        found, unknown = 0, dict[str, int]()
        for record in self.store.unfinished():
            if record.task not in self.registry:
                unknown[record.task] = unknown.get(record.task, 0) + 1
                continue
            function = self.registry.get(record.task)
            entry = Entry(self, record.number, function, record.user_id, record.submitted)
            entry.attempt, entry.status = record.attempt, record.status
            found += 1
            try:
                self._take_up(entry, record, saved_at)
            except TaskManagerError as error:  # a limit was lowered, a provider is gone
                entry.log_failure(error)
                self.entries[entry.number] = entry
                self._store_end(End(entry, "FAILURE", dumps(error_of(error)), self.wall()))
        return found, unknown

    def _take_up(self, entry: Entry, record: Record, saved_at: float) -> None:
        """As it was: what the saved state knows of isn't counted again."""
        metadata = {"task": record.task, "user_id": record.user_id, **record.metadata}
        ranks = read_ranks(self.chain, record.ranks)
        if record.submitted > saved_at:
            ranks = None
        entry.task = Task(entry, metadata)
        self.entries[entry.number] = entry
        self.manager.readmit(
            entry.task, ranks, attempt=record.attempt, run_timeout=entry.function.run_timeout
        )

    async def stop(self, grace: float | None = None) -> None:
        """Starts nothing more, gives what runs its time, and leaves all else in the store."""
        if self._manager is None:
            return
        self.stopping = self.threads.stopping = True
        self._upkeep.stop()
        await self.manager.stop(grace)
        for unsubscribe in self._unsubscribe:
            unsubscribe()  # what waits is no end, although this manager goes
        while self._writes:
            await asyncio.wait(self._writes)
        with suppress(StoreError):  # a copy of the last second is there
            await self._upkeep.keep_state()
        await self.store.close()
        if self.queue is not None:
            await self.queue.close()

    # ---- tasks in ---------------------------------------------------------------------------

    async def submit(
        self, wanted: Wanted, key: str | None = None, fingerprint: bytes | None = None
    ) -> int:
        """Takes a task in; gives its number once it is stored.

        Args:
            wanted: What is to be done.
            key: An idempotency key of the user's: the task that was submitted with it, if any.
            fingerprint: Of all that was submitted with the key.

        Raises:
            KeyReused: the key came with something else.
            TaskManagerError: what the strategies have against it.
            Unstored: the disk is full, or worse.
        """
        if key is None:
            return await self._submit(wanted, None, None)
        submit = partial(self._submit, wanted, key, fingerprint)
        return await self._keys.once(wanted.user_id, key, fingerprint, submit)

    async def _submit(self, wanted: Wanted, key: str | None, fingerprint: bytes | None) -> int:
        if self.stopping:
            raise ManagerClosed("the service is stopping")
        if self.chain.queued >= self.settings.max_queued:
            raise QueueFull(f"{self.chain.queued} tasks wait (max_queued): try again later")
        now = self.wall()
        function, args, user_id, metadata = wanted
        number = self.store.next_number()
        entry = Entry(self, number, function, user_id, now)
        self._add(entry, {"task": function.name, "user_id": user_id, **metadata})
        ranks = write_ranks(self.chain, entry.task)
        given = json.dumps(metadata)
        stored = self.store.insert(
            NewTask(number, function.name, user_id, given, now, key, fingerprint, ranks, args)
        )
        try:
            # Should the client leave now, the task stays: it may be stored already.
            await asyncio.shield(stored)
        except StoreError as error:
            entry.revoked = True
            entry.task.cancel()
            raise Unstored(f"the task could not be stored: {error}") from error
        return number

    def _add(self, entry: Entry, metadata: dict[str, Any]) -> None:
        """Into the chain; raises what the strategies have against it.

        Before it is stored: what is refused must not be there. It can't run before it is, since
        its start is written, too, and later.
        """
        task = entry.task = Task(entry, metadata)
        self.entries[entry.number] = entry
        try:
            self.manager.add_task(task, run_timeout=entry.function.run_timeout)
        except BaseException:
            del self.entries[entry.number]
            raise

    async def started(self, number: int, provider: str | None) -> tuple[int, bytes]:
        """The attempt's number and the arguments, once it is stored that it runs. While the disk is
        full the task waits for it, in its place.
        """
        while True:
            try:
                return await self.store.start(number, self.wall(), provider)
            except StoreError as error:
                logger.error("task %d can't begin: %s", number, clean(str(error)))
            await asyncio.sleep(RETRY_EVERY)

    # ---- what becomes of them ---------------------------------------------------------------

    def _observe(self, event: Event) -> None:
        if isinstance(event, Queued | Started | Retried | Finished | Rejected | Expired):
            entry = event.task._work
            if isinstance(entry, Entry):
                self._happened(event, entry)

    def _happened(
        self, event: Queued | Started | Retried | Finished | Rejected | Expired, entry: Entry
    ) -> None:
        live = self.live
        self.happenings += 1
        if isinstance(event, Queued):
            live.queued(entry)
        elif isinstance(event, Started):
            entry.status, entry.started = "STARTED", self.wall()
            live.started(entry, event.waited)
        elif isinstance(event, Retried):
            entry.status = "RETRY"
            live.retried(entry, event.error)
            self._note(
                self.store.retry(
                    entry.number, entry.attempt, entry.attempt_over(event.attempt, event.error)
                )
            )
        else:
            self._over(entry, event)

    def _over(self, entry: Entry, event: Finished | Rejected | Expired) -> None:
        error = event.error
        if isinstance(event, Finished) and event.state == "succeeded":
            self._conclude(entry, "SUCCESS", entry.result)
        elif error is not None:
            entry.log_failure(error)
            self._conclude(entry, "FAILURE", dumps(error_of(error)), error)
        elif self.stopping and not entry.revoked:
            self.live.ended(entry, None, None)
            del self.entries[entry.number]
            self._note(self.store.interrupt(entry.number))
        else:
            self._conclude(entry, "REVOKED", b"null")

    def _conclude(
        self, entry: Entry, status: Status, result: bytes, error: BaseException | None = None
    ) -> None:
        self.live.ended(entry, status, error)
        self._store_end(End(entry, status, result, self.wall()))

    def _store_end(self, end: End) -> None:
        entry, status, result, at = end
        stored = self._note(self.store.finish(entry.number, status, result, at))
        stored.add_done_callback(lambda write: self._stored(end, write))

    def _stored(self, end: End, write: asyncio.Future[Any]) -> None:
        entry = end.entry
        if write.cancelled() or write.exception() is not None:
            self._unstored.append(end)  # until there is room for it
            return
        self.entries.pop(entry.number, None)
        if entry.task.state in ("failed", "rejected", "expired"):
            entry.task.exception()  # it was logged, and is stored: somebody has looked
        entry.ended()

    def _note(self, write: asyncio.Future[Any]) -> asyncio.Future[Any]:
        """Remembers a write that nobody awaits, until it is done; logs it if it fails."""
        self._writes.add(write)
        write.add_done_callback(self._noted)
        return write

    def _noted(self, write: asyncio.Future[Any]) -> None:
        self._writes.discard(write)
        if not write.cancelled() and (error := write.exception()) is not None:
            logger.error("the store could not be written: %s", clean(str(error)))

    # ---- waiting for an end ------------------------------------------------------------------

    async def wait(self, entry: Entry, seconds: float) -> None:
        """Waits for a task's end, the end of patience, or that of the service."""
        if not self.closing:
            await entry.wait(seconds)

    def let_go(self) -> None:
        """The service is about to stop: nobody waits any more."""
        self.closing = True
        for entry in self.entries.values():
            entry.ended()

    # ---- what people do ---------------------------------------------------------------------

    async def revoke(self, number: int, patience: float = 1.0) -> None:
        """Ends a task, queued or running; doesn't wait for its end longer than ``patience``.

        What runs and is stored as to be ended will not run again, whatever happens.
        """
        entry = self.entries[number]
        entry.revoked = True
        if entry.status == "STARTED":
            await self.store.revoke(number)
        if entry.task.cancel():
            await entry.wait(patience)

    async def forget(self, number: int) -> None:
        """Ends a task whose function isn't registered."""
        await self.store.finish(number, "REVOKED", b"null", self.wall())

    def store_again(self) -> None:
        """Tries once more to store the ends for which there was no room."""
        unstored, self._unstored = self._unstored, []
        for end in unstored:
            self._store_end(end)
