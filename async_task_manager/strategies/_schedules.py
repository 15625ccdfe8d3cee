"""Schedules: when work comes round again, and what becomes of runs that were missed."""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from datetime import datetime, tzinfo
from math import floor, inf, nextafter
from random import Random
from typing import TYPE_CHECKING, Any, Literal, Protocol

from async_task_manager.strategies._clocks import shown_at
from async_task_manager.task import Task

if TYPE_CHECKING:
    from async_task_manager.strategies.time_based import TimeBasedStrategy

__all__ = ["Every", "Firing", "Once", "Options", "Schedule", "Trigger"]

logger = logging.getLogger("async_task_manager")

HISTORY = 100
"""Firings that a schedule remembers."""

AT_ONCE = 1000
"""Missed runs that are looked at one by one; a second's schedule misses 86,400 in a day."""


class Trigger(Protocol):
    """The instants at which work is due: wall or chain time, as the schedule goes by."""

    def after(self, instant: float, /) -> float:
        """The first of them that is later; inf: there is none."""
        ...


class Once:
    """At one instant."""

    def __init__(self, at: float) -> None:
        self.at = at

    def after(self, instant: float) -> float:
        """The instant, until it has come."""
        return self.at if instant < self.at else inf

    def __repr__(self) -> str:
        return f"at={self.at!r}"


class Every:
    """A grid: multiples of a period, counted from an anchor, so that nothing drifts."""

    def __init__(self, period: float, anchor: float) -> None:
        self.period = period
        self.anchor = anchor

    def after(self, instant: float) -> float:
        """The next on the grid; the anchor is the first."""
        index = max(0, floor((instant - self.anchor) / self.period))
        while (found := self.anchor + index * self.period) <= instant:
            index += 1
        return found

    def __repr__(self) -> str:
        return f"every={self.period!r}"


@dataclass(frozen=True, slots=True)
class Firing:
    """What became of one run that was due."""

    due: datetime
    """When it was, in the zone of the schedule."""
    kind: Literal["ran", "missed", "coalesced", "skipped"]
    """ran; missed: later than the grace allows; coalesced: a later one ran in its place;
    skipped: too many of them were under way."""
    task: Task[Any] | None = None
    """The task, if it ran."""


@dataclass(slots=True)
class Options:
    """What `TimeBasedStrategy.schedule` was told."""

    work: Callable[[], Awaitable[Any]]
    metadata: dict[str, Any] | None
    zone: tzinfo
    start: float | None
    end: float
    jitter: float
    grace: float | None
    coalesce: bool
    max_running: int


