"""The asyncio.Task that runs one attempt, and how an outcome reaches another thread."""

from __future__ import annotations

import asyncio
import concurrent.futures
from functools import partial
from typing import Any, TypeVar

from async_task_manager._run import Options
from async_task_manager.task import Task

__all__ = ["Driver", "expire", "hand_over", "never_began"]

T = TypeVar("T")


class Driver(asyncio.Task[None]):
    """The asyncio.Task that runs one attempt."""

    __slots__ = ("handle",)
    handle: Task[Any]

    def get_name(self) -> str:
        """The task's name: made only if somebody asks."""
        return self.handle.name

    def cancel(self, msg: Any | None = None) -> bool:
        """Cancelled before its first step, a coroutine never runs: someone else has to notice."""
        run = self.handle._run
        if run is not None and run.started is None:
            self.add_done_callback(partial(never_began, self.handle))
        return super().cancel(msg)


def never_began(task: Task[Any], driver: asyncio.Task[None]) -> None:
    """Keeps the accounts of a driver that was cancelled before its first step: nothing ran."""
    run, host = task._run, task._host()
    if run is not None and run.driver is driver and run.started is None and host is not None:
        host.ended(task, "cancelled", None)


def expire(task: Task[Any], options: Options, error: Exception) -> None:
    """Cancels an attempt whose time is up; that decides its outcome if it ends by it."""
    options.expired = error
    task.cancel()


def hand_over(task: Task[T], future: concurrent.futures.Future[T]) -> None:
    """The outcome of a task becomes that of a thread's future."""
    if future.cancelled() or not future.set_running_or_notify_cancel():
        return
    try:
        future.set_result(task.result())
    except BaseException as error:
        future.set_exception(error)
