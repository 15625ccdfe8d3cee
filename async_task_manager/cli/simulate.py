"""`atm simulate`: how long would it take? A config and a workload, on virtual time."""

from __future__ import annotations

import copy
import json
import os
import sys
import tomllib
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any

from async_task_manager.config import ConfigError, FlowConfig, build_chain, parse_config
from async_task_manager.config.problems import meant
from async_task_manager.errors import TaskManagerError
from async_task_manager.simulation import (
    Job,
    Report,
    compare,
    generate,
    recorded,
    requests,
    simulate,
    trace,
)
from async_task_manager.simulation.words import span

__all__ = ["Workload", "shares", "simulate_command"]

OK, BAD_USAGE = 0, 2


@dataclass
class Workload:
    """What the options say of the work."""

    requests: str = "1000"
    """How many, or a file."""
    trace: Path | None = None
    replay: Path | None = None
    pinned: bool = True
    """What is replayed goes where it went."""
    rate: str | None = None
    burst: int = 1
    duration: str = "1"
    cost: str | None = None
    users: int = 0
    priorities: dict[str, float] = field(default_factory=dict)
    failures: float = 0.0
    seed: int = 0

    def jobs(self, config: FlowConfig) -> Iterable[Job]:
        """The jobs, new each time and always the same."""
        if self.replay is not None:
            asked = None if self.requests.isdecimal() else self.requests
            return recorded(self.replay, asked, pinned=self.pinned)
        if self.trace is not None:
            return trace(self.trace)
        if self.requests.removeprefix("-").isdecimal() and int(self.requests) < 1:
            raise ConfigError(f"-n takes a number of at least 1, or a file, not {self.requests!r}")
        if not self.requests.isdecimal():
            return requests(
                self.requests, duration=self.duration, cost=_estimate(config), seed=self.seed
            )
        return generate(
            int(self.requests),
            rate=self.rate,
            burst=self.burst,
            duration=self.duration,
            cost=self._costs(config),
            users=self.users,
            priorities=self.priorities,
            failures=self.failures,
            seed=self.seed,
        )

    def _costs(self, config: FlowConfig) -> dict[str, Any] | None:
        """A cost in each unit that a limit counts: what the option says, or the config."""
        found: dict[str, Any] = {}
        for provider in config.providers:
            for unit in provider.units:
                estimate = provider.estimates.get(unit)
                if self.cost is not None:
                    found[unit] = self.cost
                elif estimate is not None and not estimate.fields and not estimate.per_char:
                    found.setdefault(unit, estimate.constant)
                elif unit not in found:
                    raise ConfigError(
                        f"provider {provider.name!r} limits {unit}: say how many a request takes, "
                        "such as --cost 900 or --cost 'lognormal(900, 0.6)'"
                    )
        return found or None


def shares(text: str) -> dict[str, float]:
    """What "high=1,normal=8,low=1" says; ValueError where it says nothing of the kind."""
    found = {}
    for part in filter(None, text.split(",")):
        name, _, share = part.partition("=")
        try:
            found[name.strip()] = float(share)
        except ValueError:
            raise ValueError(f"shares are such as high=1,normal=8,low=1, not {text!r}") from None
    return found


def simulate_command(
    config: Path,
    workload: Workload,
    *,
    what_if: list[str],
    start: datetime | None,
    as_json: bool,
    picture: Path | None,
) -> int:
    """Simulates once, or without and with the changes, prints, and gives the exit code."""
    workload.pinned = not what_if  # else nothing would go another way
    try:
        tables = _tables(config)
        reports = [_simulated(_parsed(tables, config), workload, start)]
        if what_if:
            for change in what_if:
                _apply(tables, change)
            reports.append(_simulated(_parsed(tables, config), workload, start))
        if picture is not None:
            reports[-1].save(picture, title=", ".join(what_if) or None)
            print(f"wrote {picture}", file=sys.stderr)
        _tell(reports, as_json)
        if workload.replay is not None and not as_json and not what_if:
            _tell_replay(reports[0], workload.replay)
        sys.stdout.flush()
    except BrokenPipeError:  # whoever reads has enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # it is flushed at the end
        return OK
    except OSError as error:
        return _refuse(f"{error.filename}: {error.strerror}")
    except TaskManagerError as error:
        return _refuse(str(error))
    return OK


