"""Random lives: a chain starts the same tasks at the same instants, in the same order, as `Oracle`.

A life is a chain of up to five stages, and some dozen events at instants that often coincide, with
each other and with the instants that the chain names. Both worlds have their own instances of
everything, and see the same events.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable, Hashable, Iterable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from functools import partial
from heapq import heappop, heappush
from itertools import count, pairwise
from math import inf, nextafter
from typing import Any, TypeAlias

import oracle
import pytest
from oracle import Oracle

from async_task_manager._run import Options
from async_task_manager.errors import (
    NonRetryable,
    RateLimited,
    TaskManagerError,
    TaskRejected,
)
from async_task_manager.strategies import _dispatch, _intake, _lanes, _single_lane
from async_task_manager.strategies._batch import Batch
from async_task_manager.strategies._routing import KEYS
from async_task_manager.strategies.adaptive import AdaptiveStrategy
from async_task_manager.strategies.backoff import exponential, fixed
from async_task_manager.strategies.base import (
    BaseStrategy,
    Cost,
    Feedback,
    GroupOrder,
    Limit,
    RetryAt,
    Usage,
    WallTime,
)
from async_task_manager.strategies.bulk import BulkStrategy, Item
from async_task_manager.strategies.chain import Chain
from async_task_manager.strategies.circuit_breaker import CircuitBreakerStrategy
from async_task_manager.strategies.concurrent_limit import ConcurrentLimitStrategy
from async_task_manager.strategies.cooldown import CooldownStrategy
from async_task_manager.strategies.cost_estimator import CostEstimator
from async_task_manager.strategies.deadline import DeadlineStrategy
from async_task_manager.strategies.delayed import DelayedStrategy
from async_task_manager.strategies.fair_share import FairShareStrategy
from async_task_manager.strategies.fixed_window import FixedWindowStrategy
from async_task_manager.strategies.priority_queue import PriorityQueueStrategy
from async_task_manager.strategies.provider_router import Provider, ProviderRouterStrategy
from async_task_manager.strategies.retry import RetryBudget, RetryStrategy
from async_task_manager.strategies.sliding_window import SlidingWindowStrategy
from async_task_manager.strategies.time_based import TimeBasedStrategy
from async_task_manager.strategies.token_bucket import TokenBucketStrategy
from async_task_manager.strategies.weighted_round_robin import WeightedRoundRobinStrategy
from async_task_manager.task import Outcome, Task

LIVE: dict[str, list[Any]] = {
    "max_concurrent": [1, 2, 4],
    "max_requests": [1, 2, 4],
    "window_seconds": [0.5, 1, 2],
    "rate": [0.5, 2],
    "burst": [1, 4],
    "delay_seconds": [0, 0.5, 1],
    "default_seconds": [0, 2],
    "weights": [{"a": 3}, None],
    "guaranteed": [None, 1],
    "maximum": [None, 1, 2],
    "cooldown": [0.5, 1, 2],
    "half_open_max": [1, 2],
    "max_limit": [2, 4],
}
"""What can be set while tasks wait."""

GRID = 0.25
EPOCH = 1.7e9

# ---- custom policies ----------------------------------------------------------------------------


class FewestRunning(GroupOrder, Limit):
    """The group with the fewest running tasks per share first; an order that counts as a limit."""

    def __init__(self, field: str) -> None:
        super().__init__(key=field)
        self.running: Counter[Hashable] = Counter()
        self.handicap: Counter[Hashable] = Counter()

    def group(self, task: Task) -> Hashable:
        return self.key_of(task)

    def group_rank(self, group: Hashable, now: float) -> int:
        return self.running[group] + self.handicap[group]

    def punish(self, group: Hashable, by: int) -> None:
        self.handicap[group] += by
        self.changed(group)

    def ready_at(self, key: Hashable, cost: Cost, now: float) -> float:
        return now

    def acquire(self, key: Hashable, cost: Cost, now: float) -> Hashable:
        self.running[key] += 1
        return key

    def release(self, grant: Hashable, outcome: Outcome, now: float) -> None:
        self.running[grant] -= 1

    def usage(self, key: Hashable, now: float) -> Usage:
        return Usage(self.running[key], 0)


class FailFast(Limit):
    """Refuses for good, for some seconds after a failure; then lets one probe through."""

    def __init__(self, cooldown: float, key: str | None) -> None:
        super().__init__(key=key)
        self.cooldown = cooldown
        self.until: dict[Hashable, float] = {}
        self.probing: set[Hashable] = set()

    def ready_at(self, key: Hashable, cost: Cost, now: float) -> float:
        if key in self.probing:
            return inf
        until = self.until.get(key, now)
        if until > now:
            raise TaskRejected(f"broken until {until}", until)
        return now

    def acquire(self, key: Hashable, cost: Cost, now: float) -> tuple[Hashable, bool]:
        probe = key in self.until
        if probe:
            self.probing.add(key)
        return key, probe

    def release(self, grant: tuple[Hashable, bool], outcome: Outcome, now: float) -> None:
        key, probe = grant
        if probe:
            self.probing.discard(key)
        if outcome.kind == "failure":
            self.until[key] = now + self.cooldown
        elif outcome.kind == "success" and probe:
            self.until.pop(key, None)

    def usage(self, key: Hashable, now: float) -> Usage:
        return Usage(0, 1)


class RetryFailures(Feedback):
    """Runs what failed again, a few times."""

    def __init__(self, times: int, delay: float) -> None:
        self.times = times
        self.delay = delay
        self.retried: Counter[int] = Counter()

    def review(self, task: Task, outcome: Outcome, now: float) -> RetryAt | None:
        number = task.metadata["number"]
        if outcome.kind == "success" or self.retried[number] == self.times:
            return None
        self.retried[number] += 1
        return RetryAt(now + self.delay)


# ---- a life -------------------------------------------------------------------------------------


async def nothing() -> None: ...


def thought(task: Task[Any]) -> float:
    """What a task is thought to cost, where that is learned."""
    tokens: float = task.metadata.get("cost", {}).get("tokens", 1)
    return tokens


def limit(rng: random.Random) -> Limit:
    key = rng.choice([None, None, "user", "model"])
    cost: Any = rng.choice([None, None, "tokens", 2, 0.5])
    if cost == "tokens" and rng.random() < 0.3:
        cost = CostEstimator(thought, unit="tokens", min_samples=1, quantile=0.5, maximum=5)
    default = rng.choice([1, 1, 1, None]) if cost == "tokens" else None
    kinds = ["concurrent", "concurrent", "sliding", "fixed", "bucket", "delayed"]
    kind = rng.choice([*kinds, "failfast", "cooldown", "breaker", "adaptive"])
    if kind == "concurrent":
        slots = rng.choice([1, 2, 2.5, 3, 5])
        return ConcurrentLimitStrategy(slots, key=key, cost=cost, default_cost=default)
    if kind == "sliding":
        most, window = rng.choice([1, 2, 3, 5]), rng.choice([0.5, 1, 2, 3.3])
        apart, slack = rng.choice([0, 0, 0, 0.25, 0.4]), rng.choice([0, 0, 0.25])
        return SlidingWindowStrategy(
            most,
            window,
            min_interval=apart,
            slack=slack,
            key=key,
            cost=cost,
            default_cost=default,
        )
    if kind == "fixed":
        most, window = rng.choice([1, 2, 3, 5]), rng.choice([0.5, 1, 2, 3.3])
        return FixedWindowStrategy(most, window, key=key, cost=cost, default_cost=default)
    if kind == "bucket":
        rate, burst = rng.choice([0.5, 1, 2, 3]), rng.choice([1, 2, 3, 5])
        return TokenBucketStrategy(rate, burst, key=key, cost=cost, default_cost=default)
    if kind == "delayed":
        delay, measure = rng.choice([0, 0.25, 1, 1.1]), rng.choice(["completion", "start"])
        return DelayedStrategy(
            delay, key=key, cost=cost, default_cost=default, measure_from=measure
        )
    if kind == "breaker":
        return CircuitBreakerStrategy(
            failure_rate=rng.choice([0.3, 0.5, 1]),
            min_calls=rng.choice([1, 2]),
            window_seconds=rng.choice([1, 5]),
            cooldown=rng.choice([0.5, 1, 2.2]),
            half_open_max=rng.choice([1, 2]),
            on_open=rng.choice(["wait", "wait", "reject"]),
            key=key,
        )
    if kind == "adaptive":
        algorithm = rng.choice(["gradient", "vegas", "aimd"])
        return AdaptiveStrategy(initial_limit=2, max_limit=5, algorithm=algorithm, key=key)
    if kind == "cooldown":
        return CooldownStrategy(key=key, default_seconds=rng.choice([0, GRID, 1]))
    return FailFast(rng.choice([0.5, 1, 2]), key)


def fair_share(rng: random.Random) -> FairShareStrategy:
    key = rng.choice(["user", "model"])
    guaranteed, maximum = rng.choice([None, None, 1, {"a": 2}]), rng.choice([None, None, 1, 2])
    weights = rng.choice([None, {"a": 2, "x": 0.5}])
    if rng.random() < 0.4:
        return FairShareStrategy(
            key=key,
            window_seconds=rng.choice([1, 3]),
            levels=(0, 1, 3),
            weights=weights,
            guaranteed=guaranteed,
            maximum=maximum,
        )
    cost = rng.choice([None, "tokens"])
    return FairShareStrategy(
        key=key,
        by="share",
        weights=weights,
        cost=cost,
        default_cost=1 if cost else None,
        guaranteed=guaranteed,
        maximum=maximum,
    )


def provider(rng: random.Random, name: str) -> Provider:
    limits = [limit(rng) for _ in range(rng.randint(0, 2))]
    weight, price = rng.choice([1, 1, 2, 0.5, 5]), rng.choice([0, 1, 2])
    return Provider(name, limits, enabled=rng.random() < 0.9, weight=weight, price=price)


def last_first(task: Task, providers: Sequence[Provider]) -> list[Provider]:
    """A policy as somebody might write it."""
    return list(providers)[: -1 - (task.metadata.get("user") == "a") : -1]


def router(rng: random.Random) -> ProviderRouterStrategy:
    names = ["P1", "P2", "P3"][: rng.randint(1, 3)]
    policy: Any = rng.choice(["ordered", "ordered", *KEYS, last_first])
    if rng.random() < 0.2:
        health = {"P1": rng.random() < 0.7}
        weights = {name: rng.choice([1, 2, 5]) for name in ("P1", "P2", "P3")}
        return WeightedRoundRobinStrategy(weights, health=health)
    return ProviderRouterStrategy(
        [provider(rng, name) for name in names], policy=policy, half_life=rng.choice([0.5, 60])
    )


def stages(rng: random.Random) -> list[BaseStrategy]:
    found: list[BaseStrategy] = []
    if rng.random() < 0.3:
        # Tasks that need several contended keys, each of which is seldom free.
        for key in rng.sample(["user", "model", "number"], 2):
            found.append(rng.choice([ConcurrentLimitStrategy(1, key=key), limit(rng)]))
            found.append(ConcurrentLimitStrategy(1, key=key if key != "number" else "model"))
    for _ in range(rng.randint(0 if found else 1, 5 - len(found))):
        kind = rng.random()
        if kind < 0.52:
            found.append(limit(rng))
        elif kind < 0.63:
            aging = rng.choice([None, None, 0.5, 2])
            due = rng.choice([None, "valid_after"])
            found.append(
                PriorityQueueStrategy(aging=aging)
                if rng.random() < 0.7
                else DeadlineStrategy(key=due)
            )
        elif kind < 0.7:
            found.append(TimeBasedStrategy())
        elif kind < 0.83:
            found.append(router(rng))
        elif kind < 0.88:
            found.append(FewestRunning(rng.choice(["user", "model"])))
        elif kind < 0.93:
            found.append(fair_share(rng))
        else:
            found.append(RetryFailures(rng.choice([1, 2]), rng.choice([-inf, 0, 0.25, 1])))
    if rng.random() < 0.2:
        found.append(retry(rng))
    return found


def retry(rng: random.Random) -> RetryStrategy:
    jitter: Any = rng.choice([None, "full", "equal"])
    backoffs: list[Any] = [
        fixed(0),
        fixed(GRID),
        exponential(GRID, maximum=2, jitter=jitter),
        lambda attempt: attempt / 4,
    ]
    return RetryStrategy(
        rng.choice([1, 2, 3]),
        backoff=rng.choice(backoffs),
        retry_on=rng.choice([Exception, OSError]),
        budget=rng.choice([None, None, RetryBudget(0.5, 0.1), RetryBudget(0, 0)]),
        max_rate_limited=rng.choice([0, 2, 4]),
        seed=rng.randrange(9),
    )


def error(rng: random.Random) -> Exception:
    """What an attempt fails with."""
    after = rng.choice(
        [None, 0, GRID, 1, 2, datetime.fromtimestamp(EPOCH + rng.choice([1, 3]), UTC)]
    )
    return rng.choice(
        [ValueError(), OSError(), NonRetryable(), RateLimited(), RateLimited(retry_after=after)]
    )


async def no_call(values: list[Any]) -> list[Any]:
    raise AssertionError(values)


def bulk(rng: random.Random) -> BulkStrategy:
    most = rng.choice([1, 2, 3, 5])
    return BulkStrategy(
        no_call,
        max_size=most,
        max_wait=rng.choice([0, GRID, 1, 1.3]),
        min_size=rng.randint(1, min(2, most)),
        key=rng.choice([None, None, "user"]),
    )


class World:
    """One of the two: a machine, its strategies, and its tasks by number."""

    def __init__(self, machine: Callable[..., Any], seed: str, batches: bool) -> None:
        rng = random.Random(seed)
        self.stages = stages(rng)
        if batches:
            self.stages.insert(rng.randint(0, len(self.stages)), bulk(rng))
        self.machine = machine(*self.stages)
        self.tasks: dict[int, Task[Any]] = {}
        self.running: dict[int, Task[Any]] = {}
        """By the order of the attempt: what the machine gave, perhaps a batch."""
        self.started: Task[Any] | None = None

    @property
    def routers(self) -> list[ProviderRouterStrategy]:
        return [stage for stage in self.stages if isinstance(stage, ProviderRouterStrategy)]

    def limits(self) -> list[Limit]:
        found = []
        for stage in self.stages:
            if isinstance(stage, ProviderRouterStrategy):
                found += [limit for provider in stage for limit in provider.limits]
            elif isinstance(stage, Limit):
                found.append(stage)
        return found

    def add(self, number: int, now: float) -> None:
        self.machine.add(self.tasks[number], now)

    def numbers(self, task: Task[Any]) -> list[int]:
        """Of the task, or of the tasks of a batch."""
        members: Iterable[Task[Any]] = [task]
        if isinstance(task, Batch):
            members = task.members
        elif self.machine.__class__ is Oracle:
            entry = self.machine.entries[task]
            members = [member.task for member in getattr(entry, "members", [entry])]
        return [member.metadata["number"] for member in members]

    def gone(self) -> list[tuple[int, str]]:
        """What was expired or rejected since the last call."""
        found = []
        while self.machine.out:
            task, error = self.machine.out.pop()
            # Which of two bounds is told of, where both have passed, is left open.
            kind = "expired" if isinstance(error, TimeoutError) else type(error).__name__
            found.append((task.metadata["number"], kind))
        return sorted(found)


@dataclass
class Attempt:
    """What the life itself saw of one attempt, to judge the limits by."""

    number: int
    """Of the task, or of the first one of a batch."""
    members: list[int]
    """The numbers of a batch's tasks that have not ended; none, if it is none."""
    acquired: float
    order: int
    costs: dict[int, tuple[Hashable, float]]
    """By the limit's id: the key, and what the task cost there."""
    began: float | None = None
    began_order: int = 0
    ended: float = inf
    ended_order: float = inf
    alive: bool = True


