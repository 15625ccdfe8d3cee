"""What a run came to: counts, waits and the use of each limit, per provider."""

from __future__ import annotations

import time
from array import array
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rich.table import Table

    from async_task_manager.config import FlowConfig
    from async_task_manager.strategies import Usage

__all__ = ["ProviderSummary", "Summary"]


def _doubles() -> array[float]:
    return array("d")


@dataclass(slots=True)
class ProviderSummary:
    """One provider's part of a run."""

    limits: tuple[str, ...]
    """As in the config, the number of slots last."""
    succeeded: int = 0
    failed: int = 0
    too_many: int = 0
    """Answers 429: the provider says that a limit was overshot."""
    waits: array[float] = field(default_factory=_doubles)
    durations: array[float] = field(default_factory=_doubles)
    peaks: list[float] = field(default_factory=list)
    """The most of each limit that was in use at once, as a share of it."""

    @property
    def sent(self) -> int:
        """Requests that went out."""
        return self.succeeded + self.failed


class Summary:
    """The whole run, brought up to date by each result."""

    def __init__(self, config: FlowConfig) -> None:
        self.providers = {
            provider.name: ProviderSummary(
                provider.limits
                + ((f"{provider.max_concurrent} at once",) if provider.max_concurrent else ())
            )
            for provider in config.providers
        }
        self.read = 0
        self.done = 0
        self.invalid = 0
        self.not_sent = 0
        """Ended before they were sent: rejected, expired or cancelled."""
        self.unsent = 0
        """Still queued when the run was interrupted."""
        self.seconds = 0.0
        self._began = time.monotonic()

    def observe(self, usage: dict[str, dict[str, Usage]]) -> None:
        """Notes how much of each limit is in use right now."""
        for name, limits in usage.items():
            provider = self.providers[name]
            shares = [float(limit.used / limit.capacity) for limit in limits.values()]
            if not provider.peaks:
                provider.peaks = shares
            else:
                provider.peaks = list(map(max, provider.peaks, shares))

    def record(self, result: dict[str, Any]) -> None:
        """Counts one result line."""
        self.done += 1
        if result["provider"] is None or result["waited"] is None:
            self.not_sent += 1
            return
        provider = self.providers[result["provider"]]
        provider.waits.append(result["waited"])
        provider.durations.append(result["duration"])
        if result["status"] == "succeeded":
            provider.succeeded += 1
        else:
            provider.failed += 1
        provider.too_many += result["http_status"] == 429

    def finish(self) -> None:
        """The run is over."""
        self.seconds = time.monotonic() - self._began

    @property
    def too_many(self) -> int:
        """Answers 429 of all providers."""
        return sum(provider.too_many for provider in self.providers.values())

    @property
    def all_succeeded(self) -> bool:
        """Whether every line of the input became a 2xx."""
        failed = sum(provider.failed for provider in self.providers.values())
        return not (failed or self.invalid or self.not_sent or self.unsent)

    def tables(self) -> Iterator[Table]:
        """For a terminal: a row per provider, and a row per limit."""
        from rich.table import Table

        table = Table(title=f"{self.done} requests in {self.seconds:.1f} s", title_justify="left")
        table.add_column("provider", overflow="fold")
        for heading in ("sent", "ok", "failed", "429s", "wait p50/p95 s", "took p50/p95 s"):
            table.add_column(heading, justify="right")
        for name, part in self.providers.items():
            counts = (part.sent, part.succeeded, part.failed, part.too_many)
            table.add_row(name, *map(str, counts), _pair(part.waits), _pair(part.durations))
        yield table

        table = Table(title="most of each limit in use at once", title_justify="left")
        table.add_column("provider", overflow="fold")
        table.add_column("limit", overflow="fold")
        table.add_column("used", justify="right")
        for name, part in self.providers.items():
            peaks = part.peaks or [0.0] * len(part.limits)
            for limit, share in zip(part.limits, peaks, strict=True):
                table.add_row(name, limit, f"{share:.0%}")
        if table.row_count:
            yield table


def quantile(values: array[float], share: float) -> float | None:
    """The smallest value that this share doesn't exceed (nearest rank); None of nothing."""
    if not values:
        return None
    ordered = sorted(values)
    return ordered[max(0, -int(-share * len(ordered) // 1) - 1)]


def _pair(values: array[float]) -> str:
    low, high = quantile(values, 0.5), quantile(values, 0.95)
    return "-" if low is None or high is None else f"{low:.2f} / {high:.2f}"
