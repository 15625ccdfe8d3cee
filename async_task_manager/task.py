"""The unit of work: a Task, its life and its outcome.

new -> queued -> running -> succeeded | failed | cancelled
          |  ^      |
          |  +------+  (a feedback asked for another attempt)
          +-> cancelled | expired | rejected
"""

from __future__ import annotations

import asyncio
import inspect
import time
from collections.abc import Awaitable, Callable, Coroutine, Generator
from contextvars import Context, ContextVar, copy_context
from dataclasses import dataclass
from itertools import count
from types import CoroutineType
from typing import (
    TYPE_CHECKING,
    Any,
    Final,
    Generic,
    Literal,
    Protocol,
    TypeAlias,
    cast,
)

from typing_extensions import TypeVar

from async_task_manager._run import Failure, Options, Run
from async_task_manager._validate import number
from async_task_manager._watchers import Watchers, notify, resolve
from async_task_manager.errors import InvalidState, InvalidType

if TYPE_CHECKING:
    from async_task_manager.strategies._lanes import Lane

__all__ = ["Outcome", "Task", "TaskState", "Work", "current_task"]

T_co = TypeVar("T_co", covariant=True, default=Any)

Work: TypeAlias = "Awaitable[T_co] | Callable[[], Awaitable[T_co]]"
TaskState: TypeAlias = Literal[
    "new",
    "queued",
    "running",
    "succeeded",
    "failed",
    "cancelled",
    "expired",
    "rejected",
]
DONE: Final = frozenset({"succeeded", "failed", "cancelled", "expired", "rejected"})

arrivals: Final = count(1)
"""Ids and arrival numbers: one counter, so that a task added in the order of its making needs one
number.
"""

_current: ContextVar[Task[Any]] = ContextVar("async_task_manager.current_task")


def current_task() -> Task[Any] | None:
    """The Task whose work is running here; None outside any.

    Follows the context: it also answers in asyncio tasks and threads that the work starts.
    """
    return _current.get(None)


@dataclass(slots=True)  # frozen would cost a microsecond per task
class Outcome:
    """How one attempt ended, as limits and feedbacks see it."""

    kind: Literal["success", "failure", "cancelled"]
    started_at: float | None
    """Chain time of the first instruction; None: cancelled before it."""
    finished_at: float
    error: BaseException | None = None
    cost: float | dict[str, float] | None = None
    """The actual cost, if it is known: as the work told it by `Task.settle`, or whoever ran it."""

    @property
    def started(self) -> bool:
        """False: cancelled before the first instruction, so that nothing was used."""
        return self.started_at is not None

    @property
    def retry_after(self) -> Any:
        """What the error says about when to come back: seconds, an aware datetime, or None."""
        return getattr(self.error, "retry_after", None)


def wall_time() -> float:
    """Epoch seconds; a loop with a time of its own may bring its own."""
    own: Callable[[], float] = getattr(asyncio.get_running_loop(), "wall_time", time.time)
    return own()


def outcome_of(
    kind: TaskState, value: Any, started: float | None, now: float, actual: Any
) -> Outcome:
    """The outcome of an attempt, as limits and feedbacks see it."""
    if kind == "succeeded":
        return Outcome("success", started, now, None, actual)
    if kind == "cancelled":
        return Outcome("cancelled", started, now, None, actual)
    return Outcome("failure", started, now, value, actual)


class Accounts(Protocol):
    """Whoever keeps the accounts when an attempt begins and when it ends."""

    def begun(self, task: Task[Any]) -> None: ...
    def ended(self, task: Task[Any], kind: TaskState, value: Any) -> None: ...


class Host(Accounts, Protocol):
    """Whoever runs the tasks of a chain."""

    epoch: float
    """Wall time at chain time 0."""

    def time(self) -> float: ...
    def wake(self) -> None: ...
    def look_at_wall(self) -> None: ...
    def cancel(self, task: Task[Any]) -> bool: ...
    def settle(self, task: Task[Any], actual: Any) -> None: ...
    def observe(self, task: Task[Any], sample: Any) -> None: ...
    def stamp(self, task: Task[Any]) -> None: ...
    def waits(self, task: Task[Any], other: Task[Any]) -> None: ...
    def waits_no_more(self, task: Task[Any], other: Task[Any]) -> None: ...


