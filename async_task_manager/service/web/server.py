"""uvicorn, with what it lacks: deadlines for heads, and a bound on connections."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import uvicorn
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from async_task_manager.service.web.problems import problem_response

__all__ = ["Server", "bind"]

LONGEST_HEAD = 64 * 1024


def _raw(status: int, detail: str) -> bytes:
    """An answer for whoever never got as far as the application."""
    response = problem_response(status, detail, headers={"connection": "close"})
    head = b"".join(b"%s: %s\r\n" % pair for pair in response.raw_headers)
    return b"HTTP/1.1 %d \r\n%s\r\n%s" % (status, head, bytes(response.body))


TOO_SLOW = _raw(408, "the head of the request came too slowly")
TOO_LONG = _raw(431, f"the head of a request must not be longer than {LONGEST_HEAD} bytes")
TOO_MANY = _raw(503, "too many connections")
NO_HTTP = _raw(400, "this is no HTTP/1.1 request, or its content-length is wrong")


class Protocol(HttpToolsProtocol):
    """A connection whose heads have a deadline and a length."""

    max_connections = 1000
    head_seconds = 10.0

    _deadline: asyncio.TimerHandle | None = None
    _head = 0  # bytes of the present one so far

    def connection_made(self, transport: Any) -> None:
        """Lets no more in than there may be."""
        if len(self.connections) >= self.max_connections:
            transport.write(TOO_MANY)
            transport.close()
            self._refused = True
            return
        super().connection_made(transport)
        self._await_head()

    _refused = False

    def connection_lost(self, exc: Exception | None) -> None:
        """Forgets the deadline."""
        self._unset_deadline()
        if not self._refused:
            super().connection_lost(exc)

    def eof_received(self) -> None:
        """The client has said all."""
        if not self._refused:
            super().eof_received()

    def data_received(self, data: bytes) -> None:
        """Counts what belongs to a head."""
        if self._refused:
            return
        if self._deadline is None and (self.cycle is None or self.cycle.response_complete):
            self._await_head()  # the next one on this connection
        if self._deadline is not None:
            self._head += len(data)
        super().data_received(data)
        if self._deadline is not None and self._head > LONGEST_HEAD:
            self._turn_away(TOO_LONG)

    def send_400_response(self, msg: str) -> None:
        """Like any other refusal, a problem."""
        self._turn_away(NO_HTTP)

    def on_headers_complete(self) -> None:
        """The head is here."""
        self._unset_deadline()
        super().on_headers_complete()

    def _await_head(self) -> None:
        self._head = 0
        self._deadline = self.loop.call_later(self.head_seconds, self._turn_away, TOO_SLOW)

    def _unset_deadline(self) -> None:
        if self._deadline is not None:
            self._deadline.cancel()
            self._deadline = None

    def _turn_away(self, answer: bytes) -> None:
        self._unset_deadline()
        if not self.transport.is_closing():
            self.transport.write(answer)
            self.transport.close()


class Server(uvicorn.Server):
    """A server that tells when it answers, and, before it waits for connections, that it stops."""

    def __init__(
        self,
        config: uvicorn.Config,
        *,
        on_start: Callable[[], object],
        on_stop: Callable[[], object],
    ) -> None:
        super().__init__(config)
        self._on_start, self._on_stop = on_start, on_stop

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Begins to listen."""
        await super().startup(sockets)
        if self.started:
            self._on_start()

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        """A signal ends the serving, and nothing else: uvicorn would raise it once more."""
        with super().capture_signals():
            yield
            self._captured_signals.clear()

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Ends long polls and streams, then the rest."""
        self._on_stop()
        await super().shutdown(sockets)


def bind(host: str, port: int) -> socket.socket:
    """The socket to listen on; port 0 takes a free one."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listening = socket.socket(family)
    listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listening.bind((host.strip("[]"), port))
    except BaseException:
        listening.close()
        raise
    return listening
