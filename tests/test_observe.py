"""Windows and buckets follow what a server says of its own count."""

from __future__ import annotations

import asyncio
import copy
import json
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import format_datetime
from heapq import heappop, heappush
from itertools import count
from math import ceil, floor, inf, nextafter
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from async_task_manager import Chain, TaskManager, current_task
from async_task_manager.strategies import (
    FixedWindowStrategy,
    Limit,
    Provider,
    ProviderRouterStrategy,
    SlidingWindowStrategy,
    TokenBucketStrategy,
    Usage,
)
from async_task_manager.task import Outcome

EPOCH = 1_700_000_000.0
OK = Outcome("success", 0.0, 0.0)
UNSTARTED = Outcome("cancelled", None, 0.0)

LOOSE: list[Callable[[], Limit]] = [
    lambda: SlidingWindowStrategy(1000, 8),
    lambda: FixedWindowStrategy(1000, 8),
    lambda: FixedWindowStrategy(1000, 8, align="clock"),
]
"""Limits that would let everything go at once, if they heard nothing."""


def date(at: float) -> str:
    return format_datetime(datetime.fromtimestamp(floor(EPOCH + at), UTC), usegmt=True)


def make(factory: Callable[[], Limit]) -> Limit:
    limit = factory()
    limit.set_wall_offset(EPOCH, 0.0)
    return limit


def start(limit: Limit, now: float, cost: Any = 1, key: Any = None) -> Any:
    assert limit.ready_at(key, cost, now) <= now
    grant = limit.acquire(key, cost, now)
    limit.started(grant, now)
    return grant


def said(remaining: float, reset: float | None = None, at: float = 0.0) -> dict[str, str]:
    headers = {"Date": date(at), "X-RateLimit-Remaining": str(remaining)}
    return headers if reset is None else headers | {"X-RateLimit-Reset": str(reset)}


# ---- a server with windows, and a network that mixes everything up -------------------------------


@dataclass
class Request:
    cost: int
    there: float
    back: float
    lost: bool
    started: float = 0.0
    grant: Any = None
    heard: float = -inf
    """The latest window of which a response had been heard when it started."""


class Windows:
    """Counts at arrival, in windows one after the other; answers with what remains."""

    def __init__(self, most: int, length: float) -> None:
        self.most, self.length = most, length
        self.used: dict[int, int] = {}

    def answer(self, cost: int, now: float) -> tuple[bool, int, dict[str, str]]:
        window = floor(now / self.length)
        used = self.used.get(window, 0)
        admitted = used + cost <= self.most
        if admitted:
            self.used[window] = used = used + cost
        reset = ceil((window + 1) * self.length - now)
        return admitted, window, said(self.most - used, reset, now)


DELAYS = st.sampled_from([0.0, 0.125, 0.5, 1.0, 3.0, 9.0])
REQUESTS = st.lists(
    st.builds(
        Request,
        cost=st.integers(1, 3),
        there=DELAYS,
        back=DELAYS,
        lost=st.sampled_from([False, False, False, False, True]),
    ),
    min_size=1,
    max_size=30,
)


@settings(max_examples=60)
@given(requests=REQUESTS, at_once=st.integers(1, 8), factory=st.sampled_from(LOOSE))
def test_whoever_has_heard_of_a_window_is_not_refused_in_it(
    requests: list[Request], at_once: int, factory: Callable[[], Limit]
) -> None:
    """However slow, lost or out of order the responses are."""
    limit, server = make(factory), Windows(6, 8.0)
    queue, flying, now = list(requests), 0, 0.0
    heard, wakes = -inf, 0
    agenda: list[tuple[float, int, Callable[[float], None]]] = []
    order = count()

    def at(instant: float, what: Callable[[float], None]) -> None:
        heappush(agenda, (instant, next(order), what))

    def arrive(request: Request) -> Callable[[float], None]:
        def arrived(now: float) -> None:
            admitted, window, headers = server.answer(request.cost, now)
            if not admitted:
                assert request.heard < window, f"refused at {now}, and it could have known"
            at(now + request.back, answered(request, window, headers))

        return arrived

    def answered(request: Request, window: int, headers: dict[str, str]) -> Callable[[float], None]:
        def end(now: float) -> None:
            nonlocal heard, flying
            flying -= 1
            if not request.lost:
                limit.observe(headers, now, None, request.grant)
                heard = max(heard, window)
            limit.release(request.grant, OK, now)

        return end

    while queue or agenda:
        while queue and flying < at_once:
            instant = limit.ready_at(None, queue[0].cost, now)
            if instant > now:
                if instant < inf:
                    assert limit.ready_at(None, queue[0].cost, nextafter(instant, -inf)) == instant
                    at(instant, lambda now: None)
                break
            request = queue.pop(0)
            flying += 1
            request.grant, request.heard = start(limit, now, request.cost), heard
            at(now + request.there, arrive(request))
        now, _, event = heappop(agenda)
        event(now)
        wakes += 1
        assert wakes < 2_000, "it never gets on"


