"""Which of several open providers gets the task: the policies of a router, and failover."""

from __future__ import annotations

import asyncio
import copy
from collections import Counter
from collections.abc import Callable, Sequence
from functools import partial
from itertools import cycle
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from async_task_manager import Chain, TaskManager, current_task
from async_task_manager.errors import InvalidType, InvalidValue, StrategyError
from async_task_manager.strategies import (
    ConcurrentLimitStrategy,
    Provider,
    ProviderRouterStrategy,
    RetryStrategy,
    SlidingWindowStrategy,
)
from async_task_manager.task import Outcome, Task


async def nothing() -> None: ...


class Run:
    """A chain around a router, driven by hand."""

    def __init__(self, router: ProviderRouterStrategy, *more: Any) -> None:
        self.router = router
        self.chain = Chain(router, *more)
        self.now = 0.0
        self.running: list[Task[Any]] = []
        self.begun: dict[Task[Any], float] = {}

    def start(self, count: int = 1, **metadata: Any) -> list[str | None]:
        """Adds so many tasks, and gives where those went that started."""
        for _ in range(count):
            self.chain.add(Task(nothing, metadata), self.now)
        return self.pull()

    def pull(self) -> list[str | None]:
        before = len(self.running)
        while (task := self.chain.pull(self.now)) is not None:
            self.chain.begun(task, self.now)
            self.running.append(task)
            self.begun[task] = self.now
        return [task.provider for task in self.running[before:]]

    def end(self, provider: str, kind: Any = "success", after: float = 0.0) -> None:
        """Ends the first task that runs there, ``after`` seconds from now."""
        task = next(task for task in self.running if task.provider == provider)
        self.running.remove(task)
        self.now += after
        self.chain.finish(task, Outcome(kind, self.begun[task], self.now), self.now)

    def once(self, kind: Any = "success", after: float = 0.0) -> str | None:
        """A task from start to end; gives where."""
        where = self.start()[0]
        task = self.running.pop()
        self.now += after
        self.chain.finish(task, Outcome(kind, self.begun[task], self.now), self.now)
        return where


def providers(*names: str, **numbers: Sequence[float]) -> list[Provider]:
    made = [Provider(name) for name in names]
    for option, values in numbers.items():
        for provider, value in zip(made, values, strict=True):
            setattr(provider, option, value)
    return made


# ---------------------------------------------------------------- weighted


def test_smooth_weighted_round_robin_as_in_nginx() -> None:
    run = Run(ProviderRouterStrategy(providers("a", "b", "c", weight=[5, 1, 1]), policy="weighted"))
    assert "".join(map(str, run.start(14))) == "aabacaa" * 2


@given(
    weights=st.lists(st.integers(1, 7), min_size=1, max_size=5),
    offset=st.integers(0, 20),
    scale=st.sampled_from([1, 0.1, 1 / 3]),
)
def test_every_cycle_has_the_exact_proportion(
    weights: list[int], offset: int, scale: float
) -> None:
    """Wherever it begins, and whatever the weights' unit."""
    names = [f"P{i}" for i in range(len(weights))]
    scaled = [weight * scale for weight in weights] if scale == 0.1 else weights
    run = Run(ProviderRouterStrategy(providers(*names, weight=scaled), policy="weighted"))
    run.start(offset)
    assert Counter(run.start(sum(weights))) == dict(zip(names, weights, strict=True))


@given(
    weights=st.lists(st.integers(1, 5), min_size=3, max_size=3),
    away=st.integers(1, 60),
)
def test_one_that_was_closed_gets_no_burst_when_it_is_back(weights: list[int], away: int) -> None:
    total = sum(weights)
    run = Run(ProviderRouterStrategy(providers("a", "b", "c", weight=weights), policy="weighted"))
    run.start(total)
    run.router["c"].disable()
    meanwhile = Counter(run.start(away))
    assert meanwhile["c"] == 0
    assert abs(meanwhile["a"] - away * weights[0] / (total - weights[2])) <= 1.5
    run.router["c"].enable()
    for _ in range(3):
        assert abs(Counter(run.start(total))["c"] - weights[2]) <= 1


def test_a_full_one_is_passed_over_and_the_others_keep_their_proportion() -> None:
    slots = ConcurrentLimitStrategy(1)
    run = Run(
        ProviderRouterStrategy(
            [Provider("full", [slots], weight=4), Provider("b", weight=2), Provider("c")],
            policy="weighted",
        )
    )
    assert Counter(run.start(7)) == {"full": 1, "b": 4, "c": 2}
    assert Counter(run.start(300)) == {"b": 200, "c": 100}


