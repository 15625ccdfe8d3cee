"""What an observer is told: every life of a task in order, and every limit that tasks wait for."""

from __future__ import annotations

import asyncio
import contextvars
import logging
import re
from collections import Counter
from collections.abc import Callable, Hashable, Iterable
from itertools import pairwise
from math import inf
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from async_task_manager import (
    Chain,
    DeadlineExceeded,
    InvalidType,
    QueueTimeout,
    StrategyError,
    Task,
    TaskManager,
    TaskRejected,
    TaskTimeout,
)
from async_task_manager.events import (
    Event,
    Expired,
    Finished,
    Queued,
    Rejected,
    Retried,
    StageClosed,
    StageOpened,
    Started,
)
from async_task_manager.strategies import (
    BaseStrategy,
    ConcurrentLimitStrategy,
    Feedback,
    Limit,
    PriorityQueueStrategy,
    Provider,
    ProviderRouterStrategy,
    RetryAt,
    SlidingWindowStrategy,
    TimeBasedStrategy,
    Usage,
)
from async_task_manager.strategies.base import Source
from async_task_manager.task import Outcome
from async_task_manager.testing import run_virtual


async def nap(seconds: float = 1.0) -> float:
    await asyncio.sleep(seconds)
    return seconds


async def fail(after: float = 1.0) -> None:
    await asyncio.sleep(after)
    raise LookupError("lost")


class Again(Feedback):
    """Failures run again, ``backoff`` seconds later, until the attempts are used up."""

    def __init__(self, attempts: int = 3, backoff: float = 1.0) -> None:
        self.attempts, self.backoff = attempts, backoff

    def review(self, task: Task, outcome: Outcome, now: float) -> RetryAt | None:
        if outcome.kind == "failure" and task.attempt < self.attempts:
            return RetryAt(now + self.backoff)
        return None


class Refusing(Limit):
    """Open, but for tasks with ``refused`` in their metadata: those it rejects."""

    def cost_of(self, task: Task) -> float:
        return 1 if "refused" in task.metadata else 0

    def ready_at(self, key: Hashable, cost: float, now: float) -> float:
        if cost:
            raise TaskRejected("refused", until=None)
        return now

    def acquire(self, key: Hashable, cost: float, now: float) -> Any:
        return None

    def release(self, grant: Any, outcome: Outcome, now: float) -> None:
        pass

    def usage(self, key: Hashable, now: float) -> Usage:
        return Usage(0, 1)


def told(*strategies: BaseStrategy) -> tuple[TaskManager, list[Event]]:
    manager = TaskManager(Chain(*strategies))
    records: list[Event] = []
    manager.subscribe(records.append)
    return manager, records


def life(records: Iterable[Event], task: Task) -> list[tuple[str, float]]:
    """What happened to the task, and when."""
    return [
        (type(record).__name__, record.at)
        for record in records
        if not isinstance(record, StageClosed | StageOpened) and record.task is task
    ]


def stages(records: Iterable[Event]) -> list[tuple[str, float, Hashable]]:
    return [
        (type(record).__name__, record.at, record.key)
        for record in records
        if isinstance(record, StageClosed | StageOpened)
    ]


# ---- lives --------------------------------------------------------------------------------------


async def test_a_task_that_succeeds() -> None:
    manager, records = told(ConcurrentLimitStrategy(1))
    async with manager:
        manager.add_task(lambda: nap(2))
        task = manager.add_task(lambda: nap(3))
    assert life(records, task) == [("Queued", 0), ("Started", 2), ("Finished", 5)]
    assert Started(2, task, attempt=1, waited=2) in records
    assert Finished(5, task, "succeeded", error=None, duration=3) in records


async def test_a_task_that_fails() -> None:
    manager, records = told()
    async with manager:
        task = manager.add_task(fail)
        with pytest.raises(LookupError) as caught:
            await task
    assert records[-1] == Finished(1, task, "failed", caught.value, duration=1)


