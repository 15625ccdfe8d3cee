"""The worker: what it takes, in which order, and what becomes of each message."""

from __future__ import annotations

import asyncio
import threading
from collections import Counter
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import replace
from functools import partial
from itertools import product
from math import inf
from pathlib import Path
from typing import Any

import pytest
from sqs_server import SqsServer

from async_task_manager import Task, current_task
from async_task_manager.errors import (
    InvalidState,
    InvalidType,
    InvalidValue,
    NonRetryable,
    RateLimited,
    StoreCorrupt,
    StoreError,
    StrategyError,
)
from async_task_manager.queues import Depth, Message, MessageQueue
from async_task_manager.queues.memory import MemoryQueue
from async_task_manager.queues.sqlite import SqliteQueue
from async_task_manager.queues.sqs import SqsQueue
from async_task_manager.strategies import (
    BaseStrategy,
    BulkStrategy,
    Chain,
    CircuitBreakerStrategy,
    ConcurrentLimitStrategy,
    DelayedStrategy,
    Hold,
    PriorityQueueStrategy,
    RetryStrategy,
    SlidingWindowStrategy,
    fixed,
)
from async_task_manager.worker import Worker, WorkerStats

EMPTY = Depth(0, 0, 0, 0)


class Recording(MemoryQueue):
    """A queue that remembers how it was called."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self.calls: list[tuple[str, int]] = []
        self.most = 0

    async def receive(self, *args: Any, **options: Any) -> list[Message]:
        batch = await super().receive(*args, **options)
        self.calls.append(("receive", len(batch)))
        self.most = max(self.most, (await self.depth()).in_flight)
        return batch

    async def acknowledge(self, batch: Sequence[Message]) -> list[Exception | None]:
        self.calls.append(("acknowledge", len(batch)))
        return await super().acknowledge(batch)

    async def extend(self, batch: Sequence[Message], seconds: float) -> list[Exception | None]:
        self.calls.append(("extend", len(batch)))
        return await super().extend(batch, seconds)

    async def release(self, batch: Sequence[Message], *args: Any, **kwargs: Any) -> Any:
        self.calls.append(("release", len(batch)))
        return await super().release(batch, *args, **kwargs)

    def count(self, what: str) -> int:
        return sum(call == what for call, _ in self.calls)


def at_once(n: int) -> ConcurrentLimitStrategy:
    return ConcurrentLimitStrategy(n)


async def sent(queue: MessageQueue, *bodies: Any, **attributes: Any) -> MessageQueue:
    await queue.send([Message(body, attributes) for body in bodies])
    return queue


@asynccontextmanager
async def working(worker: Worker) -> AsyncIterator[asyncio.Task[None]]:
    """A worker that runs, and is stopped."""
    run = asyncio.create_task(worker.run())
    try:
        yield run
    finally:
        worker.stop()
        await asyncio.wait([run])
    await run


def now() -> float:
    return asyncio.get_running_loop().time()


async def quietly(message: Message) -> None:
    pass


# ---- what is handled ----------------------------------------------------------------------------


async def test_each_message_is_handled_and_acknowledged() -> None:
    seen: list[Message] = []

    async def handler(message: Message) -> str:
        task = current_task()
        assert task is not None and task.metadata == message.attributes
        seen.append(message)
        return "a result that nobody needs"

    queue = await sent(Recording(), *range(100), user_id="ann")
    worker = Worker(queue, handler, at_once(5))
    await worker.run(until_empty=True)
    assert Counter(message.body for message in seen) == Counter(range(100))
    assert {message.receive_count for message in seen} == {1}
    assert all(message.id and message.attributes == {"user_id": "ann"} for message in seen)
    assert await queue.depth() == EMPTY
    assert worker.stats() == WorkerStats(received=100, acknowledged=100)


async def test_what_comes_later_is_handled_soon() -> None:
    queue = MemoryQueue()
    seen: list[tuple[Any, float]] = []

    async def handler(message: Message) -> None:
        seen.append((message.body, now()))

    async with working(Worker(queue, handler, at_once(5))):
        for n in range(3):
            await asyncio.sleep(100)
            await sent(queue, n)
    assert seen == [(0, 100), (1, 200), (2, 300)]


async def test_acknowledgements_go_in_batches() -> None:
    async def handler(message: Message) -> None:
        await asyncio.sleep(1)

    queue = Recording()
    await sent(queue, *range(2000))
    await Worker(queue, handler, at_once(100)).run(until_empty=True)
    assert queue.count("acknowledge") < 60
    assert queue.count("receive") < 120


async def test_order_reaches_over_the_whole_queue() -> None:
    """An urgent message is not stuck behind what was received ahead of it."""
    order: list[Any] = []

    async def handler(message: Message) -> None:
        order.append(message.body)
        await asyncio.sleep(1)

    queue = await sent(MemoryQueue(), *range(1000))
    chain = Chain(PriorityQueueStrategy(), at_once(2))
    async with working(Worker(queue, handler, chain)):
        await asyncio.sleep(10.5)
        begun = len(order)
        await sent(queue, "urgent", priority="high")
        await asyncio.sleep(3)
    assert "urgent" in order[begun : begun + 6]
    assert [body for body in order if body != "urgent"] == list(range(len(order) - 1))


async def test_limits_hold_and_are_used() -> None:
    starts: list[float] = []

    async def handler(message: Message) -> None:
        starts.append(now())
        await asyncio.sleep(30)

    queue = await sent(MemoryQueue(), *range(500))
    began = now()
    worker = Worker(queue, handler, SlidingWindowStrategy(100, 10))
    async with working(worker):
        await asyncio.sleep(45)
        assert len(starts) == 500
        assert max(starts) - began < 42
    assert await queue.depth() == EMPTY


# ---- how much is held ---------------------------------------------------------------------------


async def test_no_more_is_held_than_the_chain_can_use_soon() -> None:
    async def handler(message: Message) -> None:
        await asyncio.sleep(60)

    queue = Recording()
    await sent(queue, *range(1000))
    worker = Worker(queue, handler, at_once(8))
    async with working(worker):
        for _ in range(300):
            await asyncio.sleep(1)
            assert worker.stats().waiting <= 8
        assert worker.stats().acknowledged >= 32
    assert queue.most <= 20


async def test_what_is_held_is_bounded_by_count() -> None:
    async def handler(message: Message) -> None:
        await asyncio.sleep(5)

    queue = Recording()
    await sent(queue, *range(300))
    await Worker(queue, handler, at_once(inf_slots), max_held=20).run(until_empty=True)
    assert queue.most == 20


inf_slots = 10**6


async def test_what_is_held_is_bounded_by_bytes() -> None:
    async def handler(message: Message) -> None:
        await asyncio.sleep(5)

    queue = Recording()
    await sent(queue, *["x" * 1000] * 100)
    worker = Worker(queue, handler, at_once(inf_slots), max_held_bytes=10_000)
    await worker.run(until_empty=True)
    assert 8 <= queue.most <= 12
    assert worker.stats().acknowledged == 100


# ---- what fails ---------------------------------------------------------------------------------


async def test_a_failure_comes_again_after_a_backoff_and_is_given_up_with_its_reason() -> None:
    tried: list[tuple[int, float]] = []

    async def handler(message: Message) -> None:
        tried.append((message.receive_count, now()))
        raise ValueError(f"attempt {message.receive_count}")

    queue = await sent(MemoryQueue(max_receives=3), {"bad": 1})
    worker = Worker(queue, handler, at_once(5), backoff=lambda n: 10 * n)
    async with working(worker):
        await asyncio.sleep(100)
    assert [count for count, _ in tried] == [1, 2, 3]
    assert [round(at) for _, at in tried] == [0, 10, 30]
    (letter,) = await queue.dead_letters()
    assert letter.reason == "ValueError: attempt 3"
    assert worker.stats().released == 3


async def test_what_need_not_be_tried_again_is_given_up_at_once() -> None:
    class Gone(NonRetryable):
        pass

    async def handler(message: Message) -> None:
        raise Gone("no such user")

    queue = await sent(MemoryQueue(), 1)
    worker = Worker(queue, handler, at_once(5))
    await worker.run(until_empty=True)
    (letter,) = await queue.dead_letters()
    assert (letter.receive_count, letter.reason) == (1, "Gone: no such user")
    assert worker.stats().dead == 1


async def test_rate_limited_it_comes_again_when_told_and_uncounted() -> None:
    tried: list[tuple[int, float]] = []

    async def handler(message: Message) -> None:
        tried.append((message.receive_count, now()))
        if len(tried) < 10:
            raise RateLimited(retry_after=60)

    queue = await sent(MemoryQueue(max_receives=2), 1)
    async with working(Worker(queue, handler, at_once(5))):
        await asyncio.sleep(1000)
    assert {count for count, _ in tried} == {1}
    assert len(tried) == 10
    assert await queue.depth() == EMPTY
    assert tried[-1][1] >= 540


async def test_retries_of_the_chain_come_first() -> None:
    attempts: list[int] = []

    async def handler(message: Message) -> None:
        attempts.append(message.receive_count)
        if len(attempts) < 4:
            raise ValueError

    queue = await sent(MemoryQueue(), 1)
    chain = Chain(RetryStrategy(3, backoff=fixed(1)), at_once(1))
    async with working(Worker(queue, handler, chain, backoff=fixed(1))):
        await asyncio.sleep(60)
    assert attempts == [1, 1, 1, 2]
    assert await queue.depth() == EMPTY


async def test_what_can_never_start_is_given_up_with_the_reason() -> None:
    queue = MemoryQueue()
    await queue.send(
        [Message(1, {"cost": 9}), Message(2, {"cost": "much"}), Message(3, {"cost": 1})]
    )
    await Worker(queue, quietly, ConcurrentLimitStrategy(5, cost="slots")).run(until_empty=True)
    reasons = [letter.reason for letter in await queue.dead_letters()]
    assert reasons[0].startswith("TaskTooLarge: ")
    assert reasons[1].startswith("InvalidType: ")
    assert await queue.depth() == Depth(0, 0, 0, 2)


async def test_what_a_breaker_rejects_comes_again_uncounted() -> None:
    counts: Counter[int] = Counter()

    async def handler(message: Message) -> None:
        counts[message.receive_count] += 1
        if now() < 50:
            raise ConnectionError

    queue = await sent(MemoryQueue(max_receives=9), *range(20))
    breaker = CircuitBreakerStrategy(min_calls=3, cooldown=60, on_open="reject")
    async with working(Worker(queue, handler, Chain(breaker, at_once(1)), backoff=fixed(5))):
        await asyncio.sleep(600)
    assert await queue.depth() == EMPTY
    assert set(counts) <= {1, 2, 3}


async def test_what_came_too_late_for_its_hold_is_given_up() -> None:
    class Until(Hold):
        def not_after(self, task: Task[Any], now: float) -> float:
            return 5.0 if task.metadata.get("brief") else inf

    async def handler(message: Message) -> None:
        await asyncio.sleep(10)

    queue = await sent(MemoryQueue(), 1)
    await sent(queue, 2, brief=True)
    async with working(Worker(queue, handler, Chain(Until(), at_once(1)))):
        await asyncio.sleep(30)
    (letter,) = await queue.dead_letters()
    assert letter.body == "2" and letter.reason.startswith("QueueTimeout")


@pytest.mark.parametrize("kind", [OSError, KeyError, "unprintable", "no text", BaseExceptionGroup])
async def test_errors_of_any_kind_are_told(kind: Any) -> None:
    class Unprintable(Exception):
        def __str__(self) -> str:
            raise ZeroDivisionError

    errors: dict[Any, tuple[BaseException, str]] = {
        OSError: (OSError("x" * 5000), "OSError: xxx"),
        KeyError: (KeyError(), "KeyError"),
        "unprintable": (Unprintable(), "Unprintable"),
        "no text": (OSError("no file \udcff"), "OSError: no file \\udcff"),
        BaseExceptionGroup: (
            BaseExceptionGroup("g", [GeneratorExit()]),
            "BaseExceptionGroup: g (1 sub-exception)",
        ),
    }
    error, told = errors[kind]

    async def handler(message: Message) -> None:
        raise error

    queue = await sent(MemoryQueue(max_receives=1), 1)
    await Worker(queue, handler, at_once(1)).run(until_empty=True)
    (letter,) = await queue.dead_letters()
    assert letter.reason.startswith(told) and len(letter.reason) <= 1000


async def test_a_queue_that_was_closed_ends_the_worker(caplog: pytest.LogCaptureFixture) -> None:
    async def handler(message: Message) -> None:
        await asyncio.sleep(5)

    queue = await sent(MemoryQueue(), 1)
    run = asyncio.create_task(Worker(queue, handler, at_once(1)).run())
    await asyncio.sleep(2)
    await queue.close()
    with pytest.raises(InvalidState, match="was closed"):
        await run
    assert "could not acknowledge 1 messages" in caplog.text
    assert now() < 30


@pytest.mark.parametrize("answer", [-1, "soon", ZeroDivisionError()])
async def test_a_backoff_that_fails_keeps_no_message(
    answer: Any, caplog: pytest.LogCaptureFixture
) -> None:
    def backoff(n: int) -> float:
        if isinstance(answer, Exception):
            raise answer
        return answer  # type: ignore[no-any-return]

    async def handler(message: Message) -> None:
        if message.receive_count == 1:
            raise ValueError

    queue = await sent(MemoryQueue(), 1)
    async with working(Worker(queue, handler, at_once(1), backoff=backoff)):
        await asyncio.sleep(5)
    assert await queue.depth() == EMPTY
    assert "the backoff" in caplog.text


async def test_a_handler_that_cancels_itself_has_failed() -> None:
    async def handler(message: Message) -> None:
        raise asyncio.CancelledError

    queue = await sent(MemoryQueue(max_receives=1), 1)
    await Worker(queue, handler, at_once(1)).run(until_empty=True)
    assert [letter.reason for letter in await queue.dead_letters()] == ["cancelled"]


# ---- leases -------------------------------------------------------------------------------------


async def test_leases_are_renewed_while_messages_wait_and_run() -> None:
    counts: Counter[Any] = Counter()

    async def handler(message: Message) -> None:
        counts[message.body] += 1
        await asyncio.sleep(100)

    queue = Recording(visibility_timeout=30)
    await sent(queue, *range(10))
    await Worker(queue, handler, Chain(DelayedStrategy(200), at_once(1))).run(until_empty=True)
    assert counts == Counter(range(10))
    assert queue.count("extend") > 100


async def test_who_loses_a_lease_stops_and_acknowledges_nothing(
    caplog: pytest.LogCaptureFixture,
) -> None:
    began: list[int] = []
    ended: list[int] = []

    async def handler(message: Message) -> None:
        began.append(message.receive_count)
        if len(began) == 1:
            assert await queue.release([message], 60) == [None]  # somebody else takes it
        await asyncio.sleep(50)
        ended.append(message.receive_count)

    queue = await sent(MemoryQueue(visibility_timeout=30), 1)
    worker = Worker(queue, handler, at_once(1))
    async with working(worker):
        await asyncio.sleep(15)
        assert worker.stats().lost == 1 and worker.stats().held == 0
        assert (await queue.depth()).delayed == 1
        await asyncio.sleep(200)
    assert (began, ended) == ([1, 2], [2])
    assert "stopping its handler" in caplog.text


async def test_a_lease_that_is_lost_before_work_begins() -> None:
    began: list[int] = []

    async def handler(message: Message) -> None:
        began.append(message.receive_count)
        if message.receive_count == 1:
            raise ValueError

    class Stolen(MemoryQueue):
        async def begin(self, batch: Sequence[Message]) -> list[Exception | None]:
            if now() < 30:
                await self.release(batch, 60, counted=False)
            return await super().begin(batch)

    queue = await sent(Stolen(), 1)
    worker = Worker(queue, handler, at_once(1), backoff=fixed(5))
    async with working(worker):
        await asyncio.sleep(200)
    assert began == [1, 2]
    assert worker.stats().lost == 1
    assert await queue.depth() == EMPTY


async def test_a_begin_that_cannot_be_told_holds_nothing_up(
    caplog: pytest.LogCaptureFixture,
) -> None:
    class Deaf(MemoryQueue):
        async def begin(self, batch: Sequence[Message]) -> list[Exception | None]:
            raise StoreError("out of reach")

    async def handler(message: Message) -> None:
        if message.receive_count == 1:
            raise ValueError

    queue = await sent(Deaf(), 1)
    async with working(Worker(queue, handler, at_once(1), backoff=fixed(5))):
        await asyncio.sleep(20)
    assert await queue.depth() == EMPTY
    assert "could not say that 1 messages begin: out of reach" in caplog.text


async def test_a_failure_after_a_lost_lease_is_no_news(caplog: pytest.LogCaptureFixture) -> None:
    async def handler(message: Message) -> None:
        if message.receive_count == 1:
            await queue.release([message])
            try:
                await asyncio.sleep(50)
            except asyncio.CancelledError:
                raise ValueError("while it was stopped") from None

    queue = await sent(MemoryQueue(), 1)
    async with working(Worker(queue, handler, at_once(1))):
        await asyncio.sleep(60)
    assert await queue.depth() == EMPTY
    assert "nobody waited" not in caplog.text


async def test_what_comes_again_while_it_is_held_runs_once_with_the_newest_receipt() -> None:
    began: list[Message] = []

    async def handler(message: Message) -> None:
        began.append(message)
        await queue.extend([message], 0)  # as if the lease had run out
        await asyncio.sleep(5)

    queue = await sent(MemoryQueue(), 1, 2)
    worker = Worker(queue, handler, at_once(5))
    async with working(worker):
        await asyncio.sleep(30)
    assert sorted(message.body for message in began) == [1, 2]
    assert worker.stats().acknowledged == 2
    assert await queue.depth() == EMPTY


class Failing(Recording):
    """A queue that can't be reached for a while."""

    def __init__(self, until: float = 0.0, **options: Any) -> None:
        super().__init__(**options)
        self.until = until
        self.what = {"receive", "acknowledge", "extend", "release"}
        self.error: Exception = StoreError("out of reach")

    def check(self, what: str) -> None:
        if what in self.what and now() < self.until:
            raise self.error

    async def receive(self, *args: Any, **options: Any) -> list[Message]:
        self.check("receive")
        return await super().receive(*args, **options)

    async def acknowledge(self, batch: Sequence[Message]) -> list[Exception | None]:
        self.check("acknowledge")
        return await super().acknowledge(batch)

    async def extend(self, batch: Sequence[Message], seconds: float) -> list[Exception | None]:
        self.check("extend")
        return await super().extend(batch, seconds)

    async def release(self, batch: Sequence[Message], *args: Any, **kwargs: Any) -> Any:
        self.check("release")
        return await super().release(batch, *args, **kwargs)