def test_pinned_tasks_are_beside_the_count() -> None:
    run = Run(ProviderRouterStrategy(providers("a", "b", weight=[1, 1]), policy="weighted"))
    run.start(11, provider="a")
    assert Counter(run.start(10)) == {"a": 5, "b": 5}


def test_weights_and_policies_change_live() -> None:
    run = Run(ProviderRouterStrategy(providers("a", "b"), policy="weighted"))
    assert Counter(run.start(10)) == {"a": 5, "b": 5}
    run.router["a"].weight = 4
    assert Counter(run.start(10)) == {"a": 8, "b": 2}
    run.router.policy = "ordered"
    assert run.router.policy == "ordered"
    assert Counter(run.start(10)) == {"a": 10}


# ---------------------------------------------------------------- by load, price, age


@given(st.lists(st.tuples(st.booleans(), st.integers(0, 9)), max_size=40))
def test_the_least_loaded_for_its_weight(steps: list[tuple[bool, int]]) -> None:
    weights = {"a": 1, "b": 2, "c": 0.5}
    run = Run(
        ProviderRouterStrategy(
            providers(*weights, weight=list(weights.values())), policy="least_loaded"
        )
    )
    for starts, number in steps:
        load = Counter(str(task.provider) for task in run.running)
        if starts or not run.running:
            best = min(weights, key=lambda name: (load[name] + 1) / weights[name])
            assert run.start() == [best]
        else:
            run.end(str(run.running[number % len(run.running)].provider))


def test_the_cheapest_that_is_open() -> None:
    dear, cheap = Provider("dear", price=3), Provider("cheap", [ConcurrentLimitStrategy(2)])
    run = Run(ProviderRouterStrategy([dear, cheap], policy="cheapest"))
    assert run.start(4) == ["cheap", "cheap", "dear", "dear"]
    run.end("cheap")
    assert run.start() == ["cheap"]
    cheap.price = 5
    run.end("cheap")
    assert run.start() == ["dear"]
    assert (dear.price, cheap.price) == (3, 5)


def test_the_one_that_was_used_least_recently() -> None:
    run = Run(ProviderRouterStrategy(providers("a", "b", "c"), policy="earliest"))
    assert run.start() == ["a"]
    run.now = 1.0
    assert run.start() == ["b"]
    run.now = 2.0
    assert run.start(provider="a") == ["a"]
    run.now = 3.0
    assert run.start(1) == ["c"]
    run.now = 4.0
    assert run.start(1) == ["b"]


def test_a_function_sees_the_task_and_the_providers_that_could_take_it() -> None:
    seen: list[list[str]] = []

    def by_size(task: Task, providers: Sequence[Provider]) -> list[Provider]:
        seen.append([provider.name for provider in providers])
        return sorted(providers, key=lambda p: p.price, reverse=task.metadata.get("big", False))

    run = Run(ProviderRouterStrategy(providers("a", "b", "c", price=[1, 2, 3]), policy=by_size))
    run.router["b"].disable()
    assert run.start() == ["a"]
    assert run.start(big=True) == ["c"]
    assert seen == [["a", "c"]] * 2


def test_what_a_function_leaves_out_comes_last() -> None:
    some = [Provider("a"), Provider("b", [ConcurrentLimitStrategy(1)])]
    run = Run(ProviderRouterStrategy(some, policy=lambda task, found: found[1:]))
    assert run.start(3) == ["b", "a", "a"]


@pytest.mark.parametrize("given", ["a", ["a"], None, [Provider("a")]])
def test_a_function_that_gives_something_else_is_named(given: Any) -> None:
    run = Run(ProviderRouterStrategy(providers("a"), policy=lambda task, found: given))
    with pytest.raises(StrategyError, match=r"policy must give some of \[Provider\('a'\)\], not"):
        run.start()


# ---------------------------------------------------------------- the fastest


def fastest(half_life: float = 60, **seconds: float) -> Run:
    """Every provider has been tried once, and took so long."""
    run = Run(ProviderRouterStrategy(providers(*seconds), policy="fastest", half_life=half_life))
    for name, took in seconds.items():
        assert run.start(1) == [name]
        run.end(name, after=took)
    return run


