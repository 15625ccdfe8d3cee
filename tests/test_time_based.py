"""Every way of writing a time, and the instant that comes of it."""

from __future__ import annotations

import copy
import math
import time
from collections.abc import Callable, Iterator
from datetime import UTC, date, datetime, timedelta, timezone
from fractions import Fraction
from typing import Any
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given
from hypothesis import strategies as st

from async_task_manager.errors import InvalidType, InvalidValue
from async_task_manager.strategies.base import WallTime
from async_task_manager.strategies.time_based import TimeBasedStrategy
from async_task_manager.task import Task


async def nothing() -> None: ...


def opens(value: object, now: float = 5.0) -> float:
    return TimeBasedStrategy().not_before(Task(nothing, {"valid_after": value}), now)


@pytest.fixture
def local_zone(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[str], None]]:
    """Sets the zone that naive datetimes are in."""

    def set_zone(name: str) -> None:
        monkeypatch.setenv("TZ", name)
        time.tzset()

    yield set_zone
    monkeypatch.undo()
    time.tzset()


# ---------------------------------------------------------------- epoch seconds


@pytest.mark.parametrize("value", [10**8, 1e8, 1_700_000_000, 1_700_000_000.25, 1e300])
def test_epoch_seconds_are_wall_time(value: float) -> None:
    instant = opens(value)
    assert type(instant) is WallTime
    assert instant == value


@pytest.mark.parametrize("value", [5, 3600.5, 0, -1, math.nextafter(1e8, 0), 10**8 - 1])
def test_a_small_number_is_surely_a_delay(value: float) -> None:
    with pytest.raises(InvalidValue) as caught:
        opens(value)
    assert f"at least 1e+08, not {value!r}" in str(caught.value)
    assert f"timedelta(seconds={value!r})" in str(caught.value)


# ---------------------------------------------------------------- datetimes


@given(st.datetimes(timezones=st.sampled_from([UTC, ZoneInfo("America/New_York")])))
def test_an_aware_datetime_is_its_instant(moment: datetime) -> None:
    instant = opens(moment)
    assert type(instant) is WallTime
    assert instant == moment.timestamp()


@pytest.mark.parametrize("hours", [-14, 0, 14])
@pytest.mark.parametrize("moment", [datetime.min, datetime.max])
def test_the_rims_of_the_calendar(moment: datetime, hours: int) -> None:
    aware = moment.replace(tzinfo=timezone(timedelta(hours=hours)))
    assert opens(aware) == aware.timestamp()


@pytest.mark.parametrize("zone", ["UTC", "Pacific/Kiritimati", "Pacific/Pago_Pago"])
def test_naive_rims_are_ages_away_in_any_zone(local_zone: Callable[[str], None], zone: str) -> None:
    local_zone(zone)
    assert opens(datetime.min) == pytest.approx(-62_135_596_800, abs=86_400)
    assert opens(datetime.max) == pytest.approx(253_402_300_800, abs=86_400)


@pytest.mark.parametrize(
    ("zone", "hour_in_utc"), [("UTC", 12), ("Europe/Berlin", 11), ("America/New_York", 17)]
)
def test_a_naive_datetime_is_local(
    local_zone: Callable[[str], None], zone: str, hour_in_utc: int
) -> None:
    local_zone(zone)
    noon = opens(datetime(2026, 1, 15, 12))
    assert type(noon) is WallTime
    assert noon == datetime(2026, 1, 15, hour_in_utc, tzinfo=UTC).timestamp()


