"""One line of the input: an HTTP request, and what the strategies need to know of it."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Any, Final

from async_task_manager._validate import number, one_of
from async_task_manager.config.problems import meant
from async_task_manager.config.secrets import check_header
from async_task_manager.errors import InvalidType, MissingExtra
from async_task_manager.strategies.priority_queue import LEVELS

try:
    import httpx
except ImportError as error:
    raise MissingExtra("cli", "httpx") from error

if TYPE_CHECKING:
    from async_task_manager.config import FlowConfig, ProviderConfig

__all__ = ["BadRequest", "Request", "dumps", "parse_request", "provider_for"]

METHODS: Final = ("GET", "POST", "PUT", "PATCH", "DELETE", "HEAD", "OPTIONS")
FIELDS: Final = (
    "id",
    "method",
    "path",
    "url",
    "headers",
    "json",
    "body",
    "provider",
    "priority",
    "valid_after",
    "cost",
)
_DELAY: Final = re.compile(r"\+([0-9]+(?:\.[0-9]+)?) ?(ms|s|m|h)")
_UNITS: Final = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0}


class BadRequest(ValueError):
    """The line is no request that could be sent; the message says why."""

    def __init__(self, why: str, id: str | int) -> None:
        super().__init__(why)
        self.id = id


@dataclass(frozen=True, slots=True)
class Request:
    """What one line asks for."""

    id: str | int
    method: str
    target: str
    """A path below the provider's ``base_url``, without its first slash; or a full URL."""
    full: bool
    """The target is a full URL."""
    headers: dict[str, str]
    content: bytes | None
    metadata: dict[str, Any]
    """provider, priority, valid_after, cost: for the strategies."""


def parse_request(line: str | bytes, number: int) -> Request:
    """The request on a line; one without an id is called by its number.

    Raises:
        BadRequest: it isn't one.
    """
    id: str | int = number
    try:
        data = _object(line)
        id = _id(data.get("id", number))
        return _request(id, data)
    except (ValueError, InvalidType) as error:
        raise BadRequest(str(error), id) from None


def provider_for(request: Request, config: FlowConfig) -> str | None:
    """The provider that has to take the request; None: any may.

    A full URL goes to the first provider below whose ``base_url`` it lies, and to no other: the
    headers of a provider are secrets that no other host may see.

    Raises:
        BadRequest: the provider that it names doesn't exist or is switched off, the URL isn't
            that provider's or nobody's, or a limit counts a unit of which it doesn't say the cost.
    """
    try:
        providers = [provider for provider in config.providers if provider.enabled]
        if (name := request.metadata.get("provider")) is not None:
            providers = [_called(name, config)]
        if request.full:
            target = httpx.URL(request.target)
            whose = f"provider {name!r}" if name is not None else "an enabled provider"
            providers = [p for p in providers if _is_below(target, httpx.URL(p.base_url))][:1]
            if not providers:
                raise ValueError(f"url {request.target!r} is not below the base_url of {whose}")
            name = providers[0].name
        for provider in providers:
            if not request.full:
                _check_path(request.target, provider)
            _check_units(request.metadata.get("cost"), provider)
    except ValueError as error:
        raise BadRequest(str(error), request.id) from None
    return name


def dumps(value: Any) -> bytes:
    """JSON in UTF-8; half a surrogate pair, which UTF-8 cannot hold, stays escaped.

    Raises:
        ValueError: NaN or an infinite number, which JSON cannot hold.
    """
    try:
        return json.dumps(
            value, ensure_ascii=False, allow_nan=False, separators=(",", ":")
        ).encode()
    except UnicodeEncodeError:
        return json.dumps(value, allow_nan=False, separators=(",", ":")).encode()


# ---- the fields -----------------------------------------------------------------------------


def _object(line: str | bytes) -> dict[str, Any]:
    try:
        text = line if isinstance(line, str) else line.decode("utf-8-sig")
        data = json.loads(text, parse_constant=_no_number)
    except UnicodeDecodeError as error:
        raise ValueError(f"not UTF-8: {error.reason} at byte {error.start}") from None
    except ValueError as error:
        raise ValueError(f"not valid JSON: {error}") from None
    except RecursionError:
        raise ValueError("not valid JSON: nested too deeply") from None
    if not isinstance(data, dict):
        raise ValueError(f"a request must be a JSON object, not {type(data).__name__}")
    return data


def _no_number(name: str) -> Any:
    raise ValueError(f"{name} is no JSON")


def _id(value: object) -> str | int:
    if isinstance(value, bool) or not isinstance(value, str | int):
        raise ValueError(f"id must be a string or a whole number, not {value!r}")
    return value


