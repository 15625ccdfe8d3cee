"""Who wants to know that a task ended: waiters, in whatever loop, and done-callbacks."""

from __future__ import annotations

import asyncio
import inspect
import logging
from collections.abc import Awaitable, Callable
from contextvars import Context
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from async_task_manager.task import Task

__all__ = ["Watchers", "notify", "resolve"]

logger = logging.getLogger("async_task_manager")


class Watchers:
    """Who wants to know of the end: futures of waiters, and callbacks with their contexts."""

    __slots__ = ("callbacks", "waiters")

    def __init__(self) -> None:
        self.waiters: dict[asyncio.Future[None], None] = {}
        self.callbacks: list[tuple[Callable[[Any], Any], Context]] = []


def resolve(future: asyncio.Future[None]) -> None:
    """Wakes a waiter, in whatever loop it waits; one that is gone is passed over."""

    def wake() -> None:
        if not future.done():
            future.set_result(None)

    loop = future.get_loop()
    if loop.is_closed():
        return
    try:
        here = asyncio.get_running_loop()
    except RuntimeError:
        here = None
    if here is loop:
        wake()
    else:
        loop.call_soon_threadsafe(wake)


_callback_tasks: set[asyncio.Future[Any]] = set()
"""Async callbacks that run: the loop itself keeps weak references only."""


def notify(task: Task[Any], fn: Callable[[Any], Any], context: Context) -> None:
    """Calls a done-callback soon, in its adder's context; at once where no loop runs."""

    def call() -> None:
        try:
            answer = fn(task)
            if inspect.isawaitable(answer):
                future = asyncio.ensure_future(_guard(answer, task, fn))
                _callback_tasks.add(future)
                future.add_done_callback(_callback_tasks.discard)
        except Exception:
            logger.exception("a done-callback of %r raised: %r", task, fn)

    try:
        asyncio.get_running_loop().call_soon(call, context=context)
    except RuntimeError:
        context.run(call)


async def _guard(answer: Awaitable[Any], task: Task[Any], fn: object) -> None:
    try:
        await answer
    except Exception:
        logger.exception("a done-callback of %r raised: %r", task, fn)
