"""What a message queue is: the protocol that all backends speak, and what goes through it."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from types import TracebackType
from typing import TYPE_CHECKING, Any

from async_task_manager._validate import number
from async_task_manager.errors import InvalidType, InvalidValue

if TYPE_CHECKING:
    from typing import Self

__all__ = ["DeadLetter", "Depth", "Message", "MessageQueue"]


@dataclass(frozen=True, slots=True)
class Message:
    """What is sent, and what is received.

    These attributes mean something; others go along as they are, JSON like the body:

    | attribute | is |
    |---|---|
    | `priority` | a number, higher first, or "high", "normal", "low" |
    | `user_id` | whom it is for: users take turns |
    | `delay_seconds` | not to be received before that many seconds have passed |
    | `group_id` | messages of one group come one after another, in the order of their sending |
    | `deduplication_id` | a second message with the same one within five minutes is not sent |
    """

    body: Any
    """A JSON value: dict, list, str, int, float, bool or None."""
    attributes: Mapping[str, Any] = field(default_factory=dict)
    id: str = ""
    """Given by the queue."""
    receive_count: int = 0
    """How many times it was received, this time included: more than 1 says that an earlier
    receiver failed, or died, or was too slow.
    """
    size: int = field(default=0, repr=False, compare=False)
    """Bytes of the body and the attributes."""
    receipt: Any = field(default=None, repr=False, compare=False)
    """What proves to the queue that one holds the lease."""


@dataclass(frozen=True, slots=True)
class DeadLetter:
    """A message that was given up, and why."""

    id: str
    body: str
    """As it was stored: perhaps no JSON."""
    attributes: Mapping[str, Any]
    receive_count: int
    reason: str
    died_at: float
    """Epoch seconds."""


@dataclass(frozen=True, slots=True)
class Depth:
    """How many messages there are; on SQS approximately."""

    ready: int
    """Can be received now, or as soon as those before them in their group are gone."""
    delayed: int
    """Wait for their time."""
    in_flight: int
    """Received, and not acknowledged yet."""
    dead: int
    """Dead letters."""


def delays(batch: Sequence[Message], delay: float | Sequence[float]) -> list[float]:
    """One for each message, checked."""
    if not isinstance(delay, Sequence):
        return [number("delay", delay, at_least=0)] * len(batch)
    if len(delay) != len(batch):
        raise InvalidValue(f"delay must be one, or {len(batch)}, not {len(delay)}")
    return [number("delay", one, at_least=0) for one in delay]


def reasons(batch: Sequence[Message], reason: str | Sequence[str]) -> list[str]:
    """One for each message, checked, and such that it can be stored."""
    given = [reason] * len(batch) if isinstance(reason, str) else list(reason)
    if len(given) != len(batch):
        raise InvalidValue(f"reason must be one, or {len(batch)}, not {len(given)}")
    for one in given:
        if not isinstance(one, str):
            raise InvalidType(f"reason must be a str, not {one!r}")
    # The name of a file in an error may hold what is no Unicode.
    return [one.encode("utf-8", "backslashreplace").decode() for one in given]


def receipts(batch: Sequence[Message]) -> list[Any]:
    """What proves the leases, of messages that were received."""
    for message in batch:
        if not isinstance(message, Message):
            raise InvalidType(f"a batch must hold messages that were received, not {message!r}")
        if message.receipt is None:
            raise InvalidValue(f"a batch must hold what was received, not {message!r}")
    return [message.receipt for message in batch]


class MessageQueue(ABC):
    """Messages at least once: received, it is leased, and comes again unless it is acknowledged.

    A received message is invisible to others for ``visibility_timeout`` seconds. Whoever needs it
    longer extends the lease; whoever lost it, because time ran out and another received the
    message, gets `LeaseLost`, and its acknowledgement does nothing. Handlers should bear to see
    a message twice.

    Methods that take a batch give one result for each of its messages, in order: None where it
    was done, else the error. ``async with`` opens and closes the queue.
    """

    visibility_timeout: float
    """Seconds that a received message is invisible to others, until it is extended."""
    max_receives: int
    """A message that failed so often is given up: it becomes a dead letter."""

    @abstractmethod
    async def open(self) -> None:
        """Makes sure that the queue can be used: finds it, checks the file. The first call does it,
        too.
        """

    async def send(self, batch: Iterable[Message]) -> list[str]:
        """Sends all, durably, and gives their ids.

        A message whose ``deduplication_id`` was sent lately gets the id of the first; on SQS, one
        of its own.

        Raises:
            InvalidType, InvalidValue: one is no message, or its body or an attribute can't be sent;
                then none was.
            SendFailed: some were not sent; it says which, and why.
        """
        from async_task_manager.queues._drafts import drafted

        return await self._send([drafted(message, i) for i, message in enumerate(batch)])

    @abstractmethod
    async def _send(self, drafts: list[Any]) -> list[str]: ...

    @abstractmethod
    async def receive(
        self, max_messages: int = 10, wait_seconds: float = 0.0, *, ahead: bool = False
    ) -> list[Message]:
        """Up to so many messages, each leased for ``visibility_timeout`` seconds.

        A message whose body is no JSON is not given out: it becomes a dead letter.

        Args:
            max_messages: At least 1.
            wait_seconds: For the first one; none by then: an empty list.
            ahead: More than is worked on at once. Of a message that comes again, this receive
                counts only when `begin` is told of it, so that what stands beside a message
                that kills its receivers isn't given up with it. (On SQS every receive counts.)
        """

    async def begin(self, batch: Sequence[Message]) -> list[Exception | None]:
        """Work on them, which were received ahead, begins."""
        return [None] * len(batch)

    @abstractmethod
    async def acknowledge(self, batch: Sequence[Message]) -> list[Exception | None]:
        """They are done, and gone for good."""

    @abstractmethod
    async def extend(self, batch: Sequence[Message], seconds: float) -> list[Exception | None]:
        """Their leases end ``seconds`` from now."""

    @abstractmethod
    async def release(
        self,
        batch: Sequence[Message],
        delay: float | Sequence[float] = 0.0,
        *,
        reason: str | Sequence[str] = "",
        counted: bool = True,
    ) -> list[Exception | None]:
        """Gives them back, to be received again in ``delay`` seconds.

        Args:
            batch: Received messages.
            delay: Seconds, at least 0; or one for each.
            reason: What went wrong, or one for each, for the dead letter that may come of it: a
                message that was received ``max_receives`` times becomes one.
            counted: False: they were not looked at, and this receive shall not count (on SQS it
                does).
        """

    @abstractmethod
    async def dead_letter(
        self, batch: Sequence[Message], reason: str | Sequence[str]
    ) -> list[Exception | None]:
        """Gives them up for good, and keeps them as dead letters, with one reason or one each."""

    @abstractmethod
    async def dead_letters(self, limit: int = 100) -> list[DeadLetter]:
        """Those that were given up, the oldest first (on SQS, a sample)."""

    @abstractmethod
    async def redrive(self, ids: Iterable[str] | None = None) -> int:
        """Sends dead letters again, these or all, with no receive counted; gives how many."""

    @abstractmethod
    async def depth(self) -> Depth:
        """How many messages there are."""

    @abstractmethod
    async def close(self) -> None:
        """Lets go of files and connections; twice is as good as once. Leases stay as they are."""

    async def __aenter__(self) -> Self:
        try:
            await self.open()
        except BaseException:
            await self.close()
            raise
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self.close()
