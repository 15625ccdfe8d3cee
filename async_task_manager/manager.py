"""TaskManager: tasks in, in many ways."""

from __future__ import annotations

import asyncio
import concurrent.futures
from asyncio import _get_running_loop
from collections.abc import (
    AsyncGenerator,
    AsyncIterable,
    Awaitable,
    Callable,
    Coroutine,
    Iterable,
)
from contextlib import suppress
from contextvars import copy_context
from datetime import datetime, timedelta
from functools import partial, wraps
from types import CoroutineType
from typing import (
    TYPE_CHECKING,
    Any,
    Literal,
    ParamSpec,
    TypedDict,
    TypeVar,
    overload,
)

from async_task_manager._asked import Asked
from async_task_manager._driver import hand_over
from async_task_manager._room import OVERFLOW, Room
from async_task_manager._run import Options
from async_task_manager._validate import number, one_of, optional, whole
from async_task_manager._ways_in import Turn, gathered, mapped
from async_task_manager.errors import (
    InvalidState,
    InvalidType,
    NotRunning,
    TaskDropped,
)
from async_task_manager.strategies.base import BaseStrategy
from async_task_manager.strategies.time_based import instant_of
from async_task_manager.task import Task, Work, discard

if TYPE_CHECKING:
    from typing_extensions import Unpack

__all__ = ["TaskManager"]


T = TypeVar("T")
P = ParamSpec("P")
R = TypeVar("R")

TIME_LIMITS = ("queue_timeout", "run_timeout", "deadline")


class Limits(TypedDict, total=False):
    """What `add_task` takes beside work and metadata."""

    name: str | None
    queue_timeout: float | None
    run_timeout: float | None
    deadline: float | datetime | timedelta | None


