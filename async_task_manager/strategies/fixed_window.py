"""So many per window, the windows one after the other."""

from __future__ import annotations

from collections.abc import Hashable, Iterable
from datetime import UTC, tzinfo
from math import inf
from typing import TYPE_CHECKING, Any, TypeAlias

from async_task_manager._validate import exact, number, one_of
from async_task_manager.errors import InvalidValue
from async_task_manager.strategies._clocks import next_border, zone_of
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

__all__ = ["FixedWindowStrategy"]

Grant: TypeAlias = "list[Any]"
"""[window, cost, the window's turn when it was stamped, or None, what was lost by then], and what
the server said in answer to it. A list, because it is made for every task, and an object with names
takes three times as long."""

SECONDS = {"minute": 60.0, "hour": 3600.0, "day": 86400.0, "month": 2592000.0}
"""The calendar's windows, and about how long they are."""

_UNITS = tuple(SECONDS)

_MEMORY = 3600.0
"""Seconds for which a key outlives its last window by the clock, should that step back into it."""


class _Window:
    """One key. What is stamped counts until ``mark`` plus the policy's shift; pending, always."""

    __slots__ = ("before", "flying", "heard", "lost", "mark", "pending", "turn", "used", "waiting")

    def __init__(self) -> None:
        self.mark = -inf
        """Chain time of the opening or, by the clock, wall time of the end."""
        self.before: tuple[float, Cost] = (-inf, 0)
        """By the clock: mark and use of the last window, should the clock step back into it."""
        self.turn = 0
        """Windows opened so far: tells a late `settle` whether its window is still this one."""
        self.used: Cost = 0
        self.pending: Cost = 0
        """Acquired, and not started yet: it will count in the window of its first instruction."""
        self.waiting = 0
        """How many are pending; their sum alone would not show tasks of cost 0."""
        self.flying: Cost = 0
        """Acquired, and neither ended nor answered: a server may not have counted it yet."""
        self.lost: Cost = 0
        """The sum of what ended without an answer: a server may have counted it at any time."""
        self.heard: Heard | None = None


_FRESH = _Window()


