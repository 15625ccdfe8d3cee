"""Fixed windows: none holds too much, nothing that fits waits, and the clock's are the clock's."""

from __future__ import annotations

import copy
import json
from collections import defaultdict
from collections.abc import Callable, Hashable
from datetime import UTC, datetime, timedelta, timezone
from fractions import Fraction
from math import floor, inf, nextafter
from typing import Any
from zoneinfo import ZoneInfo

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from async_task_manager.errors import InvalidType, InvalidValue, TaskTooLarge
from async_task_manager.strategies.base import Cost
from async_task_manager.strategies.fixed_window import FixedWindowStrategy
from async_task_manager.task import Outcome, Task

STARTED = Outcome("success", 0.0, 1.0)
FAILED = Outcome("failure", 0.0, 1.0, ValueError())
UNSTARTED = Outcome("cancelled", None, 1.0)


async def nothing() -> None: ...


def task(**metadata: Any) -> Task[None]:
    return Task(nothing, metadata)


def start(limit: FixedWindowStrategy, at: float, cost: Cost = 1, key: Hashable = None) -> Any:
    assert limit.ready_at(key, cost, at) <= at
    grant = limit.acquire(key, cost, at)
    limit.started(grant, at)
    return grant


# ---------------------------------------------------------------- any life, against a naive count


class Entry:
    def __init__(self, grant: Any, cost: Cost) -> None:
        self.grant = grant
        self.cost = cost
        self.end: float | None = None  # of the window in which it started


class Naive:
    """One key: every task that was ever let go, and the windows in which they started."""

    def __init__(self, most: Cost, end_of_window: Callable[[float], float]) -> None:
        self.most, self.end_of_window = most, end_of_window
        self.entries: list[Entry] = []
        self.end = -inf

    def used(self, now: float) -> Cost:
        counted = (e.cost for e in self.entries if e.end is None or e.end > now)
        return sum(counted, start=Fraction(0))

    def opens(self, cost: Cost, now: float) -> float:
        instants = (now, max(now, self.end), inf)
        return next(t for t in instants if t == inf or self.used(t) + cost <= self.most)

    def start(self, entry: Entry, now: float) -> None:
        if now >= self.end:
            self.end = self.end_of_window(now)
        entry.end = self.end

    def fullest_window(self) -> Cost:
        windows: dict[float | None, Cost] = defaultdict(Fraction)
        for entry in self.entries:
            windows[entry.end] += entry.cost
        return max(windows.values(), default=0)


ACTS = ["attempt"] * 4 + ["start"] * 3 + ["cancel", "end"]
COSTS = st.sampled_from([0, 1, 1, 1, 2, 3, Fraction(1, 2), Fraction(1, 10)])
# By the clock, multiples of powers of two: the naive sums are exact then, whatever the offset.
DYADIC = st.builds(lambda n, d: n / d, st.integers(0, 20), st.sampled_from([1, 4, 16]))
Steps = list[tuple[str, int, Any, float]]


def steps(pauses: st.SearchStrategy[float]) -> st.SearchStrategy[Steps]:
    step = st.tuples(st.sampled_from(ACTS), st.integers(0, 9), COSTS, pauses)
    return st.lists(step, max_size=60)


