"""Token buckets: the rate and the burst are never exceeded, and nothing of them is lost."""

from __future__ import annotations

import copy
import json
import sys
from collections.abc import Hashable
from fractions import Fraction
from math import inf, nextafter
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from async_task_manager.errors import InvalidType, InvalidValue, TaskTooLarge
from async_task_manager.strategies.base import Cost
from async_task_manager.strategies.token_bucket import TokenBucketStrategy
from async_task_manager.task import Outcome, Task

STARTED = Outcome("success", 0.0, 1.0)
UNSTARTED = Outcome("cancelled", None, 1.0)


async def nothing() -> None: ...


def task(**metadata: Any) -> Task[None]:
    return Task(nothing, metadata)


def take(limit: TokenBucketStrategy, at: float, cost: Cost = 1, key: Hashable = None) -> Any:
    assert limit.ready_at(key, cost, at) <= at
    return limit.acquire(key, cost, at)


def give_back(limit: TokenBucketStrategy, grant: Any, at: float) -> None:
    limit.release(grant, UNSTARTED, at)


class Naive:
    """A bucket that is really filled, in exact arithmetic."""

    def __init__(self, rate: Fraction, burst: Fraction) -> None:
        self.rate, self.burst = rate, burst
        self.level, self.at = burst, Fraction(0)

    def fill(self, now: Fraction) -> Fraction:
        self.level = min(self.burst, self.level + (now - self.at) * self.rate)
        self.at = now
        return self.level

    def opens(self, cost: Fraction, now: Fraction) -> Fraction:
        return now + max(Fraction(0), (cost - self.fill(now)) / self.rate)


# Multiples of powers of two: float arithmetic is exact, and so must be the answers.
DYADIC = st.builds(Fraction, st.integers(0, 40), st.sampled_from([1, 2, 8]))


@settings(max_examples=150)
@given(
    st.lists(st.tuples(st.booleans(), st.integers(0, 1), DYADIC, DYADIC), max_size=60),
    st.sampled_from([Fraction(1, 4), Fraction(1), Fraction(8)]),
    st.sampled_from([Fraction(1), Fraction(5, 2), Fraction(40)]),
)
def test_any_life_matches_a_bucket_that_is_really_filled(
    life: list[tuple[bool, int, Fraction, Fraction]], rate: Fraction, burst: Fraction
) -> None:
    limit = TokenBucketStrategy(float(rate), float(burst), catch_up=0, key="k")
    naive = [Naive(rate, burst), Naive(rate, burst)]
    now = Fraction(0)
    for jump, key, cost, pause in life:
        now += pause / 4
        bucket = naive[key]
        if cost > burst:
            with pytest.raises(TaskTooLarge):
                limit.ready_at(key, cost, float(now))
            continue
        opens = bucket.opens(cost, now)
        ready = limit.ready_at(key, cost, float(now))
        assert max(ready, float(now)) == opens
        if ready > now:
            assert limit.ready_at(key, cost, ready) <= ready
            just_before = nextafter(ready, -inf)
            assert limit.ready_at(key, cost, just_before) > just_before
            now = opens if jump else now
        if opens <= now:
            limit.acquire(key, cost, float(now))
            bucket.level = bucket.fill(now) - cost
        for number, other in enumerate(naive):
            assert limit.usage(number, float(now)).used == burst - other.fill(now)


ACTS = ["attempt"] * 4 + ["cancel", "settle"]
COSTS = st.sampled_from([1, 1, 2, 3, 5, Fraction(1, 10), Fraction(1, 3)])
PAUSES = st.sampled_from([0.0, 0.0, 0.001, 0.01, 0.1, 1.0]) | st.floats(0, 2)
STEPS = st.lists(st.tuples(st.sampled_from(ACTS), st.integers(0, 9), COSTS, PAUSES), max_size=60)


