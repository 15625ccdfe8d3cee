"""Random lives of whole managers: retries, cooldowns, settling, headers, cancels, stops at once.

What the chain does instant by instant is compared with the oracle (test_chain_oracle.py). Here it
is what people see: every task ends exactly once, with the outcome of its last attempt; nothing runs
that should not; nothing is held in the end.
"""

from __future__ import annotations

import asyncio
import random
from dataclasses import dataclass, field
from typing import Any

import pytest

from async_task_manager import (
    Chain,
    NonRetryable,
    RateLimited,
    Task,
    TaskManager,
    TaskTimeout,
    current_task,
)
from async_task_manager.strategies import (
    BaseStrategy,
    CircuitBreakerStrategy,
    ConcurrentLimitStrategy,
    CooldownStrategy,
    FairShareStrategy,
    FixedWindowStrategy,
    Limit,
    PriorityQueueStrategy,
    Provider,
    ProviderRouterStrategy,
    RetryBudget,
    RetryStrategy,
    SlidingWindowStrategy,
    TokenBucketStrategy,
    exponential,
)
from async_task_manager.testing import run_virtual

MOST = 4
RATE_LIMITED = 3


@dataclass(eq=False)
class Job:
    """Work that does something else at each attempt, and remembers what it did."""

    dice: random.Random
    metadata: dict[str, Any]
    attempts: int = 0
    running: int = 0
    cancelled: bool = False
    """By somebody from outside."""
    outcomes: list[BaseException | str] = field(default_factory=list)
    task: Task[str] | None = None

    async def __call__(self) -> str:
        self.running += 1
        try:
            self.begin()
            await self.act()
        except BaseException as error:
            self.outcomes.append(error)
            raise
        finally:
            self.running -= 1
        self.outcomes.append("done")
        return "done"

    def begin(self) -> None:
        task = current_task()
        assert task is not None
        assert task is self.task
        assert not self.cancelled, "it runs although it was cancelled"
        assert self.running == 1, "it runs twice at once"
        self.attempts += 1
        assert task.attempt >= self.attempts
        assert len(task.errors) == len(self.outcomes)
        assert all(map(same, task.errors, self.outcomes))

    async def act(self) -> None:
        dice, task = self.dice, self.task
        assert task is not None
        await asyncio.sleep(dice.choice([0, 0.1, 0.5, 2]))
        if dice.random() < 0.3:
            actuals: list[Any] = [0, 3, {"tokens": 1}, {"tokens": 8}]
            task.settle(dice.choice(actuals))
        if dice.random() < 0.3:
            task.observe(
                {"x-ratelimit-remaining": str(dice.choice([0, 1, 5])), "x-ratelimit-reset": "1.5"}
            )
        try:
            await asyncio.sleep(dice.choice([0, 0.1, 1]))
        except asyncio.CancelledError:
            if dice.random() < 0.5:
                raise OSError("while it cleaned up") from None
            raise
        kind = dice.random()
        if kind < 0.3:
            raise OSError("again")
        if kind < 0.45:
            raise RateLimited(retry_after=dice.choice([None, 0, 0.5, 3]))
        if kind < 0.5:
            raise NonRetryable("never")
        if kind < 0.53:
            raise ValueError("not one to retry")


def same(told: BaseException | None, raised: BaseException | str | None) -> bool:
    """Whether the task tells what the work raised, or that its time was up."""
    if isinstance(told, TaskTimeout):
        return isinstance(raised, asyncio.CancelledError)
    return told is raised


