"""One provider of a config: where it is, what limits it, what its requests cost."""

from __future__ import annotations

import re
from functools import cached_property
from typing import Annotated, Any
from urllib.parse import urlsplit

from async_task_manager.config.costs import Estimate, checked_path, parse_estimate
from async_task_manager.config.outcomes import make_breaker, make_retry
from async_task_manager.config.secrets import check_header, expanded, secrets_of
from async_task_manager.config.tables import AnyLimit, RateTable, StageTable, Strict, in_range
from async_task_manager.errors import MissingExtra
from async_task_manager.strategies import (
    ConcurrentLimitStrategy,
    CooldownStrategy,
    Limit,
    RetryStrategy,
)

try:
    from pydantic import AfterValidator, Field, SecretStr, ValidationInfo, field_validator
except ImportError as error:
    raise MissingExtra("cli", "pydantic") from error

__all__ = ["ProviderConfig"]

_NAME = re.compile(r"[A-Za-z0-9][\w.-]{0,63}", re.ASCII)


def _named(name: str) -> str:
    if not _NAME.fullmatch(name):
        raise ValueError(
            "must be 1 to 64 letters, digits, dots, dashes or underscores, the first "
            f"of them a letter or a digit, not {name!r}"
        )
    return name


def _address(url: str) -> str:
    """The URL without a slash at its end."""
    try:
        parts = urlsplit(url)
        sound = parts.scheme in ("http", "https") and parts.hostname and parts.port != 0
    except ValueError:  # a port that is none, or half an IPv6 address
        sound = False
    if "@" in url:
        raise ValueError("must hold no user and password: put them into headers")
    if not sound or not url.isprintable() or set(url) & set(" ?#\\"):
        raise ValueError(
            f"must be an http:// or https:// URL without a query or fragment, not {url!r}"
        )
    return url.rstrip("/")


