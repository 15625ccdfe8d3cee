"""What will happen: `eta` and `what_if`, against what then happens."""

from __future__ import annotations

import asyncio
import random
from collections import Counter
from datetime import timedelta
from functools import partial
from typing import Any

import pytest
from test_chain_oracle import stages
from test_simulation import any_stages

from async_task_manager import (
    Chain,
    InvalidState,
    InvalidType,
    InvalidValue,
    StrategyError,
    Task,
    TaskManager,
)
from async_task_manager._ahead import run_ahead
from async_task_manager._forecast import MAX_NAMES, Durations, Forecast, WhatIf
from async_task_manager._run import Options
from async_task_manager.strategies import (
    BaseStrategy,
    BulkStrategy,
    ConcurrentLimitStrategy,
    DelayedStrategy,
    Feedback,
    Item,
    Provider,
    ProviderRouterStrategy,
    RetryAt,
    SlidingWindowStrategy,
    Source,
    TimeBasedStrategy,
)
from async_task_manager.task import Outcome
from async_task_manager.testing import run_virtual

START = 1_700_000_000.0
"""What the virtual wall clock shows at first."""


async def nap(seconds: float = 1.0) -> None:
    await asyncio.sleep(seconds)


def seconds_of(task: Task[Any]) -> float:
    return float(task.metadata["seconds"])


def metadata(rng: random.Random, seconds: float, coarse: bool) -> dict[str, Any]:
    data: dict[str, Any] = {"seconds": seconds, "number": 0}
    data["user"] = rng.choice("ab")
    data["model"] = rng.choice("xyz")
    data["priority"] = rng.choice([-1, 0, 1, "high"])
    data["cost"] = {"tokens": rng.choice([0, 0.1, 0.5, 1])}
    if rng.random() < 0.3:
        data["valid_after"] = timedelta(seconds=rng.choice([0.25, 1, 2, 2.2]))
    elif rng.random() < 0.1 and not coarse:
        # The wall clock is looked at each second, which may fall between two ends of one instant.
        data["valid_after"] = START + rng.choice([1, 2, 4])
    if rng.random() < 0.2:
        data["provider"] = "P1"
    return data


async def a_life(seed: int) -> int:
    """Some tasks, a look ahead in the middle, and what became of it: how much was foreseen."""
    rng = random.Random(seed)
    coarse = rng.random() < 0.5  # ends and openings that coincide, or never do
    manager = TaskManager(Chain(*rng.choice([stages, any_stages])(rng)))
    await manager.idle()
    tasks = []
    for _ in range(rng.randint(5, 40)):
        seconds = rng.choice([0.25, 0.5, 1, 2]) if coarse else rng.random() * 3
        try:
            tasks.append(manager.add_task(partial(nap, seconds), metadata(rng, seconds, coarse)))
        except ValueError:
            continue  # too large, or pinned to a provider that isn't there
        if rng.random() < 0.3:
            await asyncio.sleep(rng.choice([0, 0.25, 0.5, rng.random()]))
    await asyncio.sleep(rng.choice([0, 1, rng.random()]))
    waiting = [task for task in tasks if not task.done()]
    seen = {task: manager.eta(task, durations=seconds_of) for task in waiting}
    if waiting:
        last = manager.what_if(lambda chain: None, durations=seconds_of)
        assert last.before == last.after
    await asyncio.sleep(1000)
    for task, forecast in seen.items():
        if task.done():
            assert (forecast.starts_at, forecast.ends_at) == (task.started_at, task.finished_at)
        else:
            assert forecast == Forecast(None, None)  # a provider that is switched off
    if waiting and all(task.done() for task in waiting):
        assert last.after.queue_ends_at == max(task.finished_at or 0 for task in waiting)
    await manager.close()
    return sum(task.done() for task in seen)


def test_with_exact_durations_the_forecast_is_exact() -> None:
    foreseen = 0
    for seed in range(150):
        try:
            foreseen += run_virtual(a_life(seed))
        except Exception as error:
            raise AssertionError(f"life {seed}: {error!r}") from error
    assert foreseen > 1_000