def chain(dice: random.Random) -> tuple[Chain, list[Limit]]:
    limits: list[Limit] = [
        ConcurrentLimitStrategy(dice.choice([1, 2, 5]), key=dice.choice([None, "user"])),
        SlidingWindowStrategy(8, 2, key=dice.choice([None, "user"])),
        FixedWindowStrategy(20, 3, cost="tokens", default_cost=2),
        TokenBucketStrategy(5, 10, key="user", cost="tokens", default_cost=1),
        CooldownStrategy(key=dice.choice([None, "user"]), default_seconds=0.5),
        CircuitBreakerStrategy(min_calls=4, cooldown=2, key="user"),
    ]
    dice.shuffle(limits)
    outside = limits[: dice.randint(1, 4)]
    stages: list[BaseStrategy] = [*outside]
    rest = limits[len(outside) :]
    if dice.random() < 0.5:
        half = len(rest) // 2
        providers = [Provider("a", rest[:half]), Provider("b", rest[half:])]
        stages.append(ProviderRouterStrategy(providers))
    else:
        stages += rest
    stages.append(
        RetryStrategy(
            MOST,
            backoff=exponential(0.2, maximum=3),
            retry_on=OSError,
            budget=dice.choice([None, RetryBudget(1, 1), RetryBudget(0.2, 0.1)]),
            max_rate_limited=RATE_LIMITED,
            seed=dice.randrange(99),
        )
    )
    if dice.random() < 0.3:
        stages.append(FairShareStrategy(key="user", by="share", cost="tokens", default_cost=1))
    if dice.random() < 0.5:
        stages.append(PriorityQueueStrategy())
    dice.shuffle(stages)
    return Chain(*stages), limits


async def live(seed: int) -> None:
    dice = random.Random(seed)
    machine, limits = chain(dice)
    manager = TaskManager(machine)
    jobs: list[Job] = []
    expiring: set[Job] = set()
    await manager.idle()
    for _ in range(60):
        match dice.randrange(10):
            case 0 | 1 | 2 | 3:
                metadata = {"user": dice.choice("abc"), "priority": dice.randrange(3)}
                if dice.random() < 0.5:
                    metadata["cost"] = {"tokens": dice.randrange(6)}
                job = Job(random.Random(dice.random()), metadata)
                options: dict[str, Any] = {}
                if dice.random() < 0.2:
                    options = {dice.choice(["queue_timeout", "run_timeout"]): dice.choice([0.3, 2])}
                    expiring.add(job)
                job.task = manager.add_task(job, metadata, **options)
                jobs.append(job)
            case 4 | 5 if jobs:
                job = dice.choice(jobs)
                assert job.task is not None
                if job.task.cancel():
                    job.cancelled = True
            case 6:
                await manager.stop(grace=dice.choice([None, None, 0.2]))
                for job in jobs:
                    # Whatever `stop` had to cancel is over: it runs no more.
                    assert job.running == 0
                await manager.idle()
            case _:
                await asyncio.sleep(dice.choice([0, 0, 0.1, 0.7, 3]))
    closing = dice.random() < 0.3
    async with asyncio.timeout(3600):
        if closing:
            await manager.close(grace=dice.choice([None, 0.1]))
        else:
            await manager.join()
            await manager.stop()
    for job in jobs:
        judge(job, closing, job in expiring)
    assert machine.queued == machine.running == 0
    now = manager.time() + 1e6
    for limit in limits:
        for key in (None, "a", "b", "c"):
            assert limit.usage(key, now).used == 0, f"{limit!r} keeps permits"


def judge(job: Job, closing: bool, expiring: bool) -> None:
    """The task ended once, as its last attempt did, after as many attempts as it may have."""
    task = job.task
    assert task is not None
    for outcome in job.outcomes:
        if isinstance(outcome, AssertionError):
            raise outcome
    assert task.done()
    assert task.attempt >= job.attempts
    limited = sum(isinstance(error, RateLimited) for error in job.outcomes)
    assert limited <= RATE_LIMITED + 1
    assert len(job.outcomes) - limited <= MOST
    for error in task.errors:
        assert isinstance(error, OSError | RateLimited), "it must not be retried"
    last = job.outcomes[-1] if job.outcomes else None
    if task.state == "succeeded":
        assert last == task.result() == "done"
    elif task.state == "cancelled":
        assert job.cancelled or closing or isinstance(last, asyncio.CancelledError)
    elif task.state == "failed":
        assert same(task.exception(), last)
    else:
        assert task.state == "expired"
        assert isinstance(task.exception(), TimeoutError)
        assert expiring


@pytest.mark.parametrize("chunk", range(4))
def test_random_lives_of_a_manager(chunk: int) -> None:
    for seed in range(chunk, 200, 4):
        try:
            run_virtual(live(seed))
        except Exception as error:
            raise AssertionError(f"life {seed}: {error!r}") from error
