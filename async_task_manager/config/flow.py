"""The file that says which providers there are and what limits them.

[[providers]]
name = "groq"
base_url = "https://api.groq.com/openai/v1"
headers = { Authorization = "Bearer ${GROQ_API_KEY}" }
limits = ["30/minute", "6000 tokens/minute", "14400/day"]
max_concurrent = 4
"""

from __future__ import annotations

import difflib
import os
import re
import tomllib
from pathlib import Path
from typing import Annotated, Any

from async_task_manager.errors import MissingExtra, TaskManagerError
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
    from pydantic import BaseModel, ConfigDict, Field, SecretStr, ValidationError, field_validator
except ImportError as error:
    raise MissingExtra("cli", "pydantic") from error

__all__ = ["ConfigError", "FlowConfig", "ProviderConfig", "build_chain", "load_config"]

_VARIABLE = re.compile(r"\$\{([A-Za-z_][A-Za-z0-9_]*)\}")


class ConfigError(TaskManagerError, ValueError):
    """The file cannot be used: each line of the message names a key, its value and the range."""


class ProviderConfig(BaseModel):
    """A service that takes requests, and its limits."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: Annotated[str, Field(min_length=1, max_length=100)]
    base_url: Annotated[str, Field(pattern=r"^https?://[^\s/]+")]
    limits: tuple[str, ...] = ()
    """Rates such as "30/minute", "6000 tokens/minute", "14400/day@America/Los_Angeles"."""
    max_concurrent: Annotated[int, Field(ge=1)] | None = None
    enabled: bool = True
    headers: dict[str, SecretStr] = {}
    """Sent with every request; ${NAME} is taken from the environment."""
    timeout: Annotated[float, Field(gt=0, le=86_400)] = 60.0
    """Seconds for one request."""
    slack: Annotated[float, Field(ge=0, le=3600)] = 0.05
    """Seconds by which each window is widened: what leaves in one may arrive in another's."""

    @field_validator("limits")
    @classmethod
    def _rates(cls, limits: tuple[str, ...]) -> tuple[str, ...]:
        for limit in limits:
            parse_rate(limit)
        return limits

    @field_validator("headers")
    @classmethod
    def _expanded(cls, headers: dict[str, SecretStr]) -> dict[str, SecretStr]:
        return {
            name: SecretStr(_expand(value.get_secret_value())) for name, value in headers.items()
        }

    def strategies(self) -> list[Limit]:
        """The limits, each its own strategy."""
        limits: list[Limit] = [parse_rate(limit).limit(slack=self.slack) for limit in self.limits]
        if self.max_concurrent is not None:
            limits.append(ConcurrentLimitStrategy(self.max_concurrent))
        return limits


class FlowConfig(BaseModel):
    """The whole file."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    providers: Annotated[tuple[ProviderConfig, ...], Field(min_length=1)]

    @field_validator("providers")
    @classmethod
    def _names_differ(cls, providers: tuple[ProviderConfig, ...]) -> tuple[ProviderConfig, ...]:
        names = [provider.name for provider in providers]
        for name in names:
            if names.count(name) > 1:
                raise ValueError(f"two providers are called {name!r}")
        return providers


def load_config(path: Path) -> FlowConfig:
    """The file, checked.

    Raises:
        ConfigError: it cannot be read, is no TOML, or a value is out of range; says all at once.
    """
    try:
        with path.open("rb") as file:
            data = tomllib.load(file)
    except OSError as error:
        raise ConfigError(f"{path}: {error.strerror}") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: not valid TOML: {error}") from error
    try:
        return FlowConfig.model_validate(data)
    except ValidationError as error:
        problems = [_problem(problem) for problem in error.errors(include_url=False)]
        raise ConfigError("\n".join(f"{path}: {problem}" for problem in problems)) from None


def build_chain(config: FlowConfig) -> Chain:
    """Priorities, times, and the providers in the order of the file."""
    providers = [
        Provider(provider.name, limits=provider.strategies(), enabled=provider.enabled)
        for provider in config.providers
    ]
    return Chain(PriorityQueueStrategy(), TimeBasedStrategy(), ProviderRouterStrategy(providers))


def _problem(problem: Any) -> str:
    """One problem in one line: the key, what is wrong, and the value unless it may be a secret."""
    where = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in problem["loc"])
    where = where.lstrip(".")
    if problem["type"] == "extra_forbidden":
        key = str(problem["loc"][-1])
        model = ProviderConfig if len(problem["loc"]) > 1 else FlowConfig
        near = difflib.get_close_matches(key, list(model.model_fields), 1)
        hint = f"; did you mean {near[0]!r}?" if near else ""
        return f"{where}: there is no such key{hint}"
    message = problem["msg"].removeprefix("Value error, ")
    if "headers" in problem["loc"] or problem["type"] == "missing":
        return f"{where}: {message}"
    return f"{where}: {message}, not {problem['input']!r}"


def _expand(text: str) -> str:
    def value(match: re.Match[str]) -> str:
        name = match.group(1)
        if name not in os.environ:
            raise ValueError(f"the environment has no variable {name}")
        return os.environ[name]

    return _VARIABLE.sub(value, text)