async def test_a_task_that_is_retried() -> None:
    manager, records = told(Again(attempts=2, backoff=5))
    async with manager:
        task = manager.add_task(lambda: fail(1))
        with pytest.raises(LookupError) as caught:
            await task
    kinds = ["Queued", "Started", "Retried", "Started", "Finished"]
    assert life(records, task) == list(zip(kinds, [0, 0, 1, 6, 7], strict=True))
    retried = records[2]
    assert isinstance(retried, Retried)
    assert (retried.attempt, retried.duration) == (1, 1)
    assert repr(retried.error) == repr(caught.value)
    assert Started(6, task, attempt=2, waited=5) in records


async def test_a_result_that_is_not_liked_is_retried_without_an_error() -> None:
    class Unhappy(Feedback):
        def review(self, task: Task, outcome: Outcome, now: float) -> RetryAt | None:
            return RetryAt(now) if task.attempt == 1 else None

    manager, records = told(Unhappy())
    async with manager:
        task = manager.add_task(nap)
    assert Retried(1, task, 1, error=None, duration=1) in records
    assert records[-1] == Finished(2, task, "succeeded", None, duration=1)


async def test_a_task_that_is_cancelled_in_a_backoff_did_not_run_again() -> None:
    manager, records = told(Again(backoff=10))
    async with manager:
        task = manager.add_task(fail)
        await asyncio.sleep(4)
        task.cancel()
    assert records[-1] == Finished(4, task, "cancelled", error=None, duration=None)


async def test_tasks_that_are_cancelled() -> None:
    manager, records = told(ConcurrentLimitStrategy(2))
    async with manager:
        running = manager.add_task(lambda: nap(9))
        unborn = manager.add_task(lambda: nap(9))
        queued = manager.add_task(lambda: nap(9))
        while unborn.state != "cancelled":
            await asyncio.sleep(0)
            if unborn.state == "running":
                unborn.cancel()
        queued.cancel()
        await asyncio.sleep(1)
        running.cancel()
    assert life(records, running) == [("Queued", 0), ("Started", 0), ("Finished", 1)]
    assert Finished(1, running, "cancelled", None, duration=1) in records
    assert life(records, queued) == [("Queued", 0), ("Finished", 0)]
    assert Finished(0, queued, "cancelled", None, duration=None) in records
    assert life(records, unborn)[-1] == ("Finished", 0)


async def test_a_task_that_is_cancelled_before_its_first_step_never_started() -> None:
    manager, records = told()
    async with manager:
        task = manager.add_task(nap)
        asyncio.get_running_loop().call_soon(task.cancel)  # after the pump, before the first step
        await asyncio.sleep(0)
        assert task.state == "running"
    assert life(records, task) == [("Queued", 0), ("Finished", 0)]
    assert records[-1] == Finished(0, task, "cancelled", None, duration=None)


async def test_tasks_that_are_too_late() -> None:
    manager, records = told(ConcurrentLimitStrategy(1))
    async with manager:
        slow = manager.add_task(lambda: nap(9), run_timeout=5)
        late = manager.add_task(nap, queue_timeout=2)
        with pytest.raises(TaskTimeout) as caught:
            await slow
        with pytest.raises(QueueTimeout) as expired:
            await late
    assert Finished(5, slow, "failed", caught.value, duration=5) in records
    assert Expired(2, late, expired.value) in records
    assert life(records, late) == [("Queued", 0), ("Expired", 2)]


async def test_a_task_that_is_rejected_and_one_that_was_never_queued() -> None:
    class Schedule(Source):
        fired = False

        def next_due(self, now: float) -> float:
            return inf if self.fired else 1.0

        def emit(self, now: float) -> Iterable[Task]:
            self.fired = True
            return [good, bad]

    async def once() -> None: ...

    coroutine = once()
    good, bad = Task(nap), Task(coroutine)  # which could not be retried
    manager, records = told(Refusing(), Schedule(), Again())
    async with manager:
        refused = manager.add_task(nap, {"refused": True})
        await asyncio.sleep(3)
    assert life(records, refused) == [("Queued", 0), ("Rejected", 0)]
    assert life(records, good) == [("Queued", 1), ("Started", 1), ("Finished", 2)]
    assert life(records, bad) == [("Rejected", 1)]
    assert isinstance(bad.exception(), InvalidType)


