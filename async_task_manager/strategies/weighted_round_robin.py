"""Tasks spread over resources, in exact proportion."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping, Sequence
from typing import TYPE_CHECKING, TypeAlias

from async_task_manager.errors import InvalidType, InvalidValue
from async_task_manager.strategies.provider_router import Provider, ProviderRouterStrategy

if TYPE_CHECKING:
    from async_task_manager.task import Task

__all__ = ["Health", "WeightedRoundRobinStrategy"]

Health: TypeAlias = "Mapping[str, bool] | Callable[[str], bool] | None"


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
        health: Whether a resource is healthy: a mapping by name, or a function of the name; what a
            mapping doesn't name is healthy. Asked at every choice, so it should be quick. When one
            gets well while tasks wait for it, call ``changed()``.
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
        field: str | Callable[[Task], object] = "provider",
    ) -> None:
        if not isinstance(weights, Mapping):
            raise InvalidType(f"weights must map names to numbers, not {weights!r}")
        if not weights:
            raise InvalidValue("weights must name at least one resource")
        if health is not None and not isinstance(health, Mapping) and not callable(health):
            raise InvalidType(f"health must be a mapping, a function or None, not {health!r}")
        self._health = health
        super().__init__(
            [Provider(name, weight=weight) for name, weight in weights.items()],
            field=field,
            policy="weighted",
        )

    def branches(self, pin: Hashable) -> Sequence[Provider]:
        """Those that are enabled and healthy."""
        health, found = self._health, super().branches(pin)
        if health is None:
            return found
        if callable(health):
            return [provider for provider in found if health(provider.name)]
        return [provider for provider in found if health.get(provider.name, True)]

    def __repr__(self) -> str:
        weights = {provider.name: provider.weight for provider in self}
        health = "" if self._health is None else f", health={self._health!r}"
        field = "" if self._field == "provider" else f", field={self._field!r}"
        return f"{type(self).__name__}({weights!r}{health}{field})"
