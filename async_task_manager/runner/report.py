"""What a run came to: counts, waits and the use of each limit, per provider."""

from __future__ import annotations

import time
from collections import Counter, deque
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import islice
from math import ceil, log
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from rich.table import Table

    from async_task_manager.config import FlowConfig
    from async_task_manager.strategies import Limit, ProviderRouterStrategy, Usage

__all__ = ["Distribution", "LimitUse", "ProviderSummary", "Summary"]


MOST_KEYS: Final = 100
"""Keys of a limit that are looked at."""
PACE_SAMPLES: Final = 60


class Distribution:
    """Quantiles of any number of values in a few kilobytes, each within 1 % of the true one.

    Values are counted in buckets whose bounds grow by a constant factor (DDSketch: Masson, Rim
    and Lee, VLDB 2019); those up to a microsecond count as 0.
    """

    ERROR: Final = 0.01
    _FACTOR: Final = (1 + ERROR) / (1 - ERROR)
    _LEAST: Final = 1e-6

    __slots__ = ("_buckets", "_count")

    def __init__(self) -> None:
        self._buckets: Counter[int] = Counter()
        self._count = 0

    def add(self, value: float) -> None:
        """Counts a value, in seconds, at least 0."""
        self._count += 1
        self._buckets[ceil(log(max(value, self._LEAST) / self._LEAST, self._FACTOR))] += 1

    def counts(self) -> Iterator[tuple[float, int]]:
        """Values, and how many there were that are this one within 1 %."""
        for bucket, count in sorted(self._buckets.items()):
            yield self._value(bucket), count

    def quantile(self, share: float) -> float | None:
        """The smallest value that this share (0 to 1) doesn't exceed; None of nothing."""
        left = max(1, ceil(share * self._count))
        for bucket, count in sorted(self._buckets.items()):
            left -= count
            if left <= 0:
                return self._value(bucket)
        return None

    def _value(self, bucket: int) -> float:
        if bucket == 0:
            return 0.0
        return float(self._LEAST * 2 * self._FACTOR**bucket / (self._FACTOR + 1))


@dataclass(slots=True)
class LimitUse:
    """One limit of a provider, and the most of it that was in use at once."""

    label: str
    """As in the config."""
    limit: Limit
    peak: float = 0.0
    """As a share of the limit: 1 is all of it."""

    def note(self, now: float) -> None:
        """Looks how much is in use right now."""
        usage = self.now(now)
        self.peak = max(self.peak, usage.used / usage.capacity)

    def now(self, now: float) -> Usage:
        """What is in use at this instant; of a limit with keys, of the fullest."""
        if self.limit.key is None:
            return self.limit.usage(None, now)
        found = [self.limit.usage(key, now) for key in islice(self.limit.keys(), MOST_KEYS)]
        return max(
            found,
            key=lambda usage: usage.used / usage.capacity,
            default=self.limit.usage(None, now),
        )


@dataclass(slots=True)
class ProviderSummary:
    """One provider's part of a run."""

    limits: tuple[LimitUse, ...]
    guards: tuple[Limit, ...] = ()
    """What stops all of it now and then: a breaker, a cooldown."""
    sent: int = 0
    running: int = 0
    succeeded: int = 0
    failed: int = 0
    """Requests that ended here without success."""
    errors: int = 0
    """Attempts without success, whether or not another followed."""
    too_many: int = 0
    """Answers 429: the provider says that a limit was overshot."""
    waits: Distribution = field(default_factory=Distribution)
    durations: Distribution = field(default_factory=Distribution)

    def stopped(self, now: float) -> str | None:
        """Why nothing goes there now, and for how long; None: it does."""
        for guard in self.guards:
            usage = guard.usage(None, now)
            if usage.used >= usage.capacity:
                why = "left alone, it failed" if hasattr(guard, "failure_rate") else "asked to wait"
                rest = usage.frees_at
                return why if rest is None else f"{why}: {max(0.0, rest - now):.0f} s"
        return None