def live(
    life: Steps,
    limit: FixedWindowStrategy,
    end_of_window: Callable[[float], float],
    *,
    settle_up: bool,
) -> None:
    """Leads a random life, and compares every answer with the naive one."""
    most = Fraction(str(limit.max_requests))
    keys = {key: Naive(most, end_of_window) for key in "ab"}
    acquired: list[tuple[Entry, Naive]] = []
    running: list[Entry] = []
    now = 0.0
    for act, number, cost, pause in life:
        now += pause
        key = "ab"[number % 2]
        naive = keys[key]
        if act == "attempt" and cost <= most:
            opens = naive.opens(cost, now)
            assert max(limit.ready_at(key, cost, now), now) == opens
            if now < opens < inf:
                just_before = nextafter(opens, -inf)
                assert limit.ready_at(key, cost, just_before) > just_before
                assert limit.ready_at(key, cost, opens) <= opens
                now = opens if number < 5 else now
            if opens <= now:
                entry = Entry(limit.acquire(key, cost, now), cost)
                naive.entries.append(entry)
                acquired.append((entry, naive))
        elif act == "start" and acquired:
            entry, naive = acquired.pop(number % len(acquired))
            limit.started(entry.grant, now)
            naive.start(entry, now)
            running.append(entry)
        elif act == "cancel" and acquired:
            entry, naive = acquired.pop(number % len(acquired))
            limit.release(entry.grant, UNSTARTED, now)
            naive.entries.remove(entry)
        elif act == "end" and running:
            entry = running.pop(number % len(running))
            if settle_up or cost < entry.cost:
                limit.settle(entry.grant, cost, now)
                entry.cost = cost
            limit.release(entry.grant, FAILED if number % 2 else STARTED, now)
        for key, naive in keys.items():
            usage = limit.usage(key, now)
            assert usage.used == float(naive.used(now))
            assert usage.frees_at is None or usage.frees_at == naive.end > now
    for naive in keys.values():
        assert settle_up or naive.fullest_window() <= most


MOST = st.sampled_from([1, 3, 2.5])


@settings(max_examples=150)
@given(
    steps(st.sampled_from([0.0, 0.1, 0.3, 1.0]) | st.floats(0, 1.5)),
    MOST,
    st.sampled_from([1.0, 0.1, 0.7]),
    st.sampled_from([0.0, 0.05]),
    st.booleans(),
)
def test_windows_from_the_first_start(
    life: Steps, most: float, window: float, slack: float, settle_up: bool
) -> None:
    limit = FixedWindowStrategy(most, window, slack=slack, key="k")
    live(life, limit, lambda now: now + (window + slack), settle_up=settle_up)


@settings(max_examples=150)
@given(
    steps(DYADIC),
    MOST,
    st.sampled_from([0.5, 2.0, 60.0]),
    st.sampled_from([0.0, 0.125]),
    st.sampled_from([0.0, 1.75, 1_700_000_000.25]),
    st.booleans(),
)
def test_windows_by_the_clock(  # noqa: PLR0917
    life: Steps, most: float, window: float, slack: float, offset: float, settle_up: bool
) -> None:
    limit = FixedWindowStrategy(most, window, align="clock", slack=slack, key="k")
    limit.set_wall_offset(offset, 0.0)

    def end_of_window(now: float) -> float:
        return (floor((now + offset - slack) / window) + 1) * window - offset + slack

    live(life, limit, end_of_window, settle_up=settle_up)


def test_a_window_opens_at_the_first_start_and_not_before() -> None:
    limit = FixedWindowStrategy(2, 10)
    first = limit.acquire(None, 1, 0.0)
    second = limit.acquire(None, 1, 0.0)
    assert limit.ready_at(None, 1, 0.0) == inf
    limit.started(first, 3.0)
    assert limit.ready_at(None, 1, 3.0) == 13.0
    assert limit.ready_at(None, 2, 3.0) == inf
    limit.started(second, 20.0)
    assert limit.ready_at(None, 1, 20.0) == 20.0
    assert limit.ready_at(None, 2, 20.0) == 30.0
    assert limit.usage(None, 20.0).frees_at == 30.0
    assert limit.usage(None, 30.0).used == 0
    assert limit.usage(None, 30.0).frees_at is None


def test_an_end_without_a_start_counts_as_one() -> None:
    limit = FixedWindowStrategy(1, 10)
    limit.release(limit.acquire(None, 1, 0.0), STARTED, 3.0)
    assert limit.ready_at(None, 1, 3.0) == 13.0


