"""The service, through its real door: tasks in, results out, bounds, restarts."""

from __future__ import annotations

import asyncio
import json
import re
import sqlite3
import threading
import time
from contextlib import closing
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import httpx
import pytest
from hypothesis import given
from hypothesis import strategies as st
from serving import Process, eventually, served, started, submit

from async_task_manager import Chain, current_task
from async_task_manager.errors import InvalidState, InvalidType, InvalidValue, StoreError
from async_task_manager.service import TaskService, state
from async_task_manager.strategies import (
    ConcurrentLimitStrategy,
    FairShareStrategy,
    PriorityQueueStrategy,
    Provider,
    ProviderRouterStrategy,
    RetryStrategy,
    SlidingWindowStrategy,
    TokenBucketStrategy,
)
from async_task_manager.strategies.backoff import fixed

pytestmark = pytest.mark.real_time


@pytest.fixture
def store(tmp_path: Path) -> str:
    return f"sqlite:///{tmp_path / 'tasks.db'}"


class Gate:
    """Tasks that wait until they are let through, and the order in which they came."""

    def __init__(self) -> None:
        self.open = asyncio.Event()
        self.came: list[str] = []

    async def __call__(self, x: str) -> str:
        self.came.append(x)
        await self.open.wait()
        return f"{x} is done"


def gated(store: str, *stages: Any, **options: Any) -> tuple[TaskService, Gate]:
    options.setdefault("grace", 0.05)
    service = TaskService(Chain(*stages or (ConcurrentLimitStrategy(1),)), store, **options)
    gate = Gate()

    @service.task
    async def work(x: str) -> str:
        return await gate(x)

    return service, gate


async def result(client: httpx.AsyncClient, id: str, wait: float = 10) -> dict[str, Any]:
    answer = await client.get(f"/result/{id}", params={"wait": wait})
    assert answer.status_code == 200, answer.text
    found: dict[str, Any] = answer.json()
    return found


# ---- tasks in, results out ----------------------------------------------------------------------


async def test_a_task_and_its_result(store: str) -> None:
    service, gate = gated(store)
    async with served(service) as client:
        answer = await client.post("/task", json={"x": "a", "user_id": "ada"})
        id = answer.json()["task_id"]
        assert (answer.status_code, answer.headers["location"]) == (202, f"/result/{id}")
        assert answer.json() == {"task_id": id, "result_url": f"/result/{id}", "user_id": "ada"}
        waiting = await submit(client, x="b")
        await started(client, id)
        pending = {"task_id": waiting, "task_status": "PENDING", "task_result": None}
        assert await result(client, waiting, 0) == pending
        details = (await client.get(f"/task/{waiting}")).json()
        assert details["position"] == 1
        assert "1 of 1 task at once" in details["waits_for"][0]["what"]
        gate.open.set()
        done = {"task_id": id, "task_status": "SUCCESS", "task_result": "a is done"}
        assert await result(client, id) == done
        assert (await result(client, waiting))["task_result"] == "b is done"
        assert await result(client, id) == done, "again, and now from the store"


async def test_arguments_by_name_by_place_and_as_x(store: str) -> None:
    service = TaskService(ConcurrentLimitStrategy(5), store)

    @service.task
    async def add(a: int, /, b: int = 10, *, when: datetime | None = None) -> Any:
        return {"sum": a + b, "when": when}

    async with served(service) as client:
        forms: list[tuple[dict[str, Any], Any]] = [
            ({"x": 1}, {"sum": 11, "when": None}),
            ({"args": [1, 2]}, {"sum": 3, "when": None}),
            ({"args": {"a": 1, "b": 2}}, {"sum": 3, "when": None}),
            (
                {"args": {"a": 1, "when": "2030-01-01T00:00:00Z"}, "task": "add"},
                {"sum": 11, "when": "2030-01-01T00:00:00Z"},
            ),
        ]
        for form, meant in forms:
            id = await submit(client, user_id=7, **form)  # type: ignore[arg-type]  # an int will do
            assert (await result(client, id))["task_result"] == meant


