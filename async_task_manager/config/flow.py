"""The file that says which providers there are and what limits them.

[[providers]]
name = "groq"
base_url = "https://api.groq.com/openai/v1"
headers = { Authorization = "Bearer ${GROQ_API_KEY}" }
limits = ["30/minute", "6000 tokens/minute", "14400/day@America/Los_Angeles"]
max_concurrent = 4
"""

from __future__ import annotations

import os
import re
import tomllib
from collections.abc import Iterable, Sequence
from functools import cached_property, partial
from pathlib import Path
from typing import Annotated, Any
from urllib.parse import urlsplit

from async_task_manager._validate import number
from async_task_manager.config.problems import ConfigError, problem
from async_task_manager.errors import MissingExtra
from async_task_manager.rates import parse_rate
from async_task_manager.strategies import (
    Chain,
    ConcurrentLimitStrategy,
    Limit,
    PriorityQueueStrategy,
    Provider,
    ProviderRouterStrategy,
    TimeBasedStrategy,
)

try:
    from pydantic import (
        AfterValidator,
        BaseModel,
        ConfigDict,
        Field,
        SecretStr,
        ValidationError,
        ValidationInfo,
        field_validator,
    )
except ImportError as error:
    raise MissingExtra("cli", "pydantic") from error

__all__ = ["FlowConfig", "ProviderConfig", "build_chain", "check_header", "load_config"]

FRAMING = ("connection", "content-length", "transfer-encoding")
"""Headers that say where a request ends: the HTTP client's own."""

_VARIABLE = re.compile(r"\$\{(\w+)\}")
_NAME = re.compile(r"[A-Za-z0-9][\w.-]{0,63}", re.ASCII)
_TOKEN = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+")  # RFC 9110, section 5.6.2
_SECRET = 8
"""Characters from which on a variable's value is surely no ordinary word of an answer."""


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


def _range(**bounds: float) -> AfterValidator:
    return AfterValidator(partial(number, "", **bounds))  # which tells the whole range


def _rate(text: str) -> str:
    parse_rate(text)
    return text


def check_header(name: str, value: str) -> None:
    """Raises a ValueError, which keeps the value to itself, unless HTTP can carry the header."""
    if not _TOKEN.fullmatch(name):
        raise ValueError("that is no name of a header")
    if name.lower() in FRAMING:
        raise ValueError("the HTTP client itself sets that")
    if not (value.isascii() and value.replace("\t", " ").isprintable()):
        raise ValueError("the value must be printable ASCII, in one line")


class ProviderConfig(BaseModel):
    """A service that takes requests, and its limits."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    name: Annotated[str, AfterValidator(_named)]
    base_url: Annotated[str, AfterValidator(_address)]
    limits: Annotated[tuple[Annotated[str, AfterValidator(_rate)], ...], Field(strict=False)] = ()
    """Rates such as "30/minute", "6000 tokens/minute", "14400/day@America/Los_Angeles"."""
    max_concurrent: Annotated[int, _range(at_least=1, at_most=100_000)] = 100
    """Requests at once. There always is a bound: what waited for a connection after it was let
    go would arrive late, in a window of the provider that others have filled.
    """
    enabled: bool = True
    headers: dict[str, SecretStr] = {}
    """Sent with every request; ${NAME} is taken from the environment when it is sent."""
    timeout: Annotated[float, _range(above=0, at_most=86_400)] = 60.0
    """Seconds for one request, from its start to the end of the answer."""
    slack: Annotated[float, _range(at_least=0, at_most=3600)] = 0.05
    """Seconds by which each window is widened: what leaves in one may arrive in another's."""

    @field_validator("headers")
    @classmethod
    def _sendable(cls, headers: dict[str, SecretStr], info: ValidationInfo) -> dict[str, SecretStr]:
        problems = []
        for name, value in headers.items():
            try:
                # A provider that is switched off needs no key.
                check_header(name, _expanded(value) if info.data.get("enabled") else "")
            except ValueError as error:
                problems.append(f"{name}: {error}")
        if problems:
            raise ValueError("; ".join(problems))
        return headers

    def sent_headers(self) -> dict[str, str]:
        """The headers as they are sent: secrets."""
        return {name: _expanded(value) for name, value in self.headers.items()}

    def secrets(self) -> tuple[str, ...]:
        """What the headers take from the environment, unless it is too short to be a secret."""
        names = [
            name
            for value in self.headers.values()
            for name in _VARIABLE.findall(value.get_secret_value())
        ]
        values = {os.environ[name] for name in names}
        return tuple(sorted((v for v in values if len(v) >= _SECRET), key=len, reverse=True))

    @cached_property
    def units(self) -> tuple[str, ...]:
        """What the limits count besides requests: each request has to say how much it costs."""
        units = (parse_rate(limit).unit for limit in self.limits)
        return tuple(dict.fromkeys(unit for unit in units if unit is not None))

    @property
    def labels(self) -> tuple[str, ...]:
        """The `strategies` in the words of the file."""
        return (*self.limits, f"{self.max_concurrent} at once")

    def strategies(self) -> list[Limit]:
        """The limits, each its own new strategy; the number of requests at once comes last."""
        windows = [parse_rate(limit).limit(slack=self.slack) for limit in self.limits]
        return [*windows, ConcurrentLimitStrategy(self.max_concurrent)]