def test_a_cost_known_before_the_start_counts_at_once() -> None:
    limit = FixedWindowStrategy(10, 60)
    grant = limit.acquire(None, 4, 0.0)
    limit.settle(grant, 6, 0.0)
    assert limit.usage(None, 0.0).used == 6
    limit.release(grant, UNSTARTED, 0.0)
    assert limit.usage(None, 0.0).used == 0


def test_a_cost_learnt_after_its_window_ended_changes_nothing() -> None:
    limit = FixedWindowStrategy(10, 60)
    grant = start(limit, 0.0, 4)
    start(limit, 60.0, 1)
    limit.settle(grant, 8, 60.0)
    assert limit.usage(None, 60.0).used == 1


@pytest.mark.parametrize("actual", [-1, float("nan"), inf])
def test_an_actual_cost_that_is_none_is_refused(actual: float) -> None:
    limit = FixedWindowStrategy(10, 60)
    grant = start(limit, 0.0, 4)
    with pytest.raises(InvalidValue, match=rf"actual cost .*at least 0, not {actual!r}"):
        limit.settle(grant, actual, 1.0)
    assert limit.usage(None, 0.0).used == 4


def test_a_million_tenths_sum_exactly() -> None:
    limit = FixedWindowStrategy(0.3, 1, cost=0.1)
    cost = limit.cost_of(task())
    for second in range(100):
        for _ in range(3):
            start(limit, second, cost)
        assert limit.ready_at(None, cost, second) == second + 1


@example(window=5e-324)
@example(window=1e308)
@given(st.floats(min_value=0, exclude_min=True, allow_infinity=False))
def test_windows_of_any_length_make_progress(window: float) -> None:
    limit = FixedWindowStrategy(1, window)
    now = 0.0
    for _ in range(3):
        start(limit, now)
        ready = limit.ready_at(None, 1, now)
        assert ready == now + window
        if ready == inf:
            return
        now = ready


def test_keys_have_windows_of_their_own_and_idle_ones_are_forgotten() -> None:
    limit = FixedWindowStrategy(1, 1, key="user")
    for number in range(10_000):
        now = number / 10
        start(limit, now, key=number)
        assert limit.ready_at(number, 1, now) == now + 1
        assert limit.ready_at("another", 1, now) == now
    assert len(limit._windows) < 50
    pending = limit.acquire("pending", 0, 1000.0)
    for second in range(1001, 1050):
        start(limit, second, key="the last")
    assert set(limit._windows) == {"the last", "pending"}
    limit.release(pending, UNSTARTED, 1050.0)
    for second in range(1050, 1053):
        start(limit, second, key=None)
    assert set(limit._windows) == {None}


# ---------------------------------------------------------------- the clock


def utc(text: str) -> float:
    return datetime.fromisoformat(text).replace(tzinfo=UTC).timestamp()


def next_border(window: float | str, zone: Any, wall: float) -> float:
    """When a window by the clock opens again that was used up at ``wall``."""
    limit = FixedWindowStrategy(1, window, align="clock", timezone=zone)
    limit.set_wall_offset(wall, 0.0)
    start(limit, 0.0)
    return wall + limit.ready_at(None, 1, 0.0)


