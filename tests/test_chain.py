"""The rules of a chain, one by one."""

from __future__ import annotations

import asyncio
import copy
import gc
import pickle
from collections import deque
from collections.abc import Callable, Hashable, Iterable, Sequence
from datetime import timedelta
from math import inf, nextafter
from typing import Any

import pytest

from async_task_manager import (
    Chain,
    DeadlineExceeded,
    InvalidState,
    InvalidType,
    InvalidValue,
    QueueTimeout,
    StrategyError,
    StrategyInUse,
    Task,
    TaskManager,
    TaskRejected,
    TaskTooLarge,
    UnknownProvider,
)
from async_task_manager._run import Options
from async_task_manager.strategies import (
    BaseStrategy,
    Branch,
    ConcurrentLimitStrategy,
    Feedback,
    FixedWindowStrategy,
    GroupOrder,
    Hold,
    Limit,
    Order,
    PriorityQueueStrategy,
    Provider,
    ProviderRouterStrategy,
    RetryAt,
    Router,
    SlidingWindowStrategy,
    Source,
    TimeBasedStrategy,
    TokenBucketStrategy,
    Usage,
    WallTime,
    _dispatch,
)
from async_task_manager.strategies._dispatch import MAX_MOVES, PATIENCE, Dispatch
from async_task_manager.strategies._intake import MAX_BOUNDS
from async_task_manager.strategies._lanes import PRUNE_AT, Queue
from async_task_manager.strategies._single_lane import MAX_REJECTED
from async_task_manager.task import Outcome


async def nothing() -> None:
    pass


def task(**metadata: Any) -> Task[None]:
    return Task(nothing, metadata or None)


def add(chain: Chain, *tasks: Task[Any], now: float = 0.0) -> list[Task[Any]]:
    for each in tasks:
        chain.add(each, now)
    return list(tasks)


def drain(chain: Chain, now: float) -> list[Task[Any]]:
    """Pulls until nothing more comes; a pull that only had no time to finish is repeated."""
    started = []
    for _ in range(10_000):
        given = chain.pull(now)
        if given is not None:
            started.append(given)
            chain.begun(given, now)
        elif chain.next_wake(now) > now:
            return started
    raise AssertionError("no end of it")


def end(chain: Chain, *tasks: Task[Any], now: float, kind: Any = "success") -> None:
    for each in tasks:
        chain.finish(each, Outcome(kind, now, now), now)


# ---- who goes first -----------------------------------------------------------------------------


def test_a_large_task_is_not_starved_and_a_better_rank_goes_ahead() -> None:
    chain = Chain(PriorityQueueStrategy(), ConcurrentLimitStrategy(4, key="k", cost="n"))
    running = add(chain, task(k=1, cost=3))
    assert drain(chain, 0.0) == running
    large, small = add(chain, task(k=1, cost=4), task(k=1, cost=1))
    assert drain(chain, 1.0) == []
    (urgent,) = add(chain, task(k=1, cost=1, priority="high"), now=2.0)
    assert drain(chain, 2.0) == [urgent]
    end(chain, *running, urgent, now=3.0)
    assert drain(chain, 3.0) == [large]
    end(chain, large, now=4.0)
    assert drain(chain, 4.0) == [small]


@pytest.mark.parametrize("key", [None, "k"])
def test_who_stood_behind_a_cancelled_task_is_looked_at(key: str | None) -> None:
    chain = Chain(ConcurrentLimitStrategy(4, key=key, cost="n"))
    running, large, small = add(chain, task(cost=3), task(cost=4), task(cost=1))
    assert drain(chain, 0.0) == [running]
    assert chain.next_wake(0.0) == inf
    chain.cancel(large, 1.0)
    assert chain.next_wake(1.0) == 1.0
    assert drain(chain, 1.0) == [small]


def test_a_blocked_key_blocks_no_other() -> None:
    chain = Chain(ConcurrentLimitStrategy(1, key="k"))
    first, _waits, other = add(chain, task(k="a"), task(k="a"), task(k="b"))
    assert drain(chain, 0.0) == [first, other]


def test_several_limits_are_charged_together_or_not_at_all() -> None:
    window, slots = SlidingWindowStrategy(5, 60), ConcurrentLimitStrategy(1)
    chain = Chain(window, slots)
    add(chain, task(), task())
    assert len(drain(chain, 0.0)) == 1
    assert (window.usage(None, 0.0).used, slots.usage(None, 0.0).used) == (1, 1)


def turns_until_it_starts(limit: int) -> int:
    """One task needs both of two keys; others keep taking one or the other."""
    chain = Chain(ConcurrentLimitStrategy(1, key="a"), ConcurrentLimitStrategy(1, key="b"))
    running = deque(add(chain, task(a="x", b=0), task(a=1, b="y")))
    assert len(drain(chain, 0.0)) == 2
    (both,) = add(chain, task(a="x", b="y"))
    for turn in range(1, limit):
        now = float(turn)
        add(chain, task(a="x", b=turn) if turn % 2 else task(a=-turn, b="y"), now=now)
        end(chain, running.popleft(), now=now)
        running.extend(drain(chain, now))
        if both in running:
            return turn
    return limit


def test_two_contended_keys_starve_nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    assert turns_until_it_starts(1_000) <= 2 * PATIENCE + 2
    monkeypatch.setattr(_dispatch, "PATIENCE", inf)
    assert turns_until_it_starts(1_000) == 1_000  # what the kept places are for


def test_a_pull_is_bounded() -> None:
    chain = Chain(ConcurrentLimitStrategy(1), ConcurrentLimitStrategy(1, key="k"))
    add(chain, *(task(k=i) for i in range(5 * MAX_MOVES)))
    assert chain.pull(0.0) is not None
    assert chain.pull(0.0) is None
    assert chain.next_wake(0.0) == 0.0
    assert drain(chain, 0.0) == []
    assert chain.next_wake(0.0) == inf


def pulls(chain: Chain, now: float) -> int:
    """How many pulls it takes until nothing more comes."""
    for n in range(1, 1_000):
        if chain.pull(now) is None and chain.next_wake(now) > now:
            return n
    raise AssertionError("no end of it")


def test_a_pull_is_bounded_where_much_is_due_at_one_instant() -> None:
    windows = Chain(FixedWindowStrategy(1, 60, key="k"))
    add(windows, *(task(k=i) for i in range(5 * MAX_MOVES)))
    drain(windows, 0.0)
    add(windows, *(task(k=i, x=1) for i in range(5 * MAX_MOVES)), now=1.0)
    assert pulls(windows, 1.0) > 4
    assert windows.pull(60.0) is None  # so many nodes are to be looked at first
    assert windows.next_wake(60.0) == 60.0
    assert len(drain(windows, 60.0)) == 5 * MAX_MOVES

    held = Chain(TimeBasedStrategy(), ConcurrentLimitStrategy(1))
    add(held, *(task(valid_after=timedelta(seconds=9)) for _ in range(5 * MAX_BOUNDS)))
    assert held.pull(9.0) is None
    assert len(held._held) == 4 * MAX_BOUNDS
    assert pulls(held, 9.0) == 5 + 1  # the last that has something to do starts one


