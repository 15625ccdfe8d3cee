"""What will happen if nothing else happens: a chain run ahead by its own instants alone.

No event loop and no waiting: time is an argument of the chain, so that an hour of it takes as long
as its starts and ends take to count.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime
from heapq import heapify, heappop, heappush
from math import inf
from typing import Any, TypeAlias

from async_task_manager._validate import number
from async_task_manager.errors import InvalidType, TaskManagerError, TaskTimeout
from async_task_manager.strategies._batch import Batch
from async_task_manager.strategies._clocks import shown_at
from async_task_manager.strategies._snapshot import snapshot_of
from async_task_manager.strategies.base import WallTime
from async_task_manager.strategies.chain import Chain
from async_task_manager.task import Outcome, Task

__all__ = ["Durations", "DurationsSpec", "Forecast", "WhatIf", "clock_words", "look", "run_ahead"]

DurationsSpec: TypeAlias = "Mapping[str, float] | Callable[[Task[Any]], float] | None"

Gone: TypeAlias = "Callable[[Task[Any], Exception, float], object]"

STARTS_PER_TURN = 64
"""As many as a manager starts in one turn of its loop: what begins together is stamped together."""

STRANGERS = 10_000
"""Starts in a row of tasks that a source made, after which nothing else is expected to come: a
schedule goes on for ever."""

MAX_NAMES = 1_000
"""Names whose durations are kept apart; there may be as many names as tasks."""

MEMORY = 50
"""How many of the last runs a mean goes by."""


# ---- durations ----------------------------------------------------------------------------------


class Durations:
    """How long work of each name took so far: a running mean of the last fifty or so."""

    __slots__ = ("_all", "_means")

    def __init__(self) -> None:
        self._means: dict[str, list[float]] = {}
        self._all = [0.0, 0.0]

    def learn(self, task: Task[Any], seconds: float) -> None:
        """An attempt of the task ran so long."""
        name = kind_of(task)
        mean = self._means.get(name)
        if mean is None:
            mean = [0.0, 0.0]
            if len(self._means) < MAX_NAMES:
                self._means[name] = mean
        for one in (mean, self._all):
            if one[0] < MEMORY:
                one[0] += 1
            one[1] += (seconds - one[1]) / one[0]

    def of(self, task: Task[Any]) -> float:
        """Seconds that the task may take: as its namesakes, else as all, else 0."""
        return self._means.get(kind_of(task), self._all)[1]


def kind_of(task: Task[Any]) -> str:
    """What the task has in common with others like it: its name without a number at the end."""
    options = task._options
    if options is not None and options.name is not None:
        return options.name.rstrip("0123456789")
    work = getattr(task._work, "func", task._work)  # a partial goes by its function
    return getattr(work, "__qualname__", "task")


def durations_by(given: DurationsSpec, learnt: Durations) -> Callable[[Task[Any]], float]:
    """Who says how long a task takes: whoever asks, or what was learnt.

    Raises:
        InvalidType: what is given neither maps names to seconds nor can be called.
        InvalidValue: a duration is NaN, infinite or negative; of a function, when it is asked.
    """
    if given is None:
        return learnt.of
    if callable(given):
        return lambda task: number(f"the duration of {task!r}", given(task), at_least=0)
    if not isinstance(given, Mapping):
        raise InvalidType(f"durations must map names to seconds, or be callable, not {given!r}")
    seconds = {
        name.rstrip("0123456789"): number(f"durations[{name!r}]", value, at_least=0)
        for name, value in given.items()
    }
    return lambda task: seconds.get(kind_of(task), learnt.of(task))


# ---- running ahead ------------------------------------------------------------------------------


def run_ahead(
    chain: Chain,
    now: float,
    *,
    lasts: Callable[[Task[Any]], float],
    running: Iterable[tuple[Task[Any], float]] = (),
    arrivals: Iterable[tuple[float, Task[Any]]] = (),
    on_start: Callable[[Task[Any], float], object] | None = None,
    on_end: Callable[[Task[Any], Outcome, float], object] | None = None,
    on_gone: Gone | None = None,
    outcome_of: Callable[[Task[Any], float, float], Outcome] | None = None,
    over: Callable[[float, float], bool] | None = None,
    until: float = inf,
) -> float:
    """Runs the chain until nothing is left to happen, or ``over``; gives the instant then.

    Args:
        chain: Its own, or a snapshot: tasks change their states, and no work is run.
        now: Chain time to begin with.
        lasts: Seconds that a task runs, asked at its start.
        running: Tasks that hold permits already, with the instants at which they end.
        arrivals: (instant, new task), in order of time; taken in one by one.
        on_start: Told of each first instruction; of a batch, for each of its members.
        on_end: Told of each end of an attempt that is final.
        on_gone: Told of tasks that are refused, rejected or expired.
        outcome_of: (task, started, now) -> how the attempt ended; None: it succeeds.
        over: Asked once nothing more happens at an instant, with that and the next, whether it was
            the last.
        until: What would happen later doesn't.

    In the order in which a manager does it: what may start at an instant, a few at a time, with
    their first instructions; what ends then; what comes then.
    """
    pull, next_wake = chain.pull, chain.next_wake
    numbers = 0
    ends: list[tuple[float, int, Task[Any]]] = []
    for task, end in running:
        numbers += 1
        ends.append((end, numbers, task))
    heapify(ends)
    stream: Iterator[tuple[float, Task[Any]]] = iter(arrivals)
    coming, newcomer = next(stream, (inf, None))
    wake = inf if ends and ends[0][0] <= now else now  # what is overdue is about to end
    while True:
        if wake <= now:
            batch = []
            while (task := pull(now)) is not None:  # type: ignore[assignment]  # narrowed here
                batch.append(task)
                if len(batch) == STARTS_PER_TURN:
                    break
            for task in batch:
                task._run.started = now  # type: ignore[union-attr]  # it was handed out
                chain.begun(task, now)
                for each in task.members if isinstance(task, Batch) else (task,):
                    each._run.started = now  # type: ignore[union-attr]  # as above
                    if on_start is not None:
                        on_start(each, now)
                numbers += 1
                heappush(ends, (_end_of(chain, task, now, lasts(task)), numbers, task))
        while ends and ends[0][0] <= now:
            task = heappop(ends)[2]
            _finish(chain, task, now, on_end, outcome_of)
        while coming <= now:
            assert newcomer is not None
            _take_in(chain, newcomer, now, on_gone)
            coming, newcomer = next(stream, (inf, None))
        if chain.out:
            _let_go(chain, now, on_gone)
        wake = next_wake(now)
        if wake <= now:
            continue
        instant = wake if wake < coming else coming
        if ends and ends[0][0] < instant:
            instant = ends[0][0]
        if over is not None and over(now, instant):
            return now
        if instant > until or instant == inf:
            return now if instant == inf else until
        now = instant


def _take_in(chain: Chain, task: Task[Any], now: float, on_gone: Gone | None) -> None:
    try:
        chain.add(task, now)
    except Exception as error:
        if on_gone is None:
            raise
        task._state = "rejected"
        on_gone(task, error, now)


def _let_go(chain: Chain, now: float, on_gone: Gone | None) -> None:
    if on_gone is None:
        chain.out.clear()
    while chain.out:
        on_gone(*chain.out.popleft(), now)  # type: ignore[misc]  # it was cleared otherwise


def _end_of(chain: Chain, task: Task[Any], now: float, seconds: float) -> float:
    """When the attempt ends: by itself, or when its time is up."""
    options = task._options
    end = now + seconds
    if options is not None:
        if options.run_timeout is not None:
            end = min(end, now + options.run_timeout)
        if options.deadline is not None:
            deadline = options.deadline
            if isinstance(deadline, WallTime):
                deadline -= chain._offset or 0.0
            end = min(end, max(now, deadline))
    return end


def _finish(
    chain: Chain,
    task: Task[Any],
    now: float,
    on_end: Callable[[Task[Any], Outcome, float], object] | None,
    outcome_of: Callable[[Task[Any], float, float], Outcome] | None,
) -> None:
    run = task._run
    assert run is not None and run.started is not None
    run.finished = now
    if isinstance(task, Batch):
        chain.finish(task, Outcome("success", run.started, now), now)
        for member in tuple(task.members):
            _finish(chain, member, now, on_end, outcome_of)
        return
    options = task._options
    if outcome_of is not None:
        outcome = outcome_of(task, run.started, now)
    elif (
        options is not None
        and options.run_timeout is not None
        and now - run.started >= options.run_timeout
    ):
        outcome = Outcome("failure", run.started, now, TaskTimeout(f"{task!r} ran too long"))
    else:
        outcome = Outcome("success", run.started, now)
    try:
        again = chain.finish(task, outcome, now)
    except TaskManagerError:
        raise
    except Exception as error:
        raise chain.blame(error) from error
    if not again:
        # Not `_end`, which would close work that belongs to the original.
        task._state = "succeeded" if outcome.kind == "success" else "failed"
        if on_end is not None:
            on_end(task, outcome, now)


# ---- what a manager tells -----------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Forecast:
    """When a task will start and end, in epoch seconds; None: nobody can know, since it waits for
    an event from outside, or will be refused.
    """

    starts_at: float | None
    ends_at: float | None
    queue_ends_at: float | None = None
    """When the last of all tasks that are there now ends. `eta` doesn't look that far."""

    def shifted(self, by: float) -> Forecast:
        """The same in another time."""
        given = (self.starts_at, self.ends_at, self.queue_ends_at)
        return Forecast(*[None if at is None else at + by for at in given])

    def __str__(self) -> str:
        if self.starts_at is None or self.ends_at is None:
            text = "nothing foreseeable starts it"
        else:
            text = f"starts at {clock_words(self.starts_at)}, ends at {clock_words(self.ends_at)}"
        if self.queue_ends_at is not None:
            text += f"; the queue ends at {clock_words(self.queue_ends_at)}"
        return text