async def test_a_queue_out_of_reach_for_a_while_costs_nothing(
    caplog: pytest.LogCaptureFixture,
) -> None:
    queue = Failing(until=20)
    queue.what.remove("receive")
    await sent(queue, *range(5))
    worker = Worker(queue, quietly, at_once(5))
    async with working(worker):
        await asyncio.sleep(40)
    assert worker.stats().acknowledged == 5
    assert await queue.depth() == EMPTY
    assert "trying again" in caplog.text


async def test_a_lease_that_cannot_be_renewed_in_time_is_lost() -> None:
    ran: list[float] = []

    async def handler(message: Message) -> None:
        began = now()
        try:
            await asyncio.sleep(100)
        finally:
            ran.append(now() - began)

    queue = Failing(until=500)
    queue.what = {"extend"}
    await sent(queue, 1)
    worker = Worker(queue, handler, at_once(5), max_held=1)  # it can't receive it again itself
    async with working(worker):
        await asyncio.sleep(35)
        assert ran and 30 <= ran[0] <= 31
        assert worker.stats().lost == 1
    assert await queue.acknowledge(await queue.receive()) == [None]


async def test_receiving_goes_on_once_it_can(caplog: pytest.LogCaptureFixture) -> None:
    queue = Failing(until=20)
    await sent(queue, 1)
    async with working(Worker(queue, quietly, at_once(5))):
        await asyncio.sleep(60)
    assert await queue.depth() == EMPTY
    assert caplog.text.count("cannot receive") < 10


