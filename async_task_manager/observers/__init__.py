"""Ready-made observers for `TaskManager.subscribe`: logging, OpenTelemetry, Prometheus; and a
progress bar.

What an observer needs is imported when it is made; where it is missing, `MissingExtra` says how to
install it.
"""

from async_task_manager.observers.log import LogObserver
from async_task_manager.observers.otel import OtelObserver
from async_task_manager.observers.progress import track
from async_task_manager.observers.prometheus import PrometheusObserver

__all__ = ["LogObserver", "OtelObserver", "PrometheusObserver", "track"]
