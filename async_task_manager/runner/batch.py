"""The run: lines in, requests through the chain, results out as they come."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Iterable
from datetime import UTC, datetime
from functools import partial
from typing import Any, TextIO

from async_task_manager.config import FlowConfig, build_chain
from async_task_manager.errors import TaskManagerError
from async_task_manager.manager import TaskManager
from async_task_manager.runner.client import Answer, Client, HttpFailure
from async_task_manager.runner.report import Summary
from async_task_manager.runner.requests import BadRequest, Request, parse_request
from async_task_manager.task import Task, current_task

__all__ = ["Batch"]


class Batch:
    """A run of many requests through the providers of a config.

    Args:
        config: The providers and their limits.
        look_ahead: How many requests are read ahead of their start. Priorities and times reach
            that far; memory doesn't grow beyond it.
        on_change: Called after each result, for whoever shows progress.
    """

    def __init__(
        self,
        config: FlowConfig,
        *,
        look_ahead: int = 1000,
        on_change: Callable[[], None] = lambda: None,
    ) -> None:
        self.config = config
        self.look_ahead = look_ahead
        self.on_change = on_change
        self.summary = Summary(config)
        self.interrupted = False
        self._interrupt = asyncio.Event()
        self._cancel: Callable[[], object] = lambda: None

    def interrupt(self) -> None:
        """Starts nothing more and finishes what runs; the second time, cancels that too."""
        if self.interrupted:
            self._cancel()
        self.interrupted = True
        self._interrupt.set()

    async def run(self, lines: Iterable[str], sink: TextIO) -> Summary:
        """Sends the request of every line, and writes one line per result as it comes."""
        manager = TaskManager(build_chain(self.config))
        room = asyncio.Semaphore(self.look_ahead)
        async with Client(self.config.providers) as client:
            self._cancel = lambda: asyncio.ensure_future(manager.stop(grace=0))
            await manager.idle()
            feeding = asyncio.ensure_future(self._feed(lines, sink, manager, client, room))
            stopping = asyncio.ensure_future(self._interrupt.wait())
            done, _ = await asyncio.wait((feeding, stopping), return_when=asyncio.FIRST_COMPLETED)
            if feeding in done:
                feeding.result()
                joining = asyncio.ensure_future(manager.join())
                await asyncio.wait((joining, stopping), return_when=asyncio.FIRST_COMPLETED)
                joining.cancel()
            feeding.cancel()
            stopping.cancel()
            await manager.stop()
            self.summary.unsent = manager.stats().queued
            await asyncio.sleep(0)  # the last results are written by callbacks
        self.summary.finish()
        return self.summary

    async def _feed(
        self,
        lines: Iterable[str],
        sink: TextIO,
        manager: TaskManager,
        client: Client,
        room: asyncio.Semaphore,
    ) -> None:
        for number, line in enumerate(lines, 1):
            if number % 100 == 0:
                await asyncio.sleep(0)  # what arrives meanwhile is not kept waiting
            if not line.strip():
                continue
            await room.acquire()
            try:
                request = parse_request(line, number)
                owner = client.owner(request)
                metadata = request.metadata | ({"provider": owner} if owner is not None else {})
                task = manager.add_task(
                    partial(self._send, manager, client, request), metadata, name=request.id
                )
            except (BadRequest, TaskManagerError) as error:
                room.release()
                self.summary.invalid += 1
                _write(sink, {"id": None, "line": number, "status": "invalid", "error": str(error)})
                self.on_change()
                continue
            self.summary.read += 1
            task.add_done_callback(partial(self._record, request, sink, room))

    async def _send(self, manager: TaskManager, client: Client, request: Request) -> Answer:
        task = current_task()
        assert task is not None
        assert task.provider is not None
        self.summary.observe(manager.stats().usage)
        return await client.send(request, task.provider)

    def _record(
        self,
        request: Request,
        sink: TextIO,
        room: asyncio.Semaphore,
        task: Task[Answer],
    ) -> None:
        room.release()
        result: dict[str, Any] = {
            "id": request.id,
            "status": task.state,
            "provider": task.provider,
            "attempts": task.attempt,
            "http_status": None,
            "waited": _seconds(task.created_at, task.started_at),
            "duration": _seconds(task.started_at, task.finished_at),
            "started_at": _iso(task.started_at),
            "finished_at": _iso(task.finished_at),
        }
        if "cost" in request.metadata:
            result["cost"] = request.metadata["cost"]
        if task.state == "cancelled":
            result["error"] = "cancelled"
        else:
            error = task.exception()
            if error is None:
                answer = task.result()
                result |= {"http_status": answer.status, "response": answer.content}
            else:
                result["error"] = f"{type(error).__name__}: {error}"
                if isinstance(error, HttpFailure):
                    result |= {"http_status": error.status, "response": error.content}
        _write(sink, result)
        self.summary.record(result)
        self.on_change()


def _write(sink: TextIO, result: dict[str, Any]) -> None:
    sink.write(json.dumps(result, ensure_ascii=False) + "\n")
    sink.flush()


def _seconds(since: float | None, until: float | None) -> float | None:
    return None if since is None or until is None else round(until - since, 6)


def _iso(instant: float | None) -> str | None:
    return None if instant is None else datetime.fromtimestamp(instant, UTC).isoformat()
