"""The dashboard in a real browser: whatever Chromium there is (`make browser` installs one)."""

from __future__ import annotations

import asyncio
import os
import shutil
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
from playwright.async_api import Page, Request, async_playwright, expect
from serving import served, submit

from async_task_manager import Chain
from async_task_manager.service import TaskService
from async_task_manager.strategies import (
    ConcurrentLimitStrategy,
    FairShareStrategy,
    PriorityQueueStrategy,
    Provider,
    ProviderRouterStrategy,
    RetryStrategy,
)
from async_task_manager.strategies.backoff import fixed

CHROMIUM = next(
    filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome", "chrome"))),
    None,
)
IN_CI = os.environ.get("CI", "").lower() in ("1", "true", "yes")

pytestmark = [
    pytest.mark.real_time,
    pytest.mark.skipif(
        CHROMIUM is None and not IN_CI, reason="no Chromium here: make browser (as root)"
    ),
]

FLAGS = [
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-gpu",
    "--disable-quic",
    "--disable-sync",
    "--no-first-run",
    *(["--no-sandbox"] if hasattr(os, "geteuid") and os.geteuid() == 0 else []),
]
expect.set_options(timeout=15_000)  # a busy machine

TOKEN = "a-token-of-sufficient-length"
MARKUP = "<script>document.title='owned'</script><img src=x onerror=document.title='owned'>"


def program(store: Path) -> tuple[TaskService, asyncio.Event]:
    router = ProviderRouterStrategy(
        [Provider("one", [ConcurrentLimitStrategy(1)]), Provider("two", enabled=False)]
    )
    retry = RetryStrategy(max_attempts=2, backoff=fixed(0.2))
    chain = Chain(PriorityQueueStrategy(), FairShareStrategy(), retry, router)
    service = TaskService(chain, f"sqlite:///{store / 'tasks.db'}", grace=0.05)
    gate = asyncio.Event()

    @service.task
    async def work(x: str) -> Any:
        if x == "fail":
            raise ValueError(f"no {MARKUP}")
        if x == "wait":
            await gate.wait()
        return {"x": x}

    return service, gate


class Seen:
    """What a page asked for, and what it complained of."""

    def __init__(self, page: Page, url: httpx.URL) -> None:
        self.requests: list[str] = []
        self.complaints: list[str] = []
        self._own = f"http://{url.host}:{url.port}/"
        page.on("request", self._requested)
        page.on("console", lambda message: self.complaints.append(message.text))
        page.on("pageerror", lambda error: self.complaints.append(str(error)))

    def _requested(self, request: Request) -> None:
        self.requests.append(request.url)

    def check(self) -> None:
        strangers = [u for u in self.requests if not u.startswith((self._own, "data:"))]
        assert not strangers, "nothing is loaded from elsewhere"
        assert not self.complaints, "nothing is said on the console"


@asynccontextmanager
async def opened(
    client: httpx.AsyncClient, path: str = "/", **options: Any
) -> AsyncIterator[tuple[Page, Seen]]:
    async with async_playwright() as playwright:
        assert CHROMIUM is not None, "no Chromium here, and CI needs one: make browser"
        browser = await playwright.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        page = await browser.new_page(**options)
        page.set_default_timeout(10_000)
        seen = Seen(page, client.base_url)
        await page.goto(f"{client.base_url}{path}")
        yield page, seen
        await browser.close()


def tile(page: Page, name: str) -> Any:
    return page.locator(".tile", has=page.get_by_text(name, exact=True)).locator("b")


async def test_tasks_appear_live_and_what_is_outside_stays_text(tmp_path: Path) -> None:
    service, gate = program(tmp_path)
    async with served(service) as client, opened(client) as (page, seen):
        await expect(page.locator("#state")).to_have_text("live")
        await expect(page.locator("#running .empty")).to_have_text("Nothing runs.")
        await submit(client, user_id=MARKUP, x="wait")
        await expect(page.locator("#running tbody tr")).to_have_count(1)
        await expect(page.locator("#running tbody tr")).to_contain_text(MARKUP)
        for _ in range(3):
            await submit(client, user_id="bob", x="fail")
        await expect(tile(page, "Queued")).to_have_text("3")
        row = page.locator("#users tr", has_text="bob")
        await expect(row.locator("td").nth(1)).to_have_text("3")
        await expect(page.locator("#levels tbody")).to_contain_text("normal, level 0")
        await expect(page.locator("#providers progress").first).to_have_js_property("value", 1)
        gate.set()
        await expect(tile(page, "Failed")).to_have_text("3")
        await expect(tile(page, "Succeeded")).to_have_text("1")
        await expect(page.locator("#failures tbody tr")).to_have_count(6)  # two attempts each
        await expect(page.locator("#failures tbody tr").first).to_contain_text(
            f"ValueError: no {MARKUP}"
        )
        await expect(page.locator("#failures .badge.RETRY")).to_have_count(3)
        await expect(page.locator("#failures .badge.FAILURE")).to_have_count(3)
        await expect(page.locator("#limits")).to_be_hidden()  # all are the providers'
        await expect(page.locator("#ends .badge.FAILURE")).to_have_count(3)
        await expect(page.locator("#chart-ends canvas")).to_be_visible()
        assert await page.locator("main img, main script").count() == 0
        assert await page.title() == "Tasks"
        seen.check()


