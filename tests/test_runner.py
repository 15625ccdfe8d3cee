"""A file of requests over real HTTP, through providers that enforce their limits."""

from __future__ import annotations

import asyncio
import io
import json
import sys
from array import array
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

sys.path.insert(0, str(Path(__file__).parents[1] / "examples"))

from fake_provider import FakeProvider  # an example, not a package

from async_task_manager.config import FlowConfig
from async_task_manager.runner import (
    BadRequest,
    Batch,
    Summary,
    parse_request,
)
from async_task_manager.runner.report import quantile

real_time = pytest.mark.real_time


def config(*providers: dict[str, Any]) -> FlowConfig:
    return FlowConfig.model_validate({"providers": providers})


async def results(
    flow: FlowConfig, *requests: dict[str, Any] | str, **options: Any
) -> tuple[list[dict[str, Any]], Summary]:
    sink = io.StringIO()
    lines = [line if isinstance(line, str) else json.dumps(line) for line in requests]
    summary = await Batch(flow, **options).run(lines, sink)
    return [json.loads(line) for line in sink.getvalue().splitlines()], summary


# ---- a line -------------------------------------------------------------------------------------


def test_a_line_becomes_a_request() -> None:
    line = {
        "id": 7,
        "path": "/v1/chat",
        "json": {"a": 1},
        "provider": "p",
        "priority": "high",
        "cost": {"tokens": 9},
        "valid_after": "+500ms",
        "headers": {"x": "y"},
    }
    request = parse_request(json.dumps(line), 1)
    assert (request.id, request.method, request.target) == ("7", "POST", "/v1/chat")
    assert request.headers == {"x": "y"}
    assert request.metadata == {
        "provider": "p",
        "priority": "high",
        "cost": {"tokens": 9},
        "valid_after": timedelta(seconds=0.5),
    }


def test_defaults() -> None:
    request = parse_request('{"path": "/"}', 3)
    assert (request.id, request.method, request.metadata) == ("3", "GET", {})


@pytest.mark.parametrize(
    ("text", "meant"),
    [
        ("+3s", timedelta(seconds=3)),
        ("+2 m", timedelta(minutes=2)),
        ("+1.5h", timedelta(hours=1.5)),
        ("2026-01-02T03:04:05+00:00", datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)),
        ("2026-01-02T03:04:05Z", datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)),
    ],
)
def test_valid_after(text: str, meant: object) -> None:
    line = json.dumps({"path": "/", "valid_after": text})
    assert parse_request(line, 1).metadata["valid_after"] == meant


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ("{", "not valid JSON"),
        ("[" * 100_000, "not valid JSON"),
        ("[]", "must be a JSON object, not list"),
        ('{"path": "/", "pth": 1}', "unknown field 'pth'"),
        ('{"path": "/", "id": true}', "id must be"),
        ('{"path": "/", "json": 1, "body": "x"}', "exclude each other"),
        ('{"path": "/", "method": "BREW"}', "method must be one of"),
        ('{"path": "/", "method": 1}', "method must be a string"),
        ("{}", "a path or a url"),
        ('{"path": "/", "url": "http://x/"}', "not both"),
        ('{"path": 1}', "path must be a string"),
        ('{"path": "/", "headers": {"a": 1}}', "headers must be"),
        ('{"path": "/", "headers": 1}', "headers must be"),
        ('{"path": "/", "valid_after": "soon"}', "valid_after must be ISO-8601"),
        ('{"path": "/", "valid_after": 3}', "valid_after must be ISO-8601"),
    ],
)
def test_a_bad_line_says_why(line: str, says: str) -> None:
    with pytest.raises(BadRequest, match=says):
        parse_request(line, 1)


# ---- a run --------------------------------------------------------------------------------------


@real_time
async def test_requests_go_through_and_limits_hold() -> None:
    async with (
        FakeProvider("a", limits=["10/1s"], latency=0.01) as a,
        FakeProvider("b", limits=["200 tokens/1s"], max_concurrent=2) as b,
    ):
        flow = config(
            {"name": "a", "base_url": a.url, "limits": ["10/1s"], "slack": 0.2},
            {
                "name": "b",
                "base_url": b.url,
                "limits": ["200 tokens/1s"],
                "max_concurrent": 2,
                "slack": 0.2,
            },
        )
        lines = [
            {"id": i, "path": "/x", "json": {"tokens": 20}, "cost": {"tokens": 20}}
            for i in range(30)
        ]
        lines[3]["provider"] = "b"
        written, summary = await results(flow, *lines)
    assert a.stats.rejected == b.stats.rejected == summary.too_many == 0
    assert sorted(int(line["id"]) for line in written) == list(range(30))
    assert {line["status"] for line in written} == {"succeeded"}
    assert {line["provider"] for line in written} == {"a", "b"}
    (pinned,) = (line for line in written if line["id"] == "3")
    assert (pinned["provider"], pinned["attempts"], pinned["http_status"]) == ("b", 1, 200)
    assert pinned["response"]["usage"]["total_tokens"] == 20
    assert pinned["waited"] >= 0
    assert pinned["duration"] > 0
    assert summary.all_succeeded
    assert summary.providers["a"].peaks == [1.0]


