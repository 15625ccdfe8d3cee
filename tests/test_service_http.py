"""The service's door: who may come in, how long it waits, what it says of itself."""

from __future__ import annotations

import asyncio
import json
import pickle
import re
import subprocess
import sys
import time
from collections.abc import AsyncGenerator
from contextlib import aclosing, suppress
from pathlib import Path
from typing import Any

import httpx
import pytest
from prometheus_client.parser import text_string_to_metric_families
from pydantic import BaseModel
from serving import Process, eventually, served, started, submit

from async_task_manager import Chain
from async_task_manager.cli.serve import serve_command
from async_task_manager.errors import InvalidValue
from async_task_manager.queues import open_queue
from async_task_manager.service import TaskService
from async_task_manager.service.web.guard import is_loopback
from async_task_manager.strategies import (
    ConcurrentLimitStrategy,
    FairShareStrategy,
    PriorityQueueStrategy,
    Provider,
    ProviderRouterStrategy,
    SlidingWindowStrategy,
)

pytestmark = pytest.mark.real_time

TOKEN = "a-token-of-sufficient-length"
OTHER = "another-token-for-a-rotation"


@pytest.fixture
def store(tmp_path: Path) -> str:
    return f"sqlite:///{tmp_path / 'tasks.db'}"


def echoing(store: str, *stages: Any, **options: Any) -> TaskService:
    options.setdefault("grace", 0.05)
    service = TaskService(Chain(*stages or (ConcurrentLimitStrategy(4),)), store, **options)

    @service.task
    async def echo(x: Any = None) -> Any:
        if x == "wait":
            await asyncio.sleep(60)
        return x

    return service


async def talk(client: httpx.AsyncClient, *parts: bytes, pause: float = 0.0) -> bytes:
    """Sends the parts as they are, and gives all that comes until the service hangs up."""
    url = client.base_url
    reader, writer = await asyncio.open_connection(url.host, url.port)
    heard = bytearray()

    async def listen() -> None:
        with suppress(ConnectionError):  # reset, perhaps, but what came has come
            while chunk := await reader.read(65536):
                heard.extend(chunk)

    listening = asyncio.create_task(listen())
    for part in parts:
        if not listening.done():
            with suppress(ConnectionError):
                writer.write(part)
            await asyncio.wait([listening], timeout=pause)
    async with asyncio.timeout(10):
        await listening
    writer.close()
    return bytes(heard)


# ---- bodies -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("content", "headers", "status", "says"),
    [
        (b"{", {}, 400, "no valid JSON"),
        (b"", {}, 400, "no valid JSON"),
        (b"\xff\xfe", {}, 400, "no valid JSON"),
        (b'{"x": "\\ud800", "user_id": "a"}', {}, 400, "no valid JSON"),
        (b"[" * 50_000, {}, 400, "no valid JSON"),
        (b'{"x": NaN, "user_id": "a"}', {}, 422, "JSON"),
        (b"[]", {}, 422, "object"),
        (b"{}", {"content-type": "text/plain"}, 415, "application/json"),
        (b"{}", {"content-type": ""}, 415, "application/json"),
        (b'{"x": "%s"}' % (b"a" * 2000), {}, 413, "1000 bytes"),
        (pickle.dumps(["canary"]), {}, 400, "no valid JSON"),
    ],
)
async def test_bad_bodies(
    store: str, content: bytes, headers: dict[str, str], status: int, says: str
) -> None:
    async with served(echoing(store, max_body_bytes=1000)) as client:
        sent = {"content-type": "application/json", **headers}
        answer = await client.post("/task", content=content, headers=sent)
        if status == 400 and len(content) > 1000:
            status, says = 413, "1000 bytes"
        assert (answer.status_code, answer.json()["status"]) == (status, status)
        assert answer.headers["content-type"] == "application/problem+json"
        assert says in answer.json()["detail"]
        assert (await client.get("/healthz")).status_code == 200


