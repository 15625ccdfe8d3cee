"""Rates as people write them: "30/minute", "6000 tokens per hour", "14400/day@America/New_York"."""

from __future__ import annotations

import re
from dataclasses import dataclass
from decimal import Decimal
from fractions import Fraction
from typing import Final

from async_task_manager.errors import InvalidType, InvalidValue
from async_task_manager.strategies.base import KeySpec
from async_task_manager.strategies.fixed_window import FixedWindowStrategy
from async_task_manager.strategies.sliding_window import SlidingWindowStrategy

__all__ = ["Rate", "parse_rate"]

FORMS: Final = (
    "'30/minute', '5 requests/second', '6,000 tokens per hour', '100/10s', "
    "'14400/day@America/Los_Angeles'"
)

_LENGTHS: Final = {"week": 604_800, "day": 86_400, "hour": 3_600, "minute": 60, "second": 1}
_MONTH: Final = 2_629_746  # a twelfth of the mean Gregorian year
_WORDS: Final = (
    {word: period for period in _LENGTHS for word in (period, f"{period}s", period[0])}
    | {"sec": "second", "secs": "second", "min": "minute", "mins": "minute", "hr": "hour"}
    | {"hrs": "hour", "month": "month", "months": "month"}
)
_REQUESTS: Final = ("request", "requests", "req", "reqs")

_RATE: Final = re.compile(
    r"""
    (?P<amount> (?: [0-9]{1,3} (?:[,_][0-9]{3})+ | [0-9]+ ) (?:\.[0-9]+)? )
    (?: \s+ (?!per\s) (?P<unit> [^\W\d][\w.-]* ) )?
    \s* (?: / | \sper\s ) \s*
    (?P<count> [0-9]+ (?:\.[0-9]+)? )?
    \s* (?P<word> [a-z]+ )
    (?: \s* @ \s* (?P<timezone> \S+ ) )?
    """,
    re.VERBOSE | re.IGNORECASE,
)
_LONGEST: Final = (
    200  # characters: no rate is that long, and digits without end would take their time
)


@dataclass(frozen=True, slots=True)
class Rate:
    """So much per so long, and the limit that holds it. ``str(rate)`` is what `parse_rate` reads.

    Raises:
        InvalidValue, InvalidType: no limit can be made of it.
    """

    amount: float
    """How many requests, a whole number; or how much of the unit. Above 0."""
    unit: str | None
    """The name of the unit in ``metadata["cost"]``; None: requests."""
    seconds: float
    """The period, above 0; of a calendar's period, the mean length."""
    calendar: str | None = None
    """A period of the wall clock: "minute", "hour", "day" or "month"; None: any so many seconds."""
    timezone: str | None = None
    """The IANA name of the clock's zone; together with ``calendar``."""

    def __post_init__(self) -> None:
        if (self.calendar is None) is not (self.timezone is None):
            raise InvalidValue(
                "calendar and timezone go together, "
                f"not calendar={self.calendar!r} with timezone={self.timezone!r}"
            )
        self.limit()  # checks the rest
        if self.unit is None and self.amount % 1:
            raise InvalidValue(
                f"requests come whole: a longer period, such as 1/2s, not {self.amount!r}"
            )

    def limit(
        self, slack: float = 0.05, key: KeySpec = None, default_cost: float | None = None
    ) -> SlidingWindowStrategy | FixedWindowStrategy:
        """A new limit of this rate: a sliding window or, where it names a zone, one of the clock.

        Args:
            slack: Seconds by which the window is widened: what leaves in one window may arrive in
                the next.
            key: What splits the limit: a metadata name or a callable.
            default_cost: What tasks cost that don't say, for a rate with a unit.
        """
        if self.calendar is None:
            return SlidingWindowStrategy(
                self.amount,
                self.seconds,
                slack=slack,
                key=key,
                cost=self.unit,
                default_cost=default_cost,
            )
        return FixedWindowStrategy(
            self.amount,
            self.calendar,
            align="clock",
            timezone=self.timezone,
            slack=slack,
            key=key,
            cost=self.unit,
            default_cost=default_cost,
        )

    def __str__(self) -> str:
        unit = "" if self.unit is None else f" {self.unit}"
        return f"{_digits(self.amount)}{unit}/{self._period()}"

    def _period(self) -> str:
        if self.calendar is not None:
            return f"{self.calendar}@{self.timezone}"
        for period, length in _LENGTHS.items():
            if self.seconds % length == 0:
                count = int(self.seconds // length)
                return period if count == 1 else f"{count}{period[0]}"
        return f"{_digits(self.seconds)}s"


def parse_rate(text: str) -> Rate:
    """The rate that a text names.

    An amount, perhaps the name of its unit (none: requests), and a period after "/" or "per": a
    second, minute, hour, day or week, or several, "10s" or "1.5 hours". With "@" and a time zone, a
    minute, hour, day or month of the clock there. Thousands may be set apart: 6,000 or 6_000.

    Raises:
        InvalidType: not a str.
        InvalidValue: written otherwise, an unknown time zone, or nothing per something.
    """
    if not isinstance(text, str):
        raise InvalidType(f"a rate must be a str such as '30/minute', not {text!r}")
    found = _RATE.fullmatch(text.strip()) if len(text) <= _LONGEST else None
    period = _WORDS.get(found["word"].lower()) if found is not None else None
    if found is None or period is None:
        raise InvalidValue(f"a rate is written like {FORMS}, not {text[:_LONGEST]!r}")
    unit, zone = found["unit"], found["timezone"]
    if unit is not None and unit.lower() in _REQUESTS:
        unit = None
    if zone is not None and (found["count"] is not None or period in ("week", "second")):
        raise InvalidValue(
            f"with a time zone the period must be a minute, hour, day or month, not {text!r}"
        )
    if zone is None and period == "month":
        raise InvalidValue(
            f"months differ in length: '…/month@UTC' follows the calendar, not {text!r}"
        )
    seconds = Fraction(found["count"] or 1) * _LENGTHS.get(period, _MONTH)
    try:
        return Rate(
            _number(Fraction(re.sub("[,_]", "", found["amount"]))),
            unit,
            float(seconds),
            None if zone is None else period,
            zone,
        )
    except InvalidValue as error:
        raise InvalidValue(f"rate {text!r}: {error}") from None


def _number(value: Fraction) -> float:
    return value.numerator if value.denominator == 1 else float(value)


def _digits(value: float) -> str:
    return format(Decimal(repr(value)), "f").removesuffix(".0")
