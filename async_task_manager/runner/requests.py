"""One line of the input: an HTTP request, and what the strategies need to know of it."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any

__all__ = ["BadRequest", "Request", "parse_request"]

METHODS = ("GET", "POST", "PUT", "PATCH", "DELETE", "HEAD", "OPTIONS")
FIELDS = (
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
_DELAY = re.compile(r"\+(\d+(?:\.\d+)?)\s*(ms|s|m|h)")
_UNITS = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0}


class BadRequest(ValueError):
    """The line is no request; the message says why."""


@dataclass(frozen=True, slots=True)
class Request:
    """What one line asks for."""

    id: str
    method: str
    target: str
    """A path below the provider's ``base_url``, or a URL that lies there."""
    headers: dict[str, str] = field(default_factory=dict)
    json: Any = None
    body: str | None = None
    metadata: dict[str, Any] = field(default_factory=dict)
    """provider, priority, valid_after, cost: for the strategies."""


def parse_request(line: str, number: int) -> Request:
    """The request on a line; one without an id is called by its number.

    Raises:
        BadRequest: it isn't one.
    """
    try:
        data = json.loads(line)
    except ValueError as error:
        raise BadRequest(f"not valid JSON: {error}") from None
    except RecursionError:
        raise BadRequest("not valid JSON: nested too deeply") from None
    if not isinstance(data, dict):
        raise BadRequest(f"a request must be a JSON object, not {type(data).__name__}")
    unknown = sorted(set(data) - set(FIELDS))
    if unknown:
        raise BadRequest(f"unknown field {unknown[0]!r}; the fields are {', '.join(FIELDS)}")
    given = data.get("id", number)
    if isinstance(given, bool) or not isinstance(given, str | int):
        raise BadRequest(f"id must be a string or a whole number, not {given!r}")
    if "json" in data and "body" in data:
        raise BadRequest("json and body exclude each other")
    has_content = "json" in data or "body" in data
    method = _text(data, "method", "POST" if has_content else "GET").upper()
    if method not in METHODS:
        raise BadRequest(f"method must be one of {', '.join(METHODS)}, not {method!r}")
    if ("path" in data) == ("url" in data):
        raise BadRequest("a request needs a path or a url, and not both")
    metadata = {name: data[name] for name in ("provider", "priority", "cost") if name in data}
    if "valid_after" in data:
        metadata["valid_after"] = _instant(data["valid_after"])
    return Request(
        id=str(given),
        method=method,
        target=_text(data, "path" if "path" in data else "url", ""),
        headers=_headers(data.get("headers", {})),
        json=data.get("json"),
        body=_text(data, "body", "") if "body" in data else None,
        metadata=metadata,
    )


def _text(data: dict[str, Any], name: str, default: str) -> str:
    value = data.get(name, default)
    if not isinstance(value, str):
        raise BadRequest(f"{name} must be a string, not {value!r}")
    return value


def _headers(value: object) -> dict[str, str]:
    if not isinstance(value, dict) or not all(isinstance(item, str) for item in value.values()):
        raise BadRequest(f"headers must be an object of strings, not {value!r}")
    return value


def _instant(value: object) -> datetime | timedelta:
    """A delay from now, "+3s", or ISO-8601 with an offset (without one, local time)."""
    if isinstance(value, str):
        delay = _DELAY.fullmatch(value)
        if delay is not None:
            return timedelta(seconds=float(delay[1]) * _UNITS[delay[2]])
        try:
            return datetime.fromisoformat(value)
        except ValueError:
            pass
    raise BadRequest(f"valid_after must be ISO-8601 or a delay such as '+3s', not {value!r}")
