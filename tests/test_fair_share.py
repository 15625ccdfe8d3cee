"""Who goes first: exact levels, shares of what was really consumed, and nothing to be gained by
flooding, waiting or estimating wrongly.
"""

from __future__ import annotations

import asyncio
import copy
import json
import math
import random
from collections import Counter, defaultdict
from collections.abc import Hashable
from datetime import timedelta
from fractions import Fraction
from functools import partial
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from async_task_manager import Chain, TaskManager, current_task
from async_task_manager.errors import InvalidType, InvalidValue
from async_task_manager.strategies import (
    ConcurrentLimitStrategy,
    FairShareStrategy,
    PriorityQueueStrategy,
    Provider,
    ProviderRouterStrategy,
    TimeBasedStrategy,
)
from async_task_manager.strategies._submissions import Submissions
from async_task_manager.task import Outcome, Task

DONE = Outcome("success", 0.0, 1.0)
UNSTARTED = Outcome("cancelled", None, 1.0)


async def nothing() -> None: ...


def task(user: object = "ann", **metadata: Any) -> Task[None]:
    return Task(nothing, {"user_id": user, **metadata})


def submit(policy: FairShareStrategy, now: float, user: str = "ann") -> int:
    """A submission as the chain does it; gives the level."""
    level = policy.rank(task(user), now)
    policy.arrive(user, now, again=False)
    return level


class Run:
    """A chain of a fair share and so many slots, driven by hand: who starts is what counts."""

    def __init__(self, policy: FairShareStrategy, slots: int, *more: Any) -> None:
        self.policy = policy
        self.slots = ConcurrentLimitStrategy(slots)
        self.chain = Chain(*more, policy, self.slots)
        self.now = 0.0
        self.running: list[Task[Any]] = []
        self.started: list[str] = []

    def add(self, user: str, **metadata: Any) -> Task[Any]:
        one = task(user, **metadata)
        self.chain.add(one, self.now)
        return one

    def pull(self) -> list[str]:
        """Starts what may start; gives whose it was."""
        before = len(self.started)
        while (one := self.chain.pull(self.now)) is not None:
            self.chain.begun(one, self.now)
            self.running.append(one)
            self.started.append(one.metadata["user_id"])
        return self.started[before:]

    def end(self, one: Task[Any] | None = None, actual: float | None = None) -> list[str]:
        """Ends a task, the oldest that runs, and starts what may start then."""
        one = one or self.running[0]
        self.running.remove(one)
        if actual is not None:
            self.chain.settle(one, actual, self.now)
        self.chain.finish(one, Outcome("success", self.now, self.now), self.now)
        return self.pull()


# ---------------------------------------------------------------- the count


@given(
    steps=st.lists(st.tuples(st.sampled_from([0, 0, 0.25, 1, 2.5]), st.booleans()), max_size=120),
    window=st.sampled_from([0.25, 1, 3]),
)
def test_the_count_is_that_of_a_naive_list(steps: list[tuple[float, bool]], window: float) -> None:
    submissions, naive, now = Submissions(), [], 0.0
    for step, add in steps:
        now += step
        if add:
            submissions.add(now, window)
            naive.append(now)
        live = [stamp for stamp in naive if stamp + window > now]
        assert submissions.count(now, window) == len(live)
        assert submissions.idle(now, window) is (not live)
        assert Submissions(submissions.dump()).count(now, window) == len(live)


def test_what_has_left_the_window_is_let_go_of() -> None:
    submissions = Submissions()
    for second in range(10_000):
        submissions.add(second, 10)
    assert len(submissions.dump()) == 10
    assert len(submissions._stamps) < 100


# ---------------------------------------------------------------- levels


def test_the_levels_of_a_flood() -> None:
    policy = FairShareStrategy()
    given = Counter(submit(policy, 0.0) for _ in range(100))
    assert given == {0: 1, 1: 5, 2: 10, 3: 10, 4: 10, 5: 64}
    assert submit(policy, 0.0, "bob") == 0


