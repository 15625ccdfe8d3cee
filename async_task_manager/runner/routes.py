"""What the providers of a config make of a request: who may take it, and what it costs them."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any, TypeAlias

from async_task_manager.config.costs import at_path
from async_task_manager.config.problems import meant
from async_task_manager.errors import MissingExtra
from async_task_manager.runner.requests import BadRequest, Request

try:
    import httpx
except ImportError as error:
    raise MissingExtra("cli", "httpx") from error

if TYPE_CHECKING:
    from async_task_manager.config import FlowConfig, ProviderConfig

__all__ = ["Routes", "url_of"]

Address: TypeAlias = "tuple[str, str, int | None, str]"
"""Scheme, host, port and path."""


class Routes:
    """The providers of a config, as requests see them."""

    def __init__(self, config: FlowConfig) -> None:
        self._all = {provider.name: provider for provider in config.providers}
        self._enabled = tuple(provider for provider in config.providers if provider.enabled)
        self._bases = {
            provider.name: _address(httpx.URL(provider.base_url)) for provider in self._enabled
        }
        keys = [*(key for provider in self._enabled for key in provider.keys), *config.keys]
        self._keys = tuple(dict.fromkeys(keys))

    def metadata(self, request: Request) -> dict[str, Any]:
        """What the strategies need to know of the request: its own metadata, the provider that has
        to take it, the fields that split a limit, and its cost, estimated where it doesn't say.

        A full URL goes to the first provider below whose ``base_url`` it lies, and to no other: the
        headers of a provider are secrets that no other host may see.

        Raises:
            BadRequest: the provider that it names doesn't exist or is switched off, the URL isn't
                that provider's or nobody's, or a limit counts a unit of which nobody knows the
                cost.
        """
        metadata = request.metadata
        try:
            providers: Iterable[ProviderConfig] = self._enabled
            if (name := metadata.get("provider")) is not None:
                providers = (self._called(name),)
            if request.full:
                whose = f"provider {name!r}" if name is not None else "an enabled provider"
                target = _address(httpx.URL(request.target))
                below = [p for p in providers if _is_below(target, self._bases[p.name])]
                if not below:
                    raise ValueError(f"url {request.target!r} is not below the base_url of {whose}")
                providers = below[:1]
                metadata = metadata | {"provider": below[0].name}
            elif ".." in request.target or "%" in request.target:
                for provider in providers:
                    self._check_path(request, provider)
            for key in self._keys:
                if key not in metadata and (value := at_path(request.json, key)) is not None:
                    metadata = metadata | {key: value}
            cost = self._cost(request, providers)
        except ValueError as error:
            raise BadRequest(str(error), request.id) from None
        return metadata if cost is None else metadata | {"cost": cost}

    def keys(self, metadata: dict[str, Any]) -> dict[str, Any]:
        """The part of it that splits limits."""
        return {key: metadata[key] for key in self._keys if key in metadata}

    def _called(self, name: str) -> ProviderConfig:
        provider = self._all.get(name)
        if provider is None:
            raise ValueError(f"there is no provider {name!r}{meant(name, self._all)}")
        if not provider.enabled:
            raise ValueError(f"provider {name!r} is switched off in the config")
        return provider

    def _check_path(self, request: Request, provider: ProviderConfig) -> None:
        """With "..", a path would take the provider's headers to where they are not meant for."""
        target = _address(httpx.URL(url_of(request, provider.base_url)))
        if not _is_below(target, self._bases[provider.name]):
            raise ValueError(
                f"path {request.target!r} leaves the base_url of provider {provider.name!r}"
            )

    def _cost(self, request: Request, providers: Iterable[ProviderConfig]) -> Any:
        """What it says itself, with the largest estimate for each unit of which it says nothing. A
        bare number counts for every unit, as the limits have it.
        """
        said = request.metadata.get("cost")
        if said is not None and not isinstance(said, dict):
            return said
        cost: dict[str, float] = {}
        for provider in providers:
            for unit in provider.units:
                if said and said.get(unit) is not None:
                    continue
                estimate = _estimate(request, provider, unit, said)
                cost[unit] = max(cost.get(unit, 0), estimate)
        return said | cost if said else cost or said


def url_of(request: Request, base: str) -> str:
    """Where the request goes at the provider with this ``base_url``.

    An OpenAI batch names paths from the host on, "/v1/chat/completions", and bases end in what
    these begin with.
    """
    if request.full:
        return request.target
    target = request.target
    if request.batch:
        first, slash, rest = target.partition("/")
        if slash and base.endswith(f"/{first}"):
            target = rest
    return f"{base}/{target}"


def _estimate(
    request: Request, provider: ProviderConfig, unit: str, said: dict[str, Any] | None
) -> float:
    estimate = provider.estimates.get(unit)
    if estimate is None:
        raise ValueError(
            f"cost must say how many {unit} it takes, which provider {provider.name!r} "
            f'limits: "cost": {{"{unit}": 100}}{meant(unit, said or ())}'
        )
    content = request.content or b""
    chars = len(content) if content.isascii() else len(content.decode("utf-8", "replace"))
    found = estimate.of(request.json, chars)
    if found is None:
        raise ValueError(
            f"provider {provider.name!r} estimates the {unit} by {' and '.join(estimate.fields)} "
            "of the json, which must be there and a number of at least 0"
        )
    return found


def _address(url: httpx.URL) -> Address:
    return url.scheme, url.host, url.port, url.path


def _is_below(target: Address, base: Address) -> bool:
    """Same scheme, host and port, and the path begins with the base's; httpx has resolved "..".

    Where "%2e" would be resolved as well, the host is still the same.
    """
    return target[:3] == base[:3] and f"{target[3]}/".startswith(f"{base[3].rstrip('/')}/")
