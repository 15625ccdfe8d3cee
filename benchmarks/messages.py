"""Row M: durable messages a second, beside other queues in a file that are installed."""

from __future__ import annotations

import asyncio
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from async_task_manager.queues import Message, open_queue
from async_task_manager.strategies import ConcurrentLimitStrategy
from async_task_manager.worker import Worker
from benchmarks.peers import here
from benchmarks.report import Row

__all__ = ["messages"]

SENDERS = 100
TEXT = "x" * 100


def messages(quick: bool) -> list[Row]:
    """Sent by one and by a hundred, received and acknowledged, handled by a worker."""
    n = 5_000 if quick else 30_000
    few = n // 20
    with folder() as path:
        rates = asyncio.run(ours(f"sqlite:///{path}/ours.db", n, few))
    rows = [
        Row("M", f"{what}, a second", rate, "", bar, True) for what, (rate, bar) in rates.items()
    ]
    for name, (package, contest) in PEERS.items():
        if here(package):
            with folder() as path:
                sends, receives = contest(path, few)
            rows += [
                Row("M", f"{name}: sends by one, a second", sends),
                Row("M", f"{name}: receives + acknowledges, a second", receives),
            ]
    return rows


@contextmanager
def folder() -> Iterator[Path]:
    """On the disk that the project is on, as a memory file system would be unfairly quick."""
    path = tempfile.mkdtemp(prefix=".bench-", dir=Path(__file__).parents[1])
    try:
        yield Path(path)
    finally:
        shutil.rmtree(path)


async def ours(url: str, n: int, few: int) -> dict[str, tuple[float, float | None]]:
    """Messages a second, and the bars."""
    async with open_queue(url) as queue:

        async def send(count: int) -> None:
            for _ in range(count):
                await queue.send([Message(TEXT)])

        began = time.perf_counter()
        await send(few)
        alone = few / (time.perf_counter() - began)
        began = time.perf_counter()
        await asyncio.gather(*[send(n // SENDERS) for _ in range(SENDERS)])
        together = n / (time.perf_counter() - began)

        async def receive() -> None:
            while batch := await queue.receive(100):
                await queue.acknowledge(batch)

        began = time.perf_counter()
        await asyncio.gather(*[receive() for _ in range(4)])
        received = (n + few) / (time.perf_counter() - began)
        await asyncio.gather(*[send(n // SENDERS) for _ in range(SENDERS)])
        began = time.perf_counter()
        await Worker(queue, handler, ConcurrentLimitStrategy(100)).run(until_empty=True)
        handled = n / (time.perf_counter() - began)
    return {
        "sends by one": (alone, None),
        f"sends by {SENDERS}": (together, 20_000.0),
        "receives + acknowledges": (received, 10_000.0),
        "handled by a worker": (handled, None),
    }


async def handler(message: Message) -> None:
    """The smallest work."""


def timed(work: Callable[[], object], n: int) -> float:
    """How often a second it was done."""
    began = time.perf_counter()
    for _ in range(n):
        work()
    return n / (time.perf_counter() - began)


def persist_queue(path: Path, n: int) -> tuple[float, float]:
    """SQLiteAckQueue, each message committed."""
    from persistqueue import SQLiteAckQueue

    queue = SQLiteAckQueue(str(path), auto_commit=True)
    rates = timed(lambda: queue.put(TEXT), n), timed(lambda: queue.ack(queue.get()), n)
    queue.close()
    return rates


def litequeue(path: Path, n: int) -> tuple[float, float]:
    """LiteQueue as it is: what it sent last a power cut may take back."""
    from litequeue import LiteQueue

    queue = LiteQueue(str(path / "lite.db"))

    def receive() -> None:
        message = queue.pop()
        assert message is not None
        queue.done(message.message_id)

    rates = timed(lambda: queue.put(TEXT), n), timed(receive, n)
    queue.conn.close()
    return rates


def huey(path: Path, n: int) -> tuple[float, float]:
    """The storage of SqliteHuey with fsync; what it receives is gone, there is no acknowledge."""
    from huey.storage import SqliteStorage

    storage = SqliteStorage(filename=str(path / "huey.db"), fsync=True)
    text = TEXT.encode()
    rates = timed(lambda: storage.enqueue(text), n), timed(storage.dequeue, n)
    storage.close()
    return rates


PEERS: dict[str, tuple[str, Callable[[Path, int], tuple[float, float]]]] = {
    "persist-queue": ("persistqueue", persist_queue),
    "litequeue (not durable)": ("litequeue", litequeue),
    "huey (no acknowledge)": ("huey", huey),
}
