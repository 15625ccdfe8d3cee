"""A large task, or one that needs much at once, is never starved by small ones.

Once nothing older waits, a task starts within a bound, whatever keeps coming: ``B``, where
``B`` is the longest time that a limit needs to open if nobody else is let in (the longest task for
slots, the window, the time to earn the cost in a bucket); with keys ``(k + 6) * B`` for ``k``
limits.
"""

from __future__ import annotations

import random
from heapq import heappop, heappush
from itertools import count
from math import inf
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from async_task_manager import Chain
from async_task_manager.strategies import (
    ConcurrentLimitStrategy,
    FixedWindowStrategy,
    Limit,
    Provider,
    ProviderRouterStrategy,
    SlidingWindowStrategy,
    TokenBucketStrategy,
    _dispatch,
)
from async_task_manager.task import Outcome, Task

LONGEST = 2.0
"""Seconds that the longest task runs."""


async def nothing() -> None: ...


class Flood:
    """Tasks that keep coming, and when each started."""

    def __init__(self, chain: Chain, seed: int) -> None:
        self.chain = chain
        self.rng = random.Random(seed)
        self.agenda: list[tuple[float, int, Any]] = []
        self.number = count()
        self.now = 0.0
        self.arrived: dict[Task[Any], float] = {}
        self.started: dict[Task[Any], float] = {}

    def at(self, instant: float, what: Any) -> None:
        heappush(self.agenda, (instant, next(self.number), what))

    def add(self, instant: float, **metadata: Any) -> None:
        task = Task(nothing, metadata)

        def arrive() -> None:
            self.chain.add(task, self.now)
            self.arrived[task] = self.now

        self.at(instant, arrive)

    def run(self) -> None:
        while True:
            wake = self.chain.next_wake(self.now)
            first = self.agenda[0][0] if self.agenda else inf
            if min(wake, first) == inf:
                break
            self.now = max(self.now, min(wake, first))
            while self.agenda and self.agenda[0][0] <= self.now:
                heappop(self.agenda)[2]()
            while (task := self.chain.pull(self.now)) is not None:
                self.chain.begun(task, self.now)
                self.started[task] = self.now
                self.at(self.now + self.rng.choice([0.25, 1, LONGEST]), self.end_of(task))
        assert self.started.keys() == self.arrived.keys()

    def end_of(self, task: Task[Any]) -> Any:
        return lambda: self.chain.finish(task, Outcome("success", 0.0, self.now), self.now)

    def waits(self) -> list[float]:
        """How long each task waited when nothing older waited any more."""
        found, oldest = [], 0.0
        for task, arrived in self.arrived.items():
            found.append(self.started[task] - max(arrived, oldest))
            oldest = max(oldest, self.started[task])
        return found


def limit(rng: random.Random, key: str | None) -> tuple[Limit, float]:
    """A limit for sizes up to 8, and the longest time that it needs to open for one."""
    kind = rng.randrange(4)
    options: dict[str, Any] = {"key": key, "cost": "size"}
    if kind == 0:
        return ConcurrentLimitStrategy(rng.choice([8, 9, 12]), **options), LONGEST
    if kind == 1:
        return SlidingWindowStrategy(rng.choice([8, 10]), 2.0, **options), 2.0
    if kind == 2:
        return FixedWindowStrategy(rng.choice([8, 10]), 2.0, **options), 2.0
    rate = rng.choice([4, 8])
    return TokenBucketStrategy(rate, 8, **options), 8 / rate


def flood(chain: Chain, seed: int) -> Flood:
    """Small tasks, more than fit, and now and then a large one."""
    world = Flood(chain, seed)
    rng = random.Random(seed)
    at = 0.0
    for _ in range(rng.choice([40, 120])):
        at += rng.choice([0, 0.0625, 0.125, 0.25])
        size = rng.choice([1, 1, 1, 2, 8])
        world.add(at, cost={"size": size}, user=rng.choice("ab"), model=rng.choice("xy"), host="h")
    return world


@settings(max_examples=150, deadline=None)
@given(seed=st.integers(0, 10**9), limits=st.integers(1, 3))
def test_without_keys_it_starts_as_soon_as_the_limits_can_open(seed: int, limits: int) -> None:
    rng = random.Random(seed)
    found = [limit(rng, None) for _ in range(limits)]
    world = flood(Chain(*(one for one, _ in found)), seed)
    world.run()
    assert max(world.waits()) <= max(opens for _, opens in found) + 1e-9


@settings(max_examples=150, deadline=None)
@given(seed=st.integers(0, 10**9), limits=st.integers(1, 4))
def test_with_keys_it_moves_between_them_only_so_often(seed: int, limits: int) -> None:
    rng = random.Random(seed)
    keys = ["user", "model", "host", None]
    found = [limit(rng, rng.choice(keys)) for _ in range(limits)]
    world = flood(Chain(*(one for one, _ in found)), seed)
    world.run()
    longest = max(opens for _, opens in found)
    assert max(world.waits()) <= (limits + _dispatch.PATIENCE + 2) * longest + 1e-9


@settings(max_examples=100, deadline=None)
@given(seed=st.integers(0, 10**9), providers=st.integers(1, 3))
def test_in_a_router_of_providers_with_one_limit_each(seed: int, providers: int) -> None:
    rng = random.Random(seed)
    found = [limit(rng, rng.choice(["model", None])) for _ in range(providers)]
    router = ProviderRouterStrategy(
        [Provider(f"P{i}", [one]) for i, (one, _) in enumerate(found)],
        policy=rng.choice(["ordered", "weighted", "least_loaded", "earliest"]),
    )
    world = flood(Chain(router), seed)
    world.run()
    assert max(world.waits()) <= max(opens for _, opens in found) + 1e-9


def contended() -> float:
    """A task that needs two keys, among tasks that need one of them each, and all the time: how
    long it waits.
    """
    chain = Chain(ConcurrentLimitStrategy(1, key="user"), ConcurrentLimitStrategy(1, key="model"))
    world = Flood(chain, 0)
    world.rng.choice = lambda seconds: seconds[-1]  # type: ignore[assignment,method-assign]  # all run as long
    for i in range(100):
        world.add(2.0 * i, user="a", model=f"m{i}")
        world.add(2.0 * i + 1, user=f"u{i}", model="x")
        world.add(2.0 * i, user="a", model=f"n{i}")
        world.add(2.0 * i + 1, user=f"v{i}", model="x")
    world.add(1.5, user="a", model="x")
    world.run()
    both = next(t for t in world.arrived if (t.metadata["user"], t.metadata["model"]) == ("a", "x"))
    return world.started[both] - world.arrived[both]


def test_one_that_needs_two_contended_keys(monkeypatch: pytest.MonkeyPatch) -> None:
    assert contended() <= (2 + _dispatch.PATIENCE + 2) * LONGEST
    monkeypatch.setattr(_dispatch, "PATIENCE", 10**9)
    assert contended() > 100  # without kept places it would wait as long as others come