@pytest.mark.parametrize(
    ("task", "status", "field", "says"),
    [
        ({"x": 1}, 422, "args.x", "valid string"),
        ({}, 422, "args.x", "Field required"),
        ({"x": "a", "args": ["b"]}, 422, "x", "exclude each other"),
        ({"args": ["a", "b"]}, 422, "args", "takes 1 arguments, not 2"),
        ({"args": {"x": "a", "y": 1}}, 422, "args.y", "not permitted"),
        ({"x": "a", "task": "wrok"}, 422, "task", "did you mean 'work'"),
        ({"x": "a", "user_id": ""}, 422, "user_id", "at least 1 character"),
        ({"x": "a", "user_id": True}, 422, "user_id", "valid string or .* valid integer"),
        ({"x": "a", "user_id": None}, 422, "user_id", "valid string"),
        ({"x": "a", "prio": 1}, 422, "prio", "not permitted"),
        ({"x": "a", "priority": "urgent"}, 422, "priority", "urgent"),
        ({"x": "a", "priority": 1.5}, 422, "priority", "valid integer"),
        ({"x": "a", "valid_after": "soon"}, 422, "valid_after", r"'\+3s'"),
        ({"x": "a", "cost": -1}, 422, "cost", "greater than or equal to 0"),
        ({"x": "a", "cost": {"tokens": "many"}}, 422, "cost.tokens", "valid number"),
        ({"x": "a", "cost": {"tokens": 101}}, 422, "cost", "100"),
        ({"x": "a", "cost": {"pages": 1}}, 422, "cost", "tokens"),
        ({"x": "a", "provider": "nobody"}, 422, "provider", "known: 'one'"),
    ],
)
async def test_what_is_wrong_is_named(
    store: str, task: dict[str, Any], status: int, field: str, says: str
) -> None:
    router = ProviderRouterStrategy([Provider("one")])
    tokens = TokenBucketStrategy(10, 100, cost="tokens")
    service, _ = gated(store, PriorityQueueStrategy(), tokens, router)
    async with served(service) as client:
        given = {"user_id": "ada", "cost": {"tokens": 1}, **task}
        answer = await client.post("/task", json=given)
        problem = answer.json()
        assert (answer.status_code, problem["status"]) == (status, status)
        assert answer.headers["content-type"] == "application/problem+json"
        errors = {error["field"]: error["message"] for error in problem["errors"]}
        assert field in errors, errors
        assert re.search(says, errors[field]), errors
        assert (await client.get("/queues")).json()["queued"] == 0


async def test_failures_and_what_they_tell(store: str, caplog: pytest.LogCaptureFixture) -> None:
    service = TaskService(ConcurrentLimitStrategy(5), store, max_result_bytes=100)

    class Silent(Exception):
        def __str__(self) -> str:
            raise RuntimeError("no")

    @service.task
    async def fail(x: str) -> Any:
        if x == "silent":
            raise Silent
        if x == "loop":
            loop: list[Any] = []
            loop.append(loop)
            return loop
        if x == "exit":
            raise SystemExit(3)
        return {"set": object(), "nan": float("nan"), "long": "a" * 100}.get(x) or 1 / 0

    async with served(service) as client:
        for x, kind, says in [
            ("zero", "ZeroDivisionError", "division by zero"),
            ("set", "InvalidValue", "JSON"),
            ("nan", "ValueError", "JSON"),
            ("loop", "ValueError", "Circular"),
            ("long", "InvalidValue", "102 bytes of JSON, at most 100"),
            ("silent", "Silent", "could not be made"),
            ("exit", "RuntimeError", "the function raised SystemExit(3)"),
        ]:
            found = await result(client, await submit(client, user_id="e\x1bvil\r\n", x=x))
            assert found["task_status"] == "FAILURE"
            assert found["task_result"]["type"] == kind
            assert says in found["task_result"]["message"]
    logged = [record.getMessage() for record in caplog.records if "failed" in record.getMessage()]
    assert len(logged) == 7
    assert r"user e\x1bvil\r\n) failed: ZeroDivisionError: division by zero" in logged[0]
    assert "\x1b" not in "".join(logged)
    assert "in fail" in logged[0], "where it happened"


