"""The clock of a manager: chain time, the wall's, and the one timer by which it sleeps."""

from __future__ import annotations

import asyncio
import time
from abc import ABC, abstractmethod
from asyncio import _get_running_loop
from collections.abc import Callable
from math import inf

from async_task_manager._samplers import Samplers
from async_task_manager.strategies.chain import Chain
from async_task_manager.task import wall_time

__all__ = ["WALL_CHECK", "Clockwork"]

WALL_CHECK = 1.0
"""Seconds between looks at the wall clock, while something waits for a wall time."""

WALL_TOLERANCE = 0.001
"""Seconds by which wall and loop time may drift apart before that counts as a step."""


class Clockwork(ABC):
    """Wakes whoever runs the chain when that may help, and not before."""

    _chain: Chain
    _samplers: Samplers

    def __init__(self, now: float) -> None:
        self.epoch = 0.0
        """Epoch seconds at chain time 0."""

        self._loop: asyncio.AbstractEventLoop | None = None
        self._read: Callable[[], float] = time.monotonic  # the loop's clock
        self._zero = 0.0  # its reading at chain time 0
        self._now = now
        self._offset = 0.0

        self._going = False  # between idle() or run() and stop()
        self._paused = False
        self._ending = False  # the loop is

        self._pumping = False
        self._timer: asyncio.TimerHandle | None = None
        self._timer_at = inf
        self._wall_timer: asyncio.TimerHandle | None = None

    @abstractmethod
    def _pump(self) -> None:
        """Starts what the chain gives."""

    def _clock(self) -> float:
        """Chain time: never goes back."""
        if self._loop is None:
            return self._now
        now = self._read() - self._zero
        if now > self._now:
            self._now = now
            return now
        return self._now

    time = _clock

    def _check_wall(self) -> None:
        """Looks whether the wall clock was stepped, or the machine suspended."""
        now = self._clock()
        offset = wall_time() - now
        if abs(offset - self._offset) > WALL_TOLERANCE:
            self._offset = offset
            self._chain.set_wall_offset(offset, now)
        self._wall_timer = None

    def look_at_wall(self) -> None:
        """While nothing goes by the wall clock, nobody looks at it: something does from now on."""
        if self._going and self._wall_timer is None and _get_running_loop() is self._loop:
            self._check_wall()

    def _watch_wall(self) -> None:
        self._check_wall()
        self.wake()

    def wake(self) -> None:
        """Has the chain asked in the next turn of the loop."""
        if not self._pumping and self._going and not self._ending:
            assert self._loop is not None
            if not self._loop.is_closed():
                self._pumping = True
                self._loop.call_soon(self._pump)

    def _look(self, now: float) -> None:
        """Something happened: has the chain asked again as early as that may help, not before."""
        chain = self._chain
        wake = chain.next_bound() if self._paused else chain.next_wake(now)
        if wake <= now or chain.out or (self._wall_timer is None and chain.watches_wall_time):
            self.wake()
        elif self._going and not self._ending:
            if wake < self._timer_at:
                self._arm(wake)
            if chain.sampled and not self._paused:
                assert self._loop is not None
                self._samplers.look(self._loop, now)

    def _arm(self, wake: float) -> None:
        """Sleeps until the instant that the chain named."""
        if wake == self._timer_at:
            return
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        self._timer_at = wake
        if wake < inf:
            assert self._loop is not None
            self._timer = self._loop.call_at(wake + self._zero, self._ring)

    def _ring(self) -> None:
        # The loop's clock may round to just before the instant; the instant has come all the same.
        self._now = max(self._now, self._timer_at)
        self._timer = None
        self._timer_at = inf
        self._pump()
