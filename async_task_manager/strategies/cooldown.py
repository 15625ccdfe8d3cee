"""Once told to slow down, slow down: all of that key."""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Mapping
from datetime import datetime
from math import inf
from typing import TYPE_CHECKING, Any

from async_task_manager._validate import number
from async_task_manager.errors import RateLimited
from async_task_manager.strategies._keys import States, call, per_key, plain, read_key, write_key
from async_task_manager.strategies._retry_after import retry_after
from async_task_manager.strategies.base import Cost, KeySpec, Limit, Usage

if TYPE_CHECKING:
    from async_task_manager.task import Outcome

__all__ = ["CooldownStrategy"]


class _Pause:
    """One key: until when nothing of it starts, by chain time and by the wall clock."""

    __slots__ = ("until", "wall")

    def __init__(self, until: float = -inf, wall: float = -inf) -> None:
        self.until = until
        self.wall = wall


_NONE = _Pause()


class CooldownStrategy(Limit):
    """One outcome that says "not before then" holds up all tasks of its key until then.

    Whoever sent a request too many is told so once, and not once for each task that waits. Such
    outcomes are `RateLimited`, and any error that has an attribute ``retry_after``; and so is a
    response whose headers, ``current_task().observe(headers)``, have a ``retry-after``. A later
    one extends the pause, and never shortens it. Afterwards the other limits of the chain pace what
    starts. What fails because of it is not retried by this: see `RetryStrategy`.

    Args:
        key: What is paused as a whole (a host, an account): a metadata name or a callable. None:
            everything.
        default_seconds: Seconds to pause after a `RateLimited` that names no instant; at least 0.
            It can be set at any time.

    Raises:
        InvalidValue, InvalidType: A parameter is out of range or has the wrong type.

    Every operation is O(1). A key is kept while it is paused. Dates follow the wall clock.
    """

    uses_wall_time = True

    def __init__(self, *, key: KeySpec, default_seconds: float = 1.0) -> None:
        super().__init__(key=key)
        self.default_seconds = default_seconds
        self._pauses: States[_Pause] = States()
        self._offset = 0.0

    @property
    def default_seconds(self) -> float:
        """Seconds to pause where the outcome doesn't say until when."""
        return self._default

    @default_seconds.setter
    def default_seconds(self, value: float) -> None:
        self._default = plain(number("default_seconds", value, at_least=0))

    def set_wall_offset(self, offset: float, now: float) -> None:
        """Follows the wall clock. What is over stays over, though the clock be set back."""
        for pause in self._pauses.values():
            if pause.wall - self._offset <= now:
                pause.wall = -inf
        self._offset = offset

    def ready_at(self, key: Hashable, cost: Cost, now: float) -> float:
        """The end of the pause."""
        pause = self._pauses.get(key)
        return now if pause is None else max(now, self._end(pause))

    def acquire(self, key: Hashable, cost: Cost, now: float) -> Hashable:
        """Nothing is used up."""
        self._pauses.sweep(self._idle, now)
        return key

    def release(self, grant: Hashable, outcome: Outcome, now: float) -> None:
        """Pauses the key, if the outcome says so."""
        if outcome.kind != "failure":
            return
        until, wall = retry_after(outcome, now)
        if until == wall == -inf:
            if not isinstance(outcome.error, RateLimited):
                return
            until = now + self._default
        self._extend(grant, until, wall)

    def observe(self, sample: Any, now: float, key: Hashable = None, grant: Any = None) -> None:
        """Pauses the key, if the headers of a response have a ``retry-after``."""
        if not isinstance(sample, Mapping):
            return
        from async_task_manager import headers  # slow to load, and few need it

        after = headers.retry_after(sample)
        if isinstance(after, datetime):
            self._extend(key, -inf, after.timestamp())
        elif after is not None:
            self._extend(key, now + after, -inf)

    def _extend(self, key: Hashable, until: float, wall: float) -> None:
        pause = self._pauses.get(key)
        if pause is None:
            pause = self._pauses.add(key, _Pause())
        pause.until = max(pause.until, until)
        pause.wall = max(pause.wall, wall)

    def _end(self, pause: _Pause) -> float:
        return max(pause.until, pause.wall - self._offset)

    def _idle(self, pause: _Pause, now: float) -> bool:
        return self._end(pause) <= now

    def usage(self, key: Hashable, now: float) -> Usage:
        """1 of 1 while the key is paused."""
        end = self._end(self._pauses.get(key, _NONE))
        return Usage(1, 1, end) if end > now else Usage(0, 1)

    def keys(self) -> Iterable[Hashable]:
        """The keys that are paused, or were lately."""
        return self._pauses

    def dump(self) -> Any:
        """The pauses, by key."""
        return [
            [write_key(key), *(None if at == -inf else at for at in (pause.until, pause.wall))]
            for key, pause in self._pauses.items()
        ]

    def load(self, state: Any) -> None:
        """Takes the pauses back."""
        for key, *ends in state:
            self._pauses.add(read_key(key), _Pause(*(-inf if at is None else at for at in ends)))

    def describe(self) -> str:
        """In words: "pauses when told to, for each host"."""
        return f"pauses when told to{per_key(self)}"

    def tell(self, usage: Usage) -> str:
        """In words: "was told to slow down"."""
        return "was told to slow down" if usage.used else "is not paused"

    def __repr__(self) -> str:
        return call(self, default_seconds=self._default if self._default != 1.0 else None)