class FlowConfig(BaseModel):
    """The whole file."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    providers: Annotated[tuple[ProviderConfig, ...], Field(strict=False)]
    """In the order in which they are tried."""

    @field_validator("providers")
    @classmethod
    def _usable(cls, providers: tuple[ProviderConfig, ...]) -> tuple[ProviderConfig, ...]:
        if not providers:
            raise ValueError("there must be at least one")
        if twice := _twice(provider.name for provider in providers):
            raise ValueError(twice)
        if not any(provider.enabled for provider in providers):
            raise ValueError("at least one must be enabled")
        return providers

    def only_enabled(self) -> FlowConfig:
        """The same without the providers that are switched off."""
        return FlowConfig(providers=tuple(p for p in self.providers if p.enabled))


def load_config(path: Path) -> FlowConfig:
    """The file, checked.

    Raises:
        ConfigError: it cannot be read, is no TOML, or something in it is wrong; it tells all
            problems at once, a line each.
    """
    try:
        with path.open("rb") as file:
            data = tomllib.load(file)
    except OSError as error:
        raise ConfigError(f"{path}: {error.strerror}") from error
    except ValueError as error:  # not TOML, or not even UTF-8
        raise ConfigError(f"{path}: not valid TOML: {error}") from error
    try:
        return FlowConfig.model_validate(data)
    except ValidationError as error:
        problems = [problem(each, _keys) for each in error.errors(include_url=False)]
    tables = data.get("providers")
    if isinstance(tables, list) and not any(line.startswith("providers:") for line in problems):
        # The list as a whole is checked only where each provider is sound.
        names = (table.get("name") for table in tables if isinstance(table, dict))
        if twice := _twice(name for name in names if isinstance(name, str)):
            problems.append(f"providers: {twice}")
    raise ConfigError("\n".join(f"{path}: {line}" for line in problems))


def build_chain(config: FlowConfig) -> Chain:
    """Priorities, times, and a router over the providers in the order of the file."""
    providers = [
        Provider(provider.name, limits=provider.strategies(), enabled=provider.enabled)
        for provider in config.providers
    ]
    return Chain(PriorityQueueStrategy(), TimeBasedStrategy(), ProviderRouterStrategy(providers))


def _keys(place: Sequence[Any]) -> Iterable[str]:
    return (ProviderConfig if len(place) > 1 else FlowConfig).model_fields


def _twice(names: Iterable[str]) -> str:
    """What is wrong with the names; "" if they differ."""
    seen: dict[str, int] = {}
    for name in names:
        seen[name] = seen.get(name, 0) + 1
    return "; ".join(
        f"{number} are called {name!r}: each needs a name of its own"
        for name, number in seen.items()
        if number > 1
    )


def _expanded(value: SecretStr) -> str:
    def looked_up(match: re.Match[str]) -> str:
        found = os.environ.get(match[1])
        if not found:
            raise ValueError(f"the environment variable {match[1]} is not set, or empty")
        return found

    return _VARIABLE.sub(looked_up, value.get_secret_value())