async def test_tasks_that_a_custom_strategy_makes_are_told_of() -> None:
    class Maker(BaseStrategy):
        left = 1

        def add_task(self, task: Task) -> None: ...

        def get_next_task(self) -> Task | None:
            self.left -= 1
            return made if self.left == 0 else None

        async def get_sleep_interval(self) -> float | None:
            return None

    made = Task(nap)
    manager, records = told(Maker())
    await manager.idle()
    await made
    await manager.stop()
    assert [kind for kind, _ in life(records, made)] == ["Queued", "Started", "Finished"]


async def test_a_strategy_that_fails_ends_the_records_of_all() -> None:
    class Broken(Limit):
        def ready_at(self, key: Hashable, cost: float, now: float) -> float:
            raise ZeroDivisionError

        def acquire(self, key: Hashable, cost: float, now: float) -> Any: ...
        def release(self, grant: Any, outcome: Outcome, now: float) -> None: ...
        def usage(self, key: Hashable, now: float) -> Usage:
            return Usage(0, 0)

    manager, records = told(Broken())
    await manager.idle()
    task = manager.add_task(nap)
    with pytest.raises(StrategyError) as caught:
        await task
    later = manager.add_task(nap)
    assert records[1:] == [Rejected(0, task, caught.value), Rejected(0, later, caught.value)]
    await manager.stop()


async def test_the_branch_that_was_removed_under_a_retry_rejects_the_task() -> None:
    router = ProviderRouterStrategy([Provider("a"), Provider("b")])
    manager, records = told(router, Again())
    async with manager:
        task = manager.add_task(fail, {"provider": "a"})
        await asyncio.sleep(0.5)
        router.remove("a", force=True)
        await asyncio.sleep(5)
    assert [kind for kind, _ in life(records, task)] == ["Queued", "Started", "Rejected"]


GRAMMAR = re.compile("Q(S(RS)*R?)?[FXE]|X")
LETTERS = {
    Queued: "Q",
    Started: "S",
    Retried: "R",
    Finished: "F",
    Rejected: "X",
    Expired: "E",
}

shapes: list[Callable[[], list[BaseStrategy]]] = [
    list,
    lambda: [ConcurrentLimitStrategy(2)],
    lambda: [PriorityQueueStrategy(), SlidingWindowStrategy(2, 3), ConcurrentLimitStrategy(2)],
    lambda: [ConcurrentLimitStrategy(1, key="user_id"), SlidingWindowStrategy(3, 2, key="tenant")],
    lambda: [Refusing(), ConcurrentLimitStrategy(1)],
    lambda: [ConcurrentLimitStrategy(1), Refusing(), Again(2, 0.0)],
    lambda: [TimeBasedStrategy(), ConcurrentLimitStrategy(2, key="user_id"), Again(3, 1.5)],
    lambda: [
        PriorityQueueStrategy(),
        ProviderRouterStrategy(
            [
                Provider("a", limits=[ConcurrentLimitStrategy(1)]),
                Provider("b", limits=[SlidingWindowStrategy(1, 4)]),
            ]
        ),
        Again(2, 1.0),
    ],
]

seconds = st.sampled_from([0.0, 0.5, 1.0, 2.0, 3.0])
lives = st.fixed_dictionaries(
    {
        "arrives": seconds,
        "lasts": seconds,
        "fails": st.booleans(),
        "cancelled": st.none() | seconds,
        "stubborn": st.booleans(),
        "metadata": st.fixed_dictionaries(
            {},
            optional={
                "priority": st.integers(0, 2),
                "user_id": st.integers(0, 2),
                "tenant": st.integers(0, 1),
                "refused": st.just(True),
            },
        ),
        "options": st.fixed_dictionaries(
            {},
            optional={
                "queue_timeout": st.sampled_from([0.5, 1.0, 4.0]),
                "run_timeout": st.sampled_from([0.5, 1.0]),
            },
        ),
    }
)


