"""A chain run ahead by its own instants alone.

No event loop and no waiting: time is an argument of the chain, so that an hour of it takes as long
as its starts and ends take to count.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from heapq import heapify, heappop, heappush
from math import inf
from typing import Any, TypeAlias

from async_task_manager.errors import TaskManagerError, TaskTimeout
from async_task_manager.strategies._batch import Batch
from async_task_manager.strategies.base import WallTime
from async_task_manager.strategies.chain import Chain
from async_task_manager.task import Outcome, Task

__all__ = ["end_of", "run_ahead"]

Gone: TypeAlias = "Callable[[Task[Any], Exception, float], object]"

STARTS_PER_TURN = 64
"""As many as a manager starts in one turn of its loop: what begins together is stamped together."""


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
                heappush(ends, (end_of(chain, task, now, lasts(task)), numbers, task))
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


def end_of(chain: Chain, task: Task[Any], now: float, seconds: float) -> float:
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
