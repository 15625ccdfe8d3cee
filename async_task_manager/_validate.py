"""Checks of parameters: one sentence of error that names the thing, the value and the range."""

from __future__ import annotations

import sys
from collections.abc import Awaitable, Callable
from fractions import Fraction
from inspect import isawaitable
from numbers import Rational
from typing import Any

from async_task_manager.errors import InvalidType, InvalidValue

__all__ = ["awaitable", "exact", "number", "one_of", "optional", "whole"]


def number(
    name: str,
    value: object,
    *,
    above: float | None = None,
    at_least: float | None = None,
    at_most: float | None = None,
) -> float:
    """The value, if it is a finite number within the range (``above`` is exclusive).

    Raises:
        InvalidType: not a real number (a bool is not one).
        InvalidValue: NaN, infinite or out of range.
    """
    if isinstance(value, bool) or not isinstance(value, (int, float, Fraction)):
        raise InvalidType(f"{name} must be a number, not {value!r}")
    if (
        not -sys.float_info.max <= value <= sys.float_info.max  # false for NaN, too
        or (above is not None and value <= above)
        or (at_least is not None and value < at_least)
        or (at_most is not None and value > at_most)
    ):
        bounds = [
            f"above {above}" if above is not None else "",
            f"at least {at_least}" if at_least is not None else "",
            f"at most {at_most}" if at_most is not None else "",
        ]
        wanted = " and ".join(bound for bound in bounds if bound)
        raise InvalidValue(f"{name} must be a finite number {wanted}".rstrip() + f", not {value!r}")
    return value  # type: ignore[return-value]  # a Fraction does all that a float does here


def whole(name: str, value: object, *, at_least: int, at_most: int | None = None) -> int:
    """The value, if it is an int within the range.

    Raises:
        InvalidType: not an int (a bool is not one).
        InvalidValue: out of range.
    """
    if isinstance(value, bool) or not isinstance(value, int):
        raise InvalidType(f"{name} must be a whole number, not {value!r}")
    number(name, value, at_least=at_least, at_most=at_most)
    return value


def optional(
    check: Callable[..., float], name: str, value: object, **bounds: float
) -> float | None:
    """``check(name, value, ...)``, or None for None."""
    return None if value is None else check(name, value, **bounds)


def one_of(name: str, value: object, allowed: tuple[str, ...]) -> str:
    """The value, if it is one of the allowed words; InvalidValue otherwise."""
    if not isinstance(value, str) or value not in allowed:
        words = ", ".join(repr(word) for word in allowed)
        raise InvalidValue(f"{name} must be one of {words}, not {value!r}")
    return value


def awaitable(name: str, value: Any) -> Awaitable[Any]:
    """What an async function gave when it was called; InvalidType if it wasn't async after all."""
    if not isawaitable(value):
        raise InvalidType(f"{name} must be an async function, not one that gives {value!r}")
    return value


def exact(value: float) -> int | Fraction:
    """The number as people write it, in arithmetic that never drifts: 0.1 is a tenth.

    Sums of floats drift (0.1 + 0.2 > 0.3), so that a limit would refuse what fits, or admit
    what doesn't; whole numbers stay ints, which costs nothing.
    """
    if type(value) is int:
        return value
    if isinstance(value, float):
        return int(value) if value.is_integer() else Fraction(repr(value))
    assert isinstance(value, Rational)
    return value.numerator if value.denominator == 1 else Fraction(value)