@pytest.mark.parametrize("key", [None, "k"])
def test_a_pull_is_bounded_where_much_is_rejected(key: str | None) -> None:
    chain = Chain(FailsFast(1, key=key))
    add(chain, *(task() for _ in range(5 * MAX_REJECTED)))
    assert chain.pull(0.0) is not None
    assert chain.pull(0.0) is None
    assert len(chain.out) <= MAX_REJECTED
    assert chain.next_wake(0.0) == 0.0
    assert drain(chain, 0.0) == []
    assert len(chain.out) == 5 * MAX_REJECTED - 1


def test_one_opening_wakes_one_lane() -> None:
    chain = Chain(ConcurrentLimitStrategy(1, cost=1), ConcurrentLimitStrategy(9, key="k"))
    add(chain, *(task(k=i) for i in range(100)))
    (first,) = drain(chain, 0.0)
    assert isinstance(chain.dispatch, Dispatch)
    moves = chain.dispatch.moves
    end(chain, first, now=1.0)
    assert len(drain(chain, 1.0)) == 1
    assert chain.dispatch.moves - moves <= 2


def test_keys_seen_are_not_keys_kept() -> None:
    chain = Chain(ConcurrentLimitStrategy(1, key="k"))
    for i in range(2000):
        first, second = add(chain, task(k=i), task(k=i))
        for each in (first, second):
            assert drain(chain, 0.0) == [each]
            end(chain, each, now=0.0)
    drain(chain, 0.0)
    assert isinstance(chain.dispatch, Dispatch)
    (gate,) = chain.dispatch.gates
    assert not chain.dispatch.lanes
    assert not list(gate.all_nodes())


def test_nor_are_the_keys_of_closed_branches() -> None:
    router = ProviderRouterStrategy(
        [Provider("a", limits=[FixedWindowStrategy(1, 60, key="k")]), Provider("b")]
    )
    chain = Chain(router)
    for i in range(200):
        add(chain, task(k=i), task(k=i))
        assert [each.provider for each in drain(chain, 0.0)] == ["a", "b"]
    assert isinstance(chain.dispatch, Dispatch)
    assert not [node for gate in chain.dispatch.gates for node in gate.all_nodes()]


def test_held_tasks_share_a_lane() -> None:
    chain = Chain(TimeBasedStrategy(), ConcurrentLimitStrategy(1, key="k"))
    tasks = add(chain, *(task(k=i % 2, valid_after=timedelta(1)) for i in range(10)))
    assert len({id(each._lane) for each in tasks}) == 2


def test_lanes_never_compare() -> None:
    """Entries of a heap are told apart before it comes to the lanes themselves."""
    chain = Chain(ConcurrentLimitStrategy(1, key="k"))
    add(chain, *(task(k=i % 7) for i in range(50)))
    drain(chain, 0.0)
    assert isinstance(chain.dispatch, Dispatch)
    lanes = chain.dispatch.lanes.values()
    assert len(lanes) == len({lane.version for lane in lanes}) == 7


# ---- holds and bounds ---------------------------------------------------------------------------


def test_bounds_are_half_open() -> None:
    class Between(Hold):
        def not_before(self, task: Task[Any], now: float) -> float:
            return task.metadata.get("from", now)  # type: ignore[no-any-return]

        def not_after(self, task: Task[Any], now: float) -> float:
            return task.metadata.get("to", inf)  # type: ignore[no-any-return]

    chain = Chain(Between(), ConcurrentLimitStrategy(1))
    (just,) = add(chain, task(to=4.0))
    assert drain(chain, nextafter(4.0, 0)) == [just]
    end(chain, just, now=4.0)

    chain = Chain(Between(), ConcurrentLimitStrategy(1))
    first, held, late = add(chain, task(), task(**{"from": 5.0}), task(to=4.0))
    assert drain(chain, 0.0) == [first]
    assert chain.next_wake(0.0) == 4.0
    assert drain(chain, 4.0) == []
    ((gone, error),) = chain.out
    assert (gone, type(error), gone.state) == (late, QueueTimeout, "expired")
    end(chain, first, now=4.5)
    assert drain(chain, 4.5) == []
    assert chain.next_wake(4.5) == 5.0
    assert drain(chain, nextafter(5.0, 0)) == []
    assert drain(chain, 5.0) == [held]


def test_what_is_refused_leaves_no_bound_behind() -> None:
    class Strict(Hold):
        limit = 1.0

        def not_after(self, task: Task[Any], now: float) -> float:
            return self.limit

    class Fussy(Hold):
        def not_before(self, task: Task[Any], now: float) -> float:
            if "bad" in task.metadata:
                raise InvalidValue("bad")
            return now

    strict = Strict()
    chain = Chain(strict, Fussy())
    refused = task(bad=True)
    with pytest.raises(InvalidValue):
        chain.add(refused, 0.0)
    del refused.metadata["bad"]
    strict.limit = 9.0
    chain.add(refused, 0.0)
    assert chain.next_wake(0.0) == 0.0
    assert drain(chain, 5.0) == [refused]


@pytest.mark.parametrize("which", ["not_before", "not_after"])
def test_a_bound_that_is_none(which: str) -> None:
    hold = type("Nan", (Hold,), {which: lambda self, task, now: float("nan")})()
    with pytest.raises(StrategyError, match=r"Nan.*NaN"):
        Chain(hold).add(task(), 0.0)


def test_wall_times_follow_the_wall_clock() -> None:
    class Until(Hold):
        def not_after(self, task: Task[Any], now: float) -> float:
            return WallTime(task.metadata["to"]) if "to" in task.metadata else inf

    chain = Chain(TimeBasedStrategy(), Until())
    day = 1_700_000_000.0
    held, bounded = add(chain, task(valid_after=day + 100), task(valid_after=day + 90, to=day + 50))
    assert chain.watches_wall_time
    assert drain(chain, 0.0) == []
    chain.set_wall_offset(day, 0.0)
    assert chain.next_wake(0.0) == 50.0
    assert drain(chain, 50.0) == []
    assert bounded.state == "expired"
    chain.set_wall_offset(day + 30, 60.0)
    assert chain.next_wake(60.0) == 70.0
    assert drain(chain, 70.0) == [held]


def test_windows_of_the_wall_clock_follow_it() -> None:
    chain = Chain(FixedWindowStrategy(1, "minute", align="clock"))
    first, second = add(chain, task(), task())
    assert chain.watches_wall_time
    minute = 1_700_000_040.0
    chain.set_wall_offset(minute, 0.0)
    assert drain(chain, 10.0) == [first]
    assert chain.next_wake(10.0) == 60.0
    chain.set_wall_offset(minute + 20, 15.0)
    assert drain(chain, 15.0) == []
    assert chain.next_wake(15.0) == 40.0
    assert drain(chain, 40.0) == [second]
    assert not chain.watches_wall_time


def test_the_last_of_several_holds_counts() -> None:
    for fields in (("early", "late"), ("late", "early")):
        chain = Chain(*(TimeBasedStrategy(field=field) for field in fields))
        (held,) = add(chain, task(early=timedelta(seconds=3), late=timedelta(seconds=5)))
        assert chain.next_wake(0.0) == 5.0
        chain = Chain(*(TimeBasedStrategy(field=field) for field in fields))
        chain.set_wall_offset(1e9, 0.0)
        (held,) = add(chain, task(early=1e9 + 3, late=1e9 + 5))
        assert drain(chain, 3.0) == []
        assert drain(chain, 5.0) == [held]


