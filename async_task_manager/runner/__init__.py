"""Batch runs: a file of HTTP requests through rate-limited providers."""

from __future__ import annotations

from async_task_manager.runner.batch import Batch
from async_task_manager.runner.ledger import Ledger, OutputError, journal_of, open_ledger
from async_task_manager.runner.report import Summary
from async_task_manager.runner.requests import BadRequest, Request, parse_request
from async_task_manager.runner.rows import Rows
from async_task_manager.runner.source import Lines

__all__ = [
    "BadRequest",
    "Batch",
    "Ledger",
    "Lines",
    "OutputError",
    "Request",
    "Rows",
    "Summary",
    "journal_of",
    "open_ledger",
    "parse_request",
]
