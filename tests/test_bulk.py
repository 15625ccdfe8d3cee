"""Many as one: which items share a call, when it starts, and what becomes of each of them."""

from __future__ import annotations

import asyncio
import contextvars
import copy
import logging
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from math import inf, nextafter
from typing import Any

import pytest

from async_task_manager import TaskManager, current_task
from async_task_manager.errors import (
    DeadlineExceeded,
    InvalidState,
    InvalidType,
    InvalidValue,
    QueueTimeout,
    StrategyError,
    TaskRejected,
    TaskTimeout,
    TaskTooLarge,
)
from async_task_manager.events import Event, Finished, Queued, Retried, Started
from async_task_manager.strategies import (
    BaseStrategy,
    Chain,
    Collector,
    ConcurrentLimitStrategy,
    CostEstimator,
    Feedback,
    GroupOrder,
    Limit,
    PriorityQueueStrategy,
    Provider,
    ProviderRouterStrategy,
    RetryAt,
    Role,
    SlidingWindowStrategy,
    Source,
    TimeBasedStrategy,
    Usage,
)
from async_task_manager.strategies import _batches as machine
from async_task_manager.strategies._snapshot import snapshot_of
from async_task_manager.strategies.bulk import Batch, BulkStrategy, Item
from async_task_manager.task import Outcome, Task


def now() -> float:
    return asyncio.get_running_loop().time()


class Calls:
    """A handler that doubles numbers, and remembers what it was called with, and when."""

    def __init__(self, seconds: float = 0.0) -> None:
        self.seconds = seconds
        self.calls: list[tuple[float, list[Any]]] = []
        self.tasks: list[Batch] = []
        self.cancelled = 0

    async def __call__(self, values: list[Any]) -> list[Any]:
        self.calls.append((now(), list(values)))
        task = current_task()
        assert isinstance(task, Batch)
        self.tasks.append(task)
        try:
            await asyncio.sleep(self.seconds)
        except asyncio.CancelledError:
            self.cancelled += 1
            raise
        return [value * 2 for value in values]

    @property
    def values(self) -> list[list[Any]]:
        return [values for _, values in self.calls]


class Retries(Feedback):
    """Every failure once more, so many times."""

    def __init__(self, times: int = 1, delay: float = 1.0) -> None:
        self.times = times
        self.delay = delay
        self.seen: list[tuple[Any, str]] = []

    def review(self, task: Task, outcome: Outcome, now: float) -> RetryAt | None:
        assert isinstance(task._work, Item)
        self.seen.append((task._work.value, outcome.kind))
        if outcome.kind == "failure" and task.attempt <= self.times:
            return RetryAt(now + self.delay)
        return None


def add(manager: TaskManager, values: Iterable[Any], **metadata: Any) -> list[Task[Any]]:
    return [manager.add_task(Item(value), dict(metadata)) for value in values]


async def outcomes(tasks: Iterable[Task[Any]]) -> list[Any]:
    return await asyncio.gather(*(task.wait() for task in tasks), return_exceptions=True)


# ---- which items share a call -------------------------------------------------------------------


async def test_items_become_one_call_and_each_gets_its_own_result() -> None:
    calls = Calls()
    async with TaskManager(BulkStrategy(calls)) as manager:
        tasks = add(manager, range(5))
    assert calls.calls == [(0.05, [0, 1, 2, 3, 4])]
    assert [task.result() for task in tasks] == [0, 2, 4, 6, 8]


async def test_a_batch_closes_when_it_is_full() -> None:
    calls = Calls()
    async with TaskManager(BulkStrategy(calls, max_size=3, max_wait=10)) as manager:
        add(manager, range(7))
        await asyncio.sleep(1)
        assert calls.calls == [(0, [0, 1, 2]), (0, [3, 4, 5])]
    assert calls.calls[2:] == [(10, [6])]


async def test_a_batch_closes_when_its_oldest_has_waited_long_enough_and_not_before() -> None:
    calls = Calls()
    async with TaskManager(BulkStrategy(calls, max_wait=0.5)) as manager:
        for i in range(12):
            add(manager, [i])
            await asyncio.sleep(0.125)
    assert calls.calls == [(0.5, [0, 1, 2, 3]), (1, [4, 5, 6, 7]), (1.5, [8, 9, 10, 11])]

    chain = Chain(BulkStrategy(calls, max_wait=0.3))
    chain.add(Task(Item(1)), 0.1)
    assert chain.next_wake(0.1) == 0.1 + 0.3
    assert chain.pull(nextafter(0.1 + 0.3, -inf)) is None
    assert isinstance(chain.pull(0.1 + 0.3), Batch)


async def test_without_a_wait_it_takes_what_is_added_in_the_same_turn_of_the_loop() -> None:
    calls = Calls()
    async with TaskManager(BulkStrategy(calls, max_wait=0)) as manager:
        add(manager, range(3))
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        add(manager, range(2))
    assert calls.calls == [(0, [0, 1, 2]), (0, [0, 1])]


async def test_the_key_keeps_items_apart() -> None:
    calls = Calls()
    async with TaskManager(BulkStrategy(calls, key="table")) as manager:
        for i in range(6):
            add(manager, [i], table="ab"[i % 2])
        add(manager, ["x"])  # a missing one is a key of its own
    assert calls.values == [[0, 2, 4], [1, 3, 5], ["x"]]
    by_sign = BulkStrategy(calls, key=lambda task: task.metadata["n"] < 0)
    calls.calls.clear()
    async with TaskManager(by_sign) as manager:
        for n in (1, -1, 2):
            add(manager, [n], n=n)
    assert calls.values == [[1, 2], [-1]]


async def test_items_with_other_keys_at_a_limit_never_share_a_call() -> None:
    calls = Calls(1)
    chain = Chain(BulkStrategy(calls), ConcurrentLimitStrategy(1, key="host"))
    async with TaskManager(chain) as manager:
        for i in range(6):
            add(manager, [i], host="ab"[i % 2])
    assert calls.calls == [(0.05, [0, 2, 4]), (0.05, [1, 3, 5])]


async def test_tasks_with_work_of_their_own_pass_unchanged() -> None:
    calls = Calls()

    async def work() -> float:
        return now()

    async with TaskManager(BulkStrategy(calls)) as manager:
        items, alone = add(manager, [1, 2]), manager.add_task(work)
    assert alone.result() == 0
    assert calls.calls == [(0.05, [1, 2])]
    assert [item.result() for item in items] == [2, 4]


async def test_a_held_item_joins_its_batch_when_it_is_due() -> None:
    from datetime import timedelta

    calls = Calls()
    chain = Chain(TimeBasedStrategy(), BulkStrategy(calls, max_wait=1))
    async with TaskManager(chain) as manager:
        add(manager, ["later"], valid_after=timedelta(seconds=2))
        gone = add(manager, ["gone"], valid_after=timedelta(seconds=2))[0]
        gone.cancel()
        await asyncio.sleep(1.5)
        add(manager, ["now"])
    assert calls.calls == [(2.5, ["now", "later"])]
    assert not chain.batches.keys  # type: ignore[union-attr]


