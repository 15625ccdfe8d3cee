"""CooldownStrategy: one outcome that says when to come back pauses all tasks of its key."""

from __future__ import annotations

import asyncio
import copy
import json
from collections.abc import Callable
from datetime import UTC, datetime
from math import inf, nextafter
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from async_task_manager import (
    Chain,
    InvalidState,
    InvalidType,
    InvalidValue,
    RateLimited,
    TaskManager,
    current_task,
)
from async_task_manager.strategies import (
    ConcurrentLimitStrategy,
    CooldownStrategy,
    Provider,
    ProviderRouterStrategy,
    RetryStrategy,
    SlidingWindowStrategy,
    Usage,
    fixed,
)
from async_task_manager.task import Outcome, Task

EPOCH = 1_700_000_000.0


def time() -> float:
    return asyncio.get_running_loop().time()


def release(limit: CooldownStrategy, error: BaseException, now: float, key: Any = None) -> None:
    grant = limit.acquire(key, 1, now)
    limit.started(grant, now)
    limit.release(grant, Outcome("failure", now, now, error), now)


class Server:
    """Answers each call after a second; says "too many" to the first ones."""

    def __init__(self, refusals: int, retry_after: Any) -> None:
        self.refusals, self.retry_after = refusals, retry_after
        self.calls: list[tuple[str, float]] = []

    def call(self, host: str) -> Callable[[], Any]:
        async def work() -> str:
            self.calls.append((host, time()))
            await asyncio.sleep(1)
            if host == "busy" and self.refusals:
                self.refusals -= 1
                raise RateLimited(retry_after=self.retry_after)
            return host

        return work


# ---- in a manager -------------------------------------------------------------------------------


async def test_one_refusal_pauses_all_tasks_of_its_key_and_no_others() -> None:
    server = Server(1, 30)
    chain = Chain(
        RetryStrategy(backoff=fixed(0)),
        CooldownStrategy(key="host"),
        ConcurrentLimitStrategy(1, key="host"),
    )
    async with TaskManager(chain) as manager:
        tasks = [
            manager.add_task(server.call(host), {"host": host})
            for host in ("busy", "busy", "busy", "idle", "idle")
        ]
    assert [await task for task in tasks] == ["busy"] * 3 + ["idle"] * 2
    assert [at for host, at in server.calls if host == "idle"] == [0, 1]
    assert [at for host, at in server.calls if host == "busy"] == [0, 31, 32, 33]


async def test_after_the_pause_the_other_limits_pace_the_starts() -> None:
    server = Server(5, 10)
    chain = Chain(
        RetryStrategy(backoff=fixed(0)),
        CooldownStrategy(key="host"),
        SlidingWindowStrategy(2, 5),
    )
    async with TaskManager(chain) as manager:
        for _ in range(6):
            manager.add_task(server.call("busy"), {"host": "busy"})
    starts = [at for _, at in server.calls]
    assert starts[:2] == [0, 0]
    assert starts[2:4] == [11, 11]  # both were refused, and so are these
    assert starts[4:6] == [22, 22]  # one of them is the last refusal
    assert starts[6:] == [33, 33, 38, 38, 43]


async def test_without_an_instant_it_pauses_for_the_default() -> None:
    server = Server(1, None)
    limit = CooldownStrategy(key=None, default_seconds=7)
    chain = Chain(RetryStrategy(backoff=fixed(0)), limit, ConcurrentLimitStrategy(1))
    async with TaskManager(chain) as manager:
        tasks = [manager.add_task(server.call("busy")) for _ in range(2)]
        await asyncio.sleep(2)
        assert limit.usage(None, 2.0) == Usage(1, 1, 8.0)
    assert [task.state for task in tasks] == ["succeeded"] * 2
    assert [at for _, at in server.calls] == [0, 8, 9]


async def test_a_date_is_held_against_the_wall_clock() -> None:
    loop: Any = asyncio.get_running_loop()
    server = Server(1, datetime.fromtimestamp(loop.wall_time() + 60, UTC))
    chain = Chain(RetryStrategy(backoff=fixed(0)), CooldownStrategy(key=None))
    async with TaskManager(chain) as manager:
        first = manager.add_task(server.call("busy"))
        await asyncio.sleep(5)
        second = manager.add_task(server.call("idle"))
        await asyncio.gather(first, second)
    assert [at for _, at in server.calls] == pytest.approx([0, 60, 60], abs=1.01)