def test_what_is_unknown_is_tried_by_one_task_at_a_time() -> None:
    run = Run(ProviderRouterStrategy(providers("a", "b"), policy="fastest"))
    assert run.start(5) == ["a", "b", "a", "a", "a"]  # both are being tried: ties by place
    run.end("b", after=1)
    assert run.start(3) == ["b"] * 3


def test_the_fastest_and_again_the_slow_one_some_time() -> None:
    run = fastest(half_life=10, slow=4, fast=1)
    assert {run.once(after=1) for _ in range(5)} == {"fast"}
    run.now += 100
    run.start(1)  # something runs at the fast one: its latency is known, not guessed
    assert run.start(1) == ["slow"]  # by now it may be faster
    assert run.start(3) == ["fast"] * 3  # one is enough to find out
    run.end("slow", after=4)
    assert run.start(1) == ["fast"]


def test_it_follows_a_provider_that_slows_down() -> None:
    run = fastest(a=1, b=2)
    slower = {"a": 5.0, "b": 2.0}
    went = []
    for _ in range(20):
        where = run.start()[0]
        assert where is not None
        run.end(where, after=slower[where])
        went.append(where)
    assert went[0] == "a"
    assert went.count("b") >= 15


def test_whoever_fails_at_once_is_not_fast() -> None:
    run = fastest(half_life=3600, a=1, b=3)
    went = [run.once("failure", after=0.001) for _ in range(2)]
    assert went == ["a", "a"]
    assert {run.once(after=3) for _ in range(5)} == {"b"}


def test_failures_of_all_do_not_grow_without_bound() -> None:
    run = Run(ProviderRouterStrategy(providers("a", "b"), policy="fastest", half_life=5))
    for _ in range(3_000):
        run.once("failure", after=0.01)
    assert all(0 < (load.latency or 0) <= 50 for load in run.router._loads.values())


@pytest.mark.parametrize("began", [True, False])
def test_what_was_cancelled_is_no_sample(began: bool) -> None:
    run = fastest(a=1, b=2)
    run.start()
    task = run.running.pop()
    outcome = Outcome("cancelled", run.now if began else None, run.now + 50)
    run.chain.finish(task, outcome, run.now + 50)
    assert run.once() == "a"


async def test_the_fastest_in_a_manager() -> None:
    router = ProviderRouterStrategy(providers("slow", "fast"), policy="fastest")
    used: Counter[str] = Counter()

    async def call() -> None:
        task = current_task()
        assert task is not None
        used[str(task.provider)] += 1
        await asyncio.sleep({"slow": 2, "fast": 0.5}[str(task.provider)])

    async with TaskManager(Chain(router, ConcurrentLimitStrategy(4))) as manager:
        for _ in range(200):
            manager.add_task(call)
    assert used["fast"] > 190


# ---------------------------------------------------------------- failover


@pytest.mark.parametrize("policy", ["ordered", "cheapest", "weighted", "fastest", "earliest"])
async def test_a_task_that_failed_at_one_provider_prefers_another_next_time(policy: Any) -> None:
    tried: list[str | None] = []

    async def call() -> str:
        task = current_task()
        assert task is not None
        tried.append(task.provider)
        if len(tried) < 5:
            raise ConnectionError
        return str(task.provider)

    router = ProviderRouterStrategy(providers("a", "b", "c"), policy=policy)
    async with TaskManager(Chain(RetryStrategy(9, backoff=lambda n: 1.0), router)) as manager:
        await manager.add_task(call)
    assert tried[:3] == ["a", "b", "c"]
    assert tried[3:] == ["a", "b"]  # where it failed longest ago


async def test_it_goes_back_rather_than_wait() -> None:
    tried: list[str | None] = []

    async def call() -> None:
        task = current_task()
        assert task is not None
        tried.append(task.provider)
        if len(tried) == 1:
            raise ConnectionError

    router = ProviderRouterStrategy(providers("a", "b"))
    router["b"].disable()
    async with TaskManager(Chain(RetryStrategy(3, backoff=lambda n: 1.0), router)) as manager:
        await manager.add_task(call)
    assert tried == ["a", "a"]


