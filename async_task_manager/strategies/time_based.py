"""Not before a certain time; and again and again, at certain times."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from datetime import UTC, datetime, timedelta, tzinfo
from math import inf
from random import Random
from typing import TYPE_CHECKING, Any

from async_task_manager._validate import number, optional, whole
from async_task_manager.errors import InvalidType, InvalidValue
from async_task_manager.strategies._calendar import Calendar
from async_task_manager.strategies._clocks import zone_of
from async_task_manager.strategies._cron import Cron
from async_task_manager.strategies._fields import check_field, said
from async_task_manager.strategies._schedules import (
    Every,
    Firing,
    Once,
    Options,
    Schedule,
    Trigger,
)
from async_task_manager.strategies.base import Hold, Source, WallTime

if TYPE_CHECKING:
    from async_task_manager.task import Task

__all__ = ["Firing", "Schedule", "TimeBasedStrategy", "instant_of"]

EPOCH_FROM = 1e8
"""Numbers below, up to March 1973, are delays that somebody meant: 5, 3600, a month of seconds."""

CORRECTION = 10_800.0
"""Seconds by which a clock that steps back was wrong before, rather than set: three hours, as for
cron. Runs up to where it was have not come yet, after all."""

AT_ONCE = 256
"""Schedules that fire in one pull: 100,000 that are due at once must not stall the loop."""


class TimeBasedStrategy(Hold, Source):
    """A task starts at the time that it names, or later; one that names none isn't held. And work
    that is scheduled starts by itself, once or again and again: see `schedule`.

    The time is, in ``metadata["valid_after"]``:

    - an aware `datetime`, or a naive one, which is local time as the system has it (in the hour
      that the clocks repeat, ``fold`` says which of the two; a time that they skip is read as
      PEP 495 does: with the offset that applied before the change, so 02:30 means 03:30);
    - epoch seconds, at least 1e8 (a smaller number is surely a delay, and refused);
    - a `timedelta` from now: from ``add_task``, or from the manager's first start if that is
      later. Negative: now.

    Datetimes and epoch seconds follow the wall clock, when it is set and when the machine was
    asleep; a timedelta counts seconds that don't jump.

    Args:
        field: Where the time is: a metadata name, or a callable that gets the task. None or
            missing: no hold.
        seed: Of the generator for jitter; None: a random one.

    Raises:
        InvalidValue, InvalidType: at construction, and from `not_before`, and so from
            ``add_task``, for a time that is none of these.

    Held tasks cost nothing until they are due: O(log n) for each in the chain's calendar. So it is
    with schedules.
    """

    uses_wall_time = True

    def __init__(
        self,
        *,
        field: str | Callable[[Task], object] = "valid_after",
        seed: int | None = None,
    ) -> None:
        check_field("field", field)
        self._field = field
        self._random = Random(optional(whole, "seed", seed, at_least=0))
        self.wall_offset: float | None = None
        """Epoch seconds at chain time 0, by the clock as it is now; None: not known yet."""
        self._schedules: dict[Schedule, None] = {}
        self._new: dict[Schedule, None] = {}
        """Schedules whose first run is not known yet: they have not been told the time."""
        self._by_wall: Calendar[Schedule] = Calendar(_is_due)
        self._by_seconds: Calendar[Schedule] = Calendar(_is_due)

    # ---- tasks that name a time -------------------------------------------------------------

    def not_before(self, task: Task, now: float) -> float:
        """The time that the task names: `WallTime`, or chain time for a timedelta or for none."""
        value = said(self._field, task)
        if value is None:
            return now
        return instant_of(f"the time before which {task!r} must not start", value, now)

    # ---- work that comes round --------------------------------------------------------------

    def schedule(
        self,
        work: Callable[[], Awaitable[Any]],
        *,
        at: datetime | timedelta | float | None = None,
        every: timedelta | float | None = None,
        cron: str | None = None,
        timezone: str | tzinfo = "UTC",
        start: datetime | float | None = None,
        end: datetime | float | None = None,
        jitter: float = 0,
        misfire_grace_time: float | None = None,
        coalesce: bool = True,
        max_running: int = 1,
        metadata: dict[str, Any] | None = None,
    ) -> Schedule:
        """Has work run by itself, as tasks of the chain with this metadata: once, at equal
        distances, or as a cron expression says.

        Args:
            work: A callable without arguments that returns an awaitable, as for ``add_task``.
            at: A datetime (a naive one in ``timezone``), epoch seconds, or a timedelta from now.
            every: Seconds, at least 0.001, or a timedelta: that long from now for the first time,
                on a grid that never drifts. With ``start`` (the first one) or ``end`` it goes by
                the wall clock, else by seconds that don't jump.
            cron: Five fields (minute, hour, day of month, month, day of week), six with seconds
                first, or a name such as ``"@daily"``. Needs the extra ``cron``.
            timezone: An IANA name or a tzinfo: in whose clocks cron expressions and naive
                datetimes are read.
            start: No run before that: a datetime, or epoch seconds.
            end: No run after it.
            jitter: Seconds, at least 0: each run comes up to so much later, at random, but before
                the next, and not after ``end``.
            misfire_grace_time: Seconds, above 0. A run that could not start within them (the
                machine slept, the manager was stopped, the clock was set) is missed. None: it runs
                however late it is.
            coalesce: Whether one run stands for all that are due at the same time.
            max_running: How many runs may be queued or running at a time, at least 1: while there
                are so many, what is due is skipped.
            metadata: What the strategies read.

        Runs that were missed, coalesced or skipped are logged, and in the schedule's `history`.

        A time of a cron expression that the clocks skip comes at the end of the gap, and one that
        they repeat the first time; an expression that leaves the hours open goes by the time that
        passes. Naive datetimes are read as those that tasks name, but in ``timezone``.

        Raises:
            InvalidValue, InvalidType: a parameter is out of range or has the wrong type; not one
                of ``at``, ``every`` and ``cron`` is given; an expression that means no instant.
            MissingExtra: cronsim is not installed.
        """
        if not callable(work):
            raise InvalidType(
                "work that is scheduled must be a callable without arguments that returns an "
                f"awaitable, since a coroutine runs once: not {work!r}"
            )
        ways = {"at": at, "every": every, "cron": cron}
        given = [name for name, value in ways.items() if value is not None]
        if len(given) != 1:
            named = " and ".join(given) or "none"
            raise InvalidValue(f"a schedule needs one of at=, every= and cron=, not {named}")
        if not isinstance(coalesce, bool):
            raise InvalidType(f"coalesce must be True or False, not {coalesce!r}")
        if metadata is not None and not isinstance(metadata, dict):
            raise InvalidType(f"metadata must be a dict or None, not {metadata!r}")
        zone = zone_of(timezone)
        first = None if start is None else _moment("start", start, zone)
        last = inf if end is None else _moment("end", end, zone)
        if first is not None and first > last:
            raise InvalidValue(f"end must be later than start, {start!r}, not {end!r}")
        if at is not None and (start is not None or end is not None):
            raise InvalidValue("start and end bound runs that come again: they don't go with at=")
        by_wall = not isinstance(at, timedelta) and not (every and start is end is None)
        schedule = Schedule(
            self,
            _trigger(at, every, cron, zone, first),
            Options(
                work,
                None if metadata is None else dict(metadata),
                zone,
                first,
                last,
                number("jitter", jitter, at_least=0),
                optional(number, "misfire_grace_time", misfire_grace_time, above=0),
                coalesce,
                whole("max_running", max_running, at_least=1),
            ),
            by_wall=by_wall,
            random=self._random,
        )
        self._schedules[schedule] = None
        self.begin(schedule)
        return schedule

    @property
    def schedules(self) -> tuple[Schedule, ...]:
        """What is scheduled and has not ended."""
        return tuple(self._schedules)

    def begin(self, schedule: Schedule) -> None:
        """The schedule's next run is to be looked for, once it is known what time it is."""
        self._new[schedule] = None
        self.changed()

    def aim(self, schedule: Schedule) -> None:
        """The schedule is due at another instant now."""
        (self._by_wall if schedule.by_wall else self._by_seconds).push(schedule.due, schedule)

    def forget(self, schedule: Schedule) -> None:
        """The schedule has ended."""
        self._schedules.pop(schedule, None)
        self._new.pop(schedule, None)

    def next_due(self, now: float) -> float:
        """When the next schedule is due."""
        if not self._schedules:
            return inf
        offset = self.wall_offset
        for schedule in [s for s in self._new if offset is not None or not s.by_wall]:
            del self._new[schedule]
            schedule.begin(now + (offset or 0.0) if schedule.by_wall else now)
        wall = inf if offset is None else self._by_wall.next() - offset
        return min(wall, self._by_seconds.next())

    def emit(self, now: float) -> list[Task]:
        """The runs that are due."""
        tasks: list[Task] = []
        for _ in range(AT_ONCE):
            if self.next_due(now) > now:
                break
            offset = self.wall_offset or 0.0
            if self._by_wall.next() - offset <= now:
                tasks += self._by_wall.pop(inf).fire(now + offset)  # type: ignore[union-attr]  # it is due
            else:
                tasks += self._by_seconds.pop(inf).fire(now)  # type: ignore[union-attr]  # as above
        return tasks

    def set_wall_offset(self, offset: float, now: float) -> None:
        """Follows the wall clock: what it passes over is due, and nothing is due twice."""
        before, self.wall_offset = self.wall_offset, offset
        if before is not None and offset < before - CORRECTION:
            for schedule in self.schedules:
                if schedule.by_wall:
                    schedule.correct(now + offset)

    def awaits_wall_time(self, queued: int) -> bool:
        """Whether a schedule goes by the wall clock."""
        return any(schedule.by_wall for schedule in self._new) or self._by_wall.next() < inf

    def __repr__(self) -> str:
        given = "" if self._field == "valid_after" else f"field={self._field!r}"
        return f"{type(self).__name__}({given})"


