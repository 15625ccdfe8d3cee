"""What a request costs: an estimate before it is sent, the truth from its answer."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from math import inf
from typing import Any, Final

from async_task_manager._validate import number
from async_task_manager.errors import InvalidValue

__all__ = ["Estimate", "at_path", "checked_path", "found", "parse_estimate"]

FORMS: Final = "a number, a field of the request's JSON ('max_tokens'), 'chars/4', or a sum of such"

_CHARS: Final = re.compile(r"chars */ *([0-9]+(?:\.[0-9]+)?)")
_NUMBER: Final = re.compile(r"[0-9]+(?:\.[0-9]+)?")
_PATH: Final = re.compile(r"[A-Za-z_][\w-]*(?:\.[\w-]+)*")


@dataclass(frozen=True, slots=True)
class Estimate:
    """A sum of a constant, of fields of the request's JSON, and of a share of its characters."""

    constant: float = 0.0
    fields: tuple[str, ...] = ()
    per_char: float = 0.0

    def of(self, body: Any, chars: int) -> float | None:
        """What a request with this JSON body and so many characters costs.

        None: a field is missing, or is no number of at least 0.
        """
        total = self.constant + (-(-chars * self.per_char // 1) if self.per_char else 0.0)
        for path in self.fields:
            value = at_path(body, path)
            if isinstance(value, bool) or not isinstance(value, int | float) or not value >= 0:
                return None
            total += value
        return int(total) if total == total // 1 else total


def parse_estimate(spec: float | str) -> Estimate:
    """The estimate that a config asks for.

    Raises:
        InvalidValue: it is none of the forms.
    """
    if not isinstance(spec, str):
        return Estimate(number("cost", spec, at_least=0))
    constant, per_char = 0.0, 0.0
    fields = []
    for term in map(str.strip, spec.split("+")):
        if match := _CHARS.fullmatch(term):
            per_char += 1 / number("the divisor of chars", float(match[1]), above=0)
        elif _NUMBER.fullmatch(term):
            constant += float(term)
        else:
            fields.append(checked_path(term, f"an estimate is {FORMS}"))
    return Estimate(constant, tuple(fields), per_char)


def checked_path(path: str, form: str = "a path is written like 'usage.total_tokens'") -> str:
    """The path, if it is one; else an InvalidValue that says what the form is."""
    if not _PATH.fullmatch(path):
        raise InvalidValue(f"{form}, not {path!r}")
    return path


def at_path(value: Any, path: str) -> Any:
    """What stands there in parsed JSON: "usage.total_tokens", "choices.0.text"; None: nothing."""
    for part in path.split("."):
        if isinstance(value, Mapping):
            value = value.get(part)
        elif isinstance(value, list) and part.isdecimal() and int(part) < len(value):
            value = value[int(part)]
        else:
            return None
    return value


def found(value: Any, paths: Mapping[str, str]) -> dict[str, float]:
    """The costs that parsed JSON tells, by unit; what is missing, or no number of at least 0, is
    left out.
    """
    costs = {}
    for unit, path in paths.items():
        cost = at_path(value, path)
        if not isinstance(cost, bool) and isinstance(cost, int | float) and 0 <= cost < inf:
            costs[unit] = cost
    return costs
