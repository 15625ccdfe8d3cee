"""A chain without a manager, driven by its four methods."""

from __future__ import annotations

import time
import weakref
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from async_task_manager.strategies._batch import Batch
from async_task_manager.strategies._batches import leave_call
from async_task_manager.task import TaskState, outcome_of

if TYPE_CHECKING:
    from async_task_manager.strategies.chain import Chain
    from async_task_manager.task import Task

__all__ = ["ByHand"]


class ByHand:
    """The host of a chain without a manager: a monotonic clock from 0, and tasks that end
    themselves.
    """

    def __init__(self, chain: Chain, clock: Callable[[], float] = time.monotonic) -> None:
        self._chain = weakref.ref(chain)
        self._clock = clock
        self._zero: float | None = None
        self.epoch = 0.0

    def start(self) -> None:
        if self._zero is None:
            self._zero = self._clock()
            self.epoch = time.time()
            chain = self._chain()
            assert chain is not None
            chain.set_wall_offset(self.epoch, 0.0)

    def time(self) -> float:
        return 0.0 if self._zero is None else self._clock() - self._zero

    def wake(self) -> None:
        pass

    def look_at_wall(self) -> None:
        pass

    def begun(self, task: Task[Any]) -> None:
        chain = self._chain()
        assert chain is not None
        run = task._progress()
        run.started = self.time()
        for member in task.members if isinstance(task, Batch) else ():
            member._progress().started = run.started
        chain.begun(task, run.started)

    def ended(self, task: Task[Any], kind: TaskState, value: Any) -> None:
        chain = self._chain()
        assert chain is not None
        now = self.time()
        run = task._progress()
        run.finished = now
        outcome = outcome_of(kind, value, run.started, now, run.actual)
        cancelled = run.driver is not None and run.driver.cancelling() > 0
        if chain.finish(task, outcome, now, last=cancelled):
            run.driver = None  # it can be run once more
            return
        if isinstance(task, Batch):
            for part in task.parts(kind, value):
                self.ended(*part)
        task._end(kind, value)

    def cancel(self, task: Task[Any]) -> bool:
        chain = self._chain()
        assert chain is not None
        if task._state == "queued":
            chain.cancel(task, self.time())
            task._end("cancelled", None)
            return True
        driver = task._driver
        if driver is None:
            return leave_call(self, chain.batches, task)
        return driver.cancel()

    def settle(self, task: Task[Any], actual: Any) -> None:
        chain = self._chain()
        assert chain is not None
        chain.settle(task, actual, self.time())

    def observe(self, task: Task[Any], sample: Any) -> None:
        chain = self._chain()
        assert chain is not None
        chain.observe(task, sample, self.time())

    def stamp(self, task: Task[Any]) -> None:
        """By hand, every task counts from its first instruction."""

    def waits(self, task: Task[Any], other: Task[Any]) -> None:
        pass

    def waits_no_more(self, task: Task[Any], other: Task[Any]) -> None:
        pass
