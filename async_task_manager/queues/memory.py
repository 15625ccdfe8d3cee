"""A queue in memory: for tests and examples, and to say plainly what the others do."""

from __future__ import annotations

import asyncio
import time
import uuid
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from heapq import heappop, heappush
from typing import Any

from async_task_manager._validate import number, whole
from async_task_manager.errors import InvalidState, LeaseLost
from async_task_manager.queues._drafts import DEDUPLICATION_SECONDS, Draft, decoded
from async_task_manager.queues.base import (
    DeadLetter,
    Depth,
    Message,
    MessageQueue,
    delays,
    reasons,
    receipts,
)

__all__ = ["MemoryQueue"]


@dataclass(slots=True, eq=False)
class _Entry:
    seq: int
    id: str
    draft: Draft
    tag: float
    receives: int = 0
    token: int = 0
    """The fencing token: another one whenever the message changes hands."""
    due: float | None = None
    """When it will be ready; None: it is, or stands behind another of its group."""
    leased: bool = False
    begun: bool = True
    """False: it came again, and was received ahead of its time."""
    version: int = 0
    """Entries of the heaps that say another one are void."""
    reason: str = ""
    """Of the last failure."""


class MemoryQueue(MessageQueue):
    """A queue that lives as long as this object, on the time of the event loop.

    Args:
        visibility_timeout: Seconds of a lease, above 0.
        max_receives: How often a message may fail before it becomes a dead letter, at least 1.
    """

    def __init__(self, *, visibility_timeout: float = 30.0, max_receives: int = 5) -> None:
        self.visibility_timeout = number("visibility_timeout", visibility_timeout, above=0)
        self.max_receives = whole("max_receives", max_receives, at_least=1)
        self._entries: dict[int, _Entry] = {}
        self._last = 0
        self._ready: list[tuple[float, float, int, int]] = []
        """(rank, tag, seq, version)"""
        self._waiting: list[tuple[float, int, int]] = []
        """(due, seq, version)"""
        self._groups: dict[str, deque[int]] = {}
        self._clocks: dict[float, float] = {}
        """Of each rank: how far the turns have come."""
        self._turns: dict[tuple[float, str], float] = {}
        """Of each rank and user: the next turn."""
        self._sent: dict[str, tuple[str, float]] = {}
        """Of each deduplication id: the message, and until when it counts."""
        self._dead: dict[str, tuple[_Entry, DeadLetter]] = {}
        self._arrived = asyncio.Event()
        self._closed = False

    async def open(self) -> None:
        """See `MessageQueue.open`."""
        self._now()

    async def _send(self, drafts: list[Draft]) -> list[str]:
        now = self._now()
        return [self._add(draft, now) for draft in drafts]

    def _add(self, draft: Draft, now: float) -> str:
        if draft.deduplication is not None:
            # Insertion order is the order of expiry.
            while self._sent and next(iter(self._sent.values()))[1] <= now:
                del self._sent[next(iter(self._sent))]
            if draft.deduplication in self._sent:
                return self._sent[draft.deduplication][0]
        self._last += 1
        entry = _Entry(self._last, uuid.uuid4().hex, draft, self._turn(draft))
        self._entries[entry.seq] = entry
        if draft.delay:
            entry.due = now + draft.delay
        if draft.deduplication is not None:
            self._sent[draft.deduplication] = entry.id, now + DEDUPLICATION_SECONDS
        if draft.group is not None:
            members = self._groups.setdefault(draft.group, deque())
            members.append(entry.seq)
            if len(members) > 1:
                return entry.id
        self._place(entry)
        return entry.id

    def _turn(self, draft: Draft) -> float:
        """Start-time fair queuing: a user's messages count one each, from the present turn on."""
        key = draft.rank, draft.user
        turn = max(self._turns.get(key, 0.0), self._clocks.get(draft.rank, 0.0))
        self._turns[key] = turn + 1
        return turn

    def _place(self, entry: _Entry) -> None:
        """It is ready, or will be when it is due."""
        entry.version += 1
        if entry.due is None:
            heappush(self._ready, (entry.draft.rank, entry.tag, entry.seq, entry.version))
        else:
            heappush(self._waiting, (entry.due, entry.seq, entry.version))
        self._arrived.set()

    def _promote(self, now: float) -> float | None:
        """What is due becomes ready; gives when the next will be."""
        while self._waiting:
            due, seq, version = self._waiting[0]
            entry = self._entries.get(seq)
            if entry is not None and entry.version == version:
                if due > now:
                    return due
                if entry.leased and entry.begun and entry.receives >= self.max_receives:
                    told = f"received {entry.receives} times and never acknowledged"
                    last = f"{told}; the last failure: {entry.reason}"
                    self._bury(entry, last if entry.reason else told)
                else:
                    entry.receives -= not entry.begun
                    entry.due, entry.leased, entry.begun = None, False, True
                    self._place(entry)
            else:
                heappop(self._waiting)
        return None

    async def receive(
        self, max_messages: int = 10, wait_seconds: float = 0.0, *, ahead: bool = False
    ) -> list[Message]:
        """See `MessageQueue.receive`."""
        whole("max_messages", max_messages, at_least=1)
        number("wait_seconds", wait_seconds, at_least=0)
        give_up = self._now() + wait_seconds
        while True:
            now = self._now()
            due = self._promote(now)
            claimed = self._claim(max_messages, now, ahead)
            if claimed or now >= give_up:
                return claimed
            self._arrived.clear()
            wake = give_up if due is None else min(give_up, due)
            try:
                async with asyncio.timeout_at(wake):
                    await self._arrived.wait()
            except TimeoutError:
                pass

    def _claim(self, most: int, now: float, ahead: bool) -> list[Message]:
        claimed: list[Message] = []
        while self._ready and len(claimed) < most:
            rank, tag, seq, version = heappop(self._ready)
            entry = self._entries.get(seq)
            if entry is None or entry.version != version:
                continue
            self._clocks[rank] = max(self._clocks.get(rank, 0.0), tag)
            entry.begun = not (ahead and entry.receives)
            entry.receives += 1
            entry.token += 1
            entry.leased = True
            entry.due = now + self.visibility_timeout
            self._place(entry)
            claimed.append(_message(entry))
        if not self._entries:
            self._turns.clear()
            self._clocks.clear()
        return claimed

    async def begin(self, batch: Sequence[Message]) -> list[Exception | None]:
        """See `MessageQueue.begin`."""

        def begin(entry: _Entry, _: None) -> None:
            entry.begun = True

        return self._each(batch, begin)

    async def acknowledge(self, batch: Sequence[Message]) -> list[Exception | None]:
        """See `MessageQueue.acknowledge`."""
        return self._each(batch, lambda entry, _: self._remove(entry))

    async def extend(self, batch: Sequence[Message], seconds: float) -> list[Exception | None]:
        """See `MessageQueue.extend`."""
        number("seconds", seconds, at_least=0)
        due = self._now() + seconds

        def extend(entry: _Entry, _: None) -> None:
            entry.due, entry.leased = due, True
            self._place(entry)

        return self._each(batch, extend)

    async def release(
        self,
        batch: Sequence[Message],
        delay: float | Sequence[float] = 0.0,
        *,
        reason: str | Sequence[str] = "",
        counted: bool = True,
    ) -> list[Exception | None]:
        """See `MessageQueue.release`."""
        now = self._now()
        given = zip(delays(batch, delay), reasons(batch, reason), strict=True)

        def release(entry: _Entry, how: tuple[float, str]) -> None:
            seconds, why = how
            if not counted:
                entry.receives -= 1
            elif entry.receives < self.max_receives:
                entry.reason = why
            else:
                self._bury(entry, why or f"failed {entry.receives} times")
                return
            entry.token += 1
            entry.due, entry.leased = now + seconds if seconds else None, False
            entry.begun = True
            self._place(entry)

        return self._each(batch, release, given)

    async def dead_letter(
        self, batch: Sequence[Message], reason: str | Sequence[str]
    ) -> list[Exception | None]:
        """See `MessageQueue.dead_letter`."""
        return self._each(batch, self._bury, reasons(batch, reason))

    async def dead_letters(self, limit: int = 100) -> list[DeadLetter]:
        """See `MessageQueue.dead_letters`."""
        whole("limit", limit, at_least=1)
        self._promote(self._now())
        return [letter for _, letter in self._dead.values()][:limit]

    async def redrive(self, ids: Iterable[str] | None = None) -> int:
        """See `MessageQueue.redrive`."""
        now = self._now()
        self._promote(now)
        chosen = [id for id in (list(self._dead) if ids is None else ids) if id in self._dead]
        for id in chosen:
            dead, _ = self._dead.pop(id)
            self._add(dead.draft._replace(delay=0.0, deduplication=None), now)
            again = self._entries[self._last]
            again.id = id
        return len(chosen)

    async def depth(self) -> Depth:
        """See `MessageQueue.depth`."""
        now = self._now()
        self._promote(now)
        entries = self._entries.values()
        leased = sum(entry.leased for entry in entries)
        delayed = sum(e.due is not None and e.due > now and not e.leased for e in entries)
        ready = len(self._entries) - leased - delayed
        return Depth(ready, delayed, leased, len(self._dead))

    async def close(self) -> None:
        """See `MessageQueue.close`."""
        self._closed = True

    def _now(self) -> float:
        if self._closed:
            raise InvalidState(f"{self!r} was closed")
        return asyncio.get_running_loop().time()

    def _each(
        self,
        batch: Sequence[Message],
        act: Callable[[_Entry, Any], None],
        given: Iterable[Any] | None = None,
    ) -> list[Exception | None]:
        self._now()
        results: list[Exception | None] = []
        leases = receipts(batch)
        for (seq, token), how in zip(
            leases, [None] * len(leases) if given is None else given, strict=True
        ):
            entry = self._entries.get(seq)
            if entry is None or entry.token != token:
                results.append(LeaseLost("the lease was lost"))
            else:
                act(entry, how)
                results.append(None)
        return results

    def _bury(self, entry: _Entry, reason: str) -> None:
        draft = entry.draft
        self._remove(entry)
        self._dead[entry.id] = (
            entry,
            DeadLetter(entry.id, draft.body, draft.attributes, entry.receives, reason, time.time()),
        )

    def _remove(self, entry: _Entry) -> None:
        del self._entries[entry.seq]
        group = entry.draft.group
        if group is not None:
            members = self._groups[group]
            members.popleft()
            if members:
                self._place(self._entries[members[0]])
            else:
                del self._groups[group]

    def __repr__(self) -> str:
        return f"<MemoryQueue: {len(self._entries)} messages>"


def _message(entry: _Entry) -> Message:
    body, text = entry.draft.body, entry.draft.attributes_text
    return Message(
        decoded(body),
        decoded(text),
        entry.id,
        entry.receives,
        len(body) + len(text),
        (entry.seq, entry.token),
    )