async def test_sync_functions_run_in_threads_and_keep_their_place(store: str) -> None:
    service = TaskService(ConcurrentLimitStrategy(1), store)
    let_go = threading.Event()
    running: list[int] = []

    @service.task
    def block(x: int) -> str:
        running.append(x)
        let_go.wait(10)
        running.remove(x)
        task = current_task()
        assert task is not None
        return f"{x} {threading.current_thread().name[:8]} attempt {task.attempt}"

    async with served(service) as client:
        first, second = await submit(client, x=1), await submit(client, x=2)
        while not running:
            await asyncio.sleep(0.01)
        cancelled = await client.delete(f"/task/{first}")
        assert (cancelled.status_code, cancelled.json()["task_status"]) == (202, "STARTED")
        await asyncio.sleep(0.1)
        assert running == [1], "a thread can't be stopped: nothing takes its place"
        let_go.set()
        assert (await result(client, first))["task_status"] == "REVOKED"
        assert (await result(client, second))["task_result"] == "2 atm-task attempt 1"


async def test_order_is_by_priority_and_by_user(store: str) -> None:
    service, gate = gated(
        store, PriorityQueueStrategy(), FairShareStrategy(), ConcurrentLimitStrategy(1)
    )
    async with served(service) as client:
        await submit(client, x="first")
        for number in range(5):
            await submit(client, user_id="greedy", x=f"g{number}")
        await submit(client, user_id="modest", x="m")
        await submit(client, user_id="greedy", x="urgent", priority="high")
        status = (await client.get(f"/task/{await submit(client, x='last')}")).json()
        assert status["level"] == "normal, level 1"
        gate.open.set()
        assert (await result(client, status["task_id"]))["task_status"] == "SUCCESS"
    assert gate.came == ["first", "urgent", "g0", "m", "g1", "g2", "g3", "g4", "last"]


async def test_not_before_its_time(store: str) -> None:
    service, gate = gated(store, ConcurrentLimitStrategy(5))
    gate.open.set()
    async with served(service) as client:
        later = datetime.now(UTC) + timedelta(seconds=1.5)
        ids = [
            await submit(client, x="at", valid_after=later.isoformat()),
            await submit(client, x="in", valid_after="+1800ms"),
            await submit(client, x="now"),
        ]
        details = (await client.get(f"/task/{ids[0]}")).json()
        assert details["valid_after"] == pytest.approx(later.timestamp(), abs=1e-5)
        for id in ids:
            await result(client, id)
    assert gate.came == ["now", "at", "in"]


async def test_retries_are_told(store: str) -> None:
    retry = RetryStrategy(max_attempts=3, backoff=fixed(0.7))
    service = TaskService(Chain(retry, ConcurrentLimitStrategy(1)), store)
    tries: list[str] = []

    @service.task
    async def flaky(x: str) -> str:
        tries.append(x)
        if len(tries) < 3:
            raise ConnectionError("not yet")
        return "at last"

    async with served(service) as client:
        id = await submit(client, x="a")
        await eventually(client, f"/result/{id}", lambda found: found["task_status"] == "RETRY")
        assert (await result(client, id))["task_result"] == "at last"
        details = (await client.get(f"/task/{id}")).json()
        assert details["attempt"] == 3
        assert [attempt["error"]["message"] for attempt in details["earlier_attempts"]] == [
            "not yet",
            "not yet",
        ]
        assert details["submitted_at"] < details["started_at"] <= details["finished_at"]


# ---- ending tasks -------------------------------------------------------------------------------


