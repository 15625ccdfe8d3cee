"""The file that says which providers there are and what limits them.

[[providers]]
name = "groq"
base_url = "https://api.groq.com/openai/v1"
headers = { Authorization = "Bearer ${GROQ_API_KEY}" }
limits = ["30/minute", "6000 tokens/minute", "14400/day@America/Los_Angeles"]
max_concurrent = 4
"""

from __future__ import annotations

import tomllib
from collections.abc import Iterable, Sequence
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any

from async_task_manager.config.outcomes import RetriesStrategy
from async_task_manager.config.problems import ConfigError, problem
from async_task_manager.config.provider import ProviderConfig
from async_task_manager.config.stages import PROVIDERS
from async_task_manager.config.tables import RateTable, StageTable, Strict
from async_task_manager.errors import MissingExtra, TaskManagerError
from async_task_manager.strategies import (
    BaseStrategy,
    Chain,
    Feedback,
    PriorityQueueStrategy,
    Provider,
    ProviderRouterStrategy,
    TimeBasedStrategy,
)

try:
    from pydantic import BeforeValidator, Field, ValidationError, field_validator
except ImportError as error:
    raise MissingExtra("cli", "pydantic") from error

__all__ = ["FlowConfig", "build_chain", "load_config", "parse_config"]


def _stage(value: Any) -> StageTable | None:
    """None: the place of the providers."""
    if isinstance(value, StageTable) or value is None:
        return value
    if not isinstance(value, dict):
        raise ValueError(f"must be a table, not {value!r}")
    if value.get("strategy") == PROVIDERS:
        if extra := ", ".join(value.keys() - {"strategy"}):
            raise ValueError(f"strategy {PROVIDERS!r} has no parameters, not {extra}")
        return None
    return StageTable(value)


class FlowConfig(Strict):
    """The whole file."""

    providers: Annotated[tuple[ProviderConfig, ...], Field(strict=False)]
    """In the order in which they are tried."""
    policy: str = "ordered"
    """Which of the providers that have room is preferred: as `ProviderRouterStrategy` has it."""
    chain: Annotated[tuple[Annotated[Any, BeforeValidator(_stage)], ...], Field(strict=False)] = ()
    """Strategies by name, in this order, instead of priorities and times; the providers come where
    ``strategy = "providers"`` stands, else last.
    """

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

    @field_validator("policy")
    @classmethod
    def _known(cls, policy: str) -> str:
        ProviderRouterStrategy([Provider("any")], policy=policy)
        return policy

    @field_validator("chain")
    @classmethod
    def _composable(cls, chain: tuple[StageTable | None, ...]) -> tuple[StageTable | None, ...]:
        if chain.count(None) > 1:
            raise ValueError(f"strategy {PROVIDERS!r} may stand there once")
        try:
            Chain(*_stages(chain))
        except (TypeError, ValueError, TaskManagerError) as error:
            raise ValueError(str(error)) from None
        return chain

    @cached_property
    def keys(self) -> tuple[str, ...]:
        """The fields of a request that the stages of the chain read, but for those that each
        request has anyway.
        """
        found = [
            value
            for stage in _stages(self.chain)
            for name in ("key", "_key", "field", "_field")
            if isinstance(value := getattr(stage, name, None), str)
        ]
        known = ("priority", "valid_after", "provider", "cost")
        return tuple(dict.fromkeys(name for name in found if name not in known))

    def only_enabled(self) -> FlowConfig:
        """The same without the providers that are switched off."""
        enabled = tuple(provider for provider in self.providers if provider.enabled)
        return self.model_copy(update={"providers": enabled})


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
        return parse_config(data)
    except ConfigError as error:
        raise ConfigError(
            "\n".join(f"{path}: {line}" for line in str(error).splitlines())
        ) from None


def parse_config(data: dict[str, Any]) -> FlowConfig:
    """What stands in a file, checked.

    Raises:
        ConfigError: something in it is wrong; all problems at once, a line each.
    """
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
    raise ConfigError("\n".join(problems))


def build_chain(config: FlowConfig) -> Chain:
    """The stages of the file, or priorities and times; a router over the providers in the order of
    the file; and what retries them, unless a stage of the file does.
    """
    providers = [
        Provider(
            provider.name,
            limits=provider.strategies(),
            enabled=provider.enabled,
            weight=provider.weight,
            price=provider.price,
        )
        for provider in config.providers
    ]
    router = ProviderRouterStrategy(providers, policy=config.policy)
    if config.chain:
        stages = list(_stages(config.chain))
        place = config.chain.index(None) if None in config.chain else len(stages)
        stages.insert(place, router)
    else:
        stages = [PriorityQueueStrategy(), TimeBasedStrategy(), router]
    retries = {p.name: retry for p in config.providers if (retry := p.retries()) is not None}
    if retries and not any(isinstance(stage, Feedback) for stage in stages):
        stages.append(RetriesStrategy(retries))
    return Chain(*stages)


def _stages(chain: Iterable[StageTable | None]) -> Iterable[BaseStrategy]:
    return [stage.strategy() for stage in chain if stage is not None]


def _keys(place: Sequence[Any]) -> Iterable[str]:
    tables: dict[str, type[Strict]] = {"providers": ProviderConfig, "limits": RateTable}
    inside = [part for part in place[:-1] if isinstance(part, str)]
    return tables.get(inside[-1] if inside else "", FlowConfig).model_fields


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
