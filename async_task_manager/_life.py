"""The life of a manager: started, paused, stopped, started again, closed."""

from __future__ import annotations

import asyncio
import threading
from asyncio import _get_running_loop
from types import TracebackType
from typing import TYPE_CHECKING

from async_task_manager._engine import Engine
from async_task_manager._validate import number, optional
from async_task_manager.errors import InvalidState, ManagerClosed, NotRunning

if TYPE_CHECKING:
    from typing import Self

__all__ = ["Life"]


class Life(Engine):
    """An engine that somebody starts and stops."""

    _autostart = False
    """Whether the first task that is added starts it."""

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
        """Starts nothing more, and waits for what runs; the queue stays for the next start, when
        tasks whose time has passed end.

        Args:
            grace: Seconds after which what still runs is cancelled; None: it may take its time.
                A task that goes on after three cancels is left behind, with an error in the log.

        Items that wait in an open batch for others are not kept waiting: the batch closes, and
        starts if every limit admits it at once (with ``grace=0`` it stays, too).

        Called by one of the tasks, it doesn't wait for that one.
        """
        optional(number, "grace", grace, at_least=0)
        self._check_loop()
        if grace != 0:
            self._flush()
        self._going = False
        self._disarm()
        if self._keeper is not None:
            keeper, self._keeper = self._keeper, None
            if not keeper.get_loop().is_closed():
                keeper.cancel()
        if self._loop is not None and self._loop is asyncio.get_running_loop():
            await self._finish_running(grace)
        if not self._going and self._runner is not None and not self._runner.done():
            self._runner.set_result(None)

    async def close(self, grace: float | None = None) -> None:
        """`stop`, and cancels what is queued. The manager takes no more tasks."""
        optional(number, "grace", grace, at_least=0)
        self._check_loop()
        self._closed = True
        self._going = False
        for task in self._chain.tasks():
            task.cancel()  # before the wait: what runs may wait for one of them
        await self.stop(grace)
        self._look_around()

    async def join(self) -> None:
        """Waits until nothing is queued or running.

        Raises:
            NotRunning: the manager was never started.
            StrategyError: a strategy raised or broke the contract.
        """
        self._check_started("join()")
        self._check_loop()
        me = self._own_task()
        self._chain.hurry(1)
        try:
            while self._chain.queued or self._running.keys() - me:
                if self._broken is not None:
                    break
                await self._change()
        finally:
            self._chain.hurry(-1)
        if self._broken is not None:
            raise self._broken

    def pause(self) -> None:
        """Starts nothing more until `resume`; what runs goes on, tasks can be added, and those
        whose ``queue_timeout`` or ``deadline`` passes end with it.
        """
        self._check_loop()
        self._paused = True
        self._disarm()
        self.wake()

    @property
    def paused(self) -> bool:
        """Whether a `pause` is in force."""
        return self._paused

    def resume(self) -> None:
        """Ends a `pause`."""
        self._check_loop()
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

    def __repr__(self) -> str:
        return (
            f"<TaskManager {self._chain!r}: {self._chain.queued} queued, "
            f"{len(self._running) - self._chain.calls} running>"
        )

    def __del__(self) -> None:
        # Nobody will run what is queued here: whoever waits for it hears so, and Python must not
        # complain that nobody awaited it.
        if hasattr(self, "_ends"):
            for task in self._chain.tasks():
                self._chain.cancel(task, self._now)
                self._conclude(task, "cancelled", None)

    # ---- whether it is in a state for that ---------------------------------------------------

    def _check_started(self, what: str) -> None:
        if self._autostart:
            self._start_if_due()
        if not self._started:
            raise NotRunning(f"{what} waits for work to be done: start the manager with idle()")

    def _start_if_due(self) -> None:
        over = self._loop is not None and self._loop.is_closed()
        if (over or not self._started) and not self._closed and _get_running_loop() is not None:
            self._start_going()

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