NOTHING = "nothing"


@dataclass(frozen=True, slots=True)
class WhatIf:
    """The forecasts for one task and for the queue, without a change and with it."""

    task: str
    """The name of the task; "nothing", where none is queued."""
    before: Forecast
    after: Forecast

    def __str__(self) -> str:
        starts = _shift(self.before.starts_at, self.after.starts_at)
        ends = _shift(self.before.queue_ends_at, self.after.queue_ends_at)
        task = "nothing waits" if self.task == NOTHING else f"{self.task} starts {starts}"
        return f"{task}; the queue ends {ends}"


def _shift(before: float | None, after: float | None) -> str:
    if before is after is None:
        return "nobody knows when, as before"
    if before is None or after is None:
        one = "nobody knows when" if after is None else f"at {clock_words(after)}"
        return f"{one}, instead of {'nobody knows when' if before is None else clock_words(before)}"
    if before == after:
        return f"at {clock_words(after)} all the same"
    way = "earlier" if after < before else "later"
    gain = (
        f"{abs(after - before):.3g}" if abs(after - before) < 100 else f"{abs(after - before):.0f}"
    )
    return f"at {clock_words(after)}, {gain} s {way}"


def clock_words(epoch: float) -> str:
    """The instant as a clock here shows it; with the date where that isn't today's."""
    moment = shown_at(epoch)
    return (
        f"{moment:%H:%M:%S}"
        if moment.date() == datetime.now().date()
        else f"{moment:%b %d %H:%M:%S}"
    )