async def test_in_a_router_it_closes_the_provider_until_then() -> None:
    taken: list[tuple[str | None, float]] = []

    async def work() -> None:
        task = current_task()
        assert task is not None
        taken.append((task.provider, time()))
        first = len(taken) == 1
        await asyncio.sleep(1)
        if first:
            raise RateLimited(retry_after=10)

    router = ProviderRouterStrategy(
        [
            Provider(name, limits=[CooldownStrategy(key=None), ConcurrentLimitStrategy(1)])
            for name in ("a", "b")
        ]
    )
    async with TaskManager(Chain(RetryStrategy(backoff=fixed(0)), router)) as manager:
        for _ in range(2):
            manager.add_task(work)
        await asyncio.sleep(5)
        for _ in range(2):
            manager.add_task(work)
        await asyncio.sleep(8)
        manager.add_task(work)
    # What failed at one provider prefers another the next time.
    assert taken == [("a", 0), ("b", 0), ("b", 5), ("b", 6), ("b", 11), ("a", 13)]


async def test_a_task_that_only_passes_the_headers_on_fails_over_at_once() -> None:
    taken: list[tuple[str | None, float]] = []

    async def work() -> None:
        task = current_task()
        assert task is not None
        taken.append((task.provider, time()))
        if len(taken) == 1:
            task.observe({"retry-after": "10"})
            raise ConnectionError

    router = ProviderRouterStrategy(
        [Provider(name, limits=[CooldownStrategy(key=None)]) for name in ("a", "b")]
    )
    async with TaskManager(Chain(RetryStrategy(backoff=fixed(1)), router)) as manager:
        await manager.add_task(work)
        await asyncio.sleep(9)
        await manager.add_task(work)
    assert taken == [("a", 0), ("b", 1), ("a", 10)]


# ---- headers, by way of the task ----------------------------------------------------------------


async def test_the_headers_of_a_response_pause_the_key_of_the_task() -> None:
    """Also those without a ``Date``, and by whatever route the task holds its grant."""
    inner = CooldownStrategy(key="model")
    outer = CooldownStrategy(key="host")
    router = ProviderRouterStrategy([Provider("p", limits=[inner])])
    loop: Any = asyncio.get_running_loop()
    late = datetime.fromtimestamp(loop.wall_time() + 40, UTC)

    async def work() -> None:
        task = current_task()
        assert task is not None
        task.observe({"Retry-After": "20"})
        task.observe({"retry-after": late.strftime("%a, %d %b %Y %H:%M:%S GMT")})
        task.observe("not headers")
        task.observe({"content-type": "text/plain"})

    async with TaskManager(Chain(outer, router)) as manager:
        await manager.add_task(work, {"host": "h", "model": "m"})
        for limit, key in ((outer, "h"), (inner, "m")):
            usage = limit.usage(key, time())
            assert usage.used == 1
            assert usage.frees_at == pytest.approx(40, abs=1.01)
            assert limit.usage("other", time()).used == 0


async def test_observing_takes_effect_while_the_task_still_runs() -> None:
    starts: list[float] = []

    async def work() -> None:
        starts.append(time())
        if len(starts) == 1:
            await asyncio.sleep(1)
            task = current_task()
            assert task is not None
            task.observe({"retry-after": "5"})
        await asyncio.sleep(1)

    limit = CooldownStrategy(key=None)
    async with TaskManager(Chain(limit, SlidingWindowStrategy(1, 1.5))) as manager:
        for _ in range(3):
            manager.add_task(work)
    assert starts == [0, 6, 7.5]


async def test_only_a_task_that_runs_observes() -> None:
    manager = TaskManager(CooldownStrategy(key=None))
    task = manager.add_task(asyncio.Event().wait)
    with pytest.raises(InvalidState, match="nothing to observe"):
        task.observe({})
    await manager.close()


async def test_alone_a_task_tells_nobody() -> None:
    async def work() -> str:
        task = current_task()
        assert task is not None
        task.observe({"retry-after": "5"})
        return "done"

    assert await Task(work).run() == "done"


async def test_by_hand_too() -> None:
    limit = CooldownStrategy(key=None)

    async def work() -> None:
        task = current_task()
        assert task is not None
        task.observe({"retry-after": "5"})

    limit.add_task(task := Task(work))
    assert limit.get_next_task() is task
    await task.run()
    limit.add_task(Task(work))
    assert limit.get_next_task() is None
    assert 0 < (await limit.get_sleep_interval() or 0) <= 5


async def test_a_limit_that_cannot_bear_what_it_hears_breaks_the_manager() -> None:
    class Brittle(ConcurrentLimitStrategy):
        def observe(self, sample: Any, now: float, key: Any = None, grant: Any = None) -> None:
            raise ZeroDivisionError

    async def work() -> str:
        task = current_task()
        assert task is not None
        task.observe(1)
        return "done"

    manager = TaskManager(Brittle(1))
    await manager.idle()
    task = manager.add_task(work)
    with pytest.raises(Exception, match="Brittle"):
        await manager.join()
    assert await task == "done"


# ---- the policy by itself -----------------------------------------------------------------------


