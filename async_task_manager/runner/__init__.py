"""Batch runs: a file of HTTP requests through rate-limited providers."""

from __future__ import annotations

from async_task_manager.runner.batch import Batch
from async_task_manager.runner.report import Summary
from async_task_manager.runner.requests import BadRequest, Request, parse_request

__all__ = ["BadRequest", "Batch", "Request", "Summary", "parse_request"]
