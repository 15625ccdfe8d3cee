"""What a simulation looked like over time: some hundred samples, however long it was."""

from __future__ import annotations

from itertools import islice, pairwise
from math import inf
from typing import TYPE_CHECKING, Any

from async_task_manager.strategies.base import Limit, Router

if TYPE_CHECKING:
    from async_task_manager.strategies.chain import Chain

__all__ = ["Series", "Tracked"]

MOST = 600
"""Samples kept: when there are more, every other one goes, and they are taken half as often."""

MOST_KEYS = 100
"""Keys of a limit that are looked at: the fullest of them is its use."""


class Tracked:
    """One limit, and the share of it that was in use at each sample."""

    __slots__ = ("label", "limit", "peak", "provider", "use")

    def __init__(self, limit: Limit, provider: str | None) -> None:
        self.limit = limit
        self.provider = provider
        words = limit.describe()
        self.label = words if provider is None else f"{provider}: {words}"
        self.use: list[float] = []
        self.peak = 0.0
        """The largest sample, also of those that are not kept."""

    def note(self, now: float) -> None:
        limit = self.limit
        keys = (None,) if limit.key is None else islice(limit.keys(), MOST_KEYS)
        fullest = 0.0
        for key in keys:
            usage = limit.usage(key, now)
            if 0 < usage.capacity < inf:
                fullest = max(fullest, usage.used / usage.capacity)
        self.use.append(fullest)
        self.peak = max(self.peak, fullest)


class Series:
    """Samples of the queue, of what runs and of each limit."""

    def __init__(self, chain: Chain) -> None:
        self.chain = chain
        self.step = 0.01
        self.next = 0.0
        """The instant from which on the next sample is due."""
        self.times: list[float] = []
        self.queued: list[int] = []
        self.running: list[int] = []
        self.limits = [
            Tracked(limit, provider)
            for stage in chain.stages
            for limit, provider in (
                [(limit, b.name) for b in stage.all_branches(None) for limit in b.limits]
                if isinstance(stage, Router)
                else [(stage, None)]
                if isinstance(stage, Limit)
                else []
            )
            if limit.usage(None, 0.0).capacity < inf  # an order may count without a bound
        ]

    def note_until(self, following: float) -> None:
        """Takes the samples that are due before something else happens: what is queued and runs
        stays, and windows empty.
        """
        while self.next < following < inf:
            self.note(self.next)

    def note(self, now: float) -> None:
        """Takes a sample."""
        self.times.append(now)
        self.queued.append(self.chain.queued)
        self.running.append(self.chain.running)
        for tracked in self.limits:
            tracked.note(now)
        if len(self.times) >= MOST:
            self.step = (now - self.times[0]) / (MOST / 2)
            columns: list[list[Any]] = [self.times, self.queued, self.running]
            for kept in (*columns, *(tracked.use for tracked in self.limits)):
                del kept[1::2]
        self.next = now + self.step

    def mean(self, values: list[float]) -> float:
        """The mean over time: a sample holds until the next."""
        span = self.times[-1] - self.times[0]
        if not span:
            return max(values)
        pieces = zip(pairwise(self.times), values, strict=False)
        return sum(value * (upto - since) for (since, upto), value in pieces) / span
