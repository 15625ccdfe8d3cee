"""The same strategies on virtual time: what would become of a workload."""

from __future__ import annotations

import time
from array import array
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from datetime import datetime
from math import inf, nan
from typing import Any

from async_task_manager._ahead import run_ahead
from async_task_manager._validate import number, optional, whole
from async_task_manager.errors import InvalidState, InvalidType, InvalidValue
from async_task_manager.simulation._series import Series
from async_task_manager.simulation.report import Attempts, Report
from async_task_manager.simulation.workload import Job
from async_task_manager.strategies._snapshot import snapshot_of
from async_task_manager.strategies.base import BaseStrategy, Item
from async_task_manager.strategies.chain import Chain
from async_task_manager.task import Outcome, Task

__all__ = ["SimulatedFailure", "simulate"]


class SimulatedFailure(ConnectionError):
    """What an attempt raises that was to fail."""


class _Simulated(Task[None]):
    __slots__ = ("job", "place", "seat")

    job: Job
    place: int
    """Its number in the workload."""
    seat: int
    """The number of its present attempt."""


async def _nothing() -> None:
    """Nobody runs it."""


def simulate(
    strategy: BaseStrategy,
    workload: Iterable[Job],
    *,
    start: float | datetime | None = None,
    until: float | None = None,
    by: str | Callable[[dict[str, Any]], Any] = "priority",
    user: str | Callable[[dict[str, Any]], Any] = "user_id",
    seed: int = 0,
) -> Report:
    """What would become of the workload: who starts when, how long each waits, what each limit
    lets through.

    Args:
        strategy: A chain, or a strategy alone, in which nothing waits or runs. It is copied, and
            stays as it is.
        workload: Jobs, in order of ``at``; taken one by one, so that it may be long.
        start: The wall time at which it begins, epoch seconds or a datetime, for what goes by the
            calendar; None: now.
        until: Seconds after which it ends, whatever is left to do; None: when nothing is left
            that will happen.
        by: What classes there are in the report: a metadata field, or a function of metadata.
        user: Who is to be treated equally, in the same way.
        seed: Of the random numbers that strategies draw (jitter).

    Raises:
        InvalidState: tasks wait or run in the chain (`TaskManager.eta` is for those); or a
            strategy speaks the four methods only, and nobody knows what it would do.
        InvalidType, InvalidValue: a job is none, or before the one ahead of it.

    Some 10 microseconds per job.
    """
    own = Chain.of(strategy)
    if own.queued or own.running:
        raise InvalidState(f"{own!r} is in use; simulate a chain in which nothing waits or runs")
    optional(number, "until", until, above=0)
    copy, _ = snapshot_of(own, seed=whole("seed", seed, at_least=0))
    if own is not strategy and getattr(strategy, "_private", None) is not own:
        own.absorb()  # it was made for this call, and must not keep the strategy
    return _Simulation(copy, by, user).run(workload, _epoch(start), until)


