"""Every error that this library raises of its own accord.

    TaskManagerError
    ├── InvalidValue (ValueError)         a parameter or a piece of metadata is out of range
    │   ├── TaskTooLarge                  no wait could ever admit this cost
    │   └── UnknownProvider               pinned to a provider that the router doesn't have
    ├── InvalidType (TypeError)           a parameter or a piece of metadata has the wrong type
    ├── InvalidState (RuntimeError)       refused because of what has happened before
    │   ├── NotRunning                    needs a manager that was started
    │   ├── ManagerClosed                 the manager takes no more tasks
    │   ├── QueueFull                     as many tasks are queued as ``max_queued`` allows
    │   └── StrategyInUse                 a strategy belongs to one chain, a chain to one manager
    ├── StrategyError (RuntimeError)      a strategy raised, or broke the contract; carries its name
    ├── TaskRejected                      a strategy refused the task for good; carries ``until``
    │   └── CircuitOpen                   a circuit breaker is open
    ├── TaskDropped                       it had to leave a full queue
    ├── QueueTimeout (TimeoutError)       not started within ``queue_timeout``
    ├── DeadlineExceeded (TimeoutError)   not finished by ``deadline``
    ├── TaskTimeout (TimeoutError)        ran longer than ``run_timeout``
    ├── StoreError                        a file or service that keeps messages or results failed
    │   ├── SendFailed                    messages were not sent; says which, and why
    │   ├── StoreCorrupt                  a file is damaged; it was refused and left as it is
    │   └── LeaseLost                     the message was not acknowledged in time: it is another's
    ├── MissingExtra (ImportError)        an optional dependency isn't installed; says what to do
    ├── Deadlock (RuntimeError)           in `testing`: tasks wait, and nothing can ever wake one
    │
    │   raised by the work, to tell the strategies what happened:
    ├── RateLimited                       a server said "too many requests"; carries ``retry_after``
    └── NonRetryable                      another attempt would fail as well: don't retry

What the work itself raises reaches whoever waits unchanged; it never becomes one of these.
"""

from __future__ import annotations

from datetime import datetime
from math import inf

__all__ = [
    "CircuitOpen",
    "DeadlineExceeded",
    "InvalidState",
    "InvalidType",
    "InvalidValue",
    "LeaseLost",
    "ManagerClosed",
    "MissingExtra",
    "NonRetryable",
    "NotRunning",
    "QueueFull",
    "QueueTimeout",
    "RateLimited",
    "SendFailed",
    "StoreCorrupt",
    "StoreError",
    "StrategyError",
    "StrategyInUse",
    "TaskDropped",
    "TaskManagerError",
    "TaskRejected",
    "TaskTimeout",
    "TaskTooLarge",
    "UnknownProvider",
]


class TaskManagerError(Exception):
    """The root of the tree above."""


class InvalidValue(TaskManagerError, ValueError):
    """A value is out of range; the message names the thing, the value and the range."""


class TaskTooLarge(InvalidValue):
    """The task costs more than a limit can ever hold, so that waiting would never end."""


class UnknownProvider(InvalidValue):
    """The task is pinned to a provider that the router doesn't have."""


class InvalidType(TaskManagerError, TypeError):
    """A value has the wrong type; the message names the thing, the value and what is expected."""


class InvalidState(TaskManagerError, RuntimeError):
    """The call makes no sense in the present state; the message says which call would."""


class NotRunning(InvalidState):
    """The call waits for work to be done, and the manager was never started."""


class ManagerClosed(InvalidState):
    """The manager was closed and takes no more tasks."""


class QueueFull(InvalidState):
    """As many tasks are queued as ``max_queued`` allows; ``await manager.put()`` waits for room."""


class StrategyInUse(InvalidState):
    """The strategy belongs to another chain, or the chain to another manager.

    A limit that two managers counted apart would hold for neither.
    """


class StrategyError(TaskManagerError, RuntimeError):
    """A strategy raised or broke the contract; the cause is chained, the strategy named."""


