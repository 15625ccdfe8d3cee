"""Events as OpenTelemetry spans that follow whoever added the task."""

from __future__ import annotations

import time
import weakref
from typing import TYPE_CHECKING, Any, Final

from async_task_manager.errors import MissingExtra
from async_task_manager.events import (
    Event,
    Expired,
    Finished,
    Rejected,
    Retried,
    Started,
)

if TYPE_CHECKING:
    from opentelemetry.context import Context
    from opentelemetry.trace import Span, TracerProvider

    from async_task_manager.task import Task

__all__ = ["OtelObserver"]

NAMES: Final = {
    # The messaging conventions, https://opentelemetry.io/docs/specs/semconv/messaging/
    "system": "messaging.system",
    "destination": "messaging.destination.name",
    "operation": "messaging.operation.name",
    "operation_type": "messaging.operation.type",
    "id": "messaging.message.id",
    "error": "error.type",
    # What they have no name for.
    "name": "async_task_manager.task.name",
    "attempt": "async_task_manager.task.attempt",
    "state": "async_task_manager.task.state",
    "provider": "async_task_manager.task.provider",
    "waited": "async_task_manager.task.waited",
}
"""The one place that knows what the conventions call things; they are not stable yet."""


class OtelObserver:
    """Makes a span of every attempt, as a child of the span in which ``add_task`` was called.

    Args:
        destination: What the queue is called in the spans.
        tracer_provider: None: the global one.

    The span of an attempt, ``process <destination>``, lasts from the first instruction to the end,
    and is the current one in the work, so that the spans of an HTTP client become its children.
    A task that never ran (cancelled, rejected, expired) gets a span ``settle <destination>`` over
    the time it waited.

    Raises:
        MissingExtra: opentelemetry-api is not installed.
    """

    def __init__(
        self, destination: str = "tasks", tracer_provider: TracerProvider | None = None
    ) -> None:
        try:
            from opentelemetry import context, trace
        except ImportError as error:
            raise MissingExtra("otel", "opentelemetry-api") from error
        self._context, self._trace = context, trace
        self._tracer = trace.get_tracer("async_task_manager", tracer_provider=tracer_provider)
        self._destination = destination
        # What is still open when somebody unsubscribes goes with its task.
        self._spans: weakref.WeakKeyDictionary[Task[Any], Span] = weakref.WeakKeyDictionary()

    def __call__(self, record: Event) -> None:
        """Opens or ends a span."""
        if isinstance(record, Started):
            self._open(record)
        elif isinstance(record, Retried):
            self._end(record.task, "retried", record.error)
        elif isinstance(record, Finished):
            known = self._end(record.task, record.state, record.error)
            if not known and record.duration is None:  # else it ran before anybody observed
                self._settle(record.task, record.at, record.state, record.error)
        elif isinstance(record, Rejected | Expired):
            state = "rejected" if isinstance(record, Rejected) else "expired"
            self._settle(record.task, record.at, state, record.error)

    def _open(self, record: Started) -> None:
        # We are in the attempt's own context: the caller's span is current, and what is attached
        # here ends with the attempt.
        attributes: dict[str, Any] = {
            NAMES["attempt"]: record.attempt,
            NAMES["waited"]: record.waited,
        }
        if record.task.provider is not None:
            attributes[NAMES["provider"]] = record.task.provider
        span = self._start(record.task, "process", attributes)
        self._spans[record.task] = span
        self._context.attach(self._trace.set_span_in_context(span))

    def _end(self, task: Task[Any], state: str, error: BaseException | None) -> bool:
        span = self._spans.pop(task, None)
        if span is None:
            return False
        self._close(span, state, error)
        return True

    def _settle(self, task: Task[Any], at: float, state: str, error: BaseException | None) -> None:
        """A task that ends without running: one span, from the time it was queued to now."""
        waited = 0.0 if task._lane is None else at - (task._created or 0.0)
        parent = None
        if task._context is not None:
            # A copy: a context can't be entered twice, and many tasks share one.
            parent = task._context.copy().run(self._context.get_current)
        span = self._start(
            task,
            "settle",
            {NAMES["waited"]: waited},
            parent,
            start_time=time.time_ns() - int(waited * 1e9),
        )
        self._close(span, state, error)

    def _start(
        self,
        task: Task[Any],
        operation: str,
        attributes: dict[str, Any],
        parent: Context | None = None,
        start_time: int | None = None,
    ) -> Span:
        return self._tracer.start_span(
            f"{operation} {self._destination}",
            parent,
            kind=self._trace.SpanKind.CONSUMER,
            start_time=start_time,
            attributes={
                NAMES["system"]: "async_task_manager",
                NAMES["destination"]: self._destination,
                NAMES["operation"]: operation,
                NAMES["operation_type"]: operation,
                NAMES["id"]: str(task.id),
                NAMES["name"]: task.name,
                **attributes,
            },
        )

    def _close(self, span: Span, state: str, error: BaseException | None) -> None:
        span.set_attribute(NAMES["state"], state)
        if error is not None:
            span.set_attribute(NAMES["error"], type(error).__qualname__)
            if isinstance(error, Exception):
                span.record_exception(error)
            span.set_status(self._trace.Status(self._trace.StatusCode.ERROR, _words(error)))
        span.end()


def _words(error: BaseException) -> str:
    try:
        return str(error)
    except Exception:  # an error that cannot even be shown is still one
        return type(error).__name__