async def test_a_damaged_file_ends_the_worker() -> None:
    queue = Failing(until=20)
    queue.error = StoreCorrupt("queue.db", "a page is torn")
    with pytest.raises(StoreCorrupt, match="a page is torn"):
        await Worker(queue, quietly, at_once(5)).run()


async def test_what_cannot_be_told_the_queue_for_long_comes_again() -> None:
    queue = Failing(until=100)
    queue.what = {"acknowledge", "extend"}
    await sent(queue, 1)
    worker = Worker(queue, quietly, at_once(5))
    async with working(worker):
        await asyncio.sleep(28)
    assert worker.stats().lost == 1
    await asyncio.sleep(100)
    assert (await queue.receive())[0].receive_count == 2


# ---- handlers of other kinds --------------------------------------------------------------------


async def test_plain_functions_run_in_threads_so_many_at_once() -> None:
    lock = threading.Lock()
    at_work = most = 0
    seen: list[Any] = []

    def handler(message: Message) -> None:
        nonlocal at_work, most
        task = current_task()
        assert task is not None and task.metadata == {"user_id": "ann"}
        assert threading.current_thread() is not threading.main_thread()
        with lock:
            at_work += 1
            most = max(most, at_work)
        barrier.wait(10)
        with lock:
            at_work -= 1
            seen.append(message.body)

    barrier = threading.Barrier(3)
    queue = await sent(MemoryQueue(), *range(30), user_id="ann")
    worker = Worker(queue, handler, at_once(100), max_threads=3)
    await worker.run(until_empty=True)
    assert sorted(seen) == list(range(30))
    assert most == 3
    assert worker.in_threads == 0


