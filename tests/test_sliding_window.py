"""Sliding windows: none holds too much, wherever it begins, and nothing that fits has to wait."""

from __future__ import annotations

import copy
import json
from collections.abc import Hashable
from fractions import Fraction
from itertools import pairwise
from math import inf, nextafter
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from async_task_manager.errors import InvalidType, InvalidValue, TaskTooLarge
from async_task_manager.strategies.base import Cost
from async_task_manager.strategies.sliding_window import SlidingWindowStrategy
from async_task_manager.task import Outcome, Task

STARTED = Outcome("success", 0.0, 1.0)
FAILED = Outcome("failure", 0.0, 1.0, ValueError())
UNSTARTED = Outcome("cancelled", None, 1.0)


async def nothing() -> None: ...


def task(**metadata: Any) -> Task[None]:
    return Task(nothing, metadata)


def start(limit: SlidingWindowStrategy, at: float, cost: Cost = 1, key: Hashable = None) -> Any:
    assert limit.ready_at(key, cost, at) <= at
    grant = limit.acquire(key, cost, at)
    limit.started(grant, at)
    return grant


class Entry:
    def __init__(self, grant: Any, cost: Cost) -> None:
        self.grant = grant
        self.cost = cost
        self.stamp: float | None = None


class Naive:
    """One key: every task that was ever let go, added up anew at each question."""

    def __init__(self, most: Cost, span: float, min_interval: float) -> None:
        self.most, self.span, self.min_interval = most, span, min_interval
        self.entries: list[Entry] = []

    def used(self, now: float) -> Cost:
        return sum(
            (e.cost for e in self.entries if e.stamp is None or e.stamp + self.span > now),
            start=Fraction(0),
        )

    def fits(self, cost: Cost, now: float) -> bool:
        if self.min_interval and any(
            e.stamp is None or e.stamp + self.min_interval > now for e in self.entries
        ):
            return False
        return self.used(now) + cost <= self.most

    def opens(self, cost: Cost, now: float) -> float:
        """The first of all instants at which something expires, and at which it fits."""
        changes = {now}
        for entry in self.entries:
            if entry.stamp is not None:
                changes |= {entry.stamp + self.span, entry.stamp + self.min_interval}
        return next((t for t in sorted(changes) if t >= now and self.fits(cost, t)), inf)

    def worst_window(self) -> Cost:
        stamped = [(e.stamp, e.cost) for e in self.entries if e.stamp is not None]
        return max(
            (sum((c for s, c in stamped if t <= s < t + self.span), start=Fraction(0)))
            for t, _ in [*stamped, (0.0, 0)]
        )


ACTS = ["attempt"] * 4 + ["start"] * 3 + ["cancel", "end"]
COSTS = st.sampled_from([0, 1, 1, 1, 2, 3, Fraction(1, 2), Fraction(1, 10)])
PAUSES = st.sampled_from([0.0, 0.0, 0.1, 0.3, 1.0]) | st.floats(0, 1.5)
STEPS = st.lists(st.tuples(st.sampled_from(ACTS), st.integers(0, 9), COSTS, PAUSES), max_size=60)
LIMITS = st.tuples(
    st.sampled_from([1, 3, Fraction(5, 2)]),
    st.sampled_from([1.0, 0.1, 0.7]),
    st.sampled_from([0.0, 0.0, 0.2, 1.1]),
    st.sampled_from([0.0, 0.05]),
)


