"""A service for tests, through real HTTP: in this process, or in one that can be killed."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import textwrap
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any

import httpx

from async_task_manager.service import TaskService
from async_task_manager.service.web.server import bind
from async_task_manager.service.web.serving import made

__all__ = ["Process", "eventually", "served", "started", "submit"]


@asynccontextmanager
async def served(
    service: TaskService,
    *,
    tokens: tuple[str, ...] = (),
    hosts: tuple[str, ...] = (),
    max_connections: int = 100,
    head_seconds: float = 10.0,
    body_seconds: float = 10.0,
) -> AsyncIterator[httpx.AsyncClient]:
    """The service behind a real socket, and a client."""
    app = service.app(tokens=tokens, hosts=hosts, body_seconds=body_seconds)
    listening = asyncio.Event()
    server = made(
        app,
        max_connections=max_connections,
        head_seconds=head_seconds,
        on_start=listening.set,
    )
    socket = bind("127.0.0.1", 0)
    url = f"http://127.0.0.1:{socket.getsockname()[1]}"
    serving = asyncio.create_task(server.serve(sockets=[socket]))
    waiting = asyncio.create_task(listening.wait())
    await asyncio.wait((serving, waiting), return_when=asyncio.FIRST_COMPLETED)
    waiting.cancel()
    headers = {"authorization": f"Bearer {tokens[0]}"} if tokens else {}
    try:
        async with httpx.AsyncClient(
            base_url=url, headers=headers, timeout=20, trust_env=False
        ) as client:
            yield client
    finally:
        server.should_exit = True
        await serving
        socket.close()


async def submit(client: httpx.AsyncClient, user_id: str = "ada", **task: Any) -> str:
    """Submits a task, and gives its id."""
    answer = await client.post("/task", json={"user_id": user_id, **task})
    assert answer.status_code == 202, answer.text
    return str(answer.json()["task_id"])


async def eventually(
    client: httpx.AsyncClient, path: str, so: Callable[[dict[str, Any]], bool]
) -> dict[str, Any]:
    """What the path answers, once it is so."""
    async with asyncio.timeout(15):
        while True:
            answer: dict[str, Any] = (await client.get(path)).json()
            if so(answer):
                return answer
            await asyncio.sleep(0.01)


async def started(client: httpx.AsyncClient, id: str) -> None:
    """Waits until the task runs."""
    await eventually(client, f"/result/{id}", lambda found: found["task_status"] == "STARTED")


class Process:
    """`atm serve` in a process of its own.

    Args:
        folder: Where the program, and its store, are.
        program: Makes ``service``.
        target: Where; None: nowhere.
        options: More of the command's.
    """

    def __init__(
        self, folder: Path, program: str, *options: str, target: str | None = "app:service"
    ) -> None:
        (folder / "app.py").write_text(textwrap.dedent(program))
        atm = str(Path(sys.executable).with_name("atm"))
        self._stderr = (folder / "stderr").open("ab")
        self.process = subprocess.Popen(
            [sys.executable, atm, "serve", *filter(None, [target]), "--port", "0", *options],
            cwd=folder,
            env={**os.environ, "COLUMNS": "200", "PYTHONUNBUFFERED": "1"},
            stdout=subprocess.PIPE,
            stderr=self._stderr,
            text=True,
        )
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        assert " on http://" in line, (line, (folder / "stderr").read_text())
        self.url = line.partition(" on ")[2].split()[0]

    def client(self, **options: Any) -> httpx.Client:
        """A client of it."""
        return httpx.Client(base_url=self.url, timeout=20, trust_env=False, **options)

    def kill(self) -> None:
        """As the power goes off."""
        self.end(signal.SIGKILL)

    def end(self, sign: int = signal.SIGTERM) -> int:
        """Ends it; gives its exit code."""
        with suppress(ProcessLookupError):
            self.process.send_signal(sign)
        code = self.process.wait(30)
        assert self.process.stdout is not None
        self.process.stdout.close()
        self._stderr.close()
        return code

    def __enter__(self) -> Process:
        return self

    def __exit__(self, *_: object) -> None:
        self.end()
