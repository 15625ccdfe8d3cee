"""Cron expressions, and the instants that they mean in a time zone."""

from __future__ import annotations

import re
from bisect import bisect_left
from datetime import UTC, datetime, timedelta, tzinfo
from math import floor, inf
from typing import Any, Final

from async_task_manager.errors import InvalidType, InvalidValue, MissingExtra
from async_task_manager.strategies._clocks import first_instant

__all__ = ["Cron"]

ALIASES: Final = {
    "@yearly": "0 0 1 1 *",
    "@annually": "0 0 1 1 *",
    "@monthly": "0 0 1 * *",
    "@weekly": "0 0 * * 0",
    "@daily": "0 0 * * *",
    "@midnight": "0 0 * * *",
    "@hourly": "0 * * * *",
}

DAYS: Final = ("SUN", "MON", "TUE", "WED", "THU", "FRI", "SAT")
MONTHS: Final = (
    *("JAN", "FEB", "MAR", "APR", "MAY", "JUN"),
    *("JUL", "AUG", "SEP", "OCT", "NOV", "DEC"),
)

FIELDS: Final = (
    ("second", 0, 59),
    ("minute", 0, 59),
    ("hour", 0, 23),
    ("day-of-month", 1, 31),
    ("month", 1, 12),
    ("day-of-week", 0, 6),
)

DAY: Final = 86_400

ANCHOR: Final = datetime(2000, 1, 1)
"""From here on, an expression must find an instant within fifty years, or it is refused."""


class Cron:
    """Five fields as in cron, or six with seconds first, read by the clocks of a zone.

    An expression that says hours means the times of a day, each of which comes exactly once: one
    that the clocks skip at the end of the gap, one that they repeat the first time. One that
    leaves the hours open (``*``) goes by the time that passes, over the hour that comes twice as
    well.

    Raises:
        InvalidValue, InvalidType: it is no such expression, or means no instant at all.
        MissingExtra: cronsim is not installed.
    """

    def __init__(self, expression: str, zone: tzinfo) -> None:
        if not isinstance(expression, str):
            raise InvalidType(
                f"cron must be an expression such as '0 3 * * MON', not {expression!r}"
            )
        try:
            import cronsim
        except ImportError as error:
            raise MissingExtra("cron", "cronsim") from error
        self._sim: Any = cronsim.CronSim
        self.zone = zone
        self.expression = expression
        self._fields = _translated(expression)
        try:
            hours = cronsim.CronSim(self._fields, ANCHOR).hours
            next(cronsim.CronSim(self._fields, ANCHOR))
        except StopIteration:
            raise _refused(expression, "no such day ever comes") from None
        except (cronsim.CronSimError, ValueError, AssertionError) as error:
            raise _refused(expression, str(error) or "it cannot be read") from None
        self._by_elapsed_time = len(hours) == 24

    def after(self, wall: float) -> float:
        """The first of its instants that is later than this one, in epoch seconds; inf if there is
        none within fifty years, or the calendar ends.
        """
        try:
            return self._elapsed(wall) if self._by_elapsed_time else self._local(wall)
        except (StopIteration, OverflowError):
            return inf

    def _local(self, wall: float) -> float:
        now = datetime.fromtimestamp(floor(wall), self.zone).replace(tzinfo=None, fold=0)
        times = self._sim(self._fields, now)
        while True:
            instant = first_instant(next(times), self.zone)
            if instant > wall:  # else it was shown before, and is shown again
                return instant

    def _elapsed(self, wall: float) -> float:
        second = floor(wall)
        offset = self._offset(second)
        while True:
            local = datetime.fromtimestamp(second, UTC).replace(tzinfo=None) + offset
            shown = next(self._sim(self._fields, local))
            instant = int((shown - offset).replace(tzinfo=UTC).timestamp())
            change = self._change(second, instant, offset)
            if change is None:
                return instant
            # The clocks are set before that: from there on they show something else.
            second, offset = change - 1, self._offset(change)

    def _offset(self, second: int) -> timedelta:
        return datetime.fromtimestamp(second, self.zone).utcoffset() or timedelta()

    def _change(self, second: int, until: int, offset: timedelta) -> int | None:
        """The first second after this one, up to ``until``, with another offset from UTC."""
        for end in (*range(second + DAY, until, DAY), until):
            if self._offset(end) != offset:
                start = max(second + 1, end - DAY)
                seconds = range(start, end + 1)
                return seconds[bisect_left(seconds, True, key=lambda s: self._offset(s) != offset)]
        return None

    def __repr__(self) -> str:
        return f"cron={self.expression!r}"


def _translated(expression: str) -> str:
    """The expression as cronsim reads it."""
    text = ALIASES.get(expression.strip().lower(), expression)
    parts = text.upper().split()
    if text.startswith("@"):
        raise _refused(expression, f"the names are {', '.join(ALIASES)}")
    if len(parts) not in (5, 6):
        raise _refused(expression, "it has five fields, or six with seconds first")
    return " ".join(
        ",".join(_term(expression, term, *field) for term in part.split(","))
        for part, field in zip(parts, FIELDS[-len(parts) :], strict=True)
    )


def _term(expression: str, term: str, name: str, low: int, high: int) -> str:
    """One term of a field: what cronsim lacks is written in another way."""
    if term == "?" and name.startswith("day"):
        return "*"
    if name == "day-of-month" and "W" in term and term != "LW":
        raise _refused(expression, f"the weekday nearest to a day, {term}, is not supported")
    if name == "day-of-week" and "L" in term:
        day = term.replace("L", "", 1)
        return f"{_number(day, name)}L"
    found = re.fullmatch(r"(\w+)-(\w+)(?:/(\d+))?", term)
    if found is None:
        return term
    first, last = _number(found[1], name), _number(found[2], name)
    if name == "day-of-week" and first == "7":
        first = "0"
    step = int(found[3] or 1)
    if not (first.isdigit() and last.isdigit() and step):
        return term
    if int(first) <= int(last):
        return f"{first}-{last}/{step}"
    # A range over the end: FRI-MON, 22-4.
    values = [*range(int(first), high + 1), *range(low, int(last) + 1)]
    return ",".join(map(str, values[::step]))


def _number(word: str, name: str) -> str:
    names = {"month": MONTHS, "day-of-week": DAYS}.get(name, ())
    return str(names.index(word) + (name == "month")) if word in names else word


def _refused(expression: str, why: str) -> InvalidValue:
    return InvalidValue(
        f"cron must be an expression that means some instant, not {expression!r}: {why}"
    )
