"""A file of requests over real HTTP, through providers that enforce their limits."""

from __future__ import annotations

import asyncio
import io
import json
import math
import random
import re
import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

sys.path.insert(0, str(Path(__file__).parents[1] / "examples"))

from fake_provider import FakeProvider  # an example, not a package

from async_task_manager.config import FlowConfig
from async_task_manager.errors import InvalidValue, ManagerClosed
from async_task_manager.runner import (
    BadRequest,
    Batch,
    Ledger,
    Summary,
    open_ledger,
    parse_request,
)
from async_task_manager.runner.page import page
from async_task_manager.runner.report import Distribution
from async_task_manager.runner.results import dumps
from async_task_manager.runner.routes import Routes, url_of
from async_task_manager.runner.source import LONGEST

real_time = pytest.mark.real_time
ONCE: dict[str, Any] = {"retry": False}


def config(*providers: dict[str, Any]) -> FlowConfig:
    return FlowConfig.model_validate({"providers": providers})


def parsed(**line: Any) -> Any:
    return parse_request(json.dumps({"path": "/", **line}), 1)


async def results(
    flow: FlowConfig, *requests: dict[str, Any] | str | bytes, **options: Any
) -> tuple[list[dict[str, Any]], Summary]:
    sink = io.BytesIO()
    lines = [json.dumps(line) if isinstance(line, dict) else line for line in requests]
    summary = await Batch(flow, **options).run(lines, Ledger(sink))
    return [json.loads(line) for line in sink.getvalue().splitlines()], summary


@asynccontextmanager
async def running(
    batch: Batch, requests: int, sink: io.BytesIO
) -> AsyncIterator[asyncio.Task[Summary]]:
    """A run of so many requests to provider a, from when two of them are under way."""
    lines = [json.dumps({"path": "/"})] * requests
    run = asyncio.create_task(batch.run(lines, Ledger(sink)))
    async with asyncio.timeout(10):
        while batch.summary.providers["a"].running < 2:
            await asyncio.sleep(0.005)
        yield run


# ---- a line -------------------------------------------------------------------------------------


def test_a_line_becomes_a_request() -> None:
    line = {
        "id": 7,
        "path": "/v1/chat",
        "json": {"a": "ä"},
        "provider": "p",
        "priority": "high",
        "cost": {"tokens": 9},
        "valid_after": "+500ms",
        "headers": {"x": "y"},
    }
    request = parse_request(json.dumps(line), 1)
    assert (request.id, request.method, request.target) == (7, "POST", "v1/chat")
    assert request.headers == {"x": "y", "content-type": "application/json"}
    assert request.content == '{"a":"ä"}'.encode()
    assert request.metadata == {
        "provider": "p",
        "priority": "high",
        "cost": {"tokens": 9},
        "valid_after": timedelta(seconds=0.5),
    }


def test_defaults() -> None:
    request = parse_request('{"path": "/"}', 3)
    assert (request.id, request.method, request.metadata) == (3, "GET", {})
    assert (request.content, request.headers) == (None, {})
    unset = parsed(provider=None, priority=None, valid_after=None, cost=None)
    assert unset.metadata == {}


