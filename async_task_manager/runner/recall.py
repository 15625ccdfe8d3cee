"""Starts of an earlier run still count in the windows of the limits."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, TypeAlias

from async_task_manager.config import FlowConfig, ProviderConfig
from async_task_manager.config.tables import RateTable
from async_task_manager.errors import TaskManagerError
from async_task_manager.rates import parse_rate
from async_task_manager.strategies import Chain, Limit, ProviderRouterStrategy
from async_task_manager.task import Outcome, Task

__all__ = ["reach", "recall"]

Held: TypeAlias = "list[tuple[Limit, Any]]"

DAY = 86_400.0


def reach(config: FlowConfig) -> float:
    """Seconds after which a start counts in no window any more: that of the longest, or a day where
    a strategy doesn't tell.
    """
    return max((_reach(provider) for provider in config.providers), default=0.0)


def _reach(provider: ProviderConfig) -> float:
    longest = 0.0
    for table in provider.rates:
        if isinstance(table, RateTable):
            rate = parse_rate(table.rate)
            slack = provider.slack if table.slack is None else table.slack
            # A calendar's period may be longer than its mean: a month, a day when clocks go back.
            longest = max(longest, rate.seconds + slack + (2 * DAY if rate.calendar else 0.0))
        else:
            longest = max(longest, DAY)
    return longest


def recall(records: Iterable[Mapping[str, Any]], chain: Chain) -> None:
    """Charges the limits of a chain, which has not started yet, with the starts of a journal.

    Each at the instant at which it was: before chain time 0, which is now. None of them is a
    sample for a limit that learns.
    """
    now = time.time()
    chain.set_wall_offset(now, 0.0)
    held: dict[str, Held] = {}
    instant = -float("inf")
    for record in records:
        instant = max(instant, min(record["at"] - now, 0.0))  # a clock may have been set since
        if "start" in record:
            id = str(record["start"])
            _release(held.pop(id, []), instant)
            held[id] = list(_charge(record, chain, instant))
        else:
            for limit, grant in held.get(str(record["settle"]), []):
                if isinstance(limit.cost, str) and limit.cost in record["actual"]:
                    limit.settle(grant, record["actual"][limit.cost], instant)
            _release(held.pop(str(record["settle"]), []), instant)
    for grants in held.values():
        _release(grants, 0.0)


def _charge(record: Mapping[str, Any], chain: Chain, instant: float) -> Iterator[tuple[Limit, Any]]:
    task = Task(_nothing, {**record["keys"], "cost": record["cost"]})
    for limit in _limits(chain, record["provider"]):
        try:
            key, cost = limit.key_of(task), limit.cost_of(task)
        except TaskManagerError:
            continue  # the config was changed, and counts what it did not count then
        grant = limit.acquire(key, cost, instant)
        limit.started(grant, instant)
        yield limit, grant


def _limits(chain: Chain, provider: str) -> Iterator[Limit]:
    for stage in chain.stages:
        if isinstance(stage, Limit):
            yield stage
        elif isinstance(stage, ProviderRouterStrategy) and provider in stage:
            yield from stage[provider].limits


def _release(held: Held, instant: float) -> None:
    for limit, grant in held:
        limit.release(grant, Outcome("cancelled", instant, instant), instant)


async def _nothing() -> None:
    """What is only counted does nothing."""
