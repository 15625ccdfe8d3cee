"""A worker: messages from a queue through a chain of strategies to a handler."""

from async_task_manager.worker._stats import WorkerStats
from async_task_manager.worker._worker import Worker

__all__ = ["Worker", "WorkerStats"]
