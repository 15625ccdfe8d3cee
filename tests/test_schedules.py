"""Work that comes round by itself: when, and what becomes of runs that were missed."""

from __future__ import annotations

import asyncio
import copy
import logging
import random
import time
from datetime import UTC, datetime, timedelta
from functools import partial
from math import inf, nextafter
from typing import Any
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from async_task_manager import Chain, TaskManager
from async_task_manager.errors import InvalidType, InvalidValue
from async_task_manager.strategies import (
    BulkStrategy,
    ConcurrentLimitStrategy,
    Item,
    PriorityQueueStrategy,
    SlidingWindowStrategy,
    TimeBasedStrategy,
    time_based,
)
from async_task_manager.strategies import _schedules as machine
from async_task_manager.strategies._snapshot import snapshot_of
from async_task_manager.strategies.time_based import Schedule
from async_task_manager.testing import VirtualTimeLoop

NOON = datetime(2023, 11, 14, 12, tzinfo=UTC)


def now() -> float:
    return asyncio.get_running_loop().time()


def virtual() -> VirtualTimeLoop:
    loop = asyncio.get_running_loop()
    assert isinstance(loop, VirtualTimeLoop)
    return loop


class Runs:
    """Work that notes when it began."""

    def __init__(self, seconds: float = 0.0) -> None:
        self.seconds = seconds
        self.at: list[float] = []

    async def __call__(self) -> None:
        self.at.append(now())
        await asyncio.sleep(self.seconds)


async def running(**options: Any) -> tuple[TaskManager, TimeBasedStrategy]:
    strategy = TimeBasedStrategy(seed=1)
    manager = TaskManager(Chain(strategy), **options)
    await manager.idle()
    return manager, strategy


def wall() -> datetime:
    return datetime.fromtimestamp(virtual().wall_time(), UTC)


def kinds(schedule: Schedule) -> list[str]:
    return [firing.kind for firing in schedule.history]


# ---- when ---------------------------------------------------------------------------------------


async def test_at_a_time() -> None:
    manager, strategy = await running()
    for at in (
        timedelta(seconds=3),
        wall() + timedelta(seconds=5),
        virtual().wall_time() + 7,
        timedelta(seconds=-9),
        wall() - timedelta(days=1),  # late, and no grace was named: it runs
    ):
        runs = Runs()
        schedule = strategy.schedule(runs, at=at)
        await asyncio.sleep(10)
        assert runs.at
        assert schedule.next_run is None
        assert schedule.state == "ended"
        assert kinds(schedule) == ["ran"]
    assert strategy.schedules == ()
    await manager.stop()


async def test_at_a_naive_time_is_in_the_zone_of_the_schedule() -> None:
    manager, strategy = await running()
    zone = ZoneInfo("Australia/Lord_Howe")
    local = (wall() + timedelta(seconds=60)).astimezone(zone)
    runs = Runs()
    schedule = strategy.schedule(runs, at=local.replace(tzinfo=None), timezone=zone)
    assert schedule.next_run == local
    assert schedule.next_run.tzinfo is zone
    await asyncio.sleep(61)
    assert runs.at == [60]
    await manager.stop()


async def test_every_so_often_without_drift() -> None:
    manager, strategy = await running()
    await asyncio.sleep(1)
    runs = Runs(seconds=0.3)
    schedule = strategy.schedule(runs, every=0.7)
    assert schedule.next_run is not None
    assert schedule.next_run.timestamp() == pytest.approx(virtual().wall_time() + 0.7)
    await asyncio.sleep(700.5)
    assert len(runs.at) == 1000
    assert runs.at == [1 + 0.7 + i * 0.7 for i in range(1000)]
    await manager.stop()
    assert (await asyncio.gather(*[f.task for f in schedule.history if f.task])).count(None) == 100