Event: TypeAlias = Callable[[], None]


class Life:
    """Drives both worlds through the same events, and compares them after every pull."""

    batches = False
    """Whether some of the tasks are items of a `BulkStrategy`."""

    def __init__(self, seed: int, events: int = 30) -> None:
        self.rng = random.Random(seed)
        self.chain = World(Chain, f"stages {seed}", self.batches)
        self.oracle = World(Oracle, f"stages {seed}", self.batches)
        self.now = 0.0
        self.events = events
        self.agenda: list[tuple[float, int, Event]] = []
        self.orders = count()
        self.added: set[int] = set()
        self.ended: Counter[int] = Counter()
        self.running: dict[int, Attempt] = {}
        self.attempts: list[Attempt] = []
        self.touched: set[int] = set()
        """Limits whose parameters or charges were changed: they are not judged by the history."""
        self.pool = list(range(events))
        self.spurious = 0
        self.offset = EPOCH
        made = list(self.pool)
        if self.rng.random() < 0.3:
            self.rng.shuffle(made)  # tasks are not always added in the order of their making
        for number in made:
            metadata = self.metadata(number)
            options = self.options()
            item = self.batches and self.rng.random() < 0.7
            for world in (self.chain, self.oracle):
                work = Item(number) if item else nothing
                task = world.tasks[number] = Task(work, dict(metadata))
                if options is not None:
                    task._options = Options(*options)

    def metadata(self, number: int) -> dict[str, Any]:
        rng = self.rng
        data: dict[str, Any] = {"number": number}
        if rng.random() < 0.7:
            data["user"] = rng.choice("ab")
        if rng.random() < 0.7:
            data["model"] = rng.choice("xyz")
        if rng.random() < 0.6:
            data["priority"] = rng.choice([-1, 0, 1, "high"])
        if rng.random() < 0.6:
            data["cost"] = {"tokens": rng.choice([0, 0.1, 0.5, 1, 2, 3, 5])}
        if rng.random() < 0.3:
            data["valid_after"] = timedelta(seconds=rng.choice([-1, 0, 0.25, 1, 2, 2.2]))
        elif rng.random() < 0.1:
            data["valid_after"] = EPOCH + rng.choice([-5, 1, 2, 4])
        if rng.random() < 0.3:
            data["provider"] = rng.choice(["P1", "P1", "P2", "P3"])
        return data

    def options(self) -> tuple[Any, ...] | None:
        if self.rng.random() < 0.8:
            return None
        timeout = self.rng.choice([None, 0.25, 1, 2, 3])
        deadline = self.rng.choice([None, None, 2.0, 5.0, WallTime(EPOCH + 3)])
        return None, timeout, None, deadline

    # ---- both worlds ------------------------------------------------------------------------

    def both(self, act: Callable[[World], Any]) -> Any:
        """Does the same in both worlds, and checks that both say the same to it."""
        answers = []
        for world in (self.chain, self.oracle):
            try:
                answers.append(act(world))
            except TaskManagerError as error:
                answers.append(type(error))
        assert answers[0] == answers[1], f"at {self.now}: {answers}"
        return answers[0]

    def clear_out(self) -> bool:
        """Takes note of what was expired or rejected, if there is any."""
        gone = self.both(World.gone)
        for number, _ in gone:
            self.end(number)
        return bool(gone)

    def end(self, number: int) -> None:
        self.ended[number] += 1
        assert self.ended[number] == 1, f"task {number} ended twice"

    def queued(self) -> list[int]:
        return sorted(task.metadata["number"] for task in self.oracle.machine.queued())

    def pull(self) -> bool:
        """One pull in both worlds; True if a task started."""

        def start(world: World) -> Any:
            task = world.machine.pull(self.now)
            if world is self.oracle:
                provider = world.machine.entries[task].provider if task is not None else None
            else:
                for _ in range(1_000):
                    if task is not None or world.machine.next_wake(self.now) > self.now:
                        break
                    task = world.machine.pull(self.now)  # it had not finished
                else:
                    raise AssertionError("it never finishes")
                provider = task.provider if task is not None else None
            if task is None:
                return None
            world.started = task
            return world.numbers(task), provider

        wake = self.chain.machine.next_wake(self.now)
        started = self.both(start)
        if self.clear_out() or started is not None:
            assert wake <= self.now, f"it would have slept until {wake}"
        if started is None:
            return False
        numbers = started[0]
        tasks = [self.chain.tasks[number] for number in numbers]
        costs = {}
        places = [
            *(stage for stage in self.chain.stages if isinstance(stage, Limit)),
            *(
                limit
                for router in self.chain.routers[-1:]  # the one that `provider` tells of
                if started[1] in router
                for limit in router[started[1]].limits
            ),
        ]
        for limit in places:
            each = [limit.cost_of(task) for task in tasks]
            costs[id(limit)] = limit.key_of(tasks[0]), oracle.total(limit, each)
        members = numbers if tasks[0]._work is not nothing else []
        attempt = Attempt(numbers[0], members, self.now, next(self.orders), costs)
        self.attempts.append(attempt)
        self.running[attempt.order] = attempt
        for world in (self.chain, self.oracle):
            assert world.started is not None
            world.running[attempt.order] = world.started
        self.plan(attempt)
        return True

    def plan(self, attempt: Attempt) -> None:
        """When the work begins, and when it ends, is decided at its start."""
        rng = self.rng
        begins = self.now + rng.choice([0, 0, 0, 0, 0.25, 1, rng.random()])
        if rng.random() < 0.1:
            self.at(begins, lambda: self.finish(attempt, "cancelled"))
            return
        ends = begins + rng.choice([0, 0.25, 0.5, 1, 1.5, 3.25, rng.random()])
        kind = rng.choices(["success", "failure", "cancelled"], [7, 2, 1])[0]
        self.at(begins, lambda: self.begin(attempt))
        self.at(ends, lambda: self.finish(attempt, kind))

    def at(self, instant: float, event: Event) -> None:
        heappush(self.agenda, (instant, next(self.orders), event))

    def begin(self, attempt: Attempt) -> None:
        if attempt.alive:
            attempt.began, attempt.began_order = self.now, next(self.orders)
            machine = self.chain.machine
            wake = machine.next_wake(self.now)
            if not machine.begun(self.chain.running[attempt.order], self.now):
                assert machine.next_wake(self.now) == wake, "nobody would wake"
            self.oracle.machine.begun(self.oracle.running[attempt.order], self.now)

    def finish(self, attempt: Attempt, kind: Any) -> None:
        if not attempt.alive:
            return
        attempt.alive = False
        attempt.ended, attempt.ended_order = self.now, next(self.orders)
        del self.running[attempt.order]
        outcome = Outcome(
            kind, attempt.began, self.now, error(self.rng) if kind == "failure" else None
        )
        if self.rng.random() < 0.2:
            outcome.cost = self.actual()
        again = self.both(
            lambda world: world.machine.finish(world.running.pop(attempt.order), outcome, self.now)
        )
        if not again and self.chain.tasks[attempt.number]._work is nothing:
            self.chain.tasks[attempt.number]._end("succeeded", None)
            self.end(attempt.number)
        for number in tuple(attempt.members):
            part = kind if kind != "success" else self.rng.choice(["success", "failure"])
            self.finish_member(attempt, number, part)
        self.clear_out()

    def finish_member(self, attempt: Attempt, number: int, kind: Any) -> None:
        """One of a batch ends: with the call, or alone."""
        attempt.members.remove(number)
        wrong = error(self.rng) if kind == "failure" else None
        outcome = Outcome(kind, attempt.began, self.now, wrong)
        if not self.both(
            lambda world: world.machine.finish(world.tasks[number], outcome, self.now)
        ):
            self.chain.tasks[number]._end("succeeded", None)
            self.end(number)

    # ---- events -----------------------------------------------------------------------------

    def event(self) -> None:
        """Something from outside happens."""
        acts = [self.add] * 4
        acts += [self.cancel, self.stop, self.settle, self.observe, self.rerank]
        self.rng.choice([*acts, self.change, self.change])()

    def add(self) -> None:
        for _ in range(self.rng.choice([1, 1, 2, 4])):
            if self.pool:
                number = self.pool.pop()
                if self.both(partial(World.add, number=number, now=self.now)) is None:
                    self.added.add(number)

    def cancel(self) -> None:
        """Of something queued."""
        queued = self.queued()
        if queued:
            self.withdraw(self.rng.choice(queued))

    def withdraw(self, number: int) -> None:
        self.both(lambda world: world.machine.cancel(world.tasks[number], self.now))
        self.end(number)

    def rerank(self) -> None:
        """Something queued has the ranks of another task, as if that waited for it."""
        queued = self.queued()
        if queued:
            number, other = self.rng.choice(queued), self.rng.choice(sorted(self.added))

            def act(world: World) -> None:
                machine = world.machine
                machine.rerank(world.tasks[number], machine.ranks(world.tasks[other]), self.now)

            self.both(act)

    def stop(self) -> None:
        """Of something that runs, perhaps before its first instruction."""
        if self.running:
            attempt = self.running[self.rng.choice(sorted(self.running))]
            kind = self.rng.choice(["cancelled", "failure"])
            if attempt.members and self.rng.random() < 0.7:
                self.finish_member(attempt, self.rng.choice(attempt.members), kind)
                if not attempt.members:
                    self.finish(attempt, "cancelled")
            else:
                self.finish(attempt, kind)

    def settle(self) -> None:
        if self.running:
            order = self.rng.choice(sorted(self.running))
            actual = self.actual()
            self.both(lambda world: world.machine.settle(world.running[order], actual, self.now))

    def actual(self) -> float | dict[str, float]:
        """What an attempt really consumed."""
        self.touched |= {id(limit) for limit in self.chain.limits() if limit.cost == "tokens"}
        tokens = self.rng.choice([0, 0.5, 1, 4])
        return tokens if self.rng.random() < 0.5 else {"tokens": tokens, "others": 1}

    def observe(self) -> None:
        """A response with headers, to something that runs."""
        rng = self.rng
        if self.running:
            order = rng.choice(sorted(self.running))
            sample = {
                "Date": format_datetime(datetime.fromtimestamp(int(EPOCH + self.now), UTC), True),
                "X-RateLimit-Remaining": str(rng.choice([0, 1, 3])),
                "X-RateLimit-Remaining-Tokens": str(rng.choice([0, 0.5, 4])),
            }
            if rng.random() < 0.5:
                sample["X-RateLimit-Reset"] = str(rng.choice([0, 1, 2, 0.5]))
            if rng.random() < 0.3:
                sample["Retry-After"] = str(rng.choice([0, 1, 2, 0.5]))
            self.both(lambda world: world.machine.observe(world.running[order], sample, self.now))

    def change(self) -> None:
        """Live changes: of parameters, of providers, of groups, of the wall clock."""
        rng = self.rng
        acts: list[Callable[[World], Any]] = []
        for i, stage in enumerate(self.chain.stages):
            if isinstance(stage, BulkStrategy):
                name, value = rng.choice([("max_size", 2), ("max_size", 4), ("max_wait", GRID)])
                acts += [partial(self.set_bulk, i=i, name=name, value=value)] * 2
        for i, limit in enumerate(self.chain.limits()):
            for name, values in LIVE.items():
                if hasattr(limit, name):
                    acts.append(partial(self.set, i=i, name=name, value=rng.choice(values)))
        for i, stage in enumerate(self.chain.stages):
            if isinstance(stage, ProviderRouterStrategy):
                acts += [partial(self.reroute, i=i, seed=rng.random())] * 4
            if isinstance(stage, FewestRunning):
                group, by = rng.choice("abxyz"), rng.choice([-1, 1, 2])
                acts.append(partial(self.punish, i=i, group=group, by=by))
        if rng.random() < 0.2:
            self.offset += rng.choice([-2, 1, 3])
            acts.append(lambda world: world.machine.set_wall_offset(self.offset, self.now))
        if acts:
            self.both(rng.choice(acts))
            self.clear_out()

    def set_bulk(self, world: World, i: int, name: str, value: Any) -> None:
        setattr(world.stages[i], name, value)

    def set(self, world: World, i: int, name: str, value: Any) -> None:
        limit = world.limits()[i]
        self.touched.add(id(limit))
        setattr(limit, name, value)

    def punish(self, world: World, i: int, group: str, by: int) -> None:
        order = world.stages[i]
        assert isinstance(order, FewestRunning)
        order.punish(group, by)

    def reroute(self, world: World, i: int, seed: float) -> None:
        router = world.stages[i]
        assert isinstance(router, ProviderRouterStrategy)
        rng = random.Random(seed)
        kind = rng.random()
        if kind < 0.5 and len(router):
            one = router[rng.choice(router.names)]
            (one.disable if one.enabled else one.enable)()
        elif kind < 0.75:
            name = f"P{rng.randint(1, 4)}"
            router.add(provider(rng, name), index=rng.randint(0, len(router)))
        elif len(router) > 1:
            router.remove(rng.choice(router.names), force=rng.random() < 0.5)

    # ---- time -------------------------------------------------------------------------------

    def live(self) -> None:
        """From the first event to the end of all, with the constants of the machine at random."""
        rng = self.rng
        patience = rng.choice([4, 4, 1, 0])
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(_dispatch, "PATIENCE", patience)
            patch.setattr(oracle, "PATIENCE", patience)
            patch.setattr(_dispatch, "MAX_MOVES", rng.choice([256, 256, 2, 1]))
            patch.setattr(_intake, "MAX_BOUNDS", rng.choice([256, 256, 1]))
            patch.setattr(_single_lane, "MAX_REJECTED", rng.choice([256, 1]))
            patch.setattr(_lanes, "PRUNE_AT", rng.choice([64, 2]))
            self.events_and_instants()
            self.drain()

    def events_and_instants(self) -> None:
        rng = self.rng
        if rng.random() < 0.2:
            self.add()  # before the first start
        self.both(lambda world: world.machine.set_wall_offset(self.offset, 0.0))
        coming = 0.0
        left = self.events
        steps = 0
        while True:
            steps += 1
            assert steps < 60 * self.events, "no end to it"
            wake = self.chain.machine.next_wake(self.now)
            if left and wake < inf and rng.random() < 0.3:
                # Now, or where it is most delicate: around the very instant that was named.
                coming = rng.choice([wake, nextafter(wake, -inf), nextafter(wake, inf)])
            coming = max(coming, self.now)
            instant = min(
                wake,
                coming if left else inf,
                self.agenda[0][0] if self.agenda else inf,
            )
            if instant == inf:
                break
            instant = max(instant, self.now)
            self.probe(instant)
            eventful = False
            self.now = instant
            while self.agenda and self.agenda[0][0] <= instant:
                eventful = True
                heappop(self.agenda)[2]()
                if rng.random() < 0.2:
                    self.pull()
            if left and coming <= instant:
                eventful = True
                left -= 1
                self.event()
                coming = self.now + rng.choice([0, 0, GRID, 2 * GRID, 1, rng.random()])
            if rng.random() < 0.1:
                self.pull()  # something else may happen before the rest of them start
            else:
                self.round(eventful)

    def probe(self, instant: float) -> None:
        """Before the instant that was named, with no event, there is nothing to be had."""
        if instant <= self.now or self.rng.random() < 0.5:
            return
        between = self.now + (instant - self.now) * self.rng.random()
        for early in (between, nextafter(instant, -inf)):
            if self.now < early < instant:
                self.now = early
                assert not self.pull(), "it named too late an instant"

    def round(self, eventful: bool) -> None:
        """Starts all that may start now."""
        before = len(self.ended), len(self.queued())
        happened = False
        while self.pull():
            happened = True
        machine: Chain = self.chain.machine
        assert self.now < machine.next_wake(self.now) <= self.oracle.machine.next_wake(self.now)
        assert {task.metadata["number"] for task in machine.tasks()} == set(self.queued())
        assert machine.queued == len(self.queued())
        assert machine.running == len(self.running)
        if not (eventful or happened or before != (len(self.ended), len(self.queued()))):
            self.spurious += 1

    def drain(self) -> None:
        """At the end nothing is lost, and nothing is left."""
        assert not self.running
        for number in self.queued():
            self.withdraw(number)
        self.now += 1e6
        assert not self.pull()
        assert set(self.ended) == self.added
        # Once for each attempt, and once for each task that was held; and for each batch that is
        # too small when its time has come.
        most = len(self.attempts) + (2 if self.batches else 1) * len(self.added)
        assert self.spurious <= most, "it wakes for nothing"
        machine: Chain = self.chain.machine
        assert machine.queued == machine.running == 0
        assert machine.tasks() == []
        assert machine.next_wake(self.now) == inf
        for limit in self.chain.limits():
            for key in {key for attempt in self.attempts for key, _ in attempt.costs.values()}:
                assert limit.usage(key, self.now).used == 0, f"{limit!r} keeps permits"
        self.judge()

    # ---- the history ------------------------------------------------------------------------

    def judge(self) -> None:
        """No limit was exceeded, as far as the history alone tells."""
        for limit in self.chain.limits():
            if id(limit) in self.touched or isinstance(limit.cost, CostEstimator):
                continue
            by_key: dict[Hashable, list[tuple[Attempt, Cost]]] = {}
            for attempt in self.attempts:
                if id(limit) in attempt.costs:
                    key, cost = attempt.costs[id(limit)]
                    by_key.setdefault(key, []).append((attempt, cost))
            for attempts in by_key.values():
                if isinstance(limit, ConcurrentLimitStrategy):
                    self.judge_concurrent(limit, attempts)
                elif isinstance(limit, SlidingWindowStrategy):
                    self.judge_sliding(limit, attempts)
                elif isinstance(limit, FixedWindowStrategy):
                    self.judge_fixed(limit, attempts)
                elif isinstance(limit, DelayedStrategy):
                    self.judge_delayed(limit, attempts)
                elif isinstance(limit, TokenBucketStrategy):
                    self.judge_bucket(limit, attempts)

    @staticmethod
    def judge_concurrent(limit: ConcurrentLimitStrategy, all_: list[tuple[Attempt, Cost]]) -> None:
        for attempt, _ in all_:
            at_once = sum(
                cost for other, cost in all_ if other.order <= attempt.order < other.ended_order
            )
            assert at_once <= limit.max_concurrent

    @staticmethod
    def judge_sliding(limit: SlidingWindowStrategy, all_: list[tuple[Attempt, Cost]]) -> None:
        span = limit.window_seconds + limit.slack
        starts = [(attempt.began, cost) for attempt, cost in all_ if attempt.began is not None]
        for first, _ in starts:
            within = sum(cost for began, cost in starts if first <= began < first + span)
            assert within <= limit.max_requests
        for one, following in pairwise(sorted(began for began, _ in starts)):
            assert following >= one + limit.min_interval

    @staticmethod
    def judge_fixed(limit: FixedWindowStrategy, all_: list[tuple[Attempt, Cost]]) -> None:
        assert isinstance(limit.window_seconds, int | float)
        opened, used = -inf, 0.0
        began = [(attempt, cost) for attempt, cost in all_ if attempt.began is not None]
        for attempt, cost in sorted(began, key=lambda pair: pair[0].began_order):
            assert attempt.began is not None
            if opened + limit.window_seconds <= attempt.began:
                opened, used = attempt.began, 0
            used += float(cost)
            assert used <= limit.max_requests + 1e-9

    @staticmethod
    def judge_delayed(limit: DelayedStrategy, all_: list[tuple[Attempt, Cost]]) -> None:
        for attempt, _ in all_:
            for other, cost in all_:
                if other.order < attempt.order and other.began is not None:
                    since = other.began if limit.measure_from == "start" else other.ended
                    began = attempt.began if attempt.began is not None else inf
                    assert began >= since + float(cost) * limit.delay_seconds - 1e-9
                    if limit.measure_from == "completion":
                        assert other.ended_order < attempt.order

    @staticmethod
    def judge_bucket(limit: TokenBucketStrategy, all_: list[tuple[Attempt, Cost]]) -> None:
        kept = [(attempt, cost) for attempt, cost in all_ if attempt.began is not None]
        for i, (first, _) in enumerate(kept):
            taken = 0.0
            for attempt, cost in kept[i:]:
                taken += float(cost)
                span = attempt.acquired - first.acquired + limit.catch_up
                assert taken <= limit.burst + limit.rate * span + 1e-9


CHUNKS = 8
LIVES = 3_000


def lives(seeds: range, kind: type[Life] = Life) -> None:
    for seed in seeds:
        try:
            kind(seed, 12 + seed % 30).live()
        except Exception as error:
            raise AssertionError(f"life {seed}: {error!r}") from error


class BatchedLife(Life):
    """In which items share calls, leave them, and are tried again."""

    batches = True


@pytest.mark.parametrize("chunk", range(CHUNKS))
def test_random_lives(chunk: int) -> None:
    lives(range(chunk, LIVES, CHUNKS))


@pytest.mark.soak
@pytest.mark.parametrize("chunk", range(CHUNKS))
def test_many_more_random_lives(chunk: int) -> None:
    lives(range(LIVES + chunk, 40 * LIVES, CHUNKS))


@pytest.mark.parametrize("chunk", range(CHUNKS))
def test_random_lives_with_batches(chunk: int) -> None:
    lives(range(chunk, LIVES // 2, CHUNKS), BatchedLife)
