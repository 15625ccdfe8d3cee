"""Events as Prometheus counters, gauges and histograms."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from async_task_manager._validate import whole
from async_task_manager.errors import InvalidType, MissingExtra
from async_task_manager.events import (
    Event,
    Expired,
    Finished,
    Queued,
    Rejected,
    Retried,
    StageClosed,
    StageOpened,
    Started,
)

if TYPE_CHECKING:
    from prometheus_client import CollectorRegistry

    from async_task_manager.task import Task

__all__ = ["PrometheusObserver"]

BUCKETS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 300, 1800, 7200)
"""Seconds: from an idle manager to a queue of hours."""

OTHER = "other"


def job_of(task: Task[Any]) -> str:
    """The task's name without its number: the function that it calls."""
    return task.name.removesuffix(f"-{task.id}")


class PrometheusObserver:
    """Counts what happens to tasks and measures how long they waited and ran.

    Args:
        registry: Where the metrics are registered; None: the global registry.
        namespace: What every metric's name begins with.
        job: Gives a task's label ``job``; by default the name of its function.
        max_jobs: Distinct labels ``job``; what comes later is counted as "other", so that names
            made from data can't fill the server's memory. At least 1.
        buckets: Upper bounds of the histograms, in seconds.

    | metric | labels | is |
    |---|---|---|
    | `tasks_added_total` | job | accepted tasks |
    | `tasks_started_total` | job | attempts begun |
    | `tasks_retried_total` | job | attempts that are to be repeated |
    | `tasks_ended_total` | job, state | outcomes |
    | `tasks_queued`, `tasks_running` | | what waits and what runs, of the tasks seen so far |
    | `task_wait_seconds` | job | from queued, or the attempt before, to the first instruction |
    | `task_duration_seconds` | job | how long an attempt ran |
    | `stages_closed` | stage, branch | keys of a limit for which tasks wait |

    Raises:
        MissingExtra: prometheus-client is not installed.
    """

    def __init__(
        self,
        registry: CollectorRegistry | None = None,
        *,
        namespace: str = "async_task_manager",
        job: Callable[[Task[Any]], str] = job_of,
        max_jobs: int = 50,
        buckets: Sequence[float] = BUCKETS,
    ) -> None:
        try:
            from prometheus_client import REGISTRY, Counter, Gauge, Histogram
        except ImportError as error:
            raise MissingExtra("prometheus", "prometheus-client") from error
        if not callable(job):
            raise InvalidType(f"job must be a callable, not {job!r}")
        self._job = job
        self._max_jobs = whole("max_jobs", max_jobs, at_least=1)
        self._jobs: set[str] = set()
        self._waiting: set[int] = set()
        self._running: set[int] = set()
        common: dict[str, Any] = {
            "namespace": namespace,
            "registry": REGISTRY if registry is None else registry,
        }
        self._added = Counter("tasks_added", "Accepted tasks", ["job"], **common)
        self._started = Counter("tasks_started", "Attempts begun", ["job"], **common)
        self._retried = Counter("tasks_retried", "Attempts to be repeated", ["job"], **common)
        self._ended = Counter("tasks_ended", "Outcomes", ["job", "state"], **common)
        self._queue_length = Gauge("tasks_queued", "Tasks that wait", **common)
        self._run_length = Gauge("tasks_running", "Tasks that run", **common)
        common["labelnames"] = ["job"]
        common["buckets"] = tuple(buckets)
        self._wait = Histogram("task_wait_seconds", "Time in the queue", **common)
        self._duration = Histogram("task_duration_seconds", "Time an attempt ran", **common)
        del common["buckets"]
        common["labelnames"] = ["stage", "branch"]
        self._stages = Gauge("stages_closed", "Keys of a limit that tasks wait for", **common)

    def __call__(self, record: Event) -> None:
        """Counts one event."""
        if isinstance(record, StageClosed | StageOpened):
            gauge = self._stages.labels(type(record.stage).__name__, record.branch or "")
            gauge.inc(1 if isinstance(record, StageClosed) else -1)
            return
        job = self._label(record.task)
        self._move(record)
        if isinstance(record, Queued):
            self._added.labels(job).inc()
        elif isinstance(record, Started):
            self._started.labels(job).inc()
            self._wait.labels(job).observe(record.waited)
        else:
            if isinstance(record, Retried):
                self._retried.labels(job).inc()
            else:
                self._ended.labels(job, _state(record)).inc()
            duration = getattr(record, "duration", None)
            if duration is not None:
                self._duration.labels(job).observe(duration)

    def _label(self, task: Task[Any]) -> str:
        job = self._job(task)
        if job in self._jobs:
            return job
        if len(self._jobs) >= self._max_jobs:
            return OTHER
        self._jobs.add(job)
        return job

    def _move(self, record: Queued | Started | Retried | Finished | Rejected | Expired) -> None:
        # Sets of ids, not sums: a task that came before this observer must not count backwards.
        number = record.task.id
        self._waiting.discard(number)
        self._running.discard(number)
        if isinstance(record, Queued | Retried):
            self._waiting.add(number)
        elif isinstance(record, Started):
            self._running.add(number)
        self._queue_length.set(len(self._waiting))
        self._run_length.set(len(self._running))


def _state(record: Finished | Rejected | Expired) -> str:
    if isinstance(record, Finished):
        return record.state
    return "rejected" if isinstance(record, Rejected) else "expired"
