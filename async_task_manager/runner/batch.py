"""The run: lines in, requests through the chain, results out as they come."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, AsyncIterable, AsyncIterator, Callable, Iterable
from functools import partial
from typing import TYPE_CHECKING, Any, Final, TypeAlias

from async_task_manager._validate import whole
from async_task_manager.config import ConfigError, FlowConfig, build_chain
from async_task_manager.config.costs import found
from async_task_manager.errors import InvalidState, TaskManagerError, TaskTooLarge
from async_task_manager.manager import TaskManager
from async_task_manager.runner.client import Answer, Client
from async_task_manager.runner.entry import Entry
from async_task_manager.runner.failures import HttpFailure
from async_task_manager.runner.ledger import Ledger
from async_task_manager.runner.recall import recall
from async_task_manager.runner.record import Record
from async_task_manager.runner.report import Summary
from async_task_manager.runner.requests import BadRequest, Request, parse_request
from async_task_manager.runner.routes import Routes
from async_task_manager.runner.source import LONGEST
from async_task_manager.strategies import ProviderRouterStrategy
from async_task_manager.task import Task, current_task

if TYPE_CHECKING:
    from async_task_manager._explain import Backlog
    from async_task_manager.simulation import Report

__all__ = ["Batch"]

Source: TypeAlias = "Iterable[str | bytes] | AsyncIterable[tuple[int, bytes] | None]"
Parse: TypeAlias = "Callable[[str | bytes, int], Request | None]"

LOOK_AHEAD_BYTES: Final = 32 * 1024 * 1024
"""Of the lines that are read and not done; however few these are, no more are read."""
BREATH: Final = 16
"""Lines after which what has arrived meanwhile is looked at."""
MALFORMED: Final = 5
"""Lines that are named; all are counted."""
SYNC_EVERY: Final = 1.0
"""Seconds between one time that the results are forced to the disk and the next."""


class Batch:
    """One run of many requests through the enabled providers of a config.

    Args:
        config: The providers and their limits.
        look_ahead: How many requests are read ahead of their start, at least 1. Priorities and
            times reach that far; memory doesn't grow beyond it.
        strict: The first line that is no request ends the reading; what was read is not started
            any more.
        parse: Makes a request of a line and its number, or None of one that asks for nothing.
        record: Whether to keep what `report` needs: some 60 bytes for each request and attempt.

    Raises:
        InvalidValue, InvalidType: ``look_ahead`` is no whole number of at least 1.
    """

    def __init__(
        self,
        config: FlowConfig,
        *,
        look_ahead: int = 1000,
        strict: bool = False,
        parse: Parse = parse_request,
        record: bool = False,
    ) -> None:
        self._look_ahead = whole("look_ahead", look_ahead, at_least=1)
        self._strict = strict
        self._parse = parse
        self._routes = Routes(config)
        # Nobody could switch a provider on during a run: what waits for it would wait for ever.
        enabled = config.only_enabled()
        self._providers = enabled.providers
        self._settled = {provider.name: provider.settled for provider in enabled.providers}
        self._chain = build_chain(enabled)
        router = next(s for s in self._chain.stages if isinstance(s, ProviderRouterStrategy))
        self._manager = TaskManager(self._chain, stamp="said")
        self.summary = Summary(enabled, router)
        """The counts so far."""
        self._record = Record(self._chain) if record else None
        self.interrupted = False
        self.stopped = False
        """Whether a strict run was ended by a line that was no request."""
        self.malformed: list[str] = []
        """The first few lines that were no requests, by their numbers, and why."""
        self._open: dict[Task[Answer], Entry] = {}
        self._bytes = 0
        self._moved = asyncio.Event()
        """Set when a task has ended or the run is interrupted."""
        self._failure: Exception | None = None
        self._ledger: Ledger
        self._client: Client

    @property
    def now(self) -> float:
        """Chain time."""
        return self._manager.time()

    def explain(self) -> Backlog:
        """What the requests that were read and not sent are waiting for."""
        return self._manager.explain()

    def report(self) -> Report:
        """The run as a simulation would report it: waits, limits and attempts over time.

        Raises:
            InvalidState: nothing was recorded.
        """
        if self._record is None:
            raise InvalidState("nothing was recorded: Batch(..., record=True)")
        return self._record.report()

    def interrupt(self) -> None:
        """Starts nothing more and finishes what runs; the second time, cancels that too."""
        if self.interrupted:
            for task in tuple(self._open):
                task.cancel()
        self.interrupted = True
        self._manager.pause()
        self._moved.set()

    async def run(self, lines: Source, ledger: Ledger) -> Summary:
        """Sends the request of every line, and takes each result down as it comes. Once.

        The first request leaves when as many are read as ``look_ahead`` says, or all there are for
        now: until then the most urgent may still come. A line that is no request becomes a result
        that says so. What the ledger knows as finished is not sent, and what was sent before
        counts in the limits. Cancelled, it cancels what runs, and writes that down.

        Raises:
            Exception: whatever reading a line or writing a result raised; what ran has ended.
        """
        self._ledger = ledger
        async with Client(self._providers) as self._client:
            recall(ledger.starts(), self._chain)
            self.summary.begin()
            if self._record is not None:
                self._record.began = time.time()
            keeper = asyncio.create_task(self._keep())
            try:
                await self._feed(lines)
                await self._until(lambda: not self._open)
                self.summary.unsent = self._manager.stats().queued
                await self._manager.close()
            except BaseException:
                await self._manager.close(grace=0)
                raise
            finally:
                while self._open:  # callbacks write the results, a turn later
                    self._moved.clear()
                    await self._moved.wait()
                keeper.cancel()
                self.summary.finish()
        if self._failure is not None:
            raise self._failure
        return self.summary

    async def _keep(self) -> None:
        """Forces to the disk what was written, many lines at a time."""
        while True:
            await asyncio.sleep(SYNC_EVERY)
            await asyncio.to_thread(self._ledger.sync)

    async def _until(self, condition: Callable[[], bool]) -> None:
        """Waits until it holds, or the run is interrupted."""
        while not (self.interrupted or condition()):
            self._moved.clear()
            await self._moved.wait()

    def _has_room(self) -> bool:
        return len(self._open) < self._look_ahead and self._bytes < LOOK_AHEAD_BYTES

    # ---- in ---------------------------------------------------------------------------------

    async def _feed(self, lines: Source) -> None:
        read = 0
        source = _numbered(lines)
        item: Any
        try:
            item = await anext(source, _END)
            while item is not _END and not self.interrupted:
                if item is None:
                    await self._manager.idle()  # whatever comes next, it isn't here now
                    item = await self._awaited(source)
                    continue
                read += 1
                if not self._has_room():
                    await self._manager.idle()
                    await self._until(self._has_room)
                elif read % BREATH == 0:
                    await asyncio.sleep(0)  # what arrives meanwhile is not kept waiting
                if self.interrupted:
                    return
                number, line = item
                if line.strip():
                    self._take(line, number)
                item = await anext(source, _END)
        finally:
            await source.aclose()
        if not self.interrupted:
            await self._manager.idle()

    async def _awaited(self, source: AsyncIterator[Any]) -> Any:
        """The next item, however long it takes; the end, if the run is interrupted meanwhile."""
        coming = asyncio.ensure_future(anext(source, _END))
        moved: asyncio.Future[Any] = asyncio.ensure_future(self._until(lambda: False))
        try:
            await asyncio.wait({coming, moved}, return_when=asyncio.FIRST_COMPLETED)
            return coming.result() if coming.done() else _END
        finally:
            for each in (coming, moved):
                each.cancel()
            await asyncio.wait({coming, moved})

    def _take(self, line: str | bytes, number: int) -> None:
        result: dict[str, Any] = {"id": number, "line": number, "status": "invalid"}
        try:
            if len(line) > LONGEST:
                raise BadRequest(f"the line is longer than {LONGEST:,} bytes", number)
            request = self._parse(line, number)
            if request is None:
                return
            result["id"] = request.id
            if (twin := self._ledger.twin(request.id, number)) is not None:
                raise BadRequest(f"line {twin} has the id {request.id!r} already", request.id)
            if self._ledger.finished(request.id):
                self.summary.skipped += 1
                self.summary.failed_before += not self._ledger.succeeded(request.id)
                return
            metadata = self._routes.metadata(request)
            request.json = None  # it was looked at, and the content says the same
            task = self._manager.add_task(partial(self._send, request), metadata)
        except BadRequest as error:
            result["id"] = error.id
            self._refuse(result, error)
        except ConfigError:  # not this line alone is at fault
            raise
        except TaskTooLarge as error:
            self._refuse(result | {"status": "rejected"}, error)
        except TaskManagerError as error:
            self._refuse(result, error)
        else:
            keys = self._routes.keys(metadata)
            entry = Entry(request, len(line), metadata.get("cost"), keys)
            if self._record is not None:
                entry.place = self._record.came(request.id, self._manager.time())
            self._open[task] = entry
            self._bytes += len(line)
            task.add_done_callback(self._ended)

    def _refuse(self, result: dict[str, Any], error: Exception) -> None:
        result["error"] = str(error)
        if result["status"] == "invalid":
            if len(self.malformed) < MALFORMED:
                self.malformed.append(f"line {result['line']}: {error}")
            if self._strict and not self.interrupted:
                self.stopped = True
                self.interrupt()
            if self._ledger.told(result["line"]):
                self.summary.record(result)
                return
        self._conclude(result)

    # ---- a request --------------------------------------------------------------------------

    async def _send(self, request: Request) -> Answer:
        task = current_task()
        assert task is not None and task.provider is not None
        provider, began = task.provider, self._manager.time()
        entry = self._open[task]
        status, ok = None, False
        self.summary.began(provider)
        attempt = self._began(entry, provider, began)
        try:
            answer = await self._client.send(request, provider, partial(self._leaves, task, entry))
            status, ok = answer.status, True
            self._settle(task, entry, answer.content)
            return answer
        except HttpFailure as error:
            status = error.status
            self._settle(task, entry, error.content)
            raise
        except asyncio.CancelledError:
            entry.cut = True
            raise
        finally:
            seconds = self._manager.time() - began
            entry.ran += seconds
            self.summary.answered(provider, seconds, status, ok)
            if self._record is not None:
                self._record.ended(attempt, began + seconds)

    def _began(self, entry: Entry, provider: str, now: float) -> int:
        return 0 if self._record is None else self._record.attempt(entry.place, provider, now)

    def _leaves(self, task: Task[Any], entry: Entry) -> None:
        """The request is about to be written: now it counts, and not when a connection was sought,
        since the provider counts what arrives.
        """
        provider, now = task.provider or "", self._manager.time()
        try:
            at = round(self._manager.epoch + now, 6)
            self._ledger.begun(entry.request.id, provider, at, entry.cost, entry.keys)
        except Exception as error:
            self._fail(error)
            raise
        task.stamp()
        self.summary.left(provider, now)

    def _settle(self, task: Task[Any], entry: Entry, content: Any) -> None:
        """What it really cost, where the answer says so."""
        actual = found(content, self._settled[task.provider or ""])
        if actual:
            entry.actual = actual
            task.settle(actual)
            now = round(self._manager.epoch + self._manager.time(), 6)
            self._ledger.settled(entry.request.id, now, actual)

    # ---- out --------------------------------------------------------------------------------

    def _ended(self, task: Task[Answer]) -> None:
        entry = self._open.pop(task)
        self._bytes -= entry.size
        self._moved.set()
        if self._record is not None:
            self._record.over(entry.place, task.state)
        if task.state != "cancelled" or entry.cut:
            self._conclude(entry.result(task))

    def _conclude(self, result: dict[str, Any]) -> None:
        self.summary.record(result)
        try:
            self._ledger.ended(result)
        except Exception as error:  # raised here, in a callback, it would only be logged
            self._fail(error)

    def _fail(self, error: Exception) -> None:
        if self._failure is None:
            self._failure = error
            self.interrupt()


_END: Final = object()


async def _numbered(lines: Source) -> AsyncGenerator[Any, None]:
    if isinstance(lines, AsyncIterable):
        async for each in lines:
            yield each
    else:
        for item in enumerate(lines, 1):
            yield item
