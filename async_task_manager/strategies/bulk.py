"""Many as one: items that belong together become one call."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Hashable, Sequence
from typing import TYPE_CHECKING, Any, TypeAlias

from async_task_manager._validate import awaitable, number, optional, whole
from async_task_manager.errors import InvalidType, TaskTimeout
from async_task_manager.strategies._batch import Batch
from async_task_manager.strategies._fields import check_field, said
from async_task_manager.strategies.base import Collector, Item, KeySpec

if TYPE_CHECKING:
    from async_task_manager.task import Task

__all__ = ["Batch", "BulkStrategy", "Item"]

Handler: TypeAlias = Callable[[list[Any]], Awaitable[Sequence[Any]]]


class BulkStrategy(Collector):
    """Items that are added one by one reach ``handler`` in batches; each gets a result of its own.

    ``manager.add_task(Item(value))`` gives a task as any other; its result is what
    ``await handler(values)`` gives for that value. Tasks with work of their own pass unchanged.

    A result that is an exception fails its item alone. An error that the handler raises, and the
    timeout, fail every item of the call; where the chain retries, each is retried by itself.

    Args:
        handler: An async function of a list of values that gives a list of results, one for each
            value, in the same order.
        max_size: How many items a batch has at most, at least 1 and ``min_size``: with so many,
            it closes.
        max_wait: Seconds, at least 0, that an item waits for others: so long after its first one
            came, a batch closes. 0: with what is added in the same turn of the event loop.
        min_size: How many it has at least, from 1 to ``max_size``: with fewer it goes on waiting
            after ``max_wait``, until ``stop`` or ``join``.
        timeout: Seconds, above 0, that a call may take; past them it is cancelled, and its items
            end with `TaskTimeout`. None: any time.
        key: What the items of a batch have in common, a metadata name or a callable; None: nothing.

    Raises:
        InvalidValue, InvalidType: a parameter is out of range or has the wrong type.

    ``max_size``, ``max_wait``, ``min_size`` and ``timeout`` can be set at any time. Adding an item
    is O(1) for each limit of the chain.
    """

    def __init__(
        self,
        handler: Handler,
        *,
        max_size: int = 100,
        max_wait: float = 0.05,
        min_size: int = 1,
        timeout: float | None = None,
        key: KeySpec = None,
    ) -> None:
        if not callable(handler):
            raise InvalidType(f"handler must be an async function of a list, not {handler!r}")
        check_field("key", key, optional=True)
        self.handler = handler
        self.key = key
        self._max_size = whole("max_size", max_size, at_least=1)
        self._max_wait = number("max_wait", max_wait, at_least=0)
        self._min_size = whole("min_size", min_size, at_least=1, at_most=max_size)
        self._timeout = optional(number, "timeout", timeout, above=0)

    @property
    def max_size(self) -> int:
        """How many items a batch has at most."""
        return self._max_size

    @max_size.setter
    # It can be set, and acts at once.
    def max_size(self, value: int) -> None:  # pyright: ignore[reportIncompatibleVariableOverride]
        self._max_size = whole("max_size", value, at_least=self._min_size)
        self.changed()

    @property
    def max_wait(self) -> float:
        """Seconds that an item waits for others."""
        return self._max_wait

    @max_wait.setter
    # It can be set, and acts at once.
    def max_wait(self, value: float) -> None:  # pyright: ignore[reportIncompatibleVariableOverride]
        self._max_wait = number("max_wait", value, at_least=0)
        self.changed()

    @property
    def min_size(self) -> int:
        """How many items a batch has at least."""
        return self._min_size

    @min_size.setter
    # It can be set, and acts at once.
    def min_size(self, value: int) -> None:  # pyright: ignore[reportIncompatibleVariableOverride]
        self._min_size = whole("min_size", value, at_least=1, at_most=self._max_size)
        self.changed()

    @property
    def timeout(self) -> float | None:
        """Seconds that a call may take; it counts for calls from now on."""
        return self._timeout

    @timeout.setter
    def timeout(self, value: float | None) -> None:
        self._timeout = optional(number, "timeout", value, above=0)

    def key_of(self, task: Task) -> Hashable:
        """The item's key; a metadata name that is missing gives None, a key of its own."""
        return None if self.key is None else said(self.key, task)

    async def call(self, tasks: Sequence[Task]) -> Sequence[Any]:
        """One call of the handler, for at most ``timeout`` seconds."""
        values = [item.value for item in map(Item.of, tasks) if item is not None]
        del tasks  # an error holds this frame, and each of them the error
        limit = asyncio.timeout(self._timeout)
        try:
            async with limit:
                results: Sequence[Any] = await awaitable("handler", self.handler(values))
                return results
        except TimeoutError as error:
            if not limit.expired():
                raise  # the handler's own
            raise TaskTimeout(
                f"{self!r}: a call with {len(values)} items ran longer than {self._timeout} s"
            ) from error

    def __repr__(self) -> str:
        given = {
            "max_size": (self._max_size, 100),
            "max_wait": (self._max_wait, 0.05),
            "min_size": (self._min_size, 1),
            "timeout": (self._timeout, None),
            "key": (self.key, None),
        }
        options = {name: value for name, (value, usual) in given.items() if value != usual}
        shown = [
            _name(self.handler),
            *(f"{name}={_name(value)}" for name, value in options.items()),
        ]
        return f"{type(self).__name__}({', '.join(shown)})"


def _name(value: object) -> str:
    return str(getattr(value, "__qualname__", repr(value)))
