"""Why a task waits, in a sentence: `manager.explain`."""

from __future__ import annotations

import asyncio
from collections.abc import Hashable
from datetime import datetime, timedelta
from typing import Any

import pytest

from async_task_manager import Chain, InvalidState, Task, TaskManager, TaskRejected, TaskTooLarge
from async_task_manager._forecast import clock_words
from async_task_manager.strategies import (
    BaseStrategy,
    ConcurrentLimitStrategy,
    DelayedStrategy,
    Feedback,
    FixedWindowStrategy,
    Hold,
    Limit,
    PriorityQueueStrategy,
    Provider,
    ProviderRouterStrategy,
    RetryAt,
    SlidingWindowStrategy,
    TimeBasedStrategy,
    TokenBucketStrategy,
    Usage,
)
from async_task_manager.task import Outcome

START = 1_700_000_000.0


async def nap(seconds: float = 10.0) -> None:
    await asyncio.sleep(seconds)


def at(seconds: float) -> str:
    return clock_words(START + seconds)


async def running(*stages: BaseStrategy) -> TaskManager:
    manager = TaskManager(Chain(*stages))
    await manager.idle()
    return manager


async def test_a_line_before_a_provider() -> None:
    groq = Provider("groq", [SlidingWindowStrategy(30, 60)])
    manager = await running(ProviderRouterStrategy([groq]))
    tasks = manager.add_tasks([nap] * 40)
    await asyncio.sleep(7)
    answer = manager.explain(tasks[33])
    assert str(answer) == (
        "4th in line; provider groq has used 30 of 30 requests in the last minute, "
        f"next at {at(60)}"
    )
    assert (answer.task, answer.state, answer.position) == (tasks[33].name, "queued", 4)
    (reason,) = answer.reasons
    assert (reason.stage, reason.key, reason.provider) == (groq.limits[0], None, "groq")
    assert (reason.usage, reason.opens_at) == (Usage(30, 30, START + 60), START + 60)
    assert manager.explain(tasks[33].id) == answer
    assert str(manager.explain()) == (
        "10 queued, 30 running; 10 wait: provider groq has used 30 of 30 requests in the last "
        f"minute, next at {at(60)}"
    )
    await manager.close(grace=0)


@pytest.mark.parametrize(
    ("limit", "words"),
    [
        (ConcurrentLimitStrategy(1), "runs 1 of 1 task at once, next when something ends"),
        (ConcurrentLimitStrategy(3, cost=2), "runs 2 of 3 units at once, next when something ends"),
        (
            ConcurrentLimitStrategy(5, cost="tokens"),
            "runs 4 of 5 tokens at once, next when something ends",
        ),
        (SlidingWindowStrategy(1, 90), "has used 1 of 1 request in the last 90 s, next at {90}"),
        (FixedWindowStrategy(1, 3600), "has used 1 of 1 request this hour, next at {3600}"),
        (FixedWindowStrategy(1, 90), "has used 1 of 1 request in these 90 s, next at {90}"),
        (
            FixedWindowStrategy(1, "day", align="clock", timezone="UTC"),
            "has used 1 of 1 request this day, next at {6400}",
        ),
        (
            TokenBucketStrategy(0.5, 1),
            "has used 0.5 of the 1 request that may go at once, next at {2}",
        ),
        (DelayedStrategy(5), "runs one task at a time, 5 s apart, next when something ends"),
        (
            DelayedStrategy(2.5, measure_from="start"),
            "starts tasks at least 2.5 s apart, next at {2.5}",
        ),
    ],
    ids=repr,
)
async def test_each_limit_has_its_words(limit: Limit, words: str) -> None:
    manager = await running(limit)
    tasks = manager.add_tasks([nap] * 2, {"cost": {"tokens": 4}})
    await asyncio.sleep(1)
    sentence = str(manager.explain(tasks[1]))
    if "{" in words:
        seconds = float(words[words.index("{") + 1 : -1])
        words = words[: words.index("{")] + at(seconds)
    assert sentence == f"1st in line; the manager {words}"
    await manager.close(grace=0)


@pytest.mark.parametrize(
    ("place", "word"), [(1, "1st"), (2, "2nd"), (3, "3rd"), (4, "4th"), (11, "11th"), (22, "22nd")]
)
async def test_places_are_said_as_people_do(place: int, word: str) -> None:
    manager = await running(ConcurrentLimitStrategy(1))
    tasks = manager.add_tasks([nap] * 30)
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    assert str(manager.explain(tasks[place])).startswith(f"{word} in line; ")
    await manager.close(grace=0)


