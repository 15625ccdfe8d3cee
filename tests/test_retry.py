"""RetryStrategy: what is retried, when, how often; and its budget."""

from __future__ import annotations

import asyncio
import copy
import json
from collections.abc import Callable
from datetime import UTC, datetime, timedelta, timezone
from math import inf, nan
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from async_task_manager import (
    Chain,
    DeadlineExceeded,
    InvalidState,
    InvalidType,
    InvalidValue,
    NonRetryable,
    RateLimited,
    StrategyError,
    TaskManager,
    TaskRejected,
    TaskTimeout,
    current_task,
)
from async_task_manager.strategies import (
    ConcurrentLimitStrategy,
    PriorityQueueStrategy,
    RetryAt,
    RetryBudget,
    RetryStrategy,
    SlidingWindowStrategy,
    exponential,
    fixed,
)
from async_task_manager.task import Outcome, Task


class Work:
    """Raises these errors in turn, then succeeds; remembers when each attempt began."""

    def __init__(self, *errors: BaseException, lasts: float = 0.0) -> None:
        self.errors = list(errors)
        self.lasts = lasts
        self.starts: list[float] = []

    async def __call__(self) -> str:
        self.starts.append(asyncio.get_running_loop().time())
        await asyncio.sleep(self.lasts)
        if self.errors:
            raise self.errors.pop(0)
        return "done"


async def run(strategy: RetryStrategy, work: Work, **options: Any) -> Task[str]:
    async with TaskManager(strategy) as manager:
        task = manager.add_task(work, **options)
    return task


# ---- how often, and what ------------------------------------------------------------------------


async def test_a_failure_is_retried_until_it_succeeds() -> None:
    first, second = ValueError(1), OSError(2)
    work = Work(first, second)
    task = await run(RetryStrategy(backoff=fixed(2)), work)
    assert await task == "done"
    assert (task.attempt, task.errors, task.state) == (3, (first, second), "succeeded")
    assert work.starts == [0, 2, 4]


async def test_the_waiter_sees_the_last_outcome() -> None:
    errors = [ValueError(i) for i in range(5)]
    task = await run(RetryStrategy(3, backoff=fixed(1)), Work(*errors))
    with pytest.raises(ValueError, match="2"):
        await task
    assert task.exception() is errors[2]
    assert (task.attempt, task.errors, task.state) == (3, tuple(errors[:2]), "failed")


async def test_one_attempt_is_no_retry() -> None:
    task = await run(RetryStrategy(1), Work(ValueError("no")))
    assert (task.attempt, repr(task.exception()), task.errors) == (1, "ValueError('no')", ())


async def test_the_default_backs_off_exponentially_with_jitter() -> None:
    strategy = RetryStrategy(seed=1)
    work = Work(*(ValueError() for _ in range(9)))
    task = await run(strategy, work)
    assert task.exception()
    assert task.attempt == 5
    pauses = [after - before for before, after in zip(work.starts, work.starts[1:], strict=False)]
    assert all(0 <= pause <= 0.5 * 2**i for i, pause in enumerate(pauses))
    again = Work(*(ValueError() for _ in range(9)))
    (await run(RetryStrategy(seed=1), again)).exception()
    assert [start - again.starts[0] for start in again.starts] == pytest.approx(work.starts)


async def test_any_callable_is_a_backoff() -> None:
    work = Work(*(ValueError() for _ in range(3)))
    await (await run(RetryStrategy(backoff=lambda attempt: 10 * attempt), work))
    assert work.starts == [0, 10, 30, 60]


class MyError(Exception):
    def __init__(self, code: int) -> None:
        self.code = code


@pytest.mark.parametrize(
    ("retry_on", "error", "attempts"),
    [
        (Exception, ValueError(), 2),
        (OSError, TimeoutError(), 2),
        (OSError, ValueError(), 1),
        ((OSError, ValueError), ValueError(), 2),
        ((OSError, LookupError), ValueError(), 1),
        ((), ValueError(), 1),
        (lambda error: error.code >= 500, MyError(503), 2),
        (lambda error: error.code >= 500, MyError(404), 1),
        (Exception, NonRetryable("no use"), 1),
        (lambda error: True, NonRetryable("no use"), 1),
        (lambda error: True, TaskRejected(), 1),
        (lambda error: True, DeadlineExceeded(), 1),
        (Exception, BaseException(), 1),
        (Exception, GeneratorExit(), 1),
    ],
)
async def test_what_is_retried(retry_on: Any, error: BaseException, attempts: int) -> None:
    task = await run(RetryStrategy(backoff=fixed(0), retry_on=retry_on), Work(error))
    task.exception()
    assert task.attempt == attempts