class Bucket:
    """GCRA, as a server keeps it, which others use too."""

    def __init__(self, rate: float, burst: float) -> None:
        self.rate, self.burst = rate, burst
        self.level, self.since = burst, 0.0

    def answer(self, cost: int, now: float) -> tuple[bool, dict[str, str]]:
        self.level = min(self.burst, self.level + (now - self.since) * self.rate)
        self.since = now
        admitted = cost <= self.level
        if admitted:
            self.level -= cost
        full = (self.burst - self.level) / self.rate
        return admitted, said(self.level, f"{full}s", now)  # type: ignore[arg-type]


@settings(max_examples=60)
@given(requests=REQUESTS, at_once=st.integers(1, 6), used=st.integers(0, 8))
def test_a_bucket_of_which_others_took_is_not_overdrawn_once_it_was_heard_of(
    requests: list[Request], at_once: int, used: int
) -> None:
    limit, server = TokenBucketStrategy(0.5, 8, catch_up=0), Bucket(0.5, 8)
    server.answer(used, 0.0)
    queue, flying, now, heard = list(requests), 0, 0.0, False
    agenda: list[tuple[float, int, Callable[[float], None]]] = []
    order = count()

    def at(instant: float, what: Callable[[float], None]) -> None:
        heappush(agenda, (instant, next(order), what))

    def arrive(request: Request) -> Callable[[float], None]:
        def arrived(now: float) -> None:
            admitted, headers = server.answer(request.cost, now)
            assert admitted or not request.heard, f"refused at {now}"
            at(now + request.back, answered(request, headers))

        return arrived

    def answered(request: Request, headers: dict[str, str]) -> Callable[[float], None]:
        def end(now: float) -> None:
            nonlocal flying, heard
            flying -= 1
            if not request.lost:
                limit.observe(headers, now, None, request.grant)
                heard = True
            limit.release(request.grant, OK, now)

        return end

    while queue or agenda:
        while queue and flying < at_once:
            instant = limit.ready_at(None, queue[0].cost, now)
            if instant > now:
                at(instant, lambda now: None)
                break
            request = queue.pop(0)
            flying += 1
            request.grant, request.heard = start(limit, now, request.cost), heard
            at(now + request.there, arrive(request))
        now, _, event = heappop(agenda)
        event(now)


# ---- one thing at a time -------------------------------------------------------------------------

BUCKET = lambda: TokenBucketStrategy(0.001, 1000)  # noqa: E731  # one of a list of factories
every_window = pytest.mark.parametrize("factory", LOOSE)
every_limit = pytest.mark.parametrize("factory", [*LOOSE, BUCKET])


def room(limit: Limit, now: float, key: Any = None) -> int:
    """The greatest cost that would be let go now."""
    return max((c for c in range(1001) if limit.ready_at(key, c, now) <= now), default=-1)


@every_limit
def test_no_more_is_let_go_than_remains(factory: Callable[[], Limit]) -> None:
    limit = make(factory)
    assert room(limit, 1.0) == 1000
    limit.observe(said(7, 5, 1.0), 1.0)
    assert room(limit, 1.0) == 7