def test_a_hold_of_both_clocks_takes_the_later() -> None:
    class Also(Hold):
        def not_before(self, task: Task[Any], now: float) -> float:
            return now + 10

    chain = Chain(TimeBasedStrategy(), Also())
    chain.set_wall_offset(1_700_000_000.0, 0.0)
    (held,) = add(chain, task(valid_after=1_700_000_020))
    assert drain(chain, 10.0) == []
    assert drain(chain, 20.0) == [held]


def test_cancelled_while_held_queued_and_gone() -> None:
    chain = Chain(TimeBasedStrategy(), ConcurrentLimitStrategy(1, key="k"))
    held, running, queued = add(chain, task(valid_after=timedelta(9)), task(k=1), task(k=1))
    assert drain(chain, 0.0) == [running]
    chain.cancel(held, 1.0)
    chain.cancel(queued, 1.0)
    assert chain.queued == 0
    end(chain, running, now=2.0)
    assert drain(chain, 2.0) == []
    assert chain.next_wake(2.0) == inf


def test_the_calendar_forgets_what_does_not_matter() -> None:
    chain = Chain(TimeBasedStrategy())
    for _ in range(2000):
        (held,) = add(chain, task(valid_after=timedelta(days=1)))
        chain.cancel(held, 0.0)
    assert len(chain._bounds.heap) <= 512


def test_cancelled_tasks_are_pruned() -> None:
    for chain in (Chain(ConcurrentLimitStrategy(1)), Chain(ConcurrentLimitStrategy(1, key="k"))):
        tasks = add(chain, *(task(k=1, priority=i % 3) for i in range(10 * PRUNE_AT)))
        assert drain(chain, 0.0) == tasks[:1]
        for each in tasks[1:-1]:
            chain.cancel(each, 0.0)
        lane = tasks[-1]._lane
        assert lane is not None
        assert len(lane.front) < 3 * PRUNE_AT
        end(chain, tasks[0], now=1.0)
        assert drain(chain, 1.0) == tasks[-1:]


def test_a_queue_keeps_ranks_and_arrivals() -> None:
    chain = Chain(PriorityQueueStrategy())
    tasks = add(chain, *(task(priority=p) for p in (1, 3, 2, 3, 2, 1, 2)))
    queue = Queue()
    for each in (tasks[i] for i in (6, 0, 4, 2, 5, 3, 1)):  # not in the order of arrival
        queue.push(each)
    order = []
    while (head := queue.peek()) is not None:
        order.append(head)
        queue.pop()
    assert order == [tasks[i] for i in (1, 3, 2, 4, 6, 0, 5)]


# ---- refusals for good --------------------------------------------------------------------------


class FailsFast(ConcurrentLimitStrategy):
    """Rejects instead of letting wait."""

    def ready_at(self, key: Hashable, cost: Any, now: float) -> float:
        instant = super().ready_at(key, cost, now)
        if instant == inf:
            raise TaskRejected("busy", until=now + 5)
        return instant


@pytest.mark.parametrize("key", [None, "k"])
def test_a_limit_may_reject(key: str | None) -> None:
    chain = Chain(FailsFast(1, key=key))
    first, second = add(chain, task(), task())
    assert drain(chain, 0.0) == [first]
    ((gone, error),) = chain.out
    assert (gone, str(error)) == (second, "busy")


@pytest.mark.parametrize("key", [None, "k"])
def test_who_waits_elsewhere_is_not_rejected_by_a_pull_too_many(key: str | None) -> None:
    """Whether a task is rejected must not depend on how often somebody looks."""

    class Breaker(FailsFast):
        broken = False

        def ready_at(self, key: Hashable, cost: Any, now: float) -> float:
            if self.broken:
                raise TaskRejected("broken")
            return now

    breaker, slots = Breaker(1, key=key), ConcurrentLimitStrategy(1, key=key)
    chain = Chain(breaker, slots)
    first, waits = add(chain, task(), task())
    assert drain(chain, 0.0) == [first]
    breaker.broken = True
    assert drain(chain, 1.0) == []
    assert not chain.out
    end(chain, first, now=2.0)
    assert drain(chain, 2.0) == []
    assert [gone for gone, _ in chain.out] == [waits]


@pytest.mark.parametrize("key", [None, "k"])
def test_it_waits_where_it_was_refused_last(key: str | None) -> None:
    class Moody(FailsFast):
        mood: float | Exception = -inf

        def ready_at(self, key: Hashable, cost: Any, now: float) -> float:
            if isinstance(self.mood, Exception):
                raise self.mood
            return self.mood

        def becomes(self, mood: float | Exception) -> None:
            self.mood = mood
            self.changed()

    first, second = Moody(9, key=key), Moody(9, key=key)
    chain = Chain(first, second)
    (waits,) = add(chain, task())
    second.becomes(inf)
    assert drain(chain, 0.0) == []
    first.becomes(5.0)
    assert drain(chain, 0.0) == []
    assert chain.next_wake(0.0) == inf  # it waits for the second limit, whatever the first says
    second.becomes(-inf)
    assert drain(chain, 0.0) == []
    assert chain.next_wake(0.0) == 5.0  # and now for the first
    second.becomes(inf)
    first.becomes(TaskRejected("no more"))
    assert drain(chain, 1.0) == []
    assert [gone for gone, _ in chain.out] == [waits]


@pytest.mark.parametrize("key", [None, "k"])
def test_a_limit_that_is_lowered_opens_its_node(key: str | None) -> None:
    first, second = ConcurrentLimitStrategy(2, key=key), ConcurrentLimitStrategy(4, key=key, cost=4)
    chain = Chain(first, second)
    runs, waits = add(chain, task(), task())
    assert drain(chain, 0.0) == [runs]
    second.max_concurrent = 3
    assert drain(chain, 1.0) == []
    assert [(gone, type(error)) for gone, error in chain.out] == [(waits, TaskTooLarge)]


def test_a_branch_that_is_closed_until_the_past() -> None:
    class Sloppy(FailsFast):
        def ready_at(self, key: Hashable, cost: Any, now: float) -> float:
            raise TaskRejected("closed", until=now)

    slots = ConcurrentLimitStrategy(1)
    router = ProviderRouterStrategy([Provider("a", limits=[Sloppy(1)]), Provider("b", [slots])])
    chain = Chain(router)
    add(chain, task(), task())
    with pytest.raises(StrategyError, match=r"Sloppy\(1\) is closed until 0.0.*later than now"):
        drain(chain, 0.0)


def test_in_a_branch_a_rejection_closes_the_branch_only() -> None:
    slots = ConcurrentLimitStrategy(1)
    router = ProviderRouterStrategy(
        [Provider("a", limits=[FailsFast(1)]), Provider("b", limits=[slots])]
    )
    chain = Chain(router)
    tasks = add(chain, *(task() for _ in range(3)))
    assert [each.provider for each in drain(chain, 0.0)] == ["a", "b"]
    assert not chain.out
    assert chain.next_wake(0.0) == 5.0
    router["b"].disable()
    assert drain(chain, 1.0) == []
    assert [gone for gone, _ in chain.out] == [tasks[2]]


