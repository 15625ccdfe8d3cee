"""How messages get to the handler: in the loop, in threads, or many in one call."""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import Awaitable, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextvars import copy_context
from functools import partial
from typing import Any

from async_task_manager.errors import InvalidType
from async_task_manager.queues.base import Message
from async_task_manager.strategies import (
    BaseStrategy,
    BulkStrategy,
    Chain,
    ConcurrentLimitStrategy,
    Item,
)
from async_task_manager.worker._held import Held, HeldMessages

__all__ = ["Handling", "MessageHandler"]

MessageHandler = Callable[[Message], Any]


class Handling:
    """The handler, and what stands around it in the chain.

    Args:
        handler: A function of one message, or a `BulkStrategy`.
        max_threads: For a function that isn't async.
        held: The worker's messages.
        begin: Awaited with the messages that a handler gets now.
    """

    def __init__(
        self,
        handler: MessageHandler | BulkStrategy,
        max_threads: int,
        held: HeldMessages,
        begin: Callable[[list[Held]], Awaitable[None]],
    ) -> None:
        if not callable(handler) and not isinstance(handler, BulkStrategy):
            raise InvalidType(
                f"handler must be a function of one message, or a BulkStrategy, not {handler!r}"
            )
        self._bulk = handler if isinstance(handler, BulkStrategy) else None
        self._handler = handler
        self._held = held
        self._begin = begin
        self._threads: ThreadPoolExecutor | None = None
        self.in_thread = self._bulk is None and not is_async(handler)
        """It runs in a thread, and can't be cancelled there."""
        self.max_threads = max_threads
        self.busy = 0
        """Threads at work."""

    @property
    def at_once(self) -> int:
        """How many messages it wants at once: those of a batch."""
        return 1 if self._bulk is None else self._bulk.max_size

    def chain(self, strategy: BaseStrategy) -> BaseStrategy:
        """The strategy, with what the handler brings."""
        if self._bulk is not None:
            self._bulk.handler = partial(self._many, self._bulk.handler)
            return Chain(self._bulk, strategy)
        if self.in_thread:
            self._threads = ThreadPoolExecutor(self.max_threads, "handler")
            # What would wait for a thread waits in the chain: there it has its order.
            return Chain(strategy, ConcurrentLimitStrategy(self.max_threads))
        return strategy

    def work(self, held: Held) -> Callable[[], Awaitable[Any]]:
        """What the manager is to run for the message."""
        return partial(self._one, held) if self._bulk is None else Item(held.message)

    def close(self) -> None:
        """Lets go of the threads; what runs in one goes on."""
        if self._threads is not None:
            self._threads.shutdown(wait=False)

    async def _one(self, held: Held) -> None:
        await self._begin([held])
        if self._threads is not None:
            loop = asyncio.get_running_loop()
            context = copy_context()

            def call() -> Any:
                return context.run(self._call, held.message)

            result = await loop.run_in_executor(self._threads, call)
        else:
            result = self._handler(held.message)  # type: ignore[operator]  # no BulkStrategy here
        if inspect.isawaitable(result):
            await result

    def _call(self, message: Message) -> Any:
        self.busy += 1
        try:
            return self._handler(message)  # type: ignore[operator]  # nor here
        except StopIteration as error:  # no future takes one: it would never be done
            raise RuntimeError("the handler raised StopIteration") from error
        finally:
            self.busy -= 1

    async def _many(
        self, handler: Callable[[list[Message]], Awaitable[Sequence[Any]]], batch: list[Message]
    ) -> Sequence[Any]:
        found = [self._held.get(message.id) for message in batch]
        await self._begin([held for held in found if held is not None])
        return await handler(batch)


def is_async(handler: object) -> bool:
    """Whether a call of it gives something to be awaited."""
    inner = handler.func if isinstance(handler, partial) else handler
    return inspect.iscoroutinefunction(inner) or inspect.iscoroutinefunction(
        getattr(inner, "__call__", None)  # noqa: B004  # of an object with an async __call__
    )