async def test_an_attempt_that_ran_too_long_is_retried() -> None:
    work = Work(lasts=5)
    task = await run(RetryStrategy(2, backoff=fixed(1)), work, run_timeout=3)
    assert work.starts == [0, 4]
    assert isinstance(task.exception(), TaskTimeout)


async def test_a_coroutine_is_refused_with_the_fix() -> None:
    manager = TaskManager(RetryStrategy())
    with pytest.raises(InvalidType, match=r"pass a callable, add_task\(lambda: work\(\.\.\.\)\)"):
        manager.add_task(asyncio.sleep(1))
    future = asyncio.get_running_loop().create_future()
    with pytest.raises(InvalidType, match="pass a callable"):
        manager.add_task(future)
    async with manager:
        with pytest.raises(InvalidState, match="wrap"):
            async with manager.turn():
                pass


# ---- when ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("after", "starts"),
    [
        (30, [0, 30]),
        (0.5, [0, 2]),  # the backoff is longer
        (timedelta(seconds=30), [0, 30]),
        ("30", [0, 2]),  # these say nothing
        (-5, [0, 2]),
        (nan, [0, 2]),
        (inf, [0, 2]),
        (True, [0, 2]),
        (None, [0, 2]),
    ],
)
async def test_any_error_may_say_when_to_come_back(after: object, starts: list[float]) -> None:
    error = ConnectionError()
    error.retry_after = after  # type: ignore[attr-defined]
    work = Work(error)
    await (await run(RetryStrategy(backoff=fixed(2)), work))
    assert work.starts == starts


async def test_an_error_whose_attribute_raises_says_nothing() -> None:
    class Odd(Exception):
        @property
        def retry_after(self) -> float:
            raise ZeroDivisionError

    work = Work(Odd())
    await (await run(RetryStrategy(backoff=fixed(2)), work))
    assert work.starts == [0, 2]


def clock() -> Any:
    """The loop, with a wall clock that a test may step."""
    return asyncio.get_running_loop()


async def test_a_date_is_an_earliest_instant_by_the_wall_clock() -> None:
    wall = clock().wall_time()
    when = datetime.fromtimestamp(wall + 90, timezone(timedelta(hours=5)))
    work = Work(RateLimited(retry_after=when))
    async with TaskManager(RetryStrategy(backoff=fixed(2))) as manager:
        task = manager.add_task(work)
        await asyncio.sleep(10)
        assert task.state == "queued"
        await task
    assert 89.999 <= work.starts[1] <= 91.001


@pytest.mark.parametrize(
    "date", [datetime(2001, 1, 1, tzinfo=UTC), datetime(2999, 1, 1), datetime.max]
)
async def test_a_date_that_has_passed_or_has_no_zone_leaves_the_backoff(date: datetime) -> None:
    error = ConnectionError()
    error.retry_after = date  # type: ignore[attr-defined]
    work = Work(error)
    await (await run(RetryStrategy(backoff=fixed(2)), work))
    assert work.starts == [0, 2]


async def test_a_date_beyond_the_deadline_is_not_waited_for() -> None:
    when = datetime.fromtimestamp(clock().wall_time() + 90, UTC)
    work = Work(RateLimited(retry_after=when))
    task = await run(RetryStrategy(backoff=fixed(2)), work, deadline=timedelta(seconds=60))
    assert isinstance(task.exception(), RateLimited)
    assert clock().time() == 0


async def test_a_retry_that_the_deadline_forbids_is_not_waited_for() -> None:
    task = await run(
        RetryStrategy(backoff=fixed(20)), Work(ValueError("late")), deadline=timedelta(seconds=10)
    )
    assert repr(task.exception()) == "ValueError('late')"
    assert clock().time() == 0


# ---- rate limited -------------------------------------------------------------------------------