async def test_fewer_than_min_size_wait_on_until_there_are_so_many() -> None:
    calls = Calls()
    manager = TaskManager(BulkStrategy(calls, max_wait=1, min_size=3))
    await manager.idle()
    add(manager, [1, 2])
    await asyncio.sleep(5)
    assert calls.calls == []
    add(manager, [3])
    await asyncio.sleep(0.1)
    assert calls.calls == [(5, [1, 2, 3])]
    add(manager, [4, 5, 6, 7])
    await asyncio.sleep(1.5)
    assert calls.calls[1:] == [(6.1, [4, 5, 6, 7])]
    await manager.close()


async def test_whoever_waits_for_all_to_be_done_waits_for_no_min_size() -> None:
    calls = Calls()
    async with TaskManager(BulkStrategy(calls, max_wait=1, min_size=3)) as manager:
        add(manager, [1])
        await asyncio.sleep(4)
    assert calls.calls == [(4, [1])]
    manager = TaskManager(BulkStrategy(calls, max_wait=1, min_size=3))
    await manager.idle()
    add(manager, [2])
    with pytest.raises(TimeoutError):
        await asyncio.wait_for(manager.join(), 0.5)
    await asyncio.sleep(10)
    assert calls.values == [[1]]  # nobody joins any more
    await manager.stop()
    assert calls.values == [[1], [2]]


# ---- what limits see ----------------------------------------------------------------------------


async def test_where_tasks_are_counted_a_batch_is_one_and_where_costs_are_it_is_their_sum() -> None:
    calls = Calls(1)
    slots, tokens = ConcurrentLimitStrategy(1), ConcurrentLimitStrategy(100, cost="tokens")
    items = ConcurrentLimitStrategy(50, cost=1)
    async with TaskManager(Chain(BulkStrategy(calls), slots, tokens, items)) as manager:
        for i in range(4):
            add(manager, [i], cost={"tokens": 10 + i})
        await asyncio.sleep(0.5)
        used = [limit.usage(None, 0).used for limit in (slots, tokens, items)]
        assert used == [1, 46, 4]


async def test_no_batch_grows_beyond_what_a_limit_could_ever_admit() -> None:
    calls = Calls(1)
    chain = Chain(BulkStrategy(calls), ConcurrentLimitStrategy(10, cost="tokens"))
    async with TaskManager(chain) as manager:
        for size in (4, 4, 4, 10, 1):
            add(manager, [size], cost={"tokens": size})
        with pytest.raises(TaskTooLarge):
            add(manager, [11], cost={"tokens": 11})
    assert calls.values == [[4, 4], [4], [10], [1]]


async def test_the_sum_counts_in_every_branch_that_an_item_may_take() -> None:
    calls = Calls(1)
    router = ProviderRouterStrategy(
        [
            Provider("small", limits=[ConcurrentLimitStrategy(5, cost="tokens")]),
            Provider("large", limits=[ConcurrentLimitStrategy(100, cost="tokens")]),
        ]
    )
    async with TaskManager(Chain(BulkStrategy(calls), router)) as manager:
        tasks = [add(manager, [i], cost={"tokens": 2})[0] for i in range(5)]
        too_large = [add(manager, [9], cost={"tokens": 20})[0] for _ in range(5)]
    assert calls.values == [[0, 1], [2, 3], [4], [9] * 5]
    assert [task.provider for task in tasks] == ["small"] * 2 + ["large"] * 3
    assert {task.provider for task in too_large} == {"large"}


async def test_the_best_of_its_items_is_a_batch_s_rank() -> None:
    calls = Calls(1)
    chain = Chain(
        PriorityQueueStrategy(), BulkStrategy(calls, max_size=2), ConcurrentLimitStrategy(1)
    )
    async with TaskManager(chain) as manager:
        add(manager, ["first"] * 2)
        await asyncio.sleep(0.1)
        add(manager, ["a", "b"])
        add(manager, ["c"])
        add(manager, ["high"], priority="high")
        late = add(manager, ["d", "e"])
        high = add(manager, ["high too", "f"], priority="high")
        await asyncio.sleep(0.5)
        high[0].cancel()
        late[0].cancel()
    assert calls.values == [["first"] * 2, ["c", "high"], ["f"], ["a", "b"], ["e"]]


async def test_when_the_best_of_a_waiting_batch_is_cancelled_the_batch_falls_back() -> None:
    calls = Calls(1)
    chain = Chain(
        PriorityQueueStrategy(), BulkStrategy(calls, max_size=2), ConcurrentLimitStrategy(1)
    )
    async with TaskManager(chain) as manager:
        add(manager, ["first"] * 2)
        await asyncio.sleep(0.1)
        add(manager, ["a", "b"])
        add(manager, ["c"])
        high = add(manager, ["high"], priority="high")[0]
        await asyncio.sleep(0.5)
        high.cancel()
    assert calls.values == [["first"] * 2, ["a", "b"], ["c"]]


async def test_a_smaller_batch_starts_as_soon_as_it_fits() -> None:
    calls = Calls(10)
    chain = Chain(BulkStrategy(calls, max_size=3), ConcurrentLimitStrategy(4, cost=1))
    async with TaskManager(chain) as manager:
        add(manager, [1, 2, 3])
        waiting = add(manager, [4, 5, 6])
        await asyncio.sleep(1)
        waiting[0].cancel()
        assert calls.values == [[1, 2, 3]]
        waiting[2].cancel()
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        assert calls.calls[1:] == [(1, [5])]


async def test_when_a_limit_becomes_too_low_for_a_batch_its_items_go_one_by_one() -> None:
    calls = Calls(1)
    limit = ConcurrentLimitStrategy(10, cost="size")
    async with TaskManager(Chain(BulkStrategy(calls), limit)) as manager:
        busy = add(manager, ["busy"], cost={"size": 10})
        await asyncio.sleep(0.1)
        tasks = [add(manager, [size], cost={"size": size})[0] for size in (2, 5, 3)]
        await asyncio.sleep(0.1)
        limit.max_concurrent = 4
    assert calls.values == [["busy"], [2], [3]]
    assert busy[0].state == "succeeded"
    assert [task.state for task in tasks] == ["succeeded", "rejected", "succeeded"]
    assert isinstance(tasks[1].exception(), TaskTooLarge)


class Closed(Limit):
    """Refuses what it is told to, or breaks."""

    error: Exception | None = None
    breaks = False

    def ready_at(self, key: object, cost: float, now: float) -> float:
        if self.error is not None:
            raise self.error
        return now

    def acquire(self, key: object, cost: float, now: float) -> None:
        if self.breaks:
            raise ZeroDivisionError

    def usage(self, key: object, now: float) -> Usage:
        return Usage(0, 1)


async def test_a_refused_batch_rejects_its_items() -> None:
    calls, limit = Calls(), Closed()
    limit.error = TaskRejected("closed", until=7.0)
    async with TaskManager(Chain(BulkStrategy(calls), limit)) as manager:
        tasks = add(manager, [1, 2])
    assert [task.exception() for task in tasks] == [limit.error] * 2
    assert manager.stats().rejected == 2
    assert manager.stats().queued == 0