def test_a_submission_counts_until_the_window_has_passed_and_not_at_that_instant() -> None:
    policy = FairShareStrategy(window_seconds=60)
    assert submit(policy, 5.0) == 0
    assert policy.rank(task(), math.nextafter(65.0, 0)) == 1
    assert policy.rank(task(), 65.0) == 0


@pytest.mark.parametrize("weights", [{"ann": 2}, lambda user: 2 if user == "ann" else None])
def test_a_weight_divides_the_count_as_whole_numbers_do(weights: Any) -> None:
    policy = FairShareStrategy(weights=weights)
    given = [submit(policy, 0.0) for _ in range(14)]
    assert given == [0, 0, *[1] * 10, 2, 2]  # 0, 0, 1, 1, 2, 2, ... 5, 5, 6, 6
    assert [submit(policy, 0.0, "bob") for _ in range(3)] == [0, 1, 1]


def test_a_weight_below_one_counts_more_than_once_and_exactly() -> None:
    policy = FairShareStrategy(weights=0.1, levels=(0, 9, 10))
    assert [submit(policy, 0.0) for _ in range(3)] == [0, 2, 3]  # 1 / 0.1 is 10, not 9.99...


@given(
    submissions=st.lists(
        st.tuples(st.sampled_from([0, 0, 0.5, 1, 4]), st.sampled_from("ab")), max_size=60
    ),
    weight=st.sampled_from([0.5, 1, 2, 3]),
    window=st.sampled_from([1, 5, 30]),
)
def test_any_submissions_get_the_level_that_a_naive_count_gives(
    submissions: list[tuple[float, str]], weight: float, window: float
) -> None:
    policy = FairShareStrategy(window_seconds=window, levels=(0, 2, 5), weights={"b": weight})
    history: list[tuple[float, str]] = []
    now = 0.0
    for step, user in submissions:
        now += step
        recent = sum(who == user and at + window > now for at, who in history)
        share = recent // (weight if user == "b" else 1)
        expected = 0 if share <= 0 else 1 if share <= 2 else 2 if share <= 5 else 3
        assert submit(policy, now, user) == expected
        history.append((now, user))


def test_a_level_is_fixed_when_the_task_is_submitted() -> None:
    run = Run(FairShareStrategy(window_seconds=10, weights={"ann": 1}), 1)
    for user in ("ann", "ann", "bob"):
        run.add(user)
    assert run.pull() == ["ann"]
    run.policy.weights = {"ann": 100}
    run.now = 20.0  # by now nobody has submitted anything lately
    run.add("cyd")
    assert [*run.end(), *run.end(), *run.end()] == ["bob", "cyd", "ann"]


def test_retries_count_no_more_and_cancelled_tasks_still_do() -> None:
    policy = FairShareStrategy()
    policy.arrive("ann", 0.0, again=False)
    policy.leave("ann", 0.0)
    policy.arrive("ann", 0.0, again=True)
    assert policy.standing("ann", 0.0).recent == 1


def test_what_is_refused_is_no_submission() -> None:
    run = Run(FairShareStrategy(), 1, TimeBasedStrategy())
    with pytest.raises(InvalidType, match="must not start must be"):
        run.add("ann", valid_after=[])
    assert run.policy.standing("ann", 0.0).recent == 0


async def test_one_user_floods_and_anothers_single_task_comes_next() -> None:
    order: list[str] = []

    async def work(user: str) -> None:
        order.append(user)
        await asyncio.sleep(1)

    chain = Chain(FairShareStrategy(), ConcurrentLimitStrategy(1))
    async with TaskManager(chain) as manager:
        for _ in range(40):
            manager.add_task(partial(work, "flood"), {"user_id": "flood"})
        await asyncio.sleep(3.5)
        manager.add_task(partial(work, "quiet"), {"user_id": "quiet"})
        await asyncio.sleep(0)
        levels = manager.queue_lengths().by_priority
    assert order.index("quiet") == 4
    assert levels == {"level 0": 1, "level 1": 2, "level 2": 10, "level 3": 10, "level 4": 10} | {
        "level 5": 4
    }