async def started(*given: BaseStrategy) -> TaskManager:
    manager = TaskManager(Chain(*given))
    await manager.idle()
    return manager


async def test_durations_are_learnt_by_name() -> None:
    manager = await started(ConcurrentLimitStrategy(1))
    await manager.gather(partial(nap, 4.0), partial(nap, 4.0))
    await manager.add_task(partial(nap, 1.0), name="quick-1").wait()
    slow = manager.add_task(partial(nap, 4.0))
    quick = manager.add_task(nap, name="quick-2")
    other = manager.add_task(nap, name="other")
    await asyncio.sleep(0.5)
    now = manager._clock()
    assert manager.eta(slow).ends_at == START + 13
    assert manager.eta(quick) == Forecast(START + 13, START + 14)
    assert manager.eta(other) == Forecast(START + 14, START + 17)  # as the three did on average
    assert manager.eta(other, durations={"nap": 6.0, "other": 2.0}) == Forecast(
        START + 16, START + 18
    )
    assert manager.eta(other, durations=lambda task: 2.0) == Forecast(START + 13, START + 15)
    assert manager._clock() == now
    assert str(manager.eta(slow)).startswith("starts at ")
    with pytest.raises(InvalidType, match="durations must map names to seconds"):
        manager.eta(other, durations=5)  # type: ignore[arg-type]
    await manager.close(grace=0)


async def test_where_nothing_was_learnt_only_limits_count() -> None:
    manager = TaskManager(SlidingWindowStrategy(1, 60))
    tasks = manager.add_tasks([nap] * 3)
    await asyncio.sleep(2)
    forecast = manager.eta(tasks[2])  # as if it was started now
    assert forecast.starts_at is not None
    assert forecast.starts_at - START == pytest.approx(122)
    await manager.close()


async def test_a_running_task_that_takes_longer_than_usual_may_end_any_time() -> None:
    manager = await started(ConcurrentLimitStrategy(1))
    await manager.add_task(partial(nap, 1.0)).wait()
    late = manager.add_task(partial(nap, 10.0))
    after = manager.add_task(nap)
    await asyncio.sleep(3)
    assert manager.eta(late) == Forecast(START + 1, START + 4)
    assert manager.eta(after) == Forecast(START + 4, START + 5)
    await manager.close(grace=0)


async def test_time_limits_end_attempts_in_a_forecast_too() -> None:
    manager = await started(ConcurrentLimitStrategy(1))
    first = manager.add_task(partial(nap, 100), run_timeout=7)
    second = manager.add_task(partial(nap, 100), deadline=timedelta(seconds=20))
    third = manager.add_task(partial(nap, 100), deadline=START + 30)
    fourth = manager.add_task(partial(nap, 100), queue_timeout=25)
    fifth = manager.add_task(partial(nap, 1))
    await asyncio.sleep(1)
    seen = [manager.eta(task, durations={"nap": 100}) for task in (first, second, third, fifth)]
    assert seen == [
        Forecast(START, START + 7),
        Forecast(START + 7, START + 20),
        Forecast(START + 20, START + 30),
        Forecast(START + 30, START + 130),
    ]
    assert manager.eta(fourth, durations={"nap": 100}) == Forecast(None, None)
    assert str(manager.eta(fourth, durations={"nap": 100})) == "nothing foreseeable starts it"
    await asyncio.sleep(100)
    assert fifth.started_at == START + 30
    await manager.close()