def live(
    steps: list[tuple[str, int, Any, float]],
    numbers: tuple[Any, float, float, float],
    *,
    settle: str,
) -> dict[str, Naive]:
    """Leads a random life, comparing every answer with the naive one; gives the naive accounts."""
    most, window, min_interval, slack = numbers
    limit = SlidingWindowStrategy(
        float(most), window, min_interval=min_interval, slack=slack, key="k"
    )
    keys = {key: Naive(most, window + slack, min_interval) for key in "ab"}
    acquired: list[Entry] = []
    running: list[Entry] = []
    now = 0.0
    for act, number, cost, pause in steps:
        now += pause
        key = "ab"[number % 2]
        naive = keys[key]
        if act == "attempt" and cost > most:
            with pytest.raises(TaskTooLarge):
                limit.check(key, cost)
        elif act == "attempt":
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
                acquired.append(entry)
        elif act == "start" and acquired:
            entry = acquired.pop(number % len(acquired))
            limit.started(entry.grant, now)
            entry.stamp = now
            running.append(entry)
        elif act == "cancel" and acquired:
            entry = acquired.pop(number % len(acquired))
            limit.release(entry.grant, UNSTARTED, now)
            for naive in keys.values():
                naive.entries = [e for e in naive.entries if e is not entry]
        elif act == "end" and running:
            entry = running.pop(number % len(running))
            if settle == "both" or (settle == "down" and cost < entry.cost):
                limit.settle(entry.grant, cost, now)
                entry.cost = cost
            limit.release(entry.grant, FAILED if number % 2 else STARTED, now)
        for key, naive in keys.items():
            assert limit.usage(key, now).used == float(naive.used(now))
    return keys


@settings(max_examples=150)
@given(STEPS, LIMITS)
def test_no_window_holds_too_much_and_what_fits_never_waits(
    steps: list[tuple[str, int, Any, float]], numbers: tuple[Any, float, float, float]
) -> None:
    for naive in live(steps, numbers, settle="down").values():
        assert naive.worst_window() <= naive.most
        stamps = sorted(e.stamp for e in naive.entries if e.stamp is not None)
        if naive.min_interval:
            assert all(b >= a + naive.min_interval for a, b in pairwise(stamps))


@settings(max_examples=150)
@given(STEPS, LIMITS)
def test_costs_settled_up_and_down_count_where_they_were_entered(
    steps: list[tuple[str, int, Any, float]], numbers: tuple[Any, float, float, float]
) -> None:
    live(steps, numbers, settle="both")


def test_what_is_about_to_start_counts_until_it_does() -> None:
    limit = SlidingWindowStrategy(2, 10)
    start(limit, 0.0)
    late = limit.acquire(None, 1, 0.0)
    assert limit.ready_at(None, 1, 1.0) == 10.0
    assert limit.ready_at(None, 2, 1.0) == inf
    limit.started(late, 9.0)
    assert limit.ready_at(None, 2, 9.0) == 19.0
    assert limit.usage(None, 9.0).used == 2
    assert limit.usage(None, 9.0).frees_at == 10.0
    assert limit.usage(None, 19.0).used == 0
    assert limit.usage(None, 19.0).frees_at is None


def test_starts_keep_their_distance() -> None:
    limit = SlidingWindowStrategy(100, 10, min_interval=0.5)
    assert limit.min_interval == 0.5
    grant = limit.acquire(None, 1, 0.0)
    assert limit.ready_at(None, 1, 0.0) == inf
    limit.started(grant, 0.25)
    assert limit.ready_at(None, 1, 0.25) == 0.75
    limit.min_interval = 2
    assert limit.ready_at(None, 1, 0.25) == 2.25
    limit.min_interval = 0
    assert limit.ready_at(None, 1, 0.25) == 0.25


def test_an_end_without_a_start_counts_as_one() -> None:
    limit = SlidingWindowStrategy(1, 10)
    limit.release(limit.acquire(None, 1, 0.0), STARTED, 3.0)
    assert limit.ready_at(None, 1, 3.0) == 13.0


def test_a_cost_known_before_the_start_counts_at_once() -> None:
    limit = SlidingWindowStrategy(10, 60)
    grant = limit.acquire(None, 4, 0.0)
    limit.settle(grant, 6, 0.0)
    assert limit.usage(None, 0.0).used == 6
    limit.started(grant, 1.0)
    assert limit.usage(None, 1.0).used == 6
    limit.settle(grant, 6, 1.0)
    assert limit.usage(None, 1.0).used == 6


