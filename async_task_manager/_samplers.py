"""What policies want to have measured, measured in the event loop of the manager."""

from __future__ import annotations

import asyncio
import inspect
import logging
import weakref
from collections.abc import Callable
from contextvars import Context
from typing import TYPE_CHECKING

from async_task_manager.errors import StrategyError
from async_task_manager.strategies.base import Role, Sampling

if TYPE_CHECKING:
    from async_task_manager.strategies.chain import Chain

__all__ = ["Samplers"]

logger = logging.getLogger("async_task_manager")


class Samplers:
    """One asyncio.Task for each policy that wants something measured now; idle, there is none."""

    def __init__(
        self, chain: Chain, clock: Callable[[], float], give_up: Callable[[StrategyError], None]
    ) -> None:
        self._chain = chain
        # Weak, or the manager would lead back to itself, and outlive its last user.
        self._clock = weakref.WeakMethod(clock)
        self._give_up = weakref.WeakMethod(give_up)
        self._tasks: dict[Role, asyncio.Task[None]] = {}

    def look(self, loop: asyncio.AbstractEventLoop, now: float) -> None:
        """Begins to measure what is wanted by now; what isn't any more ends by itself."""
        for policy in self._chain.sampled:
            if policy not in self._tasks and self._wanted(policy, now) is not None:
                # In a context of its own, not in that of the task whose start led here.
                task = Context().run(loop.create_task, self._follow(policy))
                self._tasks[policy] = task

    def stop(self) -> list[asyncio.Task[None]]:
        """Nothing is measured any more; gives what has been cancelled and is about to end."""
        ending = [task for task in self._tasks.values() if not task.get_loop().is_closed()]
        self._tasks.clear()
        for task in ending:
            task.cancel()
        return ending

    def forget(self) -> None:
        """The loop in which all this ran is gone."""
        self._tasks.clear()

    def _wanted(self, policy: Role, now: float) -> Sampling | None:
        try:
            return policy.sampling(now)
        except Exception as error:
            self._break(error, policy)
            return None

    def _break(self, error: Exception, policy: Role) -> None:
        give_up = self._give_up()
        assert give_up is not None  # it gave the time just now
        give_up(self._chain.blame(error, policy))

    def _now(self) -> float:
        clock = self._clock()
        if clock is None:
            raise asyncio.CancelledError  # whoever wanted to know is gone
        return clock()

    async def _follow(self, policy: Role) -> None:
        me = asyncio.current_task()
        told = False
        try:
            wanted = self._wanted(policy, self._now())
            while wanted is not None:
                await asyncio.sleep(wanted.interval)
                wanted = self._wanted(policy, self._now())
                if wanted is None:
                    return
                try:
                    sample = wanted.sample()
                    if inspect.isawaitable(sample):
                        sample = await sample
                except Exception as error:
                    if not told:
                        logger.warning("a sample for %r failed: %r", policy, error, exc_info=error)
                    told = True
                    continue
                try:
                    policy.observe(sample, self._now())
                except Exception as error:
                    self._break(error, policy)
                    return
        finally:
            if self._tasks.get(policy) is me:
                del self._tasks[policy]
