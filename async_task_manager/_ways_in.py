"""Ways into a manager other than `add_task`: code in place, streams of items, many at once."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterable, Awaitable, Callable, Iterable
from contextlib import suppress
from functools import partial
from types import TracebackType
from typing import TYPE_CHECKING, Any, TypeVar

from async_task_manager.errors import InvalidState
from async_task_manager.task import Task, _current

if TYPE_CHECKING:
    from async_task_manager.manager import TaskManager

__all__ = ["Turn", "gathered", "mapped"]

T = TypeVar("T")
R = TypeVar("R")


class Waiting:
    """That whoever calls waits for tasks of the manager: a wait of one of its own tasks lends them
    its priority, and may be a deadlock.
    """

    def __init__(self, manager: TaskManager) -> None:
        caller = _current.get(None)
        self._manager = manager
        self._caller = caller if caller is not None and caller._host() is manager else None

    def begin(self, task: Task[Any]) -> None:
        if self._caller is not None and not task.done():
            self._manager.waits(self._caller, task)

    def end(self, task: Task[Any]) -> None:
        if self._caller is not None:
            self._manager.waits_no_more(self._caller, task)


class Turn:
    """A task whose work is the body of an ``async with``: its permits are held while that runs."""

    def __init__(
        self, manager: TaskManager, metadata: dict[str, Any], options: dict[str, Any]
    ) -> None:
        self._manager = manager
        self._metadata = metadata
        self._options = options
        self._task: Task[None] | None = None
        self._owner: asyncio.Task[Any] | None = None  # while the body runs
        self._struck = False
        """The task ended under the body, which was cancelled for it."""

    async def __aenter__(self) -> Task[None]:
        if self._task is not None:
            raise InvalidState("a turn is taken once: call manager.turn() for each")
        self._manager._check_started("turn()")
        if self._manager._chain.feedbacks:
            raise InvalidState(
                "the chain may run a task again, and the body of a turn runs once: "
                "use manager.wrap(), or another manager"
            )
        loop = asyncio.get_running_loop()
        self._came: asyncio.Future[None] = loop.create_future()
        self._left: asyncio.Future[None] = loop.create_future()
        self._over: asyncio.Future[None] = loop.create_future()
        task = self._task = self._manager.add_task(self._hold(), self._metadata, **self._options)
        task.add_done_callback(self._ended)
        waiting = Waiting(self._manager)
        waiting.begin(task)
        try:
            await self._came
        except asyncio.CancelledError:
            task.cancel()
            raise
        finally:
            waiting.end(task)
        if task.done():
            task.result()  # rejected, expired or cancelled: its turn never came
        self._owner = asyncio.current_task()
        assert self._owner is not None
        self._cancelling = self._owner.cancelling()
        self._token = _current.set(task)
        return task

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        with suppress(ValueError):  # left in another context than entered: then that one is gone
            _current.reset(self._token)
        task, owner, self._owner = self._task, self._owner, None
        assert task is not None
        assert owner is not None
        if self._struck:
            ours = owner.uncancel() <= self._cancelling
            if ours and isinstance(error, asyncio.CancelledError):
                task.result()  # raises what ended it
            return
        if not self._left.done():
            if error is None:
                self._left.set_result(None)
            elif isinstance(error, Exception) and not isinstance(error, StopIteration):
                self._left.set_exception(error)
            else:
                task.cancel()
        try:
            await self._over  # then the permits are back
        finally:
            if error is not None:
                error.__traceback__ = traceback  # without the frames that it went through here
            del error, traceback

    async def _hold(self) -> None:
        if not self._came.done():  # else whoever waits was cancelled just now, and cancels this
            self._came.set_result(None)
        await self._left

    def _ended(self, task: Task[None]) -> None:
        if not self._over.done():  # else the caller was cancelled as it left
            self._over.set_result(None)
        if task.state == "failed":
            task.exception()  # whoever runs the body gets it
        if not self._came.done():
            self._came.set_result(None)
        elif self._owner is not None:
            self._struck = True
            self._owner.cancel()


async def mapped(
    manager: TaskManager,
    fn: Callable[[T], Awaitable[R]],
    items: Iterable[T] | AsyncIterable[T],
    *,
    ordered: bool,
    ahead: int,
    metadata_of: Callable[[T], dict[str, Any] | None],
) -> AsyncGenerator[R, None]:
    """The results of ``fn`` for all items; at most ``ahead`` items are in between."""
    room = asyncio.Semaphore(ahead)
    ready: asyncio.Queue[Task[R] | None] = asyncio.Queue()
    alive: dict[Task[R], None] = {}
    waiting = Waiting(manager)

    async def take(item: T) -> None:
        await room.acquire()
        task = await manager.put(partial(fn, item), metadata_of(item))
        alive[task] = None
        waiting.begin(task)
        if ordered:
            ready.put_nowait(task)
        else:
            task.add_done_callback(ready.put_nowait)

    async def feed() -> None:
        if isinstance(items, AsyncIterable):
            async for item in items:
                await take(item)
        else:
            for item in items:
                await take(item)

    def fed(feeder: asyncio.Task[None]) -> None:
        if not feeder.cancelled():
            feeder.exception()  # it is raised below, unless the iteration was left before
        ready.put_nowait(None)

    feeder = asyncio.create_task(feed())
    feeder.add_done_callback(fed)
    try:
        while not feeder.done() or alive:
            task = await ready.get()
            if task is None:
                feeder.result()  # raises what the items, or their metadata, raised
                continue
            try:
                result = await task.wait()
            except Exception:
                for other in alive:
                    other.add_done_callback(no_news)
                raise
            del alive[task]
            waiting.end(task)
            room.release()
            yield result
    finally:
        feeder.cancel()
        for task in alive:
            waiting.end(task)
            task.cancel()


def no_news(task: Task[Any]) -> None:
    """Another failure was told, so that this one, if it is one, need not be logged."""
    if task.state != "cancelled":
        task.exception()


async def gathered(
    manager: TaskManager, tasks: list[Task[Any]], return_exceptions: bool
) -> list[Any]:
    """The results of all, in order; a wait that is cancelled cancels them."""
    waiting = Waiting(manager)
    over: asyncio.Future[Task[Any] | None] = asyncio.get_running_loop().create_future()
    left = len(tasks)

    def ended(task: Task[Any]) -> None:
        nonlocal left
        left -= 1
        if over.done():
            no_news(task)
        elif task.state != "succeeded" and not return_exceptions:
            over.set_result(task)
        elif not left:
            over.set_result(None)

    for task in tasks:
        task.add_done_callback(ended)
        waiting.begin(task)
    if not tasks:
        return []
    try:
        failed = await over
    except asyncio.CancelledError:
        for task in tasks:
            task.cancel()
        raise
    finally:
        for task in tasks:
            waiting.end(task)
    if failed is not None:
        failed.result()
    return [outcome(task) if return_exceptions else task.result() for task in tasks]


def outcome(task: Task[Any]) -> Any:
    """The result, or the error in its place."""
    try:
        return task.result()
    except (Exception, asyncio.CancelledError) as error:
        return error