async def test_rate_limited_outcomes_are_no_attempts() -> None:
    errors = [RateLimited() if i % 2 else ValueError(i) for i in range(9)]
    work = Work(*errors)
    task = await run(RetryStrategy(4, backoff=fixed(1)), work)
    assert task.exception() is errors[6]
    assert (task.attempt, task.rate_limited, len(task.errors)) == (7, 3, 6)


@pytest.mark.parametrize("most", [0, 1, 3])
async def test_rate_limited_outcomes_have_a_bound_of_their_own(most: int) -> None:
    work = Work(*(RateLimited() for _ in range(9)))
    task = await run(RetryStrategy(2, backoff=fixed(1), max_rate_limited=most), work)
    assert isinstance(task.exception(), RateLimited)
    assert (task.attempt, task.rate_limited) == (most + 1, most)


async def test_rate_limited_outcomes_are_retried_whatever_else_is() -> None:
    class Forbidden(RateLimited, NonRetryable):
        pass

    task = await run(RetryStrategy(1, backoff=fixed(1), retry_on=()), Work(RateLimited()))
    assert (await task, task.attempt) == ("done", 2)
    task = await run(RetryStrategy(backoff=fixed(1)), Work(Forbidden()))
    assert (repr(task.exception()), task.attempt) == ("Forbidden('too many requests')", 1)


async def test_each_kind_of_outcome_backs_off_on_its_own() -> None:
    work = Work(ValueError(), RateLimited(), RateLimited(), ValueError())
    await (await run(RetryStrategy(backoff=lambda n: 10**n), work))
    assert work.starts == [0, 10, 20, 120, 220]


async def test_a_task_keeps_the_last_hundred_errors() -> None:
    work = Work(*(RateLimited(str(i)) for i in range(150)))
    task = await run(RetryStrategy(backoff=fixed(1)), work)
    assert (await task, task.attempt, task.rate_limited) == ("done", 151, 150)
    assert [str(error) for error in task.errors] == [str(i) for i in range(50, 150)]


# ---- between attempts ---------------------------------------------------------------------------


async def test_a_backoff_holds_no_slot_and_a_retry_pays_every_limit() -> None:
    slot, window = ConcurrentLimitStrategy(1), SlidingWindowStrategy(3, 100)
    failing, other, late = Work(ValueError(), lasts=1), Work(lasts=1), Work()
    async with TaskManager(Chain(RetryStrategy(backoff=fixed(10)), window, slot)) as manager:
        task = manager.add_task(failing)
        manager.add_task(other)
        await asyncio.sleep(5)
        assert (slot.usage(None, 5).used, task.state) == (0, "queued")
        await task
        manager.add_task(late)
    assert failing.starts == [0, 11]
    assert other.starts == [1]
    assert late.starts == [100]  # three starts in the window: the retry was one


async def test_a_retry_comes_back_to_its_place() -> None:
    order: list[str] = []

    def work(name: str, fails: bool = False) -> Callable[[], Any]:
        async def attempt() -> None:
            task = current_task()
            assert task is not None
            order.append(name)
            await asyncio.sleep(1)
            if fails and task.attempt == 1:
                raise ValueError(name)

        return attempt

    chain = Chain(
        PriorityQueueStrategy(), RetryStrategy(backoff=fixed(0.5)), ConcurrentLimitStrategy(1)
    )
    async with TaskManager(chain) as manager:
        manager.add_task(work("first", fails=True), {"priority": "high"})
        await asyncio.sleep(0.1)
        for name in "abc":
            manager.add_task(work(name))
        manager.add_task(work("urgent"), {"priority": 9})
    assert order == ["first", "urgent", "first", "a", "b", "c"]


async def test_cancelled_in_its_backoff_it_makes_no_further_attempt() -> None:
    work = Work(ValueError())
    async with TaskManager(RetryStrategy(backoff=fixed(10))) as manager:
        task = manager.add_task(work)
        await asyncio.sleep(1)
        assert task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert (work.starts, task.state) == ([0], "cancelled")
    assert len(task.errors) == 1


