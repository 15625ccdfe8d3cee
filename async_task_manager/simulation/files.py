"""Workloads from files: requests, traces, and what a run wrote down."""

from __future__ import annotations

import csv
import json
import random
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any, Final

from async_task_manager._validate import number, whole
from async_task_manager.errors import InvalidValue
from async_task_manager.simulation.workload import Distribution, Job, sampler

__all__ = ["Recording", "recorded", "requests", "trace"]

OWN: Final = ("id", "custom_id", "at", "duration", "failures", "actual")
"""What a line says of the job itself; the rest is metadata."""

CONTENT: Final = ("method", "path", "url", "headers", "json", "body")
"""What is sent, and read by nobody here."""

OVERHEAD, PER_CONTEXT, PER_GENERATED = 0.2, 0.0002, 0.02
"""Seconds: for a request, for a token that is read, for one that is written."""


def requests(
    path: str | Path,
    *,
    duration: Distribution = 1.0,
    cost: Callable[[dict[str, Any]], Any] | None = None,
    seed: int = 0,
) -> Iterator[Job]:
    """Jobs from a file of requests, a JSON object on each line: those of ``atm run``.

    A line may say ``at`` and ``duration`` in seconds (else 0, and what the argument says), and
    ``failures``; what is sent is passed over, and all other fields are metadata.

    Args:
        path: The file; where lines say ``at``, in that order.
        duration: Seconds that a request runs that doesn't say: a number or a distribution.
        cost: Estimates the cost of a line that has none.
        seed: Of the distribution.

    Raises:
        InvalidValue, InvalidType: a line is no such object; the message names file and line.
    """
    lasts = sampler("duration", duration, random.Random(seed))
    for where, data in _lines(Path(path)):
        at = number(f"{where}: at", data.get("at", 0.0), at_least=0)
        own = data.get("duration")
        seconds = lasts() if own is None else number(f"{where}: duration", own, at_least=0)
        metadata = {k: v for k, v in data.items() if k not in OWN and k not in CONTENT}
        if "valid_after" in metadata:
            metadata["valid_after"] = _instant(where, metadata["valid_after"])
        if cost is not None and metadata.get("cost") is None:
            metadata["cost"] = cost(data)
        failures = whole(f"{where}: failures", data.get("failures", 0), at_least=0)
        id = data.get("id", data.get("custom_id"))
        yield Job(at, seconds, metadata, id, failures, data.get("actual"))


def trace(
    path: str | Path,
    *,
    duration: Callable[[float, float], float] | None = None,
) -> Iterator[Job]:
    """Jobs from a CSV trace of LLM requests, with the columns of the Azure traces: TIMESTAMP,
    ContextTokens, GeneratedTokens.

    The first arrives at 0. The cost is ``{"tokens": context + generated}``. Further columns are
    metadata, and a column "duration" says how many seconds each ran.

    Args:
        path: The file; in order of time.
        duration: Seconds by context and generated tokens, where no column says it. None: a fifth
            of a second, and 20 ms for each generated token, and 0.2 ms for each that is read.

    Raises:
        InvalidValue: a column is missing, or a value is none; the message names file and line.
    """
    seconds_of = _seconds if duration is None else duration
    with Path(path).open(newline="", encoding="utf-8-sig") as file:
        rows = csv.DictReader(file)
        for name in ("TIMESTAMP", "ContextTokens", "GeneratedTokens"):
            if name not in (rows.fieldnames or ()):
                raise InvalidValue(
                    f"{path}: there is no column {name!r}; a trace has TIMESTAMP, ContextTokens "
                    f"and GeneratedTokens, not {', '.join(rows.fieldnames or ()) or 'nothing'}"
                )
        first: datetime | None = None
        for row in rows:
            where = f"{path}:{rows.line_num}"
            try:
                moment = datetime.fromisoformat(row.pop("TIMESTAMP"))
                context, generated = (
                    float(row.pop("ContextTokens")),
                    float(row.pop("GeneratedTokens")),
                )
                own = row.pop("duration", None)
                seconds = seconds_of(context, generated) if not own else float(own)
            except (TypeError, ValueError) as error:
                raise InvalidValue(f"{where}: {error}") from None
            first = moment if first is None else first
            metadata: dict[str, Any] = {"cost": {"tokens": context + generated}, **row}
            at = (moment - first).total_seconds()
            yield Job(
                at, number(f"{where}: duration", seconds, at_least=0), metadata, rows.line_num
            )


def _seconds(context: float, generated: float) -> float:
    return OVERHEAD + PER_CONTEXT * context + PER_GENERATED * generated


