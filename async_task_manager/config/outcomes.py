"""What a config says about failures: when a request is tried again, and a provider left alone."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, Final

from async_task_manager.config.problems import meant
from async_task_manager.config.stages import make_strategy
from async_task_manager.errors import NonRetryable, RateLimited
from async_task_manager.strategies import (
    CircuitBreakerStrategy,
    Feedback,
    Limit,
    RetryAt,
    RetryBudget,
    RetryStrategy,
    decorrelated,
    exponential,
    fibonacci,
    fixed,
    linear,
)

if TYPE_CHECKING:
    from async_task_manager.task import Outcome, Task

__all__ = ["RetriesStrategy", "make_breaker", "make_retry"]

BACKOFFS: Final[Mapping[str, Callable[..., Any]]] = {
    "exponential": exponential,
    "linear": linear,
    "fixed": fixed,
    "fibonacci": fibonacci,
    "decorrelated": decorrelated,
}
BUDGET: Final = {"ratio": 1.0, "min_per_second": 1.0}
"""By default, at most half of what is sent are retries: each pays the limits in any case."""


def make_retry(table: Mapping[str, Any]) -> RetryStrategy:
    """The strategy that a table describes: its parameters, ``backoff`` and ``budget`` as tables.

    Raises:
        ValueError: something in it is wrong.
    """
    options = dict(table)
    if "backoff" in options:
        options["backoff"] = _backoff(options["backoff"])
    budget = options.setdefault("budget", BUDGET)
    if budget is False:
        del options["budget"]
    else:
        options["budget"] = _made("budget", RetryBudget, budget)
    made = make_strategy({"strategy": "retry", **options})
    assert isinstance(made, RetryStrategy)
    return made


def make_breaker(table: Mapping[str, Any]) -> Limit:
    """The breaker that a table describes. What the request itself is at fault for, and being asked
    to slow down, are no failures of the provider.

    Raises:
        ValueError: something in it is wrong.
    """
    made = make_strategy({"strategy": "circuit_breaker", "is_failure": _is_failure, **table})
    assert isinstance(made, CircuitBreakerStrategy)
    return made


def _is_failure(error: Exception) -> bool:
    return not isinstance(error, NonRetryable | RateLimited)


def _backoff(table: Any) -> Any:
    options = {"kind": table} if isinstance(table, str) else table
    if not isinstance(options, dict):
        raise ValueError(f"backoff must be a table or one of {', '.join(BACKOFFS)}, not {table!r}")
    options = {"kind": "exponential", **options}
    kind = options.pop("kind")
    if kind not in BACKOFFS:
        hint = meant(str(kind), BACKOFFS) or f"; there are {', '.join(BACKOFFS)}"
        raise ValueError(f"there is no backoff {kind!r}{hint}")
    return _made("backoff", BACKOFFS[kind], options)


def _made(name: str, make: Callable[..., Any], options: Any) -> Any:
    if not isinstance(options, dict):
        raise ValueError(f"{name} must be a table, not {options!r}")
    try:
        return make(**options)
    except (TypeError, ValueError) as error:
        raise ValueError(f"{name}: {error}") from None


class RetriesStrategy(Feedback):
    """What failed is tried again as its provider's own retry says."""

    def __init__(self, retries: Mapping[str, RetryStrategy]) -> None:
        self.retries: dict[str, RetryStrategy] = {}
        """By provider; to be changed by `add`."""
        self._unbudgeted: dict[str, RetryStrategy] = {}
        for name, retry in retries.items():
            self.add(name, retry)

    def add(self, provider: str, retry: RetryStrategy) -> None:
        """From now on, this holds for that provider."""
        self.retries[provider] = retry
        # A budget keeps failures from becoming a storm. Where a provider only asks to slow down,
        # its cooldown does that; a budget would make failures of what just came too early.
        twin = copy.copy(retry)
        twin.budget = None
        self._unbudgeted[provider] = twin

    def review(self, task: Task[Any], outcome: Outcome, now: float) -> RetryAt | None:
        """What the retry of the provider that had this attempt says."""
        slower = isinstance(outcome.error, RateLimited)
        retry = (self._unbudgeted if slower else self.retries).get(task.provider or "")
        return None if retry is None else retry.review(task, outcome, now)

    def __repr__(self) -> str:
        return f"RetriesStrategy({self.retries!r})"