@pytest.mark.parametrize(
    ("window", "zone", "borders"),
    [
        ("minute", None, ["2024-05-01 12:00:30", "2024-05-01 12:01", "2024-05-01 12:02"]),
        ("minute", "Asia/Kathmandu", ["2024-05-01 12:00:30", "2024-05-01 12:01"]),
        ("hour", None, ["2024-05-01 12:00", "2024-05-01 13:00", "2024-05-01 14:00"]),
        ("hour", "Asia/Kolkata", ["2024-05-01 12:00", "2024-05-01 12:30", "2024-05-01 13:30"]),
        # The hour from 1 to 2 comes twice: two windows. The one from 2 to 3 is skipped.
        (
            "hour",
            "America/Los_Angeles",
            ["2024-11-03 08:10", "2024-11-03 09:00", "2024-11-03 10:00", "2024-11-03 11:00"],
        ),
        ("hour", "America/Los_Angeles", ["2024-03-10 09:10", "2024-03-10 10:00"]),
        ("day", None, ["2024-02-28 00:00", "2024-02-29 00:00", "2024-03-01 00:00"]),
        # 23 hours in spring, 25 in autumn.
        (
            "day",
            "America/Los_Angeles",
            ["2024-03-09 20:00", "2024-03-10 08:00", "2024-03-11 07:00", "2024-03-12 07:00"],
        ),
        (
            "day",
            "America/Los_Angeles",
            ["2024-11-02 20:00", "2024-11-03 07:00", "2024-11-04 08:00", "2024-11-05 08:00"],
        ),
        # Midnight does not exist: the clock goes from 24:00 to 1:00.
        (
            "day",
            "America/Sao_Paulo",
            ["2018-11-03 12:00", "2018-11-04 03:00", "2018-11-05 02:00"],
        ),
        # The gap begins before midnight and ends after it: from 23:30 to 0:30.
        ("day", "America/Toronto", ["1919-03-30 12:00", "1919-03-31 04:30", "1919-04-01 04:00"]),
        # Midnight comes twice: from 1:00 back to 0:00.
        ("day", "America/Havana", ["2024-11-02 12:00", "2024-11-03 04:00", "2024-11-04 05:00"]),
        # The day comes twice: from 0:01 back to 23:01.
        ("day", "America/St_Johns", ["2010-11-06 12:00", "2010-11-07 02:30", "2010-11-08 03:30"]),
        ("day", "America/St_Johns", ["2010-11-07 02:45", "2010-11-08 03:30"]),
        # A day that does not exist: 30 December 2011.
        ("day", "Pacific/Apia", ["2011-12-29 12:00", "2011-12-30 10:00", "2011-12-31 10:00"]),
        ("month", None, ["2024-01-31 12:00", "2024-02-01 00:00", "2024-03-01 00:00"]),
        ("month", None, ["2023-12-31 23:59:59", "2024-01-01 00:00", "2024-02-01 00:00"]),
        ("month", "Europe/Berlin", ["2024-03-05 00:00", "2024-03-31 22:00", "2024-04-30 22:00"]),
        ("day", timezone(timedelta(hours=-8)), ["2024-05-01 07:59", "2024-05-01 08:00"]),
        # Seconds count from the epoch, in any zone.
        (90, "Asia/Kolkata", ["1970-01-01 00:00", "1970-01-01 00:01:30", "1970-01-01 00:03"]),
        (Fraction(86400), "Asia/Kolkata", ["2024-05-01 07:59", "2024-05-02 00:00"]),
    ],
)
def test_the_windows_are_those_of_the_zones_clock(
    window: float | str, zone: Any, borders: list[str]
) -> None:
    wall = utc(borders[0])
    for border in borders[1:]:
        wall = next_border(window, zone, wall)
        assert wall == utc(border)


ZONES = [
    "America/Los_Angeles",
    "Europe/Berlin",
    "Australia/Lord_Howe",
    "Asia/Tehran",
    "Africa/Cairo",
]


@settings(max_examples=200)
@given(
    st.integers(0, 2_140_000_000),
    st.sampled_from(ZONES),
    st.sampled_from([("day", timedelta(hours=25)), ("month", timedelta(days=31, hours=1))]),
)
def test_a_border_is_where_the_calendar_turns(
    wall: int, zone: str, unit: tuple[str, timedelta]
) -> None:
    window, longest = unit
    border = next_border(window, zone, wall)
    assert wall < border <= wall + longest.total_seconds()

    def page(instant: float) -> tuple[int, ...]:
        local = datetime.fromtimestamp(instant, ZoneInfo(zone))
        return (local.year, local.month, local.day)[: 3 if window == "day" else 2]

    assert page(wall) == page(border - 1) < page(border)