class TaskManager(Asked):
    """Starts every task at the earliest instant at which its strategy allows it, and brings it to
    an outcome.

    Args:
        strategy: A strategy, or a `Chain` of several. A strategy belongs to one manager.
        poll_interval: Seconds between questions to custom strategies that have to be polled and
            name no interval of their own, above 0. The built-in strategies are never polled.
        autostart: Whether the first task that is added inside a running loop starts it.
        max_queued: How many tasks may be queued, at least 1; None: any number.
        overflow: What `add_task` does with one more: ``"raise"`` refuses it with `QueueFull`;
            ``"drop_oldest"`` lets the one go that has been queued longest, ``"drop_lowest"`` the
            one that the orders of the chain put last, be it the new one: it ends with
            `TaskDropped`. `put` waits for room instead.
        history: How many ended tasks are kept for `history` and `status`.
        stamp: From when on a task counts in windows: ``"start"``, its first instruction; or
            ``"said"``, when the work says ``current_task().stamp()``: for work that takes a while
            to come to the point, such as connecting before a request can leave.

    ``async with TaskManager(...) as manager`` starts it, and on leaving waits until everything is
    done. By hand: ``run()``, or ``idle()`` and later ``stop()``.

    Raises:
        InvalidValue, InvalidType: a parameter is out of range, or has the wrong type.
        StrategyInUse: the strategy belongs to another chain or manager.
    """

    def __init__(
        self,
        strategy: BaseStrategy,
        poll_interval: float = 0.01,
        *,
        autostart: bool = False,
        max_queued: int | None = None,
        overflow: Literal["raise", "drop_oldest", "drop_lowest"] = "raise",
        history: int = 0,
        stamp: Literal["start", "said"] = "start",
    ) -> None:
        one_of("stamp", stamp, ("start", "said"))
        number("poll_interval", poll_interval, above=0)
        optional(whole, "max_queued", max_queued, at_least=1)
        one_of("overflow", overflow, OVERFLOW)
        whole("history", history, at_least=0)
        super().__init__(strategy, poll_interval, history)
        self._late = stamp == "said"
        self._autostart = autostart
        if max_queued is not None:
            self._room = Room(self._chain, max_queued, overflow)

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
            QueueFull: ``max_queued`` tasks are queued, and ``overflow`` is ``"raise"``.
            InvalidState: the coroutine was used or added already; another thread than the loop's
                calls (use `add_task_threadsafe`); the loop is closed.
            ManagerClosed: the manager was closed.
        A coroutine that is refused is closed.
        """
        own = work._work if isinstance(work, Task) else work
        if type(own) is CoroutineType and id(own) in self._coroutines:
            raise InvalidState(f"the coroutine {own!r} was added already; pass a new one")
        try:
            if self._autostart:
                self._start_if_due()
            if self._closed or (self._going and _get_running_loop() is not self._loop):
                self._check_caller()
            task = (
                self._made_by_hand(work, metadata)
                if isinstance(work, Task)
                else Task(work, metadata)
            )
            now = self._clock()
            if not (name is None and queue_timeout is run_timeout is deadline is None):
                task._options = self._options(name, queue_timeout, run_timeout, deadline, now)
            if self._room is not None:
                self._room.check()
        except BaseException:
            discard(own)
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
        if type(own) is CoroutineType:
            self._coroutines.add(id(own))
        if self._by_id is not None:
            self._by_id[task.id] = task
        if self._room is not None:
            self._make_room(self._room.came(task))
        if self._going and not self._pumping:
            self._look(now)
        return task

    def readmit(
        self,
        task: Task[Any],
        ranks: tuple[Any, ...] | None,
        *,
        attempt: int = 0,
        run_timeout: float | None = None,
    ) -> None:
        """Queues a task that was queued before, in an earlier process: with the ranks that it had
        there (`Chain.ranks`), and without counting it as another arrival.

        Args:
            task: Made by hand.
            ranks: What they were; None: it is asked for them anew, and counts as an arrival.
            attempt: How many times it was started there.
            run_timeout: As for `add_task`.

        For whoever keeps tasks in a store. Raises what `add_task` raises.
        """
        self._check_caller()
        now = self._clock()
        if run_timeout is not None:
            task._options = self._options(None, None, run_timeout, None, now)
        self._chain.add(task, now, ranks=ranks)
        if attempt:
            run = task._progress()
            run.attempt, run.finished = attempt, now
        if self._by_id is not None:
            self._by_id[task.id] = task
        self.wake()

    @staticmethod
    def _made_by_hand(task: Task[T], metadata: object) -> Task[T]:
        if metadata is not None:
            raise InvalidType(f"{task!r} has metadata of its own: give it there, not here")
        return task

    def _make_room(self, victim: Task[Any] | None) -> None:
        if victim is not None:
            error = TaskDropped(f"{victim.name} had to leave a full queue")
            self._drop(victim, "rejected", error)

    def add_tasks(
        self,
        works: Iterable[Work[T] | Task[T]],
        metadata: dict[str, Any] | None = None,
        **options: Unpack[Limits],
    ) -> list[Task[T]]:
        """`add_task` for each, with the same metadata and time limits: all of them or none.

        Raises what `add_task` raises for the first that is refused; and
            InvalidType: ``works`` isn't iterable.
        """
        if not isinstance(works, Iterable):
            discard(works)
            raise InvalidType(f"add_tasks() needs an iterable of works, not {works!r}")
        given: list[Work[T] | Task[T]] = []
        try:
            given.extend(works)
        except BaseException:  # of a generator: what it gave before is here
            for work in given:
                discard(work)
            raise
        tasks: list[Task[T]] = []
        try:
            for work in given:
                # One by one: after a refusal, what was taken in so far has to be known.
                tasks.append(self.add_task(work, metadata, **options))  # noqa: PERF401
        except BaseException:
            for task in tasks:
                task.cancel()
            for work in given[len(tasks) + 1 :]:  # `add_task` knows what to do with its own
                discard(work)
            raise
        return tasks

    async def put(
        self,
        work: Work[T] | Task[T],
        metadata: dict[str, Any] | None = None,
        **options: Unpack[Limits],
    ) -> Task[T]:
        """`add_task`, once fewer than ``max_queued`` tasks are queued; first come, first served.

        Raises:
            NotRunning: the manager was never started.
            InvalidType, InvalidValue, TaskTooLarge, InvalidState, ManagerClosed: as `add_task`.
        """
        task = work if isinstance(work, Task) else Task(work, metadata)
        try:
            self._check_started("put()")
            if self._room is not None:
                await self._room.wait()
        except BaseException:
            discard(task._work)
            raise
        return self.add_task(task, metadata if task is work else None, **options)

    def turn(self, *, name: str | None = "turn", **metadata: Any) -> Turn:
        """A limiter around code in place: ``async with manager.turn(cost=1200) as task: ...``.

        The body waits for its turn as a task with this metadata, and holds its permits until it is
        left. Cancelling the task cancels the body; what the body raises is the task's
        outcome, and the caller's error.

        Args:
            name: For people and logs.
            metadata: What the strategies read; ``queue_timeout``, ``run_timeout`` and ``deadline``
                are time limits, as for `add_task`.

        Entering raises what `add_task` raises, or the outcome of a task whose turn never came; and
            NotRunning: the manager was never started.
            InvalidState: the chain retries, and a body cannot be repeated: use `wrap`.
        """
        options = {key: metadata.pop(key) for key in TIME_LIMITS if key in metadata}
        return Turn(self, metadata, {"name": name, **options})

    @overload
    def wrap(self, fn: Callable[P, Awaitable[R]], /) -> Callable[P, Coroutine[Any, Any, R]]: ...
    @overload
    def wrap(
        self,
        fn: Callable[P, Awaitable[R]],
        /,
        *,
        metadata: dict[str, Any] | Callable[P, dict[str, Any] | None] | None = None,
        **options: Unpack[Limits],
    ) -> Callable[P, Coroutine[Any, Any, R]]: ...
    @overload
    def wrap(
        self,
        *,
        metadata: dict[str, Any] | Callable[..., dict[str, Any] | None] | None = None,
        **options: Unpack[Limits],
    ) -> Callable[[Callable[P, Awaitable[R]]], Callable[P, Coroutine[Any, Any, R]]]: ...
    def wrap(  # type: ignore[misc]  # what the third overload lacks has a default
        self, fn: Any = None, /, *, metadata: Any = None, **options: Unpack[Limits]
    ) -> Any:
        """The function, each call of which goes through the manager; also as a decorator.

        A call that is cancelled cancels its task.

        Args:
            fn: An async function, or any callable that returns an awaitable.
            metadata: For every call; or a function of the call's arguments that gives it.
            options: As for `add_task`.

        A call raises what `add_task` raises, or the task's outcome; and
            NotRunning: the manager was never started.
        """
        if fn is None:
            return partial(self.wrap, metadata=metadata, **options)
        if not callable(fn):
            raise InvalidType(f"wrap() needs an async function, not {fn!r}")
        work: Any = fn

        @wraps(work)
        async def call(*args: Any, **kwargs: Any) -> Any:
            self._check_started(f"{work!r}, wrapped,")
            given: Any = metadata(*args, **kwargs) if callable(metadata) else metadata
            task = self.add_task(partial(work, *args, **kwargs), given, **options)
            try:
                return await task.wait()
            except asyncio.CancelledError:
                task.cancel()
                raise

        return call

    def map(
        self,
        fn: Callable[[T], Awaitable[R]],
        items: Iterable[T] | AsyncIterable[T],
        *,
        ordered: bool = False,
        ahead: int = 1000,
        metadata: dict[str, Any] | Callable[[T], dict[str, Any] | None] | None = None,
    ) -> AsyncGenerator[R, None]:
        """The results of ``fn(item)`` for every item, in bounded memory.

        Args:
            fn: An async function of one item.
            items: Whatever can be iterated over, also asynchronously, also without end.
            ordered: In the order of the items; else as they come.
            ahead: How many items, at least 1, may be taken in and not given out yet.
            metadata: For every task; or a function of the item that gives it.

        The first error, of a task or of the items, ends the iteration: it is raised, and what was
        taken in is cancelled; so it is when the iteration is left early.

        Raises:
            NotRunning: the manager was never started.
            InvalidType, InvalidValue: ``fn`` isn't callable, there is nothing to iterate over.
        """
        self._check_started("map()")
        if not callable(fn):
            raise InvalidType(f"map() needs an async function, not {fn!r}")
        if not isinstance(items, Iterable | AsyncIterable):
            raise InvalidType(f"map() needs an iterable of items, sync or async, not {items!r}")
        whole("ahead", ahead, at_least=1)
        metadata_of = metadata if callable(metadata) else lambda _: metadata
        return mapped(self, fn, items, ordered=ordered, ahead=ahead, metadata_of=metadata_of)

    async def gather(
        self,
        *works: Work[Any] | Task[Any],
        metadata: dict[str, Any] | None = None,
        return_exceptions: bool = False,
    ) -> list[Any]:
        """The results of all works, in their order, like `asyncio.gather`.

        The first error is raised at once, and the others go on; with ``return_exceptions`` errors
        stand in the list. Cancelled, it cancels them all.

        Raises what `add_tasks` raises; and
            NotRunning: the manager was never started.
        """
        try:
            self._check_started("gather()")
        except NotRunning:
            for work in works:
                discard(work)
            raise
        return await gathered(self, self.add_tasks(works, metadata), return_exceptions)

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
            if future.cancelled():
                discard(work)
                return
            try:
                task = self.add_task(work, metadata, **options)
            except BaseException as error:
                with suppress(concurrent.futures.InvalidStateError):  # cancelled just now
                    future.set_exception(error)
                return
            task.add_done_callback(partial(hand_over, future=future))
            future.add_done_callback(
                lambda done: done.cancelled() and loop.call_soon_threadsafe(task.cancel)
            )

        loop.call_soon_threadsafe(add)
        return future

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