async def test_cancelled_while_it_runs_it_is_not_retried_even_if_it_then_fails() -> None:
    attempts = 0

    async def stubborn() -> None:
        nonlocal attempts
        attempts += 1
        try:
            await asyncio.sleep(10)
        finally:
            raise ValueError("in the middle of cleaning up")

    async with TaskManager(RetryStrategy(backoff=fixed(1))) as manager:
        task = manager.add_task(stubborn)
        timed = manager.add_task(stubborn, run_timeout=2)
        await asyncio.sleep(1)
        task.cancel()
        await asyncio.sleep(3)
        timed.cancel()
    for each, tries in ((task, 1), (timed, 2)):
        assert (repr(each.exception()), each.attempt) == (
            "ValueError('in the middle of cleaning up')",
            tries,
        )
    assert attempts == 3


async def test_a_closed_manager_retries_nothing() -> None:
    work = Work(ValueError("the last"), lasts=5)
    manager = TaskManager(RetryStrategy(backoff=fixed(1)))
    await manager.idle()
    task = manager.add_task(work)
    await asyncio.sleep(1)
    await manager.close()
    with pytest.raises(ValueError, match="the last"):
        await task


async def test_a_stopped_manager_keeps_its_retries() -> None:
    work = Work(ValueError(), lasts=5)
    manager = TaskManager(RetryStrategy(backoff=fixed(1)))
    await manager.idle()
    task = manager.add_task(work)
    await asyncio.sleep(1)
    await manager.stop()
    await asyncio.sleep(10)
    assert (task.state, task.attempt) == ("queued", 1)
    async with manager:
        assert await task == "done"


async def test_when_a_strategy_breaks_what_fails_later_is_final() -> None:
    work = Work(ValueError("mine"), lasts=5)
    manager = TaskManager(RetryStrategy(backoff=lambda attempt: nan))
    await manager.idle()
    first, second = manager.add_task(work), manager.add_task(Work(ValueError("too"), lasts=6))
    with pytest.raises(StrategyError, match=r"backoff\(1\) gave nan, not a finite"):
        await manager.join()
    assert repr(first.exception()) == "ValueError('mine')"
    with pytest.raises(ValueError, match="too"):
        await second


@pytest.mark.parametrize("seconds", [-1, inf, "2", None, True])
async def test_a_backoff_that_gives_no_seconds_is_named(seconds: Any) -> None:
    manager = TaskManager(RetryStrategy(backoff=lambda attempt: seconds))
    await manager.idle()
    task = manager.add_task(Work(ValueError()))
    with pytest.raises(StrategyError, match=r"RetryStrategy\(5, .*backoff\(1\) gave"):
        await manager.join()
    assert isinstance(task.exception(), ValueError)


async def test_by_hand_a_cancelled_attempt_that_fails_is_the_last() -> None:
    async def stubborn() -> None:
        try:
            await asyncio.sleep(10)
        finally:
            raise ValueError

    strategy = RetryStrategy(backoff=fixed(0))
    strategy.add_task(task := Task(stubborn))
    assert strategy.get_next_task() is task
    running = asyncio.create_task(task.run())
    await asyncio.sleep(0)
    running.cancel()
    with pytest.raises(ValueError):  # noqa: PT011  # it has no words
        await running
    assert (task.state, task.attempt) == ("failed", 1)


async def test_an_outage_of_many_leaks_nothing() -> None:
    slots = ConcurrentLimitStrategy(50)
    down = True
    calls = 0

    async def call() -> None:
        nonlocal calls
        calls += 1
        await asyncio.sleep(0.1)
        if down:
            raise ConnectionError

    retry = RetryStrategy(20, backoff=exponential(0.5, maximum=8), seed=3)
    async with TaskManager(Chain(retry, slots)) as manager:
        tasks = [manager.add_task(call) for _ in range(2_000)]
        await asyncio.sleep(20)
        down = False
        await asyncio.gather(*tasks)
    assert slots.usage(None, clock().time()).used == 0
    assert {task.state for task in tasks} == {"succeeded"}
    assert sum(task.attempt for task in tasks) == calls > 4_000