async def test_a_limit_that_breaks_leaves_no_item_waiting() -> None:
    calls, limit = Calls(), Closed()
    limit.breaks = True
    manager = TaskManager(Chain(BulkStrategy(calls, max_size=2), limit))
    await manager.idle()
    tasks = add(manager, [1, 2, 3])
    assert [type(error) for error in await outcomes(tasks)] == [StrategyError] * 3
    assert manager.stats().queued == manager.stats().running == 0


async def test_limits_get_the_outcome_of_the_call_and_feedbacks_that_of_each_item() -> None:
    seen: list[str] = []

    class Watches(Closed):
        def release(self, grant: None, outcome: Outcome, now: float) -> None:
            seen.append(outcome.kind)

    async def handler(values: list[int]) -> list[Any]:
        return [ValueError(value) if value == 2 else value for value in values]

    retries = Retries(times=0)
    async with TaskManager(Chain(retries, BulkStrategy(handler), Watches())) as manager:
        tasks = add(manager, [1, 2])
    assert seen == ["success"]
    assert retries.seen == [(1, "success"), (2, "failure")]
    assert tasks[1].state == "failed"
    tasks[1].exception()


# ---- outcomes -----------------------------------------------------------------------------------


async def test_a_result_that_is_an_exception_fails_its_item_alone() -> None:
    async def handler(values: list[int]) -> list[Any]:
        return [ValueError("odd"), 2, asyncio.CancelledError()]

    async with TaskManager(BulkStrategy(handler)) as manager:
        tasks = add(manager, [1, 2, 3])
    assert [task.state for task in tasks] == ["failed", "succeeded", "cancelled"]
    with pytest.raises(ValueError, match="odd"):
        tasks[0].result()
    assert manager.stats().failed == 1