@pytest.mark.parametrize(
    ("error", "told"),
    [
        (NonRetryable("in a thread"), "NonRetryable: in a thread"),
        (StopIteration(), "RuntimeError: the handler raised StopIteration"),
    ],
)
async def test_a_failure_in_a_thread_is_a_failure(error: Exception, told: str) -> None:
    def handler(message: Message) -> None:
        raise error

    queue = await sent(MemoryQueue(max_receives=1), 1)
    await Worker(queue, handler, at_once(1)).run(until_empty=True)
    assert [letter.reason for letter in await queue.dead_letters()] == [told]


async def test_async_callables_of_any_kind() -> None:
    seen: list[str] = []

    class Object:
        async def __call__(self, message: Message) -> None:
            assert threading.current_thread() is threading.main_thread()
            seen.append("object")

        async def method(self, name: str, message: Message) -> None:
            seen.append(name)

    async def later(message: Message) -> None:
        seen.append("awaitable")

    handlers: list[Callable[[Message], Any]] = [
        Object(),
        partial(Object().method, "partial"),
        lambda message: later(message),  # noqa: PLW0108  # called in a thread, awaited here
    ]
    for handler in handlers:
        await Worker(await sent(MemoryQueue(), 1), handler, at_once(1)).run(until_empty=True)
    assert seen == ["object", "partial", "awaitable"]


