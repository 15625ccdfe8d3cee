"""Cron expressions: the instants that they mean, summer time and rare dates included."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from itertools import islice, pairwise
from math import inf, nextafter
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from async_task_manager.errors import InvalidType, InvalidValue, MissingExtra
from async_task_manager.strategies._clocks import first_instant
from async_task_manager.strategies._cron import Cron

NEW_YORK = ZoneInfo("America/New_York")
BERLIN = ZoneInfo("Europe/Berlin")
LORD_HOWE = ZoneInfo("Australia/Lord_Howe")  # its clocks go by half an hour
HAVANA = ZoneInfo("America/Havana")  # its clocks go at midnight
ZONES = [UTC, NEW_YORK, BERLIN, LORD_HOWE, HAVANA]


def runs(expression: str, zone: ZoneInfo, since: str, number: int) -> list[str]:
    """The next instants as the zone's clocks show them, with their offset from UTC."""
    wall = datetime.fromisoformat(since).replace(tzinfo=zone).timestamp()
    found = islice(instants(Cron(expression, zone), wall), number)
    return [datetime.fromtimestamp(i, zone).isoformat(timespec="minutes") for i in found]


def instants(cron: Cron, wall: float) -> Iterator[float]:
    while True:
        wall = cron.after(wall)
        yield wall


# ---- summer time --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("expression", "zone", "since", "expected"),
    [
        # New York, 10 March 2024: 02:00 to 03:00 don't exist.
        ("30 2 * * *", NEW_YORK, "2024-03-09T12:00", ["03-10T03:00-04:00", "03-11T02:30-04:00"]),
        ("0 2 * * *", NEW_YORK, "2024-03-09T12:00", ["03-10T03:00-04:00", "03-11T02:00-04:00"]),
        ("0,30 2 * * *", NEW_YORK, "2024-03-09T12:00", ["03-10T03:00-04:00", "03-11T02:00-04:00"]),
        ("*/15 2 * * *", NEW_YORK, "2024-03-09T12:00", ["03-10T03:00-04:00", "03-11T02:00-04:00"]),
        ("0 2,3 * * *", NEW_YORK, "2024-03-09T12:00", ["03-10T03:00-04:00", "03-11T02:00-04:00"]),
        ("0 */2 * * *", NEW_YORK, "2024-03-10T00:30", ["03-10T03:00-04:00", "03-10T04:00-04:00"]),
        ("30 * * * *", NEW_YORK, "2024-03-10T00:45", ["03-10T01:30-05:00", "03-10T03:30-04:00"]),
        ("30 2 10 3 *", NEW_YORK, "2024-01-01T00:00", ["03-10T03:00-04:00", "03-10T02:30-04:00"]),
        # New York, 3 November 2024: 01:00 to 02:00 come twice.
        ("30 1 * * *", NEW_YORK, "2024-11-02T12:00", ["11-03T01:30-04:00", "11-04T01:30-05:00"]),
        ("0 1-2 * * *", NEW_YORK, "2024-11-02T12:00", ["11-03T01:00-04:00", "11-03T02:00-05:00"]),
        ("*/30 1 * * *", NEW_YORK, "2024-11-03T00:30", ["11-03T01:00-04:00", "11-03T01:30-04:00"]),
        ("30 * * * *", NEW_YORK, "2024-11-03T00:45", ["11-03T01:30-04:00", "11-03T01:30-05:00"]),
        ("0 0-23 * * *", NEW_YORK, "2024-11-03T00:45", ["11-03T01:00-04:00", "11-03T01:00-05:00"]),
        # Berlin, 31 March and 27 October 2024.
        ("30 2 * * *", BERLIN, "2024-03-30T12:00", ["03-31T03:00+02:00", "04-01T02:30+02:00"]),
        ("30 2 * * *", BERLIN, "2024-10-26T12:00", ["10-27T02:30+02:00", "10-28T02:30+01:00"]),
        ("*/30 * * * *", BERLIN, "2024-03-31T01:00", ["03-31T01:30+01:00", "03-31T03:00+02:00"]),
        ("0 0 * * *", BERLIN, "2024-10-26T12:00", ["10-27T00:00+02:00", "10-28T00:00+01:00"]),
        # Lord Howe, 7 April (back to 01:30) and 6 October 2024 (on to 02:30).
        ("45 1 * * *", LORD_HOWE, "2024-04-06T12:00", ["04-07T01:45+11:00", "04-08T01:45+10:30"]),
        ("15 2 * * *", LORD_HOWE, "2024-10-05T12:00", ["10-06T02:30+11:00", "10-07T02:15+11:00"]),
        ("45 2 * * *", LORD_HOWE, "2024-10-05T12:00", ["10-06T02:45+11:00", "10-07T02:45+11:00"]),
        ("45 * * * *", LORD_HOWE, "2024-04-07T01:00", ["04-07T01:45+11:00", "04-07T01:45+10:30"]),
        ("15 * * * *", LORD_HOWE, "2024-10-06T01:00", ["10-06T01:15+10:30", "10-06T03:15+11:00"]),
        # Havana, 10 March 2024: there is no midnight; 3 November: there are two.
        ("0 0 * * *", HAVANA, "2024-03-09T12:00", ["03-10T01:00-04:00", "03-11T00:00-04:00"]),
        ("0 0 * * *", HAVANA, "2024-11-02T12:00", ["11-03T00:00-04:00", "11-04T00:00-05:00"]),
        ("15 * * * *", HAVANA, "2024-03-09T23:00", ["03-09T23:15-05:00", "03-10T01:15-04:00"]),
    ],
)
def test_a_time_that_is_skipped_or_repeated_comes_once(
    expression: str, zone: ZoneInfo, since: str, expected: list[str]
) -> None:
    years = [2024, 2025 if "10 3" in expression else 2024]
    assert runs(expression, zone, since, 2) == [
        f"{year}-{moment}" for year, moment in zip(years, expected, strict=True)
    ]