async def test_cancelling(store: str) -> None:
    service, gate = gated(store)
    async with served(service) as client:
        running, queued = await submit(client, x="a"), await submit(client, x="b")
        for id in (queued, running):
            answer = await client.delete(f"/task/{id}")
            assert (answer.status_code, answer.json()["task_status"]) == (200, "REVOKED")
        assert gate.came == ["a"]
        assert (await client.delete(f"/task/{queued}")).status_code == 200, "once more"
        gate.open.set()
        done = await submit(client, x="c")
        await result(client, done)
        answer = await client.delete(f"/task/{done}")
        assert (answer.status_code, answer.json()["detail"]) == (
            409,
            "the task has ended already: SUCCESS",
        )


@pytest.mark.parametrize("path", ["/result/{}", "/task/{}"])
@pytest.mark.parametrize(
    "id",
    ["1", "1-", "1-AAAAAAAAAAAAAAAAAAAAAA", "-1", "x-y", "9" * 90, "1-%C3%A4", "%00", "%2e%2e"],
)
async def test_ids_that_nobody_was_given(store: str, path: str, id: str) -> None:
    service, gate = gated(store)
    gate.open.set()
    async with served(service) as client:
        await submit(client, x="a")
        answer = await client.get(path.format(id))
        assert (answer.status_code, answer.json()["status"]) == (404, 404)


# ---- once only ----------------------------------------------------------------------------------


async def test_an_idempotency_key_makes_one_task(store: str) -> None:
    service, gate = gated(store)
    gate.open.set()

    async def post(client: httpx.AsyncClient, key: str, **task: Any) -> httpx.Response:
        given = {"user_id": "ada", "x": "a", **task}
        return await client.post("/task", json=given, headers={"idempotency-key": key})

    async with served(service) as client:
        answers = await asyncio.gather(*(post(client, "k") for _ in range(20)))
        assert {answer.status_code for answer in answers} == {202}
        (id,) = {answer.json()["task_id"] for answer in answers}
        await result(client, id)
        assert (await post(client, "k")).json()["task_id"] == id, "also when it has ended"
        assert gate.came == ["a"]
        other = await post(client, "k", user_id="bob")
        assert other.json()["task_id"] != id, "a user's keys are the user's own"
        changed = await post(client, "k", x="b")
        assert (changed.status_code, changed.json()["errors"][0]["field"]) == (
            422,
            "Idempotency-Key",
        )
        refused = await post(client, "n", x=1)
        assert refused.status_code == 422
        assert (await post(client, "n", x="c")).status_code == 202, "what was refused used no key"
        assert (await post(client, "k" * 256)).status_code == 400
    async with served(gated(store)[0]) as client:
        assert (await post(client, "k")).json()["task_id"] == id, "after a restart"


# ---- bounds -------------------------------------------------------------------------------------


async def test_results_expire(store: str) -> None:
    service, gate = gated(store, result_ttl=2)
    gate.open.set()
    async with served(service) as client:
        id = await submit(client, x="a")
        assert (await result(client, id))["task_status"] == "SUCCESS"
        await asyncio.sleep(2.1)
        for path in (f"/result/{id}", f"/task/{id}"):
            assert (await client.get(path)).status_code == 410
        assert (await client.delete(f"/task/{id}")).status_code == 410
        await asyncio.sleep(1.5)
        assert (await client.get(f"/result/{id}")).status_code == 410, "and is forgotten"
        assert (await client.get("/tasks", params={"user_id": "ada"})).json() == {"tasks": []}
    with closing(sqlite3.connect(store[10:])) as file:
        assert file.execute("SELECT count(*) FROM tasks").fetchone() == (0,)
    async with served(gated(store)[0]) as client:
        assert await submit(client, x="b") != id
        assert (await client.get(f"/result/{id}")).status_code == 410, "no other task got its id"


@pytest.mark.parametrize("bound", [{"max_results": 3}, {"max_store_bytes": 60}])
async def test_the_oldest_results_go_beyond_the_bounds(store: str, bound: dict[str, int]) -> None:
    service, gate = gated(store, **bound)
    gate.open.set()
    async with served(service) as client:
        ids = [await submit(client, x=f"{number}") for number in range(10)]
        await result(client, ids[-1])
        codes = [200] * 10
        for _ in range(100):
            codes = [(await client.get(f"/result/{id}")).status_code for id in ids]
            if codes.count(200) <= 3:
                break
            await asyncio.sleep(0.1)
        kept = codes.count(200)
        assert codes == [410] * (10 - kept) + [200] * kept
        assert 1 <= kept <= 3