async def test_levels_order_what_is_fed_to_a_custom_strategy() -> None:
    from test_conformance import Polled

    order: list[str] = []

    async def work(user: str) -> None:
        order.append(user)

    manager = TaskManager(Chain(FairShareStrategy(), Polled(0)))
    for user in ("ann", "ann", "ann", "bob"):
        manager.add_task(partial(work, user), {"user_id": user})
    async with manager:
        pass
    assert order == ["ann", "bob", "ann", "ann"]


# ---------------------------------------------------------------- shares


COSTS = st.sampled_from([0.5, 1.0, 2.0, 4.0, 8.0])  # halves: sums and thirds of them are exact


@settings(max_examples=150, deadline=None)
@given(
    seed=st.integers(0, 10**6),
    slots=st.sampled_from([1, 1, 2, 5]),
    weights=st.lists(st.sampled_from([0.5, 1, 2, 4]), min_size=3, max_size=3),
    wrong=st.booleans(),
)
def test_the_difference_between_backlogged_users_is_bounded(
    seed: int, slots: int, weights: list[float], wrong: bool
) -> None:
    """Of cost that was really consumed, over weight, in any interval, beside users that come and
    go: by the largest task of either, and where estimates are wrong by what is wrong about them.
    """
    rng = random.Random(seed)
    users = ["ann", "bob", "cyd"]
    weight = dict(zip(users, weights, strict=True))
    scale = {user: rng.choice([1, 1, 3, 10]) for user in users}
    policy = FairShareStrategy(by="share", cost="tokens", weights=weight)
    run = Run(policy, slots)
    actual: dict[Task[Any], float] = {}
    largest = dict.fromkeys(users, 0.0)
    error = dict.fromkeys(users, 0.0)

    def add(user: str) -> None:
        real = scale.get(user, 1) * rng.choice([0.5, 1, 2, 4])
        estimate = real * rng.choice([0, 0.25, 1, 4]) if wrong else real
        one = run.add(user, cost={"tokens": estimate})
        actual[one] = real
        if user in weight:
            largest[user] = max(largest[user], estimate / weight[user])
            error[user] = max(error[user], abs(real - estimate) / weight[user])

    left = Counter(dict.fromkeys(users, 60))
    for user in users:
        for _ in range(60):
            add(user)
    served = dict.fromkeys(users, 0.0)
    history: list[dict[str, float]] = [dict(served)]

    def note(names: list[str]) -> None:
        for one in run.running[len(run.running) - len(names) :]:
            user = one.metadata["user_id"]
            if user in weight:
                served[user] += actual[one] / weight[user]
                left[user] -= 1
                history.append(dict(served))

    while min(left.values()) > 0:
        if rng.random() < 0.2:
            add(rng.choice(["dan", "eve"]))  # nobody's fairness depends on theirs
        note(run.pull())
        if min(left.values()) > 0:
            one = rng.choice(run.running)
            note(run.end(one, actual[one]))
    for i, one_user in enumerate(users):
        for other in users[i + 1 :]:
            lead = [past[one_user] - past[other] for past in history]
            worst = max(error[one_user], error[other])
            bound = largest[one_user] + largest[other] + 4 * slots * worst
            assert max(lead) - min(lead) <= bound + 1e-9


def jain(values: list[float]) -> float:
    return sum(values) ** 2 / (len(values) * sum(value**2 for value in values))