async def test_ten_thousand_that_fail_at_once_come_back_one_by_one() -> None:
    """Jitter spreads them over the backoff; Retry-After keeps all of them away until then."""
    starts: list[float] = []

    async def call() -> None:
        task = current_task()
        assert task is not None
        if task.attempt == 1:
            await asyncio.sleep(1)
            raise ConnectionError
        starts.append(clock().time())
        if task.attempt == 2:
            raise RateLimited(retry_after=100)

    async with TaskManager(RetryStrategy(backoff=exponential(10), seed=1)) as manager:
        for _ in range(10_000):
            manager.add_task(call)
    second, third = sorted(starts)[:10_000], sorted(starts)[10_000:]
    assert 1 <= second[0] < 1.1
    assert 10.9 < second[-1] <= 11
    for tenth in range(10):
        within = sum(1 + tenth <= start < 2 + tenth for start in second)
        assert 850 <= within <= 1150
    assert third[0] >= second[0] + 100
    assert all(after >= before + 100 for before, after in zip(second, third, strict=True))


# ---- the budget ---------------------------------------------------------------------------------


async def test_a_budget_makes_no_storm_of_an_outage() -> None:
    calls = 0

    async def call() -> None:
        nonlocal calls
        calls += 1
        raise ConnectionError

    budget = RetryBudget(0.1, 0)
    async with TaskManager(RetryStrategy(5, backoff=fixed(1), budget=budget)) as manager:
        tasks = [manager.add_task(call) for _ in range(1_000)]
    assert {type(task.exception()) for task in tasks} == {ConnectionError}
    assert calls == 1_100


async def test_without_traffic_a_few_retries_are_allowed_all_the_same() -> None:
    budget = RetryBudget(0, 1, window_seconds=3)
    work = Work(*(ValueError() for _ in range(9)))
    task = await run(RetryStrategy(9, backoff=fixed(0), budget=budget), work)
    assert (repr(task.exception()), task.attempt) == ("ValueError()", 4)


@given(
    events=st.lists(
        st.tuples(st.sampled_from([0, 0, 1 / 8, 1, 5]), st.booleans()), min_size=1, max_size=60
    ),
    ratio=st.sampled_from([0, 0.1, 0.5, 2]),
    least=st.sampled_from([0, 0.2, 1]),
)
def test_in_any_window_the_budget_holds(
    events: list[tuple[float, bool]], ratio: float, least: float
) -> None:
    budget, now = RetryBudget(ratio, least, window_seconds=10), 0.0
    firsts: list[float] = []
    retries: list[float] = []
    for pause, is_first in events:
        now += pause
        if is_first:
            budget.first(now)
            firsts.append(now)
            continue
        allowed = ratio * sum(now - 10 < at <= now for at in firsts) + least * 10
        spent = sum(now - 10 < at <= now for at in retries)
        if budget.spend(now):
            retries.append(now)
            assert spent + 1 <= allowed + 1e-9
        else:
            # Refused only where twenty slices could not tell that it fits.
            strict = ratio * sum(now - 9.5 < at <= now for at in firsts) + least * 10
            assert sum(now - 10.5 < at <= now for at in retries) + 1 > strict - 1e-9


def test_a_budget_can_be_changed_copied_and_kept() -> None:
    strategy = RetryStrategy(budget=RetryBudget(1, 0))
    budget = strategy.budget
    assert budget is not None
    budget.first(0.0)
    twin = copy.deepcopy(strategy)
    heir = RetryStrategy(budget=RetryBudget(1, 0))
    heir.load(json.loads(json.dumps(strategy.dump())))
    for one in (budget, twin.budget, heir.budget):
        assert one is not None
        assert [one.spend(1.0), one.spend(1.0)] == [True, False]
    budget.ratio = 2
    assert budget.spend(1.0)
    budget.min_per_second = 0.1
    assert (budget.ratio, budget.min_per_second) == (2, 0.1)
    assert budget.spend(1.0)
    assert not budget.spend(1.0)
    assert RetryStrategy().dump() is None
    RetryStrategy().load(None)
    heir.load(None)


# ---- parameters ---------------------------------------------------------------------------------


def outcome(error: BaseException | None = None, kind: Any = "failure") -> Outcome:
    return Outcome(kind, 0.0, 1.0, error)


def failed(task: Task[Any]) -> Task[Any]:
    task._enter([])
    return task


def test_a_copy_draws_what_the_original_would() -> None:
    strategy = RetryStrategy()
    task = failed(Task(Work()))
    twin = copy.deepcopy(strategy)
    ours = [strategy.review(task, outcome(ValueError()), 1.0) for _ in range(5)]
    assert ours == [twin.review(task, outcome(ValueError()), 1.0) for _ in range(5)]
    assert len(set(ours)) == 5