async def test_a_batch_handler_fails_messages_one_by_one() -> None:
    batches: list[list[Any]] = []

    async def handler(messages: list[Message]) -> list[Any]:
        batches.append([message.body for message in messages])
        assert all(message.receive_count for message in messages)
        await asyncio.sleep(1)
        errors: dict[Any, Exception] = {7: NonRetryable("seven"), 13: ValueError("once")}
        return [
            errors.get(m.body) if m.receive_count == 1 or m.body == 7 else "done" for m in messages
        ]

    queue = await sent(MemoryQueue(), *range(100))
    worker = Worker(queue, BulkStrategy(handler, max_size=25), at_once(2), backoff=fixed(5))
    async with working(worker):
        await asyncio.sleep(60)
    assert [len(batch) for batch in batches] == [25, 25, 25, 25, 1]
    assert batches[-1] == [13]
    (letter,) = await queue.dead_letters()
    assert (letter.body, letter.reason) == ("7", "NonRetryable: seven")
    assert await queue.depth() == Depth(0, 0, 0, 1)
    stats = worker.stats()
    assert (stats.acknowledged, stats.released, stats.dead) == (99, 1, 1)


async def test_a_batch_that_raises_comes_again_as_a_whole() -> None:
    counts: Counter[int] = Counter()

    async def handler(messages: list[Message]) -> list[None]:
        counts.update(message.receive_count for message in messages)
        if counts[1] <= 10 and not counts[2]:
            raise ConnectionError
        return [None] * len(messages)

    queue = await sent(MemoryQueue(), *range(10))
    worker = Worker(queue, BulkStrategy(handler, max_size=10), at_once(2), backoff=fixed(1))
    async with working(worker):
        await asyncio.sleep(30)
    assert counts == {1: 10, 2: 10}
    assert await queue.depth() == EMPTY