@real_time
async def test_failures_are_results() -> None:
    async with FakeProvider("a", limits=["1/hour"]) as a:
        flow = config(
            {"name": "a", "base_url": a.url, "max_concurrent": 1},
            {"name": "gone", "base_url": "http://127.0.0.1:9", "timeout": 5},
        )
        written, summary = await results(
            flow,
            {"id": "ok", "path": "/", "provider": "a"},
            {"id": "over", "path": "/", "provider": "a"},
            {"id": "down", "path": "/", "provider": "gone"},
            {"id": "whose", "path": "/", "provider": "nobody"},
            {"id": "dear", "path": "/", "priority": "hihg"},
            "nonsense",
            "",
        )
    by_id = {line["id"]: line for line in written if line["id"]}
    assert by_id["ok"]["status"] == "succeeded"
    assert (by_id["over"]["status"], by_id["over"]["http_status"]) == ("failed", 429)
    assert "ConnectError" in by_id["down"]["error"]
    invalid = [line for line in written if line["status"] == "invalid"]
    assert [line["line"] for line in invalid] == [4, 5, 6]
    assert "nobody" in invalid[0]["error"]
    assert (summary.too_many, summary.invalid, summary.all_succeeded) == (1, 3, False)


@real_time
async def test_headers_go_to_their_own_provider_alone() -> None:
    async with FakeProvider("a") as a, FakeProvider("b") as b:
        flow = config({"name": "a", "base_url": a.url + "/v1"}, {"name": "b", "base_url": b.url})
        written, _ = await results(
            flow,
            {"id": "own", "url": b.url + "/x"},
            {"id": "other", "url": "http://127.0.0.1:9/x"},
            {"id": "beside", "url": a.url + "/v2/x"},
            {"id": "mixed", "url": b.url + "/x", "provider": "a"},
        )
    assert [line["provider"] for line in written if line["status"] == "succeeded"] == ["b"]
    errors = [line["error"] for line in written if line["status"] == "invalid"]
    assert len(errors) == 3
    assert all("not below the base_url" in error for error in errors)


@real_time
async def test_memory_is_bounded_by_the_look_ahead() -> None:
    seen = 0

    def lines() -> Any:
        nonlocal seen
        for i in range(200):
            seen += 1
            yield json.dumps({"id": i, "path": "/"})

    async with FakeProvider("a", latency=0.001) as a:
        flow = config({"name": "a", "base_url": a.url, "max_concurrent": 4})
        batch = Batch(flow, look_ahead=10)
        ahead = 0

        def look() -> None:
            nonlocal ahead
            ahead = max(ahead, seen - batch.summary.done)

        batch.on_change = look
        summary = await batch.run(lines(), io.StringIO())
    assert summary.done == 200
    assert ahead <= 11


@real_time
async def test_an_interrupt_finishes_what_runs() -> None:
    async with FakeProvider("a", latency=0.2) as a:
        flow = config({"name": "a", "base_url": a.url, "max_concurrent": 2})
        batch = Batch(flow)
        asyncio.get_running_loop().call_later(0.1, batch.interrupt)
        sink = io.StringIO()
        summary = await batch.run([json.dumps({"path": "/"})] * 20, sink)
    written = [json.loads(line) for line in sink.getvalue().splitlines()]
    assert [line["status"] for line in written] == ["succeeded"] * 2
    assert summary.unsent == 18


@real_time
async def test_a_second_interrupt_cancels_what_runs() -> None:
    async with FakeProvider("a", latency=30) as a:
        flow = config({"name": "a", "base_url": a.url, "max_concurrent": 2})
        batch = Batch(flow)
        loop = asyncio.get_running_loop()
        loop.call_later(0.1, batch.interrupt)
        loop.call_later(0.2, batch.interrupt)
        sink = io.StringIO()
        await batch.run([json.dumps({"path": "/"})] * 3, sink)
    written = [json.loads(line) for line in sink.getvalue().splitlines()]
    assert [line["status"] for line in written] == ["cancelled"] * 2


@pytest.mark.parametrize(
    ("values", "share", "expected"),
    [
        ([], 0.5, None),
        ([3.0], 0.95, 3.0),
        ([1.0, 2.0], 0.5, 1.0),
        ([float(i) for i in range(1, 101)], 0.95, 95.0),
        ([float(i) for i in range(1, 101)], 0.5, 50.0),
    ],
)
def test_quantiles(values: list[float], share: float, expected: float | None) -> None:
    assert quantile(array("d", values), share) == expected