@pytest.mark.parametrize("key", [None, "k"])
def test_lowered_below_an_accepted_cost(key: str | None) -> None:
    limit = ConcurrentLimitStrategy(5, key=key, cost="n")
    chain = Chain(limit)
    first, large = add(chain, task(cost=5, k=1), task(cost=5, k=1))
    assert drain(chain, 0.0) == [first]
    limit.max_concurrent = 3
    end(chain, first, now=1.0)
    assert drain(chain, 1.0) == []
    ((gone, error),) = chain.out
    assert (gone, type(error)) == (large, TaskTooLarge)


def test_no_branch_could_ever_take_it() -> None:
    small, large = (ConcurrentLimitStrategy(n, cost="n") for n in (2, 5))
    router = ProviderRouterStrategy(
        [Provider("small", limits=[small]), Provider("large", limits=[large], enabled=False)]
    )
    chain = Chain(router)
    with pytest.raises(TaskTooLarge):
        chain.add(task(cost=6), 0.0)
    (only_large, fits) = add(chain, task(cost=4), task(cost=2))
    assert drain(chain, 0.0) == [fits]
    large.max_concurrent = 3
    router["large"].enable()
    assert drain(chain, 1.0) == []
    assert [gone for gone, _ in chain.out] == [only_large]


def test_a_branch_lowered_while_another_is_only_disabled() -> None:
    first, second = (ConcurrentLimitStrategy(5, cost="n") for _ in range(2))
    router = ProviderRouterStrategy(
        [Provider("a", limits=[first]), Provider("b", limits=[second], enabled=False)]
    )
    chain = Chain(router)
    chain.add(blocker := task(cost=5), 0.0)
    assert drain(chain, 0.0) == [blocker]
    (waits,) = add(chain, task(cost=4))
    first.max_concurrent = 2
    end(chain, blocker, now=1.0)
    assert drain(chain, 1.0) == []
    assert not chain.out
    router["b"].enable()
    assert drain(chain, 2.0) == [waits]


def test_what_a_branch_needs_must_be_told() -> None:
    router = ProviderRouterStrategy(
        [Provider("a", limits=[SlidingWindowStrategy(9, 1, cost="tokens")]), Provider("b")]
    )
    with pytest.raises(InvalidValue, match="tokens"):
        Chain(router).add(task(), 0.0)


def test_bad_ranks_and_groups() -> None:
    class Nan(Order):
        def rank(self, task: Task[Any], now: float) -> float:
            return float("nan")

    with pytest.raises(InvalidValue, match="sortable"):
        Chain(Nan()).add(task(), 0.0)
    with pytest.raises(InvalidValue, match="sortable"):
        Chain(Nan(), PriorityQueueStrategy()).add(task(), 0.0)

    class Listed(Order):
        def rank(self, task: Task[Any], now: float) -> list[int]:
            return [1]

    with pytest.raises(InvalidType, match=r"rank .* must be hashable, not \[1\]"):
        Chain(Listed()).add(task(), 0.0)


# ---- live change --------------------------------------------------------------------------------


def test_providers_come_and_go_while_tasks_wait() -> None:
    router = ProviderRouterStrategy([Provider("a", limits=[ConcurrentLimitStrategy(1)])])
    chain = Chain(TimeBasedStrategy(), router)
    first, waits, pinned, held = add(
        chain,
        task(),
        task(),
        task(provider="a"),
        task(provider="a", valid_after=timedelta(seconds=50)),
    )
    assert drain(chain, 0.0) == [first]
    router.add(Provider("b", limits=[ConcurrentLimitStrategy(1, key="k")]))
    assert drain(chain, 1.0) == [waits]
    assert waits.provider == "b"
    router.remove("a", force=True)
    assert drain(chain, 2.0) == []
    assert {gone for gone, _ in chain.out} == {pinned, held}
    assert all(isinstance(error, UnknownProvider) for _, error in chain.out)
    end(chain, first, waits, now=3.0)
    assert chain.queued == chain.running == 0


def test_providers_come_while_others_have_named_an_instant() -> None:
    router = ProviderRouterStrategy([Provider("a", limits=[FixedWindowStrategy(1, 60)])])
    chain = Chain(router)
    first, second, third = add(chain, task(), task(), task())
    assert drain(chain, 0.0) == [first]
    assert chain.next_wake(0.0) == 60.0
    router.add(Provider("b", limits=[FixedWindowStrategy(1, 30)]))
    assert drain(chain, 1.0) == [second]
    assert chain.next_wake(1.0) == 31.0
    router.remove("b")
    assert drain(chain, 2.0) == []
    assert chain.next_wake(2.0) == 60.0
    assert drain(chain, 60.0) == [third]


def test_a_retry_sees_the_branches_of_its_time() -> None:
    class Again(Feedback):
        def review(self, task: Task[Any], outcome: Outcome, now: float) -> RetryAt | None:
            return RetryAt(now)

    router = ProviderRouterStrategy([Provider("a"), Provider("b")])
    chain = Chain(Again(), router)
    free, pinned = add(chain, task(), task(provider="a"))
    assert drain(chain, 0.0) == [free, pinned]
    router.remove("a")
    end(chain, free, pinned, now=1.0, kind="failure")
    assert drain(chain, 1.0) == [free]
    assert free.provider == "b"
    assert [gone for gone, _ in chain.out] == [pinned]


class RetryAtOnce(Feedback):
    """Runs what failed again at once: at an instant long ago."""

    def review(self, task: Task[Any], outcome: Outcome, now: float) -> RetryAt | None:
        return RetryAt(-inf) if outcome.kind != "success" else None


def test_a_retry_pays_every_limit_again() -> None:
    window, slots = SlidingWindowStrategy(3, 60), ConcurrentLimitStrategy(1)
    chain = Chain(RetryAtOnce(), window, slots)
    first, second = add(chain, task(), task())
    assert drain(chain, 0.0) == [first]
    end(chain, first, now=1.0, kind="failure")
    assert drain(chain, 1.0) == [first]  # it was there before
    assert window.usage(None, 1.0).used == 2
    end(chain, first, now=2.0, kind="cancelled")
    assert drain(chain, 2.0) == [second]  # what is cancelled doesn't come back
    assert first.attempt == 2


def test_a_retry_at_once_is_not_a_retry_in_the_past() -> None:
    chain = Chain(RetryAtOnce(), ConcurrentLimitStrategy(1))
    late = task()
    late._options = Options(queue_timeout=3)
    chain.add(late, 0.0)
    assert drain(chain, 0.0) == [late]
    assert not chain.finish(late, Outcome("failure", 0.0, 3.0), 3.0)


def test_a_retry_keeps_its_bound_through_a_step_of_the_clock() -> None:
    chain = Chain(RetryAtOnce(), PriorityQueueStrategy(), ConcurrentLimitStrategy(1))
    chain.set_wall_offset(1e9, 0.0)
    bounded = task()
    bounded._options = Options(deadline=WallTime(1e9 + 5))
    assert drain_all(chain, bounded) == [bounded]
    (urgent,) = add(chain, task(priority="high"), now=6.0)
    assert drain(chain, 6.0) == []
    assert chain.next_wake(6.0) == inf  # it runs: the bound is for starting only
    chain.set_wall_offset(1e9 - 10, 6.0)
    end(chain, bounded, now=6.0, kind="failure")
    assert drain(chain, 6.0) == [urgent]
    assert chain.next_wake(6.0) == 15.0
    assert drain(chain, 15.0) == []
    assert [(gone, type(error)) for gone, error in chain.out] == [(bounded, DeadlineExceeded)]


