"""A request on its way, and the result that becomes of it."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from async_task_manager.runner.failures import HttpFailure

if TYPE_CHECKING:
    from async_task_manager.runner.client import Answer
    from async_task_manager.runner.requests import Request
    from async_task_manager.task import Task

__all__ = ["Entry"]


class Entry:
    """A request that has no result yet."""

    __slots__ = ("actual", "cost", "cut", "keys", "place", "ran", "request", "size")

    def __init__(self, request: Request, size: int, cost: Any, keys: dict[str, Any]) -> None:
        self.request = request
        self.size = size
        self.cost = cost
        self.keys = keys
        self.ran = 0.0
        """Seconds of all attempts that have ended."""
        self.actual: dict[str, float] | None = None
        self.cut = False
        """Cancelled while it was on its way, and not while it waited for another attempt."""
        self.place = 0
        """Of the request in the record."""

    def result(self, task: Task[Answer]) -> dict[str, Any]:
        """What became of it, once its task has ended."""
        waited = None
        if task.created_at is not None and task.finished_at is not None:
            waited = round(max(0.0, task.finished_at - task.created_at - self.ran), 6)
        result: dict[str, Any] = {
            "id": self.request.id,
            "status": task.state,
            "provider": task.provider,
            "attempts": task.attempt,
            "http_status": None,
            "waited": waited,
            "duration": _seconds(task.started_at, task.finished_at),
            "created_at": _iso(task.created_at),
            "started_at": _iso(task.started_at),
            "finished_at": _iso(task.finished_at),
            "cost": self.cost,
            "actual_cost": self.actual,
        }
        if task.state == "cancelled":
            return result | {"error": "cancelled while it ran"}
        error = task.exception()
        if error is None:
            answer = task.result()
            return result | {"http_status": answer.status, "response": answer.content}
        if isinstance(error, HttpFailure):
            return result | {
                "http_status": error.status,
                "error": str(error),
                "response": error.content,
            }
        return result | {"error": f"{type(error).__name__}: {error}".rstrip(": ")}


def _seconds(since: float | None, until: float | None) -> float | None:
    return None if since is None or until is None else round(until - since, 6)


def _iso(instant: float | None) -> str | None:
    if instant is None:
        return None
    return datetime.fromtimestamp(instant, UTC).isoformat(timespec="milliseconds")
