"""TaskManager: tasks in, outcomes out, a life that can be started, paused and stopped."""

from __future__ import annotations

import asyncio
import concurrent.futures
import threading
from asyncio import _get_running_loop
from contextvars import copy_context
from dataclasses import dataclass, field
from functools import partial
from types import CoroutineType, TracebackType
from typing import TYPE_CHECKING, Any, TypeVar

from async_task_manager._driver import hand_over
from async_task_manager._engine import Engine
from async_task_manager._validate import number, optional
from async_task_manager.errors import (
    InvalidState,
    InvalidType,
    ManagerClosed,
    NotRunning,
)
from async_task_manager.strategies.base import BaseStrategy
from async_task_manager.strategies.time_based import instant_of
from async_task_manager.task import (
    Options,
    Task,
    Work,
    discard,
)

if TYPE_CHECKING:
    from datetime import datetime, timedelta
    from typing import Self


__all__ = ["Stats", "TaskManager"]


T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Stats:
    """What a manager has to do, does and has done."""

    queued: int
    running: int
    succeeded: int
    failed: int
    cancelled: int
    expired: int
    rejected: int
    usage: dict[str, Any] = field(default_factory=dict)
    """Per limit its `Usage`; for a router, per branch."""


class TaskManager(Engine):
    """Starts every task at the earliest instant at which its strategy allows it, and brings it to
    an outcome.

    Args:
        strategy: A strategy, or a `Chain` of several. A strategy belongs to one manager.
        poll_interval: Seconds between questions to custom strategies that have to be polled and
            name no interval of their own. The built-in strategies are never polled.

    ``async with TaskManager(...) as manager`` starts it, and on leaving waits until everything is
    done. By hand: ``run()``, or ``idle()`` and later ``stop()``.

    Raises:
        InvalidValue, InvalidType: ``poll_interval`` is not a finite number above 0, or ``strategy``
        is none.
        StrategyInUse: the strategy belongs to another chain or manager.
    """

    def __init__(self, strategy: BaseStrategy, poll_interval: float = 0.01) -> None:
        super().__init__(strategy, number("poll_interval", poll_interval, above=0))

    # ---- tasks in ---------------------------------------------------------------------------

    def add_task(
        self,
        work: Work[T] | Task[T],
        metadata: dict[str, Any] | None = None,
        *,
        name: str | None = None,
        queue_timeout: float | None = None,
        run_timeout: float | None = None,
        deadline: float | datetime | timedelta | None = None,
    ) -> Task[T]:
        """Queues work, and gives the Task whose outcome can be awaited.

        Args:
            work: An awaitable, a callable without arguments that returns one, or a Task made by
            hand.
            metadata: What the strategies read. What it says now counts.
            name: For people and logs.
            queue_timeout: Seconds within which it must start, or it ends with `QueueTimeout`.
            run_timeout: Seconds that one attempt may run, or it is cancelled and ends with
            `TaskTimeout`.
            deadline: When it must be done: epoch seconds, a datetime, or a timedelta from now. Past
            it,
                the task is not started, or is cancelled, and ends with `DeadlineExceeded`.

        Raises:
            InvalidType, InvalidValue: bad work or metadata, whatever the strategies have against
            it.
            TaskTooLarge: it costs more than a limit can ever hold.
            InvalidState: the coroutine was used or added already; another thread than the loop's
                calls (use `add_task_threadsafe`); the loop is closed.
            ManagerClosed: the manager was closed.
        A coroutine that is refused is closed.
        """
        try:
            if self._closed or (self._going and _get_running_loop() is not self._loop):
                self._check_caller()
            if isinstance(work, Task):
                task = work
            else:
                if type(work) is CoroutineType and id(work) in self._coroutines:
                    raise InvalidState(f"the coroutine {work!r} was added already; pass a new one")
                task = Task(work, metadata)
            now = self._clock()
            if not (name is None and queue_timeout is run_timeout is deadline is None):
                task._options = self._options(name, queue_timeout, run_timeout, deadline, now)
        except BaseException:
            if not (type(work) is CoroutineType and id(work) in self._coroutines):
                discard(work)
            raise
        context = copy_context()
        if context == self._context:
            task._context = self._context  # the same values: one snapshot serves all
        else:
            task._context = self._context = context
        if self._broken is not None:
            task._state = "rejected"
            self._conclude(task, "rejected", self._broken)
            return task
        try:
            self._chain.add(task, now)
        except BaseException:
            discard(task._work)
            raise
        if type(work) is CoroutineType:
            self._coroutines.add(id(work))
        if self._going and not self._pumping:
            self._look(now)
        return task

    def add_task_threadsafe(
        self, work: Work[T], metadata: dict[str, Any] | None = None, **options: Any
    ) -> concurrent.futures.Future[T]:
        """`add_task` from another thread; gives a future of the result, which can also be
        cancelled.

        What `add_task` would raise is the future's exception.

        Raises:
            NotRunning: the manager was never started, so that it has no loop.
        """
        loop = self._loop
        if loop is None or loop.is_closed():
            discard(work)
            raise NotRunning("add_task_threadsafe needs a started manager: await idle() first")
        future: concurrent.futures.Future[T] = concurrent.futures.Future()

        def add() -> None:
            try:
                task = self.add_task(work, metadata, **options)
            except BaseException as error:
                future.set_exception(error)
                return
            task.add_done_callback(partial(hand_over, future=future))
            future.add_done_callback(
                lambda done: done.cancelled() and loop.call_soon_threadsafe(task.cancel)
            )

        loop.call_soon_threadsafe(add)
        return future

    def _check_caller(self) -> None:
        if self._closed:
            raise ManagerClosed("the manager was closed and takes no more tasks")
        loop = self._loop
        if loop is not None and loop.is_closed():
            raise InvalidState(
                "the loop in which the manager ran is closed; start it again with idle()"
            )
        if threading.get_ident() != self._thread:
            raise InvalidState("called from another thread: use add_task_threadsafe")

    def _options(
        self,
        name: str | None,
        queue_timeout: float | None,
        run_timeout: float | None,
        deadline: Any,
        now: float,
    ) -> Options:
        if name is not None and not isinstance(name, str):
            raise InvalidType(f"name must be a str, not {name!r}")
        optional(number, "queue_timeout", queue_timeout, above=0)
        optional(number, "run_timeout", run_timeout, above=0)
        until = None if deadline is None else instant_of("deadline", deadline, now)
        return Options(name, queue_timeout, run_timeout, until)

    # ---- life -------------------------------------------------------------------------------

    async def run(self) -> None:
        """Runs until `stop`, which may come from anywhere.

        Cancelled, it cancels what runs, waits for its end, and is cancelled; the queue stays.

        Raises:
            StrategyError: a strategy raised or broke the contract.
            InvalidState: it runs already, or in another loop; ManagerClosed.
        """
        if self._runner is not None:
            raise InvalidState("run() is under way already; one is enough")
        self._start_going()
        assert self._loop is not None
        self._runner = self._loop.create_future()
        try:
            await self._runner
        except asyncio.CancelledError:
            await self.stop(grace=0)
            raise
        finally:
            self._runner = None
        if self._broken is not None:
            raise self._broken

    async def idle(self) -> None:
        """Starts working in the background, and returns at once. Twice is as good as once."""
        self._start_going()

    async def stop(self, grace: float | None = None) -> None:
        """Starts nothing more, and waits for what runs; the queue stays for the next start.

        Args:
            grace: Seconds after which what still runs is cancelled; None: it may take its time.
                A task that goes on after three cancels is left behind, with an error in the log.

        Called by one of the tasks, it doesn't wait for that one.
        """
        optional(number, "grace", grace, at_least=0)
        self._going = False
        self._disarm()
        if self._keeper is not None:
            keeper, self._keeper = self._keeper, None
            keeper.cancel()
        if self._loop is not None and self._loop is asyncio.get_running_loop():
            await self._finish_running(grace)
        if not self._going and self._runner is not None and not self._runner.done():
            self._runner.set_result(None)

    async def close(self, grace: float | None = None) -> None:
        """`stop`, and cancels what is queued. The manager takes no more tasks."""
        self._closed = True
        await self.stop(grace)
        for task in self._chain.tasks():
            task.cancel()
        self._look_around()

    async def join(self) -> None:
        """Waits until nothing is queued or running.

        Raises:
            NotRunning: the manager was never started.
            StrategyError: a strategy raised or broke the contract.
        """
        if not self._started:
            raise NotRunning("join() waits for work to be done: start the manager with idle()")
        me = self._own_task()
        while self._chain.queued or self._running.keys() - me:
            if self._broken is not None:
                break
            await self._change()
        if self._broken is not None:
            raise self._broken

    def pause(self) -> None:
        """Starts nothing more until `resume`; what runs goes on, and tasks can be added."""
        self._paused = True
        self._disarm()

    def resume(self) -> None:
        """Ends a `pause`."""
        self._paused = False
        self.wake()

    async def __aenter__(self) -> Self:
        await self.idle()
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if error is not None:
            await self.close(grace=0)
            return
        try:
            await self.join()
        except BaseException:
            await self.close(grace=0)
            raise
        await self.stop()

    def stats(self) -> Stats:
        """Counts by outcome, and how much of each limit is in use."""
        return Stats(
            queued=self._chain.queued,
            running=len(self._running),
            usage=self._chain.usage(self._clock()),
            **self._ends,
        )

    def __repr__(self) -> str:
        return (
            f"<TaskManager {self._chain!r}: {self._chain.queued} queued, "
            f"{len(self._running)} running>"
        )

    def __del__(self) -> None:
        # Nobody can await what is queued here any more; Python must not complain that nobody did.
        if hasattr(self, "_ends"):
            for task in self._chain.tasks():
                discard(task._work)
