"""How many requests a second the service answers, through its real door.

`python -m benchmarks.service` starts a service in a process of its own, on a file of its own, and
asks it over 64 connections of this process: first `POST /task`, each durable before its answer,
then `GET /result/{id}`.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import subprocess
import sys
import tempfile
import time
from collections import deque
from collections.abc import Callable, Coroutine, Iterator
from contextlib import contextmanager
from math import nan
from pathlib import Path
from typing import Any, TypeVar, cast

from benchmarks.report import Row

T = TypeVar("T")

PROGRAM = """\
import sys

from async_task_manager import Chain
from async_task_manager.service import TaskService
from async_task_manager.strategies import ConcurrentLimitStrategy, FairShareStrategy

service = TaskService(
    Chain(FairShareStrategy(), ConcurrentLimitStrategy({slots})),
    store="sqlite:///tasks.db",
    max_queued=1_000_000,
    max_results=1_000_000,
)


@service.task
async def work(x: int) -> int:
    return x


service.serve(port=0, on_listening=lambda url: print(url, flush=True))
"""


class Client(asyncio.Protocol):
    """One connection that sends the next request as soon as the answer to the last is here."""

    def __init__(self, next_request: Callable[[], bytes | None], answered: deque[bytes]) -> None:
        self._next = next_request
        self._answered = answered
        self._buffer = b""
        self.over = asyncio.get_running_loop().create_future()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)
        self._send()

    def _send(self) -> None:
        request = self._next()
        if request is None:
            self._transport.close()
            self.over.set_result(None)
        else:
            self._transport.write(request)

    def data_received(self, data: bytes) -> None:
        self._buffer += data
        head, mark, body = self._buffer.partition(b"\r\n\r\n")
        if not mark:
            return
        start = head.index(b"content-length: ") + 16
        length = int(head[start : head.find(b"\r", start)])
        if len(body) >= length:
            if head[9:12] not in (b"200", b"202"):
                raise RuntimeError(f"{head!r} {body!r}")
            self._answered.append(body)
            self._buffer = b""
            self._send()


async def measured(
    port: int, connections: int, requests: Iterator[bytes]
) -> tuple[float, list[bytes]]:
    """Requests a second, and the answers."""
    loop = asyncio.get_running_loop()
    answered: deque[bytes] = deque()
    begun = time.perf_counter()
    clients = []
    for _ in range(connections):
        _, client = await loop.create_connection(
            lambda: Client(lambda: next(requests, None), answered), "127.0.0.1", port
        )
        clients.append(client)
    await asyncio.gather(*(client.over for client in clients))
    return len(answered) / (time.perf_counter() - begun), list(answered)


def cpu_of(pid: int) -> float:
    """Seconds of CPU that a process has used; NaN where the system doesn't tell."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return nan
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


@contextmanager
def serving(slots: int) -> Iterator[tuple[int, int]]:
    """A service in a process of its own; gives its port and its process id."""
    with tempfile.TemporaryDirectory() as folder:
        Path(folder, "app.py").write_text(PROGRAM.format(slots=slots))
        process = subprocess.Popen(
            [sys.executable, "app.py"], cwd=folder, stdout=subprocess.PIPE, text=True
        )
        try:
            assert process.stdout is not None
            yield int(process.stdout.readline().rpartition(":")[2]), process.pid
        finally:
            process.terminate()
            process.wait(30)


def posts(count: int) -> Iterator[bytes]:
    """Tasks of a hundred users."""
    for number in range(count):
        body = json.dumps({"x": number, "user_id": f"user-{number % 100}"}).encode()
        yield (
            b"POST /task HTTP/1.1\r\nhost: 127.0.0.1\r\ncontent-type: application/json\r\n"
            b"content-length: %d\r\n\r\n%s" % (len(body), body)
        )


def gets(ids: list[str], count: int) -> Iterator[bytes]:
    """Their results."""
    for number in range(count):
        id = ids[number % len(ids)].encode()
        yield b"GET /result/%s HTTP/1.1\r\nhost: 127.0.0.1\r\n\r\n" % id


async def rates(
    count: int, connections: int = 64, slots: int = 64
) -> dict[str, tuple[float, float]]:
    """By request: how many a second, and the seconds of the server's CPU that one takes."""
    found = {}
    with serving(slots) as (port, pid):

        async def run(what: str, requests: Iterator[bytes]) -> list[bytes]:
            before = cpu_of(pid)
            rate, answers = await measured(port, connections, requests)
            found[what] = rate, (cpu_of(pid) - before) / len(answers)
            return answers

        answers = await run("POST /task, durable", posts(count))
        ids = [json.loads(answer)["task_id"] for answer in answers]
        await asyncio.sleep(2)
        answers = await run("GET /result", gets(ids, count))
        statuses = {json.loads(answer)["task_status"] for answer in answers}
        if slots > 1 and statuses != {"SUCCESS"}:
            raise RuntimeError(f"the tasks had not ended: {statuses}")
    return found


def in_loop(work: Coroutine[Any, Any, T]) -> T:
    """Its result, from uvloop where that is: the client must not be what is slow."""
    try:
        import uvloop
    except ImportError:
        return asyncio.run(work)
    return uvloop.run(work)


BARS = {"POST /task, durable": 3000, "GET /result": 5000}


def service(quick: bool) -> list[Row]:
    """The rows of the table."""
    rows = []
    for what, (rate, cpu) in in_loop(rates(5_000 if quick else 20_000)).items():
        text = f"{what}, 64 connections"
        rows.append(Row("service", text, rate, "/s", bar=BARS[what], at_least=True))
        rows.append(Row("service", f"{what}: CPU of the server", cpu * 1e6, "us"))
    return rows


def main() -> None:
    """Measures and prints."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--count", type=int, default=20_000)
    parser.add_argument("--connections", type=int, default=64)
    parser.add_argument("--slots", type=int, default=64, help="Tasks that run at once.")
    options = parser.parse_args()
    for what, (rate, cpu) in in_loop(
        rates(options.count, options.connections, options.slots)
    ).items():
        print(f"{what}: {rate:,.0f}/s; {cpu * 1e6:.0f} us of the server's CPU each")


if __name__ == "__main__":
    main()
