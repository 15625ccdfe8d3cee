"""How many messages a worker receives ahead."""

from __future__ import annotations

from async_task_manager.worker._held import HeldMessages

__all__ = ["Ahead"]

AT_ONCE = 100
"""Messages of one receive: how large they are is known only then."""


class Ahead:
    """As many may wait in the worker as its chain has begun within the last second.

    Args:
        held: The worker's messages.
        least: So many at least: a batch, if the handler takes batches.
        max_held: How many may be held at most, begun or not.
        max_bytes: No more while those held have so many bytes.
    """

    def __init__(self, held: HeldMessages, least: int, max_held: int, max_bytes: int) -> None:
        self._held = held
        self._least = min(least, max_held)
        self._max_held = max_held
        self._max_bytes = max_bytes
        self._window = self._least
        """How many may wait."""
        self._begun = 0
        """How many were begun in the present second."""
        self._full = False
        """The last receive gave all that was asked for."""

    def begun(self, count: int) -> None:
        """So many were begun now."""
        self._begun += count

    def tick(self) -> None:
        """A second is over."""
        self._window = min(max(self._least, self._begun), self._max_held)
        self._begun = 0

    def came(self, count: int, room: int) -> None:
        """A receive that asked for ``room`` gave ``count``."""
        self._full = count == room

    def room(self) -> int:
        """How many more the chain can use soon; 0 while half of that still waits."""
        held = self._held
        if self._full and not held.waiting:  # it took at once all that there was room for
            self._full = False
            self._window = min(2 * self._window, self._max_held)
        if held.bytes >= self._max_bytes or 2 * held.waiting > self._window:
            return 0
        room = min(self._window - held.waiting, self._max_held - len(held))
        if len(held):
            left = (self._max_bytes - held.bytes) * len(held) // (held.bytes or 1)
            room = min(room, 1 + left)
        return max(min(room, AT_ONCE), 0)