@every_limit
def test_what_is_under_way_is_subtracted(factory: Callable[[], Limit]) -> None:
    limit = make(factory)
    grants = [start(limit, 1.0, 2) for _ in range(5)]
    limit.observe(said(20, 5, 1.5), 1.5, None, grants[0])  # it has counted this one, for sure
    assert room(limit, 1.5) == 12
    limit.release(grants[0], OK, 1.5)
    assert room(limit, 1.5) == 12
    limit.observe(said(20, 5, 1.5), 1.5)  # heard by the way: it may have counted none
    assert room(limit, 1.5) == 12


@every_window
def test_what_ends_unheard_counts_unless_it_never_began(factory: Callable[[], Limit]) -> None:
    limit = make(factory)
    grants = [start(limit, 1.0, 2) for _ in range(3)]
    waiting = limit.acquire(None, 2, 1.0)
    limit.observe(said(20, 5, 1.5), 1.5, None, grants[0])
    limit.release(grants[0], OK, 1.5)
    assert room(limit, 1.5) == 14
    limit.release(grants[1], OK, 1.5)
    assert room(limit, 1.5) == 14
    limit.release(waiting, UNSTARTED, 1.5)
    assert room(limit, 1.5) == 16
    limit.observe(said(14, 5, 1.75), 1.75, None, grants[2])
    limit.release(grants[2], OK, 1.75)
    assert room(limit, 1.75) == 12  # the second may have come in after the third
    last = start(limit, 1.75, 1)
    limit.observe(said(11, 60, 9.0), 9.0, None, last)  # that it knows of all of them is sure
    assert room(limit, 9.0) == 11


@every_window
def test_within_a_window_the_least_counts(factory: Callable[[], Limit]) -> None:
    limit = make(factory)
    for remaining, seen in [(9, 9), (5, 5), (7, 5), (6, 5), (4, 4)]:
        limit.observe(said(remaining, 5, 1.0), 1.5)
        assert room(limit, 1.5) == seen
    limit.observe(said(8, 4, 2.0), 2.5)  # the same window, told a second later
    assert room(limit, 2.5) == 4


@every_window
def test_a_later_window_counts_anew_and_an_earlier_one_not(factory: Callable[[], Limit]) -> None:
    limit = make(factory)
    limit.observe(said(2, 5, 1.0), 1.0)
    limit.observe(said(50, 60, 6.0), 5.9)  # our window seems to last a moment longer
    assert room(limit, 5.9) == 50
    limit.observe(said(1, 1, 5.0), 6.0)  # it was overtaken
    assert room(limit, 6.0) == 50
    assert room(limit, 67.0) == 1000
    limit.observe(said(30, 5, 50.0), 68.0)  # late, and better than nothing
    assert room(limit, 68.0) == 30


@every_window
def test_a_reset_that_moves_on_with_each_request_is_followed(
    factory: Callable[[], Limit],
) -> None:
    """A bucket at the other end gets room all the time: who follows it doesn't starve."""
    limit = make(factory)
    limit.observe(said(0, 60, 1.0), 1.0)
    assert room(limit, 2.0) == 0
    limit.observe(said(3, 62, 5.0), 5.0)
    assert room(limit, 5.0) == 3


@every_window
def test_until_the_reset_and_exactly_until_then(factory: Callable[[], Limit]) -> None:
    limit = make(factory)
    limit.observe(said(2, 5, 1.0), 1.0)
    assert limit.ready_at(None, 3, 1.0) == 6.0
    assert limit.ready_at(None, 3, nextafter(6.0, -inf)) == 6.0
    assert limit.ready_at(None, 3, 6.0) <= 6.0
    assert limit.ready_at(None, 2, 1.0) <= 1.0


@every_window
def test_without_a_reset_it_lasts_for_a_window(factory: Callable[[], Limit]) -> None:
    limit = make(factory)
    limit.observe({"x-ratelimit-remaining": "2"}, 4.0)
    end = limit.ready_at(None, 3, 4.0)
    assert 4.0 < end <= 12.0
    limit.observe({"x-ratelimit-remaining": "5"}, 5.0)
    assert room(limit, 5.0) == 2
    assert limit.ready_at(None, 3, end) <= end
    grant = start(limit, end, 1)
    limit.observe({"x-ratelimit-remaining": "2"}, end + 1, None, grant)
    assert end < limit.ready_at(None, 3, end + 1) <= end + 9


