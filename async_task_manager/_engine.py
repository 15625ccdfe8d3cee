"""What drives a chain in an event loop: the clock, the timer, the running tasks.

Between an add, a completion, a cancel, a live change and the instant that the chain names, it
sleeps.
"""

from __future__ import annotations

import asyncio
import logging
import threading
import time
import weakref
from asyncio import _get_running_loop
from collections.abc import Callable, Collection
from contextlib import suppress
from contextvars import Context, copy_context
from functools import partial
from math import inf
from typing import TYPE_CHECKING, Any, ClassVar

from async_task_manager._clockwork import WALL_CHECK, Clockwork
from async_task_manager._driver import Driver, expire, never_began
from async_task_manager._forecast import Durations
from async_task_manager._room import Room
from async_task_manager._run import Options, Run
from async_task_manager._samplers import Samplers
from async_task_manager._waits import Waits
from async_task_manager.errors import (
    DeadlineExceeded,
    InvalidState,
    ManagerClosed,
    StrategyError,
    TaskTimeout,
)
from async_task_manager.events import Observers
from async_task_manager.strategies._batch import Batch
from async_task_manager.strategies._batches import leave_call
from async_task_manager.strategies.base import BaseStrategy, WallTime
from async_task_manager.strategies.chain import Chain
from async_task_manager.task import (
    Outcome,
    Task,
    TaskState,
    execute,
    outcome_of,
    wall_time,
)

if TYPE_CHECKING:
    from async_task_manager.strategies._foreign import ForeignStage

__all__ = ["Engine"]

logger = logging.getLogger("async_task_manager")

STARTS_PER_TURN = 64
"""Tasks started in one turn of the loop. More would delay their first instructions, and other
timers.
"""

LESSONS_PER_TURN = 8
"""Ends from which durations are learnt, between two looks at the chain: where many tasks end at
once, these are enough, and the rest is free."""

HOOKS_GRACE = 0.1
"""Seconds that `stop` gives an ``on_task_done`` that is under way, before it cancels it."""

ENDS_THE_LOOP = (KeyboardInterrupt, SystemExit)
"""What work raises through the loop, which ends by it."""

STUBBORN = 3
"""Cancels that a task is given before `stop` leaves it behind."""


