"""The messages that a worker holds: their leases, their groups, their size."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from async_task_manager.queues.base import Message
from async_task_manager.task import Task

__all__ = ["Held", "HeldMessages"]


@dataclass(slots=True, eq=False)
class Held:
    """A message from its receive to its acknowledgement, or whatever else becomes of it."""

    message: Message
    until: float
    """When its lease runs out, by the loop's clock."""
    task: Task[Any] | None = None
    """None: it stands behind another of its group."""
    begun: bool = False
    """A handler has seen it."""
    lost: bool = False
    """Its lease is another's by now."""
    settled: bool = False
    """The queue is being told what became of it."""


class HeldMessages:
    """All of them, with their count and size bounded by whoever asks for more."""

    def __init__(self) -> None:
        self._by_id: dict[str, Held] = {}
        self._groups: dict[str, deque[Held]] = {}
        self.bytes = 0
        self.waiting = 0
        """Those that no handler has seen yet."""

    def __len__(self) -> int:
        return len(self._by_id)

    def __iter__(self) -> Iterator[Held]:
        return iter(tuple(self._by_id.values()))

    def __contains__(self, held: Held) -> bool:
        return self._by_id.get(held.message.id) is held

    def get(self, id: str) -> Held | None:
        """The one with this id."""
        return self._by_id.get(id)

    def add(self, message: Message, until: float) -> tuple[Held, bool]:
        """Holds it; False: not as the first of its group, or it was held already.

        A queue that gives a message out again to whoever holds it gives a new receipt, and the old
        one is void.
        """
        held = self._by_id.get(message.id)
        if held is not None:
            held.message, held.until = message, until
            return held, False
        held = self._by_id[message.id] = Held(message, until)
        self.bytes += message.size
        self.waiting += 1
        group = message.attributes.get("group_id")
        if group is None:
            return held, True
        members = self._groups.setdefault(group, deque())
        members.append(held)
        return held, len(members) == 1

    def begin(self, held: Held) -> bool:
        """A handler sees it; False: not for the first time."""
        if held.begun:
            return False
        held.begun = True
        self.waiting -= 1
        return True

    def remove(self, held: Held) -> Held | None:
        """It is held no more; gives the one that stood behind it."""
        if held not in self:
            return None
        del self._by_id[held.message.id]
        self.bytes -= held.message.size
        if not held.begun:
            self.waiting -= 1
        group = held.message.attributes.get("group_id")
        if group is None:
            return None
        members = self._groups[group]
        first = members[0] is held
        members.remove(held)
        if not members:
            del self._groups[group]
            return None
        return members[0] if first else None

    def behind(self, held: Held) -> list[Held]:
        """Those that stand behind it in its group."""
        members = tuple(self._groups.get(held.message.attributes.get("group_id", ""), ()))
        return list(members[members.index(held) + 1 :]) if held in members else []