@settings(max_examples=200)
# The first instant is a border whose wall time is rounded down.
@example(offset=71999.04489507692, now=434040.18410492304, window=0.001)
@given(
    st.floats(0, 1) | st.floats(0, 1e9),
    st.floats(0, 1e6),
    st.sampled_from([0.001, 0.1, 1 / 3, 60, "minute", "day"]),
)
def test_at_its_border_a_window_opens_whatever_the_offset(
    offset: float, now: float, window: float | str
) -> None:
    limit = FixedWindowStrategy(1, window, align="clock")
    limit.set_wall_offset(offset, 0.0)
    for _ in range(5):
        start(limit, now)
        ready = limit.ready_at(None, 1, now)
        assert ready > now
        just_before = nextafter(ready, -inf)
        assert limit.ready_at(None, 1, just_before) > just_before
        now = ready


def test_slack_opens_the_next_window_later() -> None:
    limit = FixedWindowStrategy(1, "minute", align="clock", slack=0.5)
    limit.set_wall_offset(30.0, 0.0)
    start(limit, 0.0)
    assert limit.ready_at(None, 1, 0.0) == 30.5
    start(limit, 30.5)
    assert limit.ready_at(None, 1, 30.5) == 90.5
    limit.slack = 0
    assert limit.slack == 0
    assert limit.ready_at(None, 1, 30.5) == 90.0


def test_only_windows_by_the_clock_look_at_it() -> None:
    assert FixedWindowStrategy(1, 60, align="clock").uses_wall_time
    limit = FixedWindowStrategy(1, 60)
    assert not limit.uses_wall_time
    start(limit, 0.0)
    limit.set_wall_offset(1000.0, 1.0)
    limit.set_wall_offset(-1000.0, 1.0)
    assert limit.ready_at(None, 1, 1.0) == 60.0


# ---------------------------------------------------------------- the clock is put forward and back


def test_a_clock_put_forward_into_the_next_day_opens_it() -> None:
    limit = FixedWindowStrategy(1, "day", align="clock")
    limit.set_wall_offset(86_000.0, 0.0)
    start(limit, 0.0)
    limit.set_wall_offset(86_300.0, 10.0)
    assert limit.ready_at(None, 1, 10.0) == 100.0
    limit.set_wall_offset(86_400.0, 20.0)
    assert limit.ready_at(None, 1, 20.0) <= 20.0


def test_a_clock_put_back_over_midnight_gives_nothing_anew() -> None:
    limit = FixedWindowStrategy(10, "day", align="clock")
    limit.set_wall_offset(86_390.0, 0.0)
    start(limit, 0.0, 9)
    start(limit, 20.0, 4)
    limit.set_wall_offset(86_360.0, 20.0)
    assert limit.usage(None, 20.0).used == 13
    assert limit.ready_at(None, 1, 20.0) == 2 * 86_400 - 86_360
    limit.set_wall_offset(86_350.0, 20.0)
    assert limit.usage(None, 20.0).used == 13
    limit.set_wall_offset(86_390.0, 25.0)
    assert limit.ready_at(None, 1, 25.0) == 2 * 86_400 - 86_390


def test_a_clock_put_far_back_holds_nothing_up_for_long() -> None:
    limit = FixedWindowStrategy(10, "minute", align="clock")
    limit.set_wall_offset(36_000.0, 0.0)
    start(limit, 0.0, 10)
    limit.set_wall_offset(32_410.0, 1.0)
    assert limit.usage(None, 1.0).used == 10
    assert limit.ready_at(None, 1, 1.0) == 50.0


BACK_OVER_A_BORDER = [
    *[("run", 0, 0.0), ("run", 0, 0.0), ("step", 63, 0.0)],
    *[("run", 0, 1.0), ("step", 0, 0.0), ("run", 0, 0.0)],
]


