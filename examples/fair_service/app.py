"""An expensive function, shared fairly: `atm serve app:service` from this folder serves it."""

import asyncio

from async_task_manager import Chain
from async_task_manager.service import TaskService
from async_task_manager.strategies import (
    ConcurrentLimitStrategy,
    FairShareStrategy,
    PriorityQueueStrategy,
)

service = TaskService(
    Chain(
        PriorityQueueStrategy(),
        FairShareStrategy(window_seconds=3600),  # whoever asked less in the last hour goes first
        ConcurrentLimitStrategy(1),  # one at a time
    ),
    store="sqlite:///tasks.db",
    queue="sqlite:///messages.db",  # POST /messages puts work here, for `worker.py`
)


@service.task
async def limited_f(x: str) -> dict[str, str]:
    """Takes its time, and returns its argument in capitals."""
    await asyncio.sleep(0.1)  # a model, a report, a call to an API
    return {"x": x, "capitals": x.upper()}
