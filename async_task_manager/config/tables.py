"""The small tables of a config: a rate with its key and slack, a strategy by its name."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Annotated, Any

from async_task_manager._validate import number
from async_task_manager.config.outcomes import make_retry
from async_task_manager.config.stages import make_strategy
from async_task_manager.errors import MissingExtra
from async_task_manager.rates import parse_rate
from async_task_manager.strategies import BaseStrategy, Limit

try:
    from pydantic import AfterValidator, BaseModel, ConfigDict, WrapValidator
except ImportError as error:
    raise MissingExtra("cli", "pydantic") from error

__all__ = ["AnyLimit", "RateTable", "StageTable", "Strict", "in_range"]


def in_range(**bounds: float) -> AfterValidator:
    """A number that tells its whole range when it is out of it."""
    return AfterValidator(partial(number, "", **bounds))


class Strict(BaseModel):
    """A table that takes no key that it doesn't know, and no text for a number."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)


def _rate(text: str) -> str:
    parse_rate(text)
    return text


class RateTable(Strict):
    """{ rate = "30/minute", key = "model", slack = 0.05 }, of which only the rate is needed."""

    rate: Annotated[str, AfterValidator(_rate)]
    """Such as "30/minute", "6000 tokens/minute", "14400/day@America/Los_Angeles"."""
    key: str | None = None
    """What splits it: a field of the request, for each value of which it holds by itself."""
    slack: Annotated[float, in_range(at_least=0, at_most=3600)] | None = None
    """Seconds by which the window is widened; by default the provider's."""

    @property
    def label(self) -> str:
        """The limit in the words of the file."""
        return self.rate if self.key is None else f"{self.rate} per {self.key}"

    def make(self, slack: float) -> Limit:
        """A new limit; ``slack`` is the provider's."""
        own = slack if self.slack is None else self.slack
        return parse_rate(self.rate).limit(slack=own, key=self.key)


class StageTable:
    """{ strategy = "token_bucket", rate = 5, burst = 10 }: a strategy by name, with parameters.

    Raises:
        ValueError: no strategy can be made of it; see `make_strategy`.
    """

    def __init__(self, table: dict[str, Any]) -> None:
        self.table = table
        self.strategy()

    @property
    def label(self) -> str:
        """The strategy in the words of the file."""
        given = ", ".join(f"{key} = {value}" for key, value in self.table.items())
        return given.removeprefix("strategy = ").replace(", ", " (", 1) + ")" * (", " in given)

    def strategy(self) -> BaseStrategy:
        """A new one."""
        if self.table.get("strategy") == "retry":  # whose parameters have tables of their own
            return make_retry({k: v for k, v in self.table.items() if k != "strategy"})
        return make_strategy(self.table)

    def make(self, slack: float) -> Limit:
        """The same, where it stands among limits; a strategy has no use for the slack."""
        made = self.strategy()
        if not isinstance(made, Limit):
            raise ValueError(
                f"strategy {self.table['strategy']!r} is no limit: it goes to [[chain]]"
            )
        return made


def _any_limit(value: Any, table: Callable[[Any], RateTable]) -> RateTable | StageTable:
    if isinstance(value, str):
        return RateTable.model_construct(rate=_rate(value))
    if isinstance(value, dict) and "strategy" in value:
        stage = StageTable(value)
        stage.make(0.0)
        return stage
    if not isinstance(value, dict | RateTable | StageTable):
        raise ValueError(f"must be a rate such as '30/minute' or a table, not {value!r}")
    return value if isinstance(value, StageTable) else table(value)


AnyLimit = Annotated[RateTable, WrapValidator(_any_limit)]
"""A rate, as text or as a table; or a strategy by name."""