@pytest.mark.parametrize("factor", [1 / 3, 3])
async def test_jains_index_with_one_users_estimates_wrong_by_three_times(factor: float) -> None:
    rng = random.Random(4)
    used: dict[str, float] = defaultdict(float)

    async def work(real: float) -> None:
        await asyncio.sleep(rng.uniform(0.1, 1))
        one = current_task()
        assert one is not None
        one.settle({"tokens": real})
        used[one.metadata["user_id"]] += real

    policy = FairShareStrategy(by="share", cost="tokens")
    manager = TaskManager(Chain(policy, ConcurrentLimitStrategy(4)))
    for user in ("liar", "ann", "bob", "cyd", "dan"):
        for _ in range(400):
            real = rng.uniform(100, 1000)
            estimate = real * (factor if user == "liar" else 1)
            manager.add_task(
                partial(work, real), {"user_id": user, "cost": {"tokens": round(estimate)}}
            )
    await manager.idle()
    await asyncio.sleep(150)
    assert min(used.values()) > 10_000
    assert jain(list(used.values())) > 0.99
    await manager.close()


def test_without_settling_estimates_would_be_believed() -> None:
    """What the test above would show of a policy that charges estimates: that it can fail."""
    assert jain([3, 1, 1, 1, 1]) < 0.8


@pytest.mark.parametrize("slots", [1, 3])
def test_a_quiet_users_task_is_served_within_a_round(slots: int) -> None:
    run = Run(FairShareStrategy(by="share"), slots)
    users = ["ann", "bob", "cyd", "dan"]
    for user in users:
        for _ in range(200):
            run.add(user)
    run.pull()
    for at in range(100):
        run.end()
        if at % 9 == 0:
            before = len(run.started)
            run.add("quiet")
            while "quiet" not in run.started[before:]:
                run.end()
            others = Counter(run.started[before:-1])
            assert all(times <= 1 for times in others.values())


def test_weights_divide_what_is_served() -> None:
    policy = FairShareStrategy(by="share", weights={"ann": 3})
    run = Run(policy, 1)
    for user in ("ann", "bob"):
        for _ in range(100):
            run.add(user)
    run.pull()
    for _ in range(79):
        run.end()
    assert Counter(run.started) == {"ann": 60, "bob": 20}
    policy.weights = {"bob": 3}
    for _ in range(40):
        run.end()
    assert Counter(run.started[-40:]) == {"ann": 10, "bob": 30}


def test_nothing_is_saved_up_by_being_idle_or_held() -> None:
    """A task for tomorrow is no place in today's queue."""
    run = Run(FairShareStrategy(by="share"), 1, TimeBasedStrategy())
    run.chain.set_wall_offset(0.0, 0.0)
    for _ in range(300):
        run.add("ann")
    run.add("bob", valid_after=timedelta(seconds=50))
    run.pull()
    for _ in range(100):
        run.end()
    run.now = 50.0
    for _ in range(50):
        run.add("bob")
    for _ in range(40):
        run.end()
    assert Counter(run.started[-40:]) == {"ann": 20, "bob": 20}


def test_nothing_is_saved_up_behind_limits_of_ones_own() -> None:
    router = ProviderRouterStrategy([Provider("on"), Provider("off", enabled=False)])
    run = Run(FairShareStrategy(by="share"), 1, router)
    for _ in range(300):
        run.add("ann", provider="on")
        run.add("bob", provider="off")
    run.pull()
    for _ in range(100):
        run.end()
    assert set(run.started) == {"ann"}
    router["off"].enable()
    for _ in range(40):
        run.end()
    assert abs(Counter(run.started[-40:])["bob"] - 20) <= 1


def test_what_was_charged_too_much_is_given_back() -> None:
    """Bob is charged ten for each of his tasks as long as it runs, and they cost one."""
    run = Run(FairShareStrategy(by="share", cost="tokens"), 4)
    for _ in range(400):
        run.add("ann", cost={"tokens": 1})
        run.add("bob", cost={"tokens": 10})
    run.pull()
    for _ in range(300):
        run.end(actual=1)
    assert abs(Counter(run.started)["ann"] - Counter(run.started)["bob"]) <= 4 * 4 * 9 / 10 + 11
    late = Counter(run.started[-100:])
    assert abs(late["ann"] - late["bob"]) <= 20


