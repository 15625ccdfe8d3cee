"""The example provider over real HTTP: one that miscounts would mislead every demo."""

from __future__ import annotations

import asyncio
import importlib.util
import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from email.utils import parsedate_to_datetime
from pathlib import Path
from typing import Any

import httpx
import pytest
from hypothesis import given
from hypothesis import strategies as st

SCRIPT = Path(__file__).parents[1] / "examples" / "fake_provider.py"
SECOND = 1_000_000_000

_spec = importlib.util.spec_from_file_location("fake_provider", SCRIPT)
assert _spec is not None and _spec.loader is not None
fake = importlib.util.module_from_spec(_spec)
sys.modules[_spec.name] = fake  # its dataclasses look their module up
_spec.loader.exec_module(fake)


class Clock:
    """Nanoseconds that move only when told."""

    now = 5 * SECOND

    def __call__(self) -> int:
        return self.now


@asynccontextmanager
async def provider_and_client(**options: Any) -> AsyncIterator[tuple[Any, httpx.AsyncClient]]:
    async with (
        fake.FakeProvider("groq", **options) as provider,
        httpx.AsyncClient(base_url=provider.url, trust_env=False) as client,
    ):
        yield provider, client


async def exchange_raw(provider: Any, sent: bytes) -> bytes:
    """Everything the server answers to `sent` and a closed sending side."""
    reader, writer = await asyncio.open_connection("127.0.0.1", provider.port)
    writer.write(sent)
    writer.write_eof()
    answer = await asyncio.wait_for(reader.read(), 5)
    writer.close()
    await writer.wait_closed()
    return answer


# ---------------------------------------------------------------- the window, without a server


@given(
    amount=st.integers(1, 12),
    arrivals=st.lists(st.tuples(st.integers(0, 700_000_000), st.integers(1, 12)), max_size=60),
)
def test_window_admits_exactly_what_a_naive_count_admits(
    amount: int, arrivals: list[tuple[int, int]]
) -> None:
    window = fake.SlidingWindow(f"{amount} tokens/second")
    admitted: list[tuple[int, int]] = []

    def fits(cost: int, at: int) -> bool:
        return sum(c for t, c in admitted if at - SECOND < t <= at) + cost <= amount

    now = 0
    for gap, cost in arrivals:
        now += gap
        if cost > amount:
            continue
        wait = window.wait(cost, now)
        assert (wait == 0) == fits(cost, now)
        if wait > 0:
            assert fits(cost, now + wait)
            assert not fits(cost, now + wait - 1)
        else:
            window.charge(cost, now)
            admitted.append((now, cost))
    assert len(window.log) <= amount


@pytest.mark.parametrize(
    ("text", "amount", "unit", "seconds"),
    [
        ("3/second", 3, "requests", 1),
        ("30/minute", 30, "requests", 60),
        ("7 / hour", 7, "requests", 3600),
        ("9/day", 9, "requests", 86400),
        ("5/10s", 5, "requests", 10),
        ("5/0.25s", 5, "requests", 0.25),
        ("6000 tokens/minute", 6000, "tokens", 60),
        ("4 images/2s", 4, "images", 2),
    ],
)
def test_limit_texts(text: str, amount: int, unit: str, seconds: float) -> None:
    window = fake.SlidingWindow(text)
    assert (window.amount, window.unit, window.period) == (amount, unit, seconds * SECOND)


@pytest.mark.parametrize(
    "text",
    ["", "30", "30/fortnight", "0/minute", "-1/minute", "1.5/minute", "5/0s", "5/0.s", "5/s", 30],
)
def test_bad_limit_is_named(text: Any) -> None:
    with pytest.raises(ValueError, match=re.escape(repr(text))):
        fake.FakeProvider(limits=[text])