@given(st.sampled_from(shapes), st.lists(lives, max_size=12), st.booleans())
def test_every_life_is_told_in_order_and_ends_once(
    shape: Callable[[], list[BaseStrategy]], plans: list[dict[str, Any]], closed_early: bool
) -> None:
    manager, records = told(*shape())
    tasks: list[Task] = []

    async def work(plan: dict[str, Any]) -> None:
        try:
            await asyncio.sleep(plan["lasts"])
        except asyncio.CancelledError:
            if not plan["stubborn"]:
                raise
        if plan["fails"]:
            raise LookupError

    async def live(plan: dict[str, Any]) -> None:
        await asyncio.sleep(plan["arrives"])
        task = manager.add_task(lambda: work(plan), plan["metadata"], **plan["options"])
        tasks.append(task)
        if plan["cancelled"] is not None:
            await asyncio.sleep(plan["cancelled"])
            task.cancel()

    async def main() -> None:
        await manager.idle()
        await asyncio.gather(*map(live, plans))
        if closed_early:
            await manager.close(grace=0.5)
        else:
            await manager.join()
            await asyncio.sleep(0)  # the last turn of the pump
            await manager.stop()
        for task in tasks:
            if task.state != "cancelled":
                task.exception()  # nobody else asks

    run_virtual(main())

    assert [record.at for record in records] == sorted(record.at for record in records)
    ends: Counter[str] = Counter()
    for task in tasks:
        mine: list[Any] = [r for r in records if getattr(r, "task", None) is task]
        assert GRAMMAR.fullmatch("".join(LETTERS[type(r)] for r in mine)), mine
        attempts = [r.attempt for r in mine if isinstance(r, Started)]
        assert attempts == list(range(1, len(attempts) + 1))
        last = mine[-1]
        state = last.state if isinstance(last, Finished) else type(last).__name__.lower()
        assert state == task.state
        ends[state] += 1
        if task.state not in ("succeeded", "cancelled"):
            assert last.error is task.exception()
        for before, record in pairwise(mine):
            if isinstance(record, Started):
                assert record.waited == record.at - before.at
            elif isinstance(record, Retried | Finished):
                ran = isinstance(before, Started)
                assert record.duration == (record.at - before.at if ran else None)
    stats = manager.stats()
    assert all(getattr(stats, state) == number for state, number in ends.items())

    waited_for: Counter[tuple[int, Hashable]] = Counter()
    for record in records:
        if isinstance(record, StageClosed | StageOpened):
            waited_for[id(record.stage), record.key] += 1 if isinstance(record, StageClosed) else -1
    assert set(waited_for.values()) <= ({0, 1} if closed_early else {0})


# ---- stages -------------------------------------------------------------------------------------


async def test_a_limit_is_closed_from_the_first_that_waits_to_the_last() -> None:
    limit = ConcurrentLimitStrategy(1)
    manager, records = told(limit)
    async with manager:
        manager.add_task(nap)
        await asyncio.sleep(0.5)
        assert not stages(records)  # it is used up, but nobody waits
        for _ in range(3):
            manager.add_task(nap)
    assert stages(records) == [("StageClosed", 0.5, None), ("StageOpened", 3, None)]
    closed = next(r for r in records if isinstance(r, StageClosed))
    assert (closed.stage, closed.branch, closed.until) == (limit, None, inf)


async def test_a_closed_limit_names_the_instant_at_which_it_opens() -> None:
    manager, records = told(SlidingWindowStrategy(1, 60))
    async with manager:
        manager.add_task(nap)
        await asyncio.sleep(0.5)
        manager.add_task(nap)
    closed = next(r for r in records if isinstance(r, StageClosed))
    assert (closed.at, closed.until) == (0.5, 60)
    assert stages(records)[1] == ("StageOpened", 60, None)


async def test_what_waits_may_go_from_one_limit_to_the_next() -> None:
    first, second = ConcurrentLimitStrategy(1), SlidingWindowStrategy(1, 5)
    manager, records = told(first, second)
    async with manager:
        manager.add_task(nap)
        manager.add_task(nap)
    turns = [r for r in records if isinstance(r, StageClosed | StageOpened)]
    assert [(type(r), r.at, r.stage) for r in turns] == [
        (StageClosed, 0, first),
        (StageOpened, 1, first),
        (StageClosed, 1, second),
        (StageOpened, 5, second),
    ]