@given(
    outcomes=st.lists(
        st.tuples(
            st.sampled_from([0.0, 0.5, 3.0]),
            st.sampled_from("ab"),
            st.sampled_from([None, 0, 0.5, 2, 10, datetime.fromtimestamp(EPOCH + 9, UTC)]),
        ),
        max_size=20,
    ),
    step=st.sampled_from([-4, 0, 4]),
)
def test_many_extend_and_never_shorten(outcomes: list[tuple[float, str, Any]], step: float) -> None:
    limit, now = CooldownStrategy(key="host", default_seconds=1.5), 0.0
    limit.set_wall_offset(EPOCH, 0.0)
    ends: dict[str, list[float]] = {"a": [-inf], "b": [-inf]}
    dates: dict[str, list[float]] = {"a": [-inf], "b": [-inf]}
    offset = EPOCH
    for i, (pause, key, after) in enumerate(outcomes):
        now += pause
        if i == len(outcomes) // 2:
            for each in "ab":  # what is over stays over
                dates[each] = [at for at in dates[each] if at - offset > now] or [-inf]
            offset += step
            limit.set_wall_offset(offset, now)
        release(limit, RateLimited(retry_after=after), now, key)
        if isinstance(after, datetime):
            dates[key].append(after.timestamp())
        else:
            ends[key].append(now + (1.5 if after is None else after))
        for each in "ab":
            end = max(*ends[each], max(dates[each]) - offset)
            assert limit.ready_at(each, 1, now) == max(now, end)
            if end > now:
                before = nextafter(end, -inf)
                assert limit.ready_at(each, 1, before) > before
                assert limit.ready_at(each, 1, end) == end


def test_what_does_not_say_so_does_not_pause() -> None:
    limit = CooldownStrategy(key=None)
    release(limit, ValueError(), 1.0)
    for kind in ("success", "cancelled"):
        outcome = Outcome(kind, 1.0, 1.0, RateLimited(retry_after=5))
        limit.release(limit.acquire(None, 1, 1.0), outcome, 1.0)
    limit.observe(42, 1.0)
    limit.observe({"retry-after": "soon"}, 1.0)
    assert limit.ready_at(None, 1, 1.0) == 1.0
    error = ConnectionError()
    error.retry_after = 5  # type: ignore[attr-defined]
    release(limit, error, 1.0)
    assert limit.ready_at(None, 1, 1.0) == 6.0


def test_keys_are_forgotten_when_they_are_not_paused() -> None:
    limit = CooldownStrategy(key="host")
    for i in range(1_000):
        release(limit, RateLimited(retry_after=1), i / 100, i)
    assert len(list(limit.keys())) < 250
    for i in range(1_000):
        limit.acquire(i, 1, 100.0)
    assert not list(limit.keys())


def test_a_copy_and_a_dump_keep_the_pauses() -> None:
    limit = CooldownStrategy(key="host")
    limit.set_wall_offset(EPOCH, 0.0)
    release(limit, RateLimited(retry_after=5), 1.0, "a")
    limit.observe({"retry-after": "Tue, 14 Nov 2023 22:13:29 GMT"}, 1.0, ("b", 1))  # without a date
    twin, heir = copy.deepcopy(limit), CooldownStrategy(key="host")
    heir.load(json.loads(json.dumps(limit.dump())))
    heir.set_wall_offset(EPOCH, 0.0)
    release(limit, RateLimited(retry_after=99), 1.0, "a")
    for other in (twin, heir):
        assert other.ready_at("a", 1, 1.0) == 6.0
        assert other.ready_at(("b", 1), 1, 1.0) == 9.0
        assert other.usage("c", 1.0) == Usage(0, 1)


async def test_whoever_asks_why_is_told() -> None:
    async def work() -> None:
        raise RateLimited(retry_after=5)

    async with TaskManager(CooldownStrategy(key="host")) as manager:
        first = manager.add_task(work, {"host": "a.example"})
        await asyncio.sleep(1)
        assert isinstance(first.exception(), RateLimited)
        second = manager.add_task(asyncio.Event().wait, {"host": "a.example"})
        words = str(manager.explain(second))
        assert "host 'a.example' was told to slow down, next at" in words
        second.cancel()
    limit = CooldownStrategy(key=None)
    assert limit.tell(limit.usage(None, 1.0)) == "is not paused"


def test_it_says_what_it_is() -> None:
    limit = CooldownStrategy(key="host")
    assert repr(limit) == "CooldownStrategy(key='host')"
    assert limit.describe() == "pauses when told to for each host"
    limit.default_seconds = 3
    assert limit.default_seconds == 3
    assert repr(limit) == "CooldownStrategy(default_seconds=3, key='host')"


@pytest.mark.parametrize(
    ("make", "kind", "words"),
    [
        (lambda: CooldownStrategy(key=3), InvalidType, "key must be"),  # type: ignore[arg-type]
        (lambda: CooldownStrategy(key=None, default_seconds=-1), InvalidValue, "default_seconds"),
        (CooldownStrategy, TypeError, "key"),
    ],
)
def test_bad_parameters_are_named(
    make: Callable[[], object], kind: type[Exception], words: str
) -> None:
    with pytest.raises(kind, match=words):
        make()