async def test_a_long_body_is_refused_before_it_comes(store: str) -> None:
    async with served(echoing(store, max_body_bytes=1000)) as client:
        head = (
            b"POST /task HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\n"
            b"content-length: 1000000000000\r\n\r\n"
        )
        assert (await talk(client, head)).startswith(b"HTTP/1.1 413 ")
        chunked = head.replace(b"content-length: 1000000000000", b"transfer-encoding: chunked")
        chunk = b"400\r\n" + b" " * 1024 + b"\r\n"
        assert (await talk(client, chunked, chunk)).startswith(b"HTTP/1.1 413 ")
        both = head.replace(b"\r\n\r\n", b"\r\ntransfer-encoding: chunked\r\n\r\n")
        assert (await talk(client, both)).startswith(b"HTTP/1.1 4")


@pytest.mark.parametrize(
    "request_",
    [
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc",
        b"POST /task HTTP/1.1\r\nhost: localhost\r\ncontent-length: -5\r\n\r\n",
        b"POST /task HTTP/1.1\r\nhost: localhost\r\ncontent-length: 1%s\r\n\r\n" % (b"0" * 30),
    ],
)
async def test_what_is_no_http_gets_a_problem_too(store: str, request_: bytes) -> None:
    async with served(echoing(store)) as client:
        answer = await talk(client, request_)
        head, _, body = answer.partition(b"\r\n\r\n")
        assert head.startswith(b"HTTP/1.1 400 ")
        assert b"content-type: application/problem+json" in head
        assert json.loads(body)["status"] == 400


async def test_slow_bodies_and_heads_have_a_deadline(store: str) -> None:
    async with served(echoing(store), head_seconds=0.3, body_seconds=0.3) as client:
        head = (
            b"POST /task HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\n"
            b"content-length: 100\r\n\r\n"
        )
        body = await talk(client, head, *[b" "] * 20, pause=0.05)
        assert body.startswith(b"HTTP/1.1 408 ")
        assert b"the body did not come" in body
        slow = await talk(client, *(head[i : i + 1] for i in range(30)), pause=0.05)
        assert slow.startswith(b"HTTP/1.1 408 ")
        assert b"the head of the request came too slowly" in slow
        ok = b"GET /healthz HTTP/1.1\r\nhost: localhost\r\n\r\n"
        second = await talk(client, ok, b"GET /hea", pause=0.1)
        assert second.count(b"HTTP/1.1 200") == 1, "the second head of a connection, too"
        assert second.count(b"HTTP/1.1 408") == 1
        endless = await talk(client, b"GET / HTTP/1.1\r\n", b"x: " + b"y" * 70_000)
        assert endless.startswith(b"HTTP/1.1 431 ") or endless == b""


async def test_connections_are_bounded(store: str) -> None:
    async with served(echoing(store), max_connections=3) as client:
        url = client.base_url
        assert url.port is not None
        open_ones = [await asyncio.open_connection(url.host, url.port) for _ in range(3)]
        await asyncio.sleep(0.05)
        refused = await talk(client)
        assert refused.startswith(b"HTTP/1.1 503 ")
        assert b"too many connections" in refused
        for _, writer in open_ones:
            writer.close()
        await eventually(client, "/healthz", lambda found: found["status"] == "ok")


async def test_a_client_that_leaves_a_long_poll_leaves_nothing(store: str) -> None:
    service = echoing(store)
    async with served(service) as client:
        id = await submit(client, x="wait")
        entry = next(iter(service._core.entries.values()))
        for _ in range(10):
            with pytest.raises(httpx.TimeoutException):
                await client.get(f"/result/{id}", params={"wait": 0.3}, timeout=0.05)
        async with asyncio.timeout(10):
            while entry.waiters != []:
                await asyncio.sleep(0.05)
        for wait in ("-1", "61", "soon", "nan"):
            assert (await client.get(f"/result/{id}", params={"wait": wait})).status_code == 422


# ---- who may come in ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("host", "status"),
    [
        ("localhost", 200),
        ("LOCALHOST:80", 200),
        ("127.0.0.1:9", 200),
        ("[::1]:80", 200),
        ("10.1.2.3", 200),
        ("tasks.example:8000", 200),
        ("evil.example", 403),
        ("localhost.evil.example", 403),
        ("127.0.0.1.evil.example:80", 403),
        ("", 403),
    ],
)
async def test_only_known_hosts(store: str, host: str, status: int) -> None:
    async with served(echoing(store), hosts=("tasks.example",)) as client:
        answer = await client.get("/healthz", headers={"host": host})
        assert answer.status_code == status


