"""A cost that learns: an estimate, times a quantile of what tasks like this really took."""

from __future__ import annotations

import asyncio
import copy
import gc
import json
import random
from collections.abc import Callable
from fractions import Fraction
from functools import partial
from math import ceil
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from async_task_manager import Chain, Task, TaskManager, current_task
from async_task_manager.errors import InvalidType, InvalidValue
from async_task_manager.strategies import (
    ConcurrentLimitStrategy,
    CostEstimator,
    Provider,
    ProviderRouterStrategy,
    SlidingWindowStrategy,
    TokenBucketStrategy,
)
from async_task_manager.strategies.cost_estimator import _Ratios


async def nothing() -> None: ...


def task(tokens: float | None = 100, **metadata: Any) -> Task[None]:
    cost = {} if tokens is None else {"cost": {"tokens": tokens}}
    return Task(nothing, {**cost, **metadata})


def taught(*ratios: float, **options: Any) -> CostEstimator:
    estimator = CostEstimator("tokens", **options)
    for ratio in ratios:
        estimator.settled(task(), 100 * ratio)
    return estimator


# ---- the quantile -------------------------------------------------------------------------------


@settings(max_examples=200)
@given(
    st.integers(1, 12),
    st.lists(st.tuples(st.floats(0, 100), st.integers(0, 20)), min_size=1, max_size=60),
    st.fractions(Fraction(1, 100), 1),
)
def test_any_ratios_match_a_sorted_list(
    size: int, steps: list[tuple[float, int]], share: Fraction
) -> None:
    ratios = _Ratios(size)
    naive: list[tuple[int, float]] = []
    for ratio, back in steps:
        number = ratios.count - back
        if back and number >= 0 and number in [n for n, _ in naive[-size:]]:
            assert ratios.put(ratio, number) == number
            naive = [(n, ratio if n == number else old) for n, old in naive]
        else:
            naive.append((ratios.put(ratio, number if back and number >= 0 else None), ratio))
        last = [kept for _, kept in naive[-size:]]
        assert ratios.in_order() == last
        assert list(ratios.by_size) == sorted(last)
        found = ratios.quantile(share)
        assert sum(kept <= found for kept in last) >= share * len(last)
        assert sum(kept < found for kept in last) < share * len(last)
    again = _Ratios.of(ratios.in_order(), size)
    assert again.in_order() == ratios.in_order()


@pytest.mark.parametrize("quantile", [0.5, 0.9, 0.99])
def test_such_a_share_of_tasks_takes_no_more_than_it_is_charged(quantile: float) -> None:
    """Whose estimates are right on average; the mean would be exceeded by a third of them."""
    dice = random.Random(3)
    estimator = CostEstimator("tokens", quantile=quantile, window=200)
    within = 0
    for number in range(4000):
        one = task(dice.randint(50, 5000))
        charged = estimator(one)
        actual = one.metadata["cost"]["tokens"] * dice.lognormvariate(-0.125, 0.5)
        within += number >= 200 and actual <= charged
        estimator.settled(one, actual)
    assert within / 3800 == pytest.approx(quantile, abs=0.02)


def test_it_follows_what_changes() -> None:
    estimator = taught(*[1.0] * 500)
    for _ in range(100):
        estimator.settled(task(), 300)
    assert estimator.ratio() == 3


# ---- what is charged ----------------------------------------------------------------------------


def test_until_enough_is_known_the_estimate_is_charged() -> None:
    estimator = taught(*[3.0] * 9, initial=1.5)
    assert estimator(task(100)) == 150
    estimator.settled(task(), 300)
    assert estimator(task(100)) == 300


def test_whole_estimates_give_whole_costs_rounded_up() -> None:
    estimator = taught(*[1.1] * 10)
    assert estimator(task(900)) == 990
    assert estimator(task(901)) == 992
    assert isinstance(estimator(task(901)), int)
    assert estimator(task(0.5)) == pytest.approx(0.55)
    assert CostEstimator("tokens")(task(0.5)) == Fraction(1, 2)


def test_no_more_than_the_maximum_is_charged() -> None:
    estimator = taught(*[9.0] * 10, maximum=500)
    assert estimator(task(50)) == 450
    assert estimator(task(100)) == 500


@pytest.mark.parametrize("estimate", [200, lambda task: 2 * task.metadata["length"], "tokens"])
def test_the_estimate_is_a_number_a_callable_or_a_unit(estimate: Any) -> None:
    estimator = CostEstimator(estimate, unit="tokens")
    assert estimator(task(200, length=100)) == 200


def test_a_bare_number_is_the_cost_of_its_only_unit() -> None:
    assert CostEstimator("tokens")(Task(nothing, {"cost": 70})) == 70