def test_work_that_runs_once_is_not_for_a_chain_with_retries() -> None:
    work = nothing()
    with pytest.raises(InvalidType, match="a coroutine runs once"):
        Chain(RetryAtOnce()).add(Task(work), 0.0)
    work.close()


async def test_a_retry_by_hand() -> None:
    async def fails() -> None:
        raise ZeroDivisionError

    chain = Chain(RetryAtOnce())
    chain.add_task(task := Task(fails))
    for attempt in (1, 2):
        assert chain.get_next_task() is task
        with pytest.raises(InvalidState, match="not ended"):
            await task.run()
        assert task.attempt == attempt
    assert task.cancel()


def test_retries_keep_their_place_and_their_bounds() -> None:
    class After(Feedback):
        def review(self, task: Task[Any], outcome: Outcome, now: float) -> RetryAt | None:
            return RetryAt(now + 5) if outcome.kind == "failure" else None

    chain = Chain(After(), ConcurrentLimitStrategy(1))
    manager = TaskManager(chain)
    first = manager.add_task(nothing)
    short = manager.add_task(nothing, queue_timeout=3)
    third = manager.add_task(nothing)
    assert drain(chain, 0.0) == [first]
    end(chain, first, now=1.0, kind="failure")
    assert drain(chain, 1.0) == [short]
    assert not chain.finish(short, Outcome("failure", 1.0, 2.0), 2.0)  # 7 would be past its bound
    assert chain.next_wake(2.0) == 2.0
    assert drain(chain, 6.0) == [first]
    assert (first.attempt, third.state) == (2, "queued")


def test_limits_change_while_tasks_wait() -> None:
    for key in (None, "k"):
        limit = ConcurrentLimitStrategy(1, key=key)
        chain = Chain(limit)
        tasks = add(chain, *(task(k=1) for _ in range(3)))
        assert drain(chain, 0.0) == tasks[:1]
        limit.max_concurrent = 2
        assert drain(chain, 1.0) == tasks[1:2]
        limit.changed(1)


def test_inside_a_router_too() -> None:
    limit = ConcurrentLimitStrategy(1)
    chain = Chain(ProviderRouterStrategy([Provider("a", limits=[limit])]))
    tasks = add(chain, task(), task())
    assert drain(chain, 0.0) == tasks[:1]
    limit.max_concurrent = 2
    assert drain(chain, 1.0) == tasks[1:]


def test_settled_costs_let_others_start() -> None:
    for key in (None, "k"):
        chain = Chain(
            PriorityQueueStrategy(),
            SlidingWindowStrategy(10, 60, cost="tokens", key=key),
            TokenBucketStrategy(1, 10, cost=lambda task: 5),
            ConcurrentLimitStrategy(9),
        )
        first, second = add(chain, *(task(cost={"tokens": 10}) for _ in range(2)))
        assert drain(chain, 0.0) == [first]
        chain.settle(first, {"tokens": 0}, 1.0)
        chain.settle(first, 5, 1.0)
        chain.settle(first, {"tokens": 0}, 1.0)
        assert drain(chain, 1.0) == [second]


# ---- groups, sources, composition ---------------------------------------------------------------


class FewestFirst(GroupOrder):
    """Whoever has the fewest running goes first."""

    def __init__(self) -> None:
        self.running: dict[Hashable, int] = {}
        self.arrivals: list[bool] = []

    def group(self, task: Task[Any]) -> Hashable:
        return task.metadata.get("user")

    def group_rank(self, group: Hashable, now: float) -> int:
        return self.running.get(group, 0)

    def arrive(self, group: Hashable, now: float, again: bool) -> None:
        self.arrivals.append(again)

    def leave(self, group: Hashable, now: float) -> None:
        self.running[group] = self.running.get(group, 0) + 1


def test_groups_rank_anew_with_every_start() -> None:
    order = FewestFirst()
    chain = Chain(order, PriorityQueueStrategy(), ConcurrentLimitStrategy(3))
    a = add(chain, *(task(user="a") for _ in range(3)))
    b = add(chain, *(task(user="b") for _ in range(2)))
    assert drain(chain, 0.0) == [a[0], b[0], a[1]]
    order.running["a"] = 0
    order.changed("a")
    end(chain, a[0], now=1.0)
    assert drain(chain, 1.0) == [a[2]]
    order.running.clear()
    order.changed()
    end(chain, b[0], now=2.0)
    assert drain(chain, 2.0) == [b[1]]
    assert order.arrivals == [False] * 5
    (gone,) = add(chain, task(user="c"), now=3.0)
    chain.cancel(gone, 3.0)
    assert order.running["c"] == 1
    with pytest.raises(InvalidType, match=r"groups .* must be hashable"):
        chain.add(task(user=[]), 3.0)


class Clockwork(Source):
    """A task every ten seconds; once something that is none."""

    def __init__(self, *made: Any) -> None:
        self.made = list(made)
        self.due = 10.0

    def next_due(self, now: float) -> float:
        return self.due if self.made else inf

    def emit(self, now: float) -> Iterable[Task[Any]]:
        self.due += 10
        yield self.made.pop(0)


async def test_a_source_brings_tasks() -> None:
    made = [task(), task()]
    async with TaskManager(Chain(Clockwork(*made), ConcurrentLimitStrategy(1))) as manager:
        await asyncio.sleep(25)
    assert [round(each.started_at - manager.epoch) for each in made if each.started_at] == [10, 20]


def test_what_a_source_brings_is_checked() -> None:
    chain = Chain(Clockwork(task(cost=9), "junk"), ConcurrentLimitStrategy(1, cost="n"))
    assert chain.next_wake(0.0) == 10.0
    assert drain(chain, 10.0) == []
    assert [type(error) for _, error in chain.out] == [TaskTooLarge]
    with pytest.raises(StrategyError, match="junk"):
        chain.pull(20.0)
    twice = task()
    chain = Chain(Clockwork(twice, twice), ConcurrentLimitStrategy(1))
    assert drain(chain, 10.0) == [twice]
    with pytest.raises(StrategyError, match=r"Clockwork.* must give new Tasks"):
        chain.pull(20.0)
    assert chain.running == 1


def test_chains_are_flat_and_strategies_have_one_home() -> None:
    inner = Chain(PriorityQueueStrategy(), ConcurrentLimitStrategy(1))
    outer = Chain(inner, SlidingWindowStrategy(1, 1))
    assert len(outer.stages) == 3
    with pytest.raises(StrategyInUse, match="part of another"):
        TaskManager(inner)
    with pytest.raises(StrategyInUse, match="another chain"):
        Chain(outer.stages[1])
    limit = ConcurrentLimitStrategy(1)
    with pytest.raises(StrategyInUse, match="twice"):
        Chain(limit, limit)
    polled = Polled()
    with pytest.raises(StrategyInUse, match="twice"):
        Chain(polled, polled)
    with pytest.raises(StrategyInUse, match="add tasks there"):
        inner.add_task(task())
    busy = Chain(ConcurrentLimitStrategy(1))
    busy.add_task(task())
    with pytest.raises(StrategyInUse, match="is in use"):
        Chain(busy)
    assert Chain.of(outer) is outer
    manager = TaskManager(outer)
    with pytest.raises(StrategyInUse, match="another manager"):
        TaskManager(outer)
    with pytest.raises(StrategyInUse, match="is in use"):
        Chain(outer)
    del manager
    TaskManager(outer)  # the other is gone
    with pytest.raises(StrategyInUse, match="started by hand"):
        TaskManager(Chain.of(started_by_hand()))
    with pytest.raises(InvalidType, match="needs a strategy"):
        Chain.of("limit")  # type: ignore[arg-type]
    with pytest.raises(InvalidType, match="must be a strategy"):
        Chain("limit")  # type: ignore[arg-type]
    assert repr(outer).startswith("Chain(PriorityQueueStrategy()")


