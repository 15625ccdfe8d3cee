"""An event loop on which a day of waiting takes no time."""

from __future__ import annotations

import asyncio
import contextlib
import heapq
import itertools
import math
import selectors
from collections.abc import Callable, Coroutine, Iterator
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from contextvars import Context
from typing import Any, TypeVar, TypeVarTuple

from async_task_manager.errors import InvalidType, InvalidValue, TaskManagerError

__all__ = ["Deadlock", "VirtualTimeLoop", "run_virtual"]

_T = TypeVar("_T")
_Ts = TypeVarTuple("_Ts")

WALL_START = 1_700_000_000.0  # 2023-11-14 22:13:20 UTC
_SHOWN_TASKS = 20


class Deadlock(TaskManagerError, RuntimeError):
    """Tasks wait, and nothing is left that could ever wake one; the message lists them."""


class VirtualTimeLoop(asyncio.SelectorEventLoop):
    """An event loop whose time starts at 0 and jumps to the next timer when nothing can run.

    A timer runs exactly at its instant, ``loop.time() == handle.when()``; timers of one instant run
    in the order in which they were set. Executor threads take real time, during which the clock
    stands still. Where nothing is left that could wake a task, the loop raises `Deadlock`.

    While sockets, pipes or child processes are open, each jump first waits up to `io_grace` seconds
    of real time for them; without a timer to jump to, it waits for them without limit.

    Args:
        wall_start: what the wall clock shows at time 0, in seconds since the epoch. Finite.
        io_grace: seconds of real time, 0 (only look) or more. Finite.

    Raises:
        InvalidType, InvalidValue: an argument is no number, or out of range.

    Setting a timer, and a jump, take O(log n) of the n timers set.
    """

    # The parts of asyncio's own loop that this one stands on: the same from 3.11 to 3.13.
    _scheduled: list[asyncio.TimerHandle]
    _default_executor: Executor | None
    _check_closed: Callable[[], None]
    _check_thread: Callable[[], None]
    _check_callback: Callable[[object, str], None]
    _check_default_executor: Callable[[], None]
    _closed = True  # until it is made: asyncio's __del__ asks, also where a bad argument stopped it

    def __init__(self, *, wall_start: float = WALL_START, io_grace: float = 0.01) -> None:
        self.wall_start = _finite("wall_start", wall_start)
        self.io_grace = _finite("io_grace", io_grace)
        if io_grace < 0:
            raise InvalidValue(f"io_grace must be at least 0 seconds, not {io_grace!r}")
        self._order = itertools.count()
        self._held = 0
        self._children: list[asyncio.SubprocessTransport] = []
        selector = _JumpingSelector()
        selector.loop = self
        super().__init__(selector)
        self._set_time(0.0)

    def time(self) -> float:
        """Seconds of virtual time since the loop was made."""
        return self._now

    def wall_time(self) -> float:
        """Seconds since the epoch on the virtual wall clock: ``wall_start + time()``."""
        return self.wall_start + self._now

    def step_wall(self, seconds: float) -> None:
        """Step the wall clock forward, or back if negative; loop time goes on undisturbed."""
        self.wall_start += _finite("seconds", seconds)

    @contextlib.contextmanager
    def hold(self) -> Iterator[None]:
        """Stand still while something real happens that the loop can't see, a plain thread say.

        Timers don't run meanwhile, and no deadlock is diagnosed. To be called on the loop's thread.
        """
        self._held += 1
        try:
            yield
        finally:
            self._held -= 1

    def call_at(
        self,
        when: float,
        callback: Callable[[*_Ts], object],
        *args: *_Ts,
        context: Context | None = None,
    ) -> asyncio.TimerHandle:
        self._check_closed()
        if self.get_debug():
            self._check_thread()
            self._check_callback(callback, "call_at")
        timer = _Timer(when, callback, args, self, context)
        timer._order = next(self._order)
        timer._scheduled = True
        heapq.heappush(self._scheduled, timer)
        return timer

    def run_in_executor(
        self, executor: Executor | None, func: Callable[[*_Ts], _T], *args: *_Ts
    ) -> asyncio.Future[_T]:
        self._check_closed()
        if self.get_debug():
            self._check_callback(func, "run_in_executor")
        if executor is None:
            self._check_default_executor()
            executor = self._default_executor
            if executor is None:
                executor = ThreadPoolExecutor(thread_name_prefix="asyncio")
                self.set_default_executor(executor)
        work = executor.submit(func, *args)
        future = asyncio.wrap_future(work, loop=self)
        self._held += 1
        # In turn: the result arrives before the clock may go on, and a thread that is still running
        # because its future was cancelled ends first.
        future.add_done_callback(lambda _: work.add_done_callback(self._let_go_threadsafe))
        return future

    def _let_go(self) -> None:
        self._held -= 1

    def _let_go_threadsafe(self, _: Future[Any]) -> None:
        with contextlib.suppress(RuntimeError):  # the loop was closed meanwhile
            self.call_soon_threadsafe(self._let_go)

    async def shutdown_default_executor(self, *args: Any, **kwargs: Any) -> None:
        with self.hold():  # it joins the threads from a plain one
            await super().shutdown_default_executor(*args, **kwargs)

    async def subprocess_exec(self, *args: Any, **kwargs: Any) -> Any:
        return self._remember_child(await super().subprocess_exec(*args, **kwargs))

    async def subprocess_shell(self, *args: Any, **kwargs: Any) -> Any:
        return self._remember_child(await super().subprocess_shell(*args, **kwargs))

    def _remember_child(self, made: tuple[asyncio.SubprocessTransport, _T]) -> object:
        # Python 3.11 waits for a child in a thread: no file descriptor shows that it lives.
        self._children.append(made[0])
        return made

    def _child_lives(self) -> bool:
        self._children = [child for child in self._children if child.get_returncode() is None]
        return bool(self._children)

    def _set_time(self, now: float) -> None:
        self._now = now
        # asyncio runs what is due before now + resolution: with one ulp, that is up to now exactly.
        self._clock_resolution = math.ulp(now)

    def _deadlock(self) -> Deadlock:
        tasks = sorted(asyncio.all_tasks(self), key=lambda t: (len(t.get_name()), t.get_name()))
        lines = [f"\n  {task!r}" for task in tasks[:_SHOWN_TASKS]]
        if len(tasks) > _SHOWN_TASKS:
            lines.append(f"\n  and {len(tasks) - _SHOWN_TASKS} more")
        return Deadlock(
            f"deadlock at virtual time {self._now!r}: nothing is ready, no timer will fire, no "
            f"thread or I/O is under way; pending tasks ({len(tasks)}):{''.join(lines)}"
        )