async def test_what_was_collected_goes_back_at_the_end() -> None:
    async def handler(messages: list[Message]) -> list[None]:
        raise AssertionError

    queue = await sent(MemoryQueue(), *range(10))
    bulk = BulkStrategy(handler, max_size=100, max_wait=60)
    worker = Worker(queue, bulk, at_once(2))
    run = asyncio.create_task(worker.run())
    await asyncio.sleep(5)
    run.cancel()
    await asyncio.wait([run])
    assert {m.receive_count for m in await queue.receive(100)} == {1}
    assert worker.stats().returned == 10


# ---- the end ------------------------------------------------------------------------------------


async def test_stopped_it_finishes_what_runs_and_gives_the_rest_back_at_once() -> None:
    ended: list[float] = []

    async def handler(message: Message) -> None:
        await asyncio.sleep(10)
        ended.append(now())

    queue = await sent(MemoryQueue(), *range(100))
    worker = Worker(queue, handler, Chain(at_once(3)))
    run = asyncio.create_task(worker.run())
    await asyncio.sleep(15)
    worker.stop()
    await asyncio.sleep(0.1)
    assert (await queue.depth()).in_flight == 3  # what waited can be received by others
    await run
    assert ended == [10, 10, 10, 20, 20, 20]
    assert await queue.depth() == Depth(94, 0, 0, 0)
    assert {m.receive_count for m in await queue.receive(100)} == {1}


async def test_what_runs_too_long_is_cancelled_and_given_back() -> None:
    async def handler(message: Message) -> None:
        await asyncio.sleep(1000)

    queue = await sent(MemoryQueue(), 1)
    worker = Worker(queue, handler, at_once(3), grace=20)
    run = asyncio.create_task(worker.run())
    await asyncio.sleep(5)
    worker.stop()
    await run
    assert now() == pytest.approx(25, abs=1)
    (message,) = await queue.receive()
    assert message.receive_count == 2  # it had begun


async def test_a_second_stop_waits_for_nothing() -> None:
    async def handler(message: Message) -> None:
        await asyncio.sleep(1000)

    queue = await sent(MemoryQueue(), *range(5))
    worker = Worker(queue, handler, at_once(3), grace=500)
    run = asyncio.create_task(worker.run())
    await asyncio.sleep(5)
    worker.stop()
    await asyncio.sleep(5)
    assert not run.done()
    worker.stop()
    await run
    assert now() < 11
    assert (await queue.depth()).ready == 5


async def test_cancelled_it_gives_everything_back() -> None:
    async def handler(message: Message) -> None:
        await asyncio.sleep(1000)

    queue = await sent(MemoryQueue(), *range(5))
    run = asyncio.create_task(Worker(queue, handler, at_once(3)).run())
    await asyncio.sleep(5)
    run.cancel()
    await asyncio.wait([run])
    assert run.cancelled()
    assert now() < 6
    assert (await queue.depth()).ready == 5


@pytest.mark.parametrize("how", ["once", "again and again", "all tasks", "stopped before"])
async def test_cancelled_at_any_step_it_gives_everything_back(how: str) -> None:
    async def handler(message: Message) -> None:
        try:
            await asyncio.sleep(10)
        finally:
            await asyncio.sleep(0)

    # When it begins, while it works, when handlers end, and when that is told.
    for instant, steps in product((0, 5, 10, 10.02), range(24)):
        queue = await sent(MemoryQueue(), *range(5))
        worker = Worker(queue, handler, at_once(2))
        others = asyncio.all_tasks()
        run = asyncio.create_task(worker.run())
        await asyncio.sleep(instant)
        if how == "stopped before":
            worker.stop()
        for _ in range(steps):
            await asyncio.sleep(0)
        if how == "all tasks":  # as `asyncio.run` does
            for task in asyncio.all_tasks() - others:
                task.cancel()
        run.cancel()
        if how == "again and again":
            while not run.done():
                await asyncio.sleep(0.001)
                run.cancel()
        await asyncio.wait([run], timeout=1)
        assert run.cancelled()
        await asyncio.sleep(0)
        assert asyncio.all_tasks() == others
        acknowledged = worker.stats().acknowledged
        assert await queue.depth() == Depth(5 - acknowledged, 0, 0, 0)
        assert acknowledged == 2 or instant < 10.02


