"""TaskService: functions, offered to many users over HTTP, and shared fairly."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any, TypeVar, overload

from async_task_manager.errors import InvalidState
from async_task_manager.service.core import Core
from async_task_manager.service.registry import Registry
from async_task_manager.service.settings import Settings
from async_task_manager.service.store import path_of
from async_task_manager.service.web.app import WebApp
from async_task_manager.strategies.base import BaseStrategy

if TYPE_CHECKING:
    from pydantic import BaseModel

__all__ = ["TaskService"]

F = TypeVar("F", bound=Callable[..., Any])


class TaskService:
    """A strategy, a store and functions: all that `atm serve` needs.

    Args:
        strategy: What decides when a task starts, and whose; a `Chain` of several.
        store: Where tasks are kept, ``"sqlite:///tasks.db"``: one file, of one service.
        queue: The message queue behind ``POST /messages``, as `open_queue` takes it; not the file
            of the store.
        message_model: What the body of a message must be; None: any JSON.
        result_ttl: Seconds for which a result is kept, above 0.
        max_results: How many ended tasks are kept; beyond that, the oldest are forgotten.
        max_result_bytes: Of one result, as JSON; a longer one is a failure.
        max_store_bytes: Of all ended tasks that are kept, arguments and results.
        max_queued: How many tasks may wait; one more is answered with 503.
        max_body_bytes: Of a request's body.
        max_interruptions: A task that ran at so many deaths of the process has failed: it may be
            their cause.
        threads: For functions that are not async, at once.
        grace: Seconds that what runs gets when the service stops; what then still runs is
            interrupted, and runs again after the next start.

    Raises:
        InvalidValue, InvalidType: a parameter is out of range, or has the wrong type.
    """

    def __init__(
        self,
        strategy: BaseStrategy,
        store: str = "sqlite:///tasks.db",
        *,
        queue: str | None = None,
        message_model: type[BaseModel] | None = None,
        result_ttl: float = 86_400,
        max_results: int = 100_000,
        max_result_bytes: int = 1 << 20,
        max_store_bytes: int = 1 << 30,
        max_queued: int = 100_000,
        max_body_bytes: int = 1 << 20,
        max_interruptions: int = 3,
        threads: int = 32,
        grace: float = 10.0,
    ) -> None:
        self._settings = Settings(
            path=path_of(store),
            result_ttl=result_ttl,
            max_results=max_results,
            max_result_bytes=max_result_bytes,
            max_store_bytes=max_store_bytes,
            max_queued=max_queued,
            max_body_bytes=max_body_bytes,
            max_interruptions=max_interruptions,
            threads=threads,
            grace=grace,
            queue=queue,
        )
        self._message_model = message_model
        self._registry = Registry()
        self._core = Core(strategy, self._registry, self._settings)

    @overload
    def task(self, fn: F, /, *, name: str | None = None, run_timeout: float | None = None) -> F: ...
    @overload
    def task(
        self, fn: None = None, /, *, name: str | None = None, run_timeout: float | None = None
    ) -> Callable[[F], F]: ...
    def task(
        self, fn: Any = None, /, *, name: str | None = None, run_timeout: float | None = None
    ) -> Any:
        """Offers a function, async or not (then it runs in a thread); also as a decorator.

        Its signature says what arguments it takes: they are checked against the annotations when
        a task is submitted. It should return what JSON can hold.

        Args:
            fn: The function; it stays as it is.
            name: What clients call it; by default its own name.
            run_timeout: Seconds that one attempt may run.

        Raises:
            InvalidValue, InvalidType: the name is taken, or the signature can't be checked.
        """

        def register(function: F) -> F:
            self._registry.add(function, name=name, run_timeout=run_timeout)
            return function

        return register if fn is None else register(fn)

    def app(
        self,
        *,
        tokens: Iterable[str] = (),
        hosts: Iterable[str] = (),
        body_seconds: float = 30.0,
    ) -> WebApp:
        """The ASGI application, for a server of your own; its lifespan is the service's.

        Heads of requests, and connections, are bounded by `serve` alone.
        """
        if not len(self._registry):
            raise InvalidState("the service offers nothing yet: decorate a function with .task")
        return WebApp(
            self._core,
            tokens=tuple(tokens),
            hosts=hosts,
            body_seconds=body_seconds,
            message_model=self._message_model,
            on_start=self._core.start,
            on_stop=lambda: self._core.stop(self._settings.grace),
        )

    def serve(
        self,
        host: str = "127.0.0.1",
        port: int = 8000,
        *,
        tokens: Iterable[str] = (),
        hosts: Iterable[str] = (),
        max_connections: int = 1000,
        head_seconds: float = 10.0,
        body_seconds: float = 30.0,
        on_listening: Callable[[str], object] | None = None,
    ) -> None:
        """Serves until SIGINT or SIGTERM: then nothing more is taken in or started, and what runs
        gets its grace.

        Args:
            host: The address to listen on. One that others can reach needs a token.
            port: 0 takes a free one.
            tokens: Any of which opens the service (``Authorization: Bearer``).
            hosts: Names under which it is reached, beside addresses and ``localhost``.
            max_connections: At once.
            head_seconds: Within which the head of a request must come.
            body_seconds: Within which its body must come.
            on_listening: Gets the URL when the service answers.

        Raises:
            InvalidValue: a public address without a token, a parameter out of range.
            InvalidState: another service has the store.
            StoreError: the store is damaged, or none of ours.
            OSError: the address is taken.
        """
        from async_task_manager.service.web.serving import serve

        tokens = tuple(tokens)
        serve(
            self.app(tokens=tokens, hosts=hosts, body_seconds=body_seconds),
            host,
            port,
            secured=bool(tokens),
            max_connections=max_connections,
            head_seconds=head_seconds,
            on_listening=on_listening,
        )