@pytest.mark.parametrize(
    ("setting", "value"),
    [
        ("limits", "30/minute"),
        ("max_concurrent", 0),
        ("max_concurrent", True),
        ("latency", -0.1),
        ("latency", float("nan")),
        ("latency", "0.2-0.1"),
        ("latency", "0.1-0.2-0.3"),
        ("latency", "soon"),
        ("latency", None),
        ("error_rate", 1.01),
        ("reset_rate", "0.1"),
        ("fail_next", -1),
        ("fail_next", 1.5),
        ("status", 200),
        ("reset_next", None),
    ],
)
def test_bad_setting_is_named(setting: str, value: Any) -> None:
    with pytest.raises(ValueError, match=setting):
        fake.FakeProvider(**{setting: value})


def test_unknown_setting_and_bad_port() -> None:
    with pytest.raises(ValueError, match=r"unknown setting 'limit': must be one of limits, "):
        fake.FakeProvider(limit=["1/minute"])
    with pytest.raises(ValueError, match=r"port must be an integer from 0 to 65535, not 65536"):
        fake.FakeProvider(port=65536)


# ---------------------------------------------------------------- limits over HTTP


@pytest.mark.real_time
async def test_limit_opens_exactly_one_period_after_what_fills_it() -> None:
    clock = Clock()
    async with provider_and_client(limits=["2/10s"], clock=clock) as (provider, client):
        began = clock.now
        assert (await client.get("/a")).status_code == 200
        clock.now = began + 4 * SECOND
        assert (await client.get("/a")).status_code == 200
        clock.now = began + 10 * SECOND - 1
        assert (await client.get("/a")).status_code == 429
        clock.now = began + 10 * SECOND
        assert (await client.get("/a")).status_code == 200
        assert (await client.get("/a")).status_code == 429
        clock.now = began + 14 * SECOND - 1
        assert (await client.get("/a")).status_code == 429
        clock.now = began + 14 * SECOND
        assert (await client.get("/a")).status_code == 200
        assert provider.stats.violations == {"2/10s": 3}
        assert provider.stats.peaks == {"2/10s": 2}


@pytest.mark.real_time
async def test_headers_of_answers_and_rejections() -> None:
    clock = Clock()
    limits = ["2/10s", "100/minute", "50 tokens/minute"]
    async with provider_and_client(limits=limits, clock=clock) as (_, client):
        first = await client.post("/v1/chat", json={"prompt": "x" * 300, "max_tokens": 30})
        assert first.status_code == 200
        assert first.json() == {
            "id": "groq-1",
            "provider": "groq",
            "echo": "x" * 200,
            "usage": {"total_tokens": 30},
        }
        # Of the two request limits the headers show the one with less left.
        assert {k: v for k, v in first.headers.items() if k.startswith("x-ratelimit")} == {
            "x-ratelimit-limit-requests": "2",
            "x-ratelimit-remaining-requests": "1",
            "x-ratelimit-reset-requests": "10.000s",
            "x-ratelimit-limit-tokens": "50",
            "x-ratelimit-remaining-tokens": "20",
            "x-ratelimit-reset-tokens": "60.000s",
        }
        assert "retry-after" not in first.headers
        clock.now += 1_500_000
        await client.post("/v1/chat", json={"tokens": 1})
        clock.now += 1

        refused = await client.post("/v1/chat", json={"tokens": 1})
        assert refused.status_code == 429
        assert refused.headers["retry-after"] == "10"
        assert refused.headers["retry-after-ms"] == "9999"  # 9998.499999 ms, rounded up
        assert refused.headers["x-ratelimit-remaining-requests"] == "0"
        assert refused.headers["x-ratelimit-remaining-tokens"] == "19"
        error = refused.json()["error"]
        assert (error["code"], error["type"]) == (429, "requests")
        assert "2/10s" in error["message"]