class Engine(Clockwork):
    """Starts what a chain gives, keeps the accounts of what runs, and sleeps meanwhile."""

    _coroutines: ClassVar[set[int]] = set()
    """Those that wait in any manager: a second one must not take them, either."""

    def __init__(self, strategy: BaseStrategy, poll_interval: float) -> None:
        self._poll_interval = poll_interval
        self._chain = Chain.of(strategy)
        already = max(self._chain.now, self._chain.host.time())
        super().__init__(already)  # 0, unless it was used by hand or by a manager that is gone
        self._chain.hosted_by(self)
        self._observers = self._chain.observers = Observers()
        self._thread = 0

        self._stamps = self._chain.stamps
        self._late = False  # whether tasks themselves say when they count
        self._polls = self._chain.foreign is not None

        self._started = False  # ever
        self._closed = False
        self._broken: StrategyError | None = None
        self._runner: asyncio.Future[None] | None = None

        self._running: dict[Task[Any], None] = {}
        self._questions: dict[ForeignStage, asyncio.Task[None]] = {}  # intervals being asked for
        self._hooks: set[asyncio.Task[None]] = set()  # on_task_done under way, ending samplers
        self._samplers = Samplers(self._chain, self._clock, self._break)
        self._keeper: asyncio.Task[None] | None = None
        self._watchers: list[asyncio.Future[None]] = []  # who waits for tasks to end
        self._ends: dict[TaskState, int] = dict.fromkeys(
            ("succeeded", "failed", "cancelled", "expired", "rejected"), 0
        )
        self._durations = Durations()
        self._lessons = LESSONS_PER_TURN
        self._context: Context | None = None
        self._room: Room | None = None
        self._on_end: list[Callable[[Task[Any]], None]] = []  # who keeps something of what ended
        self._waits = Waits(self._chain)  # of running tasks, for others

    # ---- the loop, and time -----------------------------------------------------------------

    def _start_going(self) -> None:
        if self._closed:
            raise ManagerClosed("the manager was closed; make a new one")
        loop = asyncio.get_running_loop()
        if loop is not self._loop:
            self._bind(loop)
        self._broken = None
        self._ending = False
        self._going = self._started = True
        if self._keeper is None:
            self._keeper = loop.create_task(_keep(weakref.ref(self)))
            # A loop may be closed over it. Typeshed doesn't know the flag, by which gather, too,
            # keeps Python from complaining.
            self._keeper._log_destroy_pending = False  # type: ignore[attr-defined]
        self._check_wall()
        self.wake()

    def _check_loop(self) -> None:
        """Raises where the manager works in another loop than the one that runs here."""
        loop, here = self._loop, _get_running_loop()
        if loop is None or loop.is_closed() or not (self._going or self._running):
            return
        if here is not loop and (here is not None or threading.get_ident() != self._thread):
            raise InvalidState(
                "the manager works in another loop: call it there, from elsewhere through "
                "loop.call_soon_threadsafe or asyncio.run_coroutine_threadsafe"
            )

    def _bind(self, loop: asyncio.AbstractEventLoop) -> None:
        old = self._loop
        if old is not None and not old.is_closed() and (self._going or self._running):
            raise InvalidState("the manager runs in another loop: stop it there first")
        reading = loop.time()
        if old is None or reading - self._zero < self._now:
            # The first start, or a loop whose clock starts anew: chain time goes on from where it
            # was.
            self._zero = reading - self._now
        self._loop = loop
        # A call less for what is read three times per task.
        plain = type(loop).time is asyncio.BaseEventLoop.time
        self._read = time.monotonic if plain else loop.time
        self._thread = threading.get_ident()
        self._pumping = False
        self._samplers.forget()
        self._disarm()
        self._questions.clear()
        self._hooks.clear()
        self._keeper = None
        for task in tuple(self._running):  # their loop was closed over their heads
            self.ended(task, "cancelled", None)
        if not self._started:
            self.epoch = wall_time() - self._clock()

    def _disarm(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if self._wall_timer is not None:
            self._wall_timer.cancel()
            self._wall_timer = None
        self._timer_at = inf
        for sampler in self._samplers.stop():
            self._hook(sampler)

    def loop_ends(self, keeper: asyncio.Task[None] | None) -> None:
        """Everything in the loop is being cancelled: nothing must be started any more."""
        if keeper is self._keeper:
            self._keeper = None
            self._ending = True
            self._disarm()

    # ---- the pump ---------------------------------------------------------------------------

    def _pump(self) -> None:
        """Starts what the chain gives, a few at a time, and sleeps until it may give more."""
        self._pumping = False
        if not self._going or self._ending:
            return
        self._lessons = LESSONS_PER_TURN
        chain = self._chain
        loop = self._loop
        assert loop is not None
        now = self._clock()
        try:
            wake = chain.lapse(now) if self._paused else self._start_some(loop, now)
        except StrategyError as error:
            self._break(error)
            return
        if chain.out:
            self._sweep()
        if self._room is not None:
            self._room.invite()
        if wake <= now:
            self._arm(inf)
            self.wake()
        else:
            self._arm(wake)
            if self._observers:
                self._observers.turned(chain.dispatch.turned(), now)
        if self._polls and not self._paused:
            for stage in tuple(chain.asking()):
                if stage not in self._questions:
                    self._questions[stage] = loop.create_task(self._ask(stage))
        if chain.sampled and not self._paused:
            self._samplers.look(loop, now)
        if self._wall_timer is None and chain.watches_wall_time:
            assert self._loop is not None
            self._wall_timer = self._loop.call_later(WALL_CHECK, self._watch_wall)

    def _start_some(self, loop: asyncio.AbstractEventLoop, now: float) -> float:
        """Starts as many tasks as one turn of the loop may; gives when to ask again."""
        chain = self._chain
        ours = loop.get_task_factory() is None
        for _ in range(STARTS_PER_TURN):
            task = chain.pull(now)
            if task is None:
                break
            self._running[task] = None
            if type(task) is Batch:
                self._begin_members(task)
            context = task._context
            if ours and task._options is None and context is not None:
                driver = Driver(execute(task, self), loop=loop, name="", context=context.copy())
                driver.handle = task
                task._run.driver = driver  # type: ignore[union-attr]  # it was handed out
            else:
                self._launch(task, loop, ours)
        return chain.next_wake(now)

    def _begin_members(self, batch: Batch) -> None:
        """Its tasks run, too: as long as the call does, and each within its own time limits."""
        for member in batch.members:
            self._running[member] = None
            if member._options is not None:
                self._limit_run(member, member._options)

    def _flush(self) -> None:
        """What waits for others to make up a batch starts now, if limits admit it."""
        if self._going and not self._paused and self._loop is asyncio.get_running_loop():
            if self._chain.flush(self._clock()):
                self._pump()
                while self._pumping:  # it starts so many at a time
                    self._pump()

    def _launch(self, task: Task[Any], loop: asyncio.AbstractEventLoop, ours: bool) -> None:
        """Starts a task that is in some way uncommon."""
        run = task._run
        assert run is not None
        # A strategy may have brought the task along: nobody's context came with it.
        context = task._context or copy_context()
        if ours:
            driver = Driver(execute(task, self), loop=loop, name="", context=context.copy())
            driver.handle = task
            run.driver = driver
        else:
            # Not ours, and perhaps eager: it may be over before it is handed out.
            foreign = context.run(loop.create_task, execute(task, self))
            if not foreign.done():
                run.driver = foreign
                foreign.add_done_callback(partial(never_began, task))
        options = task._options
        if options is not None and task in self._running:
            self._limit_run(task, options)

    def _limit_run(self, task: Task[Any], options: Options) -> None:
        now = self._clock()
        error: Exception | None = None
        until = inf
        if options.run_timeout is not None:
            until = now + options.run_timeout
            error = TaskTimeout(f"{task!r} ran longer than its {options.run_timeout} s")
        if options.deadline is not None:
            deadline = options.deadline
            if isinstance(deadline, WallTime):
                deadline -= self._offset
            if deadline < until:
                until, error = deadline, DeadlineExceeded(f"{task!r} was not done in time")
        if error is not None:
            assert self._loop is not None
            options.timer = self._loop.call_at(until + self._zero, expire, task, options, error)

    def begun(self, task: Task[Any]) -> None:
        """The work's first instruction: windows stamp themselves here."""
        now = self._read() - self._zero
        if now < self._now:
            now = self._now
        task._run.started = self._now = now  # type: ignore[union-attr]  # it was handed out
        if self._coroutines:
            self._coroutines.discard(id(task._work))
        if type(task) is Batch:
            for member in task.members:
                member._progress().started = now
                if self._observers:  # in the context of whoever added it: the call has many
                    context = member._context or copy_context()
                    context.copy().run(self._observers.started, member, now)
        elif self._observers:
            self._observers.started(task, now)
        if self._stamps:
            if self._late:
                task._run.stamped = False  # type: ignore[union-attr]  # as above
            else:
                self._stamp(task, now)

    def stamp(self, task: Task[Any]) -> None:
        """The task says that what the windows count happens now."""
        if self._elsewhere(task, self.stamp):
            return
        run = task._run
        if run is not None and run.stamped is False:
            run.stamped = True
            self._stamp(task, self._clock())

    def _stamp(self, task: Task[Any], now: float) -> None:
        try:
            if self._chain.begun(task, now) and not self._pumping:
                self._look(now)
        except Exception as error:
            self._break(self._chain.blame(error))

    def ended(self, task: Task[Any], kind: TaskState, value: Any) -> None:
        """An attempt is over: permits go back, waiters are told, or it is queued again."""
        run: Run = task._run  # type: ignore[assignment]  # it was handed out
        try:
            del self._running[task]
        except KeyError:
            return  # its loop was closed under it, and it was given up when the next one came
        now = self._read() - self._zero
        if now < self._now:
            now = self._now
        run.finished = self._now = now
        if self._late and run.started is not None:
            self.stamp(task)  # it never said when
        struck = last = False
        if task._options is not None:
            struck = task._options.expired is not None
            kind, value = self._unlimit(task._options, kind, value)
        if kind == "failed" and isinstance(value, ENDS_THE_LOOP):
            self._ending = True
        if self._lessons and run.started is not None and kind != "cancelled":
            self._lessons -= 1
            self._durations.learn(task, now - run.started)
        again = False
        polls = self._polls and run.grants is not None  # a custom strategy knows of batches alone
        try:
            if kind == "succeeded":
                outcome = Outcome("success", run.started, now, None, run.actual)
            else:
                outcome = outcome_of(kind, value, run.started, now, run.actual)
                last = self._is_last(run, struck)
            again = self._chain.finish(task, outcome, now, last=last)
        except Exception as error:
            self._break(self._chain.blame(error))
        if again:
            self._back_in_the_queue(task, run, None if kind == "succeeded" else value)
        elif type(task) is Batch:
            self._share_out(task, kind, value)
        else:
            self._conclude(task, kind, value)
        if polls and not self._loop.is_closed():  # type: ignore[union-attr]  # it ran
            self._hook(self._loop.create_task(self._tell_done()))  # type: ignore[union-attr]  # as above
        if not self._pumping:
            self._look(now)

    def _back_in_the_queue(self, task: Task[Any], run: Run, error: BaseException | None) -> None:
        """It will be tried again."""
        run.driver = None
        if self._room is not None:
            self._room.came_back(task)
        if self._observers:
            self._observers.retried(task, error, self._now)
        if self._watchers:
            self._look_around()

    def _share_out(self, batch: Batch, kind: TaskState, value: Any) -> None:
        """The call is over: each of its members ends as its part of the outcome says."""
        for part in batch.parts(kind, value):
            self.ended(*part)
        batch._end(kind, value)
        self._look_around()

    def _is_last(self, run: Run, struck: bool) -> bool:
        """Whether an attempt that failed must be the last: nobody would run another, or the task
        was cancelled by someone else than its time limit, and failed when it cleaned up.
        """
        if self._closed or self._broken is not None:
            return True
        return run.driver is not None and run.driver.cancelling() > struck

    @staticmethod
    def _unlimit(options: Options, kind: TaskState, value: Any) -> tuple[TaskState, Any]:
        """The time limits of this attempt are off; one that struck decides the outcome."""
        if options.timer is not None:
            options.timer.cancel()
            options.timer = None
        expired, options.expired = options.expired, None
        if kind == "cancelled" and expired is not None:
            return "failed", expired
        return kind, value

    def _conclude(self, task: Task[Any], state: TaskState, value: Any) -> None:
        """The outcome is final."""
        if self._coroutines:
            self._coroutines.discard(id(task._work))
        self._ends[state] += 1
        if task._run is None:
            task._progress().finished = self._clock()
        if self._observers:  # before the end takes the task's context, and the name of its work
            self._observers.concluded(task, state, value, self._now)
        task._end(state, value)
        for note in self._on_end:
            note(task)
        if self._watchers and len(self._running) <= 1:
            # Whoever waits for all to end may be the last one's own work; before, none need look.
            self._look_around()

    def cancel(self, task: Task[Any]) -> bool:
        """Cancels one task, queued or running; False if it has ended."""
        self._check_loop()
        if task._state == "queued":
            self._drop(task, "cancelled", None)
            self.wake()
            return True
        driver = task._driver
        if driver is None:
            return leave_call(self, self._chain.batches, task)
        return driver.cancel()

    def _drop(self, task: Task[Any], state: TaskState, error: Exception | None) -> None:
        """A queued task ends without a start."""
        self._chain.cancel(task, self._clock(), state)
        self._conclude(task, state, error)
        if self._room is not None:
            self._room.invite()

    def settle(self, task: Task[Any], actual: Any) -> None:
        """The actual cost of a running task is known."""
        if self._elsewhere(task, self.settle, actual):
            return
        now = self._clock()
        try:
            self._chain.settle(task, actual, now)
        except Exception as error:
            self._break(self._chain.blame(error))
        if not self._pumping:
            self._look(now)

    def observe(self, task: Task[Any], sample: Any) -> None:
        """A running task was told something that its limits may want to know."""
        if self._elsewhere(task, self.observe, sample):
            return
        now = self._clock()
        try:
            self._chain.observe(task, sample, now)
        except Exception as error:
            self._break(self._chain.blame(error))
        if not self._pumping:
            self._look(now)

    def _elsewhere(self, task: Task[Any], act: Callable[..., None], *arguments: Any) -> bool:
        """In a thread that the work started: True, and the loop's thread does it soon."""
        if threading.get_ident() == self._thread:
            return False
        attempt = task.attempt

        def later() -> None:
            if task._state == "running" and task.attempt == attempt:
                act(task, *arguments)

        assert self._loop is not None  # the task runs there
        with suppress(RuntimeError):  # it was closed over the thread
            self._loop.call_soon_threadsafe(later)
        return True

    def _sweep(self) -> None:
        """Tasks that the chain gave up on get their outcome."""
        while self._chain.out:
            task, error = self._chain.out.popleft()
            self._conclude(task, task._state, error)

    # ---- when a strategy fails --------------------------------------------------------------

    def _break(self, error: StrategyError) -> None:
        """Nothing more is started; what has not started gets the error."""
        if self._broken is not None:
            return  # the first error is the one that is told
        logger.error("%s; nothing more is started", error, exc_info=error)
        self._broken = error
        self._going = False
        self._disarm()
        for task in self._chain.clear(self._clock()):
            self._conclude(task, "rejected", error)
        self._sweep()
        if self._room is not None:
            self._room.invite(everyone=True)
        if self._runner is not None and not self._runner.done():
            self._runner.set_result(None)
        self._look_around()

    # ---- custom strategies that are polled --------------------------------------------------

    async def _ask(self, stage: ForeignStage) -> None:
        try:
            interval = await stage.strategy.get_sleep_interval()
            stage.answer(interval, self._clock(), self._poll_interval)
        except BaseException as error:
            if not self._is_at_fault(error):
                raise
            self._break(self._chain.blame(error, stage.strategy))
            return
        finally:
            self._questions.pop(stage, None)
        self.wake()

    def _hook(self, hook: asyncio.Task[None]) -> None:
        self._hooks.add(hook)
        hook.add_done_callback(self._hooks.discard)

    async def _tell_done(self) -> None:
        for strategy in self._chain.foreigners():
            try:
                await strategy.on_task_done()
            except BaseException as error:
                if not self._is_at_fault(error):
                    raise
                self._break(self._chain.blame(error, strategy))
                return

    @staticmethod
    def _is_at_fault(error: BaseException) -> bool:
        """Whether the strategy raised this, rather than whoever ends the call, or the program."""
        if isinstance(error, asyncio.CancelledError):
            me = asyncio.current_task()
            return me is not None and not me.cancelling()
        return not isinstance(error, KeyboardInterrupt | SystemExit | GeneratorExit)

    # ---- waiting for ends -------------------------------------------------------------------

    async def _change(self) -> None:
        """Waits until a task ends, or everything breaks."""
        future = asyncio.get_running_loop().create_future()
        self._watchers.append(future)
        try:
            await future
        finally:
            if future in self._watchers:
                self._watchers.remove(future)

    def _look_around(self) -> None:
        watchers, self._watchers = self._watchers, []
        for future in watchers:
            if not future.done():
                future.set_result(None)

    def waits(self, task: Task[Any], other: Task[Any]) -> None:
        """A running task waits for another one."""
        holders: Collection[Task[Any]] = self._running
        if self._chain.calls:  # members of a batch hold no permits: it does
            holders = [
                one
                for one in holders
                if one._run.grants is not None  # type: ignore[union-attr]  # it runs
            ]
        for moved in self._waits.begin(task, other, holders, self._clock()):
            self._moved(moved)

    def waits_no_more(self, task: Task[Any], other: Task[Any]) -> None:
        """The wait is over, in whatever way."""
        for moved in self._waits.end(task, other, self._clock()):
            self._moved(moved)

    def _moved(self, task: Task[Any]) -> None:
        if self._room is not None and task._state == "queued":
            self._room.came_back(task)

    def _own_task(self) -> set[Task[Any]]:
        """The task that calls, if it is one of ours: nobody can wait for himself."""
        here = asyncio.current_task()
        own = {task for task in self._running if task._driver is here}
        for task in tuple(own):
            if isinstance(task, Batch):
                own.update(task.members)
        return own

    def _at_work(self) -> list[Task[Any]]:
        """The tasks that run; those of a batch, and not the call that does their work."""
        return [task for task in self._running if type(task) is not Batch]

    async def _finish_running(self, grace: float | None) -> None:
        me = self._own_task()
        cancels = 0
        try:
            while rest := self._running.keys() - me:
                if grace is None:
                    await self._change()
                    continue
                try:
                    async with asyncio.timeout(grace if cancels == 0 else max(grace, 0.1)):
                        while self._running.keys() - me:
                            await self._change()
                except TimeoutError:
                    rest = self._running.keys() - me
                    if cancels == STUBBORN:
                        logger.error("left behind, after %d cancels: %s", cancels, list(rest))
                        break
                    cancels += 1
                    for task in rest:
                        if task._driver is not None:  # else its batch has one
                            task._driver.cancel()
        finally:
            for question in tuple(self._questions.values()):
                question.cancel()
        if self._hooks:
            await asyncio.wait(self._hooks, timeout=HOOKS_GRACE)
            for hook in tuple(self._hooks):
                hook.cancel()


async def _keep(engine: weakref.ref[Engine]) -> None:
    """Sleeps as long as the loop lives.

    A loop that ends cancels what runs in it, and so frees slots: without a sign, the manager would
    start the next tasks then. To be cancelled is that sign.
    """
    try:
        await asyncio.get_running_loop().create_future()
    finally:
        alive = engine()
        if alive is not None:
            alive.loop_ends(asyncio.current_task())
