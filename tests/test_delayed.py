"""Pauses: never shorter than promised, never longer than needed."""

from __future__ import annotations

import copy
import json
from collections.abc import Hashable
from fractions import Fraction
from math import inf, nextafter
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from async_task_manager.errors import InvalidType, InvalidValue, TaskTooLarge
from async_task_manager.strategies.delayed import DelayedStrategy
from async_task_manager.task import Outcome, Task

STARTED = Outcome("success", 0.0, 1.0)
FAILED = Outcome("failure", 0.0, 1.0, ValueError())
UNSTARTED = Outcome("cancelled", None, 1.0)


async def nothing() -> None: ...


def task(**metadata: Any) -> Task[None]:
    return Task(nothing, metadata)


def run(
    limit: DelayedStrategy, at: float, until: float, cost: Any = 1, key: Hashable = None
) -> None:
    """One task from start to end."""
    assert limit.ready_at(key, cost, at) <= at
    grant = limit.acquire(key, cost, at)
    limit.started(grant, at)
    limit.release(grant, STARTED, until)


class Naive:
    """One key, as one would write it down."""

    def __init__(self) -> None:
        self.busy = False
        self.free_from = 0.0

    def opens(self, now: float) -> float:
        return inf if self.busy else max(now, self.free_from)

    def begin(self, free_from: float) -> None:
        self.busy = False
        self.free_from = free_from


ACTS = ["attempt", "attempt", "attempt", "start", "start", "end", "end", "cancel"]
COSTS = st.sampled_from([0, 1, 1, 2, Fraction(1, 3)])
PAUSES = st.sampled_from([0.0, 0.0, 0.1, 0.3, 1.0]) | st.floats(0, 2)
STEPS = st.lists(st.tuples(st.sampled_from(ACTS), st.integers(0, 9), COSTS, PAUSES), max_size=50)


@settings(max_examples=200)
@given(STEPS, st.sampled_from([0, 0.1, 1]), st.sampled_from(["completion", "start"]))
def test_any_life_matches_a_naive_pace(
    steps: list[tuple[str, int, Any, float]], delay: float, measure_from: str
) -> None:
    limit = DelayedStrategy(delay, key="k", measure_from=measure_from)
    naive = {"a": Naive(), "b": Naive()}
    acquired: list[tuple[Any, str, Any]] = []
    running: list[tuple[Any, str, Any]] = []
    now = 0.0
    for act, number, cost, pause in steps:
        now += pause
        key = "ab"[number % 2]
        if act == "attempt":
            opens = naive[key].opens(now)
            assert max(limit.ready_at(key, cost, now), now) == opens
            if now < opens < inf:
                just_before = nextafter(opens, -inf)
                assert limit.ready_at(key, cost, just_before) > just_before
                assert limit.ready_at(key, cost, opens) <= opens
                now = opens if number < 5 else now
            if opens <= now:
                acquired.append((limit.acquire(key, cost, now), key, cost))
                naive[key].busy = True
        elif act == "start" and acquired:
            job = acquired.pop(number % len(acquired))
            running.append(job)
            limit.started(job[0], now)
            if measure_from == "start":
                naive[job[1]].begin(now + job[2] * delay)
        elif act == "end" and running:
            job = running.pop(number % len(running))
            limit.release(job[0], FAILED if number % 2 else STARTED, now)
            if measure_from == "completion":
                naive[job[1]].begin(now + job[2] * delay)
        elif act == "cancel" and acquired:
            job = acquired.pop(number % len(acquired))
            limit.release(job[0], UNSTARTED, now)
            naive[job[1]].busy = False
        for key, pace in naive.items():
            usage = limit.usage(key, now)
            assert usage.used == (pace.opens(now) > now)
            assert usage.frees_at == (pace.opens(now) if now < pace.opens(now) < inf else None)


def test_the_delay_runs_from_the_end_of_the_one_before() -> None:
    limit = DelayedStrategy(2)
    first = limit.acquire(None, 1, 0.0)
    limit.started(first, 0.5)
    assert limit.ready_at(None, 1, 1.0) == inf
    assert limit.usage(None, 1.0).frees_at is None
    limit.release(first, FAILED, 10.0)
    assert limit.ready_at(None, 1, 10.0) == 12.0
    assert limit.usage(None, 10.0).frees_at == 12.0
    assert limit.usage(None, 12.0).used == 0


def test_starts_are_spaced_from_the_first_instruction() -> None:
    limit = DelayedStrategy(2, measure_from="start")
    first = limit.acquire(None, 1, 0.0)
    assert limit.ready_at(None, 1, 0.0) == inf
    limit.started(first, 0.5)
    assert limit.ready_at(None, 1, 0.5) == 2.5
    second = limit.acquire(None, 1, 2.5)
    limit.release(first, STARTED, 3.0)  # the end of an earlier one opens nothing
    assert limit.ready_at(None, 1, 3.0) == inf
    limit.started(second, 3.0)
    assert limit.ready_at(None, 1, 3.0) == 5.0


@pytest.mark.parametrize("measure_from", ["completion", "start"])
def test_a_task_that_never_started_leaves_what_was_before(measure_from: str) -> None:
    limit = DelayedStrategy(2, measure_from=measure_from)
    run(limit, 0.0, 0.0)
    limit.release(limit.acquire(None, 1, 2.0), UNSTARTED, 2.5)
    assert limit.ready_at(None, 1, 2.5) == 2.0