@pytest.mark.real_time
async def test_token_limit_counts_the_fields_else_the_bytes_and_a_rejection_is_free() -> None:
    clock = Clock()
    limits = ["10 tokens/minute", "9/minute"]
    async with provider_and_client(limits=limits, clock=clock) as (provider, client):

        async def tokens(**request: Any) -> int:
            clock.now += 60 * SECOND
            answer = await client.post("/", **request)
            assert answer.status_code == 200
            return int(answer.json()["usage"]["total_tokens"])

        assert await tokens(json={"max_tokens": 7, "tokens": 3}) == 7
        assert await tokens(json={"max_tokens": None, "tokens": 3}) == 3
        assert await tokens(json={"max_tokens": 0}) == 1
        assert await tokens(content="é" * 10) == 5  # 20 bytes
        assert await tokens(content=b"{" + b"[" * 30) == 7
        assert await tokens(content=b"abc") == 1
        assert await tokens() == 1

        clock.now += 60 * SECOND
        assert (await client.post("/", json={"tokens": 8})).status_code == 200
        refused = await client.post("/", json={"tokens": 3})
        assert refused.status_code == 429
        assert refused.json()["error"]["type"] == "tokens"
        assert refused.headers["retry-after"] == "60"
        assert (await client.post("/", json={"tokens": 2})).status_code == 200
        assert provider.windows[1].used == 2
        assert provider.stats.peaks == {"10 tokens/minute": 10, "9/minute": 2}
        assert provider.stats.tokens == 7 + 3 + 1 + 5 + 7 + 1 + 1 + 8 + 2


@pytest.mark.real_time
async def test_other_units_and_what_can_never_fit() -> None:
    async with provider_and_client(limits=["4 images/minute"]) as (provider, client):
        assert (await client.post("/", json={"images": 3})).status_code == 200
        assert (await client.post("/")).headers["x-ratelimit-remaining-images"] == "0"
        impossible = await client.post("/", json={"images": 5})
        assert impossible.status_code == 413
        assert "retry-after" not in impossible.headers
        assert provider.stats.rejected == 0
        for value in (-1, 1.5, "7", True, 10**10):
            answer = await client.post("/", json={"images": value})
            assert answer.status_code == 400
            assert repr(value) in answer.json()["error"]["message"]
        assert (provider.stats.received, provider.stats.accepted) == (8, 2)


@pytest.mark.real_time
async def test_real_clock_and_a_client_that_obeys_retry_after_ms() -> None:
    async with provider_and_client(limits=["5/0.2s"]) as (provider, client):
        accepted: list[tuple[float, float]] = []
        while len(accepted) < 15:
            sent = time.monotonic()
            answer = await client.get("/")
            if answer.status_code == 200:
                accepted.append((sent, time.monotonic()))
            else:
                before = provider.stats.rejected
                await asyncio.sleep(int(answer.headers["retry-after-ms"]) / 1000)
                assert (await client.get("/")).status_code == 200
                assert provider.stats.rejected == before
                accepted.append((sent, time.monotonic()))
        # The server saw each request between its sending and its answer.
        for (sent, _), (_, answered) in zip(accepted, accepted[5:], strict=False):
            assert answered - sent >= 0.2
        assert provider.stats.peaks == {"5/0.2s": 5}


@pytest.mark.real_time
async def test_concurrency_limit_and_a_slot_that_is_free_when_its_answer_is_read() -> None:
    async with provider_and_client(max_concurrent=2, latency=0.25) as (provider, client):
        running = [asyncio.create_task(client.get("/")) for _ in range(2)]
        while provider.stats.in_flight < 2:
            await asyncio.sleep(0.001)
        refused = await client.get("/")
        assert (refused.status_code, refused.headers["retry-after-ms"]) == (429, "250")
        assert refused.json()["error"]["type"] == "concurrency"
        provider.change(latency=0)
        assert [(await task).status_code for task in running] == [200, 200]
        for _ in range(30):
            pair = await asyncio.gather(client.get("/"), client.get("/"))
            assert [answer.status_code for answer in pair] == [200, 200]
        assert provider.stats.violations == {"max_concurrent": 1}
        assert (provider.stats.max_in_flight, provider.stats.in_flight) == (2, 0)


# ---------------------------------------------------------------- behaviour and statistics


