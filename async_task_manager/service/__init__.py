"""Functions offered to many users over HTTP, and shared fairly.

```python
service = TaskService(strategy, store="sqlite:///tasks.db")


@service.task
async def summarize(text: str) -> str: ...
```

`atm serve app:service` serves it.
"""

from async_task_manager.errors import MissingExtra

try:
    from async_task_manager.service.service import TaskService
except ModuleNotFoundError as error:
    if error.name is None or error.name.startswith("async_task_manager"):
        raise
    raise MissingExtra("web", error.name) from error

__all__ = ["TaskService"]
