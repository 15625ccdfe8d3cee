"""What the package exports, and what importing it costs."""

from __future__ import annotations

import json
import subprocess
import sys

import async_task_manager

EXPORTS = (
    "Chain",
    "CircuitOpen",
    "DeadlineExceeded",
    "InvalidState",
    "InvalidType",
    "InvalidValue",
    "LeaseLost",
    "ManagerClosed",
    "MissingExtra",
    "NonRetryable",
    "NotRunning",
    "QueueFull",
    "QueueTimeout",
    "RateLimited",
    "SendFailed",
    "StoreCorrupt",
    "StoreError",
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
)
CORE = {"errors", "events", "manager", "strategies", "task"}  # and private modules


def loaded_by(statement: str) -> set[str]:
    """The modules that a statement loads in a fresh interpreter."""
    program = (
        f"import json, sys; before = set(sys.modules); {statement}; "
        "print(json.dumps(sorted(set(sys.modules) - before)))"
    )
    ran = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    )
    return set(json.loads(ran.stdout))


def test_exports_are_pinned() -> None:
    assert tuple(sorted(async_task_manager.__all__)) == EXPORTS
    assert all(hasattr(async_task_manager, name) for name in EXPORTS)


def test_importing_the_package_loads_the_core_alone() -> None:
    loaded = loaded_by("import async_task_manager")
    foreign = {name.partition(".")[0] for name in loaded} - sys.stdlib_module_names
    assert foreign <= {"async_task_manager", "typing_extensions"}
    own = {name.split(".")[1] for name in loaded if name.startswith("async_task_manager.")}
    assert own >= {"errors", "manager", "strategies", "task"}
    assert {name for name in own - CORE if not name.startswith("_")} == set()