@pytest.mark.real_time
async def test_control_changes_the_behaviour_live() -> None:
    clock = Clock()
    limits = ["100/second", "100/minute"]
    async with provider_and_client(limits=limits, clock=clock) as (provider, client):
        for _ in range(3):
            await client.get("/")
            clock.now += 2 * SECOND
        changed = await client.post("/control", json={"limits": ["4/minute"], "latency": "0-0.001"})
        assert changed.status_code == 200
        assert changed.json()["limits"] == ["4/minute"]
        assert changed.json()["latency"] == "0-0.001"
        # What the longest of the old limits remembers counts.
        assert [(await client.get("/")).status_code for _ in range(2)] == [200, 429]
        await client.post("/control", json={"limits": [], "fail_next": 2, "status": 529})
        statuses = [(await client.get("/")).status_code for _ in range(3)]
        assert statuses == [529, 529, 200]
        await client.post("/control", json={"error_rate": 1})
        assert (await client.get("/")).status_code == 500
        assert provider.stats.statuses == {"/": {"200": 5, "429": 1, "529": 2, "500": 1}}


@pytest.mark.real_time
@pytest.mark.parametrize(
    ("body", "message"),
    [
        ({"latency": -1}, "latency must be seconds from 0 to 3600, not -1"),
        ({"limits": ["4/minute", "x"]}, "not 'x'"),
        ({"self": 1}, "unknown setting 'self'"),
        ({}, "JSON object"),
        ([1], "JSON object"),
    ],
)
async def test_bad_control_changes_nothing(body: Any, message: str) -> None:
    async with provider_and_client(limits=["1/minute"]) as (provider, client):
        before = provider.behaviour
        answer = await client.post("/control", json=body)
        assert answer.status_code == 400
        assert message in answer.json()["error"]["message"]
        assert provider.behaviour == before
        assert [window.text for window in provider.windows] == ["1/minute"]


@pytest.mark.real_time
async def test_resets_close_the_connection_without_an_answer() -> None:
    async with provider_and_client(limits=["5/minute"], reset_next=1) as (provider, client):
        with pytest.raises(httpx.TransportError):
            await client.get("/")
        assert (await client.get("/")).status_code == 200
        provider.change(reset_rate=1.0)
        with pytest.raises(httpx.TransportError):
            await client.get("/")
        assert provider.stats.resets == 2
        assert provider.stats.statuses == {"/": {"reset": 2, "200": 1}}
        assert provider.windows[0].used == 3


@pytest.mark.real_time
async def test_seed_fixes_the_random_errors() -> None:
    async def statuses(seed: int) -> list[int]:
        async with provider_and_client(error_rate=0.5, seed=seed) as (_, client):
            return [(await client.get("/")).status_code for _ in range(40)]

    first = await statuses(1)
    assert set(first) == {200, 500}
    assert await statuses(1) == first
    assert await statuses(2) != first


@pytest.mark.real_time
async def test_stats_are_not_completions() -> None:
    async with provider_and_client(limits=["1/minute"]) as (_, client):
        await client.post("/v1/chat?x=1", json={"tokens": 12})
        await client.put("/other")
        await client.get("/stats")
        stats = (await client.get("/stats")).json()
        assert stats == {
            "received": 2,
            "accepted": 1,
            "rejected": 1,
            "in_flight": 0,
            "max_in_flight": 1,
            "tokens": 12,
            "resets": 0,
            "drops": 0,
            "garbled": 0,
            "violations": {"1/minute": 1},
            "peaks": {"1/minute": 1},
            "statuses": {"/v1/chat": {"200": 1}, "/other": {"429": 1}},
        }


@pytest.mark.real_time
async def test_paths_in_the_statistics_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fake, "MAX_PATHS", 2)
    async with provider_and_client() as (provider, client):
        for path in ("/" + "a" * 5000, "/b", "/c", "/d", "/b"):
            await client.get(path)
        expected = {"/" + "a" * 199: {"200": 1}, "/b": {"200": 2}, "(other)": {"200": 2}}
        assert provider.stats.statuses == expected


