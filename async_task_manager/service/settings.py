"""The bounds and times of a service, in one place."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from async_task_manager._validate import number, whole

__all__ = ["Settings"]


@dataclass(slots=True)
class Settings:
    """What can be set; `TaskService` tells what each means."""

    path: Path
    result_ttl: float
    max_results: int
    max_result_bytes: int
    max_store_bytes: int
    max_queued: int
    max_body_bytes: int
    max_interruptions: int
    threads: int
    grace: float
    queue: str | None = None

    def __post_init__(self) -> None:
        number("result_ttl", self.result_ttl, above=0)
        number("grace", self.grace, at_least=0)
        for name, least in {
            "max_results": 0,
            "max_result_bytes": 1,
            "max_store_bytes": 1,
            "max_queued": 1,
            "max_body_bytes": 1,
            "max_interruptions": 1,
            "threads": 1,
        }.items():
            value: Any = getattr(self, name)
            whole(name, value, at_least=least)
