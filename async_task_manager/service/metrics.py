"""What Prometheus reads: the manager's counters, and the store's size."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from prometheus_client import CollectorRegistry, Gauge

from async_task_manager.observers.prometheus import PrometheusObserver

if TYPE_CHECKING:
    from async_task_manager.service.core import Core
    from async_task_manager.task import Task

__all__ = ["Metrics"]


class Metrics:
    """A registry of the service's own, and the observer that fills it."""

    def __init__(self, core: Core) -> None:
        self.registry = CollectorRegistry()
        self.observer = PrometheusObserver(self.registry, job=_function)
        common: dict[str, Any] = {"namespace": "async_task_manager", "registry": self.registry}
        kept = Gauge("service_kept_tasks", "Ended tasks in the store", **common)
        kept.set_function(lambda: core.store.kept)
        size = Gauge("service_kept_bytes", "Bytes of their arguments and results", **common)
        size.set_function(lambda: core.store.kept_bytes)
        paused = Gauge("service_paused", "1 while nothing is started", **common)
        paused.set_function(lambda: core.manager.paused)


def _function(task: Task[Any]) -> str:
    name: str = task.metadata["task"]
    return name
