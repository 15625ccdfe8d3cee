"""Slots: never more in use than there are, and never a fitting task kept waiting."""

from __future__ import annotations

import copy
from collections.abc import Hashable
from fractions import Fraction
from math import inf
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from async_task_manager.errors import InvalidType, InvalidValue, TaskTooLarge
from async_task_manager.strategies.base import Cost
from async_task_manager.strategies.concurrent_limit import ConcurrentLimitStrategy
from async_task_manager.task import Outcome, Task

DONE = Outcome("success", 0.0, 1.0)
FAILED = Outcome("failure", 0.0, 1.0, ValueError())
UNSTARTED = Outcome("cancelled", None, 1.0)


async def nothing() -> None: ...


def task(**metadata: Any) -> Task[None]:
    return Task(nothing, metadata)


def take(limit: ConcurrentLimitStrategy, cost: Cost = 1, key: Hashable = None) -> Any:
    assert limit.ready_at(key, cost, 1.0) == 1.0
    return limit.acquire(key, cost, 1.0)


class Listener:
    """Whoever listens for live changes."""

    def __init__(self) -> None:
        self.heard: list[object] = []

    def policy_changed(self, policy: object, key: object) -> None:
        self.heard.append(policy)


COSTS = st.sampled_from([0, 1, 2, 3, Fraction(1, 2), Fraction(1, 10), Fraction(1, 3)])
STEP = st.tuples(
    st.sampled_from(["attempt", "attempt", "release", "resize"]), st.integers(0, 9), COSTS
)


@settings(max_examples=200)
@given(st.lists(STEP, max_size=60))
def test_any_life_matches_a_naive_count(life: list[tuple[str, int, int | Fraction]]) -> None:
    limit = ConcurrentLimitStrategy(3)
    held: list[tuple[Any, Hashable, int | Fraction]] = []
    for act, number, cost in life:
        key = "ab"[number % 2]
        if act == "attempt":
            used = sum((c for _, k, c in held if k == key), start=Fraction(0))
            if cost > limit.max_concurrent:
                with pytest.raises(TaskTooLarge):
                    limit.ready_at(key, cost, 1.0)
            elif used + cost <= Fraction(str(limit.max_concurrent)):
                held.append((take(limit, cost, key), key, cost))
            else:
                assert limit.ready_at(key, cost, 1.0) == inf
            usage = limit.usage(key, 1.0)
            assert usage.used == float(sum((c for _, k, c in held if k == key), start=Fraction(0)))
        elif act == "release" and held:
            grant, _, _ = held.pop(number % len(held))
            limit.release(grant, (DONE, FAILED, UNSTARTED)[number % 3], 1.0)
        elif act == "resize":
            limit.max_concurrent = (number + 1) / 2
    for grant, _, _ in held:
        limit.release(grant, DONE, 1.0)
    assert not limit._used


def test_a_million_tenths_sum_exactly() -> None:
    limit = ConcurrentLimitStrategy(0.3, cost=0.1)
    cost = limit.cost_of(task())
    for _ in range(100):
        grants = [take(limit, cost) for _ in range(3)]
        assert limit.ready_at(None, cost, 1.0) == inf
        for grant in grants:
            limit.release(grant, DONE, 1.0)
    assert limit.usage(None, 1.0).used == 0


def test_keys_have_slots_of_their_own() -> None:
    limit = ConcurrentLimitStrategy(1, key="user")
    assert limit.key_of(task(user="ada")) == "ada"
    take(limit, key="ada")
    assert limit.ready_at("ada", 1, 1.0) == inf
    assert limit.ready_at("bob", 1, 1.0) == 1.0
    assert limit.usage("bob", 1.0).used == 0


def test_a_key_is_kept_while_something_of_it_runs_and_no_longer() -> None:
    limit = ConcurrentLimitStrategy(2, key="user")
    grants = [take(limit, key=number) for number in range(1000)]
    assert len(limit._used) == 1000
    for grant in grants:
        limit.release(grant, DONE, 1.0)
    assert not limit._used


def test_tasks_that_cost_nothing_take_no_slot() -> None:
    limit = ConcurrentLimitStrategy(1)
    free = [take(limit, 0) for _ in range(3)]
    take(limit, 1)
    free.append(take(limit, 0))
    for grant in free:
        limit.release(grant, DONE, 1.0)
    assert limit.usage(None, 1.0).used == 1