@settings(max_examples=200)
@given(STEPS, st.sampled_from([0.3, 1, 7.0]), st.sampled_from([5, 10]), st.sampled_from([0, 0.05]))
def test_no_interval_exceeds_the_bound_whatever_is_refunded(
    steps: list[tuple[str, int, Any, float]], rate: float, burst: int, catch_up: float
) -> None:
    limit = TokenBucketStrategy(rate, burst, catch_up=catch_up)
    grants: list[tuple[Any, float, Cost]] = []
    counted: list[tuple[float, Cost]] = []
    now = 0.0
    for act, number, cost, pause in steps:
        now += pause
        if act == "attempt":
            ready = limit.ready_at(None, cost, now)
            assert limit.ready_at(None, cost, ready) <= ready
            if number < 5:
                now = max(now, ready)
            if ready <= now:
                grants.append((limit.acquire(None, cost, now), now, cost))
        elif grants:
            grant, since, charged = grants.pop(number % len(grants))
            if act == "cancel":
                limit.release(grant, UNSTARTED, now)
            else:
                limit.settle(grant, min(cost, charged), now)
                limit.release(grant, STARTED, now)
                counted.append((since, min(cost, charged)))
    counted += [(since, charged) for _, since, charged in grants]
    counted.sort()
    for first, (since, _) in enumerate(counted):
        used = 0.0
        for until, cost in counted[first:]:
            used += float(cost)
            assert used <= burst + rate * (until - since + catch_up) + 1e-6


class Charge:
    def __init__(self, grant: Any, at: Fraction, cost: int) -> None:
        self.grant, self.at, self.cost = grant, at, cost


@settings(max_examples=200)
@given(
    st.lists(
        st.tuples(st.sampled_from(ACTS), st.integers(0, 9), st.integers(1, 10), DYADIC),
        max_size=40,
    )
)
def test_a_refund_gives_no_more_than_if_it_had_never_been_charged(
    life: list[tuple[str, int, int, Fraction]],
) -> None:
    limit = TokenBucketStrategy(1, 10, catch_up=0)
    charges: list[Charge] = []
    open_charges: list[Charge] = []
    now = Fraction(0)
    for act, number, cost, pause in life:
        now += pause / 16
        if act == "attempt":
            if limit.ready_at(None, cost, float(now)) <= now:
                charges.append(Charge(limit.acquire(None, cost, float(now)), now, cost))
                open_charges.append(charges[-1])
        elif open_charges:
            charge = open_charges.pop(number % len(open_charges))
            if act == "cancel":
                give_back(limit, charge.grant, float(now))
                charge.cost = 0
            elif cost <= charge.cost:
                limit.settle(charge.grant, cost, float(now))
                charge.cost = cost
        bucket = Naive(Fraction(1), Fraction(10))
        for charge in charges:
            bucket.level = bucket.fill(charge.at) - charge.cost
        assert limit.usage(None, float(now)).used >= 10 - bucket.fill(now)


@settings(max_examples=100)
@given(
    st.floats(0, 1e6),
    st.sampled_from([0.1, 0.3, 1, 3, 7.0, 1000, 1e-6, 1 / 3]),
    st.integers(1, 50),
    st.sampled_from([1, Fraction(1, 10), Fraction(1, 3)]),
)
def test_a_full_bucket_gives_exactly_its_burst(
    now: float, rate: float, burst: int, cost: Cost
) -> None:
    limit = TokenBucketStrategy(rate, burst)
    for _ in range(int(burst / cost)):
        take(limit, now, cost)
    assert limit.ready_at(None, cost, now) > now or now + cost / rate == now


def test_a_million_tenths_are_a_hundred_thousand() -> None:
    limit = TokenBucketStrategy(0.1, 1)
    now = 0.0
    take(limit, now)
    for _ in range(100_000):
        now = limit.ready_at(None, 1, now)
        take(limit, now)
    assert now == 1_000_000.0


def test_lateness_is_made_good_and_rest_is_not() -> None:
    limit = TokenBucketStrategy(100, 1, catch_up=0.01)
    assert limit.catch_up == 0.01
    now = 0.0
    for _ in range(100):
        take(limit, now)
        now = limit.ready_at(None, 1, now) + 0.007
    assert now < 1.01
    limit.catch_up = 0.001
    for _ in range(100):
        take(limit, now)
        now = limit.ready_at(None, 1, now) + 0.007
    assert now > 2.6
    take(limit, 10.0)
    assert limit.ready_at(None, 1, 10.0) == 10.01


