"""`atm shell`: a menu over a live manager, which goes on while the menu waits."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Awaitable, Callable
from pathlib import Path

from async_task_manager.cli import ask
from async_task_manager.cli.desk import PRETEND, Desk
from async_task_manager.cli.wizard import ask_config, ask_provider, example_simulation, save
from async_task_manager.config import ConfigError, FlowConfig, load_config, parse_config

__all__ = ["shell_command"]


class Shell:
    """The entries of the menu."""

    def __init__(self, desk: Desk) -> None:
        self._desk = desk

    async def menu(self) -> None:
        """Asks what to do, until nothing more is to be done."""
        while True:
            # Named anew each time: what can be done depends on what is.
            entries: list[tuple[str, Callable[[], Awaitable[None]] | None]] = [
                ("add a request", self._request),
                ("add a provider", self._provider),
                ("enable or disable a provider", self._switch),
                ("stop sending", self._stop)
                if self._desk.running
                else ("start sending", self._start),
                ("show queues and limits", self._show),
                ("run the example simulation", self._simulate),
                ("wizard: other providers, simulated or run", self._wizard),
                ("save the providers", self._save),
                ("exit", None),
            ]
            act = await ask.choose("What to do?", entries)
            if act is None:
                return
            try:
                await act()
            except ask.Left:
                print("left")  # this entry, and not the menu

    async def _request(self) -> None:
        names = [(provider.name, provider.name) for provider in self._desk.router]
        provider = await ask.choose("To which provider?", [("whichever has room", None), *names])
        priority = await ask.choose("How urgent?", [(p, p) for p in ("normal", "high", "low")])
        delay = await ask.number("Not before so many seconds:", "0", at_least=0)
        task = self._desk.add(provider, priority, delay)
        print(f"{task.name} is queued")

    async def _provider(self) -> None:
        names = self._desk.router.names
        provider = await ask_provider(names, len(names) + 1)
        await self._desk.add_provider(provider)
        print(f"{provider.name} takes requests")

    async def _switch(self) -> None:
        states = [
            (f"{'disable' if p.enabled else 'enable'} {p.name}", (p.name, not p.enabled))
            for p in self._desk.router
        ]
        name, enabled = await ask.choose("Which?", states)
        self._desk.switch(name, enabled)
        print(f"{name} is {'enabled' if enabled else 'disabled'}")

    async def _stop(self) -> None:
        await self._desk.stop()
        print("stopped: nothing is sent until it is started again")

    async def _start(self) -> None:
        await self._desk.start()
        print("started")

    async def _show(self) -> None:
        print("\n".join(self._desk.overview()))

    async def _simulate(self) -> None:
        requests = await ask.number("How many requests?", "100", at_least=1, whole=True)
        print(example_simulation(self._desk.config, requests))

    async def _wizard(self) -> None:
        config = await ask_config()
        requests = await ask.number("How many requests?", "100", at_least=1, whole=True)
        print(example_simulation(config, requests))
        if await ask.confirm("Add these providers here, and send the requests?", default=False):
            for provider in config.providers:
                if provider.name not in self._desk.router:
                    await self._desk.add_provider(provider)
            for _ in range(requests):
                self._desk.add(None, "normal", 0.0)
        if await ask.confirm("Save them as a config?", default=False):
            await save(config)

    async def _save(self) -> None:
        await save(self._desk.config)


async def _run(config: FlowConfig) -> None:
    async with Desk(config) as desk:
        names = ", ".join(desk.router.names)
        print(f"providers: {names}; what runs goes on while the menu waits")
        try:
            await Shell(desk).menu()
        except ask.Left:
            pass
        print(desk.counts())


def shell_command(file: Path | None) -> int:
    """Runs the menu, and gives the exit code."""
    try:
        config = load_config(file) if file is not None else _example()
    except ConfigError as error:
        for line in str(error).splitlines():
            print(f"atm: {line}", file=sys.stderr)
        return 2
    try:
        asyncio.run(_run(config))
    except KeyboardInterrupt:
        return 130
    return 0


def _example() -> FlowConfig:
    """Two providers that there are not, to play with."""
    return parse_config(
        {
            "providers": [
                {
                    "name": "P1",
                    "base_url": PRETEND,
                    "limits": ["10/10s"],
                    "max_concurrent": 2,
                },
                {"name": "P2", "base_url": PRETEND, "limits": ["1/2s"]},
            ]
        }
    )