@pytest.mark.parametrize(
    ("moment", "in_utc"),
    [
        # On 8 March 2026 New York goes from 02:00 EST to 03:00 EDT.
        (datetime(2026, 3, 8, 2, 30), datetime(2026, 3, 8, 7, 30)),
        (datetime(2026, 3, 8, 2, 30, fold=1), datetime(2026, 3, 8, 6, 30)),
        # On 1 November 2026 it goes from 02:00 EDT back to 01:00 EST.
        (datetime(2026, 11, 1, 1, 30), datetime(2026, 11, 1, 5, 30)),
        (datetime(2026, 11, 1, 1, 30, fold=1), datetime(2026, 11, 1, 6, 30)),
    ],
    ids=["gap", "gap-fold-1", "first-of-the-repeated-hour", "second-of-the-repeated-hour"],
)
@pytest.mark.parametrize("aware", [False, True])
def test_the_changes_of_summer_time(
    local_zone: Callable[[str], None], moment: datetime, in_utc: datetime, aware: bool
) -> None:
    local_zone("America/New_York")
    if aware:
        moment = moment.replace(tzinfo=ZoneInfo("America/New_York"))
    assert opens(moment) == in_utc.replace(tzinfo=UTC).timestamp()


# ---------------------------------------------------------------- delays, and none


@given(now=st.floats(0, 1e9), delay=st.timedeltas(min_value=timedelta(0)))
def test_a_timedelta_counts_chain_time_from_now(now: float, delay: timedelta) -> None:
    instant = opens(delay, now)
    assert type(instant) is float
    assert instant == now + delay.total_seconds()


@pytest.mark.parametrize("delay", [timedelta(0), timedelta(microseconds=-1), timedelta.min])
def test_a_negative_timedelta_is_now(delay: timedelta) -> None:
    assert opens(delay, 7.25) == 7.25


def test_no_time_is_no_hold_and_makes_no_dict() -> None:
    bare = Task(nothing)
    policy = TimeBasedStrategy()
    assert policy.not_before(bare, 7.25) == 7.25
    assert bare._metadata is None
    assert policy.not_before(Task(nothing, {"other": 1}), 7.25) == 7.25
    assert opens(None, 7.25) == 7.25


def test_nothing_is_ever_too_late() -> None:
    assert TimeBasedStrategy().not_after(Task(nothing, {"valid_after": 2e9}), 0.0) == math.inf


def test_metadata_that_changes_later_changes_nothing() -> None:
    task = Task(nothing, {"valid_after": timedelta(seconds=3)})
    instant = TimeBasedStrategy().not_before(task, 1.0)
    task.metadata["valid_after"] = timedelta(0)
    assert instant == 4.0


def test_field_names_another_or_is_a_callable() -> None:
    task = Task(nothing, {"after": 2e9, "valid_after": 3e9})
    assert TimeBasedStrategy(field="after").not_before(task, 0.0) == 2e9
    late = TimeBasedStrategy(field=lambda task: task.metadata["after"] + 60)
    assert late.not_before(task, 0.0) == 2e9 + 60
    assert TimeBasedStrategy(field=lambda task: None).not_before(task, 1.5) == 1.5


# ---------------------------------------------------------------- what is refused


@pytest.mark.parametrize(
    ("value", "error"),
    [
        (True, InvalidType),
        (False, InvalidType),
        ("2026-01-01T00:00:00Z", InvalidType),
        ("1700000000", InvalidType),
        (date(2026, 1, 1), InvalidType),
        (Fraction(2 * 10**9), InvalidType),
        ([], InvalidType),
        (math.nan, InvalidValue),
        (math.inf, InvalidValue),
        (-math.inf, InvalidValue),
    ],
)
def test_bad_times(value: object, error: type[Exception]) -> None:
    task = Task(nothing, {"valid_after": value})
    with pytest.raises(error) as caught:
        TimeBasedStrategy().not_before(task, 0.0)
    assert repr(task) in str(caught.value)
    assert f"not {value!r}" in str(caught.value)


@pytest.mark.parametrize("field", [None, 3, ["valid_after"]])
def test_bad_parameters(field: Any) -> None:
    with pytest.raises(InvalidType, match="field must be a metadata name or a callable") as caught:
        TimeBasedStrategy(field=field)
    assert repr(field) in str(caught.value)


def test_copy_and_repr() -> None:
    policy = TimeBasedStrategy(field="after")
    assert repr(copy.deepcopy(policy)) == "TimeBasedStrategy(field='after')"
    assert repr(TimeBasedStrategy()) == "TimeBasedStrategy()"
