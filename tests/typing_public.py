"""What type checkers make of the public API: checked by mypy --strict and pyright, never run."""

from __future__ import annotations

import asyncio
import concurrent.futures
from collections import deque
from collections.abc import Hashable
from datetime import datetime
from functools import partial
from typing import Any, assert_type

from async_task_manager import Chain, RateLimited, Task, TaskManager, current_task
from async_task_manager.headers import Quota, quotas, retry_after
from async_task_manager.queues import DeadLetter, Depth, Message, MessageQueue, open_queue
from async_task_manager.simulation import Job, Report, compare, generate, simulate
from async_task_manager.strategies import (
    BaseStrategy,
    BulkStrategy,
    ConcurrentLimitStrategy,
    CooldownStrategy,
    Feedback,
    FixedWindowStrategy,
    Hold,
    Limit,
    Order,
    PriorityQueueStrategy,
    Provider,
    ProviderRouterStrategy,
    RetryAt,
    RetryBudget,
    RetryStrategy,
    SlidingWindowStrategy,
    TimeBasedStrategy,
    TokenBucketStrategy,
    Usage,
    exponential,
    fixed,
)
from async_task_manager.task import Outcome
from async_task_manager.testing import check_strategy, run_virtual
from async_task_manager.worker import Worker, WorkerStats


async def number(of: str = "") -> int:
    return len(of)


async def results_keep_their_types() -> None:
    manager = TaskManager(ConcurrentLimitStrategy(1), poll_interval=0.1)
    task = manager.add_task(number)
    assert_type(task, Task[int])
    assert_type(await task, int)
    assert_type(await task.wait(), int)
    assert_type(task.result(), int)
    assert_type(task.exception(), BaseException | None)
    assert_type(manager.add_task(number("abc")), Task[int])
    assert_type(manager.add_task(lambda: number("abc")), Task[int])
    assert_type(manager.add_task(partial(number, "abc")), Task[int])
    assert_type(manager.add_task(asyncio.sleep(1, "slept")), Task[str])
    assert_type(manager.add_task(Task(number)), Task[int])
    assert_type(manager.add_task_threadsafe(number), concurrent.futures.Future[int])
    assert_type(task.cancel(), bool)
    assert_type(task.started_at, float | None)
    task.add_done_callback(lambda done: print(done.result() + 1))
    async with manager as same:
        assert_type(same, TaskManager)
    assert_type(manager.stats().queued, int)


async def ways_in_keep_types() -> None:
    manager = TaskManager(ConcurrentLimitStrategy(1), autostart=True, max_queued=5, history=3)

    @manager.wrap
    async def double(x: int, *, plus: str = "") -> float:
        return 2 * x + len(plus)

    assert_type(await double(1, plus="a"), float)
    await double("a")  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]

    @manager.wrap(metadata={"priority": "high"}, run_timeout=3)
    async def half(x: int) -> float:
        return x / 2

    assert_type(await half(1), float)
    assert_type(await manager.wrap(number, metadata=lambda of="": {"cost": len(of)})("a"), int)
    async with manager.turn(cost=1200, priority="high") as turn:
        assert_type(turn, Task[None])
    async for length in manager.map(number, ["a", "b"], ordered=True):
        assert_type(length, int)
    assert_type(manager.add_tasks([number, number], name="several"), list[Task[int]])
    assert_type(await manager.put(number, queue_timeout=3), Task[int])
    assert_type(manager.cancel(7), bool)
    status = manager.status(7)
    assert_type(status.attempt if status is not None else 0, int)
    assert_type(manager.queue_lengths().by_priority, dict[str, int])


async def questions_have_typed_answers(task: Task[int]) -> None:
    manager = TaskManager(ConcurrentLimitStrategy(1))
    assert_type(manager.explain(task).position, int | None)
    assert_type(str(manager.explain()), str)
    for cause in manager.explain().causes:
        assert_type(cause.reason.usage, Usage | None)
    assert_type(manager.eta(7, durations={"number": 2.5}).starts_at, float | None)
    assert_type(manager.eta(task, durations=lambda task: task.attempt + 0.5).ends_at, float | None)
    better = manager.what_if(lambda chain: setattr(chain["groq"], "max_requests", 60), task)
    assert_type(better.after.queue_ends_at, float | None)


