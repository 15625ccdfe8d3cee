"""Runs the application until a signal ends it."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import closing, suppress

import uvicorn

from async_task_manager._validate import number, whole
from async_task_manager.errors import InvalidValue
from async_task_manager.service.web.app import WebApp
from async_task_manager.service.web.guard import is_loopback
from async_task_manager.service.web.server import Protocol, Server, bind

__all__ = ["made", "serve"]

BACKLOG = 512


def serve(
    app: WebApp,
    host: str,
    port: int,
    *,
    secured: bool,
    max_connections: int,
    head_seconds: float,
    on_listening: Callable[[str], object] | None,
) -> None:
    """See `TaskService.serve`."""
    whole("port", port, at_least=0, at_most=65535)
    if not secured and not is_loopback(host):
        raise InvalidValue(
            f"host {host!r} can be reached by others: give a token (--token, or ATM_TOKEN)"
        )
    with closing(bind(host, port)) as listening:
        address = listening.getsockname()
        shown = f"[{address[0]}]" if ":" in address[0] else address[0]
        server = made(
            app,
            max_connections=max_connections,
            head_seconds=head_seconds,
            on_start=lambda: on_listening and on_listening(f"http://{shown}:{address[1]}"),
        )
        with suppress(SystemExit):  # uvicorn's way of saying that it could not be started
            server.run(sockets=[listening])
        if app.failure is not None:
            raise app.failure


def made(
    app: WebApp, *, max_connections: int, head_seconds: float, on_start: Callable[[], object]
) -> Server:
    """The server, to be run on a socket."""
    whole("max_connections", max_connections, at_least=1)
    number("head_seconds", head_seconds, above=0)
    protocol = type(
        "BoundedProtocol",
        (Protocol,),
        {"max_connections": max_connections, "head_seconds": head_seconds},
    )
    config = uvicorn.Config(
        app,
        http=protocol,
        ws="none",
        lifespan="on",
        log_config=None,
        log_level="critical",  # a line for each malformed request would be the client's to write
        access_log=False,
        server_header=False,
        date_header=False,
        proxy_headers=False,
        backlog=BACKLOG,
        timeout_keep_alive=30,
        timeout_graceful_shutdown=10,
    )
    return Server(config, on_start=on_start, on_stop=app.close)
