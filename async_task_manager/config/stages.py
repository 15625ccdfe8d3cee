"""Strategies by name, the built-in ones and those of other packages."""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Mapping
from importlib.metadata import entry_points
from typing import Any, Final

from async_task_manager import strategies
from async_task_manager.config.problems import meant
from async_task_manager.strategies import BaseStrategy, ProviderRouterStrategy, Role

__all__ = ["GROUP", "PROVIDERS", "make_strategy", "strategy_names"]

GROUP: Final = "async_task_manager.strategies"
"""The entry-point group: a name, and a class or function that gives a strategy."""

PROVIDERS: Final = "providers"
"""The name that stands for the router over the providers of the file."""


def _built_in() -> dict[str, Callable[..., BaseStrategy]]:
    found = {}
    for name in strategies.__all__:
        cls = getattr(strategies, name)
        if name.endswith("Strategy") and isinstance(cls, type) and issubclass(cls, Role):
            words = re.sub(r"(?<=[a-z])(?=[A-Z])", "_", name.removesuffix("Strategy"))
            found[words.lower()] = cls
    return {name: cls for name, cls in found.items() if cls is not ProviderRouterStrategy}


BUILT_IN: Final = _built_in()


def strategy_names() -> tuple[str, ...]:
    """All names that `make_strategy` knows. The built-in ones come first, and come before others
    of the same name.
    """
    return tuple(dict.fromkeys([*BUILT_IN, *(point.name for point in entry_points(group=GROUP))]))


def make_strategy(table: Mapping[str, Any]) -> BaseStrategy:
    """A new strategy from its table: ``strategy``, the name, and its parameters.

    Raises:
        ValueError: there is none of that name, it has no such parameter, or the strategy itself
            refuses a value; the message names what is meant.
    """
    name = table.get("strategy")
    if not isinstance(name, str):
        raise ValueError(f"strategy must name one, such as 'priority_queue', not {name!r}")
    make = _factory(name)
    options = {key: value for key, value in table.items() if key != "strategy"}
    _check_parameters(name, make, options)
    try:
        made = make(**options)
    except Exception as error:  # a strategy of someone else may raise anything
        raise ValueError(f"strategy {name!r}: {error}") from error
    if not isinstance(made, BaseStrategy):
        raise ValueError(f"strategy {name!r} gave no strategy but {made!r}")
    return made


def _factory(name: str) -> Callable[..., Any]:
    if name in BUILT_IN:
        return BUILT_IN[name]
    found = tuple(entry_points(group=GROUP, name=name))
    if not found:
        known = strategy_names()
        hint = meant(name, known) or f"; there are {', '.join(known)}"
        raise ValueError(f"there is no strategy {name!r}{hint}")
    try:
        make = found[0].load()
    except Exception as error:  # whatever importing someone else's package may raise
        raise ValueError(
            f"strategy {name!r} ({found[0].value}) cannot be loaded: "
            f"{type(error).__name__}: {error}"
        ) from error
    if not callable(make):
        raise ValueError(f"strategy {name!r} ({found[0].value}) cannot be called")
    return make  # type: ignore[no-any-return]  # mypy takes what is callable for object


def _check_parameters(name: str, make: Callable[..., Any], options: Mapping[str, Any]) -> None:
    parameters = inspect.signature(make).parameters
    if any(each.kind is each.VAR_KEYWORD for each in parameters.values()):
        return
    for key in options:
        if key not in parameters:
            known = ", ".join(parameters) or "none"
            hint = meant(key, parameters) or f"; its parameters are {known}"
            raise ValueError(f"strategy {name!r} has no parameter {key!r}{hint}")
    for key, each in parameters.items():
        named = each.kind in (each.POSITIONAL_OR_KEYWORD, each.KEYWORD_ONLY)
        if named and each.default is each.empty and key not in options:
            raise ValueError(f"strategy {name!r} needs the parameter {key!r}")