def test_keys_learn_apart_and_new_ones_go_by_all() -> None:
    estimator = CostEstimator("tokens", key="model", min_samples=3)
    for _ in range(9):
        estimator.settled(task(model="big"), 400)
    for _ in range(3):
        estimator.settled(task(model="small"), 50)
    assert estimator.ratio("big") == 4
    assert estimator.ratio("small") == 0.5
    assert estimator.ratio("new") == estimator.ratio() == 4
    assert estimator(task(model="small")) == 50
    by_call = CostEstimator("tokens", key=lambda task: task.metadata["model"], min_samples=1)
    by_call.settled(task(model="x"), 200)
    assert by_call(task(model="x")) == 200


def test_the_key_that_learned_nothing_for_longest_is_forgotten() -> None:
    estimator = CostEstimator("tokens", key="user", min_samples=1, max_keys=2)
    for user in ("a", "b", "a", "c"):
        estimator.settled(task(user=user), 200)
    assert set(estimator._keys) == {"a", "c"}


# ---- what is learned ----------------------------------------------------------------------------


def test_what_an_attempt_settles_last_is_what_counts() -> None:
    """A stream that says what it has consumed so far, again and again."""
    estimator = CostEstimator("tokens", min_samples=1, key="model")
    one = task(model="a")
    one._enter([])
    for actual in (10, 50, 200):
        estimator.settled(one, actual)
    assert estimator._keys["a"].in_order() == estimator._all.in_order() == [2]
    one._enter([])
    estimator.settled(one, 300)
    assert estimator._keys["a"].in_order() == [2, 3]


def test_a_key_that_was_forgotten_meanwhile_learns_anew() -> None:
    estimator = CostEstimator("tokens", min_samples=1, key="user", max_keys=1)
    one = task(user="a")
    one._enter([])
    estimator.settled(one, 200)
    estimator.settled(task(user="b"), 100)
    estimator.settled(one, 300)
    assert estimator._keys["a"].in_order() == [3]


@pytest.mark.parametrize(
    ("metadata", "actual"),
    [
        ({"cost": {"tokens": 0}}, 5),
        ({}, 5),
        ({"cost": {"tokens": "many"}}, 5),
        ({"cost": {"tokens": 1}, "model": []}, 5),
        ({"cost": {"tokens": 1e-300}}, 1e300),
    ],
)
def test_what_can_not_be_compared_is_passed_over(metadata: dict[str, Any], actual: float) -> None:
    """The metadata may have been changed since the task was added: that breaks nothing."""
    estimator = CostEstimator("tokens", key="model")
    estimator.settled(Task(nothing, metadata), actual)
    assert not estimator._keys
    assert not estimator._all.in_order()


def test_tasks_that_are_gone_leave_nothing_behind() -> None:
    estimator = taught(*[2.0] * 50)
    gc.collect()
    assert len(estimator._settled) == 0


# ---- in a chain ---------------------------------------------------------------------------------


async def test_it_learns_from_what_work_settles_once_for_all_limits() -> None:
    estimator = CostEstimator("tokens", min_samples=1)
    minute, day = (SlidingWindowStrategy(10_000, span, cost=estimator) for span in (60, 86400))
    requests = SlidingWindowStrategy(100, 60)

    async def work() -> None:
        await asyncio.sleep(1)
        me = current_task()
        assert me is not None
        me.settle({"tokens": 250, "dollars": 3})

    async with TaskManager(Chain(minute, day, requests)) as manager:
        await manager.add_task(work, {"cost": {"tokens": 100}})
        assert estimator._all.in_order() == [2.5]
        assert minute.usage(None, 1).used == day.usage(None, 1).used == 250
        assert requests.usage(None, 1).used == 1
        await manager.add_task(work, {"cost": {"tokens": 1000}})
        assert minute.usage(None, 2).used == 500
        assert estimator._all.in_order() == [2.5, 0.25]


@pytest.mark.parametrize("actual", [{"dollars": 3}, {"tokens": 300}, 300])
async def test_only_the_limits_that_the_task_went_through_and_its_unit_count(actual: Any) -> None:
    mine, other = (CostEstimator("tokens", min_samples=1) for _ in range(2))
    router = ProviderRouterStrategy(
        [
            Provider("A", [TokenBucketStrategy(100, 1000, cost=mine)]),
            Provider("B", [TokenBucketStrategy(100, 1000, cost=other)]),
        ]
    )

    async def work() -> None:
        me = current_task()
        assert me is not None
        me.settle(actual)

    async with TaskManager(Chain(router, ConcurrentLimitStrategy(3))) as manager:
        await manager.add_task(work, {"cost": {"tokens": 100}, "provider": "A"})
    assert mine._all.in_order() == ([] if actual == {"dollars": 3} else [3])
    assert not other._all.in_order()