def test_a_debt_is_paid_before_the_next_task_and_forgiven_once_nobody_competes() -> None:
    run = Run(FairShareStrategy(by="share", cost="tokens"), 1)
    for _ in range(20):
        run.add("ann", cost={"tokens": 1})
        run.add("bob", cost={"tokens": 1})
    assert run.pull() == ["ann"]
    run.end(actual=8)
    for _ in range(6):
        run.end()
    assert run.started == ["ann", *["bob"] * 7]
    assert run.policy.standing("ann", 0.0).ahead == 2
    run.end()
    run.end()
    assert run.started[-2:] == ["bob", "ann"]
    while run.running:
        run.end()
    assert run.policy.standing("ann", 0.0).ahead == 0
    assert list(run.policy.keys()) == []


def test_what_never_started_is_not_charged() -> None:
    policy = FairShareStrategy(by="share", cost="tokens")
    policy.acquire("bob", 3, 0.0)
    grant = policy.acquire("ann", 7, 0.0)
    assert policy.standing("ann", 0.0).ahead == 7
    policy.release(grant, UNSTARTED, 0.0)
    assert policy.standing("ann", 0.0).ahead == 0


def test_settling_twice_charges_the_last_and_by_the_weight_of_the_start() -> None:
    policy = FairShareStrategy(by="share", cost="tokens", weights={"ann": 2})
    policy.acquire("bob", 1, 0.0)
    grant = policy.acquire("ann", 4, 0.0)
    policy.weights = None
    policy.settle(grant, 20, 0.0)
    policy.settle(grant, 10, 0.0)
    assert policy.standing("ann", 0.0).ahead == 5
    with pytest.raises(InvalidValue, match=r"actual cost .* not -1"):
        policy.settle(grant, -1, 0.0)


@pytest.mark.parametrize("inside", [True, False])
def test_priorities_inside_a_share_and_shares_inside_a_priority(inside: bool) -> None:
    policy, priority = FairShareStrategy(by="share"), PriorityQueueStrategy()
    chain = Chain(policy, priority) if inside else Chain(priority, policy)
    for user, level in (("ann", "low"), ("ann", "high"), ("bob", "low"), ("ann", "high")):
        chain.add(task(user, priority=level), 0.0)
    started = [(one.metadata["user_id"], one.metadata["priority"]) for one in pulled(chain)]
    if inside:
        assert started == [("ann", "high"), ("bob", "low"), ("ann", "high"), ("ann", "low")]
    else:
        assert started == [("ann", "high"), ("ann", "high"), ("bob", "low"), ("ann", "low")]


def pulled(chain: Chain) -> list[Task[Any]]:
    found = []
    while (one := chain.pull(0.0)) is not None:
        found.append(one)
    return found


# ---------------------------------------------------------------- concurrency


@pytest.mark.parametrize("by", ["levels", "share"])
def test_at_most_so_many_of_a_user_at_once(by: Any) -> None:
    run = Run(FairShareStrategy(by=by, maximum={"ann": 2, "bob": 1}), 10)
    for user in ("ann", "bob", "cyd"):
        for _ in range(4):
            run.add(user)
    assert Counter(run.pull()) == {"ann": 2, "bob": 1, "cyd": 4}
    run.policy.maximum = lambda user: 3 if user == "ann" else None
    assert Counter(run.pull()) == {"ann": 1, "bob": 2}  # ten run now
    run.policy.maximum = 1
    assert run.end(run.running[0]) == []
    assert run.policy.usage("ann", 0.0).used == 2
    assert run.policy.usage("ann", 0.0).capacity == 1


