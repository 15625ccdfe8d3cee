"""What tests of strategies and of programs on top of them need."""

from __future__ import annotations

from async_task_manager.testing.conformance import check_strategy
from async_task_manager.testing.virtual_time import (
    Deadlock,
    VirtualTimeLoop,
    run_virtual,
)

__all__ = ["Deadlock", "VirtualTimeLoop", "check_strategy", "run_virtual"]