class TaskRejected(TaskManagerError):
    """A strategy refused the task for good.

    Raised by ``ready_at`` of a limit that fails fast. In a router's branch it only closes
    that branch until ``until``: chain time in seconds, later than now; None: until something
    changes.
    """

    def __init__(self, message: str = "the task was rejected", until: float | None = None) -> None:
        super().__init__(message)
        self.until = until


class CircuitOpen(TaskRejected):
    """A circuit breaker is open, and refuses at once; ``until``: chain time of its next probe."""

    def __init__(
        self, message: str = "the circuit breaker is open", until: float | None = None
    ) -> None:
        super().__init__(message, until)


class TaskDropped(TaskManagerError):
    """The queue was full, and the ``overflow`` policy chose this task to leave it."""


class QueueTimeout(TaskManagerError, TimeoutError):
    """The task did not start within its ``queue_timeout``, or before a hold's ``not_after``."""


class DeadlineExceeded(TaskManagerError, TimeoutError):
    """The task's deadline passed before it was done; queued, it never ran; running, it was
    cancelled.
    """


class TaskTimeout(TaskManagerError, TimeoutError):
    """The task ran longer than its ``run_timeout`` and was cancelled."""


class StoreError(TaskManagerError):
    """What keeps messages or results durably failed: the disk is full, the file stays locked, the
    service can't be reached. What was asked for was not done, unless the message says otherwise.
    """


class SendFailed(StoreError):
    """Messages of a batch were not sent: ``errors`` by their position in it; ``ids`` has the ids of
    those that were, and None for the others.
    """

    def __init__(self, ids: list[str | None], errors: dict[int, Exception]) -> None:
        first = next(iter(errors.values()))
        super().__init__(f"{len(errors)} of {len(ids)} messages were not sent: {first}")
        self.ids = ids
        self.errors = errors


class StoreCorrupt(StoreError):
    """A file is damaged. It was refused and left as it is; the message says what can be done."""

    def __init__(self, path: object, damage: str) -> None:
        super().__init__(
            f"{path} is damaged ({damage.strip()}) and was left as it is. Stop whatever uses it, "
            f"and restore a backup, or save what can still be read:\n"
            f"    sqlite3 {path} .recover | sqlite3 rescued.db"
        )
        self.path = path


class LeaseLost(StoreError):
    """The message was not acknowledged or extended in time: it is another receiver's by now."""


class MissingExtra(TaskManagerError, ImportError):
    """An optional dependency is missing; the message is the command that installs it."""

    def __init__(self, extra: str, missing: str) -> None:
        super().__init__(f"{missing} is missing: pip install 'async-task-manager[{extra}]'")
        self.extra = extra


class RateLimited(TaskManagerError):
    """The work was told to slow down, as by HTTP 429; to be raised by the work itself.

    A `RetryStrategy` runs the task again, a `CooldownStrategy` pauses its key.

    Args:
        message: For people.
        retry_after: Until when nothing should be sent: seconds from now (at least 0, finite), or
            an aware datetime; None: the server didn't say.

    Raises:
        InvalidValue: seconds are negative, NaN or infinite, or the datetime is naive.
        InvalidType: it is something else.
    """

    def __init__(
        self,
        message: str = "too many requests",
        *,
        retry_after: float | datetime | None = None,
    ) -> None:
        super().__init__(message)
        if isinstance(retry_after, datetime):
            if retry_after.utcoffset() is None:
                raise InvalidValue(
                    f"retry_after must be aware: {retry_after!r} doesn't say in which time zone"
                )
        elif retry_after is not None:
            if isinstance(retry_after, bool) or not isinstance(retry_after, int | float):
                raise InvalidType(
                    f"retry_after must be seconds, an aware datetime or None, not {retry_after!r}"
                )
            if not 0 <= retry_after < inf:
                raise InvalidValue(
                    f"retry_after must be a finite number of seconds, at least 0, "
                    f"not {retry_after!r}"
                )
        self.retry_after: float | datetime | None = retry_after


class NonRetryable(TaskManagerError):
    """Another attempt would fail as well; raised by the work, or a base of an error of its own.

    No `RetryStrategy` retries it, whatever its ``retry_on`` says.
    """
