"""Work that must respect limits: a chain of small policies decides when each task starts."""

from async_task_manager.errors import (
    CircuitOpen,
    DeadlineExceeded,
    InvalidState,
    InvalidType,
    InvalidValue,
    ManagerClosed,
    MissingExtra,
    NonRetryable,
    NotRunning,
    QueueFull,
    QueueTimeout,
    RateLimited,
    StrategyError,
    StrategyInUse,
    TaskDropped,
    TaskManagerError,
    TaskRejected,
    TaskTimeout,
    TaskTooLarge,
    UnknownProvider,
)
from async_task_manager.manager import TaskManager
from async_task_manager.strategies.chain import Chain
from async_task_manager.task import Task, current_task

__all__ = [
    "Chain",
    "CircuitOpen",
    "DeadlineExceeded",
    "InvalidState",
    "InvalidType",
    "InvalidValue",
    "ManagerClosed",
    "MissingExtra",
    "NonRetryable",
    "NotRunning",
    "QueueFull",
    "QueueTimeout",
    "RateLimited",
    "StrategyError",
    "StrategyInUse",
    "Task",
    "TaskDropped",
    "TaskManager",
    "TaskManagerError",
    "TaskRejected",
    "TaskTimeout",
    "TaskTooLarge",
    "UnknownProvider",
    "current_task",
]
