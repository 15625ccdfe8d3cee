"""Every strategy keeps the contract; and the kit notices when one doesn't."""

from __future__ import annotations

import asyncio
import itertools
import math
from collections import deque
from collections.abc import Callable, Hashable, Sequence
from datetime import timedelta
from typing import Any

import pytest

from async_task_manager.strategies import (
    AdaptiveStrategy,
    BaseStrategy,
    BulkStrategy,
    CircuitBreakerStrategy,
    Collector,
    ConcurrentLimitStrategy,
    CooldownStrategy,
    DeadlineStrategy,
    DelayedStrategy,
    FairShareStrategy,
    Feedback,
    FixedWindowStrategy,
    Item,
    Limit,
    Order,
    PriorityQueueStrategy,
    Provider,
    ProviderRouterStrategy,
    RetryAt,
    RetryBudget,
    RetryStrategy,
    SlidingWindowStrategy,
    Source,
    TimeBasedStrategy,
    TokenBucketStrategy,
    Usage,
    WeightedRoundRobinStrategy,
    fixed,
)
from async_task_manager.task import Outcome, Task
from async_task_manager.testing import check_strategy


class Polled(BaseStrategy):
    """What people write first: a deque and the four methods."""

    def __init__(self, interval: float | None) -> None:
        self.queue: deque[Task] = deque()
        self.interval = interval

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.interval})"

    def add_task(self, task: Task) -> None:
        self.queue.append(task)

    def get_next_task(self) -> Task | None:
        return self.queue.popleft() if self.queue else None

    async def get_sleep_interval(self) -> float | None:
        return self.interval


async def handled() -> None: ...


async def handle(values: list[Any]) -> list[Any]:
    return values


class Beats(Source):
    """A task a second, until something is wrong with it."""

    def __init__(self, wrong: str = "") -> None:
        self.wrong, self.due = wrong, 1.0
        self.one = Task(handled)

    def next_due(self, now: float) -> float:
        if self.wrong == "fickle":
            self.due += 1
        return math.nan if self.wrong == "nan" else self.due

    def emit(self, now: float) -> list[Any]:
        if self.wrong != "stuck":
            self.due += 1
        wrong: dict[str, list[Any]] = {"stuck": [], "junk": ["junk"], "stale": [self.one]}
        return wrong.get(self.wrong, [Task(handled)])


class Pairs(Collector):
    """Two at a time."""

    def __init__(self, wrong: str = "") -> None:
        self.wrong = wrong
        self.max_size = 2
        self.min_size = 3 if wrong == "few" else 1
        self.max_wait = math.inf if wrong == "long" else 0.1

    async def call(self, tasks: Sequence[Task]) -> list[Any]:
        if self.wrong == "hangs":
            await asyncio.Event().wait()
        return [item.value for item in map(Item.of, tasks) if item is not None]


