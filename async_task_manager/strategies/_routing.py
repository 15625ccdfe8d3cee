"""Which of several open providers a router prefers."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from fractions import Fraction
from math import exp2, inf
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, TypeAlias, cast

from async_task_manager.errors import InvalidType

if TYPE_CHECKING:
    from async_task_manager.strategies.provider_router import Provider
    from async_task_manager.task import Outcome, Task

__all__ = ["KEYS", "Load", "Policy", "as_told", "measure", "spread"]

Policy: TypeAlias = "str | Callable[[Task, Sequence[Provider]], Iterable[Provider]]"

SMOOTHING = 0.25
"""The least weight of a new latency against the average so far."""

UNKNOWN = 0.5
"""Seconds that a provider is taken to need of which nothing is known but that it fails."""


class Load:
    """What a router knows of one provider."""

    __slots__ = ("credit", "last", "latency", "running", "sampled")

    def __init__(self) -> None:
        self.running = 0
        self.last = -inf
        """The latest start."""
        self.latency: float | None = None
        """Seconds that it needs, a moving average; None: nobody knows."""
        self.sampled = 0.0
        """When that was last measured."""
        self.credit: int | Fraction = 0
        """Smooth weighted round robin: whoever has most, with its weight, is next."""


def _weighted(provider: Provider, load: Load, now: float, half_life: float) -> float:
    # It may be a Fraction, which sorts just as well, and is exact.
    return cast("float", -(load.credit + provider.exact_weight))


def _least_loaded(provider: Provider, load: Load, now: float, half_life: float) -> float:
    return (load.running + 1) / provider.weight


def _fastest(provider: Provider, load: Load, now: float, half_life: float) -> float:
    # What is long ago may have changed. But one task at a time is enough to find that out.
    if load.latency is None:
        return inf if load.running else -1.0
    if load.running:
        return load.latency
    return load.latency * exp2((load.sampled - now) / half_life)


def _cheapest(provider: Provider, load: Load, now: float, half_life: float) -> float:
    return provider.price


def _earliest(provider: Provider, load: Load, now: float, half_life: float) -> float:
    return load.last


Key: TypeAlias = "Callable[[Provider, Load, float, float], float]"

KEYS: Mapping[str, Key | None] = MappingProxyType(
    {
        "ordered": None,
        "weighted": _weighted,
        "least_loaded": _least_loaded,
        "fastest": _fastest,
        "cheapest": _cheapest,
        "earliest": _earliest,
    }
)
"""By policy, what the smallest value of is preferred; ties by place."""


def as_told(given: object, providers: Sequence[Provider]) -> list[Provider]:
    """The providers in the order that a function gave; those that it left out come last."""
    found: list[Any] = list(given) if isinstance(given, Iterable) else [given]
    for one in found:
        if one not in providers:
            raise InvalidType(f"a policy must give some of {list(providers)!r}, not {given!r}")
    return found + [provider for provider in providers if provider not in found]


def spread(taken: Provider, others: Sequence[Provider], loads: Mapping[Provider, Load]) -> None:
    """Smooth weighted round robin, as in nginx: each gains its weight, the taken one pays for all.

    Those that were passed over gain nothing meanwhile, or they would get a burst once they are
    back.
    """
    for provider in (taken, *others):
        loads[provider].credit += provider.exact_weight
        loads[taken].credit -= provider.exact_weight


def measure(
    provider: Provider,
    outcome: Outcome,
    loads: Mapping[Provider, Load],
    now: float,
    half_life: float,
) -> None:
    """Takes the attempt into the provider's latency."""
    if outcome.started_at is None or outcome.kind == "cancelled":
        return
    load = loads[provider]
    seconds = outcome.finished_at - outcome.started_at
    if outcome.kind == "failure":
        # Who fails at once is not fast: that counts as twice the latency of the slowest other.
        known = [o.latency for p, o in loads.items() if p is not provider and o.latency is not None]
        seconds = max(seconds, 2 * max(known, default=UNKNOWN))
    seconds = min(seconds, 10 * half_life)
    if load.latency is None:
        load.latency = seconds
    else:
        share = max(SMOOTHING, 1 - exp2((load.sampled - now) / half_life))
        load.latency += share * (seconds - load.latency)
    load.sampled = now