async def test_the_place_is_that_among_those_who_wait_for_the_same() -> None:
    manager = await running(PriorityQueueStrategy(), ConcurrentLimitStrategy(1, key="user"))
    ann = [manager.add_task(nap, {"user": "ann", "priority": p}) for p in (0, 0, 0, 5, 1)]
    bob = [manager.add_task(nap, {"user": "bob"}) for _ in range(3)]
    await asyncio.sleep(1)
    assert ann[3].state == bob[0].state == "running"
    assert [manager.explain(task).position for task in ann] == [2, 3, 4, None, 1]
    assert [manager.explain(task).position for task in bob] == [None, 1, 2]
    assert str(manager.explain(bob[1])) == (
        "1st in line; user 'bob' runs 1 of 1 task at once, next when something ends"
    )
    backlog = manager.explain()
    assert [(cause.tasks, cause.reason.key) for cause in backlog.causes] == [(4, "ann"), (2, "bob")]
    await manager.close(grace=0)


async def test_what_opens_last_binds_and_comes_first() -> None:
    for order in ((0, 1, 2), (2, 1, 0)):
        minute, slots = SlidingWindowStrategy(2, 60), ConcurrentLimitStrategy(2)
        window = SlidingWindowStrategy(2, 12)
        stages = [[minute, window, slots][i] for i in order]
        manager = await running(*stages)
        tasks = manager.add_tasks([nap] * 4)
        await asyncio.sleep(1)
        reasons = [reason.stage for reason in manager.explain(tasks[3]).reasons]
        assert reasons == [slots, minute, window]
        await asyncio.sleep(10)
        reasons = [reason.stage for reason in manager.explain(tasks[3]).reasons]
        assert reasons == [minute, window]
        await manager.close(grace=0)


async def test_of_several_providers_the_first_to_open_comes_first() -> None:
    slow = Provider("slow", [SlidingWindowStrategy(1, 60, key="user")])
    fast = Provider("fast", [SlidingWindowStrategy(1, 30), ConcurrentLimitStrategy(9)])
    off = Provider("off", enabled=False)
    manager = await running(ProviderRouterStrategy([slow, fast, off]))
    tasks = [manager.add_task(nap, {"user": "ann"}) for _ in range(3)]
    pinned = manager.add_task(nap, {"user": "ann", "provider": "off"})
    await asyncio.sleep(1)
    answer = manager.explain(tasks[2])
    assert [reason.provider for reason in answer.reasons] == ["fast", "slow"]
    assert str(answer).endswith(
        f"provider slow for user 'ann' has used 1 of 1 request in the last minute, next at {at(60)}"
    )
    assert str(manager.explain(pinned)) == "1st in line; off is disabled"
    slow.disable()
    fast.disable()
    assert str(manager.explain(tasks[2])) == "1st in line; no provider is open"
    fast.enable()
    fast.max_requests = 5
    assert str(manager.explain(tasks[2])) == "1st in line; nothing holds it back"
    await manager.close(grace=0)


async def test_a_line_whose_first_is_about_to_start() -> None:
    limit = ConcurrentLimitStrategy(1)
    manager = await running(limit)
    tasks = manager.add_tasks([nap] * 4)
    await asyncio.sleep(1)
    limit.max_concurrent = 2
    assert str(manager.explain(tasks[1])) == "1st in line; nothing holds it back"
    assert str(manager.explain(tasks[3])) == "3rd in line; the line is moving"
    await manager.close(grace=0)


async def test_other_states() -> None:
    manager = TaskManager(Chain(ProviderRouterStrategy([Provider("groq")]), Again()))
    task = manager.add_task(failing)
    assert str(manager.explain(task)) == "the manager was not started; 1st in line"
    assert str(manager.explain()) == "1 queued, 0 running; the manager was not started"
    await manager.idle()
    await asyncio.sleep(0)
    assert task.state == "running"
    assert str(manager.explain(task)) == "runs on groq from now on"
    await asyncio.sleep(0.5)
    assert str(manager.explain(task)) == f"runs on groq since {at(0)}"
    await asyncio.sleep(1)
    assert str(manager.explain(task)) == f"to be tried again at {at(6)}"
    await asyncio.sleep(5)
    assert str(manager.explain(task)) == f"runs on groq since {at(6)}, attempt 2"
    manager.pause()
    second = manager.add_task(nap)
    assert str(manager.explain(second)) == "the manager is paused; 1st in line"
    manager.resume()
    await asyncio.sleep(1)
    assert task.done()
    assert str(manager.explain(task)) == "failed"
    with pytest.raises(ValueError, match="no luck"):
        task.result()
    await manager.stop(grace=0)
    third = manager.add_task(nap)
    assert str(manager.explain(third)) == "the manager was stopped; 1st in line"
    with pytest.raises(InvalidState, match="no task that is queued or runs here"):
        manager.explain(10**9)
    with pytest.raises(InvalidState, match="no task that is queued or runs here"):
        manager.explain(Task(nap))
    await manager.close()


class Broken(ConcurrentLimitStrategy):
    def ready_at(self, key: Hashable, cost: Any, now: float) -> float:
        raise ZeroDivisionError


