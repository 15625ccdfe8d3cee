"""An estimate is corrected by what was really consumed: in every account, exactly once."""

from __future__ import annotations

import asyncio
import gc
import threading
from collections.abc import Callable, Hashable
from dataclasses import dataclass
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from async_task_manager import Chain, TaskManager, current_task
from async_task_manager.errors import InvalidType, InvalidValue
from async_task_manager.strategies import (
    ConcurrentLimitStrategy,
    DelayedStrategy,
    FairShareStrategy,
    FixedWindowStrategy,
    Limit,
    Provider,
    ProviderRouterStrategy,
    RetryStrategy,
    SlidingWindowStrategy,
    TokenBucketStrategy,
    fixed,
)
from async_task_manager.task import Outcome, Task

# ---- the law, limit by limit --------------------------------------------------------------------

LIMITS: list[Callable[[], Limit]] = [
    lambda: SlidingWindowStrategy(100, 60, key="user", cost="tokens"),
    lambda: FixedWindowStrategy(100, 60, key="user", cost="tokens"),
    lambda: FixedWindowStrategy(100, "minute", align="clock", key="user", cost="tokens"),
    lambda: TokenBucketStrategy(2, 100, catch_up=0, key="user", cost="tokens"),
    lambda: DelayedStrategy(0.5, key="user", cost="tokens"),
    lambda: DelayedStrategy(0.5, key="user", cost="tokens", measure_from="start"),
]


@dataclass
class Life:
    estimate: int
    actuals: list[int]
    starts: bool
    kind: str
    pause: float
    user: str


LIVES = st.lists(
    st.builds(
        Life,
        estimate=st.integers(0, 60),
        actuals=st.lists(st.integers(0, 60), max_size=3),
        starts=st.sampled_from([True, True, True, False]),
        kind=st.sampled_from(["success", "failure", "cancelled"]),
        pause=st.sampled_from([0.0, 0.5, 7.0, 31.0]),
        user=st.sampled_from("ab"),
    ),
    min_size=1,
    max_size=12,
)


@given(lives=LIVES, make=st.sampled_from(LIMITS))
def test_settled_at_once_it_is_as_if_the_truth_had_been_known(
    lives: list[Life], make: Callable[[], Limit]
) -> None:
    """However often it is settled, and however the task ends."""
    guessing, knowing = make(), make()
    for limit in (guessing, knowing):
        limit.set_wall_offset(1.7e9, 0.0)
    now = 0.0
    for life in lives:
        now += life.pause
        truth = life.actuals[-1] if life.actuals else life.estimate
        ready = [
            limit.ready_at(life.user, cost, now)
            for limit, cost in ((guessing, life.estimate), (knowing, truth))
        ]
        if max(ready) > now:
            continue
        guess = guessing.acquire(life.user, life.estimate, now)
        known = knowing.acquire(life.user, truth, now)
        if life.starts:
            guessing.started(guess, now)
            knowing.started(known, now)
        for actual in life.actuals:
            guessing.settle(guess, actual, now)
        kind: Any = life.kind if life.starts else "cancelled"
        outcome = Outcome(kind, now if life.starts else None, now)
        guessing.release(guess, outcome, now)
        knowing.release(known, outcome, now)
        for user in "ab":
            for cost in (1, 40, 100):
                mine, theirs = (
                    max(now, limit.ready_at(user, cost, now)) for limit in (guessing, knowing)
                )
                assert mine == pytest.approx(theirs, abs=1e-9)
            mine_, theirs_ = (limit.usage(user, now).used for limit in (guessing, knowing))
            assert mine_ == pytest.approx(theirs_, abs=1e-6)