def test_raising_the_limit_opens_it_and_tells_whoever_listens() -> None:
    limit = ConcurrentLimitStrategy(1)
    listener = Listener()
    limit._home = lambda: listener  # type: ignore[assignment]
    take(limit)
    assert limit.ready_at(None, 1, 1.0) == inf
    limit.max_concurrent = 2
    assert limit.ready_at(None, 1, 1.0) == 1.0
    assert limit.max_concurrent == 2
    assert listener.heard == [limit]


def test_lowering_it_below_what_runs_waits_until_enough_has_ended() -> None:
    limit = ConcurrentLimitStrategy(4)
    grants = [take(limit) for _ in range(4)]
    limit.max_concurrent = 2
    assert limit.usage(None, 1.0).used == 4
    for grant in grants[:3]:
        assert limit.ready_at(None, 1, 1.0) == inf
        limit.release(grant, DONE, 1.0)
    assert limit.ready_at(None, 1, 1.0) == 1.0


def test_a_cost_that_never_fits_is_an_error_at_once_and_after_lowering() -> None:
    limit = ConcurrentLimitStrategy(5, cost="slots")
    cost = limit.cost_of(task(cost={"slots": 5}))
    limit.check(None, cost)
    with pytest.raises(TaskTooLarge, match=r"cost of 6 is above max_concurrent, 5"):
        limit.check(None, 6)
    limit.max_concurrent = 4.5
    with pytest.raises(TaskTooLarge, match=r"cost of 5 is above max_concurrent, 4\.5"):
        limit.ready_at(None, cost, 1.0)


def test_what_is_given_back_is_what_was_charged() -> None:
    limit = ConcurrentLimitStrategy(4)
    grant = take(limit, 3)
    limit.settle(grant, 1, 1.0)
    assert limit.usage(None, 1.0).used == 3
    limit.release(grant, DONE, 1.0)
    assert limit.usage(None, 1.0).used == 0


def test_a_copy_lives_on_its_own() -> None:
    limit = ConcurrentLimitStrategy(1)
    take(limit)
    twin, grant = copy.deepcopy((limit, limit._used))[0], (None, 1)
    twin.release(grant, DONE, 1.0)
    assert twin.ready_at(None, 1, 1.0) == 1.0
    assert limit.ready_at(None, 1, 1.0) == inf


def test_nothing_of_it_survives_a_restart() -> None:
    limit = ConcurrentLimitStrategy(1)
    take(limit)
    fresh = ConcurrentLimitStrategy(1)
    fresh.load(limit.dump())
    assert fresh.ready_at(None, 1, 0.0) == 0.0


@pytest.mark.parametrize("value", [0, -1, float("nan"), inf, -0.5])
def test_values_out_of_range_are_refused(value: float) -> None:
    with pytest.raises(InvalidValue, match=rf"max_concurrent .*above 0, not {value!r}"):
        ConcurrentLimitStrategy(value)
    limit = ConcurrentLimitStrategy(1)
    with pytest.raises(InvalidValue, match="max_concurrent"):
        limit.max_concurrent = value
    assert limit.max_concurrent == 1


@pytest.mark.parametrize("value", [True, "3", None, [3]])
def test_other_types_are_refused(value: Any) -> None:
    with pytest.raises(InvalidType, match="max_concurrent must be a number"):
        ConcurrentLimitStrategy(value)


@pytest.mark.parametrize(
    ("limit", "call", "words"),
    [
        (
            ConcurrentLimitStrategy(3),
            "ConcurrentLimitStrategy(3)",
            "at most 3 tasks at once",
        ),
        (
            ConcurrentLimitStrategy(1, key="user"),
            "ConcurrentLimitStrategy(1, key='user')",
            "at most 1 task at once for each user",
        ),
        (
            ConcurrentLimitStrategy(2.5, cost="gigabytes", default_cost=1),
            "ConcurrentLimitStrategy(2.5, cost='gigabytes', default_cost=1)",
            "at most 2.5 gigabytes at once",
        ),
        (
            ConcurrentLimitStrategy(Fraction(4), key=nothing, cost=2),  # type: ignore[arg-type]
            "ConcurrentLimitStrategy(4, key=nothing, cost=2)",
            "at most 4 units at once for each key",
        ),
    ],
)
def test_it_says_what_it_is(limit: ConcurrentLimitStrategy, call: str, words: str) -> None:
    assert repr(limit) == call
    assert limit.describe() == words
