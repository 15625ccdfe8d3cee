"""A provider that misbehaves in every way, and what the strategies of a run make of it."""

from __future__ import annotations

import asyncio
import io
import json
import sys
import time
from pathlib import Path
from typing import Any

import pytest

sys.path.insert(0, str(Path(__file__).parents[1] / "examples"))

from fake_provider import FakeProvider  # an example, not a package

from async_task_manager.config import parse_config
from async_task_manager.runner import Batch, Ledger, Summary

pytestmark = pytest.mark.real_time

QUICK = {"backoff": {"kind": "exponential", "base": 0.05, "maximum": 0.2}, "budget": False}


def provider(fake: FakeProvider, **more: Any) -> dict[str, Any]:
    return {"name": fake.name, "base_url": fake.url, "max_concurrent": 8, "retry": QUICK} | more


async def send(
    requests: int, *providers: dict[str, Any], **lines: Any
) -> tuple[list[dict[str, Any]], Summary]:
    sink = io.BytesIO()
    batch = Batch(parse_config({"providers": list(providers)}))
    given = [json.dumps({"id": i, "path": "/v1/x", **lines}) for i in range(requests)]
    async with asyncio.timeout(50):
        summary = await batch.run(given, Ledger(sink))
    return [json.loads(line) for line in sink.getvalue().splitlines()], summary


@pytest.mark.parametrize(
    ("trouble", "counted"),
    [
        ({"reset_next": 9}, {"resets": 9}),
        ({"drop_next": 9}, {"drops": 9}),
        ({"garble_next": 9}, {"garbled": 9}),
        ({"fail_next": 9}, {}),
        ({"fail_next": 9, "status": 503}, {}),
        ({"fail_next": 9, "status": 408}, {}),
        ({"reset_rate": 0.2, "error_rate": 0.2, "drop_rate": 0.2}, {"drops": 1, "resets": 1}),
    ],
)
async def test_what_passes_is_tried_again(trouble: dict[str, Any], counted: dict[str, int]) -> None:
    async with FakeProvider("a", latency="0-0.02", **trouble) as a:
        patient = QUICK | {"max_attempts": 30}
        written, summary = await send(60, provider(a, breaker=False, retry=patient))
    assert summary.all_succeeded and len(written) == 60
    part = summary.providers["a"]
    assert part.errors >= 9 and part.failed == 0
    assert max(line["attempts"] for line in written) > 1
    for what, least in counted.items():
        assert getattr(a.stats, what) >= least


async def test_what_lasts_fails_after_so_many_attempts() -> None:
    async with FakeProvider("a", error_rate=1.0) as a:
        written, summary = await send(
            4, provider(a, breaker=False, retry=QUICK | {"max_attempts": 3})
        )
    assert {(line["status"], line["attempts"]) for line in written} == {("failed", 3)}
    assert {line["error"] for line in written} == {"HTTP 500 Internal Server Error"}
    assert a.stats.received == 12 and summary.providers["a"].errors == 12


async def test_what_is_the_request_s_own_fault_is_final() -> None:
    async with FakeProvider("a", fail_next=5, status=400) as a:
        written, _ = await send(5, provider(a, breaker={"min_calls": 1}))
    assert {(line["status"], line["attempts"]) for line in written} == {("failed", 1)}
    assert a.stats.received == 5, "the breaker let the second pass: the provider did answer"


async def test_a_budget_bounds_the_storm() -> None:
    retry = QUICK | {"max_attempts": 50, "budget": {"ratio": 0.5, "min_per_second": 0}}
    async with FakeProvider("a", error_rate=1.0) as a:
        written, _ = await send(60, provider(a, breaker=False, retry=retry))
    assert {line["status"] for line in written} == {"failed"}
    assert 60 < a.stats.received <= 90


@pytest.mark.parametrize("headers", ["all", "retry-after", "date", "none"])
async def test_a_429_pauses_all_of_that_provider(headers: str) -> None:
    """The config knows of no limit: what the provider says, or refuses, is all there is."""
    async with FakeProvider("a", limits=["10/1s"], headers=headers) as a:
        written, summary = await send(25, provider(a, max_concurrent=4))
    assert summary.all_succeeded and len(written) == 25
    # Each time that the limit is hit, at most as many are refused as are in flight; to come back
    # later than need be is no violation.
    hits = 14 if headers == "none" else 4
    assert 1 <= a.stats.rejected <= 4 * hits
    assert summary.too_many == a.stats.rejected