@given(
    estimate=st.integers(0, 60),
    actuals=st.lists(st.integers(0, 60), min_size=1, max_size=3),
    pauses=st.lists(st.sampled_from([0.0, 0.5, 5.0, 40.0, 70.0]), min_size=4, max_size=4),
    make=st.sampled_from(LIMITS[:4]),
)
def test_settled_late_it_admits_no_more_than_the_truth_would(
    estimate: int, actuals: list[int], pauses: list[float], make: Callable[[], Limit]
) -> None:
    """What was lent in between is not given out again: never more room than knowing it all."""
    guessing, knowing = make(), make()
    for limit in (guessing, knowing):
        limit.set_wall_offset(1.7e9, 0.0)
    guess = guessing.acquire("a", estimate, 0.0)
    known = knowing.acquire("a", actuals[-1], 0.0)
    guessing.started(guess, 0.0)
    knowing.started(known, 0.0)
    now = 0.0
    for actual, pause in zip(actuals, pauses, strict=False):
        now += pause
        guessing.settle(guess, actual, now)
    now += pauses[3]
    outcome = Outcome("failure", 0.0, now)
    guessing.release(guess, outcome, now)
    knowing.release(known, outcome, now)
    for cost in (1, 40, 60, 100):
        mine, theirs = (max(now, li.ready_at("a", cost, now)) for li in (guessing, knowing))
        assert mine >= theirs - 1e-9


def test_a_delay_is_for_what_was_really_consumed() -> None:
    end = DelayedStrategy(2, cost="tokens")
    grant = end.acquire(None, 10, 0.0)
    end.started(grant, 0.0)
    end.settle(grant, 3, 1.0)
    end.release(grant, Outcome("failure", 0.0, 5.0), 5.0)
    assert end.ready_at(None, 1, 5.0) == 11.0
    end.settle(grant, 99, 6.0)  # too late
    assert end.ready_at(None, 1, 6.0) == 11.0

    start = DelayedStrategy(2, cost="tokens", measure_from="start")
    grant = start.acquire(None, 10, 0.0)
    start.started(grant, 0.0)
    assert start.ready_at(None, 1, 0.0) == 20.0
    start.settle(grant, 3, 1.0)
    assert start.ready_at(None, 1, 1.0) == 6.0
    later = start.acquire(None, 1, 6.0)
    start.started(later, 6.0)
    start.settle(grant, 50, 7.0)  # its delay is over
    assert start.ready_at(None, 1, 7.0) == 8.0
    start.settle(later, 1e300, 7.0)
    assert start.ready_at(None, 1, 7.0) == pytest.approx(1e12)


def test_slots_are_given_back_as_they_were_taken() -> None:
    slots = ConcurrentLimitStrategy(10, cost="tokens")
    grant = slots.acquire(None, 4, 0.0)
    slots.settle(grant, 9, 0.0)
    assert slots.usage(None, 0.0).used == 4
    slots.release(grant, Outcome("failure", 0.0, 0.0), 0.0)
    assert slots.usage(None, 0.0).used == 0


# ---- through the chain --------------------------------------------------------------------------


