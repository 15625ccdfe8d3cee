"""Threads for functions that are not async: a process that ends doesn't wait for them."""

from __future__ import annotations

import asyncio
import contextvars
import threading
from collections.abc import Callable
from concurrent.futures import Future
from queue import SimpleQueue
from typing import Any

__all__ = ["Threads"]

Job = tuple["Future[Any]", Callable[[], Any]]


class Threads:
    """At most so many daemon threads, made when they are needed.

    `ThreadPoolExecutor` has Python wait for its threads when it ends, and a function that hangs
    would hang the service's stop.
    """

    def __init__(self, most: int) -> None:
        self._most = most
        self._made = 0
        self._idle = 0
        self._jobs: SimpleQueue[Job] = SimpleQueue()
        self._lock = threading.Lock()
        self.stopping = False
        """True: a task that is cancelled is left to its thread, since the process ends."""

    async def run(self, call: Callable[[], Any]) -> Any:
        """What the call returns, from a thread, in the context of the caller.

        A thread can't be cancelled: whoever cancels gets his way when the call has ended.
        """
        future: Future[Any] = Future()
        context = contextvars.copy_context()
        self._submit(future, lambda: context.run(call))
        work = asyncio.wrap_future(future)
        cancelled: asyncio.CancelledError | None = None
        while not work.done():
            try:
                await asyncio.wait([work])
            except asyncio.CancelledError as error:
                if self.stopping:
                    raise
                cancelled = error
        if cancelled is not None:
            work.exception()  # no news: the task ends as cancelled
            raise cancelled
        return work.result()

    def _submit(self, future: Future[Any], call: Callable[[], Any]) -> None:
        self._jobs.put((future, call))
        with self._lock:
            if self._idle:
                self._idle -= 1
            elif self._made < self._most:
                self._made += 1
                name = f"atm-task-{self._made}"
                threading.Thread(target=self._work, name=name, daemon=True).start()

    def _work(self) -> None:
        while True:
            future, call = self._jobs.get()
            try:
                value = call()
            except BaseException as error:
                future.set_exception(error)
            else:
                future.set_result(value)
                del value
            del future, call  # while it waits, it holds on to nothing
            with self._lock:
                self._idle += 1
