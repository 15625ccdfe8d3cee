"""What will happen if nothing else happens: when a task starts, and what a change would bring."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any, TypeAlias

from async_task_manager._ahead import end_of, run_ahead
from async_task_manager._validate import number
from async_task_manager.errors import InvalidType
from async_task_manager.strategies._batch import Batch
from async_task_manager.strategies._clocks import shown_at
from async_task_manager.strategies._snapshot import snapshot_of
from async_task_manager.strategies.chain import Chain
from async_task_manager.task import Outcome, Task

__all__ = ["Durations", "DurationsSpec", "Forecast", "WhatIf", "clock_words", "look"]

DurationsSpec: TypeAlias = "Mapping[str, float] | Callable[[Task[Any]], float] | None"

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
        ends[real] = max(now, end_of(twin, ghost, since, lasts(real)))
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
            ends[real] = end_of(twin, ghost, at, lasts(ghost))

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
