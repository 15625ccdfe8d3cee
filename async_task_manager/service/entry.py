"""The light handle that the chain holds of a task; its payload stays in the store meanwhile."""

from __future__ import annotations

import asyncio
import logging
import traceback
from typing import TYPE_CHECKING, Any

from async_task_manager.errors import InvalidValue
from async_task_manager.runner.results import dumps
from async_task_manager.service.records import Status
from async_task_manager.task import Task, current_task

if TYPE_CHECKING:
    from collections.abc import Callable

    from async_task_manager.service.core import Core
    from async_task_manager.service.registry import Function

__all__ = ["Entry", "clean", "error_of"]

logger = logging.getLogger("async_task_manager.service")

LONGEST_MESSAGE = 2000
LONGEST_TEXT = 200


class Entry:
    """A task that has not ended, and its work: the manager calls it when its turn has come."""

    __slots__ = (
        "attempt",
        "core",
        "function",
        "level",
        "number",
        "result",
        "revoked",
        "started",
        "status",
        "submitted",
        "task",
        "user_id",
        "waiters",
    )

    task: Task[Any]

    def __init__(
        self,
        core: Core,
        number: int,
        function: Function,
        user_id: str,
        submitted: float,
    ) -> None:
        self.core = core
        self.number = number
        self.function = function
        self.user_id = user_id
        self.submitted = submitted
        self.status: Status = "PENDING"
        self.attempt = 0
        self.started: float | None = None
        self.level: str | None = None
        self.result = b"null"
        self.revoked = False
        self.waiters: list[asyncio.Future[None]] | None = None

    @property
    def func(self) -> Callable[..., Any]:
        """After which the task is called in logs and traces, as if this were a partial."""
        return self.function.fn

    async def __call__(self) -> None:
        """One attempt: durable that it runs, then the function, then its result as JSON."""
        core = self.core
        task = current_task()
        provider = task.provider if task is not None else None
        self.attempt, args = await core.started(self.number, provider)
        call = self.function.bound(args)
        try:
            value = await call() if self.function.is_async else await core.threads.run(call)
        except (SystemExit, KeyboardInterrupt) as error:
            # It would end the loop, and with it everybody's service: signals come to the server,
            # so this one is the function's own.
            raise RuntimeError(f"the function raised {error!r}") from error
        result = _json(value)
        if len(result) > core.max_result_bytes:
            raise InvalidValue(
                f"the result is {len(result)} bytes of JSON, at most {core.max_result_bytes} "
                "are kept (max_result_bytes)"
            )
        self.result = result

    def attempt_over(self, attempt: int, error: BaseException | None) -> dict[str, Any]:
        """An attempt that was not the last, for the task's history."""
        return {
            "attempt": attempt,
            "started_at": self.started,
            "ended_at": self.core.wall(),
            "error": None if error is None else error_of(error),
        }

    def ended(self) -> None:
        """The end is stored: tells whoever waits."""
        waiters, self.waiters = self.waiters, None
        for future in waiters or ():
            if not future.done():
                future.set_result(None)

    async def wait(self, seconds: float) -> None:
        """Waits for the stored end, at most so long; leaves nothing behind. To be awaited at once:
        whoever begins after the end waits for nothing.
        """
        future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        if self.waiters is None:
            self.waiters = []
        self.waiters.append(future)
        try:
            await asyncio.wait([future], timeout=seconds)
        finally:
            if self.waiters is not None:
                self.waiters.remove(future)

    def log_failure(self, error: BaseException) -> None:
        """One record, in which nothing from outside can pass for another."""
        frames = "".join(traceback.format_tb(error.__traceback__)).rstrip()
        logger.warning(
            "task %d (%s, user %s) failed: %s: %s%s",
            self.number,
            clean(self.function.name),
            clean(self.user_id),
            type(error).__name__,
            clean(_text(error), LONGEST_MESSAGE),
            f"\n{frames}" if frames else "",
        )


def error_of(error: BaseException) -> dict[str, str]:
    """An error as clients see it: no traceback, and no more of the message than they can use."""
    return {"type": type(error).__name__, "message": _text(error)[:LONGEST_MESSAGE]}


def clean(text: str, most: int = LONGEST_TEXT) -> str:
    """The text without what a log or a terminal would obey: control characters escaped."""
    cut = text if len(text) <= most else f"{text[:most]}…"
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in cut)


def _text(error: BaseException) -> str:
    try:
        return str(error)
    except Exception:
        return f"(the error's message could not be made: {type(error).__name__}.__str__ raised)"


def _json(value: Any) -> bytes:
    try:
        return dumps(value)
    except TypeError:
        from pydantic_core import PydanticSerializationError, to_jsonable_python

        try:
            return dumps(to_jsonable_python(value))  # models, dataclasses, dates ...
        except PydanticSerializationError as error:
            raise InvalidValue(f"the result is nothing that JSON can hold: {error}") from None
    except RecursionError:
        raise InvalidValue("the result is nested too deeply for JSON, or contains itself") from None
