"""Tasks spread over resources, in exact proportion."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass
from inspect import iscoroutine, iscoroutinefunction
from typing import TYPE_CHECKING, Any, TypeAlias

from async_task_manager._validate import number
from async_task_manager.errors import InvalidType, InvalidValue
from async_task_manager.strategies.base import Sampling
from async_task_manager.strategies.provider_router import Provider, ProviderRouterStrategy

if TYPE_CHECKING:
    from async_task_manager.task import Task

__all__ = ["Health", "WeightedRoundRobinStrategy"]

Health: TypeAlias = (
    "Mapping[str, bool] | Callable[[str], bool] | Callable[[str], Awaitable[bool]] | None"
)


@dataclass(frozen=True, slots=True)
class _Ailing:
    """What a round of health checks found."""

    names: frozenset[str]


class WeightedRoundRobinStrategy(ProviderRouterStrategy):
    """Spreads tasks over resources in proportion to their weights; the work reads
    ``current_task().provider``.

    Smooth weighted round robin, as in nginx: with ``{"a": 5, "b": 1, "c": 1}`` the order is a a b a
    c a a, and again. In every cycle, of as many tasks as the weights' sum, each resource
    gets exactly its weight. An unhealthy one is passed over, and what it misses is neither
    counted against the others nor made up for later.

    It is a `ProviderRouterStrategy` with ``policy="weighted"`` and providers without limits:
    ``strategy["a"].weight = 3``, ``disable``, ``add``, ``remove`` and pinned tasks work alike.

    Args:
        weights: Resources by name, with weights above 0; one or more.
        health: Whether a resource is healthy. A mapping by name (what it doesn't name is healthy)
            or a function of the name is asked at every choice: it should be quick; when one gets
            well while tasks wait for it, call ``changed()``. An async function is called by the
            manager, for all resources every ``health_interval`` seconds; one for which it
            raises, or takes longer than that, is unhealthy; until the first round all are well.
        health_interval: Seconds above 0.
        field: Where a task names the resource that it must have: a metadata name, or a callable.

    Raises:
        InvalidValue, InvalidType: a parameter is out of range or has the wrong type.
        UnknownProvider: from ``add_task``, for a task that names a resource which isn't there.

    O(resources) per task.
    """

    def __init__(
        self,
        weights: Mapping[str, float],
        *,
        health: Health = None,
        health_interval: float = 5.0,
        field: str | Callable[[Task], object] = "provider",
    ) -> None:
        if not isinstance(weights, Mapping):
            raise InvalidType(f"weights must map names to numbers, not {weights!r}")
        if not weights:
            raise InvalidValue("weights must name at least one resource")
        if health is not None and not isinstance(health, Mapping) and not callable(health):
            raise InvalidType(f"health must be a mapping, a function or None, not {health!r}")
        self._health = health
        self._checks = iscoroutinefunction(health) or (
            callable(health) and iscoroutinefunction(type(health).__call__)  # an object like one
        )
        self._interval = number("health_interval", health_interval, above=0)
        self._ailing = _Ailing(frozenset())
        super().__init__(
            [Provider(name, weight=weight) for name, weight in weights.items()],
            field=field,
            policy="weighted",
        )

    def branches(self, pin: Hashable) -> Sequence[Provider]:
        """Those that are enabled and healthy."""
        health, found = self._health, super().branches(pin)
        if health is None or self._checks:
            return [provider for provider in found if provider.name not in self._ailing.names]
        if callable(health):
            return [provider for provider in found if self._well(health, provider.name)]
        return [provider for provider in found if health.get(provider.name, True)]

    def _well(self, health: Callable[[str], object], name: str) -> bool:
        answer = health(name)
        if iscoroutine(answer):  # every one of them would be true
            answer.close()
            raise InvalidType(
                f"health must be an async function, or one that gives a bool, not {health!r}, "
                "which gives a coroutine"
            )
        return bool(answer)

    def sampling(self, now: float) -> Sampling | None:
        """Health checks, where an async function makes them."""
        return Sampling(self._examine, self._interval) if self._checks else None

    async def _examine(self) -> _Ailing:
        names = self.names
        answers = await asyncio.gather(*map(self._ask, names), return_exceptions=True)
        return _Ailing(
            frozenset(n for n, well in zip(names, answers, strict=True) if well is not True)
        )

    async def _ask(self, name: str) -> bool:
        check: Any = self._health
        async with asyncio.timeout(self._interval):
            return bool(await check(name))

    def observe(self, sample: Any, now: float) -> None:
        """Takes in what a round of health checks found."""
        if isinstance(sample, _Ailing) and sample != self._ailing:
            self._ailing = sample
            self.changed()

    def __repr__(self) -> str:
        weights = {provider.name: provider.weight for provider in self}
        health = "" if self._health is None else f", health={self._health!r}"
        if self._interval != 5:
            health += f", health_interval={self._interval}"
        field = "" if self._field == "provider" else f", field={self._field!r}"
        return f"{type(self).__name__}({weights!r}{health}{field})"