def test_an_end_without_a_start_counts_as_one() -> None:
    limit = DelayedStrategy(2, measure_from="start")
    limit.release(limit.acquire(None, 1, 0.0), STARTED, 1.0)
    assert limit.ready_at(None, 1, 1.0) == 3.0


def test_a_task_of_cost_c_keeps_the_next_away_for_c_delays() -> None:
    limit = DelayedStrategy(2, cost="pages")
    run(limit, 0.0, 0.0, limit.cost_of(task(cost={"pages": 2.5})))
    assert limit.ready_at(None, 1, 0.0) == 5.0
    run(limit, 5.0, 5.0, 0)
    assert limit.ready_at(None, 1, 5.0) == 5.0


def test_no_delay_still_means_one_at_a_time() -> None:
    limit = DelayedStrategy(0)
    grant = limit.acquire(None, 1, 0.0)
    limit.started(grant, 0.0)
    assert limit.ready_at(None, 1, 1.0) == inf
    limit.release(grant, STARTED, 1.0)
    assert limit.ready_at(None, 1, 1.0) <= 1.0


def test_keys_go_at_their_own_pace_and_idle_ones_are_forgotten() -> None:
    limit = DelayedStrategy(1, key="user")
    for number in range(10_000):
        now = number / 10
        run(limit, now, now, key=number)
        assert limit.ready_at(number, 1, now) == now + 1
        assert limit.ready_at("another", 1, now) <= now
    assert len(limit._paces) < 50
    for second in range(1000, 1050):
        run(limit, second, second, key="the only one left")
    assert len(limit._paces) == 1


def test_a_new_delay_counts_at_once() -> None:
    limit = DelayedStrategy(100)
    run(limit, 0.0, 0.0)
    limit.delay_seconds = 5
    assert limit.delay_seconds == 5
    assert limit.ready_at(None, 1, 1.0) == 5.0


def test_a_copy_lives_on_its_own() -> None:
    limit = DelayedStrategy(2)
    grant = limit.acquire(None, 1, 0.0)
    twin, its_grant = copy.deepcopy((limit, grant))
    twin.release(its_grant, STARTED, 1.0)
    assert twin.ready_at(None, 1, 1.0) == 3.0
    assert limit.ready_at(None, 1, 1.0) == inf


def test_delays_survive_a_restart() -> None:
    limit = DelayedStrategy(2, key="k")
    keys: list[Hashable] = [None, "a", 1, 2.5, False, ("c", (2, None))]
    for number, key in enumerate(keys):
        run(limit, number / 8, number / 8, Fraction(7, 3), key=key)
    limit.acquire("busy", 1, 1.0)
    fresh = DelayedStrategy(2, key="k")
    fresh.load(json.loads(json.dumps(limit.dump())))
    assert set(fresh._paces) == set(keys)
    for key in keys:
        assert fresh.ready_at(key, 1, 1.0) == limit.ready_at(key, 1, 1.0) > 1.0
    assert limit.ready_at("busy", 1, 1.0) == inf
    assert fresh.ready_at("busy", 1, 1.0) <= 1.0


def test_a_key_that_json_cannot_bring_back_is_refused() -> None:
    limit = DelayedStrategy(2, key="k")
    run(limit, 0.0, 0.0, key=frozenset("x"))
    with pytest.raises(InvalidType, match=r"frozenset\(\{'x'\}\)"):
        limit.dump()


@pytest.mark.parametrize("value", [-1, float("nan"), inf, -0.5])
def test_values_out_of_range_are_refused(value: float) -> None:
    with pytest.raises(InvalidValue, match=rf"delay_seconds .*at least 0, not {value!r}"):
        DelayedStrategy(value)
    limit = DelayedStrategy(1)
    with pytest.raises(InvalidValue, match="delay_seconds"):
        limit.delay_seconds = value
    assert limit.delay_seconds == 1


@pytest.mark.parametrize("value", [True, "3", None])
def test_other_types_are_refused(value: Any) -> None:
    with pytest.raises(InvalidType, match=f"delay_seconds must be a number, not {value!r}"):
        DelayedStrategy(value)
    with pytest.raises(InvalidValue, match="measure_from must be one of 'completion', 'start'"):
        DelayedStrategy(1, measure_from=value)


@pytest.mark.parametrize(
    ("limit", "call", "words"),
    [
        (DelayedStrategy(2), "DelayedStrategy(2)", "one at a time, 2 s apart"),
        (
            DelayedStrategy(0.5, key="host", measure_from="start"),
            "DelayedStrategy(0.5, measure_from='start', key='host')",
            "starts at least 0.5 s apart for each host",
        ),
    ],
)
def test_it_says_what_it_is(limit: DelayedStrategy, call: str, words: str) -> None:
    assert repr(limit) == call
    assert limit.describe() == words
    assert limit.measure_from == ("start" if "start" in call else "completion")


def test_a_delay_that_no_clock_could_count_is_refused() -> None:
    limit = DelayedStrategy(2, cost="tokens")
    limit.check(None, 1e6)
    with pytest.raises(TaskTooLarge, match=r"1e\+12 s / delay_seconds"):
        limit.check(None, 1.7e308)