async def test_pages_of_another_origin_are_refused(store: str) -> None:
    async with served(echoing(store)) as client:
        own = f"http://{client.base_url.host}:{client.base_url.port}"
        for origin, status in [
            (own, 202),
            ("http://evil.example", 403),
            ("null", 403),
            (f"{own}.evil.example", 403),
            ("http://[", 403),
        ]:
            answer = await client.post("/task", json={"user_id": "a"}, headers={"origin": origin})
            assert answer.status_code == status, origin
        assert (await client.post("/pause", headers={"origin": "null"})).status_code == 403
        assert not (await client.get("/queues")).json()["paused"]


async def test_tokens(store: str, caplog: pytest.LogCaptureFixture) -> None:
    async with served(echoing(store), tokens=(TOKEN, OTHER)) as client:
        for headers, status in [
            ({}, 200),
            ({"authorization": f"Bearer {OTHER}"}, 200),
            ({"authorization": f"bearer {TOKEN}"}, 200),
            ({"authorization": ""}, 401),
            ({"authorization": f"Bearer {TOKEN}x"}, 401),
            ({"authorization": TOKEN}, 401),
            ({"authorization": f"Basic {TOKEN}"}, 401),
            ({"authorization": "Bearer \xff".encode("latin-1")}, 401),
        ]:
            answer = await client.get("/queues", headers=headers)  # type: ignore[arg-type]
            assert answer.status_code == status, headers
            if status == 401:
                assert answer.headers["www-authenticate"].startswith("Bearer")
        for path in ("/", "/docs", "/healthz", "/openapi.json", "/assets/dashboard.js"):
            bare = await client.get(path, headers={"authorization": ""})
            assert bare.status_code == 200, path
        for path in ("/metrics", "/events", "/result/1-x", "/nothing", "/docs/x"):
            bare = await client.get(path, headers={"authorization": ""})
            assert bare.status_code == 401, path
    assert TOKEN not in caplog.text


@pytest.mark.parametrize("token", ["short", "x" * 15, "with a space in it", "mit-Umläuten-drin"])
def test_a_token_must_be_one(store: str, token: str) -> None:
    with pytest.raises(InvalidValue) as refused:
        echoing(store).app(tokens=[token])
    assert token not in str(refused.value)


def test_a_public_address_needs_a_token(store: str) -> None:
    for host in ("0.0.0.0", "::", "10.0.0.1", "tasks.example"):
        with pytest.raises(InvalidValue, match="give a token"):
            echoing(store).serve(host, 0)
    assert is_loopback("127.8.8.8")
    assert is_loopback("localhost")
    with pytest.raises(InvalidValue, match="port"):
        echoing(store).serve(port=70_000)
    with pytest.raises(InvalidValue, match="max_connections"):
        echoing(store).serve(port=0, max_connections=0)


async def test_what_every_answer_carries(store: str) -> None:
    async with served(echoing(store)) as client:
        for path in ("/", "/queues", "/nothing", "/assets/dashboard.js", "/openapi.json"):
            answer = await client.get(path)
            policy = answer.headers["content-security-policy"]
            assert "default-src 'none'" in policy
            assert "unsafe" not in policy
            assert answer.headers["x-content-type-options"] == "nosniff"
            assert "server" not in answer.headers
        assert (await client.get("/queues")).headers["cache-control"] == "no-store"
        page = await client.get("/")
        again = await client.get("/", headers={"if-none-match": page.headers["etag"]})
        assert again.status_code == 304


@pytest.mark.parametrize(
    "path",
    [
        "/assets/../service.py",
        "/assets/..%2fservice.py",
        "/assets/%2e%2e/service.py",
        "/assets/%00",
        "/assets/",
        "/assets/nothing.js",
        "/assets/dashboard.js/",
        "/etc/passwd",
        "/%2e%2e/%2e%2e/etc/passwd",
        "/task/",
    ],
)
async def test_no_way_to_other_files(store: str, path: str) -> None:
    async with served(echoing(store)) as client:
        head = f"GET {path} HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n"
        assert b" 404 " in (await talk(client, head.encode())).split(b"\r\n")[0]


async def test_methods(store: str) -> None:
    async with served(echoing(store)) as client:
        answer = await client.put("/task", json={})
        assert (answer.status_code, answer.headers["allow"]) == (405, "POST")
        assert answer.headers["content-type"] == "application/problem+json"