def test_content() -> None:
    assert parsed(json=None).content == b"null"
    assert parsed(json="\ud800").content == b'"\\ud800"'
    assert parsed(json=1, headers={"Content-Type": "x/y"}).headers == {"Content-Type": "x/y"}
    assert (parsed(body="ä").content, parsed(body="ä").headers) == ("ä".encode(), {})
    assert parsed(body="", method="put").method == "PUT"


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
    assert parsed(valid_after=text).metadata["valid_after"] == meant


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ("{", "not valid JSON"),
        (b'{"path": "\xe4"}', "not UTF-8: .* at byte 10"),
        ("[" * 100_000, "nested too deeply"),
        ("[]", "must be a JSON object, not list"),
        ('{"path": "/", "json": NaN}', "NaN is no JSON"),
        ('{"path": "/", "prority": 1}', "no field 'prority'; did you mean 'priority'"),
        ('{"path": "/", "zzz": 1}', "no field 'zzz'; the fields are id, method"),
        ('{"path": "/", "id": true}', "id must be a string or a whole number, not True"),
        ('{"path": "/", "id": null}', "id must be"),
        ('{"path": "/", "json": 1, "body": "x"}', "exclude each other"),
        ('{"path": "/", "body": {"a": 1}}', "body must be a string.* goes into json"),
        ('{"path": "/", "method": "BREW"}', "method must be one of .* not 'BREW'"),
        ('{"path": "/", "method": 1}', "method must be one of .* not 1"),
        ("{}", "either a path or a url"),
        ('{"path": "/", "url": "http://x/"}', "either a path or a url"),
        ('{"path": 1}', "path must be a string"),
        ('{"path": "/a\\nb"}', "path 'a.*b': Invalid"),
        ('{"url": "/v1"}', "url must be a full one"),
        ('{"url": "ftp://x/"}', "url must be a full one"),
        ('{"url": "http://me:pw@x/"}', "url must be a full one"),
        ('{"url": "http://x:y/"}', "url 'http://x:y/': Invalid port"),
        ('{"path": "/", "headers": {"a": 1}}', "headers must be"),
        ('{"path": "/", "headers": 1}', "headers must be"),
        ('{"path": "/", "headers": {"a b": "c"}}', "headers: a b: .*no name"),
        ('{"path": "/", "headers": {"a": "b\\r\\nc: d"}}', "headers: a: .*one line"),
        ('{"path": "/", "headers": {"a": "ä"}}', "headers: a: .*ASCII"),
        ('{"path": "/", "headers": {"Content-Length": "1"}}', "Content-Length: the HTTP client"),
        ('{"path": "/", "headers": {"HOST": "evil"}}', "headers: Host is that of"),
        ('{"path": "/", "provider": 1}', "provider must be a string, not 1"),
        ('{"path": "/", "priority": "hihg"}', "priority must be one of 'high', .* not 'hihg'"),
        ('{"path": "/", "priority": true}', "priority must be a number, not True"),
        ('{"path": "/", "cost": -1}', "cost must be .* at least 0, not -1"),
        ('{"path": "/", "cost": "5"}', "cost must be a number, not '5'"),
        ('{"path": "/", "cost": {"tokens": -1}}', "cost tokens must be .* at least 0, not -1"),
        ('{"path": "/", "cost": 1e999}', "cost must be a finite number"),
        ('{"path": "/", "valid_after": "soon"}', "valid_after must be ISO-8601"),
        ('{"path": "/", "valid_after": 3}', "valid_after must be ISO-8601"),
        ('{"path": "/", "valid_after": "+99999999999999h"}', "valid_after must be ISO-8601"),
    ],
)
def test_a_bad_line_says_why(line: str | bytes, says: str) -> None:
    with pytest.raises(BadRequest, match=says) as caught:
        parse_request(line, 17)
    assert caught.value.id == 17


def test_a_bad_line_keeps_its_id() -> None:
    with pytest.raises(BadRequest) as caught:
        parse_request('{"id": "mine", "path": 1}', 17)
    assert caught.value.id == "mine"


FLOW = config(
    {"name": "a", "base_url": "https://api.a.com/v1", "limits": ["9/s", "90 tokens/s"]},
    {"name": "b", "base_url": "http://b:8080", "limits": ["9 images/s"]},
    {"name": "off", "base_url": "https://off.com", "enabled": False},
)
COST = {"tokens": 1, "images": 1}


@pytest.mark.parametrize(
    ("line", "provider"),
    [
        ({"path": "/", "cost": COST}, None),
        ({"path": "/", "cost": 5}, None),
        ({"path": "/", "cost": {"tokens": 0}, "provider": "a"}, "a"),
        ({"path": "//evil.com/x", "cost": COST}, None),
        ({"path": "/?next=http://evil.com/", "cost": COST}, None),
        ({"url": "https://api.a.com/v1/chat", "cost": COST}, "a"),
        ({"url": "https://API.A.com:443/v1", "cost": COST}, "a"),
        ({"url": "http://b:8080/x", "cost": COST, "provider": "b"}, "b"),
    ],
)
def test_where_a_request_may_go(line: dict[str, Any], provider: str | None) -> None:
    metadata = Routes(FLOW).metadata(parse_request(json.dumps(line), 1))
    assert metadata.get("provider") == provider


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ({"path": "/", "cost": COST, "provider": "A"}, "there is no provider 'A'"),
        ({"path": "/", "cost": COST, "provider": "of"}, "no provider 'of'; did you mean 'off'"),
        ({"path": "/", "cost": COST, "provider": "off"}, "'off' is switched off"),
        ({"path": "/", "cost": {"tokens": 1}}, "say how many images .* provider 'b' limits"),
        ({"path": "/", "provider": "a"}, 'how many tokens .* limits: "cost": {"tokens": 100}'),
        ({"path": "/", "cost": {"token": 1}, "provider": "a"}, "tokens .*; did you mean 'token'"),
        ({"url": "https://api.a.com/v2/x"}, "not below the base_url of an enabled provider"),
        ({"url": "https://api.a.com/v1/../v2"}, "not below"),
        ({"url": "https://api.a.com/v11"}, "not below"),
        ({"url": "http://api.a.com/v1"}, "not below"),
        ({"url": "https://api.a.com:444/v1"}, "not below"),
        ({"url": "https://api.a.com.evil.com/v1"}, "not below"),
        ({"url": "https://off.com/"}, "not below"),
        ({"url": "http://b:8080/x", "provider": "a"}, "not below the base_url of provider 'a'"),
        (
            {"path": "../x", "cost": COST, "provider": "a"},
            "path '../x' leaves the base_url of provider 'a'",
        ),
        ({"path": "/chat/../../x", "cost": COST, "provider": "a"}, "leaves the base_url"),
    ],
)
def test_where_a_request_may_not_go(line: dict[str, Any], says: str) -> None:
    with pytest.raises(BadRequest, match=says) as caught:
        Routes(FLOW).metadata(parse_request(json.dumps(line | {"id": "mine"}), 1))
    assert caught.value.id == "mine"