def simulations_are_typed() -> None:
    chain = Chain(ConcurrentLimitStrategy(1))
    report = simulate(chain, generate(10, rate="5/second", duration="exp(2)", users=3))
    assert_type(report, Report)
    assert_type(report.waits.p95, float)
    assert_type(report.jain, float | None)
    assert_type(compare(report, simulate(chain.snapshot(), [Job(0.0, 1.0)])), str)


def takes_any_number(task: Task[int]) -> None: ...


def tasks_are_covariant(task: Task[bool]) -> None:
    takes_any_number(task)


def work_by_itself() -> None:
    assert_type(run_virtual(Task(number).run()), int)
    assert_type(current_task(), Task[Any] | None)


def strategies_compose() -> Chain:
    router = ProviderRouterStrategy(
        [Provider("a", limits=[SlidingWindowStrategy(30, 60, cost="tokens", default_cost=1)])]
    )
    assert_type(router["a"], Provider)
    return Chain(
        PriorityQueueStrategy(aging=60),
        TimeBasedStrategy(field=lambda task: task.metadata.get("at")),
        FixedWindowStrategy(14_400, "day", align="clock", timezone="America/Los_Angeles"),
        TokenBucketStrategy(2.5, 10, key=lambda task: task.metadata["user"]),
        router,
    )


def failures_are_typed(task: Task[int]) -> Chain:
    assert_type(task.errors, tuple[BaseException, ...])
    assert_type(task.rate_limited, int)
    assert_type(RateLimited("wait", retry_after=30).retry_after, float | datetime | None)
    RateLimited(retry_after="30")  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    task.settle({"tokens": 812})
    task.observe({"retry-after": "30"})
    assert_type(retry_after({"retry-after": "30"}), float | datetime | None)
    assert_type(quotas({}), list[Quota])
    assert_type(exponential(0.5, factor=2, jitter="equal")(3), float)
    fixed(1, jitter="some")  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    return Chain(
        RetryStrategy(3, backoff=lambda attempt: attempt / 2, retry_on=(OSError, ValueError)),
        RetryStrategy(backoff=fixed(1), retry_on=lambda error: bool(error.args)),
        RetryStrategy(budget=RetryBudget(0.1, 1), max_rate_limited=3, seed=1),
        CooldownStrategy(key="host", default_seconds=2),
    )


async def messages() -> None:
    async with open_queue("memory://") as queue:
        assert_type(queue, MessageQueue)
        assert_type(await queue.send([Message({"n": 1}, {"priority": "high"})]), list[str])
        batch = await queue.receive(10, 5.0)
        assert_type(batch, list[Message])
        assert_type(await queue.acknowledge(batch), list[Exception | None])
        assert_type(await queue.release(batch, [1.0], reason="why"), list[Exception | None])
        assert_type(await queue.dead_letters(), list[DeadLetter])
        assert_type(await queue.depth(), Depth)

        async def handler(message: Message) -> None:
            assert_type(message.receive_count, int)

        async def many(batch: list[Message]) -> list[None]:
            return [None] * len(batch)

        worker = Worker(queue, handler, ConcurrentLimitStrategy(5), max_held=100)
        Worker("sqlite:///tasks.db", BulkStrategy(many), ConcurrentLimitStrategy(5))
        assert_type(await worker.run(), None)
        assert_type(worker.stats(), WorkerStats)


class Custom(BaseStrategy):
    def __init__(self) -> None:
        self.queue: deque[Task] = deque()

    def add_task(self, task: Task) -> None:
        self.queue.append(task)

    def get_next_task(self) -> Task | None:
        return self.queue.popleft() if self.queue else None

    async def get_sleep_interval(self) -> float | None:
        return None


class CustomLimit(Limit):
    def ready_at(self, key: Hashable, cost: float, now: float) -> float:
        return now

    def acquire(self, key: Hashable, cost: float, now: float) -> float:
        return now

    def release(self, grant: float, outcome: Outcome, now: float) -> None:
        assert_type(outcome.started, bool)

    def usage(self, key: Hashable, now: float) -> Usage:
        return Usage(0, 1)


class CustomRest(Order, Hold, Feedback):
    def rank(self, task: Task, now: float) -> tuple[int, str]:
        return task.attempt, task.name

    def review(self, task: Task, outcome: Outcome, now: float) -> RetryAt | None:
        return RetryAt(now + 1) if outcome.kind == "failure" else None


check_strategy(Custom)
check_strategy(lambda: CustomLimit(key="user"), metadata=lambda i: {"user": i})
