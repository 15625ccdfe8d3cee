"""So many in any window, wherever it begins."""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Hashable, Iterable
from itertools import accumulate
from math import inf
from typing import TYPE_CHECKING, Any, TypeAlias

from async_task_manager._validate import exact, number
from async_task_manager.strategies._heard import UNHEARD, Heard, said_to, take_in
from async_task_manager.strategies._keys import (
    States,
    call,
    per_key,
    plain,
    read_cost,
    read_key,
    shown,
    span_words,
    too_large,
    words,
    write_cost,
    write_key,
)
from async_task_manager.strategies.base import Cost, CostSpec, KeySpec, Limit, Usage

if TYPE_CHECKING:
    from async_task_manager.task import Outcome

__all__ = ["SlidingWindowStrategy"]

Grant: TypeAlias = "list[Any]"
"""[log, cost, stamp or None, what was lost by then], and what the server said in answer to it. A
list, because it is made for every task, and an object with names takes three times as long."""


class _Log:
    """One key: the starts of the last window, oldest first, and what is about to start."""

    __slots__ = (
        "first",
        "flying",
        "gone",
        "heard",
        "last",
        "lost",
        "pending",
        "stamps",
        "sums",
        "total",
        "waiting",
    )

    def __init__(self) -> None:
        self.stamps: list[float] = []
        """Instants of first instructions, each once."""
        self.sums: list[Cost] = []
        """The cost of all entries up to and with this one: a bisection finds what has to expire."""
        self.first = 0
        """Entries before it have expired, and are cut off when they are half of the log."""
        self.gone: Cost = 0
        """The cost of all entries before ``first``."""
        self.total: Cost = 0
        """The cost of all entries."""
        self.pending: Cost = 0
        """Acquired, and not started yet: it counts until it is stamped, and from then on."""
        self.waiting = 0
        """How many are pending."""
        self.last = -inf
        """The latest start."""
        self.flying: Cost = 0
        """Acquired, and neither ended nor answered: a server may not have counted it yet."""
        self.lost: Cost = 0
        """The sum of what ended without an answer: a server may have counted it at any time."""
        self.heard: Heard | None = None

    def prune(self, span: float, now: float) -> None:
        """Lets go of what has expired: amortised O(1) per entry."""
        stamps, sums, first = self.stamps, self.sums, self.first
        while first < len(stamps) and stamps[first] + span <= now:
            first += 1
        if first == len(stamps):
            stamps.clear()
            sums.clear()
            self.first = 0
            self.gone = self.total = 0
            return
        gone = sums[first - 1] if first else 0
        if first > 32 and 2 * first > len(stamps):
            del stamps[:first]
            self.sums = [cost - gone for cost in sums[first:]]
            self.total -= gone
            first = 0
            gone = 0
        self.first = first
        self.gone = gone

    def correct(self, stamp: float, more: Cost) -> None:
        """Changes the cost of an entry that has not expired: O(entries after it)."""
        i = bisect_left(self.stamps, stamp, self.first)
        if i == len(self.stamps) or self.stamps[i] != stamp:
            if more <= 0:
                return  # cut off as expired, before the window was made longer
            self.stamps.insert(i, stamp)  # it cost nothing so far
            self.sums.insert(i, self.sums[i - 1] if i > self.first else self.gone)
        self.sums[i:] = [cost + more for cost in self.sums[i:]]
        self.total += more


_EMPTY = _Log()