async def test_a_strategy_that_failed_is_told() -> None:
    manager = await running(Broken(1))
    task = manager.add_task(nap)
    await asyncio.sleep(1)
    assert str(manager.explain()) == "0 queued, 0 running; a strategy failed"
    assert task.exception() is not None


async def failing() -> None:
    await asyncio.sleep(1)
    raise ValueError("no luck")


class Again(Feedback):
    """Once more, five seconds later."""

    def review(self, task: Task, outcome: Outcome, now: float) -> RetryAt | None:
        return RetryAt(now + 5) if outcome.kind == "failure" and task.attempt < 2 else None


class From(Hold):
    def not_before(self, task: Task, now: float) -> float:
        return float(task.metadata.get("from", now))


async def test_who_holds_a_task_and_until_when() -> None:
    manager = await running(From(), TimeBasedStrategy(), ConcurrentLimitStrategy(1))
    late = manager.add_task(nap, {"valid_after": timedelta(seconds=50), "from": 20})
    soon = manager.add_task(nap, {"valid_after": timedelta(seconds=5)})
    wall = manager.add_task(nap, {"valid_after": datetime.fromtimestamp(START + 30), "from": 10})
    await asyncio.sleep(1)
    assert str(manager.explain(late)) == f"held until {at(50)} by time_based"
    assert str(manager.explain(soon)) == f"held until {at(5)} by time_based"
    assert str(manager.explain(wall)) == f"held until {at(30)} by time_based"
    assert manager.explain(late).position is None
    await asyncio.sleep(10)  # now the wall clock alone holds it
    assert str(manager.explain(wall)) == f"held until {at(30)} by time_based"
    assert str(manager.explain()) == (
        f"2 queued, 1 running; 2 wait: held until {at(30)} by time_based"
    )
    await manager.close(grace=0)


async def test_the_deadline_of_a_held_task_is_no_hold() -> None:
    manager = await running(TimeBasedStrategy())
    noon = datetime.fromtimestamp(START + 30)
    task = manager.add_task(nap, {"valid_after": noon}, deadline=START + 90, queue_timeout=80)
    await asyncio.sleep(1)
    assert str(manager.explain(task)) == f"held until {at(30)} by time_based"
    await manager.close(grace=0)


class Pile(BaseStrategy):
    """Keeps all but the last."""

    def __init__(self) -> None:
        self.tasks: list[Task] = []

    def add_task(self, task: Task) -> None:
        self.tasks.append(task)

    def get_next_task(self) -> Task | None:
        return self.tasks.pop() if len(self.tasks) > 1 else None

    async def get_sleep_interval(self) -> float | None:
        return None

    def __repr__(self) -> str:
        return "Pile()"


async def test_what_a_custom_strategy_has_only_it_knows() -> None:
    manager = await running(Pile(), ConcurrentLimitStrategy(1))
    tasks = manager.add_tasks([nap] * 5)
    await asyncio.sleep(1)
    states = [str(manager.explain(task)) for task in tasks if task.state == "queued"]
    inside = "inside Pile(), which doesn't say what for"
    line = "1st in line; the manager runs 1 of 1 task at once, next when something ends"
    assert sorted(states) == [line, inside, inside, inside]
    assert str(manager.explain()).startswith("4 queued, 1 running; 3 wait: inside Pile(), ")
    with pytest.raises(InvalidState, match="four methods only"):
        manager.eta(next(task for task in tasks if task.state == "queued"))
    await manager.close(grace=0)


async def test_what_is_to_be_refused_counts_as_closed() -> None:
    class Refuses(ConcurrentLimitStrategy):
        error: Exception | None = None

        def ready_at(self, key: Hashable, cost: Any, now: float) -> float:
            if self.error is not None:
                raise self.error
            return super().ready_at(key, cost, now)

    limit = Refuses(2)
    manager = await running(limit)
    manager.pause()
    task = manager.add_task(nap)
    assert manager.explain(task).reasons == ()
    for error, opens in [
        (TaskRejected("no", 9.0), START + 9),
        (TaskRejected("no"), None),
        (TaskTooLarge("no"), None),
    ]:
        limit.error = error
        assert [reason.opens_at for reason in manager.explain(task).reasons] == [opens]
    await manager.close()


async def test_many_causes_are_summed_up() -> None:
    manager = await running(ConcurrentLimitStrategy(1, key="user"))
    for user in range(6):
        for _ in range(3 if user else 2):
            manager.add_task(nap, {"user": user})
    await asyncio.sleep(1)
    sentence = str(manager.explain())
    assert sentence.startswith("11 queued, 6 running; 2 wait: user 1 runs 1 of 1 task at once, ")
    assert sentence.endswith("; 5 for 3 other reasons")
    assert len(manager.explain().causes) == 6
    await manager.close(grace=0)