# ---- the whole ----------------------------------------------------------------------------------


async def test_users_and_queues(store: str) -> None:
    chain = (
        PriorityQueueStrategy(),
        FairShareStrategy(weights={"ada": 2}),
        ConcurrentLimitStrategy(1),
    )
    async with served(echoing(store, *chain)) as client:
        ids = [await submit(client, x="wait") for _ in range(3)]
        await submit(client, user_id="bob", x="wait", priority="low")
        await started(client, ids[0])
        users = (await client.get("/users")).json()
        assert users["more"] == 0
        for user in users["users"]:
            one = (await client.get("/users", params={"user_id": user["user_id"]})).json()
            assert one == {"users": [user], "more": 0}
        nobody = (await client.get("/users?user_id=nobody")).json()["users"]
        assert [(user["queued"], user["recent_use"]) for user in nobody] == [(0, 0)]
        assert (await client.get("/users?user_id=")).status_code == 422
        ada = users["users"][0]
        assert ada == {
            "user_id": "ada",
            "queued": 2,
            "running": 1,
            "recent_use": 3,
            "level": 1,
            "weight": 2,
        }
        queues = (await client.get("/queues")).json()
        assert (queues["queued"], queues["running"]) == (3, 1)
        assert queues["users"] == {"ada": 2, "bob": 1}
        assert queues["levels"] == {"normal, level 0": 1, "normal, level 1": 1, "low, level 0": 1}
        assert {"limit": "at most 1 task at once", "used": 1.0, "capacity": 1.0}.items() <= queues[
            "limits"
        ][-1].items()
        tasks = (await client.get("/tasks", params={"user_id": "bob"})).json()["tasks"]
        assert [task["user_id"] for task in tasks] == ["bob"]
        assert (await client.get("/tasks")).status_code == 422


async def test_providers_are_switched_and_set(store: str) -> None:
    router = ProviderRouterStrategy(
        [
            Provider("one", [ConcurrentLimitStrategy(1), SlidingWindowStrategy(100, 60)]),
            Provider("two", enabled=False),
        ]
    )
    async with served(echoing(store, router)) as client:
        assert [p["name"] for p in (await client.get("/providers")).json()["providers"]] == [
            "one",
            "two",
        ]
        first = await submit(client, x="wait")
        second = await submit(client, x="hello")
        await started(client, first)
        one = (await client.get("/providers/one")).json()
        assert (one["enabled"], one["running"]) == (True, 1)
        assert one["limits"][0]["parameters"] == {"max_concurrent": 1}
        details = (await client.get(f"/task/{second}")).json()
        assert "one" in details["waits_for"][0]["what"]
        for change, field in [
            ({"limits": [{"max_concurrent": 2}, {"limit": -1}]}, "limits.1.limit"),
            ({"limits": [{"max_concurrent": 2, "colour": 1}]}, "limits.0.colour"),
            ({"limits": [{"__class__": 1}]}, "limits.0.__class__"),
            ({"limits": [{}, {}, {}]}, "limits"),
            ({"enabled": "no"}, "enabled"),
            ({"enable": True}, "enable"),
        ]:
            answer = await client.patch("/providers/one", json=change)
            assert answer.status_code == 422, change
            assert answer.json()["errors"][0]["field"] == field
        assert (await client.get("/providers/one")).json() == one, "all or nothing"
        answer = await client.patch("/providers/one", json={"limits": [{"max_concurrent": 2}]})
        assert answer.json()["limits"][0]["parameters"] == {"max_concurrent": 2}
        assert (await client.get(f"/result/{second}?wait=5")).json()["task_result"] == "hello"
        await client.patch("/providers/one", json={"enabled": False})
        third = await submit(client, x="there")
        assert (await client.get(f"/result/{third}?wait=0.2")).json()["task_status"] == "PENDING"
        await client.patch("/providers/two", json={"enabled": True})
        assert (await client.get(f"/result/{third}?wait=5")).json()["task_result"] == "there"
        assert (await client.get(f"/task/{third}")).json()["provider"] == "two"
        for path in ("/providers/three", "/providers/%00"):
            assert (await client.get(path)).status_code == 404
            assert (await client.patch(path, json={})).status_code == 404