FIELD = {
    "minute": st.sampled_from(["*", "0", "30", "15,45", "*/20", "5-40/7", "59"]),
    "hour": st.sampled_from(["*", "0", "1", "2", "1-3", "*/2", "23", "0,12", "22-1", "0-23"]),
    "day": st.sampled_from(["*", "*", "*", "10", "L", "31", "1-10"]),
    "month": st.sampled_from(["*", "*", "3", "MAR-APR", "10,11"]),
    "weekday": st.sampled_from(["*", "*", "SUN", "MON-FRI", "SAT-MON", "SUN#2", "0L"]),
}

CHANGES = [
    (NEW_YORK, "2024-03-10"),
    (NEW_YORK, "2024-11-03"),
    (BERLIN, "2024-03-31"),
    (BERLIN, "2024-10-27"),
    (LORD_HOWE, "2024-04-07"),
    (LORD_HOWE, "2024-10-06"),
    (HAVANA, "2024-03-10"),
    (HAVANA, "2024-11-03"),
    (ZoneInfo("America/Sao_Paulo"), "2018-11-04"),
    (ZoneInfo("Pacific/Apia"), "2011-12-30"),  # a day that never was
    (UTC, "2024-02-29"),
]


def says(cron: Cron) -> Callable[[datetime], bool]:
    """Whether the expression, read without a zone, says this minute."""
    import cronsim

    sim = cronsim.CronSim(cron._fields, datetime(2000, 1, 1))

    def matches(local: datetime) -> bool:
        return (
            local.minute in sim.minutes
            and local.hour in sim.hours
            and local.month in sim.months
            and sim.match_day(local.date())
        )

    return matches


@settings(max_examples=100)
@given(
    st.sampled_from(CHANGES),
    st.tuples(*FIELD.values()),
    st.integers(-36 * 60, 20 * 60),
)
def test_around_a_change_of_the_clocks_a_naive_calendar_says_the_same(
    change: tuple[ZoneInfo, str], fields: tuple[str, ...], minutes: int
) -> None:
    zone, day = change
    cron = Cron(" ".join(fields), zone)
    noon = datetime.fromisoformat(f"{day}T12:00").replace(tzinfo=UTC).timestamp()
    since = noon + minutes * 60
    until = since + 86_400 * 1.5
    expected: set[float] = set()
    matches = says(cron)
    if cron._by_elapsed_time:
        for second in range(int(since) + 60, int(until), 60):
            if matches(datetime.fromtimestamp(second, zone).replace(tzinfo=None)):
                expected.add(second)
    else:
        local = datetime.fromtimestamp(since - 2 * 86_400, UTC).replace(tzinfo=None)
        for _ in range(5 * 1440):
            local += timedelta(minutes=1)
            if matches(local):
                moment = first_instant(local, zone)
                if since < moment < until:
                    expected.add(moment)
    found: list[float] = []
    for instant in instants(cron, since):
        if instant >= until:
            break
        found.append(instant)
    assert found == sorted(expected)


