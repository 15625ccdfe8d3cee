"""Sends a request to the provider that the router chose."""

from __future__ import annotations

from dataclasses import dataclass
from types import TracebackType
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from async_task_manager.errors import MissingExtra
from async_task_manager.runner.requests import BadRequest, Request

if TYPE_CHECKING:
    from typing import Self

    from async_task_manager.config import ProviderConfig

try:
    import anyio.lowlevel  # what httpx runs on
    import httpx
except ImportError as error:
    raise MissingExtra("cli", "httpx") from error

__all__ = ["Answer", "Client", "HttpFailure"]


class HttpFailure(Exception):
    """The provider answered, and not with a 2xx."""

    def __init__(self, status: int, content: Any) -> None:
        super().__init__(f"HTTP {status}")
        self.status = status
        self.content = content


@dataclass(frozen=True, slots=True)
class Answer:
    """A 2xx."""

    status: int
    content: Any


class Client:
    """One pool of connections per provider."""

    def __init__(self, providers: tuple[ProviderConfig, ...]) -> None:
        self._pools = {provider.name: _pool(provider) for provider in providers}

    def owner(self, request: Request) -> str | None:
        """The provider to which a full URL belongs; None for a path, which any may take.

        Raises:
            BadRequest: no provider has it, or another than the one named. A provider's headers
                are secrets that no other host may see.
        """
        if "://" not in request.target:
            return None
        named = request.metadata.get("provider")
        for name, pool in self._pools.items():
            if named in (None, name) and _is_below(request.target, pool.base_url):
                return name
        whose = f"of provider {named!r}" if named is not None else "of any provider"
        raise BadRequest(f"url {request.target!r} is not below the base_url {whose}")

    async def send(self, request: Request, provider: str) -> Answer:
        """The answer, parsed if it is JSON.

        Raises:
            HttpFailure: it is no 2xx.
            httpx.HTTPError: there was none.
        """
        response = await self._pools[provider].request(
            request.method,
            request.target if "://" in request.target else request.target.lstrip("/"),
            headers=request.headers,
            json=request.json,
            content=request.body,
        )
        content = _content(response)
        if not response.is_success:
            raise HttpFailure(response.status_code, content)
        return Answer(response.status_code, content)

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
            await pool.aclose()


def _pool(provider: ProviderConfig) -> httpx.AsyncClient:
    return httpx.AsyncClient(
        base_url=provider.base_url.rstrip("/") + "/",
        headers={name: value.get_secret_value() for name, value in provider.headers.items()},
        timeout=provider.timeout,
        limits=httpx.Limits(max_connections=provider.max_concurrent or 100),
        follow_redirects=False,  # a redirect would take the headers elsewhere
        trust_env=False,
    )


def _is_below(target: str, base: httpx.URL) -> bool:
    parts = urlsplit(target)
    return (parts.scheme, parts.netloc) == (base.scheme, base.netloc.decode()) and (
        parts.path + "/"
    ).startswith(base.path)


def _content(response: httpx.Response) -> Any:
    if "json" in response.headers.get("content-type", ""):
        try:
            return response.json()
        except ValueError:
            pass
    return response.text