@pytest.mark.parametrize("headers", ["all", "none"])
async def test_a_provider_that_admits_less_than_the_config_says_makes_no_failures(
    headers: str,
) -> None:
    """With the defaults, as a new user has them: no budget ends what was only sent too early."""
    async with FakeProvider("a", limits=["10/1s"], headers=headers) as a:
        told = {"limits": ["100/1s"], "max_concurrent": 40}
        sent = {"name": a.name, "base_url": a.url} | told
        written, summary = await send(60, sent)
    assert summary.all_succeeded and len(written) == 60
    assert a.stats.rejected > 60, "more than the budget lets be tried again"


@pytest.mark.parametrize("headers", ["all", "date"])
async def test_a_503_that_asks_to_wait_is_given_the_time(headers: str) -> None:
    async with FakeProvider("a", fail_next=1, status=503, retry_after=1, headers=headers) as a:
        began = time.monotonic()
        written, summary = await send(3, provider(a, max_concurrent=1))
    assert summary.all_succeeded
    assert time.monotonic() - began >= 0.95
    assert [line["attempts"] for line in written] == [2, 1, 1]
    assert a.stats.received == 4


async def test_a_limit_that_changes_on_the_way() -> None:
    async with FakeProvider("a", limits=["50/1s"], latency=0.01) as a:
        run = asyncio.create_task(send(60, provider(a, limits=["50/1s"], slack=0.2)))
        async with asyncio.timeout(10):
            while a.stats.accepted < 20:
                await asyncio.sleep(0.005)
        a.change(limits=["25/1s"])
        written, summary = await run
    assert summary.all_succeeded and len(written) == 60
    assert a.stats.rejected <= 40


async def test_a_provider_that_is_silent_times_out_and_another_takes_over() -> None:
    async with FakeProvider("slow", latency=30) as slow, FakeProvider("good") as good:
        began = time.monotonic()
        written, summary = await send(
            30, provider(slow, timeout=0.2, breaker={"min_calls": 3}), provider(good)
        )
    assert summary.all_succeeded and len(written) == 30
    assert {line["provider"] for line in written} == {"good"}
    assert slow.stats.received <= 16, "the breaker leaves it alone"
    assert time.monotonic() - began < 10


async def test_a_provider_that_is_gone_is_left_alone() -> None:
    async with FakeProvider("good", latency=0.02) as good:
        gone = {"name": "gone", "base_url": "http://127.0.0.1:9", "retry": QUICK}
        written, summary = await send(
            80, gone | {"max_concurrent": 5, "breaker": {"min_calls": 3}}, provider(good)
        )
    assert summary.all_succeeded and len(written) == 80
    assert summary.providers["gone"].sent <= 10
    assert {line["provider"] for line in written} == {"good"}


async def test_what_is_pinned_waits_for_a_breaker_and_goes_through() -> None:
    """Down for a second, with nowhere else to go: nothing is lost, and little is sent in vain."""
    async with FakeProvider("a", error_rate=1.0) as a:
        breaker = {"min_calls": 4, "cooldown": 0.3}
        run = asyncio.create_task(
            send(40, provider(a, breaker=breaker, retry=QUICK | {"max_attempts": 12}), provider="a")
        )
        await asyncio.sleep(1.2)
        assert a.stats.received < 40
        a.change(error_rate=0.0)
        written, summary = await run
    assert summary.all_succeeded and len(written) == 40


async def test_own_names_of_headers() -> None:
    """A limit that the config doesn't know, told by headers that nobody else has."""
    served: list[float] = []

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        served.append(time.monotonic())
        writer.write(b"HTTP/1.1 200 OK\r\nconnection: close\r\ncontent-length: 0\r\n")
        writer.write(b"X-Come-Back: 1\r\n\r\n" if len(served) == 1 else b"\r\n")
        await writer.drain()
        writer.close()

    for names, pause in (({"retry-after": "X-Come-Back"}, True), (True, False), (False, False)):
        served.clear()
        server = await asyncio.start_server(serve, "127.0.0.1", 0)
        url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
        async with server:
            one = {"name": "a", "base_url": url, "max_concurrent": 1, "limit_headers": names}
            _, summary = await send(2, one)
        assert summary.all_succeeded
        assert (served[1] - served[0] >= 0.95) is pause


async def test_headers_tell_of_a_limit_that_the_config_has_wrong() -> None:
    rejected = {}
    for believe in (True, False):
        async with FakeProvider("a", limits=["10/1s"], latency=0.02) as a:
            wrong = provider(a, limits=["40/1s"], max_concurrent=1, limit_headers=believe)
            _, summary = await send(35, wrong)
        assert summary.all_succeeded
        rejected[believe] = a.stats.rejected
    assert rejected[True] <= 1 < rejected[False]