@pytest.mark.parametrize("by", ["levels", "share"])
def test_whoever_runs_less_than_is_guaranteed_goes_first(by: Any) -> None:
    run = Run(FairShareStrategy(by=by, guaranteed={"ann": 2}), 4)
    for _ in range(30):
        run.add("ann")  # a flood
    run.pull()
    for user in ("bob", "cyd"):
        for _ in range(30):
            run.add(user)
    for _ in range(2):
        run.end()
    running = Counter(one.metadata["user_id"] for one in run.running)
    assert running["ann"] >= 2
    for _ in range(20):
        run.end(next(one for one in run.running if one.metadata["user_id"] == "ann"))
        assert Counter(one.metadata["user_id"] for one in run.running)["ann"] >= 2
    run.policy.guaranteed = None
    run.end(next(one for one in run.running if one.metadata["user_id"] == "ann"))
    assert Counter(one.metadata["user_id"] for one in run.running)["ann"] == 1


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 10**6),
    by=st.sampled_from(["levels", "share"]),
    slots=st.integers(1, 6),
    guaranteed=st.dictionaries(st.sampled_from("abc"), st.integers(0, 3)),
    maximum=st.dictionaries(st.sampled_from("abc"), st.integers(1, 3)),
)
def test_nobody_starts_before_whoever_runs_less_than_is_guaranteed(
    seed: int, by: Any, slots: int, guaranteed: dict[str, int], maximum: dict[str, int]
) -> None:
    rng = random.Random(seed)
    run = Run(FairShareStrategy(by=by, guaranteed=guaranteed, maximum=maximum), slots)
    queued: Counter[str] = Counter()
    for _ in range(150):
        if rng.random() < 0.5 or not run.running:
            user = rng.choice("aaabc")
            run.add(user)
            queued[user] += 1
            started = run.pull()
        else:
            started = run.end(rng.choice(run.running))
        running = Counter(one.metadata["user_id"] for one in run.running)
        queued.subtract(started)
        waiting = Counter(queued)
        for user in reversed(started):  # as it was before each of them
            running[user] -= 1
            waiting[user] += 1
            if running[user] >= guaranteed.get(user, 0):
                for other, count in waiting.items():
                    due = running[other] < guaranteed.get(other, 0)
                    assert not (count and due and running[other] < maximum.get(other, 99))
            assert running[user] < maximum.get(user, 99)


def test_a_guarantee_is_a_part_of_the_share_and_not_beside_it() -> None:
    run = Run(FairShareStrategy(by="share", guaranteed={"ann": 1}), 4)
    for _ in range(300):
        for user in ("ann", "bob"):
            run.add(user)
    run.pull()
    for _ in range(200):
        run.end()
    late = Counter(run.started[-100:])
    assert abs(late["ann"] - late["bob"]) <= 4


# ---------------------------------------------------------------- many users, restarts


@pytest.mark.parametrize("by", ["levels", "share"])
def test_many_users_cost_few_moves_each_and_are_forgotten(by: Any) -> None:
    run = Run(FairShareStrategy(by=by, window_seconds=10), 1)
    users = [f"user {i}" for i in range(5_000)]
    for user in [*users, *users[:1_000]]:
        run.add(user)
    run.pull()
    for _ in range(5_999):
        run.end()
    assert set(run.started[:5_000]) == set(users)
    assert run.chain.dispatch.moves < 3 * 6_000  # type: ignore[union-attr]  # it has lanes
    assert (len(list(run.policy.keys())) == 5_000) is (by == "levels")
    run.end()
    run.now = 20.0
    for _ in range(5_000):
        run.add("late")
        run.pull()
        run.end()
    assert list(run.policy.keys()) == (["late"] if by == "levels" else [])


def test_history_survives_a_restart() -> None:
    old = FairShareStrategy(window_seconds=60)
    for second in range(7):
        submit(old, float(second))
    submit(old, 3.0, "bob")
    new = FairShareStrategy(window_seconds=60)
    new.load(json.loads(json.dumps(old.dump())))
    for now in (6.0, 61.0, 63.0, 70.0):
        for user in ("ann", "bob", "cyd"):
            assert new.rank(task(user), now) == old.rank(task(user), now)
    assert new.standing("ann", 62.0).recent == 4