@pytest.mark.parametrize("learns", [True, False])
async def test_with_it_a_limit_is_kept_although_estimates_are_wrong_by_three_times(
    learns: bool,
) -> None:
    """By the actual costs, in any minute, once it has learned. Without it, never."""
    dice = random.Random(5)
    spent: list[tuple[float, float]] = []

    async def work(actual: float) -> None:
        spent.append((asyncio.get_running_loop().time(), actual))
        await asyncio.sleep(30)
        me = current_task()
        assert me is not None
        me.settle(actual)

    cost: Any = CostEstimator("tokens") if learns else "tokens"
    async with TaskManager(SlidingWindowStrategy(6000, 60, cost=cost)) as manager:
        for _ in range(60):
            for _ in range(10):
                actual = 100 * dice.uniform(2, 4)
                manager.add_task(partial(work, actual), {"cost": {"tokens": 100}})
            await asyncio.sleep(20)
    minutes = [
        sum(cost for at, cost in spent if start <= at < start + 60)
        for start, _ in spent
        if start > 300
    ]
    assert (max(minutes) <= 6000) == learns
    assert sum(minutes) / len(minutes) > 0.6 * 6000


def test_a_copy_of_a_chain_teaches_a_copy() -> None:
    estimator = taught(*[2.0] * 10)
    limits = [SlidingWindowStrategy(10_000, span, cost=estimator) for span in (60, 3600)]
    chain = Chain(*limits)
    twins = list(chain.snapshot())
    assert twins[0].cost is twins[1].cost  # type: ignore[attr-defined]
    twin: Any = twins[0].cost  # type: ignore[attr-defined]
    assert twin is not estimator
    for _ in range(100):
        twin.settled(task(), 500)
    assert (twin.ratio(), estimator.ratio()) == (5, 2)
    shared = copy.deepcopy(SlidingWindowStrategy(1, 60, cost=len))  # type: ignore[arg-type]
    assert shared.cost is len  # type: ignore[comparison-overlap]


# ---- live change, restarts, bad input -----------------------------------------------------------


def test_it_changes_live() -> None:
    estimator = taught(1.0, 2.0, 3.0, 4.0, min_samples=4)
    assert estimator.ratio() == 4
    estimator.quantile = 0.5
    assert (estimator.quantile, estimator.ratio()) == (0.5, 2)
    estimator.min_samples, estimator.initial, estimator.maximum = 5, 2.5, 240
    assert estimator.ratio() == 2.5
    assert estimator(task()) == 240
    assert (estimator.min_samples, estimator.initial, estimator.maximum) == (5, 2.5, 240)


def test_it_survives_a_restart() -> None:
    estimator = CostEstimator("tokens", key="model", window=20)
    dice = random.Random(1)
    for number in range(75):
        estimator.settled(task(model="ab"[number % 2]), 100 * dice.random())
    fresh = CostEstimator("tokens", key="model", window=20)
    fresh.load(json.loads(json.dumps(estimator.dump())))
    for key in ("a", "b", "new"):
        assert fresh.ratio(key) == estimator.ratio(key)
    assert fresh.dump() == estimator.dump()


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: CostEstimator(-1), InvalidValue, "estimate .*at least 0, not -1"),
        (lambda: CostEstimator(None), InvalidType, "estimate must be a number"),  # type: ignore[arg-type]
        (lambda: CostEstimator(1, quantile=0), InvalidValue, "quantile .*above 0 and at most 1"),
        (lambda: CostEstimator(1, quantile=1.1), InvalidValue, "quantile"),
        (lambda: CostEstimator(1, initial=0), InvalidValue, "initial"),
        (lambda: CostEstimator(1, window=0), InvalidValue, "window"),
        (lambda: CostEstimator(1, min_samples=0), InvalidValue, "min_samples"),
        (lambda: CostEstimator(1, min_samples=5, window=4), InvalidValue, "min_samples .*most 4"),
        (lambda: CostEstimator(1, maximum=0), InvalidValue, "maximum"),
        (lambda: CostEstimator(1, max_keys=0), InvalidValue, "max_keys"),
        (lambda: CostEstimator(1, key=3), InvalidType, "key must be"),  # type: ignore[arg-type]
        (lambda: CostEstimator(1, unit=3), InvalidType, "unit must be"),  # type: ignore[arg-type]
        (lambda: CostEstimator("tokens")(task(None)), InvalidValue, r"has no .*'cost'.*'tokens'"),
        (lambda: CostEstimator("tokens")(task(-1)), InvalidValue, "cost 'tokens' of .*at least 0"),
        (lambda: CostEstimator(lambda _: "x")(task()), InvalidType, "the estimate for <Task"),  # type: ignore[arg-type, return-value]
        (lambda: CostEstimator("tokens", key="k")(task(k=[])), InvalidType, "must be hashable"),
    ],
)
def test_bad_input_is_refused(
    make: Callable[[], object], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        make()


def test_it_says_what_it_is() -> None:
    assert repr(CostEstimator("tokens")) == "CostEstimator('tokens', quantile=0.9)"
    estimator = CostEstimator(ceil, key="model", unit="tokens", maximum=500)  # type: ignore[arg-type]
    assert repr(estimator) == (
        "CostEstimator(ceil, quantile=0.9, key='model', unit='tokens', maximum=500)"
    )
    window = SlidingWindowStrategy(6000, 60, cost=CostEstimator("tokens"))
    assert "6000 tokens" in window.describe()
    assert "CostEstimator('tokens', quantile=0.9)" in repr(window)