class Schedule:
    """Work that comes round by itself: what `TimeBasedStrategy.schedule` gives.

    Its instants are those of the wall clock, or, for ``every`` without ``start`` and a timedelta,
    those of a clock that doesn't jump.
    """

    _copied = False
    """A copy that is run ahead says nothing of what has not happened."""

    def __init__(
        self,
        owner: TimeBasedStrategy,
        trigger: Callable[[float], Trigger],
        options: Options,
        *,
        by_wall: bool,
        random: Random,
    ) -> None:
        self._owner = owner
        self._make = trigger
        """Gives the trigger once it is known what time it is."""
        self._trigger: Trigger | None = None
        self._options = options
        self._random = random
        self.by_wall = by_wall
        """Its instants are epoch seconds; else chain time."""
        self.state: Literal["active", "paused", "ended"] = "active"
        """ended: it was cancelled, or its last run has come."""
        self._slot = inf
        self.due = inf
        """The next instant, with its jitter; inf: not known yet, or never."""
        self._last = -inf
        """The last instant that has come: whatever pauses or sets clocks, it comes once."""
        self._running: list[Task[Any]] = []
        self._firings: deque[Firing] = deque(maxlen=HISTORY)

    # ---- what people see --------------------------------------------------------------------

    @property
    def next_run(self) -> datetime | None:
        """When it runs next, in its zone; None: never again, paused, or not known before the
        manager has started.
        """
        offset = 0.0 if self.by_wall else self._owner.wall_offset
        if self.state != "active" or self.due == inf or offset is None:
            return None
        return shown_at(self.due + offset, self._options.zone)

    @property
    def history(self) -> tuple[Firing, ...]:
        """The last hundred runs that were due, the latest last: those that ran, and the others."""
        return tuple(self._firings)

    def pause(self) -> None:
        """No more runs until `resume`; what was started goes on."""
        if self.state == "active":
            self.state = "paused"
            self.due = inf
            self._owner.changed()

    def resume(self) -> None:
        """Ends a pause. What was due meanwhile is left out, but for a single ``at``."""
        if self.state == "paused":
            self.state = "active"
            self._owner.begin(self)

    def cancel(self) -> None:
        """No more runs; what was started goes on."""
        if self.state != "ended":
            self._finish()
            self._owner.changed()

    def __repr__(self) -> str:
        work = self._options.work
        name = getattr(getattr(work, "func", work), "__qualname__", repr(work))
        return f"<Schedule {name} {self._trigger or ''} {self.state}>".replace("  ", " ")

    # ---- for the strategy -------------------------------------------------------------------

    def begin(self, time: float) -> None:
        """It is now known what time it is: the first run is looked for."""
        if self.state != "active":
            return  # it was paused before
        if self._trigger is None:
            self._trigger = self._make(time)
        start = self._options.start
        if isinstance(self._trigger, Once):
            first = self._trigger.after(-inf)
        else:
            # `after` is strict, and a run may be due just now, or just at the start.
            since = _before(time if start is None else max(start, time))
            first = self._trigger.after(max(since, self._last))
        self._aim(first)

    def correct(self, time: float) -> None:
        """The clock was far ahead, and has been set right: what it said counts no more."""
        self._last = -inf
        if self.due < inf and self._trigger is not None and not isinstance(self._trigger, Once):
            self._aim(self._trigger.after(time))

    def fire(self, time: float) -> list[Task[Any]]:
        """The runs that are due, as new tasks; the policies for missed ones are applied."""
        options = self._options
        slots, more = self._slots(time)
        grace = inf if options.grace is None else options.grace
        late = [slot for slot in slots if time - slot > grace]
        ready = [slot for slot in slots if time - slot <= grace]
        self._note("missed", late, f"more than {grace} s late")
        if options.coalesce and ready:
            # The one that runs stands for all.
            note = "one later run stands for all of them"
            self._note("coalesced", ready[:-1], note, at_least=more)
            ready = ready[-1:]
        self._running = [task for task in self._running if not task.done()]
        skipped, tasks = [], []
        for slot in ready:
            if len(self._running) >= options.max_running:
                skipped.append(slot)
                continue
            task = Task(options.work, dict(options.metadata or {}))
            self._running.append(task)
            self._firings.append(Firing(self._moment(slot), "ran", task))
            tasks.append(task)
        self._note("skipped", skipped, f"max_running={options.max_running} of them still run")
        return tasks

    def _slots(self, time: float) -> tuple[list[float], bool]:
        """The instants that have come, the first with its jitter, and whether there are more, which
        are passed over; the next one is aimed at.
        """
        assert self._trigger is not None
        slots, self._last = [self.due], self._slot
        following = self._trigger.after(self._last)
        while following <= min(time, self._options.end) and len(slots) < AT_ONCE:
            slots.append(following)
            self._last = following
            following = self._trigger.after(following)
        more = following <= time and self._options.coalesce
        if more:
            self._last = time
            following = self._trigger.after(time)
        self._aim(following)
        return slots, more

    def _aim(self, slot: float) -> None:
        if slot > self._options.end or slot == inf:
            self._finish()
            return
        self._slot = self.due = slot
        if self._options.jitter:
            assert self._trigger is not None
            # One that came after the next would be coalesced with it, and so be lost.
            next_one = nextafter(self._trigger.after(slot), slot)
            latest = min(slot + self._options.jitter, next_one, self._options.end)
            self.due = self._random.uniform(slot, latest)
        self._owner.aim(self)

    def _finish(self) -> None:
        self.state = "ended"
        self.due = inf
        self._owner.forget(self)

    def _note(self, kind: Any, slots: list[float], why: str, *, at_least: bool = False) -> None:
        if not slots:
            return
        for slot in slots[-HISTORY:]:
            self._firings.append(Firing(self._moment(slot), kind))
        if self._copied:
            return
        count = f"{len(slots)} or more" if at_least else str(len(slots))
        first, last = self._moment(slots[0]), self._moment(slots[-1])
        logger.warning(
            "%r: %s %s, due %s%s: %s",
            self,
            count,
            f"{'run' if len(slots) == 1 else 'runs'} {kind}",
            first.isoformat(),
            f" to {last.isoformat()}" if len(slots) > 1 else "",
            why,
        )

    def _moment(self, slot: float) -> datetime:
        offset = 0.0 if self.by_wall else self._owner.wall_offset or 0.0
        return shown_at(slot + offset, self._options.zone)

    def __deepcopy__(self, memo: dict[int, Any]) -> Schedule:
        # A copy runs nothing by itself: it knows of the tasks that were copied along.
        import copy

        twin = Schedule.__new__(Schedule)
        memo[id(self)] = twin
        twin.__dict__.update(self.__dict__)
        twin._copied = True
        twin._owner = copy.deepcopy(self._owner, memo)
        twin._random = copy.deepcopy(self._random, memo)
        twin._running = [memo[id(task)] for task in self._running if id(task) in memo]
        twin._firings = deque(maxlen=HISTORY)
        return twin


def _before(instant: float) -> float:
    return instant - max(1e-6, abs(instant) * 1e-15)