def started_by_hand() -> ConcurrentLimitStrategy:
    limit = ConcurrentLimitStrategy(1)
    limit.add_task(task())
    assert limit.get_next_task() is not None
    return limit


def test_a_task_is_added_once() -> None:
    chain = Chain(ConcurrentLimitStrategy(1))
    (once,) = add(chain, task())
    with pytest.raises(InvalidState, match="added before"):
        chain.add(once, 0.0)
    assert chain.queued == 1


def test_usage_of_all_limits() -> None:
    chain = Chain(
        FixedWindowStrategy(2, 60),
        ProviderRouterStrategy([Provider("a", limits=[ConcurrentLimitStrategy(3)])]),
    )
    add(chain, task())
    drain(chain, 0.0)
    usage = chain.usage(0.0)
    assert usage["FixedWindowStrategy(2, 60)"].used == 1
    assert usage["a"]["ConcurrentLimitStrategy(3)"] == Usage(1, 3)


def test_an_instant_that_is_none() -> None:
    class Nan(Limit):
        def ready_at(self, key: Hashable, cost: Any, now: float) -> float:
            return float("nan")

        def acquire(self, key: Hashable, cost: Any, now: float) -> None: ...

        def usage(self, key: Hashable, now: float) -> Usage:
            return Usage(0, 1)

    for key in (None, "k"):
        chain = Chain(Nan(key=key))
        add(chain, task())
        with pytest.raises(StrategyError, match=r"Nan\(\).*nan"):
            chain.pull(0.0)


# ---- custom strategies of four methods ----------------------------------------------------------


class Polled(BaseStrategy):
    def __init__(self, interval: float | None = 0) -> None:
        self.queue: deque[Task[Any]] = deque()
        self.interval = interval

    def add_task(self, task: Task[Any]) -> None:
        self.queue.append(task)

    def get_next_task(self) -> Task[Any] | None:
        return self.queue.popleft() if self.queue else None

    async def get_sleep_interval(self) -> float | None:
        return self.interval


def poll(chain: Chain, now: float, poll_interval: float = 1.0) -> list[Task[Any]]:
    """Pulls and answers for the intervals, as a manager does, until nothing more comes."""
    started = []
    for _ in range(20):
        if (given := chain.pull(now)) is not None:
            started.append(given)
        for stage in chain.asking():
            assert isinstance(stage.strategy, Polled)
            stage.answer(stage.strategy.interval, now, poll_interval)
    return started


def test_it_is_fed_one_at_a_time_in_the_order_before_it() -> None:
    mine = Polled()
    chain = Chain(PriorityQueueStrategy(), mine, ConcurrentLimitStrategy(1, key="k"))
    low, high = add(chain, task(priority="low", k=1), task(priority="high", k=1))
    assert poll(chain, 0.0) == [high]
    assert not mine.queue
    (best,) = add(chain, task(priority=9, k=2))
    assert poll(chain, 1.0) == []  # `low` is in the slot by now, and holds up the other key
    chain.cancel(best, 1.5)
    end(chain, high, now=2.0)
    assert poll(chain, 2.0) == [low]


def test_it_keeps_its_pace() -> None:
    chain = Chain(Polled(3.0), ConcurrentLimitStrategy(9))
    tasks = add(chain, *(task() for _ in range(3)))
    assert poll(chain, 0.0) == tasks[:1]
    assert chain.next_wake(0.0) == 3.0
    assert poll(chain, 2.9) == []
    assert poll(chain, 3.0) == tasks[1:2]


def test_two_of_them_in_a_row() -> None:
    chain = Chain(Polled(), Polled(None), TimeBasedStrategy())
    tasks = add(chain, *(task() for _ in range(3)))
    started: list[Task[Any]] = []
    for now in range(8):
        started += poll(chain, float(now))
    assert started == tasks
    assert chain.next_wake(9.0) <= 9.0


def test_cancelled_inside_and_above() -> None:
    mine = Polled(5.0)
    chain = Chain(mine, ConcurrentLimitStrategy(1))
    first, second, third = add(chain, task(), task(), task())
    assert poll(chain, 0.0) == [first]
    chain.cancel(third, 0.0)
    assert poll(chain, 5.0) == []
    chain.cancel(second, 5.0)
    end(chain, first, now=6.0)
    assert poll(chain, 20.0) == []
    assert chain.tasks() == []


def test_it_is_the_whole_chain() -> None:
    mine = Polled(5.0)
    chain = Chain(mine)
    first, second = add(chain, task(), task())
    assert len(mine.queue) == 2
    chain.cancel(first, 0.0)
    assert poll(chain, 0.0) == []
    assert poll(chain, 5.0) == [second]
    assert chain.clear(6.0) == []


def test_it_may_make_tasks_itself() -> None:
    class Makes(Polled):
        def get_next_task(self) -> Task[Any] | None:
            return None if self.made else self.make()

        made = False

        def make(self) -> Task[Any]:
            self.made = True
            return task(priority=1)

    for chain in (Chain(Makes()), Chain(Makes(), PriorityQueueStrategy())):
        assert len(poll(chain, 0.0)) == 1
        assert chain.running == 1


def test_a_foreign_strategy_with_a_router_behind() -> None:
    router = ProviderRouterStrategy([Provider("a", limits=[ConcurrentLimitStrategy(1)])])
    chain = Chain(Polled(), router)
    first, *others = add(chain, *(task(provider="a") for _ in range(4)))
    assert poll(chain, 0.0) == [first]
    router.add(Provider("b"))
    assert poll(chain, 1.0) == []
    router.remove("a", force=True)
    poll(chain, 2.0)
    assert {gone for gone, _ in chain.out} == set(others)


async def test_by_hand_the_intervals_are_asked() -> None:
    chain = Chain(Polled(0.0))
    chain.add_task(task())
    given = chain.get_next_task()
    assert given is not None
    assert await chain.get_sleep_interval() == 0.0
    await given.run()


def test_a_subclass_that_brings_its_own_queue_is_foreign() -> None:
    class Own(PriorityQueueStrategy):
        def __init__(self) -> None:
            super().__init__()
            self.mine: list[Task[Any]] = []

        def add_task(self, task: Task[Any]) -> None:
            self.mine.append(task)

        def get_next_task(self) -> Task[Any] | None:
            return self.mine.pop() if self.mine else None

    assert Chain(Own()).foreigners()
    assert not Chain(PriorityQueueStrategy()).foreigners()


