"""The resources and their paths, as one ASGI application."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Iterable
from typing import Any

from pydantic import BaseModel
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route
from starlette.types import ASGIApp, Receive, Scope, Send

from async_task_manager.service.core import Core
from async_task_manager.service.web.guard import Guard
from async_task_manager.service.web.messages import Messages
from async_task_manager.service.web.openapi import openapi
from async_task_manager.service.web.operations import Operations
from async_task_manager.service.web.pages import Pages
from async_task_manager.service.web.problems import Json, Problem, problem_response
from async_task_manager.service.web.tasks import Tasks

__all__ = ["WebApp"]

logger = logging.getLogger("async_task_manager.service")


class WebApp:
    """The ASGI application of a service.

    Args:
        core: What it is the door of.
        tokens: Any of which opens it.
        hosts: Names under which it is reached.
        body_seconds: Within which a body must come.
        message_model: What the body of a message must be.
        on_start: Starts the service.
        on_stop: Stops it.
    """

    def __init__(
        self,
        core: Core,
        *,
        tokens: Iterable[str],
        hosts: Iterable[str],
        body_seconds: float,
        message_model: type[BaseModel] | None,
        on_start: Callable[[], Any],
        on_stop: Callable[[], Any],
    ) -> None:
        self.failure: Exception | None = None
        """Why the service could not be started."""
        self._core = core
        self._closing = asyncio.Event()
        self._on_start, self._on_stop = on_start, on_stop
        tasks = Tasks(core, body_seconds)
        operations = Operations(core, body_seconds, self._closing)
        messages = Messages(core, body_seconds, message_model)
        pages = Pages()
        description = openapi(core.registry, bool(tuple(tokens)))

        async def described(request: Request) -> Response:
            return Json(description)

        app = Starlette(
            routes=[
                Route("/task", tasks.submit, methods=["POST"]),  # the busiest first
                Route("/result/{id}", tasks.result, methods=["GET"]),
                _resource("/task/{id}", GET=tasks.details, DELETE=tasks.cancel),
                Route("/tasks", tasks.listed, methods=["GET"]),
                Route("/messages", messages.put, methods=["POST"]),
                Route("/users", operations.users, methods=["GET"]),
                Route("/queues", operations.queues, methods=["GET"]),
                Route("/providers", operations.providers, methods=["GET"]),
                _resource(
                    "/providers/{name}",
                    GET=operations.provider,
                    PATCH=operations.change_provider,
                ),
                Route("/pause", operations.pause, methods=["POST"]),
                Route("/resume", operations.resume, methods=["POST"]),
                Route("/events", operations.events, methods=["GET"]),
                Route("/metrics", operations.metrics, methods=["GET"]),
                Route("/healthz", operations.health, methods=["GET"]),
                Route("/openapi.json", described, methods=["GET"]),
                Route("/docs", pages.docs, methods=["GET"]),
                Route("/", pages.dashboard, methods=["GET"]),
                Route("/assets/{name}", pages.asset, methods=["GET"]),
            ],
            exception_handlers={HTTPException: _refused, Exception: _failed},
        )
        app.router.redirect_slashes = False
        self._app: ASGIApp = Guard(_Express(app, tasks), tokens, hosts)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """A request, or the beginning and end of the server."""
        if scope["type"] == "lifespan":
            await self._live(receive, send)
        else:
            await self._app(scope, receive, send)

    def close(self) -> None:
        """Ends long polls and streams; to be called before the server waits for its connections."""
        self._closing.set()
        self._core.let_go()

    async def _live(self, receive: Receive, send: Send) -> None:
        await receive()
        try:
            await self._on_start()
        except Exception as error:
            self.failure = error
            await send({"type": "lifespan.startup.failed", "message": str(error)})
            return
        await send({"type": "lifespan.startup.complete"})
        await receive()
        self.close()
        await self._on_stop()
        await send({"type": "lifespan.shutdown.complete"})


class _Express:
    """The two busiest requests without the detour through the router, which knows them as well."""

    def __init__(self, app: ASGIApp, tasks: Tasks) -> None:
        self._app = app
        self._tasks = tasks

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        path, method = scope["path"], scope["method"]
        if path == "/task" and method == "POST":
            handle = self._tasks.submit
        elif method == "GET" and path.startswith("/result/") and path.count("/") == 2:
            handle = self._tasks.result
            scope["path_params"] = {"id": path.removeprefix("/result/")}
        else:
            await self._app(scope, receive, send)
            return
        request = Request(scope, receive)
        response: Response
        try:
            response = await handle(request)
        except HTTPException as error:
            response = await _refused(request, error)
        except Exception as error:
            response = await _failed(request, error)
        await response(scope, receive, send)


def _resource(path: str, **handlers: Callable[[Request], Awaitable[Response]]) -> Route:
    """One route for all methods of a path, so that it can say which there are."""

    async def handle(request: Request) -> Response:
        return await handlers["GET" if request.method == "HEAD" else request.method](request)

    return Route(path, handle, methods=list(handlers))


async def _refused(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    errors = error.errors if isinstance(error, Problem) else ()
    detail = error.detail
    if not isinstance(error, Problem):
        detail = {404: "there is no such resource", 405: "not with this method"}.get(
            error.status_code, detail
        )
    return problem_response(error.status_code, detail, errors, error.headers)


async def _failed(request: Request, error: Exception) -> Response:
    logger.error("a request failed", exc_info=error)
    return problem_response(500, "the service failed; its log says why")
