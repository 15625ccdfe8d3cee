"""`atm wizard`: asks for providers and a number of requests, then simulates or runs them."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from async_task_manager.cli import ask
from async_task_manager.cli.desk import PRETEND, Desk
from async_task_manager.cli.files import print_words
from async_task_manager.cli.toml import to_toml
from async_task_manager.config import (
    ConfigError,
    FlowConfig,
    ProviderConfig,
    build_chain,
    parse_config,
)
from async_task_manager.rates import parse_rate

__all__ = ["ask_config", "ask_provider", "example_simulation", "save", "wizard_command"]


async def ask_provider(taken: Iterable[str], number: int) -> ProviderConfig:
    """One provider: its name, its rates, how many at once. Raises ask.Left."""
    known = set(taken)

    def name(given: str) -> str:
        if given in known:
            raise ValueError(f"there is a provider {given!r} already")
        try:
            _made({"name": given, "base_url": PRETEND})
        except ValueError:  # in fewer words: there is one line for them
            raise ValueError(f"letters, digits, dashes and dots, please, not {given!r}") from None
        return given

    def rates(given: str) -> list[str]:
        found = [part.strip() for part in given.split(";") if part.strip()]
        for rate in found:
            try:
                parse_rate(rate)
            except ValueError:
                raise ValueError(f"like 30/minute or 900 tokens/hour, not {rate!r}") from None
        return found

    def address(given: str) -> str:
        _made({"name": "any", "base_url": given or PRETEND})
        return given or PRETEND

    return _made(
        {
            "name": await ask.text("What is the provider called?", name, f"P{number}"),
            "limits": await ask.text(
                "Its rates, such as 30/minute; 6000 tokens/minute:",
                rates,
                "30/minute",
            ),
            "max_concurrent": await ask.number("Requests at once:", "4", at_least=1, whole=True),
            "base_url": await ask.text("Its address (empty: pretend that there is one):", address),
        }
    )


def _made(table: dict[str, Any]) -> ProviderConfig:
    """The provider of this table; a ValueError says what is wrong with it, and nothing else."""
    try:
        (provider,) = parse_config({"providers": [{"cost": 1, **table}]}).providers
    except ConfigError as error:
        raise ValueError(str(error).partition(": ")[2]) from None
    return provider


async def ask_config() -> FlowConfig:
    """Providers, one after the other, as many as there are. Raises ask.Left."""
    providers: list[ProviderConfig] = []
    while not providers or await ask.confirm("Another provider?", default=False):
        names = [provider.name for provider in providers]
        providers.append(await ask_provider(names, len(providers) + 1))
    return FlowConfig(providers=tuple(providers))


async def save(config: FlowConfig) -> None:
    """Asks where to, and writes it there. Raises ask.Left."""

    def path(given: str) -> Path:
        found = Path(given or "flow.toml")
        if found.exists():
            raise ValueError(f"{found} exists already")
        if not found.parent.is_dir():
            raise ValueError(f"there is no folder {str(found.parent)!r}")
        return found

    found: Path = await ask.text("Save it as:", path, "flow.toml")
    found.write_text(to_toml(config), encoding="utf-8")
    print(f"wrote {found}: atm check {found} says what it means")


def example_simulation(config: FlowConfig, requests: int = 100) -> str:
    """So many requests through these providers on virtual time, in words."""
    from async_task_manager.simulation import generate, simulate

    jobs = generate(
        requests, duration="uniform(0.2, 1)", cost=1, priorities={"high": 1, "normal": 2, "low": 1}
    )
    return str(simulate(build_chain(config), jobs))


async def wizard() -> None:
    """The questions, and what follows from them. Raises ask.Left."""
    config = await ask_config()
    print()
    print_words(config)
    print()
    requests = await ask.number("How many requests?", "100", at_least=1, whole=True)
    what = await ask.choose(
        "What next?",
        [
            ("simulate them: how long will it take?", "simulate"),
            ("run them now", "run"),
            ("neither", None),
        ],
    )
    if what == "simulate":
        print(f"\n{example_simulation(config, requests)}\n")
    elif what == "run":
        async with Desk(config) as desk:
            for _ in range(requests):
                desk.add(None, "normal", 0.0)
            await desk.manager.join()
            print(f"\n{desk.counts()}\n")
    if await ask.confirm("Save the providers as a config?"):
        await save(config)


def wizard_command() -> int:
    """Asks, and gives the exit code."""
    try:
        asyncio.run(wizard())
    except (ask.Left, KeyboardInterrupt):
        return 130
    return 0