async def test_switches_and_pause(tmp_path: Path) -> None:
    service, _ = program(tmp_path)
    async with served(service) as client, opened(client) as (page, seen):
        switch = page.get_by_role("switch", name="two takes tasks")
        await expect(switch).not_to_be_checked()
        await submit(client, x="wait")
        second = await submit(client, x="ok")
        await switch.check()
        assert (await client.get(f"/result/{second}?wait=5")).json()["task_status"] == "SUCCESS"
        await page.get_by_role("switch", name="one takes tasks").uncheck()
        await expect(page.locator("#toast")).to_contain_text("one is switched off")
        assert not (await client.get("/providers/one")).json()["enabled"]
        await page.get_by_role("button", name="Pause").click()
        await expect(page.locator("#state")).to_contain_text("paused")
        assert (await client.get("/queues")).json()["paused"]
        await page.get_by_role("button", name="Resume").click()
        await expect(page.locator("#state")).to_have_text("live")
        seen.check()


async def test_a_tasks_page(tmp_path: Path) -> None:
    service, gate = program(tmp_path)
    async with served(service) as client, opened(client) as (page, seen):
        await submit(client, x="wait")
        waiting = await submit(client, user_id=MARKUP, x="fail", priority="high")
        doomed = await submit(client, x="ok")
        await page.keyboard.press("/")
        await page.keyboard.type(waiting)
        await page.keyboard.press("Enter")
        await expect(page.locator("#page h2").first).to_contain_text("work PENDING")
        await expect(page.locator("#why")).to_contain_text("provider one")
        await expect(page.locator("#page .facts")).to_contain_text("high, level 0")
        gate.set()
        await expect(page.locator("#page h2").first).to_contain_text("FAILURE")
        history = page.locator("#history li")
        await expect(history).to_have_count(4)
        await expect(history.nth(1)).to_contain_text("Attempt 1 ended after")
        await expect(history.nth(3)).to_contain_text("Failed")
        await expect(page.locator("#page pre")).to_have_text(f"ValueError: no {MARKUP}")
        await page.locator("#page .facts a").click()
        await expect(page.locator("#page h2").first).to_have_text(MARKUP)
        await expect(page.locator("#tasks tbody tr")).to_have_count(1)
        await client.post("/pause")
        doomed = await submit(client, x="ok")
        await page.goto(f"{client.base_url}/#/task/{doomed}")
        button = page.locator("#cancel")
        await button.click()
        await expect(button).to_have_text("Really cancel it?")
        await button.click()
        await expect(page.locator("#page h2").first).to_contain_text("REVOKED")
        seen.check()
        await page.goto(f"{client.base_url}/#/task/1-unknown")
        await expect(page.locator("#page .error")).to_have_text("there is no such task")
        await page.keyboard.press("Escape")
        await expect(page.locator("#overview")).to_be_visible()


async def test_a_token_is_asked_for(tmp_path: Path) -> None:
    service, _ = program(tmp_path)
    async with served(service, tokens=(TOKEN,)) as client, opened(client) as (page, _):
        await expect(page.get_by_role("dialog")).to_be_visible()
        await page.locator("#token").fill("x" * 20)
        await page.keyboard.press("Enter")
        await expect(page.locator("#sign-in-error")).to_contain_text("doesn't know this token")
        await page.locator("#token").fill(TOKEN)
        await page.get_by_role("button", name="Open").click()
        await expect(page.locator("#state")).to_have_text("live")
        await page.reload()
        await expect(page.locator("#state")).to_have_text("live")  # kept with the tab
        assert TOKEN not in await page.content()


async def test_by_keyboard_in_the_dark_and_on_a_phone(tmp_path: Path) -> None:
    service, _ = program(tmp_path)
    phone: dict[str, Any] = {
        "viewport": {"width": 360, "height": 740},
        "color_scheme": "dark",
        "has_touch": True,
    }
    async with served(service) as client, opened(client, **phone) as (page, seen):
        await submit(client, user_id="u" * 200, x="wait")
        await expect(page.locator("#running tbody tr")).to_have_count(1)
        width = "document.documentElement.scrollWidth"
        assert await page.evaluate(width) <= 360, "nothing sticks out"
        ground = "getComputedStyle(document.body).backgroundColor"
        assert await page.evaluate(ground) == "rgb(17, 20, 27)"
        names = []
        for _ in range(12):
            await page.keyboard.press("Tab")
            names.append(await page.evaluate("document.activeElement.textContent.trim()"))
        assert "Skip to the content" in names
        assert {"Pause", "Theme", "API"} <= set(names)
        assert "u" * 200 in names, "every user can be reached"
        await page.get_by_role("button", name="Theme").press("Enter")
        assert await page.evaluate(ground) == "rgb(244, 245, 248)"
        await page.reload()
        assert await page.evaluate(ground) == "rgb(244, 245, 248)", "it stays"
        seen.check()


async def test_the_description_of_the_api(tmp_path: Path) -> None:
    service, _ = program(tmp_path)
    async with served(service) as client, opened(client, "/docs") as (page, seen):
        await expect(page.locator("rapi-doc")).to_contain_text("/task")
        await expect(page.get_by_text("work(x: str)")).to_be_visible()
        seen.check()