class ProviderConfig(Strict):
    """A service that takes requests, and its limits."""

    name: Annotated[str, AfterValidator(_named)]
    base_url: Annotated[str, AfterValidator(_address)]
    limits: Annotated[tuple[AnyLimit, ...], Field(strict=False)] = ()
    """Rates such as "30/minute", "6000 tokens/minute", "14400/day@America/Los_Angeles"; or tables:
    a rate with a key and a slack of its own, or any limit by the name of its strategy.
    """
    max_concurrent: Annotated[int, in_range(at_least=1, at_most=100_000)] = 100
    """Requests at once. There always is a bound: what waited for a connection after it was let
    go would arrive late, in a window of the provider that others have filled.
    """
    enabled: bool = True
    headers: dict[str, SecretStr] = Field(default_factory=dict)
    """Sent with every request; ${NAME} is taken from the environment when it is sent."""
    timeout: Annotated[float, in_range(above=0, at_most=86_400)] = 60.0
    """Seconds for one request, from its start to the end of the answer."""
    slack: Annotated[float, in_range(at_least=0, at_most=3600)] = 0.05
    """Seconds by which each window is widened: what leaves in one may arrive in another's."""
    cost: Any = None
    """What a request costs that doesn't say: a number, a field of its JSON, "chars/4", or a sum;
    for every unit that the limits count, or a table of units.
    """
    settle: Any = None
    """Where in an answer's JSON the actual cost stands, "usage.total_tokens"; or a table of units.
    """

    weight: Annotated[float, in_range(above=0)] = 1
    """Its part, where the policy goes by weights."""
    price: Annotated[float, in_range(at_least=0)] = 0
    """What a request costs there in money, where the policy goes by prices."""
    retry: Any = Field(default_factory=dict)
    """How often and how soon what failed is tried again; false: never."""
    breaker: Any = Field(default_factory=dict)
    """When a provider that keeps failing is left alone, and for how long; false: never."""
    limit_headers: Any = False
    """Whether the limits follow what the headers of answers say; or a table: the usual name of a
    header, and what it is called here. Many name only the instant at which everything is free
    again: to wait for it costs time that a window of the same size doesn't.
    """

    @field_validator("headers")
    @classmethod
    def _sendable(cls, headers: dict[str, SecretStr], info: ValidationInfo) -> dict[str, SecretStr]:
        problems = []
        for name, value in headers.items():
            try:
                text = value.get_secret_value()
                # A provider that is switched off needs no key.
                check_header(name, expanded(text) if info.data.get("enabled") else "")
            except ValueError as error:
                problems.append(f"{name}: {error}")
        if problems:
            raise ValueError("; ".join(problems))
        return headers

    @field_validator("cost")
    @classmethod
    def _estimable(cls, cost: Any) -> Any:
        specs = cost.values() if isinstance(cost, dict) else () if cost is None else (cost,)
        for spec in specs:
            try:
                parse_estimate(spec)
            except TypeError as error:  # for pydantic only a ValueError is a problem of the file
                raise ValueError(str(error)) from None
        return cost

    @field_validator("settle")
    @classmethod
    def _findable(cls, settle: Any) -> Any:
        paths = settle.values() if isinstance(settle, dict) else (settle,)
        for path in paths if settle is not None else ():
            if not isinstance(path, str):
                raise ValueError(f"must be a path such as 'usage.total_tokens', not {path!r}")
            checked_path(path)
        return settle

    @field_validator("retry", "breaker")
    @classmethod
    def _makeable(cls, table: Any, info: ValidationInfo) -> Any:
        if table is not False:
            if not isinstance(table, dict):
                raise ValueError(f"must be a table or false, not {table!r}")
            (make_retry if info.field_name == "retry" else make_breaker)(table)
        return table

    @field_validator("limit_headers")
    @classmethod
    def _renamed(cls, names: Any) -> Any:
        if isinstance(names, dict):
            for name, own in names.items():
                if not isinstance(own, str) or not own:
                    raise ValueError(f"{name} must be the name of a header, not {own!r}")
        elif not isinstance(names, bool):
            raise ValueError(f"must be true, false or a table of headers, not {names!r}")
        return names

    # ---- what it is for others --------------------------------------------------------------

    def sent_headers(self) -> dict[str, str]:
        """The headers as they are sent: secrets."""
        return {name: expanded(value.get_secret_value()) for name, value in self.headers.items()}

    def secrets(self) -> tuple[str, ...]:
        """What must not be seen in whatever comes back."""
        return secrets_of((name, value.get_secret_value()) for name, value in self.headers.items())

    @property
    def rates(self) -> tuple[RateTable | StageTable, ...]:
        """The limits as the file has them."""
        return self.limits

    @property
    def labels(self) -> tuple[str, ...]:
        """The first of the `strategies`, in the words of the file."""
        return (*(limit.label for limit in self.rates), f"{self.max_concurrent} at once")

    def strategies(self) -> list[Limit]:
        """The limits, each its own new strategy: those of the file, the number of requests at once,
        a breaker, and what pauses when it is told to.
        """
        limits = [limit.make(self.slack) for limit in self.rates]
        limits.append(ConcurrentLimitStrategy(self.max_concurrent))
        if self.breaker is not False:
            limits.append(make_breaker(self.breaker))
        return [*limits, CooldownStrategy(key=None)]

    def retries(self) -> RetryStrategy | None:
        """A new strategy for what failed; None: it stays failed."""
        return None if self.retry is False else make_retry(self.retry)

    @cached_property
    def units(self) -> tuple[str, ...]:
        """What the limits count besides requests: each request has to have a cost in these."""
        return tuple(
            dict.fromkeys(
                limit.cost
                for limit in self.strategies()
                if isinstance(limit.cost, str) and limit.default_cost is None
            )
        )

    @cached_property
    def keys(self) -> tuple[str, ...]:
        """The fields of a request that split the limits."""
        keys = (limit.key for limit in self.strategies())
        return tuple(dict.fromkeys(key for key in keys if isinstance(key, str)))

    @cached_property
    def estimates(self) -> dict[str, Estimate]:
        """How a cost is estimated, by unit."""
        cost = self.cost
        if cost is None:
            return {}
        specs: dict[str, Any] = dict.fromkeys(self.units, cost)
        if isinstance(cost, dict):
            specs = cost
        return {unit: parse_estimate(spec) for unit, spec in specs.items()}

    @cached_property
    def settled(self) -> dict[str, str]:
        """Where the actual cost stands in an answer, by unit."""
        settle = self.settle
        if settle is None:
            return {}
        one_for_all: dict[str, Any] = dict.fromkeys(self.units, settle)
        return settle if isinstance(settle, dict) else one_for_all
