"""What happens now, in numbers that are kept as it happens: for the dashboard and for metrics."""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Sequence
from itertools import islice
from math import ceil, inf
from typing import TYPE_CHECKING, Any

from async_task_manager._overview import LimitStatus
from async_task_manager.service.entry import Entry, error_of
from async_task_manager.strategies.fair_share import FairShareStrategy

if TYPE_CHECKING:
    from async_task_manager.service.core import Core
    from async_task_manager.service.records import Status

__all__ = ["Live", "percentile"]

SECONDS = 300
"""How far the dashboard looks back."""

SAMPLES = 200
"""Waits remembered of one second, at most."""

SHOWN_USERS = 50
SHOWN_RUNNING = 100
SHOWN_ENDS = 50


class Second:
    """What ended in one second, and how long what started in it had waited."""

    __slots__ = ("at", "failed", "succeeded", "waits")

    def __init__(self, at: int) -> None:
        self.at = at
        self.succeeded = self.failed = 0
        self.waits: list[float] = []

    def point(self) -> list[float | None]:
        """As the dashboard has it: at, succeeded, failed, wait p50, wait p95."""
        waits = sorted(self.waits)
        return [
            self.at,
            self.succeeded,
            self.failed,
            percentile(waits, 0.5),
            percentile(waits, 0.95),
        ]


def percentile(ordered: Sequence[float], share: float) -> float | None:
    """The nearest-rank percentile; None of nothing."""
    return ordered[max(0, ceil(share * len(ordered)) - 1)] if ordered else None