def instant_of(what: str, value: object, now: float) -> float:
    """The time that a value names: `WallTime`, or chain time for a timedelta from ``now``.

    Raises:
        InvalidValue, InvalidType: it names none; the message says ``what`` it is for.
    """
    if isinstance(value, timedelta):
        return now + max(0.0, value.total_seconds())
    if isinstance(value, datetime):
        return WallTime(_epoch(value))
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise InvalidType(f"{what} must be a datetime, a timedelta or epoch seconds, not {value!r}")
    if number(what, value) < EPOCH_FROM:
        raise InvalidValue(
            f"{what}, in epoch seconds, must be at least {EPOCH_FROM:.0e}, not {value!r}; "
            f"a delay from now is timedelta(seconds={value!r})"
        )
    return WallTime(value)


def _epoch(moment: datetime) -> float:
    try:
        return moment.timestamp()
    except (OverflowError, ValueError, OSError):
        # Local time at the rim of the calendar or of what the system converts: ages away, so that
        # the hours between zones make no difference.
        return moment.replace(tzinfo=UTC).timestamp()


def _moment(name: str, value: object, zone: tzinfo) -> float:
    """Epoch seconds of a moment; a naive datetime is in the zone."""
    if isinstance(value, timedelta):
        raise InvalidType(f"{name} must be a datetime or epoch seconds, not {value!r}")
    if isinstance(value, datetime) and value.tzinfo is None:
        value = value.replace(tzinfo=zone)
    return float(instant_of(name, value, 0.0))


def _trigger(
    at: object, every: object, cron: str | None, zone: tzinfo, start: float | None
) -> Callable[[float], Trigger]:
    """What gives the trigger, once it is told what time it is."""
    if cron is not None:
        expression = Cron(cron, zone)
        return lambda time: expression
    if every is not None:
        seconds = every.total_seconds() if isinstance(every, timedelta) else every
        period = number("every", seconds, at_least=0.001)
        return lambda time: Every(period, time + period if start is None else start)
    if isinstance(at, timedelta):
        delay = max(0.0, at.total_seconds())
        return lambda time: Once(time + delay)
    moment = _moment("at", at, zone)
    return lambda time: Once(moment)


def _is_due(instant: float, schedule: Schedule) -> bool:
    return schedule.due == instant