def test_an_actual_cost_moves_the_instants() -> None:
    limit = SlidingWindowStrategy(10, 60)
    first, second, _ = start(limit, 0.0, 4), start(limit, 1.0, 4), start(limit, 2.0, 2)
    assert [limit.ready_at(None, cost, 2.0) for cost in (1, 4, 5, 8, 9)] == [60, 60, 61, 61, 62]
    limit.settle(second, 1.5, 2.0)
    assert limit.usage(None, 2.0).used == 7.5
    assert [limit.ready_at(None, cost, 2.0) for cost in (2, 6, 8, 9)] == [2, 60, 61, 62]
    limit.settle(first, 9, 2.0)
    assert [limit.ready_at(None, cost, 2.0) for cost in (1, 6, 7, 8, 9)] == [60, 60, 61, 61, 62]
    assert limit.usage(None, 60.0).used == 3.5


def test_a_cost_learnt_after_it_expired_changes_nothing() -> None:
    limit = SlidingWindowStrategy(10, 60)
    grant = start(limit, 0.0, 4)
    limit.settle(grant, 8, 60.0)
    assert limit.usage(None, 60.0).used == 0
    assert limit.ready_at(None, 10, 60.0) <= 60.0


@pytest.mark.parametrize("actual", [-1, float("nan"), inf])
def test_an_actual_cost_that_is_none_is_refused(actual: float) -> None:
    limit = SlidingWindowStrategy(10, 60)
    grant = start(limit, 0.0, 4)
    with pytest.raises(InvalidValue, match=f"actual cost .*at least 0, not {actual!r}"):
        limit.settle(grant, actual, 1.0)
    assert limit.usage(None, 0.0).used == 4


def test_a_million_tenths_sum_exactly() -> None:
    limit = SlidingWindowStrategy(0.3, 1, cost=0.1)
    cost = limit.cost_of(task())
    for second in range(100):
        for _ in range(3):
            start(limit, second, cost)
        assert limit.ready_at(None, cost, second) == second + 1


@example(window=5e-324)
@example(window=1e308)
@given(st.floats(min_value=0, exclude_min=True, allow_infinity=False))
def test_windows_of_any_length_make_progress(window: float) -> None:
    limit = SlidingWindowStrategy(1, window)
    now = 0.0
    for _ in range(3):
        start(limit, now)
        ready = limit.ready_at(None, 1, now)
        assert ready == now + window
        if ready == inf:
            return
        now = ready


def test_memory_stays_with_the_window() -> None:
    limit = SlidingWindowStrategy(128, 1)
    for number in range(10_000):
        start(limit, number / 128)
        log = limit._logs[None]
        assert len(log.stamps) == len(log.sums) <= 2 * 128 + 1
    for _ in range(128):
        start(limit, 200.0)
    assert len(limit._logs[None].stamps) == 1


def test_keys_have_windows_of_their_own_and_idle_ones_are_forgotten() -> None:
    limit = SlidingWindowStrategy(1, 1, key="user")
    for number in range(10_000):
        now = number / 10
        start(limit, now, key=number)
        assert limit.ready_at(number, 1, now) == now + 1
        assert limit.ready_at("another", 1, now) == now
    assert len(limit._logs) < 50
    pending = limit.acquire("pending", 1, 1000.0)
    for second in range(1001, 1050):
        start(limit, second, key="the last")
    assert set(limit._logs) == {"the last", "pending"}
    limit.release(pending, UNSTARTED, 1050.0)
    for second in range(1050, 1053):
        start(limit, second, key=None)
    assert set(limit._logs) == {None}
    start(limit, 1053.0, key=None)


def test_a_key_is_remembered_while_its_interval_lasts() -> None:
    limit = SlidingWindowStrategy(1, 1, min_interval=10, key="user")
    start(limit, 0.0, key="ada")
    for second in (5.0, 6.0):
        start(limit, second, key=second)
    assert limit.ready_at("ada", 1, 6.0) == 10.0


def test_parameters_change_at_once() -> None:
    limit = SlidingWindowStrategy(2, 10)
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
    limit.slack = 0.5
    assert limit.slack == 0.5
    assert limit.ready_at(None, 1, 1.0) == 5.5


