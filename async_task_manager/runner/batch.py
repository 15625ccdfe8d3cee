"""The run: lines in, requests through the chain, results out as they come."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable
from datetime import UTC, datetime
from functools import partial
from typing import Any, BinaryIO

from async_task_manager._validate import whole
from async_task_manager.config import FlowConfig, build_chain
from async_task_manager.errors import TaskManagerError, TaskTooLarge
from async_task_manager.manager import TaskManager
from async_task_manager.runner.client import Answer, Client, HttpFailure
from async_task_manager.runner.report import Summary
from async_task_manager.runner.requests import (
    BadRequest,
    Request,
    dumps,
    parse_request,
    provider_for,
)
from async_task_manager.strategies import ProviderRouterStrategy
from async_task_manager.task import Task, current_task

__all__ = ["Batch"]


class Batch:
    """One run of many requests through the enabled providers of a config.

    Args:
        config: The providers and their limits.
        look_ahead: How many requests are read ahead of their start, at least 1. Priorities and
            times reach that far; memory doesn't grow beyond it.

    Raises:
        InvalidValue, InvalidType: ``look_ahead`` is no whole number of at least 1.
    """

    def __init__(self, config: FlowConfig, *, look_ahead: int = 1000) -> None:
        self._look_ahead = whole("look_ahead", look_ahead, at_least=1)
        self._config = config
        # Nobody could switch a provider on during a run: what waits for it would wait for ever.
        enabled = config.only_enabled()
        chain = build_chain(enabled)
        router = chain.stages[-1]
        assert isinstance(router, ProviderRouterStrategy)
        self._manager = TaskManager(chain)
        self.summary = Summary(enabled, router)
        """The counts so far."""
        self.interrupted = False
        self._open: dict[Task[Answer], Request] = {}
        self._moved = asyncio.Event()
        """Set when a task has ended or the run is interrupted."""
        self._failure: Exception | None = None

    def interrupt(self) -> None:
        """Starts nothing more and finishes what runs; the second time, cancels that too."""
        if self.interrupted:
            for task in tuple(self._open):
                task.cancel()
        self.interrupted = True
        self._manager.pause()
        self._moved.set()

    async def run(self, lines: Iterable[str | bytes], sink: BinaryIO) -> Summary:
        """Sends the request of every line, and writes one line per result as it comes. Once.

        The first request leaves when as many are read as ``look_ahead`` says, or all: until then
        the most urgent may still come. A line that is no request becomes a result that says so.
        Cancelled, it cancels what runs, and writes that down.

        Raises:
            Exception: whatever reading a line or writing a result raised; what ran has ended.
        """
        async with Client(self._config.only_enabled().providers) as client:
            self.summary.begin()
            try:
                await self._feed(lines, sink, client)
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
                self.summary.finish()
        if self._failure is not None:
            raise self._failure
        return self.summary

    async def _until(self, condition: Callable[[], bool]) -> None:
        """Waits until it holds, or the run is interrupted."""
        while not (self.interrupted or condition()):
            self._moved.clear()
            await self._moved.wait()

    async def _feed(self, lines: Iterable[str | bytes], sink: BinaryIO, client: Client) -> None:
        for number, line in enumerate(lines, 1):
            if len(self._open) >= self._look_ahead:
                await self._manager.idle()
                await self._until(lambda: len(self._open) < self._look_ahead)
            await asyncio.sleep(0)  # what arrives meanwhile is not kept waiting
            if self.interrupted:
                return
            if line.strip():
                self._take(line, number, sink, client)
        await self._manager.idle()

    def _take(self, line: str | bytes, number: int, sink: BinaryIO, client: Client) -> None:
        status = "invalid"
        id: str | int = number
        try:
            request = parse_request(line, number)
            id = request.id
            pin = provider_for(request, self._config)
            metadata = request.metadata | ({} if pin is None else {"provider": pin})
            task = self._manager.add_task(partial(self._send, client, request), metadata)
        except (BadRequest, TaskManagerError) as error:
            if isinstance(error, BadRequest):
                id = error.id
            elif isinstance(error, TaskTooLarge):
                status = "rejected"
            self._conclude({"id": id, "line": number, "status": status, "error": str(error)}, sink)
        else:
            self._open[task] = request
            task.add_done_callback(partial(self._ended, sink))

    async def _send(self, client: Client, request: Request) -> Answer:
        task = current_task()
        assert task is not None and task.provider is not None
        self.summary.begun(task.provider, self._manager.time())
        return await client.send(request, task.provider)

    def _ended(self, sink: BinaryIO, task: Task[Answer]) -> None:
        request = self._open.pop(task)
        self._moved.set()
        if task.state != "cancelled" or task.started_at is not None:
            self._conclude(_result(request, task), sink)

    def _conclude(self, result: dict[str, Any], sink: BinaryIO) -> None:
        self.summary.record(result)
        try:
            sink.write(dumps(result) + b"\n")
            sink.flush()
        except Exception as error:  # raised here, in a callback, it would only be logged
            if self._failure is None:
                self._failure = error
                self.interrupt()


def _result(request: Request, task: Task[Answer]) -> dict[str, Any]:
    result: dict[str, Any] = {
        "id": request.id,
        "status": task.state,
        "provider": task.provider,
        "attempts": task.attempt,
        "http_status": None,
        "waited": _seconds(task.created_at, task.started_at),
        "duration": _seconds(task.started_at, task.finished_at),
        "created_at": _iso(task.created_at),
        "started_at": _iso(task.started_at),
        "finished_at": _iso(task.finished_at),
        "cost": request.metadata.get("cost"),
    }
    if task.state == "cancelled":
        return result | {"error": "cancelled while it ran"}
    error = task.exception()
    if error is None:
        answer = task.result()
        return result | {"http_status": answer.status, "response": answer.content}
    if isinstance(error, HttpFailure):
        return result | {
            "http_status": error.status,
            "error": str(error),
            "response": error.content,
        }
    return result | {"error": f"{type(error).__name__}: {error}".rstrip(": ")}


def _seconds(since: float | None, until: float | None) -> float | None:
    return None if since is None or until is None else round(until - since, 6)


def _iso(instant: float | None) -> str | None:
    if instant is None:
        return None
    return datetime.fromtimestamp(instant, UTC).isoformat(timespec="milliseconds")
