"""What people ask a manager: how many, how much, which, why and when."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import Any, overload

from async_task_manager._explain import Backlog, Explanation
from async_task_manager._forecast import (
    NOTHING,
    DurationsSpec,
    Forecast,
    WhatIf,
    durations_by,
    look,
)
from async_task_manager._life import Life
from async_task_manager._overview import LimitStatus, QueueLengths, Stats, Status, TaskStatus
from async_task_manager.errors import InvalidState, InvalidType
from async_task_manager.events import Observer
from async_task_manager.strategies.base import BaseStrategy
from async_task_manager.strategies.chain import Chain
from async_task_manager.task import Task, wall_time

__all__ = ["Asked"]


class Asked(Life):
    """A life that can tell what it does, and what it will."""

    def __init__(self, strategy: BaseStrategy, poll_interval: float, history: int) -> None:
        super().__init__(strategy, poll_interval)
        self._by_id: dict[int, Task[Any]] | None = None
        self._ended: deque[Task[Any]] = deque(maxlen=history)
        if history:
            self._on_end.append(self._ended.append)

    # ---- how many, how much -----------------------------------------------------------------

    def stats(self) -> Stats:
        """Counts by outcome, and how much of each limit is in use."""
        return Stats(
            queued=self._chain.queued,
            running=len(self._running) - self._chain.calls,
            usage=self._chain.usage(self._clock()),
            **self._ends,
        )

    def get_status(self) -> Status:
        """How many tasks are queued, by level and key, and how much of each limit is in use.

        O(queued).
        """
        now = self._clock()
        limits = tuple(LimitStatus.of(self._chain, now, self.epoch))
        running = len(self._running) - self._chain.calls
        return Status(self.queue_lengths(), running, limits)

    def queue_lengths(self) -> QueueLengths:
        """How many tasks are queued: in total, by priority level, by key. O(queued)."""
        return QueueLengths.of(self._chain)

    def subscribe(self, observer: Observer) -> Callable[[], None]:
        """Has ``observer(record)`` called for whatever happens from now on (see
        `async_task_manager.events`); gives the function that ends it. Which limits tasks wait for
        already, it hears first.

        It is called at once, in the loop's thread, so it should be quick. One that raises is logged
        and harms nothing.

        Raises:
            InvalidType: it isn't callable, or is an async function.
        """
        token = self._observers.add(observer)
        if len(self._observers) == 1:
            dispatch = self._chain.dispatch
            dispatch.watch(True)
            self._observers.turned(dispatch.turned(), self._clock())  # what is closed by now

        def unsubscribe() -> None:
            if self._observers.pop(token, None) is not None and not self._observers:
                self._observers.forget()
                self._chain.dispatch.watch(False)

        return unsubscribe

    # ---- why, and when ----------------------------------------------------------------------

    @overload
    def explain(self) -> Backlog: ...
    @overload
    def explain(self, task: Task[Any] | int) -> Explanation: ...
    def explain(self, task: Task[Any] | int | None = None) -> Explanation | Backlog:
        """Why a task waits: its place in line, and the stages that bind; ``str()`` is a sentence.

        Without a task: what all queued tasks wait for, the most of them first.

        Raises:
            InvalidState: the task is not this manager's, or no queued or running one has this id.
            StrategyError: a strategy raised when it was asked.

        O(tasks that wait for the same); for all O(queued).
        """
        chain, now, note = self._chain, self._clock(), self._life()
        mine = None if task is None else self._alive(task)
        try:
            if mine is not None:
                return Explanation.of(chain, mine, now, self._to_wall(), note)
            running = len(self._running) - chain.calls
            return Backlog.of(chain, running, now, self._to_wall(), note)
        except Exception as error:
            raise chain.blame(error) from error

    def eta(self, task: Task[Any] | int, *, durations: DurationsSpec = None) -> Forecast:
        """When a task will start and end, if nothing but the known happens: the chain is copied as
        it stands, and run ahead without waiting.

        Args:
            task: A queued or running task, or its id.
            durations: How many seconds tasks run: by name, or a function of the task. Else what the
                manager has learnt from tasks of the same name (a number at its end doesn't count),
                of a name that never ended from all, and 0 where none has ended yet.

        A paused or stopped manager is taken to go on now. Tasks that end with an error, come later
        or settle other costs are not foreseen.

        Raises:
            InvalidState: as `explain`; or a strategy of the chain speaks the four methods only, so
                that nobody can foresee it.
            InvalidType, InvalidValue: ``durations`` is neither, or says no number of seconds.
            StrategyError: a strategy raised as the copy was run.

        Some 10 microseconds for each queued task, and 10 for each start until then.
        """
        mine = self._alive(task)
        _, forecast = self._look_ahead(mine, durations, to_the_end=False)
        return forecast

    def what_if(
        self,
        change: Callable[[Chain], object],
        task: Task[Any] | int | None = None,
        *,
        durations: DurationsSpec = None,
    ) -> WhatIf:
        """What a change would bring: when the task starts and when the queue ends, without it and
        with it. Nothing is changed here.

        Args:
            change: Is given a copy of the chain: ``lambda chain: setattr(chain["groq"],
                "max_requests", 60)``.
            task: The task to look for, or its id; None: that which would start last.
            durations: As for `eta`.

        Raises:
            InvalidState, InvalidType: as `eta`; ``change`` cannot be called.
            What ``change`` raises.

        Twice as long as an `eta` of the last task.
        """
        if not callable(change):
            raise InvalidType(f"change must be a function of the chain, not {change!r}")
        mine = None if task is None else self._alive(task)
        mine, before = self._look_ahead(mine, durations, to_the_end=True)
        # Where none would start without the change, it is the last that does with it.
        mine, after = self._look_ahead(mine, durations, to_the_end=True, change=change)
        return WhatIf(NOTHING if mine is None else mine.name, before, after)

    def _look_ahead(
        self,
        task: Task[Any] | None,
        durations: DurationsSpec,
        *,
        to_the_end: bool,
        change: Callable[[Chain], object] | None = None,
    ) -> tuple[Task[Any] | None, Forecast]:
        now = self._clock()
        running = {}
        for one in self._running:
            began = one._run.started if one._run is not None else None
            running[one] = now if began is None else began  # its first step comes next
        lasts = durations_by(durations, self._durations)
        found, forecast = look(
            self._chain, now, running, lasts, task, to_the_end=to_the_end, change=change
        )
        return found, forecast.shifted(self._to_wall())

    def _alive(self, task: Task[Any] | int) -> Task[Any]:
        found = self._mine(task)
        if found is None:
            raise InvalidState(f"{task!r} is no task that is queued or runs here")
        return found

    def _mine(self, task: Task[Any] | int) -> Task[Any] | None:
        """The task, if this manager has it; by its id, if it is queued or runs."""
        found = task if isinstance(task, Task) else self._find(task)
        if found is None or found._lane is None or found._lane.chain is not self._chain:
            return None
        return found

    def _to_wall(self) -> float:
        """What makes epoch seconds of chain time, by the wall clock as it is now."""
        return self._offset if self._started else wall_time() - self._clock()

    def _life(self) -> str | None:
        """What of the manager's life keeps everything from starting."""
        if self._broken is not None:
            return "a strategy failed"
        if not self._going:
            return "the manager was stopped" if self._started else "the manager was not started"
        return "the manager is paused" if self._paused else None

    # ---- by id ------------------------------------------------------------------------------

    def status(self, id: int) -> TaskStatus | None:
        """The task with this id; None if there is none, or it has ended and is not in `history`."""
        task = self._find(id)
        if task is None:
            task = next((ended for ended in self._ended if ended.id == id), None)
        return None if task is None else TaskStatus.of(task)

    def cancel(self, task: Task[Any] | int) -> bool:
        """Cancels a task, queued or running, also by its id; False if it has ended, or is not this
        manager's.

        See `Task.cancel`.
        """
        found = self._mine(task)
        return found is not None and super().cancel(found)

    @property
    def history(self) -> tuple[Task[Any], ...]:
        """The tasks that ended last, the latest last; as many as the parameter says."""
        return tuple(self._ended)

    def _find(self, id: int) -> Task[Any] | None:
        """The queued or running task. O(tasks) the first time, from then on O(1)."""
        if self._by_id is None:
            self._by_id = {task.id: task for task in (*self._chain.tasks(), *self._at_work())}
            self._on_end.append(self._forget)
        found = self._by_id.get(id)
        if found is None and self._chain.makes_tasks:
            known = (*self._chain.tasks(), *self._at_work())
            found = next((task for task in known if task.id == id), None)
        return found

    def _forget(self, task: Task[Any]) -> None:
        assert self._by_id is not None
        self._by_id.pop(task.id, None)