class Summary:
    """The whole run, brought up to date by each start and each result."""

    def __init__(self, config: FlowConfig, router: ProviderRouterStrategy) -> None:
        self.providers = {
            provider.name: ProviderSummary(
                tuple(map(LimitUse, provider.labels, router[provider.name].limits)),
                router[provider.name].limits[len(provider.labels) :],
            )
            for provider in config.providers
        }
        self.statuses: Counter[str] = Counter()
        """Results by their status."""
        self.unsent = 0
        """Requests that were read and not sent, since the run was interrupted."""
        self.skipped = 0
        """Requests that an earlier run has finished."""
        self.failed_before = 0
        """Those of them that it had no success with."""
        self.seconds = 0.0
        self._began = time.monotonic()
        self._pace: deque[tuple[float, int]] = deque(maxlen=PACE_SAMPLES)

    def begin(self) -> None:
        """The run starts."""
        self._began = time.monotonic()

    def began(self, name: str) -> None:
        """An attempt begins."""
        self.providers[name].running += 1

    def left(self, name: str, now: float) -> None:
        """A request is being sent. Use is at its peak at such instants."""
        provider = self.providers[name]
        provider.sent += 1
        for use in provider.limits:
            use.note(now)

    def answered(self, name: str, seconds: float, status: int | None, ok: bool) -> None:
        """An attempt is over."""
        provider = self.providers[name]
        provider.running -= 1
        provider.durations.add(seconds)
        provider.errors += not ok
        provider.too_many += status == 429

    def record(self, result: dict[str, Any]) -> None:
        """Counts one result line."""
        self.statuses[result["status"]] += 1
        provider = self.providers.get(result.get("provider") or "")
        if provider is None:
            return  # it was never sent
        provider.waits.add(result["waited"])
        if result["status"] == "succeeded":
            provider.succeeded += 1
        else:
            provider.failed += 1

    def pace(self) -> float:
        """Results per second of the last minute; to be asked for about once a second."""
        now = time.monotonic()
        if not self._pace or now - self._pace[-1][0] >= 1:
            self._pace.append((now, self.done))
        since, count = self._pace[0]
        if now - since < 2:
            since, count = self._began, 0
        return (self.done - count) / max(now - since, 1e-9)

    def finish(self) -> None:
        """The run is over."""
        self.seconds = time.monotonic() - self._began

    @property
    def done(self) -> int:
        """Lines that have a result."""
        return self.statuses.total()

    @property
    def too_many(self) -> int:
        """Answers 429 of all providers."""
        return sum(provider.too_many for provider in self.providers.values())

    @property
    def all_succeeded(self) -> bool:
        """Whether every line of the input became a 2xx, in this run or before."""
        return (
            self.done == self.statuses["succeeded"] and not self.unsent and not self.failed_before
        )

    def tables(self) -> Iterator[Table]:
        """For a terminal: a row per provider, and a row per limit."""
        from rich.table import Table

        counts = ", ".join(f"{count} {status}" for status, count in self.statuses.most_common())
        title = f"{self.done} requests in {self.seconds:.1f} s" + (counts and f": {counts}")
        if self.skipped:
            title += f"; {self.skipped} were finished before"
        if self.failed_before:
            title += f", {self.failed_before} of them without success: --retry-failed"
        table = Table(title=title, title_justify="left")
        table.add_column("provider", overflow="fold")
        headings = ("sent", "ok", "failed", "retried", "429s", "wait p50/p95", "took p50/p95")
        for heading in headings:
            table.add_column(heading, justify="right")
        for name, part in self.providers.items():
            retried = max(0, part.errors - part.failed)
            cells = map(str, (part.sent, part.succeeded, part.failed, retried, part.too_many))
            table.add_row(name, *cells, _pair(part.waits), _pair(part.durations))
        yield table

        table = Table()
        table.add_column("provider", overflow="fold")
        table.add_column("limit", overflow="fold")
        table.add_column("most in use", justify="right")
        for name, part in self.providers.items():
            for use in part.limits:
                table.add_row(name, use.label, f"{use.peak:.0%}")
        yield table


def _pair(values: Distribution) -> str:
    low, high = values.quantile(0.5), values.quantile(0.95)
    return "-" if low is None or high is None else f"{low:.2f}/{high:.2f}"