# ---------------------------------------------------------------- HTTP


@pytest.mark.real_time
async def test_one_connection_serves_many_requests_of_any_kind() -> None:
    connects = 0

    async def count(name: str, _: Any) -> None:
        nonlocal connects
        connects += name == "connection.connect_tcp.complete"

    async def chunks() -> AsyncIterator[bytes]:
        yield b'{"prompt": "hi", '
        yield b'"tokens": 7}'

    async with provider_and_client() as (_, client):
        extensions = {"trace": count}
        for method in ("GET", "PUT", "DELETE", "OPTIONS", "PROPFIND"):
            answer = await client.request(method, "/a%20b?c=d", extensions=extensions)
            assert answer.json()["echo"] == "/a%20b"
        head = await client.head("/", extensions=extensions)
        assert (head.status_code, head.content) == (200, b"")
        chunked = await client.post("/", content=chunks(), extensions=extensions)
        assert (chunked.json()["echo"], chunked.json()["usage"]["total_tokens"]) == ("hi", 7)
        large = await client.post("/", content=b"x" * fake.MAX_BODY, extensions=extensions)
        assert large.json()["usage"]["total_tokens"] == fake.MAX_BODY // 4
        assert connects == 1
        closing = await client.get("/", headers={"connection": "close"}, extensions=extensions)
        assert closing.headers["connection"] == "close"
        await client.get("/", extensions=extensions)
        assert connects == 2