def test_the_request_in_the_docs_is_one() -> None:
    page = (Path(__file__).parents[1] / "docs" / "cli.md").read_text()
    (line,) = re.findall(r'^\{"id".*"path".*\}$', page, re.M)
    assert parse_request(line, 1).metadata == {"priority": "high", "cost": {"tokens": 900}}


# ---- a run --------------------------------------------------------------------------------------


@real_time
async def test_requests_go_through_and_limits_hold() -> None:
    async with (
        FakeProvider("a", limits=["10/1s"], latency=0.01) as a,
        FakeProvider("b", limits=["200 tokens/1s"], max_concurrent=2) as b,
    ):
        flow = config(
            {"name": "a", "base_url": a.url, "limits": ["10/1s", "10/1s"], "slack": 0.5},
            {
                "name": "b",
                "base_url": b.url,
                "limits": ["200 tokens/1s"],
                "max_concurrent": 2,
                "slack": 0.5,
            },
        )
        lines: list[dict[str, Any]] = [
            {"id": i, "path": "/x", "json": {"tokens": 20}, "cost": {"tokens": 20}}
            for i in range(30)
        ]
        lines[3]["provider"] = "b"
        written, summary = await results(flow, *lines)
    assert a.stats.rejected == b.stats.rejected == summary.too_many == 0
    assert sorted(line["id"] for line in written) == list(range(30))
    assert {line["status"] for line in written} == {"succeeded"}
    assert {line["provider"] for line in written} == {"a", "b"}
    (pinned,) = (line for line in written if line["id"] == 3)
    assert (pinned["provider"], pinned["attempts"], pinned["http_status"]) == ("b", 1, 200)
    assert pinned["response"]["usage"]["total_tokens"] == 20
    assert pinned["cost"] == {"tokens": 20}
    assert "error" not in pinned
    created, started, finished = (
        datetime.fromisoformat(pinned[f"{what}_at"]) for what in ("created", "started", "finished")
    )
    assert created <= started <= finished
    assert (started - created).total_seconds() == pytest.approx(pinned["waited"], abs=0.003)
    assert (finished - started).total_seconds() == pytest.approx(pinned["duration"], abs=0.003)
    assert summary.all_succeeded
    assert [(use.label, use.peak) for use in summary.providers["a"].limits[:2]] == [
        ("10/1s", 1.0),
        ("10/1s", 1.0),
    ]
    assert 0 < summary.providers["a"].limits[2].peak < 1
    assert [use.peak for use in summary.providers["b"].limits] == [1.0, 1.0]
    assert sum(part.sent for part in summary.providers.values()) == 30
    assert not any(part.running for part in summary.providers.values())


@real_time
async def test_failures_are_results() -> None:
    async with FakeProvider("a", limits=["1/hour"]) as a, FakeProvider("s", latency=9) as slow:
        flow = config(
            {"name": "a", "base_url": a.url, "max_concurrent": 1, "limits": ["50 units/hour"]}
            | ONCE,
            {"name": "gone", "base_url": "http://127.0.0.1:9", "timeout": 5} | ONCE,
            {"name": "slow", "base_url": slow.url, "timeout": 0.1} | ONCE,
        )
        written, summary = await results(
            flow,
            {"id": "ok", "path": "/", "provider": "a", "cost": 1},
            {"id": "over", "path": "/", "provider": "a", "cost": 1},
            {"id": "down", "path": "/", "provider": "gone"},
            {"id": "late", "path": "/", "provider": "slow"},
            {"id": "whose", "path": "/", "provider": "nobody"},
            {"id": "hot", "path": "/", "priority": "hihg"},
            "",
            "nonsense",
            b"\xff",
            {"id": "dear", "path": "/", "provider": "a", "cost": {"units": 51}},
        )
    by_id = {line["id"]: line for line in written}
    assert by_id["ok"]["status"] == "succeeded"
    over = by_id["over"]
    assert (over["status"], over["http_status"]) == ("failed", 429)
    assert over["error"] == "HTTP 429 Too Many Requests"
    assert over["response"]["error"]["code"] == 429
    assert by_id["down"]["error"].startswith("ConnectError")
    assert by_id["down"]["http_status"] is None
    assert by_id["late"]["error"] == "TimeoutError: no answer within 0.1 s"
    invalid = [line for line in written if line["status"] == "invalid"]
    assert [(line["id"], line["line"]) for line in invalid] == [
        ("whose", 5),
        ("hot", 6),
        (8, 8),
        (9, 9),
    ]
    assert "nobody" in invalid[0]["error"]
    dear = by_id["dear"]
    assert (dear["status"], dear["line"]) == ("rejected", 10)
    assert "51 is above" in dear["error"]
    assert summary.statuses == {"succeeded": 1, "failed": 3, "invalid": 4, "rejected": 1}
    assert (summary.too_many, summary.done, summary.all_succeeded) == (1, 9, False)


