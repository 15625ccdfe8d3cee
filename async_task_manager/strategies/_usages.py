"""How much of each limit of a chain is in use, by name."""

from __future__ import annotations

from collections.abc import Iterable
from itertools import islice
from typing import Any

from async_task_manager.strategies.base import Limit, Router, Usage

__all__ = ["MAX_KEYS", "usages"]

MAX_KEYS = 100
"""Keys of one limit whose usage is told: it is for people, and there may be a million."""


def usages(stages: Iterable[Limit | Router], now: float) -> dict[str, Usage | dict[Any, Any]]:
    """As `Chain.usage` tells it."""
    found: dict[str, Usage | dict[Any, Any]] = {}

    def put(name: str, usage: Usage | dict[Any, Any]) -> None:
        number = sum(other == name or other.startswith(f"{name} #") for other in found)
        found[f"{name} #{number + 1}" if number else name] = usage

    for stage in stages:
        if isinstance(stage, Router):
            for branch in stage.all_branches(None):
                put(branch.name, usages(branch.limits, now))
        elif stage.key is None:
            put(repr(stage), stage.usage(None, now))
        else:
            keys = islice(stage.keys(), MAX_KEYS)
            put(repr(stage), {key: stage.usage(key, now) for key in keys})
    return found
