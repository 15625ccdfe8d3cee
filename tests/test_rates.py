"""Rates in words, and the limits that come of them."""

from __future__ import annotations

import math
import re
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from async_task_manager.errors import InvalidType, InvalidValue
from async_task_manager.rates import FORMS, Rate, parse_rate
from async_task_manager.strategies.fixed_window import FixedWindowStrategy
from async_task_manager.strategies.sliding_window import SlidingWindowStrategy
from async_task_manager.task import Task

LOS_ANGELES = "America/Los_Angeles"


async def nothing() -> None: ...


# ---------------------------------------------------------------- what may be written


@pytest.mark.parametrize(
    ("text", "amount", "unit", "seconds"),
    [
        ("30/minute", 30, None, 60),
        ("30 per minute", 30, None, 60),
        ("30 requests per minute", 30, None, 60),
        ("30 / Minute", 30, None, 60),
        ("  30/m\n", 30, None, 60),
        ("30/min", 30, None, 60),
        ("5 requests/second", 5, None, 1),
        ("1 request/s", 1, None, 1),
        ("5 Req/sec", 5, None, 1),
        ("30/s", 30, None, 1),
        ("100/10s", 100, None, 10),
        ("100/10 seconds", 100, None, 10),
        ("100 per 10 seconds", 100, None, 10),
        ("100/0.5s", 100, None, 0.5),
        ("100/0.1s", 100, None, 0.1),
        ("9/1.5h", 9, None, 5400),
        ("9/hr", 9, None, 3600),
        ("9/2 days", 9, None, 172_800),
        ("9/d", 9, None, 86_400),
        ("9/week", 9, None, 604_800),
        ("9.0/w", 9, None, 604_800),
        ("6000 tokens/minute", 6000, "tokens", 60),
        ("6_000 tokens/minute", 6000, "tokens", 60),
        ("6,000 tokens per hour", 6000, "tokens", 3600),
        ("1,234,567/day", 1_234_567, None, 86_400),
        ("2.50 usd/hour", 2.5, "usd", 3600),
        ("0.1 GPU-hours/day", 0.1, "GPU-hours", 86_400),
        ("3 persons per day", 3, "persons", 86_400),
        ("9007199254740993/s", 9_007_199_254_740_993, None, 1),
    ],
)
def test_a_rate(text: str, amount: float, unit: str | None, seconds: float) -> None:
    rate = parse_rate(text)
    assert rate == Rate(amount, unit, seconds)
    assert type(rate.amount) is type(amount)
    assert type(rate.seconds) is float


@pytest.mark.parametrize(
    ("text", "calendar", "seconds", "zone"),
    [
        ("14400/day@America/Los_Angeles", "day", 86_400, LOS_ANGELES),
        ("14400 per day @ America/Los_Angeles", "day", 86_400, LOS_ANGELES),
        ("14400/d@UTC", "day", 86_400, "UTC"),
        ("14400/hours@Etc/GMT+8", "hour", 3600, "Etc/GMT+8"),
        ("14400/m@UTC", "minute", 60, "UTC"),
        ("14400/month@UTC", "month", 365.2425 * 86_400 / 12, "UTC"),
    ],
)
def test_a_rate_of_the_calendar(text: str, calendar: str, seconds: float, zone: str) -> None:
    assert parse_rate(text) == Rate(14_400, None, seconds, calendar, zone)


def test_the_forms_that_errors_show_are_accepted() -> None:
    shown = re.findall("'(.*?)'", FORMS)
    assert len(shown) == 5
    for form in shown:
        parse_rate(form)


@pytest.mark.parametrize(
    ("text", "written"),
    [
        ("30 requests per min", "30/minute"),
        ("6,000 tokens per hour", "6000 tokens/hour"),
        ("100/10s", "100/10s"),
        ("100/120 s", "100/2m"),
        ("100/90s", "100/90s"),
        ("100/7d", "100/week"),
        ("2.50 usd/1.5h", "2.5 usd/90m"),
        ("100/0.25s", "100/0.25s"),
        ("100/0.0000001s", "100/0.0000001s"),
        ("14400/d@America/Los_Angeles", "14400/day@America/Los_Angeles"),
    ],
)
def test_str_is_the_plainest_way_to_write_it(text: str, written: str) -> None:
    assert str(parse_rate(text)) == written


positive = {"allow_nan": False, "allow_infinity": False, "min_value": 1e-9, "max_value": 1e12}


@given(
    st.one_of(
        st.builds(Rate, st.integers(1, 10**15), st.none(), st.floats(**positive)),  # type: ignore[arg-type]
        st.builds(
            Rate,
            st.one_of(st.integers(1, 10**15), st.floats(**positive)),  # type: ignore[arg-type]
            st.sampled_from(["tokens", "usd", "per_call", "größe", "a.b-c"]),
            st.integers(1, 10**9),
        ),
        st.builds(
            lambda amount, calendar: parse_rate(f"{amount}/{calendar}@{LOS_ANGELES}"),
            st.integers(1, 10**15),
            st.sampled_from(["minute", "hour", "day", "month"]),
        ),
    )
)
def test_what_str_writes_is_read_back(rate: Rate) -> None:
    assert parse_rate(str(rate)) == rate


# ---------------------------------------------------------------- what is refused


