"""The service under many users for long: killed at random it loses nothing, and it doesn't grow."""

from __future__ import annotations

import asyncio
import os
import random
import socket
import sys
import threading
import time
from pathlib import Path

import httpx
import pytest

sys.path.insert(0, str(Path(__file__).parents[1]))

from serving import Process

from benchmarks.service import measured, posts  # one client for many connections

pytestmark = pytest.mark.real_time

PROGRAM = """
    import asyncio, random
    from async_task_manager import Chain
    from async_task_manager.service import TaskService
    from async_task_manager.strategies import *

    service = TaskService(
        Chain(FairShareStrategy(window_seconds=60), ConcurrentLimitStrategy(50)),
        max_results={max_results},
        max_interruptions=1000,
        grace=0.5,
    )

    @service.task
    async def work(x: int) -> int:
        await asyncio.sleep(random.random() * {longest})
        return x
"""
USERS = 1000


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])


class Crowd:
    """Users who submit until they are told to stop; what was accepted, they remember."""

    def __init__(self, url: str, seed: int) -> None:
        self.url = url
        self.over = threading.Event()
        self.accepted: dict[str, int] = {}
        self._numbers = iter(range(seed * 10**9, (seed + 1) * 10**9))
        self._dice = random.Random(seed)

    def run(self) -> None:
        with httpx.Client(base_url=self.url, timeout=5, trust_env=False) as client:
            while not self.over.is_set():
                number = next(self._numbers)
                task = {"x": number, "user_id": f"user {self._dice.randrange(USERS)}"}
                key = {"idempotency-key": f"key-{number}"}
                while not self.over.is_set():  # as a client does that wants exactly one
                    try:
                        answer = client.post("/task", json=task, headers=key)
                    except httpx.TransportError:
                        time.sleep(0.05)
                        continue
                    if answer.status_code == 202:
                        self.accepted[answer.json()["task_id"]] = number
                        break
                    assert answer.status_code == 503, answer.text


def kills(folder: Path, seconds: float, crowd_size: int, seed: int) -> None:
    dice = random.Random(seed)
    port = free_port()
    program = PROGRAM.format(max_results=10**9, longest=0.02)
    options = ("--port", str(port))
    server = Process(folder, program, *options)
    crowd = [Crowd(server.url, number) for number in range(crowd_size)]
    threads = [threading.Thread(target=each.run) for each in crowd]
    for thread in threads:
        thread.start()
    killed = 0
    end = time.monotonic() + seconds
    while killed < 2 or time.monotonic() < end:
        time.sleep(dice.uniform(0.1, 2))
        server.kill()
        killed += 1
        server = Process(folder, program, *options)
    for each in crowd:
        each.over.set()
    for thread in threads:
        thread.join()
    accepted = {id: number for each in crowd for id, number in each.accepted.items()}
    numbers = list(accepted.values())
    assert len(numbers) == len(set(numbers)), "a key made one task"
    try:
        with server.client() as client:
            for id, number in accepted.items():
                found = client.get(f"/result/{id}?wait=30").json()
                assert found.get("task_status") == "SUCCESS", (found, killed)
                assert found["task_result"] == number
            attempts = [client.get(f"/task/{id}").json()["attempt"] for id in accepted]
    finally:
        server.end()
    print(f"{killed} kills, {len(accepted)} tasks, {sum(a > 1 for a in attempts)} ran again")
    assert len(accepted) > killed


def test_a_few_kills(tmp_path: Path) -> None:
    kills(tmp_path, seconds=3, crowd_size=4, seed=1)


@pytest.mark.soak
@pytest.mark.parametrize("seed", range(3))
def test_many_kills(tmp_path: Path, seed: int) -> None:
    kills(tmp_path, seconds=90, crowd_size=16, seed=seed)


def resident(pid: int) -> int:
    """Bytes of memory that a process has."""
    pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")


def growth(folder: Path, batch: int, batches: int) -> list[int]:
    """The memory of a service after each of several equal batches of tasks."""
    program = PROGRAM.format(max_results=1000, longest=0)
    sizes = []
    with Process(folder, program) as server:
        port = int(server.url.rpartition(":")[2])
        for _ in range(batches):
            asyncio.run(measured(port, 64, posts(batch)))
            with server.client() as client:
                while (state := client.get("/queues").json())["queued"] or state["running"]:
                    time.sleep(0.2)
            time.sleep(1.5)
            sizes.append(resident(server.process.pid))
    return sizes


@pytest.mark.soak
@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="reads /proc")
def test_memory_is_flat_over_a_million_tasks(tmp_path: Path) -> None:
    tasks = int(os.environ.get("SOAK_TASKS", "1_000_000"))
    sizes = growth(tmp_path, batch=tasks // 10, batches=10)
    print([f"{size / 2**20:.0f} MiB" for size in sizes])
    first, *_, last = sizes[3:]  # by then every table has its size
    assert last - first < 16 * 2**20, sizes