class Live:
    """Counts, seconds, and the latest ends of a service."""

    def __init__(self, core: Core) -> None:
        self._core = core
        self.queued_by_user: Counter[str] = Counter()
        self.queued_by_level: Counter[str] = Counter()
        self.running: dict[int, Entry] = {}
        self.running_by_user: Counter[str] = Counter()
        self.ended_by_status: Counter[str] = Counter()
        self.submitted = 0
        self._seconds: deque[Second] = deque(maxlen=SECONDS)
        self._ends: deque[dict[str, Any]] = deque(maxlen=SHOWN_ENDS)
        self._failures: deque[dict[str, Any]] = deque(maxlen=SHOWN_ENDS)
        self._snapshot: tuple[float, dict[str, Any]] = (-inf, {})

    # ---- what happens -----------------------------------------------------------------------

    def queued(self, entry: Entry) -> None:
        """Accepted."""
        self.submitted += 1
        entry.level = self._level(entry)
        self._into_queue(entry)

    def started(self, entry: Entry, waited: float) -> None:
        """The first instruction."""
        self._out_of_queue(entry)
        self.running[entry.number] = entry
        self.running_by_user[entry.user_id] += 1
        waits = self._second().waits
        if len(waits) < SAMPLES:
            waits.append(waited)

    def retried(self, entry: Entry, error: BaseException | None) -> None:
        """Queued again."""
        self._leave(entry)
        self._into_queue(entry)
        if error is not None:
            self._failures.append(self._end(entry, "RETRY", error))

    def ended(self, entry: Entry, status: Status | None, error: BaseException | None) -> None:
        """The end; without a status: of this process, not of the task."""
        self._leave(entry)
        if status is None:
            return
        self.ended_by_status[status] += 1
        second = self._second()
        if status == "SUCCESS":
            second.succeeded += 1
        elif status == "FAILURE":
            second.failed += 1
            self._failures.append(self._end(entry, status, error))
        self._ends.append(self._end(entry, status, None))

    def _end(self, entry: Entry, status: Status, error: BaseException | None) -> dict[str, Any]:
        core = self._core
        return {
            "number": entry.number,
            "task": entry.function.name,
            "user_id": entry.user_id,
            "status": status,
            "at": core.wall(),
            "error": None if error is None else error_of(error),
        }

    def _leave(self, entry: Entry) -> None:
        if self.running.pop(entry.number, None) is not None:
            _less(self.running_by_user, entry.user_id)
        else:
            self._out_of_queue(entry)

    def _into_queue(self, entry: Entry) -> None:
        self.queued_by_user[entry.user_id] += 1
        if entry.level is not None:
            self.queued_by_level[entry.level] += 1

    def _out_of_queue(self, entry: Entry) -> None:
        _less(self.queued_by_user, entry.user_id)
        if entry.level is not None:
            _less(self.queued_by_level, entry.level)

    def _level(self, entry: Entry) -> str | None:
        chain, task = self._core.chain, entry.task
        pairs = zip(chain.orders, chain.ranks(task), strict=True)
        told = [label for order, rank in pairs if (label := order.label(task, rank)) is not None]
        return ", ".join(told) or None

    def _second(self) -> Second:
        at = int(self._core.wall())
        seconds = self._seconds
        if not seconds or seconds[-1].at != at:
            seconds.append(Second(at))
        return seconds[-1]

    # ---- what people see --------------------------------------------------------------------

    def series(self, since: float) -> list[list[float | None]]:
        """The seconds in which something happened, from ``since`` on; see `Second.point`."""
        return [second.point() for second in self._seconds if second.at >= since]

    def snapshot(self) -> dict[str, Any]:
        """All that the dashboard shows, but the series; made at most four times a second."""
        core = self._core
        now = core.wall()
        made, snapshot = self._snapshot
        if not made <= now < made + 0.25:
            snapshot = self._made(now)
            self._snapshot = now, snapshot
        return snapshot

    def _made(self, now: float) -> dict[str, Any]:
        core = self._core
        id_of = core.store.tickets.id_of
        recent = [s for s in self._seconds if s.at >= now - SECONDS]
        waits = sorted(wait for second in recent for wait in second.waits)
        last = [s for s in recent if s.at >= now - 10]
        users, more = self.users(SHOWN_USERS)
        return {
            "at": now,
            "paused": core.manager.paused,
            "queued": self.queued_by_user.total(),
            "running_count": len(self.running),
            "ended": dict(self.ended_by_status),
            "per_second": sum(s.succeeded + s.failed for s in last) / 10,
            "wait_p50": percentile(waits, 0.5),
            "wait_p95": percentile(waits, 0.95),
            "levels": dict(self.queued_by_level.most_common(SHOWN_USERS)),
            "users": users,
            "more_users": more,
            "running": [
                {
                    "task_id": id_of(entry.number),
                    "task": entry.function.name,
                    "user_id": entry.user_id,
                    "provider": entry.task.provider,
                    "attempt": entry.attempt,
                    "started_at": entry.started,
                }
                for entry in islice(self.running.values(), SHOWN_RUNNING)
            ],
            "limits": self.limits(),
            "providers": self.providers(),
            "failures": [self._shown(end) for end in reversed(self._failures)],
            "ends": [self._shown(end) for end in reversed(self._ends)],
        }

    def _shown(self, end: dict[str, Any]) -> dict[str, Any]:
        return {"task_id": self._core.store.tickets.id_of(end["number"]), **end}

    def users(self, most: int) -> tuple[list[dict[str, Any]], int]:
        """Users with tasks, those with most queued first, then those that used something lately;
        and how many more wait.
        """
        fair = self._fair()
        names = dict.fromkeys(name for name, _ in self.queued_by_user.most_common(most))
        names.update(dict.fromkeys(islice(self.running_by_user, most)))
        if fair is not None:
            names.update(dict.fromkeys(map(str, islice(fair.keys(), most))))
        users = [self.user(name) for name in islice(names, most)]
        return users, max(0, len(self.queued_by_user) - len(users))

    def user(self, name: str) -> dict[str, Any]:
        """One user, known or not."""
        user: dict[str, Any] = {
            "user_id": name,
            "queued": self.queued_by_user[name],
            "running": self.running_by_user[name],
            "recent_use": None,
            "level": None,
            "weight": None,
        }
        fair = self._fair()
        if fair is not None:
            standing = fair.standing(name, self._core.manager.time())
            user["weight"] = standing.weight
            if fair.by == "share":
                user["recent_use"] = standing.ahead
            else:
                user["recent_use"], user["level"] = standing.recent, standing.level
        return user

    def _fair(self) -> FairShareStrategy | None:
        orders = self._core.chain.orders
        return next((order for order in orders if isinstance(order, FairShareStrategy)), None)

    def limits(self) -> list[dict[str, Any]]:
        """How much of each limit is in use."""
        core = self._core
        manager = core.manager
        return [
            {
                "limit": status.limit,
                "provider": status.provider,
                "key": _jsonable(status.key),
                "used": float(status.used),
                "capacity": _finite(status.capacity),
                "frees_at": _finite(status.frees_at),
            }
            for status in LimitStatus.of(core.chain, manager.time(), manager.epoch)
        ]

    def providers(self) -> list[dict[str, Any]]:
        """The router's providers, in the order in which they are tried."""
        router = self._core.router
        if router is None:
            return []
        running = Counter(entry.task.provider for entry in self.running.values())
        return [self.provider(name, running[name]) for name in router.names]

    def provider(self, name: str, running: int | None = None) -> dict[str, Any]:
        """One of them."""
        core = self._core
        assert core.router is not None
        provider = core.router[name]
        now = core.manager.time()
        if running is None:
            running = sum(entry.task.provider == name for entry in self.running.values())
        return {
            "name": name,
            "enabled": provider.enabled,
            "running": running,
            "limits": [
                {
                    "limit": limit.describe(),
                    "parameters": {k: float(getattr(limit, k)) for k in settable(limit)},
                    "used": float(usage.used),
                    "capacity": _finite(usage.capacity),
                    "frees_at": _finite(
                        None if usage.frees_at is None else core.manager.epoch + usage.frees_at
                    ),
                }
                for limit in provider.limits
                for usage in [limit.usage(None, now)]
            ],
        }


def settable(limit: Any) -> list[str]:
    """The numbers of a limit that can be set while it is in use."""
    return [
        name
        for name in dir(type(limit))
        if not name.startswith("_")
        and isinstance(member := getattr(type(limit), name), property)
        and member.fset is not None
        and isinstance(value := getattr(limit, name), int | float)
        and not isinstance(value, bool)
    ]


def _finite(value: float | None) -> float | None:
    return None if value is None or not -inf < value < inf else float(value)


def _jsonable(key: object) -> Any:
    return key if key is None or isinstance(key, str | int | float | bool) else repr(key)


def _less(counter: Counter[str], name: str) -> None:
    counter[name] -= 1
    if not counter[name]:
        del counter[name]