async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Answers with the content type that the path names, and the body of the request."""
    head = (await reader.readuntil(b"\r\n\r\n")).decode()
    path = head.split()[1]
    length = head.lower().partition("content-length:")[2].split("\r\n")[0].strip() or "0"
    body = await reader.readexactly(int(length))
    if path == "/headers":
        body = head.encode()
    kind = path.removeprefix("/").encode()
    writer.write(b"HTTP/1.1 200 OK\r\nconnection: close\r\ncontent-type: " + kind)
    writer.write(b"\r\ncontent-length: %d\r\n\r\n" % len(body) + body)
    await writer.drain()
    writer.close()
    await writer.wait_closed()


@real_time
async def test_whatever_comes_back_is_written(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KEY", "gsk-very-secret")
    server = await asyncio.start_server(answer, "127.0.0.1", 0)
    flow = config(
        {
            "name": "p",
            "base_url": f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}",
            "headers": {"Authorization": "Bearer ${KEY}", "x": "provider's", "User-Agent": "me"},
        }
        | ONCE
    )
    async with server:
        written, _ = await results(
            flow,
            {"id": "json", "path": "/application/json", "body": '{"a": 1}'},
            {"id": "+json", "path": "application/problem+json;v=1", "body": "[2]"},
            {"id": "broken", "path": "/application/json", "body": "{"},
            {"id": "nan", "path": "/application/json", "body": "[NaN]"},
            {"id": "deep", "path": "/application/json", "body": "[" * 100_000},
            {"id": "half", "path": "/application/json", "body": '"\\ud800"'},
            {"id": "text", "path": "/text/plain;charset=utf-8", "body": "ä\n\u2028"},
            {"id": "odd", "path": "/text/plain;charset=none", "body": "x"},
            {"id": "binary", "path": "/text/plain;charset=ascii", "body": "ä"},
            {"id": "headers", "path": "/headers", "headers": {"X": "mine"}},
        )
    responses = {line["id"]: line["response"] for line in written}
    assert {line["id"] for line in written if line["status"] == "failed"} == {
        "broken",
        "nan",
        "deep",
    }
    (broken,) = (line for line in written if line["id"] == "broken")
    assert broken["error"] == "HTTP 200, and the answer is no JSON, as it says it is"
    seen = responses.pop("headers").lower()
    assert responses == {
        "json": {"a": 1},
        "+json": [2],
        "broken": "{",
        "nan": "[NaN]",
        "deep": "[" * 100_000,
        "half": "\ud800",
        "text": "ä\n\u2028",
        "odd": {"base64": "eA=="},
        "binary": {"base64": "w6Q="},
    }
    assert "authorization: bearer ***\r\n" in seen, "the secret was sent, and is not written"
    assert "x: mine\r\n" in seen and "provider's" not in seen
    assert seen.count("user-agent:") == 1


@real_time
@pytest.mark.parametrize(
    "answer",
    [
        b"HTTP/1.1 401 gsk-very-secret is wrong\r\ncontent-length: 0\r\n\r\n",
        b"HTTP/1.1 200 OK\r\ngsk-very-secret\r\n\r\n",
        b"gsk-very-secret\r\n\r\n",
        b"HTTP/1.1 302 Found\r\nlocation: http://x/?gsk-very-secret\r\ncontent-length: 0\r\n\r\n",
        b"HTTP/1.1 200 OK\r\ncontent-length: 17\r\n\r\ngsk-very-secret\xff\xfe",
        b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: 18\r\n\r\n"
        b'["gsk-very-secret"',
    ],
)
async def test_a_secret_stands_nowhere_whatever_comes_back(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, answer: bytes
) -> None:
    monkeypatch.setenv("KEY", "gsk-very-secret")

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        assert b"gsk-very-secret" in await reader.readuntil(b"\r\n\r\n")
        writer.write(answer)
        await writer.drain()
        writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    async with server:
        one = {"name": "p", "base_url": url, "headers": {"x-api-key": "${KEY}"}} | ONCE
        out = tmp_path / "out.jsonl"
        with open_ledger(out) as ledger:
            await Batch(config(one)).run([json.dumps({"path": "/"})], ledger)
    assert out.read_bytes().count(b"\n") == 1
    for file in tmp_path.iterdir():
        assert b"very-secret" not in file.read_bytes()


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
            {"id": "tricky", "path": f"//{b.url.removeprefix('http://')}/x", "provider": "a"},
        )
    sent = {line["id"]: line["provider"] for line in written if line["status"] == "succeeded"}
    assert sent == {"own": "b", "tricky": "a"}
    assert list(b.stats.statuses) == ["/x"]
    assert [path.partition(":")[0] for path in a.stats.statuses] == ["/v1/127.0.0.1"]


@real_time
async def test_priorities_and_times_hold_from_the_first_start() -> None:
    async with FakeProvider("a", latency=0.005) as a:
        flow = config({"name": "a", "base_url": a.url, "max_concurrent": 1})
        written, _ = await results(
            flow,
            *({"id": f"low{i}", "path": "/", "priority": "low"} for i in range(200)),
            {"id": "later", "path": "/", "priority": 9, "valid_after": "+300ms"},
            {"id": "urgent", "path": "/", "priority": "high"},
        )
    ids = [line["id"] for line in written]
    assert ids[0] == "urgent"
    assert ids[1] == "low0"
    assert 1 < ids.index("later") < 200
    later = written[ids.index("later")]
    assert 0.3 <= later["waited"] < 3


@real_time
async def test_a_provider_that_is_switched_off_takes_and_holds_nothing() -> None:
    async with FakeProvider("a") as a:
        flow = config(
            {"name": "off", "base_url": "http://127.0.0.1:9", "enabled": False},
            {"name": "a", "base_url": a.url, "limits": ["5 tokens/hour"]},
        )
        written, summary = await results(
            flow,
            {"id": 1, "path": "/", "cost": 5},
            {"id": 2, "path": "/", "cost": 6},  # fits the other alone, for which it would wait
            {"id": 3, "path": "/", "provider": "off"},
        )
    assert {line["id"]: line["status"] for line in written} == {
        1: "succeeded",
        2: "rejected",
        3: "invalid",
    }
    assert list(summary.providers) == ["a"]


@real_time
async def test_memory_is_bounded_by_the_look_ahead() -> None:
    async with FakeProvider("a", latency=0.001) as a:
        flow = config({"name": "a", "base_url": a.url, "max_concurrent": 4})
        batch = Batch(flow, look_ahead=10)
        ahead = 0

        def lines() -> Iterator[str]:
            nonlocal ahead
            for i in range(200):
                yield json.dumps({"id": i, "path": "/"})
                ahead = max(ahead, i + 1 - batch.summary.done)

        summary = await batch.run(lines(), Ledger(io.BytesIO()))
    assert summary.done == 200
    assert ahead == 10


@real_time
async def test_an_interrupt_finishes_what_runs() -> None:
    async with FakeProvider("a", latency=0.3) as a:
        flow = config({"name": "a", "base_url": a.url, "max_concurrent": 2})
        batch, sink = Batch(flow), io.BytesIO()
        async with running(batch, 20, sink) as run:
            batch.interrupt()
            summary = await run
    written = [json.loads(line) for line in sink.getvalue().splitlines()]
    assert [line["status"] for line in written] == ["succeeded"] * 2
    assert (summary.unsent, summary.all_succeeded) == (18, False)


@real_time
async def test_an_interrupt_ends_the_reading() -> None:
    flow = config({"name": "a", "base_url": "http://127.0.0.1:9"})
    batch = Batch(flow)

    def lines() -> Iterator[str]:
        for number in range(100):
            assert number < 6
            if number == 5:
                batch.interrupt()
            yield json.dumps({"path": "/", "valid_after": "+1h"})

    summary = await batch.run(lines(), Ledger(io.BytesIO()))
    assert (summary.done, summary.unsent) == (0, 5)


@real_time
async def test_a_second_interrupt_cancels_what_runs() -> None:
    async with FakeProvider("a", latency=30) as a:
        flow = config({"name": "a", "base_url": a.url, "max_concurrent": 2})
        batch, sink = Batch(flow), io.BytesIO()
        async with running(batch, 3, sink) as run:
            batch.interrupt()
            await asyncio.sleep(0.05)
            assert not run.done()
            batch.interrupt()
            summary = await run
    written = [json.loads(line) for line in sink.getvalue().splitlines()]
    assert [line["status"] for line in written] == ["cancelled"] * 2
    assert [line["error"] for line in written] == ["cancelled while it ran"] * 2
    assert summary.providers["a"].failed == 2


@real_time
async def test_a_run_that_is_cancelled_leaves_nothing_running() -> None:
    async with FakeProvider("a", latency=30) as a:
        flow = config({"name": "a", "base_url": a.url, "max_concurrent": 2})
        batch, sink = Batch(flow), io.BytesIO()
        others = asyncio.all_tasks()
        async with running(batch, 3, sink) as run:
            run.cancel()
            with pytest.raises(asyncio.CancelledError):
                await run
        left = asyncio.all_tasks() - others
        assert not [task for task in left if "FakeProvider" not in repr(task)]
    written = [json.loads(line) for line in sink.getvalue().splitlines()]
    assert [line["status"] for line in written] == ["cancelled"] * 2
    with pytest.raises(ManagerClosed):
        await batch.run([], Ledger(sink))


class FullDisk(io.BytesIO):
    def write(self, line: Any) -> int:
        if len(self.getvalue()) > 2000:
            raise OSError(28, "No space left on device")
        return super().write(line[:100])  # as much as there is room for


@real_time
async def test_results_that_cannot_be_written_end_the_run() -> None:
    async with FakeProvider("a", latency=0.01) as a:
        flow = config({"name": "a", "base_url": a.url, "max_concurrent": 2})
        with pytest.raises(OSError, match="No space left"):
            await Batch(flow).run([json.dumps({"path": "/"})] * 500, Ledger(FullDisk()))
    assert a.stats.received < 50


@real_time
async def test_lines_that_cannot_be_read_end_the_run() -> None:
    def lines() -> Iterator[str]:
        yield json.dumps({"path": "/"})
        raise OSError(5, "Input/output error")

    async with FakeProvider("a") as a:
        flow = config({"name": "a", "base_url": a.url})
        with pytest.raises(OSError, match="Input/output error"):
            await Batch(flow).run(lines(), Ledger(io.BytesIO()))


@real_time
async def test_a_file_without_requests() -> None:
    written, summary = await results(config({"name": "a", "base_url": "http://a"}), "", "  \n")
    assert (written, summary.done, summary.all_succeeded) == ([], 0, True)


def test_look_ahead_is_checked() -> None:
    with pytest.raises(InvalidValue, match=r"look_ahead must be .* at least 1, not 0"):
        Batch(FLOW, look_ahead=0)


@real_time
async def test_an_interrupt_ends_the_wait_for_what_may_come() -> None:
    closed = False

    async def stream() -> AsyncIterator[tuple[int, bytes] | None]:
        nonlocal closed
        try:
            yield 1, b'{"id": "a", "path": "/"}'
            yield None
            yield 2, b'{"id": "b", "path": "/"}'
            yield None
            await asyncio.Event().wait()
        finally:
            closed = True

    async with FakeProvider("a") as a:
        batch, sink = Batch(config({"name": "a", "base_url": a.url})), io.BytesIO()
        run = asyncio.create_task(batch.run(stream(), Ledger(sink)))
        async with asyncio.timeout(10):
            while batch.summary.done < 2:
                await asyncio.sleep(0.005)
            batch.interrupt()
            summary = await run
    assert closed and summary.statuses == {"succeeded": 2}
    assert [json.loads(line)["id"] for line in sink.getvalue().splitlines()] == ["a", "b"]


@real_time
async def test_the_same_again_inside_a_program(tmp_path: Path) -> None:
    given = [json.dumps({"id": i, "path": "/"}) for i in range(80)] + ["nonsense"]
    async with FakeProvider("a", latency=0.05) as a:
        flow = config({"name": "a", "base_url": a.url, "max_concurrent": 2})
        with open_ledger(tmp_path / "out.jsonl") as ledger:
            first = Batch(flow)
            run = asyncio.create_task(first.run(given, ledger))
            await asyncio.sleep(1.3)  # in which what was written is forced to the disk
            first.interrupt()
            before = await run
        with open_ledger(tmp_path / "out.jsonl") as ledger:
            second = Batch(flow, record=True)
            after = await second.run(given, ledger)
    assert before.done + before.unsent == 81 and before.unsent > 0
    assert after.skipped == before.statuses["succeeded"]
    assert after.done == 81 - after.skipped, "the line that is no request counts again"
    assert a.stats.accepted == 80
    text = page(after, second.report(), "again")
    assert f"<td>finished before</td><td>{after.skipped}</td>" in text
    assert f"<td>read and not sent</td><td>{before.unsent}</td>" in page(
        before, second.report(), "interrupted"
    )
    assert f"{after.skipped} were finished before" in str(next(iter(after.tables())).title)


@real_time
async def test_what_failed_before_is_no_success_of_the_run_that_goes_on(tmp_path: Path) -> None:
    given = [json.dumps({"id": i, "path": "/"}) for i in range(5)]
    async with FakeProvider("a", fail_next=2, status=400) as a:
        flow = config({"name": "a", "base_url": a.url})
        runs = []
        for again in (False, False, True, False):
            with open_ledger(tmp_path / "out.jsonl", retry_failed=again) as ledger:
                batch = Batch(flow, record=True)
                runs.append((await batch.run(given, ledger), batch.report()))
    first, second, third, fourth = (summary for summary, _ in runs)
    assert (first.all_succeeded, first.failed_before) == (False, 0)
    assert (second.all_succeeded, second.skipped, second.failed_before) == (False, 5, 2)
    title = str(next(iter(second.tables())).title)
    assert title.endswith("5 were finished before, 2 of them without success: --retry-failed")
    assert "<td>of them without success</td><td>2</td>" in page(second, runs[1][1], "again")
    assert (third.all_succeeded, third.done, third.skipped) == (True, 2, 3)
    assert (fourth.all_succeeded, fourth.done, fourth.skipped) == (True, 0, 5)


# ---- what the config says -----------------------------------------------------------------------


@real_time
async def test_a_cost_is_estimated_and_settled() -> None:
    async with FakeProvider("a", limits=["1000 tokens/hour"]) as a:
        flow = config(
            {
                "name": "a",
                "base_url": a.url,
                "limits": ["1000 tokens/hour", "90 words/hour"],
                "cost": {"tokens": "chars/4 + most", "words": 1},
                "settle": {"tokens": "usage.total_tokens", "words": "usage.none"},
                "max_concurrent": 1,
            }
        )
        written, _ = await results(
            flow,
            *({"path": "/", "json": {"tokens": 100, "most": 400}} for _ in range(5)),
            {"path": "/", "json": {"tokens": 100, "most": 400}, "cost": {"tokens": 10}},
            {"path": "/", "json": {"tokens": 100, "most": "x"}},
            {"path": "/", "json": {}, "cost": 3},
        )
    assert [line["status"] for line in written] == ["invalid"] + ["succeeded"] * 7
    assert "provider 'a' estimates the tokens by most of the json" in written[0]["error"]
    assert written[1]["cost"] == {"tokens": 407, "words": 1}
    assert written[1]["actual_cost"] == {"tokens": 100}
    assert written[6]["cost"] == {"tokens": 10, "words": 1}
    assert (written[7]["cost"], written[7]["actual_cost"]) == (3, {"tokens": 1})


def test_the_largest_estimate_counts() -> None:
    limits = {"base_url": "http://x", "limits": ["9 tokens/s"]}
    flow = config(
        limits | {"name": "a", "cost": 3}, limits | {"name": "b", "cost": 5}, limits | {"name": "c"}
    )
    routes = Routes(flow)
    assert routes.metadata(parsed(provider="a"))["cost"] == {"tokens": 3}
    with pytest.raises(BadRequest, match="'c' limits"):
        routes.metadata(parsed())
    two = Routes(flow.model_copy(update={"providers": flow.providers[:2]}))
    assert two.metadata(parsed())["cost"] == {"tokens": 5}
    assert two.metadata(parsed(cost={"x": 1}))["cost"] == {"x": 1, "tokens": 5}


def test_fields_that_split_limits_are_found_in_the_request() -> None:
    flow = FlowConfig.model_validate(
        {
            "providers": [
                {
                    "name": "a",
                    "base_url": "http://a",
                    "limits": [{"rate": "9/s", "key": "model"}, {"rate": "9/s", "key": "user.id"}],
                }
            ],
            "chain": [{"strategy": "priority_queue", "key": "rank"}],
        }
    )
    routes = Routes(flow)
    metadata = routes.metadata(parsed(json={"model": "m", "user": {"id": 5}, "rank": 2}))
    assert metadata == {"model": "m", "user.id": 5, "rank": 2}
    assert routes.keys(metadata) == metadata
    own = routes.metadata(parsed(json={"model": "m"}, metadata={"model": "mine", "x": 1}))
    assert own == {"model": "mine", "x": 1}
    assert routes.keys(own) == {"model": "mine"}


@pytest.mark.parametrize(
    ("base", "url", "sent"),
    [
        ("http://h/v1", "/v1/chat/completions", "http://h/v1/chat/completions"),
        ("http://h/openai/v1", "/v1/chat", "http://h/openai/v1/chat"),
        ("http://h", "/v1/chat", "http://h/v1/chat"),
        ("http://h/v2", "/v1/chat", "http://h/v2/v1/chat"),
        ("http://h/v1", "/v1", "http://h/v1/v1"),
        ("http://h/v1", "http://h/v1/x", "http://h/v1/x"),
    ],
)
def test_a_line_of_openai_s_batches(base: str, url: str, sent: str) -> None:
    line = {"custom_id": "a", "method": "POST", "url": url, "body": {"x": 1}, "priority": "high"}
    request = parse_request(json.dumps(line), 1)
    assert (request.id, request.method, request.content) == ("a", "POST", b'{"x":1}')
    assert request.metadata == {"priority": "high"}
    assert url_of(request, base) == sent


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ({"custom_id": "a", "url": "/", "path": "/"}, "no field 'path'"),
        ({"custom_id": "a", "method": "POST", "body": {}}, "either a path or a url"),
        ({"custom_id": "a", "url": 5}, "path must be a string, not 5"),
        ({"custom_id": None, "url": "/"}, "id must be a string"),
        ({"path": "/", "metadata": 5}, "metadata must be an object, not 5"),
        ({"path": "/", "metadata": {"cost": 5}}, "metadata: cost is a field beside metadata"),
    ],
)
def test_a_bad_line_of_either_kind(line: dict[str, Any], says: str) -> None:
    with pytest.raises(BadRequest, match=says):
        parse_request(json.dumps(line), 1)


@real_time
async def test_ids_that_come_twice_are_told() -> None:
    async with FakeProvider("a") as a:
        flow = config({"name": "a", "base_url": a.url})
        written, _ = await results(
            flow, {"id": "x", "path": "/"}, {"id": "x", "path": "/"}, {"id": 2, "path": "/"}
        )
    (twin,) = (line for line in written if line["status"] == "invalid")
    assert (twin["line"], twin["error"]) == (2, "line 1 has the id 'x' already")
    assert len(written) == 3


@real_time
async def test_a_line_that_is_too_long_is_not_sent() -> None:
    async with FakeProvider("a") as a:
        flow = config({"name": "a", "base_url": a.url})
        written, _ = await results(flow, "x" * (LONGEST + 1), {"path": "/"})
    assert [line["status"] for line in written] == ["invalid", "succeeded"]
    assert "longer than 16,777,216 bytes" in written[0]["error"]


@real_time
async def test_a_strict_run_stops_at_what_is_no_request() -> None:
    async with FakeProvider("a", latency=0.01) as a:
        flow = config({"name": "a", "base_url": a.url, "max_concurrent": 2})
        batch, sink = Batch(flow, strict=True, look_ahead=10), io.BytesIO()
        lines = [json.dumps({"path": "/"})] * 50 + ["nonsense"] + [json.dumps({"path": "/"})] * 50
        summary = await batch.run(lines, Ledger(sink))
    assert batch.stopped and batch.malformed[0].startswith("line 51: not valid JSON")
    assert 39 <= summary.statuses["succeeded"] <= 50
    assert summary.statuses["invalid"] == 1


# ---- the report ---------------------------------------------------------------------------------


@pytest.mark.parametrize("share", [0.0, 0.01, 0.5, 0.95, 1.0])
@pytest.mark.parametrize("spread", [1e-5, 1.0, 1e5])
def test_quantiles_are_within_one_percent(share: float, spread: float) -> None:
    dice = random.Random(7)
    values = [dice.lognormvariate(0, 2) * spread for _ in range(1001)]
    distribution = Distribution()
    for value in values:
        distribution.add(value)
    exact = sorted(values)[max(0, math.ceil(share * len(values)) - 1)]
    expected = pytest.approx(exact, rel=0.0101) if exact > 1e-6 else 0.0
    assert distribution.quantile(share) == expected


def test_quantiles_of_nothing_and_of_little() -> None:
    distribution = Distribution()
    assert distribution.quantile(0.5) is None
    distribution.add(0.0)
    assert distribution.quantile(0.5) == 0.0
    distribution.add(3.0)
    assert distribution.quantile(0.5) == 0.0
    assert distribution.quantile(0.95) == pytest.approx(3.0, rel=0.01)


def test_json_is_written_as_json() -> None:
    assert dumps({"ä": ["😀", 1.5]}) == '{"ä":["😀",1.5]}'.encode()
    assert json.loads(dumps("\ud800")) == "\ud800"
    with pytest.raises(ValueError, match="Out of range"):
        dumps(math.inf)