async def test_a_full_queue_says_so(store: str) -> None:
    service, _ = gated(store, max_queued=3)
    async with served(service) as client:
        for number in range(4):
            await submit(client, x=f"{number}")
            await asyncio.sleep(0.02)
        answer = await client.post("/task", json={"user_id": "ada", "x": "one more"})
        assert (answer.status_code, answer.headers["retry-after"]) == (503, "5")


# ---- restarts -----------------------------------------------------------------------------------


async def test_what_waits_and_what_runs_outlives_a_stop(store: str) -> None:
    service, gate = gated(store)
    async with served(service) as client:
        running, queued = await submit(client, x="a"), await submit(client, x="b")
        other = httpx.AsyncClient(base_url=client.base_url, timeout=20, trust_env=False)
        poll = asyncio.create_task(other.get(f"/result/{running}", params={"wait": 30}))
        await started(client, running)
        began = time.monotonic()
    assert (await poll).json()["task_status"] == "STARTED", "a long poll ends with the service"
    await other.aclose()
    assert time.monotonic() - began < 10
    service, again = gated(store)
    again.open.set()
    async with served(service) as client:
        assert (await result(client, running))["task_result"] == "a is done"
        assert (await result(client, queued))["task_result"] == "b is done"
        details = (await client.get(f"/task/{running}")).json()
        assert details["attempt"] == 2
        (earlier,) = details["earlier_attempts"]
        assert (earlier["attempt"], earlier["error"]["type"]) == (1, "Interrupted")
    assert (gate.came, again.came) == (["a"], ["a", "b"])


async def test_the_work_knows_its_attempt_after_a_restart(store: str) -> None:
    service, _ = gated(store)
    async with served(service) as client:
        running, queued = await submit(client, x="a"), await submit(client, x="b")
        await started(client, running)
    service = TaskService(ConcurrentLimitStrategy(1), store)

    @service.task(run_timeout=5)
    async def work(x: str) -> int:
        task = current_task()
        assert task is not None
        return task.attempt

    async with served(service) as client:
        assert (await result(client, running))["task_result"] == 2
        assert (await result(client, queued))["task_result"] == 1


async def test_what_the_chain_refuses_after_a_restart_has_failed(store: str) -> None:
    def service_with(capacity: int) -> TaskService:
        bucket = TokenBucketStrategy(1000, capacity, cost="tokens", default_cost=1)
        return gated(store, ConcurrentLimitStrategy(1), bucket)[0]

    async with served(service_with(100)) as client:
        await submit(client, x="running")
        large = await submit(client, x="a", cost={"tokens": 100})
        small = await submit(client, x="b", cost={"tokens": 10})
    async with served(service_with(50)) as client:
        found = await result(client, large)
        assert (found["task_status"], found["task_result"]["type"]) == ("FAILURE", "TaskTooLarge")
        assert (await result(client, small, 0))["task_status"] == "PENDING"
        await eventually(client, "/queues", lambda queues: queues["queued"] == 1)


async def test_another_chain_starts_anew(store: str, caplog: pytest.LogCaptureFixture) -> None:
    service, _ = gated(store, SlidingWindowStrategy(1, 60))
    async with served(service) as client:
        await submit(client, x="a")
        id = await submit(client, x="b", priority="high")
        await asyncio.sleep(0.05)
    service, gate = gated(store, PriorityQueueStrategy(), ConcurrentLimitStrategy(1))
    gate.open.set()
    async with served(service) as client:
        await result(client, id)
    assert gate.came == ["b", "a"], "ranks that don't compare are made anew"
    assert "stands where SlidingWindowStrategy by None was: it starts anew" in caplog.text