class _Timer(asyncio.TimerHandle):
    # A heap alone returns equal timers in any order. On a real clock two are hardly ever equal;
    # on this one, equal is usual, and who slept first expects to wake first.
    __slots__ = ("_order",)
    _when: float
    _order: int
    _scheduled: bool

    def __lt__(self, other: _Timer) -> bool:  # type: ignore[override]
        if self._when == other._when:
            return self._order < other._order
        return self._when < other._when


class _JumpingSelector(selectors.DefaultSelector):
    # asyncio calls select() once a turn: with 0 if something is ready, else with the time to the
    # next timer, or None. That is the one place where a loop waits, hence where this one jumps.
    loop: VirtualTimeLoop

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        if timeout is not None and timeout <= 0:
            return super().select(0)
        loop = self.loop
        when = loop._scheduled[0].when() if loop._scheduled else math.inf
        outside = len(self.get_map()) > 1 or loop._child_lives()  # 1: the loop's own self-pipe
        wait: float | None = 0.0
        if loop._held or (outside and when == math.inf):
            wait = None
        elif outside:
            wait = loop.io_grace
        events = super().select(wait)
        if events or wait is None:
            return events
        if when == math.inf:
            raise loop._deadlock()
        loop._set_time(when)
        return events


def run_virtual(main: Coroutine[Any, Any, _T], *, wall_start: float = WALL_START) -> _T:
    """Run a coroutine as `asyncio.run` does, in virtual time; return or raise what it does.

    Raises `Deadlock` if it waits for what can never happen.
    """
    with asyncio.Runner(loop_factory=lambda: VirtualTimeLoop(wall_start=wall_start)) as runner:
        return runner.run(main)


def _finite(name: str, value: float) -> float:
    if not isinstance(value, int | float):
        raise InvalidType(f"{name} must be a number of seconds, not {value!r}")
    if not math.isfinite(value):
        raise InvalidValue(f"{name} must be a finite number of seconds, not {value!r}")
    return value