async def test_an_error_that_is_raised_fails_every_item_and_is_logged_for_each_once(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async def handler(values: list[int]) -> list[Any]:
        raise OSError("down")

    async with TaskManager(BulkStrategy(handler)) as manager:
        tasks = add(manager, [1, 2])
        await manager.join()
        for task in tasks:
            with pytest.raises(OSError, match="down"):
                task.result()
        manager.add_task(Item(3))
    said = [record.message for record in caplog.records]
    assert len(said) == 1
    assert "failed, and nobody waited for it" in said[0]


@pytest.mark.parametrize(
    ("results", "error", "words"),
    [
        ([1], InvalidValue, "1 results for 2 items"),
        ([1, 2, 3], InvalidValue, "3 results for 2 items"),
        (None, InvalidType, "a list with a result for each item, not None"),
        ({1: 2, 2: 4}, InvalidType, "not {1: 2, 2: 4}"),
        ("ab", InvalidType, "not 'ab'"),
    ],
)
async def test_a_wrong_number_of_results_is_a_clear_error(
    results: Any, error: type[Exception], words: str
) -> None:
    async def handler(values: list[int]) -> Any:
        return results

    async with TaskManager(BulkStrategy(handler)) as manager:
        tasks = add(manager, [1, 2])
    for task in tasks:
        with pytest.raises(error) as caught:
            task.result()
        assert words in str(caught.value)
        assert "BulkStrategy(" in str(caught.value)


async def test_a_handler_that_is_not_async_is_a_clear_error() -> None:
    handler: Any = list
    async with TaskManager(BulkStrategy(handler)) as manager:
        tasks = add(manager, [1, 2])
    for task in tasks:
        with pytest.raises(InvalidType, match=r"handler must be an async .* that gives \[1, 2\]"):
            task.result()


async def test_a_call_that_takes_too_long_is_cancelled_and_fails_every_item() -> None:
    calls = Calls(10)
    async with TaskManager(BulkStrategy(calls, timeout=2)) as manager:
        tasks = add(manager, [1, 2])
    assert calls.cancelled == 1
    for task in tasks:
        assert task.finished_at is not None
        assert task.started_at is not None
        assert task.finished_at - task.started_at == pytest.approx(2)
        with pytest.raises(TaskTimeout, match="a call with 2 items ran longer than 2 s"):
            task.result()


async def test_a_timeout_of_the_handler_s_own_stays_what_it_is() -> None:
    async def handler(values: list[int]) -> list[Any]:
        raise TimeoutError("mine")

    async with TaskManager(BulkStrategy(handler, timeout=2)) as manager:
        task = add(manager, [1])[0]
    with pytest.raises(TimeoutError, match="mine") as caught:
        task.result()
    assert not isinstance(caught.value, TaskTimeout)


async def test_what_failed_together_is_retried_one_by_one() -> None:
    calls: list[tuple[float, list[int]]] = []

    async def handler(values: list[int]) -> list[int]:
        calls.append((now(), values))
        if 3 in values:
            raise ValueError("poison")
        return values

    retries = Retries(times=1, delay=1)
    async with TaskManager(Chain(retries, BulkStrategy(handler, max_wait=0.5))) as manager:
        tasks = add(manager, [1, 2, 3])
        await asyncio.sleep(1.2)
        more = add(manager, [4])[0]
    assert calls == [(0.5, [1, 2, 3]), (1.5, [1]), (1.5, [2]), (1.5, [3]), (1.7, [4])]
    assert [task.state for task in (*tasks, more)] == ["succeeded"] * 2 + ["failed", "succeeded"]
    assert [task.attempt for task in tasks] == [2, 2, 2]
    tasks[2].exception()


async def test_what_failed_at_one_provider_is_retried_at_another() -> None:
    where: list[tuple[str | None, list[int]]] = []

    async def handler(values: list[int]) -> list[int]:
        task = current_task()
        assert task is not None
        where.append((task.provider, values))
        if task.provider == "P1":
            raise OSError("down")
        return [ValueError(value) if value == 2 else value for value in values]  # type: ignore[misc]

    router = ProviderRouterStrategy([Provider("P1"), Provider("P2"), Provider("P3")])
    chain = Chain(Retries(times=2), BulkStrategy(handler, max_size=2), router)
    async with TaskManager(chain) as manager:
        tasks = add(manager, [1, 2])
    assert where == [("P1", [1, 2]), ("P2", [1]), ("P2", [2]), ("P3", [2])]
    assert [task.state for task in tasks] == ["succeeded", "failed"]
    tasks[1].exception()


async def test_costs_learn_from_what_a_batch_settles() -> None:
    estimator = CostEstimator("tokens", min_samples=1, key="kind")

    async def handler(values: list[int]) -> list[int]:
        task = current_task()
        assert task is not None
        task.settle({"tokens": 120})
        return values

    tokens = SlidingWindowStrategy(1000, 60, cost=estimator)
    async with TaskManager(Chain(BulkStrategy(handler), tokens)) as manager:
        add(manager, [1], cost={"tokens": 10}, kind="a")
        add(manager, [2], cost={"tokens": 30}, kind="b")
    assert estimator.ratio("a") == estimator.ratio("b") == pytest.approx(3)
    assert tokens.usage(None, 0).used == 120
    estimator.estimate = lambda task: 0
    async with TaskManager(
        Chain(BulkStrategy(handler), SlidingWindowStrategy(9, 6, cost=estimator))
    ) as manager:
        add(manager, [1])
    assert estimator.ratio("a") == pytest.approx(3)


# ---- one leaves, the others stay ----------------------------------------------------------------


async def test_cancelling_a_waiting_item_leaves_the_others() -> None:
    calls = Calls()
    async with TaskManager(BulkStrategy(calls, max_wait=1)) as manager:
        tasks = add(manager, [1, 2, 3])
        await asyncio.sleep(0.5)
        tasks[0].cancel()
        assert tasks[0].state == "cancelled"
        add(manager, [4])
    # The oldest of those that are left came at the same time.
    assert calls.calls == [(1, [2, 3, 4])]


async def test_the_oldest_that_is_left_decides_when_a_batch_closes() -> None:
    calls = Calls()
    async with TaskManager(BulkStrategy(calls, max_wait=1)) as manager:
        first = add(manager, [1])[0]
        await asyncio.sleep(0.5)
        add(manager, [2])
        first.cancel()
    assert calls.calls == [(1.5, [2])]


async def test_a_batch_that_nobody_is_left_in_is_gone() -> None:
    calls = Calls(1)
    chain = Chain(BulkStrategy(calls, max_size=2), ConcurrentLimitStrategy(1))
    async with TaskManager(chain) as manager:
        add(manager, [1, 2])
        for task in add(manager, [3, 4]):  # closed, and queued
            task.cancel()
        for task in add(manager, [5]):  # open
            task.cancel()
        add(manager, [6])
    assert calls.values == [[1, 2], [6]]
    batches = chain.batches
    assert batches is not None
    assert not (batches.open or batches.of or batches.keys or batches.calls)


async def test_cancelling_a_running_item_leaves_the_others_and_the_call() -> None:
    calls = Calls(2)
    async with TaskManager(BulkStrategy(calls, max_size=3)) as manager:
        tasks = add(manager, [1, 2, 3])
        await asyncio.sleep(1)
        assert tasks[1].cancel()
        assert tasks[1].state == "cancelled"
        assert not tasks[1].cancel()
        assert manager.stats().running == 2
        assert manager.status(tasks[0].id).state == "running"  # type: ignore[union-attr]
    assert [task.state for task in tasks] == ["succeeded", "cancelled", "succeeded"]
    assert tasks[2].result() == 6
    assert calls.cancelled == 0


async def test_a_call_whose_items_are_all_cancelled_is_cancelled() -> None:
    calls = Calls(2)
    limit = ConcurrentLimitStrategy(1)
    async with TaskManager(Chain(BulkStrategy(calls, max_size=2), limit)) as manager:
        tasks = add(manager, [1, 2])
        await asyncio.sleep(1)
        for task in tasks:
            task.cancel()
        await manager.join()
        assert now() == 1
        assert manager.stats().running == 0
        assert limit.usage(None, 1).used == 0
    assert calls.cancelled == 1


@pytest.mark.parametrize("steps", range(6))
async def test_all_leave_at_any_step(steps: int) -> None:
    calls = Calls(1)
    window = SlidingWindowStrategy(5, 100, cost=1)
    async with TaskManager(Chain(BulkStrategy(calls, max_size=2), window)) as manager:
        tasks = add(manager, [1, 2])
        for _ in range(steps):
            await asyncio.sleep(0)
        for task in tasks:
            task.cancel()
    assert [task.state for task in tasks] == ["cancelled"] * 2
    # What never reached its first instruction has used nothing.
    assert window.usage(None, 0).used == (2 if calls.calls else 0)


@pytest.mark.parametrize("steps", range(6))
async def test_one_leaves_at_any_step(steps: int) -> None:
    calls = Calls()
    limit = SlidingWindowStrategy(5, 100, cost=1)
    chain = Chain(BulkStrategy(calls, max_size=2), limit)
    async with TaskManager(chain) as manager:
        one, other = add(manager, [1, 2])
        for _ in range(steps):
            await asyncio.sleep(0)
        one.cancel()
    assert one.state in ("cancelled", "succeeded")
    assert other.result() == 4
    assert manager.stats().running == chain.running == chain.queued == 0
    assert not (chain.batches.of or chain.batches.keys)  # type: ignore[union-attr]


async def test_an_item_expires_by_itself() -> None:
    calls = Calls(10)
    async with TaskManager(BulkStrategy(calls, max_wait=2)) as manager:
        tasks = [
            manager.add_task(Item(0), queue_timeout=1),
            manager.add_task(Item(1), run_timeout=3),
            manager.add_task(Item(2)),
        ]
    assert calls.calls == [(2, [1, 2])]
    assert [task.state for task in tasks] == ["expired", "failed", "succeeded"]
    assert isinstance(tasks[0].exception(), QueueTimeout)
    assert isinstance(tasks[1].exception(), TaskTimeout)
    assert tasks[2].result() == 4
    assert calls.cancelled == 0


async def test_a_deadline_ends_an_item_and_the_last_of_them_the_call() -> None:
    from datetime import timedelta

    calls = Calls(10)
    async with TaskManager(BulkStrategy(calls, max_size=2)) as manager:
        tasks = [manager.add_task(Item(i), deadline=timedelta(seconds=3 + i)) for i in range(2)]
        await manager.join()
        assert now() == 4
    assert [type(task.exception()) for task in tasks] == [DeadlineExceeded] * 2
    assert calls.cancelled == 1


# ---- the life of a manager ----------------------------------------------------------------------


async def test_stop_flushes_and_waits_for_the_call() -> None:
    calls = Calls(1)
    manager = TaskManager(BulkStrategy(calls, max_wait=60, min_size=50))
    await manager.idle()
    tasks = add(manager, range(3))
    await manager.stop()
    assert calls.calls == [(0, [0, 1, 2])]
    assert [task.state for task in tasks] == ["succeeded"] * 3


async def test_what_a_limit_does_not_admit_at_a_stop_stays_for_the_next_start() -> None:
    calls = Calls(1)
    manager = TaskManager(
        Chain(BulkStrategy(calls, max_wait=60, key="k"), ConcurrentLimitStrategy(1))
    )
    await manager.idle()
    tasks = add(manager, [1], k="a") + add(manager, [2], k="b")
    await manager.stop()
    assert [task.state for task in tasks] == ["succeeded", "queued"]
    await manager.idle()
    assert await tasks[1] == 4
    await manager.stop()


async def test_one_that_was_cancelled_just_before_is_not_in_what_a_stop_flushes() -> None:
    calls, tokens = Calls(1), SlidingWindowStrategy(10, 60, cost="n")
    manager = TaskManager(Chain(BulkStrategy(calls, max_wait=60), tokens))
    await manager.idle()
    tasks = [add(manager, [n], cost={"n": n})[0] for n in (1, 2, 3)]
    tasks[1].cancel()
    await manager.stop()
    assert calls.values == [[1, 3]]
    assert tokens.usage(None, 0).used == 4


async def test_many_batches_are_flushed() -> None:
    calls = Calls(1)
    manager = TaskManager(BulkStrategy(calls, max_wait=60, key="k"))
    await manager.idle()
    tasks = [task for i in range(200) for task in add(manager, [i], k=i)]
    await manager.stop()
    assert {task.state for task in tasks} == {"succeeded"}


@pytest.mark.parametrize("how", ["no grace", "paused", "never started", "run cancelled"])
async def test_where_nothing_may_start_nothing_is_flushed(how: str) -> None:
    calls = Calls(1)
    manager = TaskManager(BulkStrategy(calls, max_wait=60))
    tasks = add(manager, range(3))
    if how == "run cancelled":
        running = asyncio.create_task(manager.run())
        await asyncio.sleep(1)
        running.cancel()
        with pytest.raises(asyncio.CancelledError):
            await running
    elif how != "never started":
        await manager.idle()
    if how == "paused":
        manager.pause()
    await manager.stop(grace=0 if how == "no grace" else None)
    assert calls.calls == []
    assert [task.state for task in tasks] == ["queued"] * 3
    manager.resume()
    async with manager:
        pass
    assert calls.values == [[0, 1, 2]]


async def test_a_stop_with_a_grace_cancels_the_call_once_and_its_items() -> None:
    calls = Calls(60)
    manager = TaskManager(BulkStrategy(calls, max_size=2))
    await manager.idle()
    tasks = add(manager, [1, 2])
    await asyncio.sleep(1)
    await manager.stop(grace=5)
    assert now() == 6
    assert [task.state for task in tasks] == ["cancelled"] * 2
    assert calls.cancelled == 1


async def test_a_handler_that_finishes_its_work_when_it_is_cancelled_delivers() -> None:
    async def handler(values: list[int]) -> list[int]:
        try:
            await asyncio.sleep(60)
        except asyncio.CancelledError:
            return values
        raise AssertionError

    manager = TaskManager(BulkStrategy(handler, max_size=2))
    await manager.idle()
    tasks = add(manager, [1, 2])
    await asyncio.sleep(1)
    await manager.stop(grace=5)
    assert [task.result() for task in tasks] == [1, 2]


async def test_a_handler_may_stop_the_manager() -> None:
    async def handler(values: list[int]) -> list[int]:
        await manager.stop()
        return values

    manager = TaskManager(BulkStrategy(handler, max_size=2))
    tasks = add(manager, [1, 2])
    await manager.run()
    assert await outcomes(tasks) == [1, 2]


async def test_close_cancels_what_waits() -> None:
    calls = Calls()
    manager = TaskManager(BulkStrategy(calls, max_wait=60))
    await manager.idle()
    tasks = add(manager, range(3))
    await manager.close()
    assert [task.state for task in tasks] == ["cancelled"] * 3
    assert calls.calls == []


def test_a_loop_that_is_closed_over_a_call_cancels_its_items() -> None:
    calls = Calls(60)
    manager = TaskManager(BulkStrategy(calls, max_size=2))
    loop = asyncio.new_event_loop()
    tasks: list[Task[Any]] = []

    async def begin() -> None:
        await manager.idle()
        tasks.extend(add(manager, [1, 2]))
        await asyncio.sleep(0.01)

    loop.run_until_complete(begin())
    for driver in asyncio.all_tasks(loop):
        driver._log_destroy_pending = False  # type: ignore[attr-defined]
    loop.close()

    async def again() -> None:
        await manager.idle()
        assert [task.state for task in tasks] == ["cancelled"] * 2
        assert manager.stats().running == 0
        await manager.stop()

    asyncio.run(again())


async def test_a_full_queue_counts_items() -> None:
    calls = Calls()
    manager = TaskManager(BulkStrategy(calls, max_wait=5), max_queued=2, overflow="drop_oldest")
    await manager.idle()
    tasks = add(manager, [1, 2, 3])
    await manager.join()
    assert [task.state for task in tasks] == ["rejected", "succeeded", "succeeded"]
    assert calls.values == [[2, 3]]
    await manager.stop()


async def test_ten_thousand_items_are_cancelled_in_a_moment() -> None:
    calls = Calls(1)
    chain = Chain(
        PriorityQueueStrategy(),
        BulkStrategy(calls, max_size=10_000),
        ConcurrentLimitStrategy(1),
    )
    manager = TaskManager(chain)
    await manager.idle()
    add(manager, ["busy"])
    await asyncio.sleep(0.5)
    for i in range(10_000):
        add(manager, [i], priority=-i)
    assert manager.stats().queued == 10_000
    started = asyncio.get_running_loop().time()
    folds = 0
    refold = machine.Batches._refold

    def counted(*args: Any) -> None:
        nonlocal folds
        folds += 1
        refold(*args)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(machine.Batches, "_refold", counted)
        for task in chain.tasks()[:9_999]:
            task.cancel()
        await manager.join()
    assert folds == 1
    assert asyncio.get_running_loop().time() >= started
    assert calls.values == [["busy"], [9_999]]
    await manager.stop()


async def test_a_hundred_thousand_batches_that_are_due_do_not_stall_the_loop() -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(machine, "MAX_CLOSED", 10)
        chain = Chain(BulkStrategy(Calls(), key="k"))
        for i in range(25):
            chain.add(Task(Item(i), {"k": i}), 0.0)
        assert chain.pull(0.05) is None
        assert chain.next_wake(0.05) == 0.05
        assert chain.pull(0.05) is None
        assert chain.pull(0.05) is not None


# ---- what people see ----------------------------------------------------------------------------


async def test_inside_the_handler_the_current_task_is_the_batch() -> None:
    seen: list[Any] = []

    async def handler(values: list[int]) -> list[int]:
        task = current_task()
        assert isinstance(task, Batch)
        seen.append((task.metadata, [member.metadata["n"] for member in task.members]))
        assert task.metadata is task.metadata
        seen.append((task.state, task.name.startswith("batch-"), task.attempt, task.provider))
        assert [member.state for member in task.members] == ["running"] * 3
        with pytest.raises(InvalidState, match="is one of a batch: settle for all of it"):
            next(iter(task.members)).settle(1)
        task.settle({"tokens": 5})
        assert tokens.usage(None, 0).used == 5
        return values

    tokens = SlidingWindowStrategy(100, 60, cost="tokens")
    async with TaskManager(Chain(BulkStrategy(handler), tokens)) as manager:
        for n in range(3):
            add(manager, [n], user="ann", n=n, cost={"tokens": 10})
    assert seen == [
        ({"user": "ann", "cost": {"tokens": 10}}, [0, 1, 2]),
        ("running", True, 1, None),
    ]


async def test_observers_see_items_and_no_batches() -> None:
    records: list[tuple[str, Any, Any]] = []
    who = contextvars.ContextVar("who", default="nobody")

    def observe(record: Event) -> None:
        if isinstance(record, Queued | Started | Retried | Finished):
            assert not isinstance(record.task, Batch)
            value = record.task.metadata["n"]
            records.append((type(record).__name__, value, who.get()))
            if isinstance(record, Started):
                assert record.waited == pytest.approx(0.05 if record.attempt == 1 else 1.0)

    async def handler(values: list[int]) -> list[Any]:
        return [ValueError() if value == 2 else value for value in values]

    manager = TaskManager(Chain(BulkStrategy(handler), Retries()))
    manager.subscribe(observe)
    async with manager:
        for n in (1, 2):
            who.set(f"user {n}")
            add(manager, [n], n=n)
        who.set("nobody")
    assert [record[:2] for record in records] == [
        ("Queued", 1),
        ("Queued", 2),
        ("Started", 1),
        ("Started", 2),
        ("Finished", 1),
        ("Retried", 2),
        ("Started", 2),
        ("Finished", 2),
    ]
    # Each is told in the context of whoever added the item: spans follow that.
    assert [record[2] for record in records if record[0] == "Started"] == [
        "user 1",
        "user 2",
        "user 2",
    ]
    manager.history  # noqa: B018
    assert manager.stats().succeeded == 1


async def test_items_are_counted_listed_and_found_by_id() -> None:
    calls = Calls(1)
    manager = TaskManager(
        Chain(BulkStrategy(calls, max_size=2), ConcurrentLimitStrategy(1, key="u"))
    )
    await manager.idle()
    tasks = add(manager, range(5), u="a")
    await asyncio.sleep(0.5)
    assert manager.get_status().running == 2
    assert manager.queue_lengths().total == 3
    assert manager.queue_lengths().by_key == {"u": {"a": 3}}
    assert "3 queued, 2 running" in repr(manager)
    assert [manager.status(task.id).state for task in tasks] == [  # type: ignore[union-attr]
        *["running"] * 2,
        *["queued"] * 3,
    ]
    assert manager.cancel(tasks[4].id)
    assert manager.cancel(tasks[0].id)
    await manager.join()
    assert [task.state for task in tasks] == ["cancelled", *["succeeded"] * 3, "cancelled"]
    await manager.stop()


async def test_a_handler_that_waits_for_an_item_of_its_own_limit_is_warned(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async def handler(values: list[int]) -> list[int]:
        if values == [1, 2]:
            with pytest.raises(TimeoutError):
                async with asyncio.timeout(1):
                    await waiting[0]
        return values

    chain = Chain(BulkStrategy(handler, max_size=2), ConcurrentLimitStrategy(1))
    async with TaskManager(chain) as manager:
        add(manager, [1, 2])
        waiting = add(manager, [3])
    assert [record.levelno for record in caplog.records] == [logging.WARNING]
    assert "deadlock" in caplog.text
    assert waiting[0].result() == 3


async def test_an_item_that_someone_waits_for_inherits_his_rank_and_with_it_its_batch() -> None:
    calls = Calls(1)
    chain = Chain(
        PriorityQueueStrategy(),
        BulkStrategy(calls, max_size=2, key="kind"),
        ConcurrentLimitStrategy(2),
    )
    manager = TaskManager(chain)
    await manager.idle()

    async def waits() -> int:
        await asyncio.sleep(0.5)
        return await needed[1]  # type: ignore[no-any-return]

    boss = manager.add_task(waits, {"priority": 9})
    add(manager, ["busy"] * 2, kind="x")
    needed: list[Task[Any]] = []
    await asyncio.sleep(0)
    ordinary = add(manager, [1, 2], kind="a", priority=5)
    needed += add(manager, [3, 4], kind="b", priority=0)
    assert await boss == 8
    assert await ordinary[1] == 4
    assert calls.values == [["busy"] * 2, [3, 4], [1, 2]]
    await manager.stop()


# ---- in company ---------------------------------------------------------------------------------


class Polled(BaseStrategy):
    """A custom strategy: first in, first out, one at a time."""

    def __init__(self) -> None:
        self.queue: deque[Task] = deque()
        self.seen: list[Task] = []
        self.busy = False
        self.done = 0

    def add_task(self, task: Task) -> None:
        self.seen.append(task)
        self.queue.append(task)

    def get_next_task(self) -> Task | None:
        while self.queue and self.queue[0].done():
            self.queue.popleft()
        if self.busy or not self.queue:
            return None
        self.busy = True
        return self.queue.popleft()

    async def get_sleep_interval(self) -> float | None:
        return None

    async def on_task_done(self) -> None:
        self.busy = False
        self.done += 1


async def test_a_custom_strategy_gets_batches_and_hears_of_each_once() -> None:
    calls, polled = Calls(1), Polled()
    async with TaskManager(Chain(BulkStrategy(calls, max_size=3), polled)) as manager:
        tasks = add(manager, range(9), user="ann")
        await asyncio.sleep(0.5)
        tasks[3].cancel()  # inside it, or waiting to be
        tasks[6].cancel()
        tasks[7].cancel()
        tasks[8].cancel()
    assert calls.values == [[0, 1, 2], [4, 5]]
    assert polled.done == 2
    assert [task.metadata for task in polled.seen if task.state == "succeeded"] == [
        {"user": "ann"}
    ] * 2
    assert [task.metadata for task in polled.seen if task.state == "cancelled"] == [{}]
    assert manager.stats().succeeded == 5


async def test_an_item_that_a_custom_strategy_makes_is_its_own_batch() -> None:
    class Makes(Polled):
        def get_next_task(self) -> Task | None:
            if not self.done:
                self.done = 1
                return Task(Item(21), {"cost": {"x": 1}})
            return None

        async def on_task_done(self) -> None:
            pass

    calls = Calls()
    limit = ConcurrentLimitStrategy(1, cost="x")
    manager = TaskManager(Chain(Makes(), BulkStrategy(calls), limit))
    await manager.idle()
    await asyncio.sleep(1)
    assert calls.values == [[21]]
    assert manager.stats().succeeded == 1
    await manager.stop()


async def test_by_hand() -> None:
    calls = Calls()
    bulk = BulkStrategy(calls, max_size=2)
    tasks = [Task(Item(i)) for i in range(4)]
    for task in tasks:
        bulk.add_task(task)
    first = bulk.get_next_task()
    assert isinstance(first, Batch)
    tasks[2].cancel()
    assert await first.run() is None
    assert [task.state for task in tasks] == ["succeeded", "succeeded", "cancelled", "queued"]
    second = bulk.get_next_task()
    assert second is not None
    running = asyncio.create_task(second.run())
    await asyncio.sleep(0)
    tasks[3].cancel()
    with pytest.raises(asyncio.CancelledError):
        await running
    assert tasks[3].state == "cancelled"
    assert not tasks[3].cancel()
    assert bulk.get_next_task() is None


async def test_by_hand_what_failed_is_retried() -> None:
    async def handler(values: list[int]) -> list[Any]:
        return [ValueError() for _ in values]

    chain = Chain(BulkStrategy(handler, max_size=2), Retries(delay=-inf))
    tasks = [Task(Item(i)) for i in range(2)]
    for task in tasks:
        chain.add_task(task)
    for size in (2, 1, 1):
        batch = chain.get_next_task()
        assert isinstance(batch, Batch)
        assert len(batch.members) == size
        await batch.run()
    assert [task.state for task in tasks] == ["failed"] * 2
    assert [type(task.exception()) for task in tasks] == [ValueError] * 2


async def test_what_is_handed_out_and_not_yet_run_cannot_be_cancelled() -> None:
    async def work() -> int:
        return 1

    chain = Chain(BulkStrategy(Calls()))
    task = Task(work)
    chain.add_task(task)
    assert chain.get_next_task() is task
    assert not task.cancel()
    assert await task.run() == 1


async def test_a_collector_of_one_s_own() -> None:
    """Whatever work there is, in twos, one after the other."""

    class InTwos(Collector):
        max_size = 2

        def collects(self, task: Task) -> bool:
            return True

        async def call(self, tasks: Sequence[Task]) -> list[Any]:
            works = [task._work for task in tasks]
            return [await work() for work in works if callable(work)]

    order: list[int] = []

    async def work(i: int) -> int:
        order.append(i)
        await asyncio.sleep(1)
        return i

    async with TaskManager(Chain(InTwos())) as manager:
        tasks = [manager.add_task(partial(work, i)) for i in range(4)]
    assert [task.result() for task in tasks] == [0, 1, 2, 3]
    assert order == [0, 2, 1, 3]


class Fewest(GroupOrder):
    """Counts who is queued."""

    def __init__(self) -> None:
        self.queued: dict[Any, int] = {}

    def group(self, task: Task) -> Any:
        return task.metadata["user"]

    def group_rank(self, group: Any, now: float) -> int:
        return self.queued[group]

    def arrive(self, group: Any, now: float, again: bool) -> None:
        self.queued[group] = self.queued.get(group, 0) + 1
        self.changed(group)

    def leave(self, group: Any, now: float) -> None:
        self.queued[group] -= 1


async def test_groups_count_items() -> None:
    calls, order = Calls(1), Fewest()
    chain = Chain(order, BulkStrategy(calls, max_size=2), ConcurrentLimitStrategy(1))
    async with TaskManager(chain) as manager:
        add(manager, ["x"] * 2, user="xen")
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        add(manager, ["a"] * 5, user="ann")
        add(manager, ["b"] * 2, user="bob")
        await asyncio.sleep(1.5)
        assert order.queued == {"xen": 0, "ann": 5, "bob": 0}
    assert order.queued == {"xen": 0, "ann": 0, "bob": 0}
    assert calls.values == [["x"] * 2, ["b"] * 2, ["a"] * 2, ["a"] * 2, ["a"]]


async def test_when_branches_come_and_go_batches_are_made_anew() -> None:
    calls = Calls(1)
    one = ConcurrentLimitStrategy(1)
    router = ProviderRouterStrategy([Provider("P1", limits=[one])])
    bulk = BulkStrategy(calls, max_size=4, max_wait=10)
    manager = TaskManager(Chain(bulk, router))
    await manager.idle()
    add(manager, range(4))
    closed = add(manager, range(4, 8))
    opened = add(manager, [8])
    await asyncio.sleep(0.5)
    opened += add(manager, [9])
    closed[1].cancel()
    # A branch where their costs are told together: at most two fit.
    router.add(Provider("P2", limits=[ConcurrentLimitStrategy(2, cost=1)]))
    await asyncio.sleep(0.1)
    assert calls.calls == [(0, [0, 1, 2, 3]), (0.5, [4, 6])]
    await asyncio.sleep(11)
    assert calls.calls[2:] == [(1, [7]), (10, [8, 9])]
    router.remove("P2")
    pinned = add(manager, [10], provider="P1")
    other = add(manager, [11])
    router.add(Provider("P3"))
    router.remove("P1", force=True)
    await manager.join()
    assert [task.state for task in (*pinned, *other)] == ["rejected", "succeeded"]
    await outcomes(pinned)
    assert {task.provider for task in other} == {"P3"}
    await manager.stop()


async def test_inside_a_custom_strategy_items_that_go_other_ways_leave_their_batch() -> None:
    calls, polled = Calls(1), Polled()
    router = ProviderRouterStrategy([Provider("P1"), Provider("P2")])
    chain = Chain(BulkStrategy(calls, max_size=3), polled, router)
    manager = TaskManager(chain)
    await manager.idle()
    add(manager, [0] * 3)
    await asyncio.sleep(0.1)
    for n in range(3):
        add(manager, [n], x=n)  # inside
    await asyncio.sleep(0.1)
    gone = add(manager, ["g"] * 3, provider="P2", x=1)  # inside, too
    await asyncio.sleep(0.1)
    queued = add(manager, ["q"] * 3, x=1)
    pinned = add(manager, ["p"] * 3, provider="P2", x=1)

    def by_x(task: Task) -> int:
        return int(task.metadata["x"]) // 2

    router.add(Provider("P3", limits=[ConcurrentLimitStrategy(9, key=by_x)]))
    router.remove("P2", force=True)
    await manager.join()
    assert sorted(calls.values[1:], key=str) == [["q"] * 3, [0, 1], [2]]
    assert [task.state for task in queued] == ["succeeded"] * 3
    assert [task.state for task in pinned] == ["rejected"] * 3
    assert [task.state for task in gone] == ["rejected"] * 3
    await outcomes([*pinned, *gone])
    assert chain.queued == chain.running == 0
    await manager.stop()


async def test_a_source_may_give_items() -> None:
    class Once(Source):
        due = 3.0

        def next_due(self, now: float) -> float:
            return self.due

        def emit(self, now: float) -> list[Task]:
            self.due = inf
            return [Task(Item(i)) for i in range(3)]

    calls = Calls()
    manager = TaskManager(Chain(Once(), BulkStrategy(calls, max_size=2)))
    manager.subscribe(lambda record: None)
    await manager.idle()
    await asyncio.sleep(5)
    assert calls.calls == [(3, [0, 1]), (3.05, [2])]
    await manager.stop()


# ---- what will happen ---------------------------------------------------------------------------


async def test_people_are_told_what_an_item_waits_for() -> None:
    calls = Calls(10)
    chain = Chain(
        BulkStrategy(calls, max_size=3, max_wait=60, min_size=2), SlidingWindowStrategy(1, 100)
    )
    manager = TaskManager(chain)
    await manager.idle()
    add(manager, range(3))
    behind = add(manager, range(3))
    opened = add(manager, range(1))[0]
    await asyncio.sleep(1)
    assert "1 of 3 items are in its batch, which closes at" in str(manager.explain(opened))
    closed = manager.explain(behind[1])
    assert closed.position == 1
    assert closed.reasons[0].stage is chain.stages[1]
    assert sorted(cause.tasks for cause in manager.explain().causes) == [1, 3]
    assert manager.explain().running == 3
    await asyncio.sleep(70)
    assert "1 of 3 items are in its batch, which closes when there are 2" in str(
        manager.explain(opened)
    )
    await manager.close()


async def test_inside_a_custom_strategy_items_are_counted() -> None:
    manager = TaskManager(Chain(BulkStrategy(Calls(60), max_size=3), Polled()))
    await manager.idle()
    add(manager, range(9))
    await asyncio.sleep(1)
    assert [cause.tasks for cause in manager.explain().causes] == [6]
    await manager.close(grace=0)


async def test_the_future_of_a_chain_with_batches_is_foreseen() -> None:
    calls = Calls(10)
    bulk = BulkStrategy(calls, max_size=3, max_wait=4)
    chain = Chain(bulk, ConcurrentLimitStrategy(1), Retries())
    manager = TaskManager(chain)
    await manager.idle()
    running = add(manager, range(3))
    behind = add(manager, range(3))
    opened = add(manager, range(2))
    await asyncio.sleep(1)
    lasts = {"task": 10.0}

    def told(task: Task[Any]) -> tuple[float | None, float | None]:
        foreseen = manager.eta(task, durations=lasts)
        assert foreseen.starts_at is not None and foreseen.ends_at is not None
        return foreseen.starts_at - manager.epoch, foreseen.ends_at - manager.epoch

    assert told(running[0]) == pytest.approx((0, 10))
    assert told(behind[2]) == pytest.approx((10, 20))
    assert told(opened[0]) == pytest.approx((20, 30))
    two = manager.what_if(
        lambda chain: setattr(chain.stages[1], "max_concurrent", 2), durations=lasts
    )
    assert two.before.queue_ends_at == pytest.approx(manager.epoch + 30)
    assert two.after.queue_ends_at == pytest.approx(manager.epoch + 20)
    smaller = manager.what_if(
        lambda chain: setattr(chain.stages[0], "max_size", 2), opened[0], durations=lasts
    )
    assert smaller.after.starts_at == smaller.before.starts_at
    opened[0].cancel()
    opened[1].cancel()
    await manager.join()
    assert [task.finished_at - manager.epoch for task in behind] == pytest.approx([20] * 3)  # type: ignore[operator]
    assert calls.values == [[0, 1, 2]] * 2
    assert bulk.max_size == 3
    await manager.stop()


async def test_a_copy_of_a_chain_has_batches_of_its_own() -> None:
    chain = Chain(BulkStrategy(Calls(), max_size=2, key="k"), ConcurrentLimitStrategy(1, key="k"))
    tasks = [Task(Item(i), {"k": "ab"[i % 2]}) for i in range(7)]
    for task in tasks:
        chain.add(task, 0.0)
    running = chain.pull(0.0)
    assert isinstance(running, Batch)
    twin, ghosts = snapshot_of(chain, [running, *running.members])
    assert set(ghosts) == {*tasks, running}
    ghost = ghosts[running]
    assert isinstance(ghost, Batch)
    assert set(ghost.members) == {ghosts[task] for task in running.members}
    waits = {ghosts[task] for task in tasks if task.state == "queued"}
    assert set(twin.tasks()) == waits
    twin.cancel(ghosts[tasks[6]], 0.0)
    started, under_way = [], [ghost]
    while under_way:
        while (batch := twin.pull(1.0)) is not None:
            assert isinstance(batch, Batch)
            assert set(batch.members) <= waits
            started.append(len(batch.members))
            under_way.append(batch)
        for each in (ended := under_way.pop(0), *ended.members):
            twin.finish(each, Outcome("success", 0.0, 1.0), 1.0)
    assert sorted(started) == [1, 1, 2]
    assert twin.queued == twin.running == 0
    assert len(chain.tasks()) == 5
    assert chain.batches is not None
    assert len(chain.batches.open) == 1
    assert running.members


# ---- live change --------------------------------------------------------------------------------


async def test_every_number_can_be_changed_while_items_wait() -> None:
    calls = Calls()
    bulk = BulkStrategy(calls, max_size=10, max_wait=10)
    manager = TaskManager(bulk)
    await manager.idle()
    add(manager, [1, 2, 3])
    await asyncio.sleep(1)
    bulk.max_size = 3
    await asyncio.sleep(0.1)
    assert calls.calls == [(1, [1, 2, 3])]
    add(manager, [4])
    bulk.max_wait = 2
    await asyncio.sleep(2.5)
    assert calls.calls[1:] == [(3.1, [4])]
    bulk.min_size = 2
    add(manager, [5])
    await asyncio.sleep(3)
    assert len(calls.calls) == 2
    bulk.min_size = 1
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    assert calls.values[2:] == [[5]]
    bulk.timeout = 0.5
    calls.seconds = 1
    task = add(manager, [6])[0]
    with pytest.raises(TaskTimeout):
        await task
    assert (bulk.max_size, bulk.max_wait, bulk.min_size, bulk.timeout) == (3, 2, 1, 0.5)
    await manager.stop()


@pytest.mark.parametrize(
    ("name", "value"), [("max_size", 1), ("max_wait", -1), ("min_size", 101), ("timeout", 0)]
)
def test_a_change_that_cannot_be_changes_nothing(name: str, value: Any) -> None:
    bulk = BulkStrategy(Calls(), min_size=2)
    before = getattr(bulk, name)
    with pytest.raises(InvalidValue, match=name):
        setattr(bulk, name, value)
    assert getattr(bulk, name) == before


# ---- bad input ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("make", "error", "words"),
    [
        (partial(BulkStrategy, 3), InvalidType, "handler must be an async function"),  # type: ignore[arg-type]
        (partial(BulkStrategy, Calls(), max_size=0), InvalidValue, "max_size"),
        (partial(BulkStrategy, Calls(), max_size=2.5), InvalidType, "max_size"),  # type: ignore[arg-type]
        (partial(BulkStrategy, Calls(), max_wait=-1), InvalidValue, "max_wait"),
        (partial(BulkStrategy, Calls(), max_wait=inf), InvalidValue, "max_wait"),
        (partial(BulkStrategy, Calls(), min_size=0), InvalidValue, "min_size"),
        (partial(BulkStrategy, Calls(), min_size=9, max_size=8), InvalidValue, "at most 8, not 9"),
        (partial(BulkStrategy, Calls(), timeout=0), InvalidValue, "timeout"),
        (partial(BulkStrategy, Calls(), key=3), InvalidType, "key"),  # type: ignore[arg-type]
    ],
)
def test_what_cannot_be_is_refused(
    make: Callable[[], object], error: type[Exception], words: str
) -> None:
    with pytest.raises(error, match=words):
        make()


async def test_an_item_needs_a_bulk_strategy() -> None:
    manager = TaskManager(ConcurrentLimitStrategy(1))
    with pytest.raises(InvalidType, match=r"Item\(3\): it needs a BulkStrategy in the chain"):
        manager.add_task(Item(3))
    with pytest.raises(InvalidState, match="is no work by itself"):
        await Task(Item(3)).run()


async def test_an_unhashable_key_is_refused() -> None:
    manager = TaskManager(BulkStrategy(Calls(), key="tags"))
    with pytest.raises(InvalidType, match="must be hashable, not \\['a'\\]"):
        manager.add_task(Item(3), {"tags": ["a"]})
    assert manager.stats().queued == 0


def test_a_chain_makes_batches_in_one_place() -> None:
    with pytest.raises(InvalidValue, match="one strategy that makes batches, not 2"):
        Chain(BulkStrategy(Calls()), BulkStrategy(Calls()))


def test_a_copy_shares_the_handler_and_nothing_else() -> None:
    calls = Calls()
    bulk = BulkStrategy(calls, max_size=5, key="table")
    twin = copy.deepcopy(bulk)
    twin.max_size = 7
    assert bulk.max_size == 5
    assert twin.handler is calls
    assert isinstance(twin, Role)


async def handle(values: Sequence[Any]) -> Sequence[Any]:
    return values


def test_it_shows_what_was_given() -> None:
    assert repr(BulkStrategy(handle)) == "BulkStrategy(handle)"
    given = BulkStrategy(handle, max_size=5, max_wait=1, min_size=2, timeout=3, key="table")
    assert repr(given) == (
        "BulkStrategy(handle, max_size=5, max_wait=1, min_size=2, timeout=3, key='table')"
    )