async def test_a_strategy_that_raises_ends_the_worker_and_loses_nothing() -> None:
    class Broken(BaseStrategy):
        def add_task(self, task: Task[Any]) -> None:
            pass

        def get_next_task(self) -> Task[Any] | None:
            raise ZeroDivisionError

        async def get_sleep_interval(self) -> float | None:
            return 0

    queue = await sent(MemoryQueue(), *range(5))
    with pytest.raises(StrategyError, match="Broken"):
        await Worker(queue, quietly, Broken()).run()
    assert {m.receive_count for m in await queue.receive(100)} == {1}
    assert (await queue.depth()).in_flight == 5


async def test_a_handler_that_cannot_be_stopped_is_left_behind(
    caplog: pytest.LogCaptureFixture,
) -> None:
    free = asyncio.Event()

    async def handler(message: Message) -> None:
        while not free.is_set():
            try:
                await free.wait()
            except asyncio.CancelledError:
                pass

    queue = await sent(MemoryQueue(), 1)
    worker = Worker(queue, handler, at_once(3), grace=1)
    run = asyncio.create_task(worker.run())
    await asyncio.sleep(5)
    worker.stop()
    await run
    assert "can't be stopped" in caplog.text
    assert (await queue.depth()).in_flight == 1  # until its lease runs out
    free.set()
    await asyncio.sleep(1)


@pytest.mark.real_time
async def test_a_thread_that_cannot_be_stopped_keeps_its_lease() -> None:
    free = threading.Event()

    def handler(message: Message) -> None:
        free.wait(20)

    queue = await sent(MemoryQueue(), 1)
    worker = Worker(queue, handler, at_once(3), grace=0.05)
    run = asyncio.create_task(worker.run())
    while not worker.in_threads:
        await asyncio.sleep(0.01)
    worker.stop()
    await run
    assert worker.in_threads == 1
    assert await queue.depth() == Depth(0, 0, 1, 0)
    free.set()


async def test_it_can_be_changed_before_it_runs(tmp_path: Path) -> None:
    at_work: list[int] = []

    def handler(message: Message) -> None:
        at_work.append(worker.in_threads)

    url = f"sqlite:///{tmp_path}/queue.db"
    worker = Worker("memory://", handler, at_once(5))
    worker.configure(queue=url, max_concurrent=1, max_threads=3, grace=1)
    await sent(worker.queue, *range(20))
    await worker.run(until_empty=True)
    assert at_work == [1] * 20
    with pytest.raises(InvalidValue, match="max_threads"):
        worker.configure(max_threads=0)
    with pytest.raises(InvalidValue, match="grace"):
        worker.configure(grace=-1)


async def test_it_works_with_the_url_of_a_queue(tmp_path: Path) -> None:
    from async_task_manager.queues import open_queue

    url = f"sqlite:///{tmp_path}/queue.db"
    async with open_queue(url) as queue:
        await sent(queue, *range(10))
        worker = Worker(url, quietly, at_once(3))
        await worker.run(until_empty=True)
        assert await queue.depth() == EMPTY
    with pytest.raises(InvalidState, match="was closed"):
        await worker.queue.depth()
    with pytest.raises(InvalidState, match="runs once"):
        await worker.run()
    assert repr(worker).startswith("<Worker of SqliteQueue(")


# ---- groups -------------------------------------------------------------------------------------