@pytest.mark.parametrize(
    "build", [lambda: Chain(ConcurrentLimitStrategy(1)), lambda: Chain(Polled(), Polled())]
)
def test_clearing_takes_everything(build: Callable[[], Chain]) -> None:
    chain = build()
    tasks = add(chain, task(), task(), task())
    assert set(chain.clear(0.0)) == set(tasks)
    assert chain.queued == 0


@pytest.mark.parametrize(
    ("interval", "gave", "due"),
    [(0, True, 0.0), (None, True, 7.0), (2.5, True, 2.5), (0, False, 7.0), (None, False, 7.0)],
)
def test_when_it_is_asked_again(interval: float | None, gave: bool, due: float) -> None:
    chain = Chain(Polled(), ConcurrentLimitStrategy(9))
    if gave:
        add(chain, task())
        assert chain.pull(0.0) is None  # it is asked before it is fed
        for stage in chain.asking():
            stage.answer(0, 0.0, 7.0)
        assert chain.pull(0.0) is not None
    else:
        assert chain.pull(0.0) is None
    (stage,) = chain.asking()
    assert chain.next_wake(0.0) == inf  # not before its interval is known
    stage.answer(interval, 0.0, 7.0)
    assert chain.next_wake(0.0) == due


def test_a_feed_asks_sooner_after_none_and_never_shortens_its_pace() -> None:
    chain = Chain(Polled(5.0), ConcurrentLimitStrategy(9))
    assert poll(chain, 0.0) == []
    assert chain.next_wake(0.0) == 5.0
    first, second = add(chain, task(), task(), now=1.0)
    assert chain.next_wake(1.0) == 1.0
    assert poll(chain, 1.0) == [first]
    assert chain.next_wake(1.0) == 6.0  # after a task the interval counts, whatever waits
    assert poll(chain, 5.9) == []
    assert poll(chain, 6.0) == [second]

    whole = Chain(Polled(5.0))
    assert poll(whole, 0.0) == []
    (only,) = add(whole, task(), now=1.0)
    assert poll(whole, 1.0) == [only]
    add(whole, task(), now=2.0)
    assert poll(whole, 2.0) == []
    assert whole.next_wake(2.0) == 6.0


@pytest.mark.parametrize("interval", [-1, float("nan"), inf, "soon", True])
def test_an_interval_that_is_none(interval: Any) -> None:
    chain = Chain(Polled())
    assert chain.pull(0.0) is None
    (stage,) = chain.asking()
    with pytest.raises(StrategyError, match=rf"Polled.*not {interval!r}"):
        stage.answer(interval, 0.0, 1.0)


def test_what_it_gives_must_be_a_task_and_only_once() -> None:
    class Gives(Polled):
        def get_next_task(self) -> Any:
            return self.queue[0] if self.queue else "junk"

    chain = Chain(Gives())
    with pytest.raises(StrategyError, match=r"Gives.*Task or None, not 'junk'"):
        chain.pull(0.0)
    chain = Chain(Gives(), ConcurrentLimitStrategy(9))
    chain.foreign.strategy.add_task(made := task())  # type: ignore[union-attr]
    assert chain.pull(0.0) is made
    for stage in chain.asking():
        stage.answer(0, 0.0, 1.0)
    with pytest.raises(StrategyError, match=r"Gives.*a second time"):
        chain.pull(0.0)


def test_what_it_says_against_a_task_reaches_the_caller() -> None:
    class Full(Polled):
        def add_task(self, task: Task[Any]) -> None:
            raise OverflowError("full")

    refused = task()
    with pytest.raises(OverflowError, match="full"):
        Chain(Full()).add(refused, 0.0)
    assert refused.state == "new"
    chain = Chain(Full(), ConcurrentLimitStrategy(1))
    chain.add(refused, 0.0)  # it is fed later
    with pytest.raises(StrategyError, match=r"Full.*OverflowError\('full'\)"):
        chain.pull(0.0)
    assert chain.clear(1.0) == [refused]
    assert chain.queued == 0


class Mints(Polled):
    """Makes tasks itself."""

    def __init__(self, *made: Task[Any]) -> None:
        super().__init__()
        self.queue.extend(made)


def test_tasks_made_inside_count_from_then_on() -> None:
    for key in (None, "k"):
        made = task()
        chain = Chain(Mints(made), Polled(9.0), ConcurrentLimitStrategy(1, key=key))
        assert chain.pull(0.0) is None  # the first stage gave it to the second
        assert chain.tasks() == [made]
        assert (made.state, chain.queued) == ("queued", 1)
        assert poll(chain, 0.0) == [made]
        assert (chain.queued, chain.running) == (0, 1)


def test_tasks_made_inside_are_checked() -> None:
    large, fits = task(cost=9), task(cost=1)
    chain = Chain(Mints(large, fits), ConcurrentLimitStrategy(2, cost="n", key="k"))
    assert poll(chain, 0.0) == [fits]
    assert [(gone, type(error)) for gone, error in chain.out] == [(large, TaskTooLarge)]
    work = nothing()
    chain = Chain(Mints(Task(work)), RetryAtOnce())
    assert poll(chain, 0.0) == []
    assert [type(error) for _, error in chain.out] == [InvalidType]
    work.close()


def test_a_task_in_the_slot_leaves_it_when_its_provider_goes() -> None:
    router = ProviderRouterStrategy([Provider("a", limits=[ConcurrentLimitStrategy(1)])])
    chain = Chain(Polled(), RetryAtOnce(), router)
    first, slotted = add(chain, task(provider="a"), task(provider="a"))
    assert poll(chain, 0.0) == [first]
    router.add(Provider("b"))
    router.remove("a", force=True)
    end(chain, first, now=1.0, kind="failure")  # and it cannot come back, either
    assert {gone for gone, _ in chain.out} == {first, slotted}
    assert poll(chain, 1.0) == []
    assert chain.next_wake(1.0) > 1.0
    (other,) = add(chain, task(), now=3.0)
    assert poll(chain, 3.0) == [other]


def test_expired_in_the_slot_and_inside() -> None:
    for interval, elsewhere in ((0.0, "slot"), (9.0, "inside")):
        chain = Chain(Polled(interval), ConcurrentLimitStrategy(1))
        first, late = task(), task()
        late._options = Options(queue_timeout=3)
        add(chain, first, late)
        assert poll(chain, 0.0) == [first]
        assert (late in chain.dispatch.waiting()) is (elsewhere == "slot")
        poll(chain, 3.0)
        assert [gone for gone, _ in chain.out] == [late]
        end(chain, first, now=4.0)
        assert poll(chain, 20.0) == []


# ---- custom policies of each role, with nothing but what the role demands -----------------------


