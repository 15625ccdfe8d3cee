"""What is done from time to time: old results are forgotten, the limits' state is copied."""

from __future__ import annotations

import asyncio
import logging
import time
from typing import TYPE_CHECKING

from async_task_manager.errors import StoreError
from async_task_manager.service.entry import clean
from async_task_manager.service.state import dump_state, pieces_of

if TYPE_CHECKING:
    from async_task_manager.service.core import Core

__all__ = ["Upkeep"]

logger = logging.getLogger("async_task_manager.service")

EVERY = 1.0
"""Seconds between looks at what has expired, and between copies of the limits' state, as long as
they are quick.
"""

LONGEST_STEP = 0.002
"""Seconds of work on a copy between two turns of the loop."""

COPY_SHARE = 50
"""A copy that takes a second is made every so many seconds."""


class Upkeep:
    """Runs in the background, from its making to `stop`."""

    def __init__(self, core: Core) -> None:
        self._core = core
        self._next_copy = 0.0
        self._copied = core.happenings  # an idle service writes nothing
        self._task = asyncio.create_task(self._run())

    def stop(self) -> None:
        """Ends it."""
        self._task.cancel()

    async def _run(self) -> None:
        while True:
            await asyncio.sleep(EVERY)
            self._core.store_again()
            try:
                await self._forget()
                if self._core.happenings != self._copied and time.monotonic() >= self._next_copy:
                    began = time.monotonic()
                    await self.keep_state()
                    took = time.monotonic() - began
                    self._next_copy = began + COPY_SHARE * took
            except StoreError as error:
                logger.error("the store could not be tidied: %s", clean(str(error)))

    async def _forget(self) -> None:
        """Ended tasks that are too old, or too many."""
        core = self._core
        settings = core.settings
        bounds = settings.max_results, settings.max_store_bytes
        before = core.wall() - settings.result_ttl
        while core.store.has_old(before, *bounds):
            await core.store.prune(before, *bounds)

    async def keep_state(self) -> None:
        """Copies the limits' state and the users' history into the store."""
        core = self._core
        self._copied = core.happenings
        state = dump_state(core.chain, core.manager.time(), core.wall())
        pieces = []
        began = time.monotonic()
        for piece in pieces_of(state):
            pieces.append(piece)
            if time.monotonic() - began > LONGEST_STEP:
                await asyncio.sleep(0)  # a long history must not hold everybody up
                began = time.monotonic()
        await core.store.keep("state", "".join(pieces))