async def test_a_change_that_opens_a_provider() -> None:
    router = ProviderRouterStrategy([Provider("groq", [SlidingWindowStrategy(30, 60)])])
    manager = await started(router)
    tasks = manager.add_tasks([nap] * 100)
    await asyncio.sleep(10)
    answer = manager.what_if(lambda chain: setattr(chain["groq"], "max_requests", 60), tasks[70])
    assert answer == WhatIf(
        tasks[70].name,
        Forecast(START + 120, START + 121, START + 181),
        Forecast(START + 60, START + 61, START + 71),
    )
    assert "s earlier; the queue ends at" in str(answer)
    assert router["groq"].max_requests == 30  # nothing was changed
    worse = manager.what_if(lambda chain: setattr(chain["groq"], "max_requests", 1))
    assert worse.task == tasks[99].name
    assert "s later; the queue ends at" in str(worse)
    same = manager.what_if(lambda chain: None, tasks[70].id)
    assert str(same).count("all the same") == 2
    never = manager.what_if(lambda chain: chain["groq"].disable())
    assert never.after == Forecast(None, None)
    assert str(never).count("nobody knows when, instead of") == 2
    with pytest.raises(InvalidType, match="change must be a function of the chain"):
        manager.what_if(60)  # type: ignore[arg-type]
    with pytest.raises(AttributeError, match="'groq' has no 'max_request'"):
        manager.what_if(lambda chain: setattr(chain["groq"], "max_request", 60))
    router["groq"].disable()
    back = manager.what_if(lambda chain: chain["groq"].enable())
    assert str(back).count(", instead of nobody knows when") == 2
    assert back.task == tasks[99].name
    assert str(manager.what_if(lambda chain: None, tasks[99])).count("nobody knows when,") == 2
    await manager.close(grace=0)


async def test_an_empty_manager_has_nothing_to_foresee() -> None:
    manager = await started(ConcurrentLimitStrategy(1))
    answer = manager.what_if(lambda chain: None)
    assert answer == WhatIf("nothing", Forecast(None, None, START), Forecast(None, None, START))
    assert str(answer).startswith("nothing waits; the queue ends at ")
    running = manager.add_task(nap)
    await asyncio.sleep(0.5)
    assert manager.what_if(lambda chain: None).task == "nothing"
    assert str(manager.what_if(lambda chain: None).after).startswith("nothing foreseeable")
    with pytest.raises(InvalidState, match="no task that is queued or runs here"):
        manager.eta(Task(nap))
    running.cancel()
    await manager.stop()


def test_names_without_end_are_not_kept_apart_without_end() -> None:
    learnt = Durations()
    task = Task(nap)
    for i in range(MAX_NAMES + 10):
        task = Task(nap)
        task._options = Options(f"job-{i}x")
        learnt.learn(task, 2.0)
    assert len(learnt._means) == MAX_NAMES
    assert learnt.of(task) == 2.0


def test_a_mean_follows_what_changes() -> None:
    learnt, task = Durations(), Task(nap)
    for _ in range(100):
        learnt.learn(task, 1.0)
    assert learnt.of(task) == 1.0
    for _ in range(300):
        learnt.learn(task, 3.0)
    assert learnt.of(task) == pytest.approx(3.0, rel=0.01)


# ---- run_ahead by itself ------------------------------------------------------------------------


def test_what_comes_later_is_taken_in_when_it_comes() -> None:
    chain = Chain(DelayedStrategy(1))
    tasks = [Task(nap) for _ in range(4)]
    begun: list[tuple[int, float]] = []
    over = run_ahead(
        chain,
        0.0,
        lasts=lambda task: 2.0,
        arrivals=[(0.0, tasks[0]), (0.0, tasks[1]), (20.0, tasks[2]), (20.5, tasks[3])],
        on_start=lambda task, now: begun.append((tasks.index(task), now)),
    )
    assert begun == [(0, 0.0), (1, 3.0), (2, 20.0), (3, 23.0)]
    assert over == 25.0
    assert {task.state for task in tasks} == {"succeeded"}


def test_who_is_refused_or_expires_is_told_of() -> None:
    chain = Chain(ConcurrentLimitStrategy(1, cost="tokens"), TimeBasedStrategy())
    gone: list[tuple[str, float]] = []
    good, large = Task(nap, {"cost": 1}), Task(nap, {"cost": 5})

    def note(task: Task[Any], error: Exception, now: float) -> None:
        gone.append((type(error).__name__, now))

    run_ahead(chain, 0.0, lasts=lambda task: 1.0, arrivals=[(1.0, large)], on_gone=note)
    assert gone == [("TaskTooLarge", 1.0)]
    assert large.state == "rejected"
    with pytest.raises(ValueError, match="no wait could ever admit it"):
        run_ahead(chain, 2.0, lasts=lambda task: 1.0, arrivals=[(2.0, Task(nap, {"cost": 5}))])
    run_ahead(chain, 3.0, lasts=lambda task: 1.0, arrivals=[(3.0, good)])
    assert good.state == "succeeded"