async def test_pause_and_resume(store: str) -> None:
    async with served(echoing(store)) as client:
        assert (await client.post("/pause")).json() == {"paused": True}
        id = await submit(client, x=1)
        assert (await client.get(f"/result/{id}?wait=0.2")).json()["task_status"] == "PENDING"
        assert "paused" in (await client.get(f"/task/{id}")).json()["waits_for"][0]["what"]
        assert (await client.get("/healthz")).json()["paused"]
        assert (await client.post("/resume")).json() == {"paused": False}
        assert (await client.get(f"/result/{id}?wait=5")).json()["task_result"] == 1


async def snapshots(client: httpx.AsyncClient) -> AsyncGenerator[dict[str, Any], None]:
    async with client.stream("GET", "/events") as answer:
        assert answer.headers["content-type"].startswith("text/event-stream")
        async for line in answer.aiter_lines():
            if line.startswith("data: "):
                yield json.loads(line[6:])


async def test_events(store: str) -> None:
    async with served(echoing(store)) as client, aclosing(snapshots(client)) as told:
        assert (await anext(told))["ends"] == []
        id = await submit(client, user_id="<script>", x=1)
        points: dict[int, int] = {}
        async with asyncio.timeout(15):
            async for snapshot in told:
                points.update((point[0], point[1]) for point in snapshot["series"])
                if snapshot["ends"]:
                    break
        assert (snapshot["ends"][0]["task_id"], snapshot["ends"][0]["status"]) == (id, "SUCCESS")
        assert snapshot["ended"] == {"SUCCESS": 1}
        assert sum(points.values()) == 1


async def test_metrics(store: str) -> None:
    async with served(echoing(store)) as client:
        id = await submit(client, x=1)
        await client.get(f"/result/{id}?wait=5")
        answer = await client.get("/metrics")
        families = {f.name: f for f in text_string_to_metric_families(answer.text)}
        (ended,) = (
            sample.value
            for sample in families["async_task_manager_tasks_ended"].samples
            if sample.name.endswith("_total")
        )
        assert ended == 1
        assert families["async_task_manager_service_kept_tasks"].samples[0].value == 1


# ---- messages -----------------------------------------------------------------------------------


class Order(BaseModel):
    n: int


async def test_messages(store: str, tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path / 'queue.db'}"
    async with served(echoing(store, queue=url, message_model=Order)) as client:
        batch = [
            {"body": {"n": 1}, "attributes": {"user_id": "ada", "priority": "high"}},
            {"body": {"n": "one"}},
            {"body": {"n": 2}, "attributes": {"priority": "urgent"}},
            {"attributes": {}},
            "text",
            {"body": {"n": 3}, "delay_seconds": -1},
            {"body": {"n": 4}, "delay_seconds": 0},
        ]
        answer = await client.post("/messages", json={"messages": batch})
        assert answer.status_code == 200
        found = answer.json()
        assert found["accepted"] == 2
        assert [entry["index"] for entry in found["entries"]] == list(range(7))
        for i, says in {
            1: "n: Input should be a valid integer",
            2: "urgent",
            3: "body: Field required",
            4: "valid dictionary|object",
            5: "delay_seconds",
        }.items():
            entry = found["entries"][i]
            assert entry["message_id"] is None
            assert re.search(says, entry["error"]), entry
        assert (await client.post("/messages", json={"messages": []})).status_code == 422
    async with open_queue(url) as queue:
        received = await queue.receive(10)
        assert [message.body for message in received] == [{"n": 1}, {"n": 4}]
        assert received[0].attributes["user_id"] == "ada"
        assert received[0].id == found["entries"][0]["message_id"]


async def test_without_a_queue_there_are_no_messages(store: str) -> None:
    async with served(echoing(store)) as client:
        answer = await client.post("/messages", json={"messages": [{"body": 1}]})
        assert answer.status_code == 501


# ---- the command --------------------------------------------------------------------------------

PROGRAM = """
    from async_task_manager.service import TaskService
    from async_task_manager.strategies import *
    service = TaskService(ConcurrentLimitStrategy(1))

    @service.task
    def work(x: int) -> int:
        return x
"""