def test_a_late_settle_after_the_window_was_made_longer_is_harmless() -> None:
    limit = SlidingWindowStrategy(10, 1)
    old = start(limit, 0.0, 5)
    start(limit, 2.0, 5)
    limit.window_seconds = 100
    limit.settle(old, 1, 3.0)
    assert limit.usage(None, 3.0).used == 5
    limit.settle(old, 4, 3.0)
    assert limit.usage(None, 3.0).used == 8


def test_a_copy_lives_on_its_own() -> None:
    limit = SlidingWindowStrategy(1, 10, key="k")
    grant = limit.acquire("a", 1, 0.0)
    twin, its_grant = copy.deepcopy((limit, grant))
    twin.release(its_grant, UNSTARTED, 0.0)
    assert twin.ready_at("a", 1, 0.0) == 0.0
    assert limit.ready_at("a", 1, 0.0) == inf


def test_starts_survive_a_restart() -> None:
    limit = SlidingWindowStrategy(10, 10, key="k")
    keys: list[Hashable] = [None, "a", 1, 2.5, False, ("c", (2, None))]
    for number, key in enumerate(keys):
        start(limit, 0.0, Fraction(1, 3), key)
        start(limit, 0.0, Fraction(5, 2), key)
        start(limit, 0.5 + number, 4, key)
    start(limit, 6.0, 0, "free")
    limit.acquire("pending", 1, 6.0)
    fresh = SlidingWindowStrategy(10, 10, key="k")
    fresh.load(json.loads(json.dumps(limit.dump())))
    assert set(fresh._logs) == {*keys, "free"}
    for key in keys:
        for cost in (1, 4, 8, 10):
            assert fresh.ready_at(key, cost, 6.0) == limit.ready_at(key, cost, 6.0)
    assert fresh.usage("pending", 6.0).used == 0


GOOD: dict[str, Any] = {"max_requests": 1, "window_seconds": 1, "min_interval": 0, "slack": 0}


@pytest.mark.parametrize("name", GOOD)
@pytest.mark.parametrize("value", [-1, float("nan"), inf])
def test_values_out_of_range_are_refused(name: str, value: float) -> None:
    with pytest.raises(InvalidValue, match=rf"{name} .*(above|at least) 0, not {value!r}"):
        SlidingWindowStrategy(**GOOD | {name: value})
    limit = SlidingWindowStrategy(**GOOD)
    with pytest.raises(InvalidValue, match=name):
        setattr(limit, name, value)
    assert getattr(limit, name) == GOOD[name]


@pytest.mark.parametrize("name", GOOD)
@pytest.mark.parametrize("value", [True, "3", None])
def test_other_types_are_refused(name: str, value: Any) -> None:
    with pytest.raises(InvalidType, match=f"{name} must be a number, not {value!r}"):
        SlidingWindowStrategy(**GOOD | {name: value})


@pytest.mark.parametrize("name", ["max_requests", "window_seconds"])
def test_nothing_and_no_time_are_refused(name: str) -> None:
    with pytest.raises(InvalidValue, match=f"{name} .*above 0.*, not 0"):
        SlidingWindowStrategy(**GOOD | {name: 0})


@pytest.mark.parametrize(
    ("limit", "call", "words"),
    [
        (
            SlidingWindowStrategy(30, 60),
            "SlidingWindowStrategy(30, 60)",
            "at most 30 tasks in any 60 s",
        ),
        (
            SlidingWindowStrategy(600, 6.5, min_interval=0.1, slack=0.05, key="u", cost="tokens"),
            "SlidingWindowStrategy(600, 6.5, min_interval=0.1, slack=0.05, key='u', cost='tokens')",
            "at most 600 tokens in any 6.5 s, 0.1 s apart for each u",
        ),
    ],
)
def test_it_says_what_it_is(limit: SlidingWindowStrategy, call: str, words: str) -> None:
    assert repr(limit) == call
    assert limit.describe() == words
