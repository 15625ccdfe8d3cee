"""What a server said about a limit of its own, for the limit that stands for it here."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from math import inf
from typing import TYPE_CHECKING, Any, Protocol

from async_task_manager._validate import exact
from async_task_manager.strategies._keys import plain, read_cost, write_cost
from async_task_manager.strategies.base import Cost, Limit, Usage

if TYPE_CHECKING:
    from async_task_manager.headers import Quota

__all__ = ["UNHEARD", "Heard", "Said", "said_to", "take_in"]

UNHEARD = 4
"""The length of a window's grant until an answer is heard."""

SAME = 1.5
"""Seconds by which the ends of one window may seem to differ: dates and resets are rounded."""


class Said:
    """What one response says to one limit."""

    __slots__ = ("after", "end", "remaining", "reset")

    def __init__(self, quota: Quota | None, after: float, date: float | None) -> None:
        self.after = after
        """Seconds to send nothing; -inf: it doesn't say."""
        given = quota.remaining if quota is not None else None
        self.remaining: Cost | None = exact(given) if given is not None else None
        self.reset = quota.reset if quota is not None else None
        self.end = date + self.reset if date is not None and self.reset is not None else None
        """The reset by the server's own clock: to that, it doesn't matter how long it travelled."""

    def lose(self, cost: Cost) -> None:
        """So much ended without an answer since the request was sent, and may be counted since."""
        if self.remaining is not None:
            self.remaining -= cost


def said_to(limit: Limit, sample: object, window: float | None = None) -> Said | None:
    """What the headers of a response say to this limit; None: nothing.

    A quota concerns it that counts the same unit (the limit's ``cost``; tasks are requests), in
    windows as long, as far as the quota says what it counts and for how long. Of several, the one
    that says most about itself, then the tightest.
    """
    if not isinstance(sample, Mapping):
        return None
    from async_task_manager import headers  # slow to load, and few need it

    after = headers.retry_after(sample)
    unit = limit.unit
    fitting = [
        quota
        for quota in headers.quotas(sample)
        if quota.remaining is not None
        and (quota.unit == unit or (quota.unit is None and unit == "requests"))
        and (quota.window is None or window is None or _alike(quota.window, window))
    ]
    quota = min(
        fitting,
        key=lambda quota: (quota.window is None, quota.unit is None, quota.remaining),
        default=None,
    )
    if isinstance(after, datetime):
        after = None  # without a date in the response, it can't be told how long that is
    if quota is None and after is None:
        return None
    date = headers.date_of(sample)
    return Said(quota, -inf if after is None else after, date.timestamp() if date else None)


def _alike(one: float, other: float) -> bool:
    return abs(one - other) <= 0.01 * other


class Counts(Protocol):
    """One key of a limit, as far as it is to follow a server."""

    flying: Cost
    lost: Cost
    heard: Heard | None


def take_in(said: Said, state: Counts, grant: Any, now: float, otherwise: float) -> None:
    """What a response says, to one key of a window; the grant, if there is one, of the task that
    heard it: [state, cost, stamp, what was lost by then].
    """
    if grant is not None and len(grant) == UNHEARD:
        grant.append(said)  # the server has counted it
        own: Counts = grant[0]
        own.flying -= grant[1]
        said.lose(own.lost - grant[3])
    if state.heard is None:
        state.heard = Heard()
    state.heard.take(said, now, otherwise)


class Heard:
    """One key: what may still be sent until the server's window ends, as far as was heard.

    Responses come in any order. Their resets tell which is the newer: within a window that ends
    at one instant, the least that remains is the truth of it; where the reset moves on with each
    request, since the server's bucket fills all the time, the one that lies farthest ahead.
    """

    __slots__ = ("end", "not_before", "remaining", "until")

    def __init__(self) -> None:
        self.remaining: Cost = 0
        self.until = -inf
        """From there on what remained says nothing any more."""
        self.end = -inf
        """The same by the server's clock, as it was first heard; -inf: unknown."""
        self.not_before = -inf

    def take(self, said: Said, now: float, otherwise: float) -> None:
        """Takes in what a response says; a quota without a reset lasts until ``otherwise``."""
        self.not_before = max(self.not_before, now + said.after)
        if said.remaining is None:
            return
        until = -inf if said.reset is None else now + said.reset
        end = self.end if said.end is None else said.end
        if self.until <= now or end > self.end + SAME:
            self.remaining, self.end = said.remaining, end
            self.until = until if said.reset is not None else otherwise
        elif end >= self.end - SAME:  # else it was overtaken by a response of a later window
            self.remaining = min(self.remaining, said.remaining)
            self.until = max(self.until, until)

    def unheard(self, cost: Cost) -> None:
        """A task has ended whose response nobody saw: the server may have counted it."""
        self.remaining -= cost

    def ready_at(self, cost: Cost, flying: Cost, now: float) -> float:
        """When the server would take this cost, with so much under way that it may not know of."""
        if now < self.until and self.remaining < flying + cost:
            return max(self.until, self.not_before)
        return self.not_before

    def over(self, now: float) -> bool:
        """Whether it binds nothing any more."""
        return self.until <= now and self.not_before <= now

    def usage(self, own: Usage, flying: Cost, now: float) -> Usage:
        """The limit's own usage, or what the server leaves of its capacity if that is less."""
        if now < self.not_before:
            return Usage(own.capacity, own.capacity, self.ready_at(1, flying, now))
        left = max(0, plain(self.remaining - flying))
        if now < self.until and own.capacity - left > own.used:
            return Usage(own.capacity - left, own.capacity, self.until)
        return own

    def dump(self) -> Any:
        """As JSON-able data."""
        instants = (self.end, self.until, self.not_before)
        return [write_cost(self.remaining), *(None if at == -inf else at for at in instants)]

    @classmethod
    def load(cls, state: Any) -> Heard:
        """What `dump` gave."""
        heard = cls()
        remaining, *instants = state
        heard.remaining = read_cost(remaining)
        heard.end, heard.until, heard.not_before = (-inf if at is None else at for at in instants)
        return heard