def test_an_attempt_can_fail_as_it_is_told_to() -> None:
    chain = Chain(ConcurrentLimitStrategy(1))
    task, ends = Task(nap), []

    def outcome(task: Task[Any], began: float, now: float) -> Outcome:
        return Outcome("failure", began, now, ValueError("no"))

    run_ahead(
        chain,
        0.0,
        lasts=lambda task: 1.0,
        arrivals=[(0.0, task)],
        outcome_of=outcome,
        on_end=lambda task, outcome, now: ends.append((outcome.kind, now)),
    )
    assert ends == [("failure", 1.0)]
    assert task.state == "failed"


class Every(Source):
    """A task of its own each second."""

    def __init__(self) -> None:
        self.next = 1.0

    def next_due(self, now: float) -> float:
        return self.next

    def emit(self, now: float) -> list[Task]:
        self.next += 1
        return [Task(nap)]


async def test_tasks_that_nobody_added_are_foreseen_and_not_waited_for() -> None:
    manager = await started(Every(), TimeBasedStrategy(), ConcurrentLimitStrategy(1))
    manager.add_task(partial(nap, 1.5))
    late = manager.add_task(partial(nap, 1.5), {"valid_after": timedelta(seconds=5)})
    await asyncio.sleep(0.5)
    answer = manager.what_if(lambda chain: None, durations={"nap": 1.5})
    # Three that the source made come in between.
    assert answer.before == Forecast(START + 6, START + 7.5, START + 7.5)
    assert manager.eta(late, durations={"nap": 1.5}) == Forecast(START + 6, START + 7.5)
    await manager.close(grace=0)


def test_more_than_a_turn_starts_at_one_instant_and_what_expires_may_go_unnoticed() -> None:
    chain = Chain(ConcurrentLimitStrategy(100))
    tasks = [Task(nap) for _ in range(150)]
    for task in tasks:
        task._options = Options(queue_timeout=0.5)
    begun: list[float] = []
    run_ahead(
        chain,
        0.0,
        lasts=lambda task: 1.0,
        arrivals=[(0.0, task) for task in tasks],
        on_start=lambda task, now: begun.append(now),
    )
    assert begun == [0.0] * 100
    assert Counter(task.state for task in tasks) == {"succeeded": 100, "expired": 50}


def test_a_failed_attempt_is_followed_by_another_where_the_chain_says_so() -> None:
    class Once(Feedback):
        def review(self, task: Task, outcome: Outcome, now: float) -> RetryAt | None:
            return RetryAt(now + 5) if outcome.kind == "failure" and task.attempt < 2 else None

    chain, task = Chain(Once()), Task(nap)
    task._options = Options(run_timeout=2.0)
    starts, ends = [], []
    run_ahead(
        chain,
        0.0,
        lasts=lambda task: 2.0 / task.attempt**2,
        arrivals=[(0.0, task)],
        on_start=lambda task, now: starts.append(now),
        on_end=lambda task, outcome, now: ends.append((outcome.kind, now)),
    )
    assert starts == [0.0, 7.0]
    assert ends == [("success", 7.5)]


@pytest.mark.parametrize("seconds", [-1.0, float("nan"), float("inf"), "soon"])
async def test_what_is_no_duration_is_refused(seconds: Any) -> None:
    manager = await started(ConcurrentLimitStrategy(1))
    tasks = manager.add_tasks([nap] * 2)
    await asyncio.sleep(0.5)
    with pytest.raises((InvalidValue, InvalidType), match=r"durations\['nap'\] must be a"):
        manager.eta(tasks[1], durations={"nap": seconds})
    with pytest.raises((InvalidValue, InvalidType), match=r"the duration of <Task .* must be a"):
        manager.eta(tasks[1], durations=lambda task: seconds)
    await manager.close(grace=0)


