"""Local time: zones by name, and the instants at which their clocks show something."""

from __future__ import annotations

from bisect import bisect_left
from datetime import UTC, datetime, timedelta, tzinfo
from fractions import Fraction
from math import floor

from async_task_manager._validate import exact
from async_task_manager.errors import InvalidType, InvalidValue

__all__ = ["first_instant", "next_border", "shown_at", "zone_of"]

LAST = datetime(9999, 12, 30, tzinfo=UTC).timestamp()
"""In every zone there is a date for it; the calendar ends a day later."""


def zone_of(timezone: object) -> tzinfo:
    """The zone of an IANA name, or the tzinfo that is given; None: UTC.

    Raises:
        InvalidValue, InvalidType: it is none.
    """
    if timezone is None or timezone == "UTC":
        return UTC
    if isinstance(timezone, tzinfo):
        return timezone
    if not isinstance(timezone, str):
        raise InvalidType(f"timezone must be an IANA name, a tzinfo or None, not {timezone!r}")
    from zoneinfo import ZoneInfo  # slow to load, and few need it

    try:
        return ZoneInfo(timezone)
    except (ValueError, OSError, KeyError):  # a malformed name, a directory's name, an unknown name
        raise InvalidValue(
            f"timezone must be an IANA name such as 'America/Los_Angeles', not {timezone!r} "
            "(on a system without time zones: pip install tzdata)"
        ) from None


def shown_at(epoch: float, zone: tzinfo | None = None) -> datetime:
    """What the zone's clocks show at an instant, in epoch seconds; None: the system's clock, naive.

    What lies beyond the calendar is shown as the end of it: somebody only wants to read it.
    """
    return datetime.fromtimestamp(min(epoch, LAST), zone)


def first_instant(local: datetime, zone: tzinfo) -> int:
    """The first instant (epoch seconds) at which the zone's clocks show this time, or a later one.

    Args:
        local: Naive, to the second. Where it comes twice, the first counts; where it doesn't exist,
            the end of the gap does.
        zone: Whose clocks.
    """
    # Where a time comes twice, fold 0 is the first; where it does not exist, the two enclose the
    # gap the other way round (PEP 495).
    aware = local.replace(tzinfo=zone)
    late, early = (int(aware.replace(fold=fold).timestamp()) for fold in (0, 1))
    if late <= early:
        return late
    return early + bisect_left(range(early, late), True, key=lambda s: _shown(s, zone) >= local)


def _shown(second: int, zone: tzinfo) -> datetime:
    return datetime.fromtimestamp(second, zone).replace(tzinfo=None)


def next_border(window: float | str, zone: tzinfo, wall: float) -> float:
    """When the clock's next window begins, the first after ``wall``, both in epoch seconds."""
    if not isinstance(window, str):
        length = exact(window)
        index = Fraction(wall) // length + 1
        border = float(index * length)
        return border if border > wall else float((index + 1) * length)
    second = floor(wall)
    local = datetime.fromtimestamp(second, zone)
    if window in ("minute", "hour"):
        # By the present offset: the hour that comes twice in autumn is two windows, as it should.
        step = 60 if window == "minute" else 3600
        offset = floor((local.utcoffset() or timedelta()).total_seconds())
        return ((second + offset) // step + 1) * step - offset
    day = local.date()
    while True:  # twice, where a clock that goes back over midnight repeats the day before
        if window == "day":
            day += timedelta(days=1)
        else:
            day = (day.replace(day=1) + timedelta(days=32)).replace(day=1)
        border = first_instant(datetime(day.year, day.month, day.day), zone)
        if border > second:
            return border