class Task(Generic[T_co]):
    """Work to be done, its state and, once it ended, its outcome.

    ``work`` is an awaitable, or a callable without arguments that returns one. A callable costs
    less memory while it waits, and can be retried.

    Usually ``manager.add_task(work, metadata)`` makes it; made by hand, it runs on its own with
    ``await task.run()``.
    """

    __slots__ = (
        "__weakref__",
        "_context",
        "_costs",
        "_created",
        "_lane",
        "_metadata",
        "_options",
        "_rank",
        "_run",
        "_seq",
        "_state",
        "_watchers",
        "_work",
        "id",
    )

    id: int
    """Unique in this process; never used again."""

    _work: Work[T_co] | None
    _metadata: dict[str, Any] | None
    _state: TaskState
    _watchers: Watchers | None
    _options: Options | None
    _run: Run | None
    _lane: Lane | None
    # Set by the chain at intake, and by the manager:
    _context: Context | None
    _costs: Any
    _created: float | None
    _rank: Any
    _seq: int

    def __init__(self, work: Work[T_co], metadata: dict[str, Any] | None = None) -> None:
        if not callable(work):
            check_awaitable(work)
        if metadata is not None and not isinstance(metadata, dict):
            discard(work)
            raise InvalidType(f"metadata must be a dict or None, not {metadata!r}")
        self.id = next(arrivals)
        self._work = work
        self._metadata = metadata
        self._state = "new"
        self._context = self._watchers = self._options = self._run = self._lane = None

    # ---- what it is -------------------------------------------------------------------------

    @property
    def metadata(self) -> dict[str, Any]:
        """What strategies and people know about the task. What it says at ``add_task`` counts."""
        if self._metadata is None:
            self._metadata = {}
        return self._metadata

    @property
    def name(self) -> str:
        """The name given to ``add_task``, else that of the function, with the id."""
        if self._options is not None and self._options.name is not None:
            return self._options.name
        work = getattr(self._work, "func", self._work)  # a partial goes by its function
        name = getattr(work, "__qualname__", None)
        return f"{name}-{self.id}" if name else f"task-{self.id}"

    @property
    def state(self) -> TaskState:
        """new, queued, running; succeeded, failed, cancelled, expired or rejected."""
        return self._state

    @property
    def attempt(self) -> int:
        """How many times the work was started: 0 while it has not been."""
        return self._run.attempt if self._run is not None else 0

    @property
    def errors(self) -> tuple[BaseException, ...]:
        """What earlier attempts raised, oldest first; of many, the last hundred.

        The error of the last attempt is the outcome: see `exception`.
        """
        errors = self._run.errors if self._run is not None else None
        return tuple(errors) if errors is not None else ()

    @property
    def rate_limited(self) -> int:
        """How many earlier attempts ended with `RateLimited`."""
        return self._run.rate_limited if self._run is not None else 0

    @property
    def provider(self) -> str | None:
        """The name of the branch that a router chose; None before, or without one."""
        return self._run.provider if self._run is not None else None

    @property
    def created_at(self) -> float | None:
        """Epoch seconds of its acceptance; of the manager's first start, if added before that."""
        return self._wall(self._created) if self._lane is not None else None

    @property
    def started_at(self) -> float | None:
        """Epoch seconds of the first instruction of the latest attempt.

        Differences between these instants are monotonic: a step of the clock doesn't show in them.
        """
        return self._wall(self._run.started) if self._run is not None else None

    @property
    def finished_at(self) -> float | None:
        """Epoch seconds of the end."""
        return self._wall(self._run.finished) if self._run is not None else None

    def _wall(self, instant: float | None) -> float | None:
        if instant is None:
            return None
        host = self._host()
        return instant if host is None else host.epoch + instant

    def _host(self) -> Host | None:
        return self._lane.chain.host if self._lane is not None else None

    def __repr__(self) -> str:
        return f"<Task {self.id} {self.name} {self._state}>"

    # ---- the outcome ------------------------------------------------------------------------

    def done(self) -> bool:
        """Whether it has ended, in whatever way."""
        return self._state in DONE

    def result(self) -> T_co:
        """What the work returned; raises what it raised.

        Raises:
            InvalidState: it has not ended.
            asyncio.CancelledError: it was cancelled.
        """
        error = self.exception()
        if error is not None:
            try:
                raise error.with_traceback(cast("Run", self._run).value.traceback)
            finally:
                del error, self  # this frame, in the traceback, must not lead back to the error
        return cast("Run", self._run).value  # type: ignore[no-any-return]

    def exception(self) -> BaseException | None:
        """What the work raised, or None.

        Raises:
            InvalidState: it has not ended.
            asyncio.CancelledError: it was cancelled.
        """
        if self._state not in DONE:
            raise InvalidState(f"{self!r} has not ended; await task.wait() first")
        if self._state == "cancelled":
            raise asyncio.CancelledError
        value = cast("Run", self._run).value
        if self._state == "succeeded":
            return None
        failure = cast("Failure", value)
        failure.retrieved = True
        return failure.error

    async def wait(self) -> T_co:
        """The result, once there is one; raises what the work raised.

        For any number of waiters, before or after the end. A wait that is cancelled or times out
        leaves the task alone.

        Raises:
            asyncio.CancelledError: the task was cancelled.
            QueueTimeout, DeadlineExceeded, TaskTimeout, TaskRejected, StrategyError: see errors.
        """
        if self._state not in DONE:
            await self._ends()
        try:
            return self.result()
        finally:
            del self  # as in `result`

    async def _ends(self) -> None:
        future = asyncio.get_running_loop().create_future()
        waiters = self._watch().waiters
        waiters[future] = None
        host, caller = self._host(), _current.get(None)
        if host is None or caller is None or caller._host() is not host:
            caller = host = None  # whoever only waits must not keep the manager alive
        else:
            host.waits(caller, self)
        try:
            await future
        finally:
            waiters.pop(future, None)
            if caller is not None:
                cast("Host", host).waits_no_more(caller, self)

    def __await__(self) -> Generator[Any, None, T_co]:
        return self.wait().__await__()

    def add_done_callback(self, fn: Callable[[Task[T_co]], object]) -> None:
        """Calls ``fn(task)`` soon after the end, or soon if it has ended; async functions are run.

        One that raises is logged and harms nothing.
        """
        if not callable(fn):
            raise InvalidType(f"a done-callback must be callable, not {fn!r}")
        if self._state in DONE:
            notify(self, fn, copy_context())
        else:
            self._watch().callbacks.append((fn, copy_context()))

    def _watch(self) -> Watchers:
        if self._watchers is None:
            self._watchers = Watchers()
        return self._watchers

    # ---- what can be done with it -----------------------------------------------------------

    def cancel(self) -> bool:
        """Cancels it, queued or running; False if it has ended already.

        Queued, it never runs and ends at once. Running, the work gets a CancelledError, and the
        task ends as the work does.

        Raises:
            InvalidState: it is called outside the loop in which its manager works: there,
                ``loop.call_soon_threadsafe(task.cancel)``.
        """
        if self._state in DONE:
            return False
        host = self._host()
        if host is not None:
            return host.cancel(self)
        if self._run is not None and self._run.driver is not None:
            return self._run.driver.cancel()
        self._end("cancelled", None)
        return True

    def settle(self, actual: float | dict[str, float]) -> None:
        """Says what the running attempt really consumed, so that limits correct their estimates.

        Args:
            actual: A number for every limit that reads a cost, or numbers by unit:
                ``{"tokens": 812}``. Limits that count tasks stay as they are.

        Raises:
            InvalidState: it doesn't run.
            InvalidValue, InvalidType: a number is negative, NaN or infinite, or none.
        """
        run = self._running("settle")
        for name, value in (actual if isinstance(actual, dict) else {"": actual}).items():
            number(f"actual cost {name}".rstrip(), value, at_least=0)
        run.actual = actual
        host = self._host()
        if host is not None:
            host.settle(self, actual)

    def observe(self, sample: Any) -> None:
        """Tells the limits that this task holds a grant of what the running attempt was told.

        Args:
            sample: The headers of a response (a mapping) for windows and buckets, which follow what
                the server counts, and for cooldowns, which wait out its ``retry-after``; anything
                else for limits of your own. What a limit doesn't understand it passes over.

        Raises:
            InvalidState: it doesn't run.
        """
        self._running("observe")
        host = self._host()
        if host is not None:
            host.observe(self, sample)

    def stamp(self) -> None:
        """Says that what the limits count happens now: the request leaves.

        For a manager with ``stamp="said"``: until it is said, the task takes its room in every
        window, and counts in it from then on; never said, from its end. Said twice, or to another
        manager, it changes nothing.

        Raises:
            InvalidState: it doesn't run.
        """
        self._running("stamp")
        host = self._host()
        if host is not None:
            host.stamp(self)

    def _running(self, what: str) -> Run:
        """The attempt that runs, with its permits."""
        if self._state != "running":
            raise InvalidState(f"{self!r} does not run: there is nothing to {what}")
        if self._run is None or self._run.grants is None:
            raise InvalidState(
                f"{self!r} is one of a batch: {what} for all of it, with current_task() inside it"
            )
        return self._run

    async def run(self) -> T_co:
        """Runs the work here and now, and gives its result: for a task that no manager runs.

        Raises:
            InvalidState: a manager has it, it runs, or it has ended.
        """
        host = self._host()
        if self._state != "new" and not (self._state == "running" and self._driver is None):
            raise InvalidState(f"{self!r} cannot be run by hand: a manager has it, or it has ended")
        if self._state == "new":
            self._enter([])  # else a chain has handed it out, with its permits
        driver = asyncio.current_task()
        self._progress().driver = driver
        outside = _current.set(self)
        try:
            await execute(self, host if host is not None else _Alone())
        finally:
            _current.reset(outside)
        return self.result()

    @property
    def _driver(self) -> asyncio.Task[None] | None:
        return self._run.driver if self._run is not None else None

    # ---- for those who run it ---------------------------------------------------------------

    def _progress(self) -> Run:
        if self._run is None:
            self._run = Run()
        return self._run

    def _enter(self, grants: list[Any] | None) -> Run:
        """The task is handed out to be run, with its permits: another attempt."""
        self._state = "running"
        run = self._run
        if run is None:
            run = self._run = Run()
            run.attempt = 1
            run.driver = run.actual = None
        else:
            run.attempt += 1
            run.actual = None
        run.grants = grants
        run.started = None
        return run

    def _end(self, state: TaskState, value: Any) -> None:
        """Stores the outcome, lets go of everything else, and tells whoever waits."""
        run = self._run
        if run is None:
            run = self._run = Run()
        if state == "succeeded":
            run.value = value
        else:
            run.value = None if state == "cancelled" else Failure(value, self.name)
            discard(self._work)
        self._state = state
        run.driver = run.grants = None
        self._work = self._context = self._costs = None
        watchers = self._watchers
        if watchers is not None:
            self._watchers = None
            for future in watchers.waiters:
                resolve(future)
            for fn, context in watchers.callbacks:
                notify(self, fn, context)


