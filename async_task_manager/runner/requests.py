"""One line of the input: an HTTP request, and what the strategies need to know of it."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any, Final

from async_task_manager._validate import number, one_of
from async_task_manager.config.problems import meant
from async_task_manager.config.secrets import check_header
from async_task_manager.errors import InvalidType, MissingExtra
from async_task_manager.runner.results import dumps
from async_task_manager.strategies.priority_queue import LEVELS

try:
    import httpx
except ImportError as error:
    raise MissingExtra("cli", "httpx") from error

__all__ = ["FIELDS", "BadRequest", "Request", "checked_id", "parse_request", "request_of"]

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
    "metadata",
)
OPENAI: Final = ("custom_id", "method", "url", "body")
"""A line of OpenAI's batch format; the fields for strategies may stand beside these."""
STRATEGIC: Final = ("provider", "priority", "valid_after", "cost", "metadata")
_DELAY: Final = re.compile(r"\+([0-9]+(?:\.[0-9]+)?) ?(ms|s|m|h)")
_UNITS: Final = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0}


class BadRequest(ValueError):
    """The line is no request that could be sent; the message says why."""

    def __init__(self, why: str, id: str | int) -> None:
        super().__init__(why)
        self.id = id


@dataclass(slots=True)
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
    """provider, priority, valid_after, cost, and whatever else: for the strategies."""
    json: Any = None
    """What the content was made of."""
    batch: bool = False
    """The target is a path from the host on, as OpenAI's batches have it."""


def parse_request(line: str | bytes, number: int) -> Request:
    """The request on a line, our own or OpenAI's; one without an id is called by its number.

    Raises:
        BadRequest: it isn't one.
    """
    id: str | int = number
    try:
        data = _object(line)
        batch = "custom_id" in data
        id = checked_id(data.get("custom_id" if batch else "id", number))
        return request_of(id, _from_openai(data) if batch else data, batch=batch)
    except (ValueError, InvalidType) as error:
        raise BadRequest(str(error), id) from None


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


def checked_id(value: object) -> str | int:
    """The id, if it can be one; else a ValueError."""
    if isinstance(value, bool) or not isinstance(value, str | int):
        raise ValueError(f"id must be a string or a whole number, not {value!r}")
    return value


def _known(data: dict[str, Any], fields: tuple[str, ...]) -> None:
    for name in data:
        if name not in fields:
            hint = meant(name, fields) or f"; the fields are {', '.join(fields)}"
            raise ValueError(f"there is no field {name!r}{hint}")


def _from_openai(data: dict[str, Any]) -> dict[str, Any]:
    _known(data, OPENAI + STRATEGIC)
    same = {name: value for name, value in data.items() if name in STRATEGIC or name == "method"}
    if "body" in data:
        same["json"] = data["body"]
    url = data.get("url")
    if url is not None:
        full = isinstance(url, str) and url.startswith(("http://", "https://"))
        same["url" if full else "path"] = url
    return same


def request_of(id: str | int, data: dict[str, Any], *, batch: bool = False) -> Request:
    """The request that these fields make.

    Raises:
        ValueError, InvalidType: they make none.
    """
    _known(data, FIELDS)
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
        json=data.get("json"),
        batch=batch and not full,
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
    own = data.get("metadata")
    if own is not None:
        if not isinstance(own, dict):
            raise ValueError(f"metadata must be an object, not {own!r}")
        if taken := [name for name in own if name in STRATEGIC]:
            raise ValueError(f"metadata: {taken[0]} is a field beside metadata, not inside it")
        metadata |= own
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