@settings(max_examples=200)
@example(BACK_OVER_A_BORDER)
@given(
    st.lists(
        st.tuples(
            st.sampled_from(["run", "run", "acquire", "start", "step"]),
            st.sampled_from([0, 16, 32, 48, 63]),
            st.sampled_from([0.0, 0.0, 1.0, 16.0, 32.0]),
        ),
        max_size=40,
    )
)
def test_no_window_holds_too_much_while_the_clock_swings(
    life: list[tuple[str, int, float]],
) -> None:
    limit = FixedWindowStrategy(2, 64, align="clock", key="k")
    started: dict[int, int] = defaultdict(int)
    acquired: list[Any] = []
    now, offset = 0.0, 0.0
    for act, number, pause in life:
        now += pause
        if act in ("run", "acquire") and limit.ready_at("a", 1, now) <= now:
            acquired.append(limit.acquire("a", 1, now))
        if act in ("run", "start") and acquired:
            limit.started(acquired.pop(), now)
            started[floor((now + offset) / 64)] += 1
        if act == "step" and not acquired:
            # Not between a grant and its first instruction: a grant can't be taken back, and the
            # step would move it into a window that was full before.
            before = limit.usage("a", now).used
            back = number < offset
            offset = float(number)
            limit.set_wall_offset(offset, now)
            assert limit.usage("a", now).used >= before or not back
        assert max(started.values(), default=0) <= 2


def test_a_key_by_the_clock_is_remembered_while_the_clock_may_step_back() -> None:
    limit = FixedWindowStrategy(1, "day", align="clock", key="user")
    limit.set_wall_offset(86_000.0, 0.0)
    start(limit, 0.0, key="ada")
    for now in (500.0, 501.0):
        start(limit, now, key=now)
    limit.set_wall_offset(85_000.0, 502.0)
    assert limit.ready_at("ada", 1, 502.0) == 1400.0
    for now in (5000.0, 5001.0):
        start(limit, now, key=now)
    assert "ada" not in limit._windows


# ---------------------------------------------------------------- the rest of the contract


def test_parameters_change_at_once() -> None:
    limit = FixedWindowStrategy(2, 10)
    start(limit, 0.0, 2)
    limit.max_requests = 3
    assert limit.max_requests == 3
    assert limit.ready_at(None, 1, 1.0) == 1.0
    limit.max_requests = 1
    assert limit.ready_at(None, 1, 1.0) == 10.0
    assert limit.usage(None, 1.0).used == 2
    with pytest.raises(TaskTooLarge, match=r"cost of 2 is above max_requests, 1"):
        limit.ready_at(None, 2, 1.0)
    limit.window_seconds = 5
    assert limit.window_seconds == 5
    assert limit.ready_at(None, 1, 1.0) == 5.0
    with pytest.raises(InvalidValue, match="window_seconds='day' needs align='clock'"):
        limit.window_seconds = "day"


def test_what_counts_goes_on_counting_in_another_kind_of_window() -> None:
    limit = FixedWindowStrategy(1, "hour", align="clock", key="user")
    limit.set_wall_offset(3600.0 * 30, 0.0)
    start(limit, 0.0, key="over")
    start(limit, 3700.0, key="counts")
    limit.window_seconds = "day"
    assert limit.ready_at("counts", 1, 3700.0) == 3600 * 18
    assert limit.ready_at("over", 1, 3700.0) <= 3700.0
    limit.window_seconds = 600
    assert limit.ready_at("counts", 1, 3700.0) == 4200.0


def test_a_copy_lives_on_its_own() -> None:
    limit = FixedWindowStrategy(1, "day", align="clock", timezone="Asia/Tokyo", key="k")
    grant = limit.acquire("a", 1, 0.0)
    twin, its_grant = copy.deepcopy((limit, grant))
    twin.release(its_grant, UNSTARTED, 0.0)
    assert twin.ready_at("a", 1, 0.0) == 0.0
    assert limit.ready_at("a", 1, 0.0) == inf