class FixedWindowStrategy(Limit):
    """At most ``max_requests`` per window, counted at the first instruction of the work.

    A window opens at the first start after the last one ended, and lasts ``window_seconds``. With
    ``align="clock"`` the windows are those of the wall clock: a daily quota that resets at midnight
    in Los Angeles. Around the border of two windows, up to twice the quota may start within one
    window's length; `SlidingWindowStrategy` rules that out.

    Args:
        max_requests: The quota of a window, in units of cost; a finite number above 0.
        window_seconds: Seconds above 0. With ``align="clock"``: "minute", "hour", "day" or "month"
            of the time zone, or seconds, at least 0.001: windows that begin at whole multiples of
            it since the epoch, in any zone.
        align: "first" or "clock".
        timezone: The clock's zone: an IANA name or a tzinfo. None: UTC.
        slack: Seconds, at least 0, by which each next window opens later: what leaves in one
            window may arrive in another's.
        key: What splits the limit, a metadata name or a callable: each key has windows of its own.
            None: one limit for all.
        cost: What a task uses up. None: 1; a number, a callable, or the name of a unit in
            ``metadata["cost"]``. `settle` corrects it for the rest of its window.
        default_cost: For tasks that don't say.

    Raises:
        InvalidValue, InvalidType: A parameter is out of range or has the wrong type.

    ``max_requests``, ``window_seconds`` and ``slack`` can be set at any time. Every operation is
    O(1) but a new ``window_seconds`` and a clock that steps back, which are O(keys). A key is
    forgotten once its window is over, by the clock an hour later.

    A day lasts from local midnight to local midnight, 23 to 25 hours. Where midnight doesn't exist,
    it begins at the first instant after the gap; where it comes twice, at the first. When the wall
    clock steps back into the window before, nothing is given anew: both windows' use counts until
    the later one ends. When it steps farther back, it counts in the window that is then current.
    """

    def __init__(
        self,
        max_requests: float,
        window_seconds: float | str,
        *,
        align: str = "first",
        timezone: str | tzinfo | None = None,
        slack: float = 0.0,
        key: KeySpec = None,
        cost: CostSpec = None,
        default_cost: float | None = None,
    ) -> None:
        super().__init__(key=key, cost=cost, default_cost=default_cost)
        self._max = exact(number("max_requests", max_requests, above=0))
        self._by_clock = one_of("align", align, ("first", "clock")) == "clock"
        if timezone is not None and not self._by_clock:
            raise InvalidValue(f"timezone={timezone!r} needs align='clock'")
        self._timezone = timezone
        self._zone = zone_of(timezone) if self._by_clock else UTC
        self._window = self._checked(window_seconds)
        self._slack = plain(number("slack", slack, at_least=0))
        self._offset = 0.0
        self._now = 0.0
        self._windows: States[_Window] = States()
        self.uses_wall_time = self._by_clock
        self._reckon()

    def _checked(self, window: object) -> float | str:
        if isinstance(window, str):
            if not self._by_clock:
                raise InvalidValue(f"window_seconds={window!r} needs align='clock'")
            return one_of("window_seconds", window, _UNITS)
        if self._by_clock:
            return plain(number("window_seconds", window, at_least=0.001))
        return plain(number("window_seconds", window, above=0))

    def _reckon(self) -> None:
        # A window is over from mark + shift on: one and the same sum wherever it is asked, so that
        # the instant that is named is the instant that admits, to the bit.
        if self._by_clock:
            self._shift = self._slack - self._offset
            self._memory = _MEMORY if isinstance(self._window, str) else min(_MEMORY, self._window)
        else:
            assert not isinstance(self._window, str)
            self._shift = self._window + self._slack
            self._memory = 0.0

    # ---- live change ------------------------------------------------------------------------

    @property
    def max_requests(self) -> float:
        """The quota of a window, for each key."""
        return plain(self._max)

    @max_requests.setter
    def max_requests(self, value: float) -> None:
        self._max = exact(number("max_requests", value, above=0))
        self.changed()

    @property
    def window_seconds(self) -> float | str:
        """The length of a window. What counts now goes on counting in the new kind of window."""
        return self._window

    @window_seconds.setter
    def window_seconds(self, value: float | str) -> None:
        self._window = self._checked(value)
        if self._by_clock:
            end = self._end_of_window(self._now)
            for window in self._windows.values():
                if window.mark + self._shift > self._now:
                    window.mark = end
        self._reckon()
        self.changed()

    @property
    def slack(self) -> float:
        """Seconds by which each next window opens later."""
        return self._slack

    @slack.setter
    def slack(self, value: float) -> None:
        self._slack = plain(number("slack", value, at_least=0))
        self._reckon()
        self.changed()

    def set_wall_offset(self, offset: float, now: float) -> None:
        """Follows the wall clock. A step back gives no quota anew."""
        back = offset < self._offset
        self._offset = offset
        self._now = now
        self._reckon()
        if back and self._by_clock and self._windows:
            end = self._end_of_window(now)
            next_end = next_border(self._window, self._zone, end)
            for window in self._windows.values():
                if window.mark <= end:
                    continue
                # The window lies ahead again. What it and the one before have used counts from
                # now on, and until its own end: were it carried into the present window alone, it
                # would be forgotten when that very window opens. Only from farther ahead it is
                # carried, or it would hold everything up for as long as the step was.
                mark, used = window.before
                if mark >= end:
                    window.used += used
                    window.before = _FRESH.before
                if window.mark > next_end:
                    window.mark = end

    # ---- the limit --------------------------------------------------------------------------

    def check(self, key: Hashable, cost: Cost) -> None:
        """Raises `TaskTooLarge` for a cost above ``max_requests``."""
        if cost > self._max:
            raise too_large(self, cost, "max_requests", self._max)

    def ready_at(self, key: Hashable, cost: Cost, now: float) -> float:
        """Now, if the window has room, else its end; inf while what is about to start takes it."""
        window = self._windows.get(key, _FRESH)
        wanted = window.pending + cost
        if wanted > self._max:
            self.check(key, cost)
            return inf
        instant = now if window.used + wanted <= self._max else window.mark + self._shift
        if window.heard is not None:
            instant = max(instant, window.heard.ready_at(cost, window.flying, now))
        return instant

    def acquire(self, key: Hashable, cost: Cost, now: float) -> Grant:
        """Takes the cost out of whatever window is current, until the work starts."""
        windows = self._windows
        window = windows.get(key)
        if window is None:
            window = windows.add(key, _Window())
        window.pending += cost
        window.flying += cost
        window.waiting += 1
        if windows.ring:
            windows.sweep(self._idle, now)
        return [window, cost, None, window.lost]

    def started(self, grant: Grant, now: float) -> None:
        """The first instruction: the cost counts in the window of this instant."""
        window, cost = grant[:2]
        window.pending -= cost
        window.waiting -= 1
        if window.mark + self._shift <= now:
            if self._by_clock:
                window.before = window.mark, window.used
                window.mark = self._end_of_window(now)
            else:
                window.mark = now
            window.turn += 1
            window.used = 0
        window.used += cost
        grant[2] = window.turn
        self._now = now

    def settle(self, grant: Grant, actual: Cost, now: float) -> None:
        """Corrects what was charged, while its window lasts."""
        window, cost, turn = grant[:3]
        more = exact(number("the actual cost", actual, at_least=0)) - cost
        grant[1] += more
        if len(grant) == UNHEARD:
            window.flying += more
        if turn is None:
            window.pending += more
        elif turn == window.turn:
            window.used += more

    def release(self, grant: Grant, outcome: Outcome, now: float) -> None:
        """Refunds work that never started; what started stays counted, however it ended."""
        if len(grant) == UNHEARD:
            window = grant[0]
            window.flying -= grant[1]
            if outcome.started:
                window.lost += grant[1]
                if window.heard is not None:
                    window.heard.unheard(grant[1])
        if grant[2] is None:
            window, cost = grant[:2]
            if outcome.started:
                self.started(grant, now)
            else:
                window.pending -= cost
                window.waiting -= 1

    def observe(self, sample: Any, now: float, key: Hashable = None, grant: Any = None) -> None:
        """Follows what the headers of a response say about the server's own count.

        Until its reset no more is let go than remains there, less what is under way. Without a
        reset, that holds until the window ends.
        """
        length = SECONDS[self._window] if isinstance(self._window, str) else self._window
        said = said_to(self, sample, length)
        if said is None:
            return
        window = self._windows.get(key)
        if window is None:
            window = self._windows.add(key, _Window())
        end = window.mark + self._shift
        if end <= now:
            end = (self._end_of_window(now) if self._by_clock else now) + self._shift
        take_in(said, window, grant, now, end)

    def _idle(self, window: _Window, now: float) -> bool:
        # What flies longer than the window was counted by the server in an earlier one.
        if window.waiting or window.mark + self._shift + self._memory > now:
            return False
        return window.heard is None or window.heard.over(now)

    def _end_of_window(self, now: float) -> float:
        """Wall time of the end of the clock's window that is current at this chain time."""
        end = next_border(self._window, self._zone, now - self._shift)
        while end + self._shift <= now:  # now is a border, and its wall time was rounded down
            end = next_border(self._window, self._zone, end)
        return end

    def usage(self, key: Hashable, now: float) -> Usage:
        """What counts in the current window, and when that ends."""
        window = self._windows.get(key, _FRESH)
        end = window.mark + self._shift
        used = window.used if now < end else 0
        own = Usage(plain(used + window.pending), plain(self._max), end if used else None)
        return own if window.heard is None else window.heard.usage(own, window.flying, now)

    def keys(self) -> Iterable[Hashable]:
        """The keys that have state."""
        return self._windows

    def dump(self) -> Any:
        """The windows, by key; what has not started is not in it."""
        return [
            [
                write_key(key),
                window.mark if window.mark > -inf else None,
                write_cost(window.used),
                window.heard.dump() if window.heard is not None else None,
            ]
            for key, window in self._windows.items()
            if window.used or window.heard is not None
        ]

    def load(self, state: Any) -> None:
        """Takes the windows back."""
        for key, mark, used, heard in state:
            window = self._windows.add(read_key(key), _Window())
            window.mark = -inf if mark is None else mark
            window.used = read_cost(used)
            window.heard = Heard.load(heard) if heard is not None else None

    def describe(self) -> str:
        """In words: "at most 500 tasks per day (America/Los_Angeles)"."""
        window = self._window if isinstance(self._window, str) else f"{self._window:g} s"
        zone = f" ({self._zone})" if isinstance(self._window, str) else ""
        return f"at most {words(self, self._max)} per {window}{zone}{per_key(self)}"

    def tell(self, usage: Usage) -> str:
        """In a sentence: "has used 500 of 500 requests this day"."""
        window = self._window
        span = window if isinstance(window, str) else span_words(window)
        this = f"this {span}" if span.isalpha() else f"in these {span}"
        return f"has used {shown(usage.used)} of {words(self, self._max, 'request')} {this}"

    def __repr__(self) -> str:
        return call(
            self,
            self.max_requests,
            self._window,
            align="clock" if self._by_clock else None,
            timezone=self._timezone,
            slack=self._slack or None,
        )
