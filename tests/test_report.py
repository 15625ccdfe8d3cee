"""What a run looks like: while it goes on, and afterwards on one page."""

from __future__ import annotations

import asyncio
import io
import json
import re
import sys
import xml.etree.ElementTree as ET
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

sys.path.insert(0, str(Path(__file__).parents[1] / "examples"))

from fake_provider import FakeProvider  # an example, not a package

from async_task_manager.cli.progress import line, picture, waiting
from async_task_manager.config import parse_config
from async_task_manager.errors import InvalidState
from async_task_manager.runner import Batch, Ledger
from async_task_manager.runner.page import page
from async_task_manager.runner.report import Distribution

real_time = pytest.mark.real_time


def lines(count: int, **more: Any) -> list[str]:
    return [json.dumps({"id": i, "path": "/x", **more}) for i in range(count)]


def drawn(batch: Batch, expected: int | None, width: int) -> list[str]:
    console = Console(width=width, file=io.StringIO(), force_terminal=True, color_system=None)
    with console.capture() as capture:
        console.print(picture(batch, expected, waiting(batch), width))
    return capture.get().splitlines()


@real_time
@pytest.mark.parametrize("width", [80, 120])
async def test_the_live_view(width: int) -> None:
    async with (
        FakeProvider("groq", latency=0.2, limits=["5/2s"]) as groq,
        FakeProvider("spare", fail_next=1, status=503, retry_after=30) as spare,
    ):
        config = parse_config(
            {
                "providers": [
                    {
                        "name": "groq",
                        "base_url": groq.url,
                        "limits": ["5/2s", {"rate": "900 tokens/minute", "key": "model"}],
                        "max_concurrent": 2,
                        "cost": 100,
                    },
                    {"name": "spare-with-a-long-name", "base_url": spare.url, "max_concurrent": 1},
                ]
            }
        )
        batch = Batch(config)
        run = asyncio.create_task(batch.run(lines(40, json={"model": "m"}), Ledger(io.BytesIO())))
        async with asyncio.timeout(10):
            while batch.summary.providers["groq"].sent < 5:
                await asyncio.sleep(0.01)
        text, logged = drawn(batch, 40, width), line(batch, 40)
        run.cancel()
        await asyncio.wait({run})
    assert re.search(r"; spare-with-a-long-name sent 1, .*, asked to wait: \d+ s; 429s: ", logged)
    whole = "\n".join(text)
    assert max(map(len, text)) <= width
    assert re.match(r"\d+ of 40 +\d+% .*[━╸╺].* \d+\.\d/s, \d:\d\d:\d\d left$", text[0])
    assert re.search(r"^groq +sent 5  running \d  failed 0  429s 0$", whole, re.M)
    assert "████████ 5 of 5/2s" in whole
    assert "500 of 900 tokens/minute per model" in whole
    assert re.search(r"^spare-with-a-long-name +sent 1 .*asked to wait: (29|30) s$", whole, re.M)
    assert re.search(r"^\d+ wait: provider (groq|spare)", whole, re.M)
    assert "…" not in whole, "it ends with the instant, which is what one wants to know"


async def test_the_live_view_of_nothing() -> None:
    batch = Batch(parse_config({"providers": [{"name": "p", "base_url": "http://p"}]}))
    text = drawn(batch, None, 80)
    assert text[0].startswith("0 of ? ") and text[0].endswith("0.0/s")
    assert "░░░░░░░░ 0 of 100 at once" in text[2]
    assert len(text) == 3


class Page(HTMLParser):
    """Its text, and what it loads from elsewhere."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.words: list[str] = []
        self.foreign: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag in ("script", "link", "img", "iframe"):
            self.foreign.append(tag)
        self.foreign += [f"{tag} {name}" for name, _ in attrs if name in ("src", "href")]

    def handle_data(self, data: str) -> None:
        self.words.append(data)


@real_time
async def test_one_page_says_it_all() -> None:
    async with FakeProvider("p", fail_next=2, latency="0.001-0.02") as provider:
        config = parse_config(
            {
                "providers": [
                    {
                        "name": "p",
                        "base_url": provider.url,
                        "limits": ["20/s"],
                        "retry": {"backoff": {"kind": "fixed", "seconds": 0}, "budget": False},
                    }
                ]
            }
        )
        batch = Batch(config, record=True)
        summary = await batch.run([*lines(30), "nonsense"], Ledger(io.BytesIO()))
    report = batch.report()
    assert (report.tasks, report.succeeded, report.attempts) == (30, 30, 32)
    assert report.providers == {"p": 32}
    assert report.makespan >= 1
    (window,) = (use for use in report.limits if use.limit.startswith("at most 20 tasks"))
    assert window.peak == 1.0
    text = page(summary, report, "<b>in.jsonl</b> & flow.toml")
    shown = Page(text)
    words = " ".join(shown.words)
    assert shown.foreign == []
    assert "<b>in.jsonl</b> & flow.toml" in words, "as text"
    for part in ("31 requests in", "invalid", "20/s", "p: how long requests waited"):
        assert part in words
    for svg in re.findall(r"<svg.*?</svg>", text, re.S):
        ET.fromstring(svg)


@real_time
async def test_a_page_of_nothing() -> None:
    config = parse_config({"providers": [{"name": "p", "base_url": "http://p"}]})
    batch = Batch(config, record=True)
    summary = await batch.run([], Ledger(io.BytesIO()))
    assert "0 requests in" in page(summary, batch.report(), "nothing")
    with pytest.raises(InvalidState, match="record=True"):
        Batch(config).report()


@real_time
async def test_what_waits_for_another_attempt_is_not_cancelled_while_it_ran() -> None:
    async with FakeProvider("p", error_rate=1.0) as provider:
        retry = {"backoff": {"kind": "fixed", "seconds": 30}, "budget": False}
        one = {"name": "p", "base_url": provider.url, "retry": retry, "breaker": False}
        batch, sink = Batch(parse_config({"providers": [one]})), io.BytesIO()
        run = asyncio.create_task(batch.run(lines(3), Ledger(sink)))
        async with asyncio.timeout(10):
            while batch.summary.providers["p"].errors < 3:
                await asyncio.sleep(0.01)
        batch.interrupt()
        summary = await run
    assert sink.getvalue() == b"", "they have no result, and are sent again by the next run"
    assert summary.unsent == 3


def test_counts_of_a_distribution() -> None:
    values = Distribution()
    for value in (0.0, 1.0, 1.0, 5.0):
        values.add(value)
    found, counts = zip(*values.counts(), strict=True)
    assert counts == (1, 2, 1)
    assert found == pytest.approx((0.0, 1.0, 5.0), rel=0.01)