def test_what_never_started_is_refunded() -> None:
    limit = TokenBucketStrategy(1, 5)
    grants = [take(limit, 0.0) for _ in range(5)]
    for grant in grants[:3]:
        give_back(limit, grant, 0.0)
    limit.release(grants[3], STARTED, 0.0)
    assert limit.usage(None, 0.0).used == 2
    assert limit.usage(None, 0.0).frees_at == 2.0


def test_a_refund_is_at_most_what_time_has_not_given_back() -> None:
    limit = TokenBucketStrategy(1, 10)
    first = take(limit, 0.0, 5)
    take(limit, 4.0, 5)
    give_back(limit, first, 4.0)
    # Without the first, the bucket would have been full at 4: five are in use, not four.
    assert limit.usage(None, 4.0).used == 5
    take(limit, 4.0, 5)
    assert limit.ready_at(None, 1, 4.0) == 5.0


def test_two_refunds_do_not_count_the_same_debt() -> None:
    limit = TokenBucketStrategy(1, 10)
    first, second = take(limit, 0.0, 5), take(limit, 0.0, 5)
    give_back(limit, first, 1.0)
    take(limit, 4.0, 5)
    give_back(limit, second, 4.0)
    # Without both, five would be in use at 4.
    assert limit.usage(None, 4.0).used >= 5


def test_a_refund_after_the_bucket_was_full_again_is_none() -> None:
    limit = TokenBucketStrategy(1, 5)
    first = take(limit, 0.0, 5)
    take(limit, 100.0, 3)
    give_back(limit, first, 100.0)
    assert limit.usage(None, 100.0).used == 3


def test_the_actual_cost_is_charged_and_refunded() -> None:
    limit = TokenBucketStrategy(1, 10, cost="tokens")
    grant = take(limit, 0.0, limit.cost_of(task(cost={"tokens": 4})))
    limit.settle(grant, 7.5, 0.0)
    assert limit.usage(None, 0.0).used == 7.5
    limit.settle(grant, 7, 0.0)
    assert limit.usage(None, 0.0).used == 7
    late = take(limit, 0.0, 3)
    limit.settle(late, 20, 1.0)
    assert limit.usage(None, 1.0).used == 26
    assert limit.ready_at(None, 10, 1.0) == 27.0
    with pytest.raises(InvalidValue, match=r"actual cost .*at least 0, not -1"):
        limit.settle(late, -1, 1.0)


def test_an_excess_learnt_after_the_key_was_forgotten_is_charged() -> None:
    limit = TokenBucketStrategy(1, 10, key="k")
    grant = take(limit, 0.0, 1, "a")
    take(limit, 100.0, 1, "b")
    assert "a" not in limit._buckets
    limit.settle(grant, 5, 100.0)
    assert limit.usage("a", 100.0).used == 4


def test_keys_have_buckets_of_their_own_and_full_ones_are_forgotten() -> None:
    limit = TokenBucketStrategy(1, 1, key="user")
    for number in range(10_000):
        now = number / 10
        take(limit, now, key=number)
        assert limit.ready_at(number, 1, now) == now + 1
        assert limit.ready_at("another", 1, now) == now
    assert len(limit._buckets) < 50
    for second in range(2000, 2050):
        take(limit, second, key="the last")
    assert set(limit._buckets) == {"the last"}


def test_a_new_rate_works_off_what_is_owed() -> None:
    limit = TokenBucketStrategy(0.01, 10)
    grant = take(limit, 50.0, 10)
    assert limit.ready_at(None, 1, 50.0) == 150.0
    limit.rate = 10
    assert limit.rate == 10
    assert limit.ready_at(None, 1, 50.0) == pytest.approx(50.1)
    give_back(limit, grant, 50.5)
    assert limit.usage(None, 50.5).used == pytest.approx(0)
    limit.rate = 0.1
    take(limit, 60.0, 5)
    assert limit.ready_at(None, 10, 60.0) == 110.0