@pytest.mark.parametrize(
    "text",
    [
        "",
        "30",
        "/minute",
        "30/",
        "30 minute",
        "30per minute",
        "30/fortnight",
        "-30/minute",
        "1e3/s",
        "5k/s",
        "6,00/s",
        "6,0000/s",
        "1_0/s",
        ".5 x/s",
        "٣/s",
        "30 input tokens/minute",
        "30/minute@",
        "30/minute/second",
        "30/-1s",
        "30/minute; 5/s",
    ],
)
def test_anything_else_is_refused_and_the_forms_are_shown(text: str) -> None:
    with pytest.raises(InvalidValue) as caught:
        parse_rate(text)
    assert str(caught.value) == f"a rate is written like {FORMS}, not {text!r}"


def test_endless_text_is_refused_at_once_and_not_shown_whole() -> None:
    with pytest.raises(InvalidValue) as caught:
        parse_rate("9" * 10_000_000 + "/s")
    assert len(str(caught.value)) < 400


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("0/s", "rate '0/s': max_requests must be .* above 0, not 0"),
        ("5/0s", "rate '5/0s': window_seconds must be .* above 0, not 0"),
        ("0.5/s", r"rate '0.5/s': requests come whole.* 1/2s, not 0.5"),
        ("1.5 requests/s", "requests come whole.* not 1.5"),
        ("5/month", "'…/month@UTC' .* not '5/month'"),
        ("5/week@UTC", "minute, hour, day or month, not '5/week@UTC'"),
        ("5/second@UTC", "minute, hour, day or month, not '5/second@UTC'"),
        ("5/10m@UTC", "minute, hour, day or month, not '5/10m@UTC'"),
        ("5/day@Mars/Base", "rate '5/day@Mars/Base': timezone must be .* not 'Mars/Base'"),
        ("5/day@../etc", "rate '5/day@../etc': timezone must be .* not '../etc'"),
        ("5/day@America", "timezone must be .* not 'America'"),
    ],
)
def test_a_rate_that_cannot_be(text: str, says: str) -> None:
    with pytest.raises(InvalidValue, match=says):
        parse_rate(text)


@pytest.mark.parametrize("text", [None, 30, b"30/s", ["30/s"]])
def test_a_rate_is_a_str(text: Any) -> None:
    with pytest.raises(InvalidType) as caught:
        parse_rate(text)
    assert repr(text) in str(caught.value)


@pytest.mark.parametrize(
    ("values", "error", "says"),
    [
        ((-1, None, 60), InvalidValue, "-1"),
        ((math.nan, None, 60), InvalidValue, "nan"),
        ((True, None, 60), InvalidType, "True"),
        ((1, None, math.inf), InvalidValue, "inf"),
        ((1, None, 60, "day", None), InvalidValue, "calendar='day' with timezone=None"),
        ((1, None, 60, None, "UTC"), InvalidValue, "calendar=None with timezone='UTC'"),
        ((1, None, 60, "fortnight", "UTC"), InvalidValue, "'fortnight'"),
        ((1.5, None, 60), InvalidValue, "1.5"),
    ],
)
def test_a_rate_made_by_hand_is_checked(
    values: tuple[Any, ...], error: type[Exception], says: str
) -> None:
    with pytest.raises(error, match=says):
        Rate(*values)


# ---------------------------------------------------------------- limits


def test_a_limit_is_a_sliding_window_widened_by_the_slack() -> None:
    limit = parse_rate("2/10s").limit()
    assert isinstance(limit, SlidingWindowStrategy)
    grants = [limit.acquire(None, 1, 100.0) for _ in range(2)]
    for grant in grants:
        limit.started(grant, 100.0)
    instant = limit.ready_at(None, 1, 100.0)
    assert instant == pytest.approx(110.05)
    assert limit.ready_at(None, 1, instant) <= instant


def test_a_unit_is_what_tasks_cost() -> None:
    limit = parse_rate("6000 tokens/minute").limit(default_cost=300)
    assert limit.cost_of(Task(nothing, {"cost": {"tokens": 900}})) == 900
    assert limit.cost_of(Task(nothing)) == 300
    assert parse_rate("6000/minute").limit().cost_of(Task(nothing, {"cost": 900})) == 1


@pytest.mark.parametrize("text", ["6000 tokens/minute", "14400 tokens/day@America/Los_Angeles"])
def test_options_reach_the_limit(text: str) -> None:
    limit = parse_rate(text).limit(slack=0.5, key="user_id", default_cost=2)
    assert limit.slack == 0.5
    assert limit.key_of(Task(nothing, {"user_id": "ada"})) == "ada"
    assert limit.cost_of(Task(nothing)) == 2
    assert parse_rate(text).limit().slack == 0.05


def test_a_rate_of_the_calendar_makes_windows_of_the_clock() -> None:
    limit = parse_rate(f"14400/day@{LOS_ANGELES}").limit()
    assert isinstance(limit, FixedWindowStrategy)
    assert repr(limit) == repr(
        FixedWindowStrategy(14_400, "day", align="clock", timezone=LOS_ANGELES, slack=0.05)
    )


def test_each_limit_is_a_new_one() -> None:
    rate = parse_rate("1/s")
    first, second = rate.limit(), rate.limit()
    first.acquire(None, 1, 0.0)
    assert first.ready_at(None, 1, 0.0) > 0.0
    assert second.ready_at(None, 1, 0.0) <= 0.0