@every_limit
def test_absent_is_not_zero(factory: Callable[[], Limit]) -> None:
    limit = make(factory)
    for sample in (
        {},
        {"x-ratelimit-reset": "60", "x-ratelimit-limit": "3"},
        {"x-ratelimit-remaining": "-1"},
        {"x-ratelimit-remaining": "unknown"},
        {"x-ratelimit-remaining-tokens": "0"},  # of another unit
        {"retry-after": "Tue, 14 Nov 2023 23:13:29 GMT"},  # and no date
        "a string",
        42,
    ):
        limit.observe(sample, 1.0)
    assert room(limit, 1.0) == 1000
    assert not list(limit.keys())


@every_limit
def test_a_retry_after_holds_up_everything(factory: Callable[[], Limit]) -> None:
    limit = make(factory)
    limit.observe({"Retry-After": "30"}, 1.0)
    limit.observe({"retry-after": "10"}, 2.0)
    assert limit.ready_at(None, 1, 2.0) == 31.0
    assert limit.ready_at(None, 1, nextafter(31.0, -inf)) == 31.0
    assert limit.ready_at(None, 1, 31.0) <= 31.0
    assert limit.usage(None, 2.0) == Usage(1000, 1000, 31.0)
    limit.observe({"retry-after": "90"} | said(1, 60, 2.0), 2.0)
    assert limit.ready_at(None, 1, 2.0) == 92.0


def test_requests_and_tokens_are_told_apart() -> None:
    headers = {
        "date": date(1.0),
        "x-ratelimit-remaining-requests": "5",
        "x-ratelimit-remaining-tokens": "70",
        "x-ratelimit-reset-requests": "1m",
        "x-ratelimit-reset-tokens": "1m",
        "anthropic-ratelimit-input-tokens-remaining": "9",
    }

    class Learned:
        unit = "tokens"

        def __call__(self, task: object) -> float:
            return 1.0

    units: list[tuple[Any, int]] = [
        (None, 5),
        (1, 5),
        ("tokens", 70),
        ("input_tokens", 9),
        (Learned(), 70),
        (len, 1000),
        ("gigabytes", 1000),
    ]
    for cost, seen in units:
        limit = SlidingWindowStrategy(1000, 60, cost=cost)
        limit.observe(headers, 1.0)
        assert room(limit, 1.0) == seen


def test_windows_are_told_apart() -> None:
    headers = {
        "date": date(1.0),
        "ratelimit-policy": '"burst";q=100;w=60, "daily";q=1000;w=86400, "own";q=9',
        "ratelimit": '"burst";r=7;t=9, "daily";r=3;t=600, "own";r=8;t=600',
    }
    limits: list[tuple[Limit, int]] = [
        (SlidingWindowStrategy(1000, 60), 7),
        (SlidingWindowStrategy(1000, 60.2), 7),
        (SlidingWindowStrategy(1000, 86_400), 3),
        (SlidingWindowStrategy(1000, 3600), 8),
        (FixedWindowStrategy(1000, "day", align="clock"), 3),
        (FixedWindowStrategy(1000, "minute", align="clock"), 7),
        (TokenBucketStrategy(0.001, 1000), 3),
    ]
    for limit, seen in limits:
        limit.observe(headers, 1.0)
        assert room(limit, 1.0) == seen
    limit = SlidingWindowStrategy(1000, 60)
    limit.observe({"x-ratelimit-remaining": "9", "x-ratelimit-remaining-requests": "12"}, 1.0)
    assert room(limit, 1.0) == 12  # it says more about itself


@every_limit
def test_each_key_hears_for_itself(factory: Callable[[], Limit]) -> None:
    limit = make(factory)
    limit.key = "model"
    limit.observe(said(3, 60, 1.0), 1.0, "a")
    assert (room(limit, 1.0, "a"), room(limit, 1.0, "b")) == (3, 1000)