async def test_every_with_a_start_goes_by_the_clock() -> None:
    manager, strategy = await running()
    runs = Runs()
    begin = wall() + timedelta(seconds=10)
    schedule = strategy.schedule(
        runs, every=timedelta(seconds=5), start=begin, end=begin + timedelta(seconds=15)
    )
    await asyncio.sleep(60)
    assert runs.at == [10, 15, 20, 25]
    assert schedule.state == "ended"
    past = strategy.schedule(runs, every=5, start=wall() - timedelta(seconds=12))
    assert past.next_run == wall() + timedelta(seconds=3)
    past.cancel()
    only_end = strategy.schedule(runs, every=5, end=virtual().wall_time() + 12)
    await asyncio.sleep(60)
    assert runs.at[4:] == [65, 70]
    assert only_end.next_run is None
    await manager.stop()


def test_cron_by_the_clocks_of_a_zone() -> None:
    strategy = TimeBasedStrategy()
    chain = Chain(strategy)
    schedule = strategy.schedule(
        Runs(), cron="30 9 * * MON-FRI", timezone="Europe/Berlin", max_running=9
    )
    chain.set_wall_offset(NOON.timestamp(), 0.0)
    seen, at = [], 0.0
    for _ in range(6):
        assert schedule.next_run is not None
        seen.append(schedule.next_run)
        at = chain.next_wake(at)
        assert chain.pull(nextafter(at, -inf)) is None
        assert chain.pull(at) is not None
    assert [f"{moment:%a %H:%M}" for moment in seen] == [
        *(f"{day} 09:30" for day in ("Wed", "Thu", "Fri", "Mon", "Tue", "Wed")),
    ]
    assert [firing.due for firing in schedule.history] == seen


async def test_a_run_that_is_due_just_at_the_start_is_one() -> None:
    manager, strategy = await running()
    runs = Runs()
    begin = wall().replace(second=0, microsecond=0) + timedelta(minutes=5)
    strategy.schedule(runs, cron="* * * * *", start=begin, end=begin + timedelta(minutes=2))
    await asyncio.sleep(3600)
    assert len(runs.at) == 3
    await manager.stop()


async def test_a_schedule_that_can_never_run_ends_at_once() -> None:
    manager, strategy = await running()
    schedule = strategy.schedule(Runs(), cron="0 0 29 2 *", end=wall() + timedelta(days=9))
    assert schedule.state == "ended"
    assert schedule.next_run is None
    assert strategy.schedules == ()
    await manager.stop()


async def test_what_is_scheduled_before_the_start_counts_from_there() -> None:
    strategy = TimeBasedStrategy()
    runs, by_cron = Runs(), Runs()
    every = strategy.schedule(runs, every=10)
    cron = strategy.schedule(by_cron, cron="* * * * *")
    assert every.next_run is cron.next_run is None
    await asyncio.sleep(7)
    manager = TaskManager(Chain(strategy, ConcurrentLimitStrategy(1)))
    every_too = strategy.schedule(runs, every=10)
    assert every_too.next_run is None  # its time is known, but not the wall clock's
    await manager.idle()
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    assert every.next_run is not None and cron.next_run is not None
    await asyncio.sleep(61)
    assert runs.at[:4] == [17, 17, 27, 27]
    assert len(by_cron.at) == 1
    await manager.stop()


async def test_jitter_comes_later_never_sooner_and_does_not_add_up() -> None:
    manager, strategy = await running()
    runs = Runs()
    strategy.schedule(runs, every=10, jitter=4)
    await asyncio.sleep(1005)
    assert len(runs.at) == 100
    late = [at - 10 * (i + 1) for i, at in enumerate(runs.at)]
    assert all(0 <= by <= 4 for by in late)
    assert len({round(by, 6) for by in late}) > 90
    await manager.stop()
    twin = TimeBasedStrategy(seed=1)
    again = TaskManager(twin)
    others = Runs()
    await again.idle()
    since = now()
    twin.schedule(others, every=10, jitter=4)
    await asyncio.sleep(1005)
    assert others.at == pytest.approx([at + since for at in runs.at])  # seeded
    await again.stop()


