"""What an observer sees: a record for each thing that happens to a task, or to a limit.

    Queued ─┬─> Started ─┬─> Finished            it ran to an end: success, failure, cancel
            │     ^      └─> Retried ─┐
            │     └───────────────────┤          it goes back to the queue for another attempt
            ├─────────────────────────┤
            └─> Rejected | Expired | Finished    it never ran (again): refused, too late, cancelled

Exactly one of Finished, Rejected and Expired ends a task's records. A task that is refused at
the door, before it was ever queued, has a Rejected alone; where ``add_task`` raises, none.
"""

from __future__ import annotations

import inspect
import logging
from collections import deque
from collections.abc import Callable, Hashable, Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeAlias

from async_task_manager.errors import InvalidType
from async_task_manager.task import Task, TaskState

if TYPE_CHECKING:
    from async_task_manager.strategies.base import Limit

__all__ = [
    "Event",
    "Expired",
    "Finished",
    "Observer",
    "Queued",
    "Rejected",
    "Retried",
    "StageClosed",
    "StageOpened",
    "Started",
]

logger = logging.getLogger("async_task_manager")


@dataclass(frozen=True, slots=True)
class Queued:
    """The task was accepted. Told in the context of whoever called ``add_task``."""

    at: float
    """Chain time, in seconds."""
    task: Task[Any]


@dataclass(frozen=True, slots=True)
class Started:
    """The work's first instruction runs. Told in the context in which the work runs; of an item in
    a batch, in a copy of its own.
    """

    at: float
    task: Task[Any]
    attempt: int
    """1 for the first."""
    waited: float
    """Seconds since it was queued, or since the attempt before ended."""


@dataclass(frozen=True, slots=True)
class Retried:
    """An attempt ended, and the task is queued for another."""

    at: float
    task: Task[Any]
    attempt: int
    """The one that ended."""
    error: BaseException | None
    """What it raised; None: it is its result that somebody didn't like."""
    duration: float | None
    """Seconds that it ran; None: it never reached its first instruction."""


@dataclass(frozen=True, slots=True)
class Finished:
    """The task succeeded, failed or was cancelled."""

    at: float
    task: Task[Any]
    state: TaskState
    """succeeded, failed or cancelled."""
    error: BaseException | None
    duration: float | None
    """Seconds that the last attempt ran; None: it didn't, since the task was cancelled before."""


@dataclass(frozen=True, slots=True)
class Rejected:
    """A strategy refused the task for good, or failed."""

    at: float
    task: Task[Any]
    error: BaseException


@dataclass(frozen=True, slots=True)
class Expired:
    """The task could not start in time."""

    at: float
    task: Task[Any]
    error: BaseException


@dataclass(frozen=True, slots=True)
class StageClosed:
    """A limit is used up, and a task waits for it from now on."""

    at: float
    stage: Limit
    key: Hashable
    """For which key of the limit; None where it has none."""
    branch: str | None
    """The branch of a router that the limit stands in; None: it stands in the chain itself."""
    until: float
    """Chain time at which it opens if nothing else happens; inf: only an event opens it."""


@dataclass(frozen=True, slots=True)
class StageOpened:
    """No task waits for the limit any more."""

    at: float
    stage: Limit
    key: Hashable
    branch: str | None


Event: TypeAlias = (
    Queued | Started | Retried | Finished | Rejected | Expired | StageClosed | StageOpened
)
Observer: TypeAlias = Callable[[Event], object]
Turn: TypeAlias = "tuple[Limit, Hashable, str | None, float | None]"
"""A limit, the key, the branch, and until when it is closed; None: nothing waits there."""


class Observers(dict[object, Observer]):
    """Whoever observes one manager. Empty it is false, which is all that the hot path asks."""

    def __init__(self) -> None:
        super().__init__()
        self._untold: deque[Event] = deque()
        self._telling = False
        self._closed: dict[tuple[int, Hashable], StageClosed] = {}

    def add(self, observer: Observer) -> object:
        """The token under which the observer is kept; one that was added twice is told twice.

        It hears at once what is closed, or it would hear of openings alone.
        """
        if not callable(observer) or inspect.iscoroutinefunction(observer):
            raise InvalidType(f"an observer must be a plain callable(record), not {observer!r}")
        token = object()
        self[token] = observer
        for record in tuple(self._closed.values()):
            self._tell_one(observer, record)
        return token

    def forget(self) -> None:
        """Nobody observes any more: what was closed is not known from here on."""
        self._closed.clear()

    def tell(self, record: Event) -> None:
        """Tells everyone, each in the order of events: what an observer causes comes after."""
        self._untold.append(record)
        if self._telling:
            return
        self._telling = True
        try:
            while self._untold:
                record = self._untold.popleft()
                for observer in tuple(self.values()):
                    self._tell_one(observer, record)
        finally:
            self._telling = False

    @staticmethod
    def _tell_one(observer: Observer, record: Event) -> None:
        try:
            observer(record)
        except (KeyboardInterrupt, SystemExit):
            raise
        except BaseException:  # a CancelledError, too: it would pass for one of the work
            logger.exception("an observer raised: %r, told of %s", observer, type(record).__name__)

    def started(self, task: Task[Any], now: float) -> None:
        """The task's first instruction of this attempt runs."""
        run = task._run
        assert run is not None
        since = run.finished if run.attempt > 1 else task._created
        self.tell(Started(now, task, run.attempt, now - (now if since is None else since)))

    def retried(self, task: Task[Any], error: BaseException | None, now: float) -> None:
        """The attempt is over, and the chain has the task again, unless it refused it by now."""
        if task._state == "queued":
            self.tell(Retried(now, task, task.attempt, error, _duration(task, now)))

    def concluded(self, task: Task[Any], state: TaskState, value: Any, now: float) -> None:
        """The outcome is final."""
        if state == "rejected":
            self.tell(Rejected(now, task, value))
        elif state == "expired":
            self.tell(Expired(now, task, value))
        else:
            # Cancelled in the queue, it may have an earlier attempt behind it.
            duration = _duration(task, now) if task._state == "running" else None
            self.tell(Finished(now, task, state, value if state == "failed" else None, duration))

    def turned(self, turns: Iterable[Turn], now: float) -> None:
        """Tells which of these limits closed or opened since they were last looked at."""
        for limit, key, branch, until in tuple(turns):
            if not self:
                return  # the last one left on hearing of the one before
            place = (id(limit), key)
            if until is None:
                if self._closed.pop(place, None) is not None:
                    self.tell(StageOpened(now, limit, key, branch))
            elif until > now and place not in self._closed:
                closed = self._closed[place] = StageClosed(now, limit, key, branch, until)
                self.tell(closed)


def _duration(task: Task[Any], now: float) -> float | None:
    started = task._run.started if task._run is not None else None
    return None if started is None else now - started