@dataclass(frozen=True, slots=True)
class Recording:
    """A run that was written down; iterated over, its jobs."""

    jobs: list[Job]
    starts: dict[Any, float]
    """When each started, by its id: seconds from the first arrival, to the millisecond."""
    providers: dict[Any, str | None]
    """Where each ran."""
    makespan: float
    """Seconds from the first arrival to the last end."""

    def __iter__(self) -> Iterator[Job]:
        return iter(self.jobs)

    def same_order(self, start_order: Iterable[Any]) -> bool:
        """Whether these started, at each provider, in the order in which they did there.

        Not between providers, where less than a millisecond decides; and without those that were
        sent several times, of which the last start is recorded.
        """
        latest: dict[str | None, float] = {}
        for id in start_order:
            start, provider = self.starts[id], self.providers[id]
            if id not in self._again:
                if start < latest.get(provider, 0.0):
                    return False
                latest[provider] = start
        return True

    @property
    def _again(self) -> set[Any]:
        return {job.id for job in self.jobs if job.failures}


def recorded(
    results: str | Path, requests: str | Path | None = None, *, pinned: bool = True
) -> Recording:
    """Jobs from the results of ``atm run``, to be replayed: they arrive as they did, and run as
    long as they did, where they did.

    Args:
        results: The results; of an id that has several, the last counts. What was never sent is
            passed over.
        requests: The requests, for what results don't say: priorities, times, providers, in their
            order where several arrived at once.
        pinned: Whether each goes to the provider that it went to, which is what its duration is
            that of. Not, for what another chain would have made of them.

    Raises:
        InvalidValue: a line is none of a result; the message names file and line.
    """
    asked: dict[Any, tuple[int, dict[str, Any]]] = {}
    if requests is not None:
        for i, (_, data) in enumerate(_lines(Path(requests)), 1):
            id = data.get("id", data.get("custom_id", i))
            asked[id] = i, {k: v for k, v in data.items() if k not in OWN and k not in CONTENT}
    ran: dict[Any, dict[str, Any]] = {}
    for where, data in _lines(Path(results)):
        if data.get("started_at") is not None:
            ran[data.get("id")] = {**data, **_times(where, data)}
    began = min((data["created"] for data in ran.values()), default=0.0)
    found: list[tuple[float, int, float, int, Job]] = []
    for id, data in ran.items():
        place, metadata = asked.get(id, (0, {}))
        if data.get("cost") is not None:
            metadata = {**metadata, "cost": data["cost"]}
        if "valid_after" in metadata:
            metadata["valid_after"] = _instant(f"request {id!r}", metadata["valid_after"])
        if pinned and data.get("provider") is not None:
            metadata = {**metadata, "provider": data["provider"]}
        again = int(data.get("attempts") or 1) - 1
        at = data["created"] - began
        job = Job(at, float(data["duration"]), metadata, id, again, data.get("actual_cost"))
        found.append((at, place, data["started"], len(found), job))
    found.sort(key=lambda each: each[:4])
    return Recording(
        jobs=[job for *_, job in found],
        starts={id: data["started"] - began for id, data in ran.items()},
        providers={id: data.get("provider") for id, data in ran.items()},
        makespan=max(
            (data["started"] + data["duration"] - began for data in ran.values()), default=0.0
        ),
    )


def _times(where: str, data: dict[str, Any]) -> dict[str, float]:
    try:
        created, started = (
            datetime.fromisoformat(data[name]).timestamp() for name in ("created_at", "started_at")
        )
    except (KeyError, TypeError, ValueError):
        raise InvalidValue(
            f"{where}: created_at and started_at must be ISO-8601 times, as in the results of a run"
        ) from None
    seconds = number(f"{where}: duration", data.get("duration"), at_least=0)
    return {"created": created, "started": started, "duration": seconds}


def _lines(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    with path.open(encoding="utf-8-sig") as file:
        for i, line in enumerate(file, 1):
            if line.strip():
                try:
                    data = json.loads(line)
                except ValueError as error:
                    raise InvalidValue(f"{path}:{i}: not valid JSON: {error}") from None
                if not isinstance(data, dict):
                    raise InvalidValue(f"{path}:{i}: must be a JSON object, not {data!r}")
                yield f"{path}:{i}", data


def _instant(where: str, value: Any) -> Any:
    """A delay "+3s" from now, or ISO-8601."""
    units: Mapping[str, float] = {"ms": 0.001, "s": 1, "m": 60, "h": 3600}
    if isinstance(value, str):
        try:
            if value.startswith("+"):
                unit = value.lstrip("+0123456789. ")
                return timedelta(seconds=float(value[1 : -len(unit)]) * units[unit])
            return datetime.fromisoformat(value)
        except (KeyError, ValueError):
            raise InvalidValue(
                f"{where}: valid_after must be ISO-8601, or a delay such as '+3s', not {value!r}"
            ) from None
    return value