def _simulated(config: FlowConfig, workload: Workload, start: datetime | None) -> Report:
    chain = build_chain(config.only_enabled())
    return simulate(chain, workload.jobs(config), start=start, seed=workload.seed)


def _tell(reports: list[Report], as_json: bool) -> None:
    if as_json:
        data = [report.to_json() for report in reports]
        both = {"before": data[0], "after": data[-1]}
        print(json.dumps(data[0] if len(data) == 1 else both, indent=1))
    elif len(reports) == 1:
        print(reports[0])
    else:
        print(compare(reports[0], reports[1]))


def _tell_replay(report: Report, results: Path) -> None:
    run = recorded(results)
    off = abs(report.makespan - run.makespan) / run.makespan if run.makespan else 0.0
    order = "the same" if run.same_order(report.start_order) else "another"
    print(f"recorded: {span(run.makespan)}, {off:.1%} off; order of the starts: {order}")


# ---- the config, and changes to it --------------------------------------------------------------


def _tables(path: Path) -> dict[str, Any]:
    try:
        with path.open("rb") as file:
            tables = tomllib.load(file)
    except ValueError as error:  # not TOML, or not even UTF-8
        raise ConfigError(f"{path}: not valid TOML: {error}") from error
    providers = tables.get("providers")
    for provider in providers if isinstance(providers, list) else ():
        if isinstance(provider, dict):
            provider.pop("headers", None)  # nothing is sent: no key is needed
    return tables


def _parsed(tables: dict[str, Any], path: Path) -> FlowConfig:
    try:
        return parse_config(copy.deepcopy(tables))
    except ConfigError as error:
        lines = str(error).splitlines()
        raise ConfigError("\n".join(f"{path}: {line}" for line in lines)) from None


def _apply(tables: dict[str, Any], change: str) -> None:
    """Sets "providers.groq.max_concurrent=8": a provider goes by its name, an item by its place."""
    path, equals, text = change.partition("=")
    if not equals or not path.strip():
        raise ConfigError(
            f"--what-if takes key=value, such as providers.groq.max_concurrent=8, not {change!r}"
        )
    *parts, last = path.strip().split(".")
    place: Any = tables
    for part in parts:
        place = _inside(place, part, path)
    if isinstance(place, list):
        place[_index(place, last, path)] = _value(text)
    elif isinstance(place, dict):
        place[last] = _value(text)
    else:
        raise ConfigError(f"--what-if {path}: there is nothing to set in {place!r}")


def _inside(place: Any, part: str, path: str) -> Any:
    if isinstance(place, list):
        return place[_index(place, part, path)]
    if isinstance(place, dict) and part in place:
        return place[part]
    known = list(place) if isinstance(place, dict) else []
    raise ConfigError(f"--what-if {path}: there is no {part!r}{meant(part, known)}")


def _index(place: list[Any], part: str, path: str) -> int:
    names = [item.get("name") for item in place if isinstance(item, dict)]
    if part in names:
        return names.index(part)
    if part.isdecimal() and int(part) < len(place):
        return int(part)
    known = [name for name in names if isinstance(name, str)]
    what = f"no {part!r}{meant(part, known)}" if known else f"no item {part!r} of {len(place)}"
    raise ConfigError(f"--what-if {path}: there is {what}")


def _value(text: str) -> Any:
    """As in TOML; what is none there is a string."""
    try:
        return tomllib.loads(f"value = {text}")["value"]
    except ValueError:
        return text.strip()


def _estimate(config: FlowConfig) -> Callable[[dict[str, Any]], dict[str, float] | None]:
    """What a request of a file costs that doesn't say, by the first provider that estimates it."""
    estimates = {
        unit: estimate
        for provider in reversed(config.providers)
        for unit, estimate in provider.estimates.items()
    }

    def cost(data: dict[str, Any]) -> dict[str, float] | None:
        body = data.get("json", data.get("body"))
        chars = len(body) if isinstance(body, str) else len(json.dumps(body, ensure_ascii=False))
        found = {unit: estimate.of(body, chars) for unit, estimate in estimates.items()}
        return {unit: value for unit, value in found.items() if value is not None} or None

    return cost


def _refuse(message: str) -> int:
    for line in message.splitlines():
        print(f"atm: {line}", file=sys.stderr)
    return BAD_USAGE
