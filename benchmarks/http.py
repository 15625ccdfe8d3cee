"""Real HTTP: `atm run`'s batch beside a bare httpx loop, and against limits."""

from __future__ import annotations

import asyncio
import json
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx

from async_task_manager.config import parse_config
from async_task_manager.runner import Batch, Lines, journal_of, open_ledger
from benchmarks.report import Row

__all__ = ["http"]

PROVIDER = Path(__file__).parents[1] / "examples" / "fake_provider.py"
CONCURRENCY = 50


@contextmanager
def serving(*options: str) -> Iterator[str]:
    """The fake provider in a process of its own: its URL."""
    process = subprocess.Popen(
        [sys.executable, str(PROVIDER), *options], stdout=subprocess.PIPE, text=True
    )
    try:
        assert process.stdout is not None
        yield process.stdout.readline().split()[-1]
    finally:
        process.terminate()
        process.communicate()


def stats(url: str) -> Any:
    """What the provider itself has counted."""
    with urllib.request.urlopen(f"{url}/stats") as response:
        return json.load(response)


async def bare(url: str, requests: int) -> float:
    """Requests per second of the shortest loop: so many at once, each answer parsed."""
    left = iter(range(requests))
    limits = httpx.Limits(max_connections=CONCURRENCY)
    async with httpx.AsyncClient(limits=limits, timeout=60, trust_env=False) as client:

        async def worker() -> None:
            for number in left:
                answer = await client.post(f"{url}/v1/x", json={"prompt": f"question {number}"})
                answer.raise_for_status()
                answer.json()

        began = time.perf_counter()
        await asyncio.gather(*(worker() for _ in range(CONCURRENCY)))
        return requests / (time.perf_counter() - began)


async def ours(provider: dict[str, Any], requests: int, folder: Path) -> float:
    """The same by a batch, from the file of requests to that of results: requests per second."""
    source = folder / "requests.jsonl"
    with source.open("w") as file:
        for number in range(requests):
            line = {"id": number, "path": "/v1/x", "json": {"prompt": f"question {number}"}}
            file.write(json.dumps(line) + "\n")
    batch = Batch(parse_config({"providers": [provider]}))
    with source.open("rb") as file, open_ledger(folder / "results.jsonl", force=True) as ledger:
        began = time.perf_counter()
        summary = await batch.run(Lines(file.fileno()), ledger)
        seconds = time.perf_counter() - began
    assert summary.all_succeeded, summary.statuses
    return requests / seconds


def http(quick: bool) -> list[Row]:
    """Against a provider without limits, and against two kinds of limits."""
    rows = []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        requests, rounds = (800, 3) if quick else (3000, 5)
        with serving() as url:
            provider = {"name": "p", "base_url": url, "max_concurrent": CONCURRENCY}
            asyncio.run(bare(url, 200))
            asyncio.run(ours(provider, 200, folder))
            loops, batches = [], []
            for _ in range(rounds):  # interleaved: the machine's mood is the same for both
                loops.append(asyncio.run(bare(url, requests)))
                batches.append(asyncio.run(ours(provider, requests, folder)))
        loop = statistics.median(loops)
        ratio = statistics.median(b / a for a, b in zip(loops, batches, strict=True))
        rows.append(Row("H", f"bare httpx loop, {CONCURRENCY} at once", loop, "/s"))
        rows.append(Row("H", "atm run, to the bare loop", ratio, bar=0.7, at_least=True))
        periods = 4 if quick else 8
        for amount, period in ((20, 5.0),) if quick else ((20, 5.0), (30, 10.0)):
            rows += _limited(amount, period, periods, folder)
    return rows


def _limited(amount: int, period: float, periods: int, folder: Path) -> list[Row]:
    """Windows in sequence, each as full as it may be."""
    slack = 0.05
    limit = f"{amount}/{period:g}s"
    with serving("--limit", limit, "--latency", "0.005-0.02") as url:
        requests = amount * periods
        provider = {
            "name": "p",
            "base_url": url,
            "limits": [limit],
            "slack": slack,
            "max_concurrent": CONCURRENCY,
        }
        asyncio.run(ours(provider, requests, folder))
        counts = stats(url)
    with journal_of(folder / "results.jsonl").open() as file:
        starts = [json.loads(line)["at"] for line in file]
    # From the last start of the second window to the last of all: until then the burst of the first
    # has spread to what the machine can send, and from then on the limit alone decides.
    least = (periods - 2) * (period + slack)
    reached = least / (starts[-1] - starts[2 * amount - 1])
    return [
        Row("H", f"{limit}: of what limits and slack allow", reached, bar=0.99, at_least=True),
        Row("H", f"{limit}: 429s", counts["rejected"], bar=0),
    ]
