"""The same strategies on virtual time: what would become of a workload, in seconds."""

from __future__ import annotations

from async_task_manager.simulation._run import SimulatedFailure, simulate
from async_task_manager.simulation.files import Recording, recorded, requests, trace
from async_task_manager.simulation.report import LimitUse, Report, Waits, compare, jain
from async_task_manager.simulation.workload import Job, generate

__all__ = [
    "Job",
    "LimitUse",
    "Recording",
    "Report",
    "SimulatedFailure",
    "Waits",
    "compare",
    "generate",
    "jain",
    "recorded",
    "requests",
    "simulate",
    "trace",
]