class Books(Limit):
    """Writes down what it is told."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self.lines: list[tuple[str, Hashable, Any]] = []

    def ready_at(self, key: Hashable, cost: Any, now: float) -> float:
        return now

    def acquire(self, key: Hashable, cost: Any, now: float) -> Hashable:
        self.lines.append(("acquire", key, cost))
        return key

    def settle(self, grant: Hashable, actual: Any, now: float) -> None:
        self.lines.append(("settle", grant, actual))

    def release(self, grant: Hashable, outcome: Outcome, now: float) -> None:
        self.lines.append(("release", grant, outcome.cost))

    def usage(self, key: Hashable, now: float) -> Any:
        raise NotImplementedError


def books() -> tuple[Chain, dict[str, Books]]:
    """One in each place that a limit can have, and of each kind of cost."""
    found = {
        "tokens": Books(key="user", cost="tokens"),
        "callable": Books(cost=lambda task: 7),
        "tasks": Books(key="user"),
        "routed": Books(key="model", cost="tokens"),
        "other": Books(key="model", cost="dollars", default_cost=1),
    }
    router = ProviderRouterStrategy([Provider("p", limits=[found["routed"], found["other"]])])
    return Chain(found["tokens"], found["callable"], found["tasks"], router), found


DATA = {"user": "u", "model": "m", "cost": {"tokens": 10}}


async def test_it_reaches_every_account_once_in_its_own_unit() -> None:
    async def work() -> None:
        task = current_task()
        assert task is not None
        task.settle({"tokens": 4, "cents": 3})
        raise ValueError  # on failure, too

    chain, found = books()
    async with TaskManager(chain) as manager:
        task = manager.add_task(work, dict(DATA))
    assert isinstance(task.exception(), ValueError)
    cost = {"tokens": 4, "cents": 3}
    assert {name: one.lines[1:] for name, one in found.items()} == {
        "tokens": [("settle", "u", 4), ("release", "u", cost)],
        "callable": [("release", None, cost)],
        "tasks": [("release", "u", cost)],
        "routed": [("settle", "m", 4), ("release", "m", cost)],
        "other": [("release", "m", cost)],
    }


async def test_a_bare_number_is_for_every_account_that_reads_a_cost() -> None:
    async def work() -> None:
        task = current_task()
        assert task is not None
        task.settle(5)
        task.settle(4)  # the last word counts

    chain, found = books()
    async with TaskManager(chain) as manager:
        manager.add_task(work, dict(DATA))
    for name, key in (("tokens", "u"), ("callable", None), ("routed", "m"), ("other", "m")):
        lines = found[name].lines[1:]
        assert lines == [("settle", key, 5), ("settle", key, 4), ("release", key, 4)]
    assert found["tasks"].lines[1:] == [("release", "u", 4)]


@pytest.mark.parametrize("kind", ["success", "failure", "cancelled"])
@pytest.mark.parametrize("cost", [6, {"tokens": 6}])
def test_the_cost_of_an_outcome_settles_what_the_work_did_not(kind: Any, cost: Any) -> None:
    """As a host tells it that runs the work elsewhere."""
    for told in (False, True):
        chain, found = books()
        chain.add(task := Task(asyncio.Event().wait, dict(DATA)), 0.0)
        assert chain.pull(0.0) is task
        chain.begun(task, 0.0)
        if told:
            task.settle(cost)
        chain.finish(task, Outcome(kind, 0.0, 1.0, None, cost), 1.0)
        settled = ("settle", "u", 6)
        assert found["tokens"].lines[1:] == [settled, ("release", "u", cost)]
        assert found["routed"].lines.count(("settle", "m", 6)) == 1


def test_work_that_never_started_has_no_cost() -> None:
    chain, found = books()
    chain.add(task := Task(asyncio.Event().wait, dict(DATA)), 0.0)
    assert chain.pull(0.0) is task
    chain.finish(task, Outcome("cancelled", None, 1.0, None, 6), 1.0)
    assert found["tokens"].lines[1:] == [("release", "u", 6)]


async def test_each_attempt_is_charged_and_settled_for_itself() -> None:
    window = SlidingWindowStrategy(100, 60, cost="tokens")

    async def work() -> None:
        task = current_task()
        assert task is not None
        if task.attempt < 3:
            task.settle(5 * task.attempt)
            raise ConnectionError

    async with TaskManager(Chain(RetryStrategy(backoff=fixed(1)), window)) as manager:
        await manager.add_task(work, {"cost": {"tokens": 40}})
        assert window.usage(None, 2.0).used == 5 + 10 + 40  # the last one said nothing


async def test_fairness_goes_by_what_was_really_consumed() -> None:
    """One user's tasks cost four times what they say, the other's what they say; both fail."""
    order: list[str] = []

    def work(user: str, actual: int) -> Callable[[], Any]:
        async def run() -> None:
            task = current_task()
            assert task is not None
            order.append(user)
            await asyncio.sleep(1)
            task.settle({"tokens": actual})
            raise ValueError

        return run

    chain = Chain(
        FairShareStrategy(key="user", by="share", cost="tokens"), ConcurrentLimitStrategy(1)
    )
    async with TaskManager(chain) as manager:
        tasks = [
            manager.add_task(work(user, actual), {"user": user, "cost": {"tokens": 10}})
            for _ in range(40)
            for user, actual in (("liar", 40), ("honest", 10))
        ]
    assert all(task.exception() for task in tasks)
    early = order[:25]
    assert 4 <= early.count("liar") <= 6


async def test_settling_lets_others_start_or_wait_at_once() -> None:
    window = SlidingWindowStrategy(10, 60, cost="tokens")
    starts: list[float] = []

    def work(actual: int | None) -> Callable[[], Any]:
        async def run() -> None:
            starts.append(asyncio.get_running_loop().time())
            await asyncio.sleep(5)
            if actual is not None:
                task = current_task()
                assert task is not None
                task.settle(actual)
            await asyncio.sleep(5)

        return run

    async with TaskManager(window) as manager:
        for actual in (2, None, 1):
            manager.add_task(work(actual), {"cost": {"tokens": 8}})
    assert starts == [0, 5, 65]


async def test_what_is_no_cost_is_refused() -> None:
    async def work() -> None:
        task = current_task()
        assert task is not None
        bad: list[Any] = [-1, float("nan"), float("inf"), {"tokens": -1}]
        for actual in bad:
            with pytest.raises(InvalidValue, match="actual cost"):
                task.settle(actual)
        with pytest.raises(InvalidType, match="actual cost tokens must be a number"):
            task.settle({"tokens": "many"})  # type: ignore[dict-item]

    window = SlidingWindowStrategy(10, 60, cost="tokens")
    async with TaskManager(window) as manager:
        await manager.add_task(work, {"cost": {"tokens": 8}})
        assert window.usage(None, 0.0).used == 8


# ---- from a thread ------------------------------------------------------------------------------


async def test_a_thread_that_the_work_started_may_tell_it() -> None:
    window = SlidingWindowStrategy(10, 60, cost="tokens")
    starts: list[float] = []

    def blocking() -> None:
        task = current_task()
        assert task is not None
        task.settle(2)
        task.observe({"x-ratelimit-remaining-tokens": "9", "x-ratelimit-reset-tokens": "20s"})

    async def work() -> None:
        starts.append(asyncio.get_running_loop().time())
        await asyncio.to_thread(blocking)
        await asyncio.sleep(5)

    async with TaskManager(window) as manager:
        tasks = [manager.add_task(work, {"cost": {"tokens": 8}}) for _ in range(2)]
    assert [task.state for task in tasks] == ["succeeded"] * 2
    assert starts == [0, 0]  # the first one made room at once
    assert window.usage(None, 0.0).used == 4


async def test_what_a_thread_tells_too_late_changes_nothing() -> None:
    window = SlidingWindowStrategy(10, 60, cost="tokens")
    told = threading.Event()
    threads: list[threading.Thread] = []

    async def work() -> None:
        task = current_task()
        assert task is not None

        def blocking() -> None:
            task.settle(2)
            told.set()

        threads.append(threading.Thread(target=blocking))
        threads[0].start()
        told.wait(5)  # it blocks the loop: the thread was quicker, and the loop hears of it later

    async with TaskManager(window) as manager:
        await manager.add_task(work, {"cost": {"tokens": 8}})
        await asyncio.sleep(0)
        assert window.usage(None, 0.0).used == 8
    threads[0].join()


@pytest.mark.real_time
def test_a_thread_that_outlives_the_loop_tells_nobody() -> None:
    go, told = threading.Event(), threading.Event()
    threads: list[threading.Thread] = []

    async def work() -> None:
        task = current_task()
        assert task is not None

        def blocking() -> None:
            go.wait(5)
            task.observe({"retry-after": "5"})
            told.set()

        threads.append(threading.Thread(target=blocking))
        threads[0].start()
        await asyncio.sleep(60)

    async def main() -> TaskManager:
        manager = TaskManager(SlidingWindowStrategy(10, 60))
        await manager.idle()
        manager.add_task(work)
        await asyncio.sleep(0.05)
        return manager

    loop = asyncio.new_event_loop()
    manager = loop.run_until_complete(main())
    loop.close()
    go.set()
    assert told.wait(5)
    threads[0].join()
    threads.clear()
    del manager, loop
    gc.collect()  # what hung in the loop goes here, not somewhere in the next test