def look(
    chain: Chain,
    now: float,
    running: Mapping[Task[Any], float],
    lasts: Callable[[Task[Any]], float],
    task: Task[Any] | None,
    *,
    to_the_end: bool,
    change: Callable[[Chain], object] | None = None,
) -> tuple[Task[Any] | None, Forecast]:
    """Runs a snapshot ahead, for one task or for the one that starts last; in chain time.

    Args:
        chain: It is left as it is.
        now: Chain time.
        running: The tasks that run, and since when.
        lasts: Seconds that a task runs.
        task: The queued or running one to look for; None: that which starts last.
        to_the_end: Whether to go on until all tasks have ended, or only until this one started.
        change: What is done to the snapshot first.
    """
    twin, ghosts = snapshot_of(chain, running)
    if change is not None:
        change(twin)
    originals = {ghost: real for real, ghost in ghosts.items()}
    starts = dict(running)
    left = dict.fromkeys(ghost for ghost in ghosts.values() if type(ghost) is not Batch)
    ends: dict[Task[Any], float] = {}
    until = now
    for real, since in running.items():
        ghost = ghosts[real]
        ends[real] = max(now, _end_of(twin, ghost, since, lasts(real)))
        if ghost._run is not None and ghost._run.started is None:
            ghost._run.started = now  # handed out just now: its first step comes next
            if ghost._run.grants is not None:
                twin.begun(ghost, now)

    strangers = 0

    def started(ghost: Task[Any], at: float) -> None:
        nonlocal strangers
        real = originals.get(ghost)
        strangers = 0 if real is not None else strangers + 1
        if real is not None:
            starts.setdefault(real, at)
            ends[real] = _end_of(twin, ghost, at, lasts(ghost))

    def ended(ghost: Task[Any], outcome: Outcome, at: float) -> None:
        nonlocal until
        if left.pop(ghost, 0) is None:
            until = at
            ends[originals[ghost]] = at

    def gone(ghost: Task[Any], error: Exception, at: float) -> None:
        left.pop(ghost, None)

    def over(at: float, following: float) -> bool:
        return not left or (not to_the_end and task in starts) or strangers > STRANGERS

    run_ahead(
        twin,
        now,
        lasts=lasts,
        # The members of a batch end with it.
        running=[(ghosts[real], ends[real]) for real in running if real._run.grants is not None],  # type: ignore[union-attr]  # it runs
        on_start=started,
        on_end=ended,
        on_gone=gone,
        over=over,
    )
    if task is None:
        queued = [real for real in starts if real not in running]
        task = queued[-1] if queued else None
    forecast = Forecast(
        None if task is None else starts.get(task),
        None if task is None else ends.get(task),
        until if to_the_end and not left else None,
    )
    return task, forecast