@every_limit
def test_a_settled_cost_is_what_is_under_way(factory: Callable[[], Limit]) -> None:
    limit = make(factory)
    first, second = start(limit, 1.0, 10), start(limit, 1.0, 10)
    limit.settle(first, 30, 1.0)
    limit.observe(said(100, 60, 1.0), 1.0, None, second)
    assert room(limit, 1.0) == 70
    limit.settle(second, 40, 1.0)  # the server knows that already
    limit.observe(said(60, 60, 1.0), 1.0, None, first)
    # A bucket was charged what the second used in excess, and is not raised by what it hears.
    assert room(limit, 1.0) == (40 if isinstance(limit, TokenBucketStrategy) else 60)


@every_limit
def test_copies_and_dumps_keep_what_was_heard(factory: Callable[[], Limit]) -> None:
    limit = make(factory)
    limit.key = "model"
    limit.observe(said(3, 60, 1.0), 1.0, "a")
    limit.observe({"retry-after": "30"}, 1.0, "b")
    twin, heir = copy.deepcopy(limit), make(factory)
    heir.load(json.loads(json.dumps(limit.dump())))
    limit.observe(said(1, 60, 1.0), 1.0, "a")
    for other in (twin, heir):
        assert room(other, 1.0, "a") == 3
        assert other.ready_at("b", 1, 1.0) == 31.0
        assert other.usage("a", 1.0).used == 997


@every_window
def test_usage_is_what_the_server_leaves(factory: Callable[[], Limit]) -> None:
    limit = make(factory)
    grant = start(limit, 1.0, 10)
    limit.observe(said(400, 4, 1.0), 1.0)
    assert limit.usage(None, 1.0) == Usage(610, 1000, 5.0)
    limit.release(grant, OK, 1.0)
    limit.observe(said(995, 60, 6.0), 6.0)
    assert limit.usage(None, 6.0).used == 10
    assert limit.usage(None, 99.0).used == 0


@every_limit
def test_keys_that_were_heard_of_are_forgotten_when_that_is_over(
    factory: Callable[[], Limit],
) -> None:
    limit = make(factory)
    limit.key = "model"
    limit.observe(said(3, 60, 1.0), 1.0, "a")
    limit.observe({"retry-after": "90"}, 1.0, "b")
    for now, kept in [(30.0, {"a", "b"}), (80.0, {"b"}), (95.0, set())]:
        for i in range(4):
            limit.release(limit.acquire(("other", i), 1, now), UNSTARTED, now)
        if not isinstance(limit, TokenBucketStrategy):  # it is full again after 16 minutes
            assert set(limit.keys()) >= kept
    for i in range(20):
        limit.release(limit.acquire(("other", i), 1, 1e7), UNSTARTED, 1e7)
    assert not {"a", "b"} & set(limit.keys())


def test_a_bucket_that_hears_keeps_what_is_under_way() -> None:
    bucket = TokenBucketStrategy(100, 10, key="model")
    grants = [start(bucket, 0.0, 2, "a") for _ in range(3)]
    bucket.observe(said(9, 1, 0.0), 0.0, "a", grants[0])
    for i in range(20):
        start(bucket, 5.0, 1, i)
    assert start(bucket, 5.0, 2, "a")  # full again meanwhile, and four are still under way
    bucket.observe(said(9, 1, 5.0), 5.0, "a")
    assert [bucket.ready_at("a", cost, 5.0) <= 5.0 for cost in (3, 4)] == [True, False]


# ---- through the task ----------------------------------------------------------------------------


async def test_a_response_paces_what_waits() -> None:
    """The server's window is half over, and others took most of it."""
    starts: list[float] = []
    left = 4

    async def work() -> None:
        nonlocal left
        loop = asyncio.get_running_loop()
        starts.append(loop.time())
        await asyncio.sleep(0.5)
        left = left - 1 if loop.time() < 30 else 99
        task = current_task()
        assert task is not None
        reset = 30 - loop.time() if loop.time() < 30 else 60
        task.observe({"x-ratelimit-remaining": str(left), "x-ratelimit-reset": f"{reset}s"})

    window = SlidingWindowStrategy(100, 60)
    router = ProviderRouterStrategy([Provider("p", limits=[window])])
    async with TaskManager(Chain(FixedWindowStrategy(1, 1), router)) as manager:
        for _ in range(6):
            manager.add_task(work)
    assert starts == [0, 1, 2, 3, 30, 31]