class Poison(ConcurrentLimitStrategy):
    """Answers as it is told, and in a copy only."""

    def __init__(self, method: str) -> None:
        super().__init__(1)
        self.method = method
        self.poisoned = False

    def __getattribute__(self, name: str) -> Any:
        get = super().__getattribute__
        if name in ("ready_at", "acquire", "release") and get("poisoned") and name == get("method"):
            raise ZeroDivisionError
        return get(name)


@pytest.mark.parametrize("method", ["ready_at", "acquire", "release"])
async def test_a_strategy_that_raises_is_named_and_harms_nothing(method: str) -> None:
    poison = Poison(method)
    manager = await started(poison)
    tasks = manager.add_tasks([nap] * 3)
    await asyncio.sleep(0.5)

    def change(chain: Chain) -> None:
        chain["poison"].poisoned = True

    with pytest.raises(StrategyError, match=r"Poison\(1\) raised ZeroDivisionError"):
        manager.what_if(change, durations={"nap": 1.0})
    if method == "ready_at":
        poison.poisoned = True
        with pytest.raises(StrategyError, match="ZeroDivisionError"):
            manager.explain(tasks[2])
        with pytest.raises(StrategyError, match="ZeroDivisionError"):
            manager.explain()
        poison.poisoned = False
    await manager.gather(nap)
    assert [task.state for task in tasks] == ["succeeded"] * 3
    await manager.stop()


async def test_an_item_of_a_call_that_was_handed_out_just_now() -> None:
    async def double(values: list[int]) -> list[int]:
        await asyncio.sleep(2)
        return [2 * value for value in values]

    manager = await started(
        BulkStrategy(double, max_size=2, max_wait=9), ConcurrentLimitStrategy(1)
    )
    tasks = [manager.add_task(Item(i)) for i in range(5)]
    await asyncio.sleep(0)
    assert tasks[0].state == "running" and tasks[0].started_at is None
    seen = [manager.eta(task, durations=lambda task: 2.0) for task in tasks]
    await asyncio.sleep(0.5)
    assert [manager.eta(task, durations=lambda task: 2.0) for task in tasks] == seen
    await asyncio.sleep(100)
    assert seen == [Forecast(task.started_at, task.finished_at) for task in tasks]
    await manager.stop()


async def test_a_feedback_that_names_no_instant_is_named() -> None:
    class Never(Feedback):
        def review(self, task: Task, outcome: Outcome, now: float) -> RetryAt | None:
            return RetryAt(float("nan"))

        def __repr__(self) -> str:
            return "Never()"

    manager = await started(Never(), ConcurrentLimitStrategy(1))
    tasks = manager.add_tasks([nap] * 2)
    await asyncio.sleep(0.5)
    with pytest.raises(StrategyError, match=r"^Never\(\): review must give None"):
        manager.eta(tasks[1], durations={"nap": 1.0})
    await manager.close(grace=0)


async def tick() -> None:
    await asyncio.sleep(1)


async def test_schedules_are_foreseen_and_say_nothing_of_what_has_not_happened(
    caplog: pytest.LogCaptureFixture,
) -> None:
    times = TimeBasedStrategy()
    manager = await started(times, ConcurrentLimitStrategy(1))
    times.schedule(tick, every=3)  # one is under way while it waits for the slot, and some are not
    tasks = [manager.add_task(partial(nap, 2.0)) for _ in range(6)]
    await asyncio.sleep(3.5)
    tasks.append(manager.add_task(partial(nap, 2.0)))
    seen = {task: manager.eta(task, durations={"nap": 2.0, "tick": 1.0}) for task in tasks[1:]}
    assert not caplog.records
    await asyncio.sleep(30)
    for task, forecast in seen.items():
        assert forecast == Forecast(task.started_at, task.finished_at)
    assert caplog.records  # now it has happened
    await manager.close(grace=0)