@pytest.mark.real_time
@pytest.mark.parametrize("ends", ["well", "badly", "dead"])
async def test_messages_of_a_group_follow_each_other(
    ends: str, sqs: SqsServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """SQS gives out several of a group at once: still one by one, and none before its turn."""

    class Eager(SqsQueue):
        async def receive(
            self, max_messages: int = 10, wait_seconds: float = 0.0, *, ahead: bool = False
        ) -> list[Message]:
            return await super().receive(10, wait_seconds, ahead=ahead)

    # A long poll of moto's doesn't see that a group was freed meanwhile.
    monkeypatch.setattr("async_task_manager.worker._worker.WAIT", 0.2)
    order: list[tuple[str, int]] = []
    at_work: Counter[str] = Counter()

    async def handler(message: Message) -> None:
        group = message.attributes["group_id"]
        at_work[group] += 1
        assert at_work[group] == 1
        await asyncio.sleep(0.02)
        at_work[group] -= 1
        order.append((group, message.body))
        if message.body == 1 and message.receive_count == 1:
            if ends == "badly":
                raise ValueError
            if ends == "dead":
                raise NonRetryable

    async with Eager(sqs.make(fifo=True, receives=9), visibility_timeout=10) as queue:
        await queue.send([Message(n, {"group_id": g}) for n in range(5) for g in "ab"])
        worker = Worker(queue, handler, at_once(100), backoff=fixed(1))
        async with working(worker):
            async with asyncio.timeout(20):
                while worker.stats().acknowledged + worker.stats().dead < 10:
                    await asyncio.sleep(0.05)
        for group in "ab":
            mine = [n for g, n in order if g == group]
            assert mine == ([0, 1, 1, 2, 3, 4] if ends == "badly" else [0, 1, 2, 3, 4])
        assert (await queue.depth()).dead == (2 if ends == "dead" else 0)


class Fifo(Recording):
    """A queue that gives out several of a group at once, as FIFO queues of SQS do."""

    async def receive(self, *args: Any, **options: Any) -> list[Message]:
        batch = await super().receive(10, *args[1:], **options)
        return [replace(message, attributes={"group_id": "g"}) for message in batch]


async def test_stopped_it_gives_back_a_group_but_for_what_runs() -> None:
    async def handler(message: Message) -> None:
        await asyncio.sleep(10)

    queue = await sent(Fifo(), *range(5))
    worker = Worker(queue, handler, at_once(5))
    run = asyncio.create_task(worker.run())
    await asyncio.sleep(3)
    worker.stop()
    await asyncio.sleep(0.1)
    assert await queue.depth() == Depth(4, 0, 1, 0)
    await run
    assert (worker.stats().acknowledged, worker.stats().returned) == (1, 4)


async def test_who_loses_the_first_of_a_group_gives_back_those_behind() -> None:
    began: list[Any] = []

    async def handler(message: Message) -> None:
        began.append(message.body)
        if now() < 5:
            await queue.release([message], 60)
        await asyncio.sleep(20)

    queue = Fifo()
    await sent(queue, *range(3))
    worker = Worker(queue, handler, at_once(5))
    async with working(worker):
        await asyncio.sleep(300)
    assert began[:2] == [0, 1]
    assert worker.stats().lost == 1
    assert await queue.depth() == EMPTY


async def test_what_stands_behind_another_can_be_lost_too() -> None:
    began: list[Any] = []

    async def handler(message: Message) -> None:
        began.append((message.body, message.receive_count))
        if now() < 5:
            _, second = queue.given
            await queue.release([second], 100)
        await asyncio.sleep(30)

    class Remembering(Fifo):
        given: list[Message] = []  # noqa: RUF012  # of the one queue of this test

        async def receive(self, *args: Any, **options: Any) -> list[Message]:
            batch = await super().receive(*args, **options)
            self.given = self.given or batch
            return batch

    queue = Remembering()
    await sent(queue, "first", "second")
    worker = Worker(queue, handler, at_once(5))
    async with working(worker):
        await asyncio.sleep(300)
    assert began == [("first", 1), ("second", 2)]
    assert worker.stats().lost == 1
    assert await queue.depth() == EMPTY


@pytest.mark.real_time
async def test_in_a_file_the_next_of_a_group_does_not_wait_for_the_next_poll(
    tmp_path: Path,
) -> None:
    order: list[tuple[str, int]] = []

    async def handler(message: Message) -> None:
        order.append((message.attributes["group_id"], message.body))
        if message.body == 7 and message.receive_count == 1:
            raise NonRetryable

    async with SqliteQueue(tmp_path / "queue.db") as queue:
        await queue.send([Message(n, {"group_id": g}) for n in range(20) for g in "ab"])
        async with asyncio.timeout(15):
            await Worker(queue, handler, at_once(5)).run(until_empty=True)
    for group in "ab":
        assert [n for g, n in order if g == group] == list(range(20))


# ---- what is refused ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "options", "error", "reason"),
    [
        ((5, quietly, at_once(1)), {}, InvalidType, "queue must be a MessageQueue or a URL, not 5"),
        (
            ("memory://", 5, at_once(1)),
            {},
            InvalidType,
            "handler must be a function of one message, or a BulkStrategy, not 5",
        ),
        (("memory://", quietly, 5), {}, InvalidType, "strategy must be a strategy, not 5"),
        (("ftp://", quietly, at_once(1)), {}, InvalidValue, "the URL of a queue"),
        (("memory://", quietly, at_once(1)), {"max_held": 0}, InvalidValue, "max_held"),
        (("memory://", quietly, at_once(1)), {"max_held_bytes": 0}, InvalidValue, "max_held_bytes"),
        (("memory://", quietly, at_once(1)), {"max_threads": 0}, InvalidValue, "max_threads"),
        (("memory://", quietly, at_once(1)), {"grace": -1}, InvalidValue, "grace"),
        (("memory://", quietly, at_once(1)), {"backoff": 5}, InvalidType, "backoff"),
    ],
)
def test_bad_parameters(arguments: Any, options: Any, error: type[Exception], reason: str) -> None:
    with pytest.raises(error, match=reason):
        Worker(*arguments, **options)
