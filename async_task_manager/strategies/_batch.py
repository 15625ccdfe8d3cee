"""One call that does the work of several tasks.

To the machine below, a batch is one task: it has the lane of its members, the best of their ranks,
the arrival number of the first, and what they cost together. To everyone else, its members are
the tasks: they are what is counted, cancelled, expired, retried and observed.
"""

from __future__ import annotations

import asyncio
from collections.abc import Hashable, Iterator, Sequence
from math import inf
from typing import TYPE_CHECKING, Any

from async_task_manager.errors import InvalidType, InvalidValue
from async_task_manager.task import Task, TaskState

if TYPE_CHECKING:
    from async_task_manager.strategies.base import Collector

__all__ = ["CLOSED", "Batch"]

CLOSED = -inf
"""When a batch was due that is not open, or not any more."""


class Batch(Task[Any]):
    """The one call that does the work of several tasks: inside it, what `current_task` gives."""

    __slots__ = ("_call", "due", "members", "place")

    def __init__(self, collector: Collector, place: Hashable, first: Task[Any], now: float) -> None:
        self.members: dict[Task[Any], float] = {}
        """The tasks in it that have not ended, with the instant at which each came in."""
        self._call = _Call(collector, self.members)
        super().__init__(self._call)
        self.place = place
        """Which batch of those that are open it is: the bulk key, and the lane."""
        self.due = CLOSED
        """The instant at which it closes; inf: it waits for more tasks."""
        self._state = "queued"
        self._created = now
        self._lane = first._lane
        self._context = first._context
        self._costs, self._rank, self._seq = first._costs, first._rank, first._seq

    @property
    def name(self) -> str:
        """As a batch has none, its number."""
        return f"batch-{self.id}"

    @property
    def metadata(self) -> dict[str, Any]:
        """What all of its members say alike."""
        if self._metadata is None:
            said = [member.metadata for member in self._call.called or self.members]
            self._metadata = {
                field: value
                for field, value in (said[0].items() if said else ())
                if all(field in other and other[field] == value for other in said)
            }
        return self._metadata

    def parts(self, kind: TaskState, value: Any) -> Iterator[tuple[Task[Any], TaskState, Any]]:
        """How each member ended whose end is that of the call."""
        if kind != "succeeded":
            for member in tuple(self.members):
                yield member, kind, value
            return
        for member, result in zip(self._call.called, value, strict=True):
            if member not in self.members:
                continue  # it was cancelled by itself
            if isinstance(result, asyncio.CancelledError):
                yield member, "cancelled", result
            elif isinstance(result, BaseException):
                yield member, "failed", result
            else:
                yield member, "succeeded", result

    def _end(self, state: TaskState, value: Any) -> None:
        super()._end(state, None if state == "succeeded" else value)
        if state == "failed":
            self.exception()  # its members have the error; nobody waits for the batch


class _Call:
    """The work of a batch."""

    __slots__ = ("called", "collector", "members")

    def __init__(self, collector: Collector, members: dict[Task[Any], float]) -> None:
        self.collector = collector
        self.members = members
        self.called: tuple[Task[Any], ...] = ()
        """Those that were in it at the first instruction."""

    async def __call__(self) -> Sequence[Any]:
        self.called = tuple(self.members)
        try:
            results = await self.collector.call(self.called)
        except BaseException:
            self.called = ()  # the error holds this frame, and must not lead back to its tasks
            raise
        if not isinstance(results, Sequence) or isinstance(results, str | bytes):
            raise InvalidType(
                f"{self.collector!r} must give a list with a result for each item, not {results!r}"
            )
        if len(results) != len(self.called):
            raise InvalidValue(
                f"{self.collector!r} gave {len(results)} results for {len(self.called)} items: it "
                "must give one for each, in their order (an exception fails that item alone)"
            )
        return results
