"""A chain's stages and providers by name."""

from __future__ import annotations

from collections.abc import Iterable
from difflib import get_close_matches
from typing import TYPE_CHECKING, Any

from async_task_manager.errors import InvalidType, InvalidValue
from async_task_manager.strategies.base import BaseStrategy, Router

if TYPE_CHECKING:
    from async_task_manager.strategies.chain import Chain

__all__ = ["name_of", "named", "nearest"]


def named(chain: Chain, name: str) -> Any:
    """The provider or stage that goes by the name.

    Raises:
        InvalidType: it is no str.
        InvalidValue: nothing goes by it, or several do.
    """
    if not isinstance(name, str):
        raise InvalidType(f"a stage or provider goes by a name or a place, not {name!r}")
    known: dict[str, list[tuple[str, Any]]] = {}
    for i, stage in enumerate(chain.stages):
        known.setdefault(_bare(name_of(stage)), []).append((f"chain[{i}]", stage))
    found: dict[str, list[tuple[str, Any]]] = {}
    for i, stage in enumerate(chain.stages):
        if isinstance(stage, Router):
            for branch in stage.all_branches(None):
                found.setdefault(branch.name, []).append((f"chain[{i}]'s {branch.name}", branch))
    hits = found.get(name) or known.get(_bare(name), [])
    if len(hits) > 1:
        places = " and ".join(place for place, _ in hits)
        raise InvalidValue(f"{name!r} may mean {places}: say which")
    if hits:
        return hits[0][1]
    names = [*found, *(name_of(stage) for stage in chain.stages)]
    raise InvalidValue(
        f"the chain has no stage and no provider {name!r} (known: "
        f"{', '.join(map(repr, dict.fromkeys(names)))}){nearest(name, names)}"
    )


def name_of(strategy: BaseStrategy) -> str:
    """The strategy as people write it: "sliding_window"."""
    words = type(strategy).__name__.removesuffix("Strategy") or type(strategy).__name__
    return "".join(f"_{c.lower()}" if c.isupper() else c for c in words).lstrip("_")


def _bare(name: str) -> str:
    return name.replace("_", "").replace(" ", "").lower().removesuffix("strategy")


def nearest(name: str, names: Iterable[str]) -> str:
    """What ends an error about an unknown name: "; did you mean 'groq'?", or nothing."""
    lower = {known.lower(): known for known in names}
    near = get_close_matches(str(name).lower(), lower, 1)
    return f"; did you mean {lower[near[0]]!r}?" if near else ""