@settings(max_examples=60)
@given(
    st.sampled_from(ZONES),
    st.tuples(*FIELD.values()),
    st.floats(1.6e9, 1.8e9),
)
def test_after_is_strict_and_misses_nothing(
    zone: ZoneInfo, fields: tuple[str, ...], wall: float
) -> None:
    cron = Cron(" ".join(fields), zone)
    found = cron.after(wall)
    assert found > wall
    assert cron.after(nextafter(found, -inf)) == found
    assert cron.after(found) > found
    halfway = wall + (found - wall) / 2
    assert cron.after(halfway) == found


# ---- days ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("expression", "expected"),
    [
        ("0 0 29 2 *", ["2024-02-29", "2028-02-29", "2032-02-29"]),
        ("0 0 31 * *", ["2024-01-31", "2024-03-31", "2024-05-31"]),
        ("0 0 L * *", ["2024-01-31", "2024-02-29", "2024-03-31"]),
        ("0 0 LW * *", ["2024-01-31", "2024-02-29", "2024-03-29"]),
        ("0 0 * * MON#2", ["2024-01-08", "2024-02-12", "2024-03-11"]),
        ("0 0 * * 1#5", ["2024-01-29", "2024-04-29", "2024-07-29"]),
        ("0 0 * * 5L", ["2024-01-26", "2024-02-23", "2024-03-29"]),
        ("0 0 * * L5", ["2024-01-26", "2024-02-23", "2024-03-29"]),
        ("0 0 * * FRIL", ["2024-01-26", "2024-02-23", "2024-03-29"]),
        ("0 0 * * FRI-MON", ["2024-01-05", "2024-01-06", "2024-01-07"]),
        ("0 0 * * 5-7", ["2024-01-05", "2024-01-06", "2024-01-07"]),
        ("0 0 * * 7-1", ["2024-01-07", "2024-01-08", "2024-01-14"]),
        ("0 0 13 * 5", ["2024-01-05", "2024-01-12", "2024-01-13"]),  # either, as in cron
        ("0 0 ? * MON", ["2024-01-08", "2024-01-15", "2024-01-22"]),
        ("0 0 1 NOV-FEB *", ["2024-02-01", "2024-11-01", "2024-12-01"]),
        ("0 0 28-2/2 * *", ["2024-01-28", "2024-01-30", "2024-02-01"]),
        ("@yearly", ["2025-01-01", "2026-01-01", "2027-01-01"]),
        ("@Annually", ["2025-01-01", "2026-01-01", "2027-01-01"]),
        ("@monthly", ["2024-02-01", "2024-03-01", "2024-04-01"]),
        ("@weekly", ["2024-01-07", "2024-01-14", "2024-01-21"]),
        ("@daily", ["2024-01-03", "2024-01-04", "2024-01-05"]),
        ("@midnight", ["2024-01-03", "2024-01-04", "2024-01-05"]),
        ("0 0 29 2 */7", ["2032-02-29", "2060-02-29", "2088-02-29"]),  # both, after a star
    ],
)
def test_days(expression: str, expected: list[str]) -> None:
    found = runs(expression, UTC, "2024-01-02T12:00", 3)  # type: ignore[arg-type]
    assert [moment.removesuffix("T00:00+00:00") for moment in found] == expected


def test_hours_and_seconds() -> None:
    utc: ZoneInfo = UTC  # type: ignore[assignment]
    assert [m[11:16] for m in runs("@hourly", utc, "2024-01-02T22:30", 3)] == [
        *("23:00", "00:00", "01:00")
    ]
    assert [m[11:16] for m in runs("0 22-4/3 * * *", utc, "2024-01-02T12:00", 4)] == [
        *("22:00", "01:00", "04:00", "22:00")
    ]
    every_ten = list(islice(instants(Cron("*/20 * * * * *", UTC), 1.7e9), 4))
    assert [b - a for a, b in pairwise(every_ten)] == [20, 20, 20]
    half_past = Cron("30 0 12 * * *", BERLIN).after(1.7e9)
    assert datetime.fromtimestamp(half_past, BERLIN).isoformat()[11:19] == "12:00:30"