PROGRAM = """
    import asyncio, os
    from async_task_manager import Chain
    from async_task_manager.service import TaskService, state
    from async_task_manager.strategies import *

    service = TaskService(Chain(FairShareStrategy(), ConcurrentLimitStrategy(1)))

    @service.task
    async def work(x: str) -> str:
        with open("ran", "a") as file:
            file.write(f"{x}\\n")
        while x == "slow" and not os.path.exists("let go"):
            await asyncio.sleep(0.01)
        if x == "deadly":
            os._exit(1)
        return f"{x} is done"
"""


def test_a_kill_loses_nothing_that_was_accepted(tmp_path: Path) -> None:
    server = Process(tmp_path, PROGRAM)
    with server.client() as client:
        ids = {}
        for x in ["slow", "b", "c", "d", "e", "f"]:
            answer = client.post("/task", json={"x": x, "user_id": "greedy"})
            ids[x] = answer.json()["task_id"]
        time.sleep(1.5)  # so that the users' history is on the disk
        server.kill()
    with Process(tmp_path, PROGRAM) as server, server.client() as client:
        modest = client.post("/task", json={"x": "m", "user_id": "modest"}).json()["task_id"]
        (tmp_path / "let go").touch()
        assert client.get(f"/result/{modest}?wait=10").json()["task_result"] == "m is done"
        for x, id in ids.items():
            assert client.get(f"/result/{id}?wait=10").json()["task_result"] == f"{x} is done"
        details = client.get(f"/task/{ids['slow']}").json()
        assert details["attempt"] == 2, "it ran when the process died"
        assert client.get(f"/task/{ids['b']}").json()["attempt"] == 1
        users = {user["user_id"]: user for user in client.get("/users").json()["users"]}
        assert users["greedy"]["recent_use"] == 6, "the history is known, and counted once"
        assert users["greedy"]["level"] == 2
    ran = (tmp_path / "ran").read_text().split()
    assert ran.index("m") < ran.index("f"), "whoever used little still goes before"


def test_a_task_that_kills_the_process_is_given_up(tmp_path: Path) -> None:
    server = Process(tmp_path, PROGRAM)
    with server.client() as client:
        id = client.post("/task", json={"x": "deadly", "user_id": "a"}).json()["task_id"]
    for _ in range(2):
        assert server.process.wait(20) == 1
        server.end()
        server = Process(tmp_path, PROGRAM)
    assert server.process.wait(20) == 1
    server.end()
    with Process(tmp_path, PROGRAM) as last, last.client() as client:
        found = client.get(f"/result/{id}?wait=5").json()
        assert (found["task_status"], found["task_result"]["type"]) == ("FAILURE", "Interrupted")
    assert (tmp_path / "ran").read_text().split() == ["deadly"] * 3


def test_what_was_to_end_does_not_run_again(tmp_path: Path) -> None:
    program = """
        import time
        from async_task_manager.service import TaskService, state
        from async_task_manager.strategies import *

        service = TaskService(ConcurrentLimitStrategy(1))

        @service.task
        def work(x: str) -> None:
            with open("ran", "a") as file:
                file.write(f"{x}\\n")
            time.sleep(60)
    """
    server = Process(tmp_path, program)
    with server.client() as client:
        id = client.post("/task", json={"x": "a", "user_id": "a"}).json()["task_id"]
        while not (tmp_path / "ran").exists():
            time.sleep(0.01)
        assert client.delete(f"/task/{id}").status_code == 202
        server.kill()
    server = Process(tmp_path, program)
    with server.client() as client:
        assert client.get(f"/result/{id}").json()["task_status"] == "REVOKED"
    server.kill()
    assert (tmp_path / "ran").read_text() == "a\n"