async def test_every_key_is_a_stage_of_its_own() -> None:
    manager, records = told(ConcurrentLimitStrategy(1, key="user_id"))
    async with manager:
        for user, number in (("ann", 3), ("ben", 2), ("cem", 1)):
            for _ in range(number):
                manager.add_task(nap, {"user_id": user})
    assert sorted(stages(records)) == [
        ("StageClosed", 0, "ann"),
        ("StageClosed", 0, "ben"),
        ("StageOpened", 1, "ben"),
        ("StageOpened", 2, "ann"),
    ]


async def test_a_limit_in_a_branch_is_told_with_the_branch() -> None:
    router = ProviderRouterStrategy(
        [Provider("a", limits=[ConcurrentLimitStrategy(1)]), Provider("b", enabled=False)]
    )
    manager, records = told(router)
    async with manager:
        manager.add_task(nap)
        manager.add_task(nap)
        await asyncio.sleep(0.5)
        assert [(type(r).__name__, getattr(r, "branch", "")) for r in records][-1][0] == "Started"
        router.add(Provider("c", limits=[SlidingWindowStrategy(1, 60)], enabled=False))
    turns = [r for r in records if isinstance(r, StageClosed | StageOpened)]
    assert {r.branch for r in turns} == {"a"}
    kinds = [type(r).__name__ for r in turns]
    # The router was rebuilt while the task waited: it closes anew, and opens for good.
    assert kinds == ["StageClosed", "StageOpened"] * 2
    assert [r.at for r in turns] == [0, 0.5, 0.5, 1]


async def test_who_comes_late_hears_what_is_closed_and_who_leaves_hears_no_more() -> None:
    for key in (None, "user_id"):
        manager = TaskManager(ConcurrentLimitStrategy(1, key=key))
        early: list[Event] = []
        late: list[Event] = []
        async with manager:
            begin = manager._clock()
            for _ in range(4):
                manager.add_task(nap)
            await asyncio.sleep(0.5)
            leave = manager.subscribe(early.append)
            await asyncio.sleep(1)
            leave()
            leave()  # once more harms nothing
            heard = len(early)
            await asyncio.sleep(1)
            manager.subscribe(late.append)
        assert len(early) == heard
        assert stages(early) == [("StageClosed", begin + 0.5, None)]
        assert stages(late) == [
            ("StageClosed", begin + 2.5, None),
            ("StageOpened", begin + 3, None),
        ]


async def test_whoever_joins_others_hears_first_what_is_closed() -> None:
    manager, records = told(ConcurrentLimitStrategy(1))
    late: list[Event] = []
    async with manager:
        manager.add_task(nap)
        manager.add_task(nap)
        await asyncio.sleep(0.5)
        manager.subscribe(late.append)
        assert late == [r for r in records if isinstance(r, StageClosed)]
    assert [kind for kind, _, _ in stages(late)] == ["StageClosed", "StageOpened"]


async def test_the_last_observer_may_leave_between_two_openings() -> None:
    manager = TaskManager(ConcurrentLimitStrategy(1, key="user_id"))
    records: list[Event] = []

    def once(record: Event) -> None:
        if isinstance(record, StageClosed):
            records.append(record)
            leave()

    async with manager:
        for user in "ab":
            manager.add_task(nap, {"user_id": user})
        await asyncio.sleep(0.5)
        leave = manager.subscribe(once)
        manager.add_task(nap, {"user_id": "a"})
        manager.add_task(nap, {"user_id": "b"})
        await asyncio.sleep(3)
        assert len(records) == 1
        manager.subscribe(records.append)
        assert len(records) == 1  # what was closed then is open by now


# ---- observers ----------------------------------------------------------------------------------


