"""Sends a request to the provider that the router chose."""

from __future__ import annotations

import asyncio
import base64
import json
from dataclasses import dataclass
from types import TracebackType
from typing import TYPE_CHECKING, Any

from async_task_manager.config.secrets import hidden
from async_task_manager.errors import MissingExtra
from async_task_manager.runner.failures import BadAnswer, Broken, failure
from async_task_manager.runner.routes import url_of
from async_task_manager.task import current_task

try:
    import anyio.lowlevel  # what httpx runs on
    import httpx
except ImportError as error:
    raise MissingExtra("cli", "httpx") from error

if TYPE_CHECKING:
    import ssl
    from collections.abc import Callable, Iterable
    from typing import Self

    from async_task_manager.config import ProviderConfig
    from async_task_manager.runner.requests import Request

__all__ = ["Answer", "Client"]

_TELLING = ("ratelimit", "retry-after")
"""Beginnings of headers that limits understand; "x-ratelimit-remaining" is another."""


@dataclass(frozen=True, slots=True)
class Answer:
    """A 2xx."""

    status: int
    content: Any


class Client:
    """One pool of connections per provider."""

    def __init__(self, providers: Iterable[ProviderConfig]) -> None:
        tls = httpx.create_ssl_context()  # which takes a while: one for all
        self._pools = {provider.name: _Pool(provider, tls) for provider in providers}

    async def send(self, request: Request, provider: str, leaves: Callable[[], None]) -> Answer:
        """The answer: parsed if it is JSON, else as text; what is no text, {"base64": "..."}.

        Once connected, and just before anything is written, it calls ``leaves``.

        Raises:
            HttpFailure: it is no 2xx; RateLimited as well, if it asks to slow down; NonRetryable,
                if the request itself is at fault; BadAnswer, if it is a 2xx with broken JSON.
            TimeoutError: there was none within the provider's ``timeout``.
            httpx.HTTPError: there was none for another reason.
        """
        return await self._pools[provider].send(request, leaves)

    async def __aenter__(self) -> Self:
        # httpx loads its network backend with the first request, which takes long enough to make
        # the first burst arrive late, in a later window of the provider than it left in.
        await anyio.lowlevel.checkpoint()
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        for pool in self._pools.values():
            await pool.http.aclose()


class _Pool:
    def __init__(self, provider: ProviderConfig, tls: ssl.SSLContext) -> None:
        self.base = provider.base_url
        self.timeout = provider.timeout
        self.secrets = provider.secrets()
        self.limit_headers = provider.limit_headers
        headers = httpx.Headers(provider.sent_headers())
        headers.setdefault("user-agent", "atm")
        self.http = httpx.AsyncClient(
            headers=headers,
            verify=tls,
            timeout=None,  # httpx would limit each read by itself, so that a trickle lasts for ever
            limits=httpx.Limits(max_connections=provider.max_concurrent),
            follow_redirects=False,  # a redirect would take the headers elsewhere
            trust_env=False,
        )

    async def send(self, request: Request, leaves: Callable[[], None]) -> Answer:
        async def trace(event: str, info: object) -> None:
            if event == "http11.send_request_headers.started":
                leaves()

        try:
            async with asyncio.timeout(self.timeout):
                response = await self.http.request(
                    request.method,
                    url_of(request, self.base),
                    headers=request.headers,
                    content=request.content,
                    extensions={"trace": trace},
                )
        except TimeoutError:
            raise TimeoutError(f"no answer within {self.timeout:g} s") from None
        except httpx.HTTPError as error:
            # What the other side sent may stand in the message.
            error.args = tuple(hidden(str(part), self.secrets) for part in error.args)
            raise
        self.observe(response.headers)
        content = self.content(response)
        if not response.is_success:
            response.extensions["reason_phrase"] = hidden(
                response.reason_phrase, self.secrets
            ).encode("ascii", "replace")
            raise failure(response, content)
        if isinstance(content, Broken):
            raise BadAnswer(response, content)
        return Answer(response.status_code, content)

    def observe(self, headers: httpx.Headers) -> None:
        """Tells the limits what the provider says of its own."""
        if self.limit_headers is False:
            return
        given = dict(headers)
        if isinstance(self.limit_headers, dict):
            for name, own in self.limit_headers.items():
                if own.lower() in given:
                    given[name.lower()] = given.pop(own.lower())
        if any("limit-" in name or name.startswith(_TELLING) for name in given):
            task = current_task()
            if task is not None:
                task.observe(given)

    def content(self, response: httpx.Response) -> Any:
        """What came back, without the secrets, should the provider repeat one; `Broken`, if it
        says that it is JSON, and isn't.
        """
        try:
            text = response.content.decode(response.charset_encoding or "utf-8")
        except (UnicodeDecodeError, LookupError):
            raw = response.content
            for secret in self.secrets:
                raw = raw.replace(secret.encode(), b"***")
            return {"base64": base64.b64encode(raw).decode()}
        text = hidden(text, self.secrets)
        kind = response.headers.get("content-type", "").partition(";")[0].strip().lower()
        if text and (kind == "application/json" or kind.endswith("+json")):
            try:
                return json.loads(text, parse_constant=_no_number)
            except (ValueError, RecursionError):
                return Broken(text)
        return text


def _no_number(name: str) -> Any:
    raise ValueError(f"{name} is no JSON")  # and could not be written as such
