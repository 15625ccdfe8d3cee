"""Numbers that each user has: one for all, a mapping or a function, looked up anew each time."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping
from dataclasses import dataclass
from functools import partial
from math import inf
from typing import Any, TypeAlias

from async_task_manager._validate import number, whole

__all__ = ["GUARANTEED", "MAXIMUM", "WEIGHT", "PerUser"]

PerUser: TypeAlias = "float | Mapping[Any, float] | Callable[[Any], float | None] | None"
"""One number for every user; a mapping from users to numbers; or a function of the user."""


@dataclass(frozen=True, slots=True)
class Quantity:
    """What is numbered: its name, its range, and what it is for a user of whom nothing is said."""

    name: str
    check: Callable[[str, object], float]
    default: float

    def checked(self, parameter: str, spec: PerUser) -> PerUser:
        """The parameter, if it is a number, a mapping to numbers, a function or None."""
        if isinstance(spec, Mapping):
            for user, value in spec.items():
                self.check(f"{parameter}[{user!r}]", value)
        elif spec is not None and not callable(spec):
            self.check(parameter, spec)
        return spec

    def of(self, user: Hashable, spec: PerUser) -> float:
        """The user's number; raises what there is against what a mapping or function says."""
        if isinstance(spec, Mapping):
            value = spec.get(user)
        elif callable(spec):
            value = spec(user)
        else:
            return self.default if spec is None else spec
        return self.default if value is None else self.check(f"{self.name} of {user!r}", value)


WEIGHT = Quantity("weight", partial(number, above=0), 1)
GUARANTEED = Quantity("guaranteed", partial(whole, at_least=0), 0)
MAXIMUM = Quantity("maximum", partial(whole, at_least=1), inf)