STRATEGIES: list[Callable[[], BaseStrategy]] = [
    lambda: ConcurrentLimitStrategy(2),
    lambda: ConcurrentLimitStrategy(3, key="user", cost="tokens", default_cost=1),
    lambda: CooldownStrategy(key="user"),
    DeadlineStrategy,
    lambda: DeadlineStrategy(key="due"),
    lambda: DelayedStrategy(0.5),
    lambda: DelayedStrategy(0.5, key="user", measure_from="start"),
    lambda: FairShareStrategy(key="user", levels=(0, 1, 3), weights={"a": 2}, guaranteed=1),
    lambda: FairShareStrategy(key="user", by="share", cost="tokens", maximum=2),
    lambda: FixedWindowStrategy(3, 2.0),
    lambda: FixedWindowStrategy(3, "minute", align="clock", key="user"),
    lambda: SlidingWindowStrategy(3, 2.0),
    lambda: SlidingWindowStrategy(5, 2.0, min_interval=0.1, slack=0.05, key="user", cost="tokens"),
    lambda: TokenBucketStrategy(2.0, 3, catch_up=0.0),
    lambda: TokenBucketStrategy(2.0, 3, key="user", cost="tokens"),
    lambda: AdaptiveStrategy(initial_limit=2),
    lambda: AdaptiveStrategy(algorithm="vegas", initial_limit=4, max_limit=20, key="user"),
    lambda: AdaptiveStrategy(algorithm="aimd", initial_limit=2, max_limit=3),
    lambda: CircuitBreakerStrategy(min_calls=3, window_seconds=5, cooldown=2.0),
    lambda: CircuitBreakerStrategy(
        failure_rate=0.4, min_calls=8, half_open_max=2, on_open="reject", key="user"
    ),
    PriorityQueueStrategy,
    lambda: PriorityQueueStrategy(aging=10.0),
    TimeBasedStrategy,
    lambda: ProviderRouterStrategy(
        [
            Provider("P1", limits=[ConcurrentLimitStrategy(1)]),
            Provider("P2", limits=[SlidingWindowStrategy(2, 1.0, key="user")]),
        ]
    ),
    lambda: BulkStrategy(handle),
    lambda: BulkStrategy(handle, max_size=3, max_wait=0.2, min_size=2, timeout=1, key="user"),
    lambda: RetryStrategy(3, backoff=fixed(0.2), budget=RetryBudget(0.5)),
    lambda: ProviderRouterStrategy(
        [Provider("P1", weight=3, price=2), Provider("P2", limits=[ConcurrentLimitStrategy(1)])],
        policy="weighted",
    ),
    lambda: ProviderRouterStrategy([Provider("P1"), Provider("P2")], policy="fastest"),
    lambda: WeightedRoundRobinStrategy({"a": 5, "b": 1}),
    Beats,
    Pairs,
    lambda: Polled(0.1),
    lambda: Polled(None),
    lambda: Polled(0),
]


def some_metadata(i: int) -> dict[str, Any]:
    return {
        "priority": ("low", "normal", "high")[i % 3],
        "user": "ab"[i % 2],
        "due": timedelta(seconds=100 - i) if i % 3 else None,
        "cost": {"tokens": 1 + i % 3},
    }


@pytest.mark.parametrize("factory", STRATEGIES, ids=lambda factory: repr(factory()))
def test_the_contract_is_kept(factory: Callable[[], BaseStrategy]) -> None:
    check_strategy(factory, metadata=some_metadata)


class Loses(Polled):
    def add_task(self, task: Task) -> None:
        if len(self.queue) < 2:
            super().add_task(task)


class NeverAgain(ConcurrentLimitStrategy):
    """Keeps its permits when the work fails."""

    def release(self, grant: Any, outcome: Outcome, now: float) -> None:
        if outcome.kind == "success":
            super().release(grant, outcome, now)


class Impure(ConcurrentLimitStrategy):
    asked = 0

    def ready_at(self, key: Hashable, cost: Any, now: float) -> float:
        self.asked += 1
        return super().ready_at(key, cost, now) if self.asked % 3 else now + 1


class Late(TokenBucketStrategy):
    """Says an instant, and is not open at it."""

    def ready_at(self, key: Hashable, cost: Any, now: float) -> float:
        instant = super().ready_at(key, cost, now)
        return instant if instant <= now else min(now + 0.001, instant + 1)


class Early(DelayedStrategy):
    """Is open before the instant that it says."""

    def ready_at(self, key: Hashable, cost: Any, now: float) -> float:
        instant = super().ready_at(key, cost, now)
        return instant if instant <= now + 0.2 else instant + 0.1


class NanRank(Order):
    def rank(self, task: Task, now: float) -> float:
        return math.nan


class FickleRank(Order):
    rank_given = 0

    def rank(self, task: Task, now: float) -> float:
        self.rank_given += 1
        return self.rank_given


class FickleGroups(FairShareStrategy):
    asked = 0

    def group_rank(self, group: Hashable, now: float) -> tuple[int, float]:
        self.asked += 1
        return 1, self.asked


class NanGroups(FairShareStrategy):
    def group_rank(self, group: Hashable, now: float) -> Any:
        return math.nan


class LosesBranches(ProviderRouterStrategy):
    def choose(self, branches: Any, task: Task, now: float) -> Any:
        return branches[:1]


class Fickle(ProviderRouterStrategy):
    asked = 0

    def choose(self, branches: Any, task: Task, now: float) -> Any:
        self.asked += 1
        return branches if self.asked % 2 else branches[::-1]