async def test_limits_remember_over_a_restart(store: str) -> None:
    service, gate = gated(store, SlidingWindowStrategy(2, 3))
    gate.open.set()
    async with served(service) as client:
        await result(client, await submit(client, x="a"))
        await result(client, await submit(client, x="b"))
        began = time.monotonic()
    service, again = gated(store, SlidingWindowStrategy(2, 3))
    again.open.set()
    async with served(service) as client:
        await result(client, await submit(client, x="c"))
    assert time.monotonic() - began > 2.5, "the window was full when the service stopped"


async def test_tasks_of_a_function_that_is_gone_are_kept(
    store: str, caplog: pytest.LogCaptureFixture
) -> None:
    service, _ = gated(store)
    async with served(service) as client:
        await submit(client, x="running")
        id = await submit(client, x="a")
        doomed = await submit(client, x="b")
    other = TaskService(ConcurrentLimitStrategy(1), store)
    other.task(asyncio.sleep, name="sleep")
    async with served(other) as client:
        details = (await client.get(f"/task/{id}")).json()
        assert details["task_status"] == "PENDING"
        assert details["waits_for"][0]["what"] == "no function 'work' is registered"
        assert (await client.delete(f"/task/{doomed}")).json()["task_status"] == "REVOKED"
    assert "3 tasks wait for a function 'work'" in caplog.text
    service, gate = gated(store)
    gate.open.set()
    async with served(service) as client:
        assert (await result(client, id))["task_result"] == "a is done"
    assert gate.came == ["running", "a"]


async def test_an_idle_service_writes_nothing(store: str) -> None:
    service, gate = gated(store)
    gate.open.set()
    async with served(service) as client:
        await result(client, await submit(client, x="a"))
        await asyncio.sleep(1.5)
        log = Path(f"{store[10:]}-wal")
        before = log.stat().st_mtime_ns, log.stat().st_size
        await asyncio.sleep(2.5)
        assert (log.stat().st_mtime_ns, log.stat().st_size) == before


async def test_questions_are_answered_from_indexes(store: str) -> None:
    service, _ = gated(store)
    async with served(service):
        with closing(sqlite3.connect(store[10:])) as file:
            for question in (
                "SELECT * FROM tasks WHERE user_id = 'a' ORDER BY number DESC LIMIT 50",
                "SELECT * FROM tasks WHERE user_id = 'a' AND idempotency_key = 'k'",
                "SELECT min(finished) FROM tasks WHERE finished IS NOT NULL",
                "SELECT * FROM tasks WHERE finished IS NOT NULL ORDER BY finished LIMIT 500",
            ):
                plan = file.execute(f"EXPLAIN QUERY PLAN {question}").fetchall()
                steps = [step[3] for step in plan]
                assert all("USING INDEX" in step or "USING COVERING" in step for step in steps), (
                    steps
                )


async def test_a_full_disk_is_told_and_recovered_from(
    store: str, caplog: pytest.LogCaptureFixture
) -> None:
    service, gate = gated(store, ConcurrentLimitStrategy(2))

    async def pages(most: int) -> None:
        pragma = f"PRAGMA max_page_count = {most}"
        await service._core.store._file.write(lambda file: file.execute(pragma).fetchall())

    async with served(service) as client:
        running = await submit(client, x="a" * 20_000)
        await started(client, running)
        await pages(1)  # no page more than there are
        answer = await client.post("/task", json={"user_id": "ada", "x": "b" * 50_000})
        assert (answer.status_code, answer.headers["retry-after"]) == (503, "5")
        assert "full" in answer.json()["detail"]
        gate.open.set()
        await asyncio.sleep(1.5)
        assert (await result(client, running, 0))["task_status"] == "STARTED", "it can't be stored"
        await pages(1_000_000)
        assert (await result(client, running))["task_status"] == "SUCCESS"
        assert (await result(client, await submit(client, x="c")))["task_status"] == "SUCCESS"
    assert gate.came == ["a" * 20_000, "c"], "what was refused never ran"
    assert "could not be written" in caplog.text