async def test_jitter_loses_no_run_and_none_comes_after_the_end(
    caplog: pytest.LogCaptureFixture,
) -> None:
    manager, strategy = await running()
    wide, short, ending, once = Runs(), Runs(), Runs(), Runs()
    strategy.schedule(wide, every=10, jitter=45)
    schedule = strategy.schedule(short, every=0.001, jitter=0.001, end=virtual().wall_time() + 1)
    last = strategy.schedule(ending, every=10, jitter=9, end=virtual().wall_time() + 30)
    strategy.schedule(once, at=timedelta(seconds=5), jitter=20)
    await asyncio.sleep(1010)
    assert [at // 10 for at in wide.at] == list(range(1, 101))
    assert 0.9 < short.at[-1] <= 1
    assert set(kinds(schedule)) == {"ran"}
    assert len(ending.at) == 3 and ending.at[-1] == 30 and last.state == "ended"
    assert 5 <= once.at[0] <= 25
    assert not caplog.records
    await manager.stop()


@settings(max_examples=60, deadline=None)
@given(
    st.floats(0.001, 1e6) | st.sampled_from([0.1, 0.7, 1e-3, 86_400]),
    st.floats(0, 2e9),
    st.floats(0, 2e9),
)
def test_the_grid_is_strict_and_misses_nothing(
    period: float, anchor: float, instant: float
) -> None:
    grid = machine.Every(period, anchor)
    found = grid.after(instant)
    assert found > instant
    assert found >= anchor
    index = round((found - anchor) / period)
    assert found == anchor + index * period
    assert index == 0 or anchor + (index - 1) * period <= instant
    assert grid.after(nextafter(found, -inf)) == found


# ---- in a chain ---------------------------------------------------------------------------------


async def test_runs_are_tasks_like_any_other() -> None:
    strategy = TimeBasedStrategy()
    window = SlidingWindowStrategy(1, 5, key="host")
    chain = Chain(strategy, PriorityQueueStrategy(), window)
    manager = TaskManager(chain)
    await manager.idle()
    runs = Runs()
    given = {"host": "a", "priority": "high"}
    schedule = strategy.schedule(runs, every=2, metadata=given)
    given["host"] = "b"  # what it said counts, at each run
    await asyncio.sleep(11)
    # Skipped while one is queued: at 4, 8 a run waits for the window.
    assert runs.at == [2, 7]
    assert kinds(schedule) == ["ran", "ran", "skipped", "ran", "skipped"]
    task = schedule.history[0].task
    assert task is not None
    assert task.metadata == {"host": "a", "priority": "high"}
    assert manager.stats().succeeded == 2
    await manager.close()


async def test_items_may_be_scheduled() -> None:
    calls = []

    async def handler(values: list[str]) -> list[str]:
        calls.append((now(), values))
        return values

    strategy = TimeBasedStrategy()
    manager = TaskManager(Chain(strategy, BulkStrategy(handler, max_wait=1)))
    await manager.idle()
    for name in "ab":
        strategy.schedule(Item(name), every=10)
    await asyncio.sleep(25)
    assert calls == [(11, ["a", "b"]), (21, ["a", "b"])]
    await manager.stop()


async def test_a_run_that_fails_stops_nothing(caplog: pytest.LogCaptureFixture) -> None:
    manager, strategy = await running()

    async def fails() -> None:
        raise ValueError("no")

    schedule = strategy.schedule(fails, every=1)
    await asyncio.sleep(3.5)
    assert [f.task.state for f in schedule.history if f.task] == ["failed"] * 3
    for firing in schedule.history:
        assert firing.task is not None
        firing.task.exception()
    await manager.stop()


async def test_a_run_that_a_limit_refuses_stops_nothing() -> None:
    strategy = TimeBasedStrategy()
    chain = Chain(strategy, ConcurrentLimitStrategy(1, cost="size"))
    manager = TaskManager(chain)
    await manager.idle()
    schedule = strategy.schedule(Runs(), every=1, metadata={"cost": 5})
    await asyncio.sleep(2.5)
    assert [f.task.state for f in schedule.history if f.task] == ["rejected"] * 2
    for firing in schedule.history:
        assert firing.task is not None
        assert firing.task.exception() is not None
    await manager.stop()


async def test_without_a_manager() -> None:
    strategy = TimeBasedStrategy()
    runs = Runs()
    assert strategy.get_next_task() is None
    strategy.schedule(runs, at=timedelta(seconds=0))
    strategy.schedule(runs, at=time.time() - 5)
    for _ in range(2):
        task = strategy.get_next_task()
        assert task is not None
        await task.run()
    assert strategy.get_next_task() is None
    assert await strategy.get_sleep_interval() is None
    strategy.schedule(runs, every=100)
    interval = await strategy.get_sleep_interval()
    assert interval is not None and 90 < interval <= 100


# ---- what was missed ----------------------------------------------------------------------------


async def test_a_stopped_manager_runs_once_for_all_that_was_missed(
    caplog: pytest.LogCaptureFixture,
) -> None:
    manager, strategy = await running()
    runs = Runs()
    schedule = strategy.schedule(runs, every=10)
    await asyncio.sleep(15)
    await manager.stop()
    await asyncio.sleep(100)
    await manager.idle()
    await asyncio.sleep(10)
    assert runs.at == [10, 115, 120]
    assert kinds(schedule) == ["ran", *["coalesced"] * 9, "ran", "ran"]
    assert len(caplog.records) == 1
    assert caplog.records[0].levelno == logging.WARNING
    assert "9 runs coalesced, due " in caplog.text
    assert "Runs" in caplog.text or "Schedule" in caplog.text
    await manager.stop()


async def test_what_is_later_than_the_grace_is_missed(caplog: pytest.LogCaptureFixture) -> None:
    manager, strategy = await running()
    runs = Runs()
    schedule = strategy.schedule(
        runs, every=10, misfire_grace_time=26, coalesce=False, max_running=9
    )
    nothing_left = strategy.schedule(
        runs, every=60, end=virtual().wall_time() + 70, misfire_grace_time=1
    )
    await asyncio.sleep(15)
    await manager.stop()
    await asyncio.sleep(100)
    await manager.idle()
    await asyncio.sleep(1)
    assert runs.at == [10, *[115] * 3]
    assert kinds(schedule) == ["ran", *["missed"] * 7, *["ran"] * 3]
    assert kinds(nothing_left) == ["missed"]
    assert nothing_left.state == "ended"
    assert "7 runs missed, due " in caplog.text
    assert "more than 26 s late" in caplog.text
    assert "1 run missed, due " in caplog.text
    await manager.stop()


async def test_paused_managers_run_what_is_due_when_they_go_on() -> None:
    manager, strategy = await running()
    runs = Runs()
    strategy.schedule(runs, every=10)
    manager.pause()
    await asyncio.sleep(35)
    assert runs.at == []
    manager.resume()
    await asyncio.sleep(10)
    assert runs.at == [35, 40]
    await manager.stop()


async def test_while_enough_runs_are_under_way_the_next_are_skipped(
    caplog: pytest.LogCaptureFixture,
) -> None:
    manager, strategy = await running()
    runs = Runs(seconds=25)
    one = strategy.schedule(runs, every=10)
    await asyncio.sleep(65)
    assert runs.at == [10, 40]
    assert kinds(one) == ["ran", "skipped", "skipped", "ran", "skipped", "skipped"]
    assert "1 run skipped, due " in caplog.text
    assert "max_running=1 of them still run" in caplog.text
    one.cancel()
    await manager.join()
    begun = now()
    two = strategy.schedule(runs, every=10, max_running=2)
    await asyncio.sleep(45)
    assert [at - begun for at in runs.at[2:]] == [10, 20, 40]
    assert kinds(two) == ["ran", "ran", "skipped", "ran"]
    await manager.close(grace=0)


@pytest.mark.parametrize("coalesce", [True, False])
async def test_hours_of_missed_seconds_does_not_stall_the_loop(
    coalesce: bool, caplog: pytest.LogCaptureFixture
) -> None:
    manager, strategy = await running()
    runs = Runs()
    schedule = strategy.schedule(
        runs, cron="* * * * * *", coalesce=coalesce, misfire_grace_time=None if coalesce else 600
    )
    await asyncio.sleep(1.5)
    await manager.stop()
    await asyncio.sleep(6 * 3600)
    started = time.perf_counter()
    await manager.idle()
    await asyncio.sleep(0.1)
    assert time.perf_counter() - started < 10
    if coalesce:
        assert len(runs.at) == 3
        assert "999 or more runs coalesced" in caplog.text
    else:
        assert len(runs.at) >= 2
        assert "missed" in caplog.text
        assert "skipped" in caplog.text
    await asyncio.sleep(2)
    assert kinds(schedule)[-2:] == ["ran", "ran"]
    assert len(schedule.history) == 100
    await manager.stop()


# ---- the wall clock -----------------------------------------------------------------------------


async def test_a_step_forward_makes_due_what_it_passes_over_once() -> None:
    manager, strategy = await running()
    runs, seconds = Runs(), Runs()
    schedule = strategy.schedule(runs, cron="0 * * * *")
    strategy.schedule(seconds, every=1000)
    at = strategy.schedule(Runs(), at=wall() + timedelta(hours=2))
    await asyncio.sleep(10)
    virtual().step_wall(3 * 3600)
    await asyncio.sleep(2)
    assert len(runs.at) == 1
    assert kinds(schedule) == ["coalesced", "coalesced", "ran"]
    assert kinds(at) == ["ran"]
    assert seconds.at == []  # seconds don't jump
    assert schedule.next_run == wall().replace(minute=0, second=0, microsecond=0) + timedelta(
        hours=1
    )
    await manager.stop()


async def test_a_step_back_makes_nothing_run_twice() -> None:
    manager, strategy = await running()
    runs = Runs()
    schedule = strategy.schedule(runs, cron="0 * * * *")
    assert schedule.next_run is not None
    await asyncio.sleep((schedule.next_run - wall()).total_seconds() + 60)
    assert len(runs.at) == 1
    following = schedule.next_run
    virtual().step_wall(-3600)
    await asyncio.sleep(3600 + 1800)
    assert len(runs.at) == 1
    assert schedule.next_run == following
    await asyncio.sleep(1800)
    assert len(runs.at) == 2
    await manager.stop()


async def test_a_clock_that_was_far_ahead_is_believed_when_it_is_set_right() -> None:
    manager, strategy = await running()
    virtual().step_wall(400 * 86_400)
    await asyncio.sleep(2)
    runs, once, seconds = Runs(), Runs(), Runs()
    schedule = strategy.schedule(runs, cron="0 * * * *")
    at = strategy.schedule(once, at=wall() + timedelta(hours=1))
    strategy.schedule(seconds, every=5000)
    virtual().step_wall(-400 * 86_400)
    await asyncio.sleep(7200)
    assert len(runs.at) == 2
    assert once.at == []
    assert at.next_run is not None
    assert len(seconds.at) == 1
    schedule.pause()
    await asyncio.sleep(2)
    virtual().step_wall(-86_400)
    await asyncio.sleep(7200)
    assert schedule.next_run is None
    assert len(runs.at) == 2
    await manager.stop()


async def test_a_step_that_nobody_noticed_moves_nothing_that_is_scheduled_later() -> None:
    manager, strategy = await running()
    virtual().step_wall(12 * 3600 + 60)
    runs = Runs()
    schedule = strategy.schedule(runs, cron="0 * * * *")
    following = wall().replace(minute=0, second=0, microsecond=0) + timedelta(hours=1)
    assert schedule.next_run == following
    await asyncio.sleep(3)
    assert runs.at == []
    await manager.stop()


async def test_an_idle_manager_looks_at_the_clock_only_for_what_goes_by_it() -> None:
    manager, strategy = await running()
    chain = manager._chain
    assert not chain.watches_wall_time
    schedule = strategy.schedule(Runs(), every=10)
    assert not chain.watches_wall_time
    by_clock = strategy.schedule(Runs(), cron="@daily")
    assert chain.watches_wall_time
    by_clock.cancel()
    assert not chain.watches_wall_time
    schedule.cancel()
    assert chain.next_wake(now()) == inf
    await manager.stop()


# ---- pause, resume, cancel ----------------------------------------------------------------------


async def test_pause_and_resume() -> None:
    manager, strategy = await running()
    runs = Runs()
    schedule = strategy.schedule(runs, every=10)
    await asyncio.sleep(15)
    schedule.pause()
    schedule.pause()
    assert schedule.state == "paused"
    assert schedule.next_run is None
    assert strategy.schedules == (schedule,)
    await asyncio.sleep(20)
    schedule.resume()
    schedule.resume()
    await asyncio.sleep(10)
    assert runs.at == [10, 40]  # on the same grid, and without those of the pause
    assert kinds(schedule) == ["ran", "ran"]
    schedule.cancel()
    schedule.cancel()
    schedule.pause()
    schedule.resume()
    assert repr(schedule).endswith("ended>")
    await asyncio.sleep(30)
    assert len(runs.at) == 2
    await manager.stop()


async def test_a_run_that_has_come_does_not_come_again_after_a_pause() -> None:
    manager, strategy = await running()
    runs = Runs()
    every = strategy.schedule(runs, every=10)
    await asyncio.sleep(10)
    await asyncio.sleep(0)
    every.pause()
    every.resume()  # at the instant of the first run
    await asyncio.sleep(15)
    assert runs.at == [10, 20]
    every.cancel()

    by_cron = Runs()
    hourly = strategy.schedule(by_cron, cron="@hourly")
    assert hourly.next_run is not None
    await asyncio.sleep((hourly.next_run - wall()).total_seconds() + 1)
    assert len(by_cron.at) == 1
    hourly.pause()
    virtual().step_wall(-1800)
    await asyncio.sleep(1)
    hourly.resume()  # half an hour before the run that has been
    await asyncio.sleep(3600)
    assert len(by_cron.at) == 1
    await asyncio.sleep(1800)
    assert len(by_cron.at) == 2
    hourly.pause()
    virtual().step_wall(-86_400)  # so it was wrong before
    await asyncio.sleep(1)
    hourly.resume()
    await asyncio.sleep(3600)
    assert len(by_cron.at) == 3
    await manager.stop()


@pytest.mark.parametrize("seed", range(60))
async def test_whatever_pauses_stops_or_sets_the_clock_no_run_comes_twice(seed: int) -> None:
    dice = random.Random(seed)
    manager, strategy = await running()
    jitter = dice.choice([0, 0, 3, 50])
    end = virtual().wall_time() + 400
    options: dict[str, Any] = dice.choice(
        [
            {"cron": "* * * * *"},
            {"cron": "*/20 * * * * *"},
            {"every": 7, "start": virtual().wall_time() - dice.random() * 100},
            {"every": 10, "end": end},
        ]
    )
    schedule = strategy.schedule(
        Runs(dice.choice([0, 1, 30])),
        jitter=jitter,
        coalesce=dice.random() < 0.5,
        max_running=dice.choice([1, 3]),
        misfire_grace_time=dice.choice([None, 5]),
        **options,
    )
    for _ in range(40):
        await asyncio.sleep(dice.choice([0, 0.5, 3, 10, 20, 60]))
        match dice.choice(["pause", "resume", "resume", "stop", "clock", "nothing", "nothing"]):
            case "pause":
                schedule.pause()
            case "resume":
                schedule.resume()
            case "stop":
                await manager.stop()
                await asyncio.sleep(dice.choice([0, 40]))
                await manager.idle()
            case "clock":
                virtual().step_wall(dice.choice([-100, -7, 13, 200]))
    dues = [firing.due.timestamp() for firing in schedule.history]
    assert dues == sorted(set(dues)) or jitter
    if "end" in options:
        assert max(dues, default=0) <= end + 1e-6
    else:
        schedule.resume()
        before = schedule.history[-1:]
        await asyncio.sleep(400)
        assert schedule.history[-1:] != before  # and it goes on
    await manager.stop()


@pytest.mark.parametrize(
    "options",
    [{"every": 1e300}, {"at": 1e300}, {"at": datetime.max}, {"at": timedelta.max}],
)
async def test_what_is_due_beyond_the_calendar_is_shown_at_its_end(options: dict[str, Any]) -> None:
    manager, strategy = await running()
    schedule = strategy.schedule(Runs(), timezone="Pacific/Kiritimati", **options)
    await asyncio.sleep(1)
    assert schedule.next_run is not None and schedule.next_run.year == 9999
    task = manager.add_task(Runs(), {"valid_after": options.get("at", 1e300)})
    assert "Dec 30" in str(manager.explain(task))
    await manager.close()


async def test_a_single_run_whose_time_came_in_a_pause_comes_after_it() -> None:
    manager, strategy = await running()
    runs = Runs()
    schedule = strategy.schedule(runs, at=timedelta(seconds=5))
    schedule.pause()
    await asyncio.sleep(10)
    schedule.resume()
    await asyncio.sleep(1)
    assert runs.at == [10]
    await manager.stop()


async def test_cancelled_before_it_is_known_what_time_it_is() -> None:
    strategy = TimeBasedStrategy()
    runs = Runs()
    schedule = strategy.schedule(runs, cron="* * * * *")
    paused = strategy.schedule(runs, cron="* * * * *")
    schedule.cancel()
    paused.pause()
    async with TaskManager(strategy):
        await asyncio.sleep(600)
    assert runs.at == []


async def test_cancelling_leaves_what_runs() -> None:
    manager, strategy = await running()
    runs = Runs(seconds=5)
    schedule = strategy.schedule(runs, every=10)
    await asyncio.sleep(11)
    schedule.cancel()
    task = schedule.history[0].task
    assert task is not None
    assert await task is None
    await manager.stop()


async def test_work_may_cancel_its_own_schedule() -> None:
    manager, strategy = await running()
    ran = []

    async def once() -> None:
        ran.append(now())
        schedule.cancel()

    schedule = strategy.schedule(once, every=10)
    await asyncio.sleep(100)
    assert ran == [10]
    await manager.stop()


# ---- many, and copies ---------------------------------------------------------------------------


async def test_thousands_that_are_due_at_once_do_not_stall_the_loop() -> None:
    strategy = TimeBasedStrategy()
    chain = Chain(strategy)
    chain.set_wall_offset(1.7e9, 0.0)
    for _ in range(600):
        strategy.schedule(Runs(), every=10)
    assert chain.next_wake(0.0) == 10
    assert chain.pull(nextafter(10, 0)) is None
    assert chain.pull(10.0) is not None
    assert chain.queued == time_based.AT_ONCE - 1
    while chain.pull(10.0) is not None:
        pass
    assert chain.running == 600
    assert chain.next_wake(10.0) == 20


async def test_a_copy_has_schedules_of_its_own() -> None:
    manager, strategy = await running()
    runs = Runs(seconds=100)
    schedule = strategy.schedule(runs, every=10)
    cron = strategy.schedule(runs, cron="@daily", jitter=60)
    await asyncio.sleep(15)
    task = schedule.history[0].task
    assert task is not None
    twin, ghosts = snapshot_of(manager._chain, [task])
    copied = twin.stages[0]
    assert isinstance(copied, TimeBasedStrategy)
    one, other = copied.schedules
    assert one.next_run == schedule.next_run
    assert other.next_run == cron.next_run
    assert one.history == ()
    assert one._running == [ghosts[task]]  # it still counts
    assert twin.pull(20.0) is None
    assert kinds(one) == ["skipped"]
    one.cancel()
    assert schedule.state == "active"
    assert len(schedule.history) == 1
    assert copy.deepcopy(strategy).schedules[0]._running == []
    eta = manager.eta(task, durations=lambda task: 100.0)
    assert eta.ends_at == pytest.approx(manager.epoch + 110)
    await manager.close(grace=0)


async def test_what_waits_in_vain_while_a_schedule_goes_on_for_ever_is_not_foreseen() -> None:
    async def handler(values: list[Any]) -> list[Any]:
        return values

    strategy = TimeBasedStrategy()
    manager = TaskManager(Chain(strategy, BulkStrategy(handler, min_size=5)))
    await manager.idle()
    strategy.schedule(Runs(), every=1)
    item = manager.add_task(Item(1))
    assert str(manager.eta(item)) == "nothing foreseeable starts it"
    later = manager.add_task(Runs(), {"valid_after": timedelta(seconds=500)})
    assert manager.eta(later).starts_at == pytest.approx(manager.epoch + 500)
    await manager.close()


# ---- bad input ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "error", "words"),
    [
        ({}, InvalidValue, "one of at=, every= and cron=, not none"),
        ({"every": 5, "cron": "@daily"}, InvalidValue, "not every and cron"),
        ({"every": 0}, InvalidValue, "every must be a finite number at least 0.001, not 0"),
        ({"every": timedelta(seconds=-1)}, InvalidValue, "every must be a finite number"),
        ({"every": "5"}, InvalidType, "every must be a number, not '5'"),
        ({"at": 5}, InvalidValue, "a delay from now is timedelta"),
        ({"at": "noon"}, InvalidType, "at must be a datetime"),
        ({"at": NOON, "start": NOON}, InvalidValue, "they don't go with at="),
        ({"at": NOON, "end": NOON}, InvalidValue, "they don't go with at="),
        ({"cron": "0 0 31 2 *"}, InvalidValue, "Bad day-of-month"),
        ({"cron": "@daily", "timezone": "Mars/Base"}, InvalidValue, "timezone must be an IANA"),
        ({"cron": "@daily", "timezone": 5}, InvalidType, "timezone must be an IANA name"),
        ({"every": 5, "start": timedelta(5)}, InvalidType, "start must be a datetime or epoch"),
        ({"every": 5, "end": 5}, InvalidValue, "end, in epoch seconds"),
        (
            {"every": 5, "start": NOON, "end": NOON - timedelta(1)},
            InvalidValue,
            "end must be later than start",
        ),
        ({"every": 5, "jitter": -1}, InvalidValue, "jitter"),
        ({"every": 5, "misfire_grace_time": 0}, InvalidValue, "misfire_grace_time"),
        ({"every": 5, "coalesce": 1}, InvalidType, "coalesce must be True or False, not 1"),
        ({"every": 5, "max_running": 0}, InvalidValue, "max_running"),
        ({"every": 5, "metadata": [1]}, InvalidType, "metadata must be a dict or None"),
    ],
)
def test_what_cannot_be_is_refused(
    options: dict[str, Any], error: type[Exception], words: str
) -> None:
    strategy = TimeBasedStrategy()
    with pytest.raises(error) as caught:
        strategy.schedule(Runs(), **options)
    assert words in str(caught.value)
    assert strategy.schedules == ()


def test_a_coroutine_cannot_be_scheduled() -> None:
    async def work() -> None: ...

    coroutine = work()
    with pytest.raises(InvalidType, match="a coroutine runs once"):
        TimeBasedStrategy().schedule(coroutine, every=5)  # type: ignore[arg-type]
    coroutine.close()
    with pytest.raises(InvalidValue, match="seed"):
        TimeBasedStrategy(seed=-1)


async def nightly() -> None: ...


@pytest.mark.parametrize(
    ("options", "shown"),
    [
        ({"every": 5}, "<Schedule nightly every=5 active>"),
        ({"cron": "@daily"}, "<Schedule nightly cron='@daily' active>"),
        ({"at": 1.7e9 + 50}, "<Schedule nightly at=1700000050.0 active>"),
    ],
)
async def test_it_shows_what_was_given(options: dict[str, Any], shown: str) -> None:
    manager, strategy = await running()
    assert repr(strategy.schedule(nightly, **options)) == shown
    assert "nightly" in repr(strategy.schedule(partial(nightly), **options))
    assert repr(TimeBasedStrategy().schedule(nightly, every=5)) == "<Schedule nightly active>"
    assert repr(strategy) == "TimeBasedStrategy()"
    await manager.close()