async def test_an_observer_that_raises_is_logged_and_harms_nothing(
    caplog: pytest.LogCaptureFixture,
) -> None:
    manager = TaskManager(ConcurrentLimitStrategy(1))
    records: list[Event] = []
    errors = iter([ValueError("no"), asyncio.CancelledError(), GeneratorExit()])

    def angry(record: Event) -> None:
        raise next(errors, LookupError("again"))

    manager.subscribe(angry)
    manager.subscribe(records.append)
    with caplog.at_level(logging.ERROR):
        async with manager:
            task = manager.add_task(nap)
    assert await task == 1
    assert [kind for kind, _ in life(records, task)] == ["Queued", "Started", "Finished"]
    assert [r.getMessage().rpartition(" ")[2] for r in caplog.records] == [
        "Queued",
        "Started",
        "Finished",
    ]


async def test_ctrl_c_in_an_observer_is_not_swallowed() -> None:
    manager = TaskManager(ConcurrentLimitStrategy(1))

    def interrupted(record: Event) -> None:
        raise KeyboardInterrupt

    leave = manager.subscribe(interrupted)
    with pytest.raises(KeyboardInterrupt):
        manager.add_task(nap)
    leave()
    records: list[Event] = []
    manager.subscribe(records.append)
    async with manager:
        manager.add_task(nap)
    assert [type(r) for r in records].count(Finished) == 2


@pytest.mark.parametrize("observer", [None, "print", fail])
async def test_what_could_not_be_called_is_refused(observer: Any) -> None:
    with pytest.raises(InvalidType, match="observer"):
        TaskManager(ConcurrentLimitStrategy(1)).subscribe(observer)


async def test_every_observer_sees_one_order_whatever_one_of_them_does() -> None:
    manager = TaskManager(ConcurrentLimitStrategy(1))
    first: list[Event] = []
    second: list[Event] = []

    def meddler(record: Event) -> None:
        first.append(record)
        if isinstance(record, Queued) and record.task.metadata.get("unwanted"):
            record.task.cancel()
        if isinstance(record, Finished) and record.state == "cancelled":
            manager.add_task(nap)

    manager.subscribe(meddler)
    manager.subscribe(second.append)
    async with manager:
        task = manager.add_task(nap, {"unwanted": True})
    assert first == second
    assert life(second, task) == [("Queued", 0), ("Finished", 0)]
    assert manager.stats().succeeded == 1


async def test_the_same_observer_twice_is_told_twice() -> None:
    manager = TaskManager(ConcurrentLimitStrategy(1))
    records: list[Event] = []
    leave = manager.subscribe(records.append)
    manager.subscribe(records.append)
    manager.add_task(nap).cancel()
    leave()
    manager.add_task(nap).cancel()
    assert [type(r) for r in records] == [Queued, Queued, Finished, Finished, Queued, Finished]


async def test_records_are_told_in_the_context_of_caller_and_work() -> None:
    who: contextvars.ContextVar[str] = contextvars.ContextVar("who", default="nobody")
    seen: dict[str, str] = {}
    manager = TaskManager(ConcurrentLimitStrategy(1))
    manager.subscribe(lambda record: seen.update({type(record).__name__: who.get()}))
    async with manager:
        who.set("ann")
        task = manager.add_task(nap)
        who.set("ben")
        await task
    assert seen == {"Queued": "ann", "Started": "ann", "Finished": "ann"}


async def test_the_name_of_the_work_is_there_to_the_end() -> None:
    manager = TaskManager(ConcurrentLimitStrategy(1))
    names: list[str] = []
    manager.subscribe(lambda record: names.append(record.task.name))  # type: ignore[union-attr]
    async with manager:
        task = manager.add_task(nap)
    assert names == [f"nap-{task.id}"] * 3


async def test_a_record_is_frozen_and_small() -> None:
    record = Queued(1.0, Task(nap))
    with pytest.raises(AttributeError):
        record.at = 2.0  # type: ignore[misc]
    assert not hasattr(record, "__dict__")


async def test_a_deadline_that_passes_in_the_queue_is_an_expiry() -> None:
    manager, records = told(ConcurrentLimitStrategy(1))
    async with manager:
        manager.add_task(lambda: nap(9))
        late = manager.add_task(nap, deadline=manager.epoch + 3)
    assert life(records, late) == [("Queued", 0), ("Expired", 3)]
    assert isinstance(late.exception(), DeadlineExceeded)
