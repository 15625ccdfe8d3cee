"""How an adaptive limit learns: tiny algorithms, fed with one sample for each round.

A round is as many outcomes as the limit, of work that began under that limit; a failure ends it at
once. An algorithm sees no task, no clock and no queue: from the limit and a sample it gives the
next limit.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from inspect import signature
from math import ceil, log10, sqrt
from typing import Any, ClassVar

from async_task_manager._validate import number, optional, whole
from async_task_manager.errors import InvalidValue

__all__ = ["Aimd", "Gradient", "LimitAlgorithm", "Probing", "Sample", "Vegas"]


SOON = 10
"""Rounds until a probe that is urgent."""


@dataclass(frozen=True, slots=True)
class Sample:
    """What one round showed."""

    rtt: float
    """Seconds from the first instruction to the end, the mean of what succeeded; 0: nothing did."""
    in_flight: int
    """The most that ran at once."""
    dropped: bool = False
    """Something failed: the other side, or the way there, had enough."""


class LimitAlgorithm(ABC):
    """Gives the next limit from the present one and a sample. Each key has a copy of its own."""

    learned: ClassVar[tuple[str, ...]] = ()
    """Names of the attributes that `dump` keeps: numbers or None."""

    @abstractmethod
    def update(self, limit: float, sample: Sample) -> float:
        """The next limit. The strategy keeps it between its ``min_limit`` and ``max_limit``."""

    def dump(self) -> Any:
        """What it has learned, as JSON-able data."""
        return {name: getattr(self, name) for name in self.learned}

    def load(self, state: Any) -> None:
        """Takes back what `dump` gave."""
        for name in self.learned:
            setattr(self, name, state[name])

    def __repr__(self) -> str:
        given = [
            f"{name}={getattr(self, name, None)!r}"
            for name, parameter in signature(type(self)).parameters.items()
            if getattr(self, name, parameter.default) != parameter.default
        ]
        return f"{type(self).__name__}({', '.join(given)})"


class Aimd(LimitAlgorithm):
    """Additive increase, multiplicative decrease: for a side that refuses what is too much.

    One more for each round in which at least half of the limit was used; ``backoff`` times the
    limit after a failure, or after a round that took longer than ``timeout`` on average.

    Args:
        backoff: What is left of the limit after a failure; at least 0.5, below 1.
        timeout: Seconds above 0 that count as a failure; None: only failures do.

    Source: Chiu and Jain, "Analysis of the Increase and Decrease Algorithms for Congestion
    Avoidance in Computer Networks" (1989); Netflix concurrency-limits, ``AIMDLimit``.
    """

    def __init__(self, *, backoff: float = 0.9, timeout: float | None = None) -> None:
        self.backoff = _backoff(backoff)
        self.timeout = optional(number, "timeout", timeout, above=0)

    def update(self, limit: float, sample: Sample) -> float:
        """Limit * backoff, or limit + 1."""
        if sample.dropped or (self.timeout is not None and sample.rtt > self.timeout):
            return limit * self.backoff
        return limit + 1 if 2 * sample.in_flight >= limit else limit


class Probing(LimitAlgorithm):
    """Compares the time that work takes with a baseline, the time that it takes without a queue.

    A baseline can't be had from work that queues, and an old one misleads: too low, it chokes the
    limit, too high, it lets it drift away. So now and then one round is run with the square root of
    the limit, which drains the queue, and what that round takes is the baseline from then on. BBR
    and Envoy's adaptive concurrency filter do likewise. The first probe comes soon, since nobody
    knows under which load the first baseline was measured, and so does the next one after a probe
    that found the baseline to be far too high.
    """

    learned = ("baseline", "rounds")

    def __init__(self, *, probe_every: int = 100) -> None:
        self.probe_every = whole("probe_every", probe_every, at_least=2)
        self.baseline = 0.0
        """Seconds; 0: not known yet."""
        self.rounds = self._soon
        """Since the last probe."""
        self.resume: float | None = None
        """The limit to go on with after the probe that is under way."""

    def update(self, limit: float, sample: Sample) -> float:
        """The next limit, or a small one for the round of a probe."""
        if self.resume is not None:
            limit, self.resume = self.resume, None
            if not sample.dropped:
                self.rounds = self._soon if 2 * sample.rtt < self.baseline else 0
                self.baseline = sample.rtt
            return limit
        self.rounds += 1
        following = self.follow(limit, sample)
        if self.rounds >= self.probe_every and 2 * sample.in_flight >= limit:
            self.rounds, self.resume = 0, following
            return sqrt(limit)
        return following

    @property
    def _soon(self) -> int:
        """As many rounds as let the next probe come soon."""
        return max(0, self.probe_every - SOON)

    @abstractmethod
    def follow(self, limit: float, sample: Sample) -> float:
        """The next limit from an ordinary round."""


class Gradient(Probing):
    """Follows the gradient of the time that work takes: for most servers, the default.

    As long as a round takes no longer than ``tolerance`` times the baseline, the limit grows by
    ``smoothing * queue``; as it takes longer, the limit shrinks in proportion, by half of
    ``smoothing`` at most. It comes to rest a little above ``tolerance`` times what the server does
    without a queue.

    Args:
        tolerance: How much longer than the baseline is still no sign of a queue; at least 1.
        queue: How many may queue at the server; above 0.
        smoothing: How much of a change is made in a round; above 0, at most 1.
        long_window: Rounds over which the baseline follows what is measured; at least 1.
        backoff: What is left of the limit after a failure; at least 0.5, below 1.
        probe_every: Rounds from one probe to the next; at least 2.

    Source: Netflix concurrency-limits, ``Gradient2Limit``; the reaction to failures is that of its
    ``AIMDLimit``, and the probes are those of `Probing`.
    """

    def __init__(
        self,
        *,
        tolerance: float = 1.5,
        queue: float = 4,
        smoothing: float = 0.2,
        long_window: int = 600,
        backoff: float = 0.9,
        probe_every: int = 100,
    ) -> None:
        super().__init__(probe_every=probe_every)
        self.tolerance = number("tolerance", tolerance, at_least=1)
        self.queue = number("queue", queue, above=0)
        self.smoothing = number("smoothing", smoothing, above=0, at_most=1)
        self.long_window = whole("long_window", long_window, at_least=1)
        self.backoff = _backoff(backoff)

    def follow(self, limit: float, sample: Sample) -> float:
        """Limit * gradient + queue, smoothed; the gradient is tolerance * baseline / rtt."""
        if sample.dropped:
            return limit * self.backoff
        short = sample.rtt
        if not self.baseline:
            self.baseline = short
        # An exponential average whose weights sum to those of a window of that length.
        self.baseline += (short - self.baseline) * 2 / (self.long_window + 1)
        if self.baseline > 2 * short:
            self.baseline *= 0.95  # back to normal after a long time of load: don't wait for it
        if 2 * sample.in_flight < limit:
            return limit
        gradient = self.tolerance * self.baseline / short if short else 1.0
        wanted = limit * max(0.5, min(1.0, gradient)) + self.queue
        return limit + (wanted - limit) * self.smoothing


class Vegas(Probing):
    """Keeps the queue at the server between two bounds: close to its capacity, with a short queue.

    The queue is ``limit * (1 - baseline / rtt)``, and the bounds are 3 and 6 times the logarithm of
    the limit. Without a queue the limit grows quickly, below the lower bound slowly, and above the
    upper one, or after a failure, it shrinks.

    Args:
        probe_every: Rounds from one probe to the next; at least 2.

    Source: Brakmo, O'Malley and Peterson, "TCP Vegas" (1994); Netflix concurrency-limits,
    ``VegasLimit``, with the probes of `Probing` in place of its own, which take the time of a
    queue for the baseline.
    """

    def follow(self, limit: float, sample: Sample) -> float:
        """Limit + 6 * step, limit + step, limit, or limit - step; a step is log10(limit)."""
        step = max(1, int(log10(max(limit, 1))))
        if sample.dropped:
            return limit - step
        if not self.baseline or sample.rtt < self.baseline:
            self.baseline = sample.rtt
        if 2 * sample.in_flight < limit:
            return limit
        queue = ceil(limit * (1 - self.baseline / sample.rtt)) if sample.rtt else 0
        if queue <= step:
            return limit + 6 * step
        if queue < 3 * step:
            return limit + step
        return limit - step if queue > 6 * step else limit


def _backoff(value: float) -> float:
    if not 0.5 <= number("backoff", value) < 1:
        raise InvalidValue(f"backoff must be at least 0.5 and below 1, not {value!r}")
    return value