async def test_through_two_routers_each_minds_its_own() -> None:
    tried: list[tuple[str, str]] = []
    regions = ProviderRouterStrategy(providers("eu", "us"), field="region")
    models = ProviderRouterStrategy(providers("small", "large"), field="model")

    async def call() -> None:
        taken = [load for load in (regions, models) for p in load if load._loads[p].running]
        assert len(taken) == 2
        names = [p.name for load in taken for p in load if load._loads[p].running]
        tried.append((names[0], names[1]))
        if len(tried) < 3:
            raise ConnectionError

    chain = Chain(RetryStrategy(5, backoff=lambda n: 1.0), regions, models)
    async with TaskManager(chain) as manager:
        await manager.add_task(call, {"model": "large"})
    assert tried == [("eu", "large"), ("us", "large"), ("eu", "large")]


# ---------------------------------------------------------------- keys inside a provider


@pytest.mark.parametrize("policy", ["ordered", "weighted", "least_loaded", "earliest"])
def test_one_models_limit_never_blocks_anothers_tasks(policy: Any) -> None:
    some = [
        Provider(name, [SlidingWindowStrategy(2, 60, key="model"), ConcurrentLimitStrategy(9)])
        for name in ("a", "b")
    ]
    run = Run(ProviderRouterStrategy(some, policy=policy))
    assert Counter(run.start(10, model="x")) == {"a": 2, "b": 2}
    assert Counter(run.start(4, model="y")) == {"a": 2, "b": 2}
    assert run.start(1, model="z") == run.start(1, model="z", provider="a") == ["a"]
    run.now = 60.0
    assert Counter(run.pull()) == {"a": 2, "b": 2}


# ---------------------------------------------------------------- copies, removals


@pytest.mark.parametrize("policy", ["weighted", "least_loaded", "fastest", "earliest"])
def test_a_copy_goes_on_by_itself_from_where_it_was(policy: Any) -> None:
    original = ProviderRouterStrategy(providers("a", "b", "c", weight=[3, 1, 2]), policy=policy)
    run = Run(original)
    run.start(4)
    run.end("a", after=2)
    twins = [Run(copy.deepcopy(original)) for _ in range(2)]
    for twin in twins:
        twin.now = run.now
    assert twins[0].start(7) == twins[1].start(7) == run.start(7)
    assert [p.weight for p in twins[0].router] == [3, 1, 2]
    assert list(twins[0].router._loads) == list(twins[0].router)


def test_what_runs_at_a_removed_provider_ends_in_peace() -> None:
    run = Run(ProviderRouterStrategy(providers("a", "b"), policy="least_loaded"))
    assert run.start(2) == ["a", "b"]
    a = run.router["a"]
    run.router.remove("a")
    run.end("a")
    run.router.add(a, index=0)
    assert run.start(1) == ["a"]
    run.router.remove("a")
    run.router.add(a)
    run.end("a")  # of its former life
    assert run.start(1) == ["a"]


# ---------------------------------------------------------------- what is refused


as_text: Any = "2"


@pytest.mark.parametrize(
    ("make", "error", "says"),
    [
        (lambda: Provider("a", weight=0), InvalidValue, "weight of 'a' .* above 0, not 0"),
        (
            lambda: Provider("a", weight=as_text),
            InvalidType,
            "weight of 'a' must be a number, not '2'",
        ),
        (lambda: Provider("a", price=-1), InvalidValue, "price of 'a' .* at least 0, not -1"),
        (
            lambda: ProviderRouterStrategy([Provider("a")], policy="fast"),
            InvalidValue,
            "policy must be one of 'ordered', 'weighted', .*, 'earliest', not 'fast'",
        ),
        (
            lambda: ProviderRouterStrategy([Provider("a")], half_life=0),
            InvalidValue,
            "half_life .* above 0, not 0",
        ),
    ],
)
def test_bad_parameters(make: Callable[[], Any], error: type[Exception], says: str) -> None:
    with pytest.raises(error, match=says):
        make()


def test_repr_is_the_call() -> None:
    text = (
        "ProviderRouterStrategy([Provider('a', weight=2), Provider('b', price=0.5)], "
        "policy='cheapest', half_life=5)"
    )
    assert repr(eval(text)) == text


def test_by_hand_round_and_round() -> None:
    run = Run(ProviderRouterStrategy(providers("a", "b"), policy="earliest"))
    for expected in cycle("ab"):
        run.now += 1
        assert run.start(1) == [expected]
        if run.now > 10:
            break


def test_metadata_is_left_alone() -> None:
    run = Run(ProviderRouterStrategy(providers("a"), policy="weighted"))
    task = Task(partial(asyncio.sleep, 0))
    run.chain.add(task, 0.0)
    assert run.pull() == ["a"]
    assert task._metadata is None
