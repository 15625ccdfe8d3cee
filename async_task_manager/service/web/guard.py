"""Who may ask: Host, Origin and token are looked at before any handler runs."""

from __future__ import annotations

import hmac
import ipaddress
from collections.abc import Iterable
from hashlib import sha256
from urllib.parse import urlsplit

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from async_task_manager.errors import InvalidValue
from async_task_manager.service.web.problems import problem_response

__all__ = ["Guard", "check_tokens", "is_loopback"]

SHORTEST_TOKEN = 16

LOOPBACK = ("localhost", "127.0.0.1", "[::1]")

OPEN = ("/", "/docs", "/healthz", "/openapi.json")
"""What needs no token: it tells nothing that isn't in the package."""

HEADERS = {
    "content-security-policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; "
        "connect-src 'self'; font-src 'self'; manifest-src 'self'; base-uri 'none'; "
        "form-action 'none'; frame-ancestors 'none'"
    ),
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
    "referrer-policy": "no-referrer",
    "x-content-type-options": "nosniff",
    "x-frame-options": "DENY",
}
RAW = [(name.encode(), value.encode()) for name, value in HEADERS.items()]


def is_loopback(host: str) -> bool:
    """Whether only this machine can reach a server that is bound to this address."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return False


def check_tokens(tokens: Iterable[str]) -> tuple[str, ...]:
    """The tokens, if they can stand for a secret.

    Raises:
        InvalidValue: one is too short, or could not be sent in a header. It is not in the message.
    """
    found = tuple(tokens)
    for token in found:
        if len(token) < SHORTEST_TOKEN or not token.isascii() or not token.isprintable():
            raise InvalidValue(
                f"a token must have at least {SHORTEST_TOKEN} printable ASCII characters: "
                "python -c 'import secrets; print(secrets.token_urlsafe())' makes one"
            )
        if " " in token:
            raise InvalidValue("a token must have no spaces")
    return found


class Guard:
    """The outermost layer.

    Args:
        app: What is guarded.
        tokens: Any of which opens; none: it is open to all who reach it.
        hosts: Names in the header Host that are answered, beside addresses and those of this
            machine. A page elsewhere can make a browser send requests here under a name of its
            own (DNS rebinding); under an address it can't.
    """

    def __init__(self, app: ASGIApp, tokens: Iterable[str] = (), hosts: Iterable[str] = ()) -> None:
        self._app = app
        self._digests = [sha256(token.encode()).digest() for token in check_tokens(tokens)]
        self._hosts = {*LOOPBACK, *(host.lower() for host in hosts)}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answers 400, 401 or 403, or passes the request on."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        headers = Headers(scope=scope)
        refusal = self._refusal(scope, headers)

        async def guarded(message: Message) -> None:
            if message["type"] == "http.response.start":
                there = {name for name, _ in message["headers"]}
                message["headers"] = [
                    *message["headers"],
                    *((name, value) for name, value in RAW if name not in there),
                ]
            await send(message)

        if refusal is None:
            await self._app(scope, receive, guarded)
            return
        status, detail = refusal
        more = {"www-authenticate": 'Bearer realm="atm"'} if status == 401 else {}
        more["connection"] = "close"
        await problem_response(status, detail, headers=more)(scope, receive, guarded)

    def _refusal(self, scope: Scope, headers: Headers) -> tuple[int, str] | None:
        hosts = headers.getlist("host")
        if len(hosts) != 1 or not self._known(hosts[0]):
            return 403, "this Host is not served here (--allow-host adds a name)"
        origin = headers.get("origin")
        if origin is not None and not _same(origin, hosts[0]):
            return 403, "requests from pages of another origin are not answered"
        if self._digests and not _is_open(scope["path"]) and not self._has_token(headers):
            return 401, "a token is needed: Authorization: Bearer ..."
        return None

    def _known(self, host: str) -> bool:
        name = host.rpartition(":")[0] if _has_port(host) else host
        if name.lower() in self._hosts:
            return True
        try:
            ipaddress.ip_address(name.strip("[]"))
        except ValueError:
            return False
        return True

    def _has_token(self, headers: Headers) -> bool:
        scheme, _, token = headers.get("authorization", "").partition(" ")
        digest = sha256(token.strip().encode("latin-1", "replace")).digest()
        found = False
        for known in self._digests:  # all of them, and each in constant time
            found |= hmac.compare_digest(known, digest)
        return found and scheme.lower() == "bearer"


def _has_port(host: str) -> bool:
    return host.rpartition("]")[2].count(":") == 1


def _same(origin: str, host: str) -> bool:
    try:
        parts = urlsplit(origin)
    except ValueError:
        return False
    return parts.scheme in ("http", "https") and parts.netloc.lower() == host.lower()


def _is_open(path: str) -> bool:
    return path in OPEN or path.startswith("/assets/")