def test_a_function_that_hangs_does_not_hold_up_the_stop(tmp_path: Path) -> None:
    program = """
        import time
        from async_task_manager.service import TaskService, state
        from async_task_manager.strategies import *

        service = TaskService(ConcurrentLimitStrategy(1), grace=0.3)

        @service.task
        def work(x: str) -> None:
            with open("ran", "a") as file:
                file.write(x)
            time.sleep(600)
    """
    server = Process(tmp_path, program)
    with server.client() as client:
        id = client.post("/task", json={"x": "a", "user_id": "a"}).json()["task_id"]
        while not (tmp_path / "ran").exists():
            time.sleep(0.01)
    began = time.monotonic()
    assert server.end() == 0
    assert time.monotonic() - began < 20
    with Process(tmp_path, program) as server, server.client() as client:
        while (tmp_path / "ran").read_text() != "aa":
            time.sleep(0.01)
        details = client.get(f"/task/{id}").json()
        assert details["attempt"] == 2
        assert details["earlier_attempts"][0]["error"]["type"] == "Interrupted"


LEAVES = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text()


def nested(inner: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    return st.lists(inner, max_size=8) | st.dictionaries(st.text(), inner, max_size=4)


JSON_VALUES = st.recursive(LEAVES, nested, max_leaves=60)


@given(JSON_VALUES, st.integers(1, 5))
def test_state_is_written_in_pieces(value: Any, length: int) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(state, "SLICE", length)
        pieces = list(state.pieces_of(value))
    assert json.loads("".join(pieces)) == value


async def test_one_service_per_store(store: str) -> None:
    async with served(gated(store)[0]):
        with pytest.raises(InvalidState, match="in use by another service"):
            await gated(store)[0]._core.start()


# ---- at construction ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "error", "says"),
    [
        ({"store": "tasks.db"}, InvalidValue, "sqlite:///tasks.db"),
        ({"store": "redis://x"}, InvalidValue, "'redis://x'"),
        ({"result_ttl": 0}, InvalidValue, "result_ttl must be .* above 0, not 0"),
        ({"max_queued": 0}, InvalidValue, "max_queued .* at least 1"),
        ({"threads": 1.5}, InvalidType, "threads must be a whole number"),
        ({"grace": -1}, InvalidValue, "grace"),
    ],
)
def test_bad_parameters(options: dict[str, Any], error: type[Exception], says: str) -> None:
    with pytest.raises(error, match=says):
        TaskService(ConcurrentLimitStrategy(1), **options)


def test_functions_that_cannot_be_offered(store: str) -> None:
    service = TaskService(ConcurrentLimitStrategy(1), store)
    with pytest.raises(InvalidState, match=r"decorate a function with \.task"):
        service.app()

    @service.task
    def once(x: int) -> None: ...

    with pytest.raises(InvalidValue, match="a task named 'once' already"):
        service.task(once)
    with pytest.raises(InvalidType, match=r"\*args takes anything"):
        service.task(lambda *args: None, name="any")
    with pytest.raises(InvalidValue, match="1 to 100 characters"):
        service.task(once, name="")
    with pytest.raises(InvalidType, match="must be a function"):
        service.task(3)  # type: ignore[call-overload]
    with pytest.raises(InvalidValue, match="run_timeout"):
        service.task(once, name="timed", run_timeout=0)

    def takes(x: threading.Lock) -> None: ...

    with pytest.raises(InvalidType, match="takes what no JSON can be"):
        service.task(takes)


async def test_a_run_timeout(store: str) -> None:
    service = TaskService(ConcurrentLimitStrategy(1), store)

    @service.task(run_timeout=0.1, name="nap")
    async def sleep(x: float) -> None:
        await asyncio.sleep(x)

    async with served(service) as client:
        found = await result(client, await submit(client, task="nap", x=5))
        assert (found["task_status"], found["task_result"]["type"]) == ("FAILURE", "TaskTimeout")


async def test_a_stranger_file_is_refused(tmp_path: Path, store: str) -> None:
    (tmp_path / "tasks.db").write_text(json.dumps({"not": "a database"}) * 1000)
    with pytest.raises(StoreError, match="damaged"):
        await gated(store)[0]._core.start()