def test_a_new_burst_counts_at_once() -> None:
    limit = TokenBucketStrategy(1, 10)
    take(limit, 0.0, 8)
    limit.burst = 5
    assert limit.burst == 5
    assert limit.ready_at(None, 1, 0.0) == 4.0
    with pytest.raises(TaskTooLarge, match=r"cost of 6 is above burst, 5"):
        limit.ready_at(None, 6, 0.0)
    with pytest.raises(TaskTooLarge, match=r"cost of 5\.5 is above burst, 5"):
        limit.check(None, Fraction(11, 2))
    limit.check(None, 5)
    limit.burst = 20
    assert limit.ready_at(None, 12, 0.0) == 0.0


def test_a_copy_lives_on_its_own() -> None:
    limit = TokenBucketStrategy(1, 1, key="k")
    grant = take(limit, 0.0, key="a")
    twin, its_grant = copy.deepcopy((limit, grant))
    give_back(twin, its_grant, 0.0)
    assert twin.ready_at("a", 1, 0.0) == 0.0
    assert limit.ready_at("a", 1, 0.0) == 1.0


def test_buckets_survive_a_restart() -> None:
    limit = TokenBucketStrategy(0.1, 10, key="k")
    keys: list[Hashable] = [None, "a", 1, 2.5, False, ("c", (2, None))]
    for number, key in enumerate(keys):
        take(limit, number / 10, Fraction(1, 3), key)
        take(limit, number / 10, number + 1, key)
    fresh = TokenBucketStrategy(0.1, 10, key="k")
    fresh.load(json.loads(json.dumps(limit.dump())))
    assert set(fresh._buckets) == set(keys)
    for key in keys:
        assert fresh.ready_at(key, 10, 1.0) == limit.ready_at(key, 10, 1.0) > 1.0


GOOD: dict[str, Any] = {"rate": 1, "burst": 1, "catch_up": 0}


@pytest.mark.parametrize("name", GOOD)
@pytest.mark.parametrize("value", [-1, float("nan"), inf])
def test_values_out_of_range_are_refused(name: str, value: float) -> None:
    with pytest.raises(InvalidValue, match=rf"{name} .*(above|at least) 0, not {value!r}"):
        TokenBucketStrategy(**GOOD | {name: value})
    limit = TokenBucketStrategy(**GOOD)
    with pytest.raises(InvalidValue, match=name):
        setattr(limit, name, value)
    assert getattr(limit, name) == GOOD[name]


@pytest.mark.parametrize("name", GOOD)
@pytest.mark.parametrize("value", [True, "3", None])
def test_other_types_are_refused(name: str, value: Any) -> None:
    with pytest.raises(InvalidType, match=f"{name} must be a number, not {value!r}"):
        TokenBucketStrategy(**GOOD | {name: value})


@pytest.mark.parametrize("name", ["rate", "burst"])
def test_no_rate_and_no_burst_are_refused(name: str) -> None:
    with pytest.raises(InvalidValue, match=f"{name} .*above 0.*, not 0"):
        TokenBucketStrategy(**GOOD | {name: 0})


@pytest.mark.parametrize(
    ("limit", "call", "words"),
    [
        (
            TokenBucketStrategy(10, 20),
            "TokenBucketStrategy(10, 20)",
            "at most 10 tasks per second, 20 at once",
        ),
        (
            TokenBucketStrategy(0.5, 1000, catch_up=0, key="user", cost="tokens"),
            "TokenBucketStrategy(0.5, 1000, catch_up=0, key='user', cost='tokens')",
            "at most 0.5 tokens per second, 1000 at once for each user",
        ),
    ],
)
def test_it_says_what_it_is(limit: TokenBucketStrategy, call: str, words: str) -> None:
    assert repr(limit) == call
    assert limit.describe() == words


def test_a_table_that_held_many_keys_is_given_back() -> None:
    limit = TokenBucketStrategy(1, 1, key="user")
    for i in range(5_000):
        limit.acquire(i, 1, 0.0)
    table = sys.getsizeof(limit._buckets)
    for i in range(6_000):
        limit.acquire("one", 1, 10.0 + 2 * i)  # whoever comes sweeps out what is idle
    assert len(limit._buckets) <= 2
    assert sys.getsizeof(limit._buckets) < table / 5
