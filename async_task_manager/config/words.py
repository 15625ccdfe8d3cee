"""A config in plain words: what happens to a request, and how many a day the limits allow."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from math import inf

from async_task_manager.config.flow import FlowConfig, build_chain
from async_task_manager.config.outcomes import RetriesStrategy
from async_task_manager.config.provider import ProviderConfig
from async_task_manager.config.tables import RateTable
from async_task_manager.rates import parse_rate
from async_task_manager.strategies import (
    CircuitBreakerStrategy,
    Limit,
    ProviderRouterStrategy,
    TokenBucketStrategy,
)
from async_task_manager.strategies.base import BaseStrategy

__all__ = ["Pace", "in_words", "paces"]


@dataclass(frozen=True, slots=True)
class Pace:
    """What one limit of a provider allows in the long run."""

    label: str
    """The limit in the words of the file."""
    unit: str | None
    """What it counts; None: requests."""
    per_second: float
    key: str | None
    """It allows so much for each value of this field."""
    cost: float | None = None
    """What one request costs in the unit, where that is the same for all; None: it depends."""

    @property
    def requests(self) -> float:
        """Requests per second; inf: it depends on the requests."""
        if self.key is not None or self.cost is None:
            return inf
        return inf if self.cost == 0 else self.per_second / self.cost


def paces(provider: ProviderConfig) -> list[Pace]:
    """What each limit allows in the long run, its slack counted in."""
    return list(_paces(provider))


def _paces(provider: ProviderConfig) -> Iterator[Pace]:
    for table, limit in zip(provider.rates, provider.strategies(), strict=False):
        unit = limit.cost if isinstance(limit.cost, str) else None
        key = limit.key if isinstance(limit.key, str) else None
        estimate = provider.estimates.get(unit) if unit is not None else None
        cost = 1.0 if unit is None else None
        if estimate is not None and not estimate.fields and not estimate.per_char:
            cost = estimate.constant
        if isinstance(table, RateTable):
            rate = parse_rate(table.rate)
            slack = provider.slack if table.slack is None else table.slack
            seconds = rate.seconds + (slack if rate.calendar is None else 0.0)
            yield Pace(table.label, unit, rate.amount / seconds, key, cost)
        elif isinstance(limit, TokenBucketStrategy):
            yield Pace(table.label, unit, limit.rate, key, cost)


def in_words(config: FlowConfig) -> Iterator[str]:
    """Lines for a person who wants to know whether the file says what was meant."""
    yield "What happens to a request:"
    for number, stage in enumerate(build_chain(config.only_enabled()).stages, 1):
        for indent, line in enumerate(_stage(stage, config)):
            yield f"  {number}. {line}" if not indent else f"     {line}"
    off = [provider.name for provider in config.providers if not provider.enabled]
    if off:
        yield f"Switched off: {', '.join(off)}."
    yield ""
    yield "In the long run the limits allow:"
    total = 0.0
    width = max(len(provider.name) for provider in config.providers)
    for provider in config.only_enabled().providers:
        least = min(paces(provider), key=lambda pace: pace.requests, default=None)
        free = least is None or least.requests == inf
        total += inf if free or least is None else least.requests
        yield f"  {provider.name:{width}}  " + (
            f"as many requests as {provider.max_concurrent} at once are"
            if free or least is None
            else f"{_per_time(least.requests)}: {least.label} is what binds"
        )
        for pace in paces(provider):
            if pace.key is not None:
                yield f"  {'':{width}}  and {_amount(pace)} for each {pace.key} ({pace.label})"
            elif pace.cost is None:
                yield f"  {'':{width}}  and {_amount(pace)} ({pace.label}){_at_most(pace, least)}"
    if 0 < total < inf and len(config.only_enabled().providers) > 1:
        yield f"  {'all':{width}}  {_per_time(total)}"


def _stage(stage: BaseStrategy, config: FlowConfig) -> Iterator[str]:
    if isinstance(stage, ProviderRouterStrategy):
        yield f"It goes to a provider that has room at that moment; policy {config.policy!r}:"
        for provider in config.only_enabled().providers:
            yield f"{provider.name}: {', '.join(provider.labels)}"
            extra = [
                limit.describe()
                for limit in provider.strategies()[len(provider.labels) :]
                if isinstance(limit, CircuitBreakerStrategy)
            ]
            if provider.estimates:
                extra.append(f"cost estimated by {provider.cost}")
            if provider.settled:
                extra.append(f"settled by {', '.join(provider.settled.values())} of the answer")
            if extra:
                yield f"  {'; '.join(extra)}"
    elif isinstance(stage, RetriesStrategy):
        yield "What failed is tried again:"
        for name, retry in stage.retries.items():
            most = retry.max_rate_limited
            often = "for as long as it takes" if most is None else f"{most} times"
            yield f"{name}: up to {retry.max_attempts} attempts; what was answered by 429, {often}"
    elif isinstance(stage, Limit):
        yield f"{stage.describe().capitalize()}."
    else:
        # The first sentence of what it says of itself.
        words = " ".join((type(stage).__doc__ or repr(stage)).split())
        yield words.partition(". ")[0].removesuffix(".") + "."


def _per_time(rate: float) -> str:
    return f"{rate:.3g} requests/s, {rate * 3600:,.0f} an hour, {rate * 86_400:,.0f} a day"


def _amount(pace: Pace) -> str:
    return f"{pace.per_second * 60:,.4g} {pace.unit or 'requests'} a minute"


def _at_most(pace: Pace, least: Pace | None) -> str:
    if least is None or least.requests == inf:
        return ", by what requests cost"
    fits = pace.per_second / least.requests
    return f": it binds instead if a request costs more than {fits:,.4g} on average"