def _request(id: str | int, data: dict[str, Any]) -> Request:
    for name in data:
        if name not in FIELDS:
            hint = meant(name, FIELDS) or f"; the fields are {', '.join(FIELDS)}"
            raise ValueError(f"there is no field {name!r}{hint}")
    if "json" in data and "body" in data:
        raise ValueError("json and body exclude each other")
    content: bytes | None = None
    headers = _headers(data.get("headers", {}))
    if "json" in data:
        content = dumps(data["json"])
        if "content-type" not in map(str.lower, headers):
            headers = {"content-type": "application/json", **headers}
    elif "body" in data:
        content = _text(data, "body").encode()
    method = data.get("method", "GET" if content is None else "POST")
    target, full = _target(data)
    return Request(
        id=id,
        method=one_of("method", method.upper() if isinstance(method, str) else method, METHODS),
        target=target,
        full=full,
        headers=headers,
        content=content,
        metadata=_metadata(data),
    )


def _target(data: dict[str, Any]) -> tuple[str, bool]:
    if ("path" in data) == ("url" in data):
        raise ValueError("a request has either a path or a url")
    full = "url" in data
    target = _text(data, "url" if full else "path").lstrip("" if full else "/")
    try:
        url = httpx.URL(target if full else f"http://host/{target}")
    except httpx.InvalidURL as error:
        raise ValueError(f"{'url' if full else 'path'} {target!r}: {error}") from None
    if full and (url.scheme not in ("http", "https") or not url.host or url.userinfo):
        raise ValueError(f"url must be a full one, http:// or https://, not {target!r}")
    return target, full


def _headers(value: object) -> dict[str, str]:
    if not isinstance(value, dict) or not all(isinstance(item, str) for item in value.values()):
        raise ValueError("headers must be an object of strings")
    for name, item in value.items():
        try:
            check_header(name, item)
        except ValueError as error:
            raise ValueError(f"headers: {name}: {error}") from None
        if name.lower() == "host":
            # Behind one address there may be many hosts, and one alone may see the secrets.
            raise ValueError("headers: Host is that of the provider's base_url")
    return value


def _metadata(data: dict[str, Any]) -> dict[str, Any]:
    metadata: dict[str, Any] = {}
    if data.get("provider") is not None:
        metadata["provider"] = _text(data, "provider")
    priority = data.get("priority")
    if priority is not None:
        if isinstance(priority, str):
            one_of("priority", priority, tuple(LEVELS))
        else:
            number("priority", priority)
        metadata["priority"] = priority
    if data.get("valid_after") is not None:
        metadata["valid_after"] = _instant(data["valid_after"])
    cost = data.get("cost")
    if cost is not None:
        for unit, part in cost.items() if isinstance(cost, dict) else (("", cost),):
            number(f"cost {unit}".rstrip(), part, at_least=0)
        metadata["cost"] = cost
    return metadata


def _text(data: dict[str, Any], name: str) -> str:
    value = data[name]
    if not isinstance(value, str):
        hint = "; what is JSON goes into json" if name == "body" else ""
        raise ValueError(f"{name} must be a string, not {value!r}{hint}")
    return value


def _instant(value: object) -> datetime | timedelta:
    """A delay from now, "+3s", or ISO-8601 (without an offset, local time)."""
    if isinstance(value, str):
        try:
            if delay := _DELAY.fullmatch(value):
                return timedelta(seconds=float(delay[1]) * _UNITS[delay[2]])
            return datetime.fromisoformat(value)
        except (ValueError, OverflowError):
            pass
    raise ValueError(
        "valid_after must be ISO-8601, such as '2030-01-31T08:00:00Z', or a delay such as "
        f"'+500ms', '+3s', '+2m', '+1h', not {value!r}"
    )


# ---- the provider ---------------------------------------------------------------------------


def _called(name: str, config: FlowConfig) -> ProviderConfig:
    for provider in config.providers:
        if provider.name == name:
            if not provider.enabled:
                raise ValueError(f"provider {name!r} is switched off in the config")
            return provider
    known = [provider.name for provider in config.providers]
    raise ValueError(f"there is no provider {name!r}{meant(name, known)}")


def _check_path(path: str, provider: ProviderConfig) -> None:
    """With "..", a path would take the provider's headers to where they are not meant for."""
    base = provider.base_url.rstrip("/")
    if not _is_below(httpx.URL(f"{base}/{path}"), httpx.URL(base)):
        raise ValueError(f"path {path!r} leaves the base_url of provider {provider.name!r}")


def _is_below(target: httpx.URL, base: httpx.URL) -> bool:
    """Same scheme, host and port, and the path begins with the base's; httpx has resolved "..".

    Where "%2e" would be resolved as well, the host is still the same.
    """
    same = (target.scheme, target.host, target.port) == (base.scheme, base.host, base.port)
    return same and f"{target.path}/".startswith(f"{base.path.rstrip('/')}/")


def _check_units(cost: object, provider: ProviderConfig) -> None:
    """A bare number counts for every unit, as the limits have it."""
    given = cost if isinstance(cost, dict) else {}
    for unit in provider.units if cost is None or isinstance(cost, dict) else ():
        if given.get(unit) is None:
            raise ValueError(
                f"cost must say how many {unit} it takes, which provider {provider.name!r} "
                f'limits: "cost": {{"{unit}": 100}}{meant(unit, given)}'
            )