def test_whoever_is_ahead_stays_so_over_a_restart() -> None:
    old = FairShareStrategy(by="share", cost="tokens")
    for user, cost in (("ann", 2), ("bob", 1), ("ann", 9), ("cyd", 4)):
        old.acquire(user, cost, 0.0)
    new = FairShareStrategy(by="share", cost="tokens")
    new.load(json.loads(json.dumps(old.dump())))
    ahead = {user: old.standing(user, 0.0).ahead for user in ("ann", "bob", "cyd", "dan")}
    assert ahead == {"ann": 9, "bob": -1, "cyd": 4, "dan": 0}
    assert {user: new.standing(user, 0.0).ahead for user in ahead} == ahead | {"bob": 0}


def test_a_copy_shares_nothing_that_changes() -> None:
    policy = FairShareStrategy(weights={"ann": 2})
    submit(policy, 0.0)
    twin = copy.deepcopy(policy)
    submit(twin, 0.0)
    submit(twin, 0.0)
    assert policy.standing("ann", 0.0).recent == 1
    assert twin.standing("ann", 0.0).recent == 3
    assert policy.by == twin.by == "levels"


def test_a_copy_goes_on_where_the_original_is() -> None:
    run = Run(FairShareStrategy(by="share"), 2)
    for user in ("ann", "ann", "ann", "bob"):
        run.add(user)
    run.pull()
    run.policy._users["ann"].owed = 2.5  # as after a charge that was far too high
    twin = copy.deepcopy(run.policy)
    for user in ("ann", "bob"):
        mine, its = run.policy._users[user], twin._users[user]
        assert (mine.tag, mine.owed) == (its.tag, its.owed)
        assert twin.standing(user, 0.0) == run.policy.standing(user, 0.0)
    assert twin.standing("ann", 0.0).queued == 2


def test_standing_tells_recent_use_level_and_weight() -> None:
    run = Run(FairShareStrategy(weights={"ann": 2}), 1)
    for _ in range(20):
        run.add("ann")
    run.pull()
    found = run.policy.standing("ann", 0.0)
    assert (found.weight, found.recent, found.level) == (2, 20, 2)
    assert (found.queued, found.running, found.ahead) == (19, 1, 0)
    fresh = run.policy.standing("nobody", 0.0)
    assert (fresh.weight, fresh.recent, fresh.level) == (1, 0, 0)
    assert (fresh.queued, fresh.running, fresh.ahead) == (0, 0, 0)


# ---------------------------------------------------------------- what is refused