class Forgets(SlidingWindowStrategy):
    """Its dump leaves out what counts."""

    def dump(self) -> Any:
        return type(self)(self.max_requests, self.window_seconds).dump_of_nothing()

    def dump_of_nothing(self) -> Any:
        return super().dump()

    def load(self, state: Any) -> None:
        self.__init__(self.max_requests, self.window_seconds)  # type: ignore[misc]


class Deaf(SlidingWindowStrategy):
    """Takes nothing back from its dump."""

    def load(self, state: Any) -> None:
        pass


class Literal(ConcurrentLimitStrategy):
    """Takes whatever it is told for headers."""

    def observe(self, sample: Any, now: float, key: Hashable = None, grant: Any = None) -> None:
        sample["retry-after"]


def lasted(outcome: Outcome) -> float:
    return outcome.finished_at - outcome.started_at if outcome.started_at is not None else 0


class Never(Feedback):
    """Wants another attempt of what took a second, at no time."""

    def review(self, task: Task, outcome: Outcome, now: float) -> RetryAt | None:
        return RetryAt(math.inf) if lasted(outcome) >= 1 else None


class TwoDice(Feedback):
    """All of its copies throw the same dice."""

    dice = itertools.count()

    def review(self, task: Task, outcome: Outcome, now: float) -> RetryAt | None:
        return RetryAt(now + next(self.dice)) if lasted(outcome) >= 1 else None


class Holds(Limit):
    """Never opens again after its first grant."""

    taken = False

    def ready_at(self, key: Hashable, cost: Any, now: float) -> float:
        return math.inf if self.taken else now

    def acquire(self, key: Hashable, cost: Any, now: float) -> None:
        self.taken = True

    def usage(self, key: Hashable, now: float) -> Usage:
        return Usage(int(self.taken), 1)


@pytest.mark.parametrize(
    ("factory", "complaint"),
    [
        (lambda: Loses(0.1), "still wait"),
        (lambda: NeverAgain(2), "still wait"),
        (lambda: Impure(100), "pure"),
        (lambda: Late(0.5, 1), "when that comes|pure"),
        (lambda: Early(0.5, measure_from="start"), "already"),
        (NanRank, "sortable|NaN"),
        (FickleRank, "another rank"),
        (FickleGroups, "another rank of the group"),
        (NanGroups, "NaN"),
        (lambda: LosesBranches([Provider("a"), Provider("b")]), "must give all of the branches"),
        (lambda: Fickle([Provider("a"), Provider("b")]), "must be pure"),
        (lambda: Forgets(2, 5.0), "dump and load"),
        (lambda: Deaf(2, 5.0), "dump and load"),
        (Holds, "still wait"),
        (lambda: Literal(1), "doesn't know"),
        (Never, "finite instant"),
        (TwoDice, "another answer"),
        (lambda: Beats("nan"), "NaN"),
        (lambda: Beats("fickle"), "must be pure"),
        (lambda: Beats("stuck"), "emits nothing"),
        (lambda: Beats("junk"), "gives Tasks, not 'junk'"),
        (lambda: Beats("stale"), "gives new Tasks"),
        (lambda: Pairs("few"), "min_size <= max_size"),
        (lambda: Pairs("long"), "max_wait"),
        (lambda: Pairs("hangs"), "still wait"),
    ],
)
def test_the_kit_notices(factory: Callable[[], BaseStrategy], complaint: str) -> None:
    with pytest.raises((AssertionError, ValueError), match=complaint):
        check_strategy(factory, within=30.0)


def test_the_factory_must_make_new_ones() -> None:
    one = ConcurrentLimitStrategy(1)
    with pytest.raises(AssertionError, match="new strategy each time"):
        check_strategy(lambda: one)


def test_what_is_no_strategy_is_refused() -> None:
    with pytest.raises(AssertionError, match="not a BaseStrategy"):
        check_strategy(object)  # type: ignore[arg-type]


async def test_it_also_runs_where_a_loop_runs_already() -> None:
    """In a thread of its own, as any test of an async project may do."""
    await asyncio.to_thread(check_strategy, lambda: ConcurrentLimitStrategy(1))
