"""`python tools/draw_runs.py`: draws the pictures of docs/cli.md, from a real run on loopback."""

from __future__ import annotations

import asyncio
import io
import json
import re
import sys
import tempfile
from pathlib import Path

from rich.console import Console

sys.path.insert(0, str(Path(__file__).parents[1] / "examples"))

from fake_provider import FakeProvider  # an example, not a package

from async_task_manager.cli.progress import picture, waiting
from async_task_manager.config import parse_config
from async_task_manager.runner import Batch, open_ledger

IMAGES = Path(__file__).parents[1] / "docs" / "images"
REQUESTS = 150


def lines() -> list[str]:
    return [
        json.dumps(
            {
                "id": number,
                "path": "/v1/completions",
                "json": {"prompt": f"question {number}", "max_tokens": 60 + number * 37 % 200},
            }
        )
        for number in range(REQUESTS)
    ]


def draw_terminal(batch: Batch) -> None:
    """What a terminal of 100 columns shows now."""
    console = Console(record=True, width=100, file=io.StringIO(), force_terminal=True)
    console.print(picture(batch, REQUESTS, waiting(batch), 100))
    svg = console.export_svg(title="atm run prompts.csv --config flow.toml --output results.jsonl")
    svg = re.sub(r"@font-face \{.*?\}", "", svg, flags=re.S)  # it would load from another host
    (IMAGES / "run_live.svg").write_text(svg)


async def main() -> None:
    groq = FakeProvider("groq", limits=["20/5s"], latency="0.3-1.2", max_concurrent=6, seed=1)
    spare = FakeProvider(
        "spare", latency="0.1-0.4", fail_next=1, status=503, retry_after=6, max_concurrent=4
    )
    async with groq, spare:
        config = parse_config(
            {
                "providers": [
                    {
                        "name": "groq",
                        "base_url": groq.url,
                        "limits": ["20/5s", "6000 tokens/5s"],
                        "cost": "max_tokens",
                        "max_concurrent": 6,
                        "slack": 0.3,
                    },
                    {
                        "name": "spare",
                        "base_url": spare.url,
                        "limits": ["10/5s"],
                        "max_concurrent": 4,
                        "slack": 0.3,
                    },
                ]
            }
        )
        batch = Batch(config, record=True)
        with tempfile.TemporaryDirectory() as folder, open_ledger(Path(folder) / "out") as ledger:
            run = asyncio.create_task(batch.run(lines(), ledger))
            await asyncio.sleep(3.5)
            draw_terminal(batch)
            await run
    batch.report().save(IMAGES / "run.svg", title="150 requests through two providers")


if __name__ == "__main__":
    asyncio.run(main())