class SlidingWindowStrategy(Limit):
    """At most ``max_requests`` in any window, wherever it begins, measured at first instructions.

    No half-open interval ``[t, t + window_seconds + slack)`` holds starts that cost more in sum,
    and a task that fits never waits here.

    Args:
        max_requests: The most that a window may hold, in units of cost; a finite number above 0.
        window_seconds: The length of the window, in seconds above 0.
        min_interval: Seconds, at least 0, between one start and the next.
        slack: Seconds, at least 0, by which the window is widened: what leaves in one window may
            arrive in another's.
        key: What splits the limit, a metadata name or a callable: each key has a window of its own.
            None: one limit for all.
        cost: What a task uses up. None: 1; a number, a callable, or the name of a unit in
            ``metadata["cost"]``. `settle` corrects it where it was entered.
        default_cost: For tasks that don't say.

    Raises:
        InvalidValue, InvalidType: A parameter is out of range or has the wrong type.

    All four numbers can be set at any time. Memory per key: two numbers for each instant of the
    last window at which something started, so for at most ``max_requests`` tasks that cost 1.
    Finding the instant for a cost takes O(log entries); `settle` takes O(entries since that start),
    about as many as tasks run at once; everything else is amortised O(1). A key is forgotten once
    its last start has expired.
    """

    def __init__(
        self,
        max_requests: float,
        window_seconds: float,
        *,
        min_interval: float = 0.0,
        slack: float = 0.0,
        key: KeySpec = None,
        cost: CostSpec = None,
        default_cost: float | None = None,
    ) -> None:
        super().__init__(key=key, cost=cost, default_cost=default_cost)
        self._max = exact(number("max_requests", max_requests, above=0))
        self._window = plain(number("window_seconds", window_seconds, above=0))
        self._min_interval = plain(number("min_interval", min_interval, at_least=0))
        self._slack = plain(number("slack", slack, at_least=0))
        self._span = self._window + self._slack
        self._logs: States[_Log] = States()

    # ---- live change ------------------------------------------------------------------------

    @property
    def max_requests(self) -> float:
        """The most that a window may hold, for each key."""
        return plain(self._max)

    @max_requests.setter
    def max_requests(self, value: float) -> None:
        self._max = exact(number("max_requests", value, above=0))
        self.changed()

    @property
    def window_seconds(self) -> float:
        """The length of the window. What had expired before it was made longer stays expired."""
        return self._window

    @window_seconds.setter
    def window_seconds(self, value: float) -> None:
        self._window = plain(number("window_seconds", value, above=0))
        self._span = self._window + self._slack
        self.changed()

    @property
    def min_interval(self) -> float:
        """Seconds between one start and the next."""
        return self._min_interval

    @min_interval.setter
    def min_interval(self, value: float) -> None:
        self._min_interval = plain(number("min_interval", value, at_least=0))
        self.changed()

    @property
    def slack(self) -> float:
        """Seconds by which the window is widened."""
        return self._slack

    @slack.setter
    def slack(self, value: float) -> None:
        self._slack = plain(number("slack", value, at_least=0))
        self._span = self._window + self._slack
        self.changed()

    # ---- the limit --------------------------------------------------------------------------

    def check(self, key: Hashable, cost: Cost) -> None:
        """Raises `TaskTooLarge` for a cost above ``max_requests``."""
        if cost > self._max:
            raise too_large(self, cost, "max_requests", self._max)

    def ready_at(self, key: Hashable, cost: Cost, now: float) -> float:
        """When enough has expired; inf while what is about to start needs the room."""
        log = self._logs.get(key, _EMPTY)
        excess = log.total + log.pending + cost - self._max
        if excess <= log.gone:
            instant = now
        elif excess <= log.total:
            instant = log.stamps[bisect_left(log.sums, excess, log.first)] + self._span
        else:
            self.check(key, cost)
            return inf
        if self._min_interval:
            instant = inf if log.waiting else max(instant, log.last + self._min_interval)
        if log.heard is not None:
            instant = max(instant, log.heard.ready_at(cost, log.flying, now))
        return instant

    def acquire(self, key: Hashable, cost: Cost, now: float) -> Grant:
        """Takes the room, and keeps it until the work starts."""
        logs = self._logs
        log = logs.get(key)
        if log is None:
            log = logs.add(key, _Log())
        elif log.stamps and log.stamps[log.first] + self._span <= now:
            log.prune(self._span, now)
        log.pending += cost
        log.flying += cost
        log.waiting += 1
        if logs.ring:
            logs.sweep(self._idle, now)
        return [log, cost, None, log.lost]

    def started(self, grant: Grant, now: float) -> None:
        """The first instruction: from this instant on, it counts for the length of the window."""
        log, cost = grant[:2]
        log.pending -= cost
        log.waiting -= 1
        log.last = grant[2] = now
        if cost:
            log.total += cost
            if log.stamps and log.stamps[-1] == now:
                log.sums[-1] = log.total
            else:
                log.stamps.append(now)
                log.sums.append(log.total)

    def settle(self, grant: Grant, actual: Cost, now: float) -> None:
        """Corrects what was charged, up or down, at the instant at which it was entered."""
        log, cost, stamp = grant[:3]
        more = exact(number("the actual cost", actual, at_least=0)) - cost
        grant[1] += more
        if len(grant) == UNHEARD:
            log.flying += more
        if stamp is None:
            log.pending += more
        elif more and stamp + self._span > now:
            log.correct(stamp, more)

    def release(self, grant: Grant, outcome: Outcome, now: float) -> None:
        """Refunds work that never started; what started stays counted, however it ended."""
        if len(grant) == UNHEARD:
            log = grant[0]
            log.flying -= grant[1]
            if outcome.started:
                log.lost += grant[1]
                if log.heard is not None:
                    log.heard.unheard(grant[1])
        if grant[2] is None:
            log, cost = grant[:2]
            if outcome.started:
                self.started(grant, now)
            else:
                log.pending -= cost
                log.waiting -= 1

    def observe(self, sample: Any, now: float, key: Hashable = None, grant: Any = None) -> None:
        """Follows what the headers of a response say about the server's own count.

        Until its reset no more is let go than remains there, less what is under way. Without a
        reset, that holds for one window.
        """
        said = said_to(self, sample, self._window)
        if said is None:
            return
        log = self._logs.get(key)
        if log is None:
            log = self._logs.add(key, _Log())
        take_in(said, log, grant, now, now + self._span)

    def _idle(self, log: _Log, now: float) -> bool:
        # What flies longer than the window was counted by the server in an earlier one.
        if log.waiting or log.last + max(self._span, self._min_interval) > now:
            return False
        return log.heard is None or log.heard.over(now)

    def usage(self, key: Hashable, now: float) -> Usage:
        """What counts in the window that ends now, and when the first of it expires."""
        log = self._logs.get(key, _EMPTY)
        span = self._span
        i = bisect_right(log.stamps, now, log.first, key=lambda stamp: stamp + span)
        live = log.total - (log.sums[i - 1] if i > log.first else log.gone)
        frees_at = log.stamps[i] + span if i < len(log.stamps) else None
        own = Usage(plain(live + log.pending), plain(self._max), frees_at)
        return own if log.heard is None else log.heard.usage(own, log.flying, now)

    def keys(self) -> Iterable[Hashable]:
        """The keys that have state."""
        return self._logs

    def dump(self) -> Any:
        """The starts, by key; what has not started is not in it."""
        return [
            [
                write_key(key),
                log.last if log.last > -inf else None,
                [
                    [stamp, write_cost(log.sums[i] - (log.sums[i - 1] if i else 0))]
                    for i, stamp in enumerate(log.stamps)
                ],
                log.heard.dump() if log.heard is not None else None,
            ]
            for key, log in self._logs.items()
            if log.last > -inf or log.heard is not None
        ]

    def load(self, state: Any) -> None:
        """Takes the starts back."""
        for key, last, entries, heard in state:
            log = self._logs.add(read_key(key), _Log())
            log.last = -inf if last is None else last
            log.heard = Heard.load(heard) if heard is not None else None
            log.stamps = [stamp for stamp, _ in entries]
            log.sums = list(accumulate(read_cost(cost) for _, cost in entries))
            log.total = log.sums[-1] if entries else 0

    def describe(self) -> str:
        """In words: "at most 30 tasks in any 60 s"."""
        apart = f", {self._min_interval:g} s apart" if self._min_interval else ""
        return f"at most {words(self, self._max)} in any {self._window:g} s{apart}{per_key(self)}"

    def tell(self, usage: Usage) -> str:
        """In a sentence: "has used 30 of 30 requests in the last minute"."""
        most = words(self, self._max, "request")
        return f"has used {shown(usage.used)} of {most} in the last {span_words(self._window)}"

    def __repr__(self) -> str:
        return call(
            self,
            self.max_requests,
            self._window,
            min_interval=self._min_interval or None,
            slack=self._slack or None,
        )
