"""A live manager that a person adds requests to, one by one, and whose life is told in lines."""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Callable
from contextlib import AsyncExitStack
from datetime import timedelta
from itertools import count
from types import TracebackType
from typing import TYPE_CHECKING, Any, Final

from async_task_manager.config import FlowConfig, ProviderConfig, build_chain
from async_task_manager.config.outcomes import RetriesStrategy
from async_task_manager.events import Event, Finished, Rejected, Retried, Started
from async_task_manager.manager import TaskManager
from async_task_manager.runner.client import Answer, Client
from async_task_manager.runner.requests import Request
from async_task_manager.strategies import Provider, ProviderRouterStrategy
from async_task_manager.task import Task, current_task

if TYPE_CHECKING:
    from typing import Self

__all__ = ["PRETEND", "Desk"]

PRETEND: Final = "http://pretend.invalid"
"""The address of a provider that there is not (RFC 6761): its answers take a while, and say
nothing.
"""
SHORTEST, LONGEST = 0.2, 1.0
"""Seconds that a pretended answer takes."""


class Desk:
    """Providers, a manager, and requests: GET of a provider's address.

    Args:
        config: The providers to begin with; there may be none.
        tell: Gets a line for whatever happens.
    """

    def __init__(self, config: FlowConfig, tell: Callable[[str], object] = print) -> None:
        self._config = config
        self._configs = {provider.name: provider for provider in config.providers}
        self._tell = tell
        chain = build_chain(config)
        self.router = next(s for s in chain.stages if isinstance(s, ProviderRouterStrategy))
        found = (s for s in chain.stages if isinstance(s, RetriesStrategy))
        self._retries = next(found, None)  # none, where a stage of the file retries for all
        self.manager = TaskManager(chain, stamp="said")
        self.running = False
        """Whether anything is started."""
        self._clients: dict[str, Client] = {}
        self._stack = AsyncExitStack()
        self._numbers = count(1)
        self._dice = random.Random()

    @property
    def config(self) -> FlowConfig:
        """The providers as they are now."""
        return self._config.model_copy(update={"providers": tuple(self._configs.values())})

    async def __aenter__(self) -> Self:
        for provider in self._configs.values():
            await self._connect(provider)
        self.manager.subscribe(self._observe)
        await self.start()
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self.manager.close(grace=0)
        await self._stack.aclose()

    async def start(self) -> None:
        """Requests are sent again."""
        await self.manager.idle()
        self.running = True

    async def stop(self) -> None:
        """Nothing more is sent; what runs is waited for, and the queue stays."""
        self.running = False
        await self.manager.stop()

    async def add_provider(self, provider: ProviderConfig) -> None:
        """One more, after all others."""
        await self._connect(provider)
        self._configs[provider.name] = provider
        self.router.add(Provider(provider.name, limits=provider.strategies()))
        retry = provider.retries()
        if self._retries is not None and retry is not None:
            self._retries.add(provider.name, retry)

    def switch(self, name: str, enabled: bool) -> None:
        """Enables a provider, or disables it."""
        provider = self.router[name]
        (provider.enable if enabled else provider.disable)()
        changed = self._configs[name].model_copy(update={"enabled": enabled})
        self._configs[name] = changed

    def add(self, provider: str | None, priority: str, delay: float) -> Task[Any]:
        """One more request: to this provider, or to whichever has room; not before the delay."""
        units = {unit for each in self._configs.values() for unit in each.units}
        metadata: dict[str, Any] = {"priority": priority, "cost": dict.fromkeys(units, 1)}
        if provider is not None:
            metadata["provider"] = provider
        if delay:
            metadata["valid_after"] = timedelta(seconds=delay)
        name = f"request-{next(self._numbers)}"
        return self.manager.add_task(self._send, metadata, name=name)

    def counts(self) -> str:
        """What became of the requests so far."""
        stats = self.manager.stats()
        return (
            f"{stats.succeeded} succeeded, {stats.failed} failed, "
            f"{stats.running} running, {stats.queued} queued"
        )

    def overview(self) -> list[str]:
        """The queue and the limits, a line each."""
        status = self.manager.get_status()
        levels = ", ".join(f"{n} {level}" for level, n in status.queued.by_priority.items())
        lines = [self.counts() + (f" ({levels})" if levels else "")]
        for provider in self.router:
            lines.append(f"{provider.name}{'' if provider.enabled else ' (disabled)'}")
            lines += [
                f"  {limit.used:g} of {limit.capacity:g}: {limit.limit}"
                for limit in status.limits
                if limit.provider == provider.name
            ]
        if not self.running:
            lines.append("stopped: nothing is sent")
        elif status.queued.total:
            lines.append(str(self.manager.explain()))
        return lines

    # ---- a request --------------------------------------------------------------------------

    async def _connect(self, provider: ProviderConfig) -> None:
        if provider.base_url != PRETEND:
            client = await self._stack.enter_async_context(Client([provider]))
            self._clients[provider.name] = client

    async def _send(self) -> Answer | None:
        task = current_task()
        assert task is not None and task.provider is not None
        client = self._clients.get(task.provider)
        if client is None:
            task.stamp()
            await asyncio.sleep(self._dice.uniform(SHORTEST, LONGEST))
            return None
        request = Request(task.name, "GET", "", False, {}, None, {})
        return await client.send(request, task.provider, task.stamp)

    def _observe(self, event: Event) -> None:
        match event:
            case Started(task=task, attempt=attempt):
                again = f", attempt {attempt}" if attempt > 1 else ""
                self._line(f"{task.name} started on {task.provider}{again}")
            case Retried(task=task, error=error):
                self._line(f"{task.name} failed and is tried again: {error}")
            case Finished(task=task, state="failed", error=error):
                self._line(f"{task.name} failed: {error}")
            case Finished(task=task, state=state):
                self._line(f"{task.name} {state}")
            case Rejected(task=task, error=error):
                self._line(f"{task.name} was rejected: {error}")

    def _line(self, words: str) -> None:
        self._tell(f"{time.strftime('%H:%M:%S')} {words}")