@pytest.mark.parametrize(
    ("options", "error", "says"),
    [
        ({"key": None}, InvalidType, "key must be .* not None"),
        ({"key": 3}, InvalidType, "key must be .* not 3"),
        ({"by": "turns"}, InvalidValue, "by must be one of 'levels', 'share', not 'turns'"),
        ({"window_seconds": 0}, InvalidValue, "window_seconds .* above 0, not 0"),
        ({"levels": ()}, InvalidValue, r"levels must be one number or more.*not \(\)"),
        ({"levels": (0, 5, 5)}, InvalidValue, r"ascending, not \(0, 5, 5\)"),
        ({"levels": (-1, 5)}, InvalidValue, r"levels\[0\] .* at least 0, not -1"),
        ({"levels": "123"}, InvalidType, "levels must be a sequence of numbers, not '123'"),
        ({"levels": 5}, InvalidType, "levels must be a sequence of numbers, not 5"),
        ({"weights": 0}, InvalidValue, "weights .* above 0, not 0"),
        ({"weights": {"ann": 0}}, InvalidValue, r"weights\['ann'\] .* above 0, not 0"),
        ({"weights": "gold"}, InvalidType, "weights must be a number, not 'gold'"),
        ({"guaranteed": -1}, InvalidValue, "guaranteed .* at least 0, not -1"),
        ({"guaranteed": 1.5}, InvalidType, "guaranteed must be a whole number, not 1.5"),
        ({"maximum": 0}, InvalidValue, "maximum .* at least 1, not 0"),
        ({"cost": "tokens"}, InvalidValue, "cost needs by='share'"),
        ({"default_cost": 1}, InvalidValue, "cost needs by='share'"),
        ({"by": "share", "cost": -1}, InvalidValue, "cost .* at least 0, not -1"),
    ],
)
def test_bad_parameters(options: dict[str, Any], error: type[Exception], says: str) -> None:
    with pytest.raises(error, match=says):
        FairShareStrategy(**options)


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"weights": lambda user: 0}, "weight of 'ann' must be .* above 0, not 0"),
        ({"guaranteed": lambda user: -1}, "guaranteed of 'ann' must be .* at least 0, not -1"),
        ({"maximum": lambda user: 0}, "maximum of 'ann' must be .* at least 1, not 0"),
    ],
)
@pytest.mark.parametrize("by", ["levels", "share"])
def test_what_a_function_says_is_checked_when_a_task_is_added(
    by: Any, options: dict[str, Any], says: str
) -> None:
    with pytest.raises(InvalidValue, match=says):
        Run(FairShareStrategy(by=by, **options), 1).add("ann")


def test_an_unhashable_user_is_refused() -> None:
    with pytest.raises(InvalidType, match=r"must be hashable, not \['ann'\]"):
        Run(FairShareStrategy(), 1).add(["ann"])  # type: ignore[arg-type]


def test_tasks_that_do_not_say_are_one_users() -> None:
    policy = FairShareStrategy()
    assert policy.group(Task(nothing)) is policy.group(Task(nothing, {"user_id": None})) is None


def test_a_fraction_of_a_token_is_charged() -> None:
    policy = FairShareStrategy(by="share", cost="tokens")
    policy.acquire("ann", Fraction(1, 4), 0.0)
    assert policy.standing("ann", 0.0).ahead == 0.25


def test_parameters_can_be_read_and_set() -> None:
    policy = FairShareStrategy()
    policy.window_seconds, policy.levels = 60, [1, 2]
    assert (policy.window_seconds, policy.levels) == (60, (1, 2))
    assert policy.weights is policy.guaranteed is policy.maximum is None
    assert [submit(policy, 0.0) for _ in range(4)] == [0, 0, 1, 2]
    assert policy.rank(task(), 60.0) == 0


def test_levels_count_tasks_whatever_they_cost() -> None:
    policy = FairShareStrategy()
    grant = policy.acquire("ann", 1, 0.0)
    policy.settle(grant, 50, 0.0)
    assert policy.standing("ann", 0.0).ahead == 0


def first(task: Task) -> Hashable:
    return task.name[0]


@pytest.mark.parametrize(
    ("policy", "text", "words"),
    [
        (
            FairShareStrategy(),
            "FairShareStrategy(key='user_id')",
            "whoever submitted least in the last 3600 s first",
        ),
        (
            FairShareStrategy(key="u", by="share", cost="tokens", weights={"a": 2}, maximum=3),
            "FairShareStrategy(by='share', weights={'a': 2}, maximum=3, key='u', cost='tokens')",
            "equal shares of what is consumed, at most 3 at once for each u",
        ),
        (
            FairShareStrategy(key=first, window_seconds=60, levels=(1, 2), maximum=len),
            "FairShareStrategy(window_seconds=60, levels=(1, 2), maximum=len, key=first)",
            "whoever submitted least in the last 60 s first, at most so many at once for each key",
        ),
    ],
)
def test_repr_and_words(policy: FairShareStrategy, text: str, words: str) -> None:
    assert repr(policy) == text
    assert policy.describe() == words
