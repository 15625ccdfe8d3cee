"""Tasks spread over resources: exact over every cycle, past the unhealthy."""

from __future__ import annotations

import asyncio
from collections import Counter
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from async_task_manager import Chain, TaskManager, current_task
from async_task_manager.errors import InvalidType, InvalidValue, StrategyError, UnknownProvider
from async_task_manager.strategies import ConcurrentLimitStrategy, WeightedRoundRobinStrategy
from async_task_manager.task import Task


async def where() -> str:
    task = current_task()
    assert task is not None
    assert task.provider is not None
    return task.provider


async def sent(strategy: WeightedRoundRobinStrategy, count: int) -> list[str]:
    manager = TaskManager(Chain(strategy, ConcurrentLimitStrategy(1)))
    tasks = [manager.add_task(where) for _ in range(count)]
    async with manager:
        pass
    return [await task for task in tasks]


async def test_five_to_one() -> None:
    assert "".join(await sent(WeightedRoundRobinStrategy({"a": 5, "b": 1}), 12)) == "aaabaa" * 2


@given(weights=st.dictionaries(st.text("abcde", min_size=1), st.integers(1, 9), min_size=1))
def test_every_cycle_is_exact(weights: dict[str, int]) -> None:
    strategy = WeightedRoundRobinStrategy(weights)
    for _ in range(3):
        chosen: Counter[str] = Counter()
        for _ in range(sum(weights.values())):
            strategy.add_task(Task(where))
            task = strategy.get_next_task()
            assert task is not None
            chosen[str(task.provider)] += 1
        assert chosen == weights


async def test_the_unhealthy_are_passed_over_and_get_no_burst_afterwards() -> None:
    healthy = {"b": True}
    strategy = WeightedRoundRobinStrategy({"a": 2, "b": 2, "c": 1}, health=healthy)
    async with TaskManager(strategy) as manager:

        async def spread(count: int) -> Counter[str]:
            return Counter(await manager.gather(*[where] * count))

        assert await spread(10) == {"a": 4, "b": 4, "c": 2}
        healthy["b"] = False
        assert await spread(30) == {"a": 20, "c": 10}
        healthy["b"] = True
        assert await spread(10) == {"a": 4, "b": 4, "c": 2}


async def test_when_nobody_is_healthy_tasks_wait_until_it_is_told_that_one_is() -> None:
    well: set[str] = set()
    strategy = WeightedRoundRobinStrategy({"a": 1, "b": 1}, health=well.__contains__)
    async with TaskManager(strategy) as manager:
        task = manager.add_task(where)
        assert not await _done_soon(manager, task)
        well.add("b")
        strategy.changed()
        assert await task == "b"


async def test_an_async_check_is_made_every_so_often_and_wakes_what_waits() -> None:
    sick: set[str] = set()
    asked: list[tuple[float, str]] = []
    loop = asyncio.get_running_loop()

    async def check(name: str) -> bool:
        asked.append((loop.time(), name))
        await asyncio.sleep(0.1)
        if name == "b" and "b" in sick:
            raise ConnectionError
        if name == "c" and "c" in sick:
            await asyncio.sleep(100)
        return name not in sick

    strategy = WeightedRoundRobinStrategy(dict.fromkeys("abc", 1), health=check, health_interval=2)
    strategy.observe({"x-ratelimit-remaining": "5"}, 0.0)  # other facts are none of its business
    async with TaskManager(strategy) as manager:
        assert Counter(await manager.gather(*[where] * 6)) == {"a": 2, "b": 2, "c": 2}
        sick |= {"a", "b", "c"}
        await asyncio.sleep(7)
        waiting = manager.add_task(where)
        assert not await _done_soon(manager, waiting)
        sick -= {"b"}
        assert await waiting == "b"
        assert Counter(await manager.gather(*[where] * 3)) == {"b": 3}
        sick.clear()
        await asyncio.sleep(10)
        assert Counter(await manager.gather(*[where] * 6)) == {"a": 2, "b": 2, "c": 2}
    assert asked[:3] == [(2, "a"), (2, "b"), (2, "c")]


async def test_an_object_that_is_called_like_an_async_function_is_one() -> None:
    class Check:
        async def __call__(self, name: str) -> bool:
            return name == "a"

    strategy = WeightedRoundRobinStrategy({"a": 1, "b": 1}, health=Check(), health_interval=1)
    async with TaskManager(strategy) as manager:
        await asyncio.sleep(1.5)
        assert Counter(await manager.gather(*[where] * 4)) == {"a": 4}


async def test_a_coroutine_is_no_answer() -> None:
    async def check(name: str) -> bool:
        return False

    strategy = WeightedRoundRobinStrategy({"a": 1}, health=lambda name: check(name.upper()))
    manager = TaskManager(strategy)
    await manager.idle()
    with pytest.raises(StrategyError, match="health must be an async function"):
        await manager.add_task(where)
    with pytest.raises(StrategyError):
        await manager.join()
    await manager.stop()


async def _done_soon(manager: TaskManager, task: Task[Any]) -> bool:
    await asyncio.sleep(10)
    return task.done()


async def test_resources_change_live_and_can_be_named_by_the_task() -> None:
    strategy = WeightedRoundRobinStrategy({"a": 1, "b": 1}, field="server")
    async with TaskManager(strategy) as manager:
        assert await manager.add_task(where, {"server": "b"}) == "b"
        with pytest.raises(UnknownProvider, match="did you mean 'b'"):
            manager.add_task(where, {"server": "B"})
        strategy["b"].weight = 3
        assert Counter(await manager.gather(*[where] * 8)) == {"a": 2, "b": 6}
        strategy["a"].disable()
        assert Counter(await manager.gather(*[where] * 8)) == {"b": 8}


@pytest.mark.parametrize(
    ("arguments", "options", "error", "says"),
    [
        ([{}], {}, InvalidValue, "weights must name at least one resource"),
        ([["a"]], {}, InvalidType, r"weights must map names to numbers, not \['a'\]"),
        ([{"a": 0}], {}, InvalidValue, "weight of 'a' .* above 0, not 0"),
        ([{1: 1}], {}, InvalidType, "name must be a non-empty str, not 1"),
        ([{"a": 1}], {"health": True}, InvalidType, "health must be .*, not True"),
        ([{"a": 1}], {"health_interval": 0}, InvalidValue, "health_interval .* above 0, not 0"),
        ([{"a": 1}], {"field": 3}, InvalidType, "field must be .*, not 3"),
    ],
)
def test_bad_parameters(
    arguments: list[Any], options: dict[str, Any], error: type[Exception], says: str
) -> None:
    with pytest.raises(error, match=says):
        WeightedRoundRobinStrategy(*arguments, **options)


@pytest.mark.parametrize(
    "text",
    [
        "WeightedRoundRobinStrategy({'a': 5, 'b': 1})",
        "WeightedRoundRobinStrategy({'a': 0.5}, health={}, health_interval=1, field='s')",
    ],
)
def test_repr_is_the_call(text: str) -> None:
    assert repr(eval(text)) == text
