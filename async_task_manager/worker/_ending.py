"""An end that nobody cuts short."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any

__all__ = ["as_a_whole"]


async def as_a_whole(ending: Coroutine[Any, Any, None], hurry: Callable[[], None]) -> None:
    """Awaits it to its end; whoever cancels meanwhile hurries it, and is cancelled afterwards."""
    task = asyncio.create_task(ending)
    cancelled: asyncio.CancelledError | None = None
    while not task.done():
        try:
            await asyncio.wait([task])
        except asyncio.CancelledError as error:
            cancelled = error
            hurry()
    task.result()
    if cancelled is not None:
        raise cancelled