@pytest.mark.parametrize("align", ["first", "clock"])
def test_windows_survive_a_restart(align: str) -> None:
    limit = FixedWindowStrategy(10, 10, align=align, key="k")
    keys: list[Hashable] = [None, "a", 1, 2.5, False, ("c", (2, None))]
    for number, key in enumerate(keys):
        start(limit, number, Fraction(1, 3), key)
        start(limit, number, number + 1, key)
    limit.acquire("pending", 1, 6.0)
    fresh = FixedWindowStrategy(10, 10, align=align, key="k")
    fresh.load(json.loads(json.dumps(limit.dump())))
    assert set(fresh._windows) == set(keys)
    for key in keys:
        for cost in (5, 10):
            assert fresh.ready_at(key, cost, 6.0) == limit.ready_at(key, cost, 6.0)
    assert fresh.usage("pending", 6.0).used == 0


GOOD: dict[str, Any] = {"max_requests": 1, "window_seconds": 1, "slack": 0}


@pytest.mark.parametrize("name", GOOD)
@pytest.mark.parametrize("value", [-1, float("nan"), inf])
def test_values_out_of_range_are_refused(name: str, value: float) -> None:
    with pytest.raises(InvalidValue, match=rf"{name} .*(above|at least) 0, not {value!r}"):
        FixedWindowStrategy(**GOOD | {name: value})
    limit = FixedWindowStrategy(**GOOD)
    with pytest.raises(InvalidValue, match=name):
        setattr(limit, name, value)
    assert getattr(limit, name) == GOOD[name]


@pytest.mark.parametrize("name", GOOD)
@pytest.mark.parametrize("value", [True, b"3", None])
def test_other_types_are_refused(name: str, value: Any) -> None:
    with pytest.raises(InvalidType, match=f"{name} must be a number, not {value!r}"):
        FixedWindowStrategy(**GOOD | {name: value})


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"max_requests": 0}, r"max_requests .*above 0, not 0"),
        ({"window_seconds": 0}, r"window_seconds .*above 0, not 0"),
        ({"window_seconds": "day"}, r"window_seconds='day' needs align='clock'"),
        ({"align": "clock", "window_seconds": "year"}, r"window_seconds .*'month', not 'year'"),
        (
            {"align": "clock", "window_seconds": 1e-9},
            r"window_seconds .*at least 0\.001, not 1e-09",
        ),
        ({"align": "wall"}, r"align must be one of 'first', 'clock', not 'wall'"),
        ({"timezone": "UTC"}, r"timezone='UTC' needs align='clock'"),
        ({"align": "clock", "timezone": "Mars/Olympus"}, r"timezone .*not 'Mars/Olympus'"),
        ({"align": "clock", "timezone": "../etc"}, r"timezone .*not '\.\./etc'"),
        ({"align": "clock", "timezone": "America"}, r"timezone .*not 'America'"),
        ({"align": "clock", "timezone": ""}, r"timezone .*not ''"),
        ({"align": "clock", "timezone": 3}, r"timezone .*not 3"),
    ],
)
def test_options_that_make_no_sense_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises((InvalidValue, InvalidType), match=message):
        FixedWindowStrategy(**GOOD | options)


@pytest.mark.parametrize(
    ("limit", "call", "words"),
    [
        (
            FixedWindowStrategy(30, 60),
            "FixedWindowStrategy(30, 60)",
            "at most 30 tasks per 60 s",
        ),
        (
            FixedWindowStrategy(14_400, "day", align="clock", timezone="America/Los_Angeles"),
            "FixedWindowStrategy(14400, 'day', align='clock', timezone='America/Los_Angeles')",
            "at most 14400 tasks per day (America/Los_Angeles)",
        ),
        (
            FixedWindowStrategy(2.5, 1.5, align="clock", slack=0.05, key="user", cost="tokens"),
            "FixedWindowStrategy(2.5, 1.5, align='clock', slack=0.05, key='user', cost='tokens')",
            "at most 2.5 tokens per 1.5 s for each user",
        ),
    ],
)
def test_it_says_what_it_is(limit: FixedWindowStrategy, call: str, words: str) -> None:
    assert repr(limit) == call
    assert limit.describe() == words