def test_within_the_hour_that_comes_again_its_times_have_been() -> None:
    again = datetime(2024, 11, 3, 1, 10, tzinfo=NEW_YORK, fold=1).timestamp()
    following = datetime(2024, 11, 4, 1, 30, tzinfo=NEW_YORK).timestamp()
    assert Cron("30 1 * * *", NEW_YORK).after(again) == following


def test_a_century_without_a_leap_day() -> None:
    since = datetime(2096, 3, 1, tzinfo=UTC).timestamp()
    assert Cron("0 0 29 2 *", UTC).after(since) == datetime(2104, 2, 29, tzinfo=UTC).timestamp()


def test_where_the_calendar_ends_nothing_comes() -> None:
    since = datetime(9999, 12, 31, 23, 59, tzinfo=UTC).timestamp()
    assert Cron("0 0 * * *", UTC).after(since) == inf
    assert Cron("* * * * *", UTC).after(since) == inf


# ---- what is refused ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("expression", "words"),
    [
        ("0 0 31 2 *", "Bad day-of-month"),
        ("0 0 30 2 *", "Bad day-of-month"),
        ("0 0 31 2,4,6,9,11 *", "Bad day-of-month"),
        ("0 0 31 2,4 */2", "Bad day-of-month"),
        ("0 0 30,31 FEB *", "Bad day-of-month"),
        ("0 0 15W * *", "the weekday nearest to a day, 15W, is not supported"),
        ("0 0 * *", "it has five fields, or six with seconds first"),
        ("0 0 0 0 * * *", "it has five fields"),
        ("", "it has five fields"),
        ("@reboot", "the names are @yearly"),
        ("60 * * * *", "Bad minute"),
        ("* 24 * * *", "Bad hour"),
        ("0 0 0 * *", "Bad day-of-month"),
        ("* * * 13 *", "Bad month"),
        ("* * * * 8", "Bad day-of-week"),
        ("* * * * MOO", "Bad day-of-week"),
        ("* * * * MON#6", "Bad day-of-week"),
        ("* * * * XL", "Bad day-of-week"),
        ("*/0 * * * *", "Bad minute"),
        ("? * * * *", "Bad minute"),
        ("0 0 L-3 * *", "Bad day-of-month"),
        ("L/2 * * * *", "Bad minute"),
        ("5-1/0 * * * *", "Bad minute"),
        ("1,,2 * * * *", "Bad minute"),
    ],
)
def test_what_means_no_instant_is_refused_at_once(expression: str, words: str) -> None:
    started = time.perf_counter()
    with pytest.raises(InvalidValue) as caught:
        Cron(expression, UTC)
    assert time.perf_counter() - started < 1
    assert words in str(caught.value)
    assert repr(expression) in str(caught.value)


def test_a_day_that_never_comes_on_that_weekday_is_refused_at_once() -> None:
    started = time.perf_counter()
    with pytest.raises(InvalidValue, match="no such day ever comes"):
        Cron("0 0 */31 * MON#2", UTC)  # both, after a star: the first is never a second Monday
    assert time.perf_counter() - started < 1


def test_it_must_be_text() -> None:
    with pytest.raises(InvalidType, match="not 5"):
        Cron(5, UTC)  # type: ignore[arg-type]


def test_without_cronsim_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "cronsim", None)
    with pytest.raises(MissingExtra, match=r"cronsim is missing: pip install .*\[cron\]"):
        Cron("@daily", UTC)


def test_it_shows_what_was_given() -> None:
    assert repr(Cron("@daily", UTC)) == "cron='@daily'"


def test_rare_dates_are_found_quickly() -> None:
    cron = Cron("59 59 23 29 2 */7", NEW_YORK)
    started = time.perf_counter()
    wall = 1.7e9
    for _ in range(3):
        wall = cron.after(wall)
    assert time.perf_counter() - started < 1