def test_the_command(tmp_path: Path) -> None:
    with Process(tmp_path, PROGRAM, "--token", TOKEN, "--host", "0.0.0.0") as server:
        url = server.url.replace("0.0.0.0", "127.0.0.1")
        with httpx.Client(base_url=url, trust_env=False) as client:
            assert client.get("/queues").status_code == 401
            headers = {"authorization": f"Bearer {TOKEN}"}
            assert client.get("/queues", headers=headers).status_code == 200
        assert server.end() == 0
    assert TOKEN not in (tmp_path / "stderr").read_text()


def test_without_the_extra_it_says_what_to_install() -> None:
    program = "import sys; sys.modules['starlette'] = None\nimport async_task_manager.service"
    ran = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=False
    )
    assert "MissingExtra: starlette" in ran.stderr
    assert "pip install 'async-task-manager[web]'" in ran.stderr


def test_a_store_that_cannot_be_served(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "shop.py").write_text(re.sub(r"(?m)^ {4}", "", PROGRAM))
    (tmp_path / "tasks.db").write_bytes(b"no database " * 1000)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.path", [*sys.path])
    given: dict[str, Any] = {"host": "127.0.0.1", "port": 0, "tokens": [], "hosts": []}
    assert serve_command("shop:service", **given, max_connections=10) == 1
    said = capsys.readouterr().err
    assert said.startswith("atm: tasks.db is damaged")
    assert (tmp_path / "tasks.db").read_bytes() == b"no database " * 1000
    (tmp_path / "tasks.db").unlink()
    monkeypatch.delitem(sys.modules, "shop")
    with Process(tmp_path, PROGRAM):
        assert serve_command("shop:service", **given, max_connections=10) == 1
    assert "in use by another service" in capsys.readouterr().err


async def test_a_handler_that_fails_is_logged_and_tells_nothing(
    store: str, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    service = echoing(store)

    def broken(*_: object) -> None:
        raise OSError("/secret/path")

    async with served(service) as client:
        id = await submit(client, x=1)
        await client.get(f"/result/{id}?wait=5")
        monkeypatch.setattr(service._core.store, "result", broken)
        monkeypatch.setattr(service._core.store, "record", broken)
        for path in (f"/result/{id}", f"/task/{id}"):
            answer = await client.get(path)
            assert (answer.status_code, answer.json()["status"]) == (500, 500)
            assert "secret" not in answer.text
        monkeypatch.undo()
        assert (await client.get(f"/result/{id}")).status_code == 200
    assert caplog.text.count("a request failed") == 2
    assert "/secret/path" in caplog.text


@pytest.mark.parametrize("tokens", [(), (TOKEN,)])
def test_the_demonstration(tmp_path: Path, tokens: tuple[str, ...]) -> None:
    options = [f"--token={token}" for token in tokens]
    headers = {"authorization": f"Bearer {TOKEN}"}
    with (
        Process(tmp_path, PROGRAM, *options, target=None) as server,
        server.client(headers=headers) as client,
    ):
        for _ in range(200):
            users = {user["user_id"] for user in client.get("/users").json()["users"]}
            if "a busy robot" in users:
                break
            time.sleep(0.1)
        assert "a busy robot" in users
        assert len(client.get("/providers").json()["providers"]) == 2
        assert server.end() == 0
    assert not list(tmp_path.glob("*.db*")), "it leaves nothing"


@pytest.mark.parametrize(
    ("target", "options", "code", "says"),
    [
        ("app", {}, 2, "module:name"),
        ("app:nothing", {}, 2, "no 'nothing'"),
        ("app:work", {}, 2, "not a TaskService"),
        ("nowhere:service", {}, 2, "no module 'nowhere'"),
        ("app:service", {"host": "0.0.0.0"}, 2, "give a token"),
        ("app:service", {"tokens": ["short"]}, 2, "at least 16"),
        ("app:service", {"host": "192.0.2.1", "tokens": [TOKEN]}, 1, "192.0.2.1:0"),
    ],
)
def test_a_command_that_cannot_be(
    *,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    target: str,
    options: dict[str, Any],
    code: int,
    says: str,
) -> None:
    (tmp_path / "app.py").write_text(re.sub(r"(?m)^ {4}", "", PROGRAM))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.path", [*sys.path])
    monkeypatch.delitem(sys.modules, "app", raising=False)
    given: dict[str, Any] = {"host": "127.0.0.1", "port": 0, "tokens": [], "hosts": []}
    assert serve_command(target, **{**given, **options}, max_connections=10) == code
    assert says in capsys.readouterr().err