class _Simulation:
    def __init__(self, chain: Chain, by: Any, user: Any) -> None:
        self.chain = chain
        self.class_of = _reader(by)
        self.user_of = _reader(user)
        self.arrived = array("d")
        self.ids: list[Any] = []
        self.classes = _Names()
        self.users = _Names()
        self.providers = _Names()
        self.ends: Counter[str] = Counter()
        self.refusals: Counter[str] = Counter()
        self.attempts = Attempts()
        self.series = Series(chain)
        self.began = 0.0
        # In a chain that makes batches, every job is one of those that are collected.
        self.work = Item(None) if chain.batches is not None else _nothing
        self.exhausted = False

    def run(self, workload: Iterable[Job], start: float, until: float | None) -> Report:
        self.began = start
        self.chain.set_wall_offset(start, 0.0)

        series = self.series
        last = inf if until is None else until

        def over(now: float, following: float) -> bool:
            if following >= series.next:
                series.note_until(min(following, last))
            # A schedule goes on for ever.
            return self.exhausted and self.ends.total() == len(self.arrived)

        ended = run_ahead(
            self.chain,
            0.0,
            lasts=_lasts,
            arrivals=self.arrivals(workload),
            on_start=self.started,
            on_end=self.ended,
            on_gone=self.gone,
            outcome_of=self.outcome,
            over=over,
            until=last,
        )
        series.note(ended)
        return Report.of(self)

    def arrivals(self, workload: Iterable[Job]) -> Iterator[tuple[float, Task[Any]]]:
        arrived, ids = self.arrived, self.ids
        classes, users = self.classes, self.users
        before = 0.0
        for place, job in enumerate(workload):
            if not isinstance(job, Job):
                raise InvalidType(f"a workload is made of Jobs, not {job!r}")
            if not before <= job.at < inf:
                raise InvalidValue(
                    f"jobs must come in order of time: {job!r} comes after one at {before}"
                )
            if not job.duration >= 0:  # NaN isn't, either
                raise InvalidValue(f"a duration must be at least 0 seconds: {job!r}")
            before = job.at
            task = _Simulated(self.work, job.metadata)
            task.job, task.place = job, place
            arrived.append(job.at)
            ids.append(place if job.id is None else job.id)
            classes.note(self.class_of(job.metadata))
            users.note(self.user_of(job.metadata))
            yield job.at, task
        self.exhausted = True

    # Tasks that a strategy makes by itself (a schedule) use up limits, and are no part of the
    # report.

    def started(self, task: Any, now: float) -> None:
        if task.__class__ is not _Simulated:
            return
        attempts = self.attempts
        task.seat = len(attempts.start)
        attempts.task.append(task.place)
        attempts.start.append(now)
        attempts.end.append(nan)
        run: Any = task._run
        self.providers.note(run.provider)

    def outcome(self, task: Any, began: float, now: float) -> Outcome:
        if task.__class__ is not _Simulated:
            return Outcome("success", began, now)
        job: Job = task.job
        run: Any = task._run
        self.attempts.end[task.seat] = now
        if job.actual is not None and run.grants is not None:  # a batch has its members'
            self.chain.settle(task, job.actual, now)
        if job.failures >= run.attempt:
            return Outcome("failure", began, now, SimulatedFailure("as the workload has it"))
        return Outcome("success", began, now)

    def ended(self, task: Any, outcome: Outcome, now: float) -> None:
        if task.__class__ is _Simulated:
            self.ends[task._state] += 1

    def gone(self, task: Any, error: Exception, now: float) -> None:
        if task.__class__ is not _Simulated:
            return
        self.ends[task._state] += 1
        self.refusals[f"{type(error).__name__}"] += 1


class _Names:
    """A name for each of many things: numbers, and what they stand for."""

    def __init__(self) -> None:
        self.numbers = array("i")
        self.known: dict[Any, int] = {}

    def note(self, name: Any) -> None:
        number = self.known.get(name)
        if number is None:
            number = self.known[name] = len(self.known)
        self.numbers.append(number)

    def names(self) -> list[Any]:
        return list(self.known)


def _lasts(task: Any) -> float:
    """A call takes as long as the longest of its jobs; what nobody planned, no time."""
    if task.__class__ is _Simulated:
        return task.job.duration
    return max((member.job.duration for member in getattr(task, "members", ())), default=0.0)


def _reader(field: Any) -> Callable[[dict[str, Any] | None], Any]:
    if callable(field):
        return lambda metadata: field(metadata or {})
    if not isinstance(field, str):
        raise InvalidType(f"by and user must be metadata fields or functions, not {field!r}")
    return lambda metadata: None if metadata is None else metadata.get(field)


def _epoch(start: float | datetime | None) -> float:
    if isinstance(start, datetime):
        return start.timestamp()
    return time.time() if start is None else number("start", start)