def test_what_did_not_fail_is_not_retried() -> None:
    strategy, task = RetryStrategy(budget=RetryBudget()), failed(Task(Work()))
    assert strategy.review(task, outcome(kind="success"), 1.0) is None
    assert strategy.review(task, outcome(kind="cancelled"), 1.0) is None
    assert strategy.review(task, outcome(ValueError()), 1.0) is not None


def test_everything_changes_live() -> None:
    strategy, task = RetryStrategy(backoff=fixed(1)), failed(Task(Work()))
    assert strategy.review(task, outcome(ValueError()), 1.0) == RetryAt(2.0)
    strategy.backoff = fixed(5)
    assert strategy.review(task, outcome(ValueError()), 1.0) == RetryAt(6.0)
    strategy.retry_on = OSError
    assert strategy.review(task, outcome(ValueError()), 1.0) is None
    assert strategy.review(task, outcome(OSError()), 1.0) == RetryAt(6.0)
    strategy.max_attempts = 1
    assert strategy.review(task, outcome(OSError()), 1.0) is None
    assert strategy.review(task, outcome(RateLimited()), 1.0) == RetryAt(6.0)
    strategy.budget = RetryBudget(0, 0)
    assert strategy.review(task, outcome(RateLimited()), 1.0) is None
    strategy.budget = None
    strategy.max_rate_limited = 0
    assert strategy.review(task, outcome(RateLimited()), 1.0) is None
    assert (strategy.max_attempts, strategy.max_rate_limited, strategy.retry_on) == (1, 0, OSError)
    assert repr(strategy.backoff) == "fixed(5, jitter=None)"


@pytest.mark.parametrize(
    ("make", "kind", "words"),
    [
        (lambda: RetryStrategy(0), InvalidValue, "max_attempts must be .* at least 1, not 0"),
        (lambda: RetryStrategy(2.0), InvalidType, "max_attempts must be a whole number"),  # type: ignore[arg-type]
        (lambda: RetryStrategy(backoff=3), InvalidType, "backoff must be a callable .* not 3"),  # type: ignore[arg-type]
        (lambda: RetryStrategy(retry_on=int), InvalidType, "retry_on must be .* not <class 'int'>"),  # type: ignore[arg-type]
        (lambda: RetryStrategy(retry_on=BaseException), InvalidType, "retry_on must be"),  # type: ignore[arg-type]
        (lambda: RetryStrategy(retry_on=(OSError, 3)), InvalidType, "retry_on must be"),  # type: ignore[arg-type]
        (lambda: RetryStrategy(retry_on="OSError"), InvalidType, "retry_on must be"),  # type: ignore[arg-type]
        (lambda: RetryStrategy(budget=0.1), InvalidType, "budget must be a RetryBudget"),  # type: ignore[arg-type]
        (lambda: RetryStrategy(max_rate_limited=-1), InvalidValue, "max_rate_limited must be"),
        (lambda: RetryStrategy(seed="x"), InvalidType, "seed must be a whole number"),  # type: ignore[arg-type]
        (lambda: RetryBudget(-1), InvalidValue, "ratio must be .* at least 0, not -1"),
        (lambda: RetryBudget(1, nan), InvalidValue, "min_per_second must be .* at least 0"),
        (lambda: RetryBudget(window_seconds=0), InvalidValue, "window_seconds must be .* above 0"),
    ],
)
def test_bad_parameters_are_named(
    make: Callable[[], object], kind: type[Exception], words: str
) -> None:
    with pytest.raises(kind, match=words):
        make()


@pytest.mark.parametrize(
    ("thing", "words"),
    [
        (RetryStrategy(3, backoff=fixed(1)), "RetryStrategy(3, backoff=fixed(1, jitter=None))"),
        (RetryStrategy(backoff=abs), "RetryStrategy(5, backoff=abs)"),
        (RetryBudget(0.1, 2), "RetryBudget(0.1, 2, window_seconds=10.0)"),
    ],
)
def test_it_says_what_it_is(thing: object, words: str) -> None:
    assert repr(thing) == words
