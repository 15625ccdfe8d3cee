"""What a simulation came to: counts, waits by class, the use of each limit, fairness."""

from __future__ import annotations

import json
from array import array
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from math import nan
from pathlib import Path
from typing import TYPE_CHECKING, Any

from async_task_manager.errors import InvalidValue
from async_task_manager.simulation.words import span

if TYPE_CHECKING:
    from async_task_manager.simulation._run import _Simulation
    from async_task_manager.simulation._series import Series

__all__ = ["Attempts", "LimitUse", "Report", "Waits", "compare", "jain"]


class Attempts:
    """Every attempt, in order of its start: columns of numbers, since there may be millions."""

    __slots__ = ("end", "start", "task")

    def __init__(self) -> None:
        self.task = array("l")
        """Which task, by its number in the workload."""
        self.start = array("d")
        self.end = array("d")
        """NaN: it still ran when the simulation ended."""


@dataclass(frozen=True, slots=True)
class Waits:
    """How long the tasks of a class waited, from their arrival to their first start; seconds."""

    tasks: int
    mean: float
    p50: float
    p95: float
    p99: float
    max: float

    @classmethod
    def of(cls, waits: Iterable[float]) -> Waits:
        """The quantiles are waits that occurred: so many waited no longer."""
        ordered = sorted(waits)
        n = len(ordered)
        if not n:
            return cls(0, nan, nan, nan, nan, nan)
        p50, p95, p99 = (ordered[min(n - 1, -(-n * q // 100) - 1)] for q in (50, 95, 99))
        return cls(n, sum(ordered) / n, p50, p95, p99, ordered[-1])


@dataclass(frozen=True, slots=True)
class LimitUse:
    """How much of a limit was in use: shares, of which 1 is all of it."""

    limit: str
    """What it allows, in words."""
    provider: str | None
    mean: float
    """Over the time of the simulation; of a limit with keys, that of the fullest key."""
    peak: float


@dataclass(frozen=True, slots=True)
class Report:
    """What a simulation came to. ``str()`` is a table."""

    tasks: int
    """How many arrived."""
    succeeded: int
    failed: int
    rejected: int
    expired: int
    unfinished: int
    """What waited or ran when it ended."""
    attempts: int
    makespan: float
    """Seconds from the first arrival to the last end."""
    throughput: float
    """Ends per second of that."""
    waits: Waits
    classes: Mapping[str, Waits]
    """By class, if there are several."""
    providers: Mapping[str, int]
    """Attempts by provider."""
    limits: tuple[LimitUse, ...]
    jain: float | None
    """Jain's index of fairness, 1/users (one gets all) to 1 (all are served alike), over the share
    of its time in the system that each user's tasks spent running. None: fewer than two users."""
    refusals: Mapping[str, int]
    """Rejected and expired, by the name of the error."""
    start: float
    """Epoch seconds at which it began."""
    start_order: Sequence[Any] = field(repr=False)
    """The ids of the tasks, in the order of their first starts."""
    timeline: tuple[Attempts, Sequence[str], Sequence[int], Sequence[str], Sequence[int]] = field(
        repr=False, compare=False
    )
    """Every attempt; the names of the providers, and each attempt's; those of the classes, and
    each task's."""
    series: Series = field(repr=False, compare=False)
    """The queue, what runs and the use of each limit over time."""

    @classmethod
    def of(cls, run: _Simulation) -> Report:
        """What a simulation wrote down."""
        attempts = run.attempts
        first = array("d", [nan]) * len(run.arrived)
        last = array("d", [nan]) * len(run.arrived)
        busy = array("d", [0.0]) * len(run.arrived)
        order = []
        for place, start, end in zip(attempts.task, attempts.start, attempts.end, strict=True):
            if first[place] != first[place]:
                first[place] = start
                order.append(run.ids[place])
            if end == end:
                last[place] = end
                busy[place] += end - start
        waits = [begun - came for begun, came in zip(first, run.arrived, strict=True)]
        ends = run.ends
        over = [end for end in last if end == end]
        makespan = max(over) - run.arrived[0] if over else 0.0
        done = ends["succeeded"] + ends["failed"]
        names = [_text(name) for name in run.classes.names()]
        split = _split(waits, run.classes.numbers, names) if len(names) > 1 else {}
        providers = [_text(name) for name in run.providers.names()]
        counted = [run.providers.numbers.count(i) for i in range(len(providers))]
        series = run.series
        return cls(
            tasks=len(run.arrived),
            succeeded=ends["succeeded"],
            failed=ends["failed"],
            rejected=ends["rejected"],
            expired=ends["expired"],
            unfinished=len(run.arrived) - ends.total(),
            attempts=len(attempts.start),
            makespan=makespan,
            throughput=done / makespan if makespan else 0.0,
            waits=Waits.of(wait for wait in waits if wait == wait),
            classes=split,
            providers=dict(zip(providers, counted, strict=True)),
            limits=tuple(
                LimitUse(t.limit.describe(), t.provider, series.mean(t.use), t.peak)
                for t in series.limits
            ),
            jain=_fairness(run.users.numbers, len(run.users.known), run.arrived, last, busy),
            refusals=dict(run.refusals),
            start=run.began,
            start_order=order,
            timeline=(attempts, providers, run.providers.numbers, names, run.classes.numbers),
            series=series,
        )

    # ---- in other forms ---------------------------------------------------------------------

    def rows(self, *, short: bool = False) -> list[tuple[str, str]]:
        """The figures, each with its name: the lines of the table; ``short``, to be compared."""
        found = [
            ("takes", span(self.makespan)),
            ("throughput", f"{self.throughput:,.4g}/s"),
            ("succeeded", f"{self.succeeded:,}"),
        ]
        unlucky = ("failed", "rejected", "expired", "unfinished")
        found += [(name, f"{count:,}") for name in unlucky if (count := getattr(self, name))]
        if self.attempts > self.waits.tasks:
            found.append(("attempts", f"{self.attempts:,}"))
        for name, waits in {"": self.waits, **self.classes}.items():
            if short:
                label = f"wait of {name}, " if name else "wait, "
                found += [(f"{label}{q}", span(getattr(waits, q))) for q in ("p50", "p95", "p99")]
                continue
            quantiles = " / ".join(span(value) for value in (waits.p50, waits.p95, waits.p99))
            label = f"  {name} ({waits.tasks:,})" if name else "wait p50 / p95 / p99"
            found.append((label, quantiles))
        if self.jain is not None:
            found.append(("fairness (Jain)", f"{self.jain:.3f}"))
        if len(self.providers) > 1:
            found += [(f"sent to {name}", f"{count:,}") for name, count in self.providers.items()]
        for use in self.limits:
            if not use.peak:
                continue  # a breaker that stayed closed, a limit that nobody came to
            where = "" if use.provider is None else f"{use.provider}: "
            share = "used" if short else f"used, at most {use.peak:.0%}"
            found.append((f"{where}{use.limit}", f"{use.mean:.0%} {share}"))
        return found

    def __str__(self) -> str:
        rows = [(f"{self.tasks:,} tasks", ""), *self.rows()]
        width = max(len(name) for name, _ in rows)
        return "\n".join(f"{name:{width}}  {value}".rstrip() for name, value in rows)

    def to_json(self) -> dict[str, Any]:
        """The figures and the series as JSON-able data, without the single attempts."""
        return {
            **{
                name: getattr(self, name)
                for name in (
                    "tasks",
                    "succeeded",
                    "failed",
                    "rejected",
                    "expired",
                    "unfinished",
                    "attempts",
                    "makespan",
                    "throughput",
                )
            },
            "start": datetime.fromtimestamp(self.start, UTC).isoformat(timespec="seconds"),
            "waits": _waits(self.waits),
            "classes": {name: _waits(waits) for name, waits in self.classes.items()},
            "providers": dict(self.providers),
            "limits": [
                {"limit": u.limit, "provider": u.provider, "mean": u.mean, "peak": u.peak}
                for u in self.limits
            ],
            "jain": self.jain,
            "refusals": dict(self.refusals),
            "series": {
                "seconds": self.series.times,
                "queued": self.series.queued,
                "running": self.series.running,
                "limits": {tracked.label: tracked.use for tracked in self.series.limits},
            },
        }

    def svg(self, *, title: str | None = None) -> str:
        """A picture: what ran where, the queue, the use of each limit, over time."""
        from async_task_manager.simulation._svg import drawing

        return drawing(self, title)

    def save(self, path: str | Path, *, title: str | None = None) -> None:
        """Writes a picture (``.svg``; ``.png`` with the extra ``plot``) or the data (``.json``).

        Raises:
            InvalidValue: the name ends otherwise.
            MissingExtra: a PNG, and matplotlib isn't there.
        """
        path = Path(path)
        if path.suffix == ".svg":
            path.write_text(self.svg(title=title), encoding="utf-8")
        elif path.suffix == ".json":
            path.write_text(json.dumps(self.to_json(), indent=1) + "\n", encoding="utf-8")
        elif path.suffix == ".png":
            from async_task_manager.simulation.plot import save_png

            save_png(self, path, title)
        else:
            raise InvalidValue(f"a report is saved as .svg, .png or .json, not {path.name!r}")


def compare(before: Report, after: Report, names: tuple[str, str] = ("before", "after")) -> str:
    """Two reports side by side."""
    left, right = dict(before.rows(short=True)), dict(after.rows(short=True))
    labels = [*left, *(label for label in right if label not in left)]
    rows = [
        ("", *names),
        *((label, left.get(label, "-"), right.get(label, "-")) for label in labels),
    ]
    widths = [max(len(row[i]) for row in rows) for i in range(3)]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        for row in rows
    )


def jain(values: Sequence[float]) -> float:
    """Jain's index of fairness of what each got (Jain, Chiu, Hawe 1984): 1 where all got the same,
    1/n where one got all.
    """
    squares = sum(value * value for value in values)
    return 1.0 if not squares else sum(values) ** 2 / (len(values) * squares)


def _fairness(
    users: Sequence[int],
    count: int,
    arrived: Sequence[float],
    last: Sequence[float],
    busy: Sequence[float],
) -> float | None:
    if count < 2:
        return None
    spent, served = [0.0] * count, [0.0] * count
    for user, came, end, ran in zip(users, arrived, last, busy, strict=True):
        if end == end:
            spent[user] += end - came
            served[user] += ran
    # A user who never had to be there was served at once.
    return jain([s / t if t else 1.0 for s, t in zip(served, spent, strict=True)])


def _split(waits: list[float], numbers: Sequence[int], names: list[str]) -> dict[str, Waits]:
    found: list[list[float]] = [[] for _ in names]
    for number, wait in zip(numbers, waits, strict=True):
        if wait == wait:
            found[number].append(wait)
    return {name: Waits.of(each) for name, each in sorted(zip(names, found, strict=True))}


def _waits(waits: Waits) -> dict[str, float | int | None]:
    names = ("tasks", "mean", "p50", "p95", "p99", "max")
    values = [getattr(waits, name) for name in names]
    return {n: None if v != v else v for n, v in zip(names, values, strict=True)}


def _text(name: Any) -> str:
    return "none" if name is None else str(name)