class _Alone:
    """The accounts of a task that runs by itself: when it ran."""

    def __init__(self) -> None:
        self._read = asyncio.get_running_loop().time
        self._epoch = wall_time() - self._read()

    def begun(self, task: Task[Any]) -> None:
        task._progress().started = self._epoch + self._read()

    def ended(self, task: Task[Any], kind: TaskState, value: Any) -> None:
        task._progress().finished = self._epoch + self._read()
        task._end(kind, value)


async def execute(task: Task[Any], host: Accounts) -> None:
    """One attempt, from the work's first instruction to its outcome.

    A native coroutine, so that the awaits of the work run at the speed of C. It never runs if its
    asyncio.Task is cancelled before the first step: whoever makes that Task has to notice.
    """
    _current.set(task)
    host.begun(task)
    try:
        work = task._work
        value = await (work() if callable(work) else work)  # type: ignore[misc]
    except asyncio.CancelledError as error:
        host.ended(task, "cancelled", error)
    except (KeyboardInterrupt, SystemExit) as error:
        host.ended(task, "failed", error)
        driver = asyncio.current_task()
        assert driver is not None
        driver.add_done_callback(asyncio.Task.exception)  # it is seen where the loop ends
        raise
    except BaseException as error:
        # Whatever it is, it is the waiter's. A GeneratorExit that closes this coroutine is, too.
        host.ended(task, "failed", error)
    else:
        host.ended(task, "succeeded", value)
    finally:
        # The traceback of an error holds this frame: it must not lead back to the task.
        del task, host
        work = value = None


def check_awaitable(work: object) -> None:
    """Raises at once for work that could never be awaited."""
    if type(work) is CoroutineType:
        if work.cr_running or work.cr_frame is None or work.cr_suspended:
            raise InvalidState(f"the coroutine {work!r} has been used already; pass a new one")
    elif not inspect.isawaitable(work):
        raise InvalidType(
            "work must be an awaitable or a callable without arguments that returns one, "
            f"not {work!r}"
        )


def discard(work: object) -> None:
    """Closes work that will never run, so that it does not warn that nobody awaited it."""
    if isinstance(work, Task):
        work = work._work
    if isinstance(work, Coroutine):
        work.close()