def test_each_role_needs_its_abstract_methods_only() -> None:
    class OneAtATime(Limit):
        def __init__(self) -> None:
            self.busy = False  # and no super().__init__()

        def ready_at(self, key: Hashable, cost: Any, now: float) -> float:
            return inf if self.busy else now

        def acquire(self, key: Hashable, cost: Any, now: float) -> None:
            self.busy = True

        def release(self, grant: None, outcome: Outcome, now: float) -> None:
            self.busy = False

        def usage(self, key: Hashable, now: float) -> Usage:
            return Usage(self.busy, 1)

    class TwoWays(Router):
        def __init__(self) -> None:
            self.ways = [Branch("left", [ConcurrentLimitStrategy(1)]), Branch("right")]

        def pin_of(self, task: Task[Any]) -> Hashable:
            return task.metadata.get("way")

        def all_branches(self, pin: Hashable) -> Sequence[Branch]:
            return [way for way in self.ways if pin in (None, way.name)]

        def branches(self, pin: Hashable) -> Sequence[Branch]:
            return [way for way in self.all_branches(pin) if way.enabled]

    class Grouped(GroupOrder):
        def group(self, task: Task[Any]) -> Hashable:
            return None

        def group_rank(self, group: Hashable, now: float) -> int:
            return 0

    class NoHold(Hold): ...

    class NoOrder(Order): ...

    class Never(Source):
        def next_due(self, now: float) -> float:
            return inf

        def emit(self, now: float) -> Iterable[Task[Any]]:
            return ()

    chain = Chain(NoOrder(), NoHold(), Never(), Grouped(), TwoWays(), OneAtATime(), RetryAtOnce())
    left, right, free = add(chain, task(way="left"), task(way="right"), task())
    order = []
    for now in (0.0, 1.0, 2.0):
        (given,) = drain(chain, now)
        chain.settle(given, 3, now)
        order.append((given, given.provider))
        end(chain, given, now=now)
    assert order == [(left, "left"), (right, "right"), (free, "left")]
    assert repr(chain.stages[0]) == "NoOrder()"
    assert chain.last_rank(add(chain, task())[0]) == (0, (0, 0))
    assert chain.stages[2].sampling(2.0) is None  # type: ignore[attr-defined]  # it is a Source
    assert repr(chain.stages[5]) == chain.gated[1].describe() == "OneAtATime()"  # type: ignore[union-attr]


def test_the_parameters_of_every_limit() -> None:
    with pytest.raises(InvalidType, match="key must be a metadata name"):
        ConcurrentLimitStrategy(1, key=5)  # type: ignore[arg-type]
    with pytest.raises(InvalidValue, match=r"cost must be .* not -1"):
        ConcurrentLimitStrategy(1, cost=-1)
    with pytest.raises(InvalidValue, match=r"default_cost must be .* not nan"):
        ConcurrentLimitStrategy(1, cost="n", default_cost=float("nan"))
    with pytest.raises(InvalidType, match="must be hashable, not \\[\\]"):
        Chain(ConcurrentLimitStrategy(1, key="k")).add(task(k=[]), 0.0)
    with pytest.raises(InvalidType, match="a branch's name"):
        Branch("")
    with pytest.raises(InvalidType, match="limits of 'a' must be limits"):
        Branch("a", [PriorityQueueStrategy()])  # type: ignore[list-item]
    keyed = ConcurrentLimitStrategy(1, key=lambda task: task.metadata["k"])
    chain = Chain(keyed)
    assert len(drain_all(chain, task(k=1), task(k=1), task(k=2))) == 2


def drain_all(chain: Chain, *tasks: Task[Any]) -> list[Task[Any]]:
    add(chain, *tasks)
    return drain(chain, 0.0)


# ---- homes and copies ---------------------------------------------------------------------------


def test_a_copy_of_a_policy_has_no_home() -> None:
    limit = ConcurrentLimitStrategy(1)
    chain = Chain(limit)
    add(chain, task(), task())
    assert len(drain(chain, 0.0)) == 1
    for twin in (copy.deepcopy(limit), pickle.loads(pickle.dumps(limit))):
        assert twin.usage(None, 0.0).used == 1
        twin.max_concurrent = 9
        assert drain(chain, 0.0) == []
        Chain(twin)
    with pytest.raises(StrategyInUse, match="belongs to another chain"):
        limit.add_task(task())
    alone = ConcurrentLimitStrategy(1)
    alone.add_task(task())
    assert copy.deepcopy(alone)._private is None  # not a second door to the same queue


def test_a_copy_of_a_policy_with_slots() -> None:
    class Slotted(Order):
        __slots__ = ("never_set", "ranks")

        def __init__(self) -> None:
            self.ranks = [1]

    slotted = Slotted()
    twin = copy.deepcopy(slotted)
    slotted.ranks.append(2)
    assert twin.ranks == [1]


async def test_a_strategy_takes_tasks_while_a_manager_runs_it() -> None:
    limit = ConcurrentLimitStrategy(1)
    limit.add_task(before := task())
    async with TaskManager(limit):
        await before
        limit.add_task(during := task())
        await during
        with pytest.raises(StrategyInUse, match="belongs to a manager"):
            limit.get_next_task()


def test_a_policy_outlives_its_chain() -> None:
    limit, router = ConcurrentLimitStrategy(1), ProviderRouterStrategy([Provider("a")])
    order = FewestFirst()
    Chain(limit, router, order)
    gc.collect()
    limit.max_concurrent = 2
    router.add(Provider("b"))
    order.changed("nobody")
    chain = Chain(limit, router, order)
    order.changed("nobody")
    limit.changed("no such key")
    limit.observe({"load": 1}, 0.0)
    assert chain.stages == (limit, router, order)


def test_what_a_policy_did_by_hand_is_forgotten_once_it_is_idle() -> None:
    limit = ConcurrentLimitStrategy(1)
    assert limit.get_next_task() is None
    chain = Chain(limit, PriorityQueueStrategy())
    limit.max_concurrent = 2
    assert len(drain_all(chain, task(), task())) == 2
    busy = ConcurrentLimitStrategy(1)
    busy.add_task(task())
    with pytest.raises(StrategyInUse, match="is in use"):
        Chain(busy, PriorityQueueStrategy())
    assert Chain.of(busy).queued == 1
    chain = Chain(PriorityQueueStrategy())
    assert Chain(chain, ConcurrentLimitStrategy(1)).queued == 0


def test_the_name_of_a_strategy_that_raises() -> None:
    class Fails(ConcurrentLimitStrategy):
        def ready_at(self, key: Hashable, cost: Any, now: float) -> float:
            raise ZeroDivisionError

    chain = Chain(PriorityQueueStrategy(), Fails(3, key="k"))
    add(chain, task())
    with pytest.raises(
        StrategyError, match=r"Fails\(3, key='k'\) raised ZeroDivisionError"
    ) as told:
        chain.pull(0.0)
    assert isinstance(told.value.__cause__, ZeroDivisionError)
    assert chain.blame(told.value) is told.value


def test_an_interrupt_inside_a_custom_strategy_is_no_error_of_its_own() -> None:
    class Interrupted(Polled):
        def get_next_task(self) -> Task | None:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        Chain(Interrupted(), ConcurrentLimitStrategy(1)).get_next_task()


def test_a_provider_that_comes_later_knows_the_time_by_the_wall_clock() -> None:
    router = ProviderRouterStrategy([Provider("a", limits=[FixedWindowStrategy(1, 90)])])
    chain = Chain(router)
    chain.set_wall_offset(1.2e9 + 40, 0.0)  # the minute ends in twenty seconds
    first, second, third = add(chain, task(), task(), task())
    assert drain(chain, 0.0) == [first]
    router.add(Provider("b", limits=[FixedWindowStrategy(1, "minute", align="clock")]))
    assert drain(chain, 0.0) == [second]
    for started in (first, second):
        chain.begun(started, 0.0)
    assert drain(chain, 0.0) == []
    assert chain.next_wake(0.0) == 20.0
    assert drain(chain, 20.0) == [third]