@pytest.mark.real_time
async def test_pipelined_requests_old_http_and_expect() -> None:
    async with fake.FakeProvider() as provider:
        one = b"GET /a HTTP/1.1\r\nHost: h\r\n\r\n"
        assert (await exchange_raw(provider, one * 3)).count(b"HTTP/1.1 200 OK") == 3
        old = b"GET /a HTTP/1.0\r\n\r\n"
        assert (await exchange_raw(provider, old * 2)).count(b"HTTP/1.1 200 OK") == 1
        kept = b"GET /a HTTP/1.0\r\nConnection: Keep-Alive\r\n\r\n"
        assert (await exchange_raw(provider, kept * 2)).count(b"HTTP/1.1 200 OK") == 2
        expect = b"POST / HTTP/1.1\r\nExpect: 100-continue\r\nContent-Length: 2\r\n\r\nhi"
        answer = await exchange_raw(provider, expect)
        assert answer.startswith(b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 200 OK\r\n")


CHUNKED = b"POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n"


@pytest.mark.real_time
@pytest.mark.parametrize(
    ("sent", "status"),
    [
        (b"hello\r\n\r\n", 400),
        (b"GET  / HTTP/1.1\r\n\r\n", 400),
        (b"G@T / HTTP/1.1\r\n\r\n", 400),
        (b"GET /\x1b[2J HTTP/1.1\r\n\r\n", 400),
        (b"GET / HTTP/2.0\r\n\r\n", 505),
        (b"GET / HTTP/1.1\r\nno colon\r\n\r\n", 400),
        (b"GET / HTTP/1.1\r\nbad name: x\r\n\r\n", 400),
        (b"GET / HTTP/1.1\r\na: b\nc: d\r\n\r\n", 400),
        (b"GET / HTTP/1.1\r\na: b\0\r\n\r\n", 400),
        (b"GET / HTTP/1.1\r\na: b", 400),
        (b"GET / HTTP/1.1\r\na: " + b"x" * 70_000 + b"\r\n\r\n", 431),
        (b"GET / HTTP/1.1\r\n" + b"x" * 300_000, 431),
        (b"POST / HTTP/1.1\r\nContent-Length: 5\r\n\r\nabc", 400),
        (b"POST / HTTP/1.1\r\nContent-Length: 5\r\n\r\n", 400),
        (b"POST / HTTP/1.1\r\nContent-Length: -5\r\n\r\n", 400),
        (b"POST / HTTP/1.1\r\nContent-Length: 1_0\r\n\r\n", 400),
        (b"POST / HTTP/1.1\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\nab", 400),
        (b"POST / HTTP/1.1\r\nContent-Length: 10485761\r\n\r\n", 413),
        (b"POST / HTTP/1.1\r\nTransfer-Encoding: gzip, chunked\r\n\r\n", 400),
        (CHUNKED[:-2] + b"Content-Length: 5\r\n\r\n0\r\n\r\n", 400),
        (CHUNKED + b"0x5\r\nhello\r\n0\r\n\r\n", 400),
        (CHUNKED + b"-5\r\nhello\r\n0\r\n\r\n", 400),
        (CHUNKED + b"4\r\nhello\r\n0\r\n\r\n", 400),
        (CHUNKED + b"5\r\nhel", 400),
        (CHUNKED + b"A00001\r\n", 413),
        (CHUNKED + b"1;" + b"x" * 300_000, 431),
        (CHUNKED + b"5;name=value\r\nhello\r\n0\r\n\r\n", 200),
    ],
)
async def test_malformed_requests_are_refused_and_the_server_lives(
    sent: bytes, status: int
) -> None:
    async with fake.FakeProvider() as provider:
        answer = await exchange_raw(provider, sent)
        assert answer.startswith(b"HTTP/1.1 %d " % status)
        head, _, body = answer.partition(b"\r\n\r\n")
        assert b"content-length: %d\r\n" % len(body) in head
        if status != 200:
            assert json.loads(body)["error"]["code"] == status
            assert provider.stats.statuses == {"(malformed)": {str(status): 1}}
            assert provider.stats.received == 0
        assert b" 200 OK" in await exchange_raw(provider, b"GET / HTTP/1.1\r\n\r\n")


@pytest.mark.real_time
async def test_a_client_that_sends_too_much_reads_why() -> None:
    async with provider_and_client() as (_, client):
        answer = await client.post("/", content=b"x" * (fake.MAX_BODY + 1))
        assert answer.status_code == 413


@pytest.mark.real_time
async def test_silence_is_cut_off(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fake, "IDLE_TIMEOUT", 0.05)
    async with fake.FakeProvider() as provider:
        reader, writer = await asyncio.open_connection("127.0.0.1", provider.port)
        writer.write(b"GET / HTTP/1.1\r\nslow: ")
        assert await asyncio.wait_for(reader.read(), 5) == b""
        writer.close()
        await writer.wait_closed()


@pytest.mark.real_time
async def test_leaving_ends_open_connections_and_running_requests() -> None:
    async with httpx.AsyncClient(trust_env=False) as client:
        async with fake.FakeProvider(latency=60) as provider:
            running = asyncio.create_task(client.get(provider.url))
            idle = await asyncio.open_connection("127.0.0.1", provider.port)
            while provider.stats.in_flight == 0:
                await asyncio.sleep(0.001)
            with pytest.raises(RuntimeError, match="already listening"):
                await provider.__aenter__()
        with pytest.raises(httpx.TransportError):
            await running
        with pytest.raises(httpx.ConnectError):
            await client.get(provider.url)
        assert provider.stats.in_flight == 0
        idle[1].close()


# ---------------------------------------------------------------- as a program


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_as_a_process(tmp_path: Path, number: signal.Signals) -> None:
    file = tmp_path / "stats.json"
    arguments = ["--name", "groq", "--limit", "2/minute", "--limit", "90 tokens/minute"]
    process = subprocess.Popen(
        [sys.executable, str(SCRIPT), *arguments, "--stats", str(file), "--latency", "0-0.01"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONWARNINGS": "error"},
    )
    try:
        assert process.stdout is not None
        listening = re.fullmatch(
            r"listening on (http://127\.0\.0\.1:\d+)\n", process.stdout.readline()
        )
        assert listening is not None
        with httpx.Client(base_url=listening[1], trust_env=False) as client:
            assert [client.get("/").status_code for _ in range(3)] == [200, 200, 429]
            process.send_signal(number)
            output, errors = process.communicate(timeout=10)
    finally:
        process.kill()
        process.wait()
    assert process.returncode == 0
    assert errors == ""
    assert output == (
        "groq: 3 received, 2 accepted, 2 tokens, at most 1 in flight, 0 resets, 0 drops, 429s: 1\n"
        "  2/minute: at most 2 in a window, 1 violations\n"
        "  90 tokens/minute: at most 2 in a window, 0 violations\n"
    )
    stats = json.loads(file.read_text())
    assert stats["rejected"] == 1
    assert stats["statuses"] == {"/": {"200": 2, "429": 1}}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--limit", "5/fortnight"], "'5/fortnight'"),
        (["--port", "70000"], "70000"),
        (["--latency", "soon"], "'soon'"),
        (["--stats", "/no/such/folder/stats.json"], "'/no/such/folder'"),
    ],
)
def test_a_bad_option_ends_the_program_with_one_clear_line(
    arguments: list[str], message: str, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    monkeypatch.setattr(sys, "argv", ["fake_provider.py", *arguments])
    with pytest.raises(SystemExit) as ended:
        fake.main()
    assert message in str(ended.value.code) + capsys.readouterr().err


# ---------------------------------------------------------------- days on which it is worse


@pytest.mark.real_time
async def test_an_answer_that_is_cut_off_in_the_middle() -> None:
    async with provider_and_client(drop_next=1) as (provider, client):
        with pytest.raises(httpx.RemoteProtocolError, match="peer closed connection"):
            await client.get("/")
        assert (await client.get("/")).status_code == 200
    assert (provider.stats.drops, provider.stats.accepted) == (1, 2)


@pytest.mark.real_time
async def test_broken_json_says_that_it_is_json() -> None:
    async with provider_and_client(garble_next=1) as (_, client):
        broken = await client.get("/")
        assert (broken.status_code, broken.headers["content-type"]) == (200, "application/json")
        with pytest.raises(ValueError, match=r"Expecting|Unterminated"):
            broken.json()
        assert (await client.get("/")).json()["provider"] == "groq"


@pytest.mark.real_time
@pytest.mark.parametrize("style", ["all", "retry-after", "date", "none"])
async def test_how_much_it_tells_of_its_limits(style: str) -> None:
    async with provider_and_client(limits=["1/60s"], headers=style) as (_, client):
        first, second = await client.get("/"), await client.get("/")
    assert second.status_code == 429
    assert ("x-ratelimit-remaining-requests" in first.headers) is (style == "all")
    after = second.headers.get("retry-after")
    if style == "none":
        assert after is None
    elif style == "date":
        left = parsedate_to_datetime(after).timestamp() - time.time()
        assert 58 < left <= 62
    else:
        assert after == "60"


@pytest.mark.real_time
async def test_an_injected_error_may_ask_to_wait() -> None:
    trouble = {"fail_next": 2, "status": 503, "retry_after": 7}
    async with provider_and_client(**trouble) as (provider, client):
        assert (await client.get("/")).headers["retry-after"] == "7"
        provider.change(headers="date")
        assert (await client.get("/")).headers["retry-after"].endswith(" GMT")
        assert "retry-after" not in (await client.get("/")).headers


@pytest.mark.parametrize(
    ("setting", "says"),
    [
        ({"headers": "some"}, "headers must be one of all, retry-after, date, none, not 'some'"),
        ({"retry_after": -1}, "retry_after must be an integer from 0 to 3600, not -1"),
        ({"drop_rate": 2}, "drop_rate must be a number from 0 to 1, not 2"),
        ({"drop_next": -1}, "drop_next must be"),
        ({"garble_next": 0.5}, "garble_next must be"),
    ],
)
def test_bad_days_have_their_ranges(setting: dict[str, Any], says: str) -> None:
    with pytest.raises(ValueError, match=says):
        fake.FakeProvider(**setting)
