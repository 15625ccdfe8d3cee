"""What a server's response says about its limits, in the dialects of its headers.

    x-ratelimit-limit, -remaining, -reset                     GitHub and many others
    x-ratelimit-remaining-tokens, x-ratelimit-limit-minute    OpenAI, Groq, Mistral; Kong
    anthropic-ratelimit-input-tokens-remaining                Anthropic
    ratelimit: "default";r=50;t=30                            IETF, and its older forms
    ratelimit-policy: "default";q=100;w=60
    retry-after: 120 or a date; retry-after-ms                RFC 9110

A reset is seconds, a duration (``6m0s``), epoch seconds or a date: all become seconds from the
response. Its ``Date`` is what dates are held against: no clock has to be right.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from email.utils import format_datetime, parsedate_to_datetime
from math import inf

__all__ = ["Quota", "date_of", "dated", "parse_retry_after", "quotas", "retry_after"]

UNITS = {"req": "requests", "request": "requests", "token": "tokens"}
"""Other names of the two that everybody has."""

WINDOWS = {
    "second": 1.0,
    "minute": 60.0,
    "hour": 3600.0,
    "day": 86400.0,
    "month": 2592000.0,
    "year": 31536000.0,
}

EPOCH = 1e9
"""A reset above this is no duration but a date, in seconds since 1970 (GitHub)."""

EPOCH_MS = 1e12
"""The same, in milliseconds."""


@dataclass(frozen=True, slots=True)
class Quota:
    """One limit of the server. What the response didn't say is None, which is not 0."""

    unit: str | None = None
    """What it counts: "requests", "tokens", "input_tokens"; None: not said."""
    window: float | None = None
    """Its length, in seconds."""
    limit: float | None = None
    remaining: float | None = None
    reset: float | None = None
    """Seconds from the response until it is whole again, at least 0."""


def parse_retry_after(value: str) -> float | datetime | None:
    """The value of a ``Retry-After``: seconds, an aware datetime, or None if it is neither."""
    value = value.strip()
    seconds = _number(value)
    return seconds if seconds is not None else _http_date(value)


def retry_after(headers: Mapping[str, str]) -> float | datetime | None:
    """When the response says to come back; None: it doesn't.

    Seconds from the response, whenever they are given or the response has a ``Date``; else an aware
    datetime. ``retry-after-ms``, which is more exact, goes first.
    """
    given = _lowered(headers)
    milliseconds = _number(given.get("retry-after-ms", ""))
    if milliseconds is not None:
        return milliseconds / 1000
    after = parse_retry_after(given.get("retry-after", ""))
    date = _http_date(given.get("date", ""))
    if isinstance(after, datetime) and date is not None:
        return max(0.0, (after - date).total_seconds())
    return after


def quotas(headers: Mapping[str, str]) -> list[Quota]:
    """Every limit that the response tells of. A date is skipped if the response has none."""
    given = _lowered(headers)
    date = _http_date(given.get("date", ""))
    fields: dict[tuple[str | None, float | None], dict[str, float]] = {}
    for name, value in given.items():
        place = _place(name)
        if place is not None:
            unit, window, field = place
            number = (
                _reset(value, date) if field == "reset" else _number(re.split("[,;]", value)[0])
            )
            if number is not None:
                fields.setdefault((unit, window), {})[field] = number
    found = [Quota(unit, window, **each) for (unit, window), each in fields.items()]
    policies = list(_policies(given.get("ratelimit-policy", "")))
    # The oldest form has its window in the policy alone.
    by_limit = {policy.limit: policy for _, policy in policies if policy.limit is not None}
    found = [
        replace(quota, window=by_limit[quota.limit].window)
        if quota.window is None and quota.limit in by_limit
        else quota
        for quota in found
    ]
    return found + list(_structured(given.get("ratelimit", ""), dict(policies)))


def date_of(headers: Mapping[str, str]) -> datetime | None:
    """When the response was made, by the server's clock; None: it doesn't say."""
    return _http_date(_lowered(headers).get("date", ""))


def dated(headers: Mapping[str, str], wall: float) -> Mapping[str, str]:
    """The headers with a ``Date``: where there is none, that of the arrival (RFC 9110, 6.6.1)."""
    if "date" in _lowered(headers):
        return headers
    return {**headers, "date": format_datetime(datetime.fromtimestamp(wall, UTC), usegmt=True)}


def _lowered(headers: Mapping[str, str]) -> dict[str, str]:
    return {str(name).lower(): str(value) for name, value in headers.items()}


# ---- x-ratelimit-... and its like ---------------------------------------------------------------

_NAME = re.compile(r"(?:[a-z0-9]+-)*?rate-?limit-(.+)")


def _place(name: str) -> tuple[str | None, float | None, str] | None:
    """What a header speaks of: the unit, the window, and which number of the quota it is."""
    match = _NAME.fullmatch(name)
    words = match[1].split("-") if match else []
    fields = [word for word in words if word in ("limit", "remaining", "reset")]
    if len(fields) != 1:
        return None
    rest = [word for word in words if word not in (*fields, "per")]
    if rest[-1:] == ["after"]:
        rest.pop()  # x-ratelimit-reset-after (Discord): the same in seconds
    window = WINDOWS.get(rest[-1]) if rest else None
    if window is not None:
        rest.pop()
    unit = "_".join(rest)
    return UNITS.get(unit, unit) or None, window, fields[0]


# ---- ratelimit, ratelimit-policy ----------------------------------------------------------------

_ITEM = re.compile(r'(?:[^,"]|"(?:\\.|[^"\\])*")+')
_PART = re.compile(r'(?:[^;"]|"(?:\\.|[^"\\])*")+')


def _items(value: str) -> Iterator[tuple[str, dict[str, str]]]:
    """The items of a structured field (RFC 9651) with their parameters, quotes taken off."""
    for item in _ITEM.findall(value):
        bare, *parameters = [part.strip() for part in _PART.findall(item)] or [""]
        pairs = (parameter.partition("=") for parameter in parameters)
        yield bare.strip('"'), {name: given.strip('"') for name, _, given in pairs}


def _policies(value: str) -> Iterator[tuple[str, Quota]]:
    """The policies by name. The older form has the quota where the name is now: ``100;w=60``."""
    for name, parameters in _items(value):
        yield (
            name,
            Quota(
                unit=parameters.get("qu", "").replace("-", "_") or None,
                window=_number(parameters.get("w", "")),
                limit=_number(parameters.get("q", name)),
            ),
        )


def _structured(value: str, policies: dict[str, Quota]) -> Iterator[Quota]:
    items = list(_items(value))
    pairs = dict(bare.split("=", 1) for bare, _ in items if "=" in bare)
    if pairs:  # limit=100, remaining=50, reset=5
        limit = _number(pairs.get("limit", ""))
        windows = [policy.window for policy in policies.values() if policy.limit == limit]
        yield Quota(
            None,
            windows[0] if windows else None,
            limit,
            _number(pairs.get("remaining", "")),
            _number(pairs.get("reset", "")),
        )
        return
    for name, parameters in items:
        yield replace(
            policies.get(name, Quota()),
            remaining=_number(parameters.get("r", "")),
            reset=_number(parameters.get("t", "")),
        )


# ---- values -------------------------------------------------------------------------------------

_DURATION = re.compile(
    r"(?:(\d+)d)?(?:(\d+)h)?(?:(\d+)m)?(?:(\d+(?:\.\d+)?)s)?(?:(\d+(?:\.\d+)?)ms)?"
)


def _number(text: str) -> float | None:
    """A number that is finite and not negative: -1 is how some say that there is no limit."""
    try:
        number = float(text)
    except ValueError:
        return None
    return number if 0 <= number < inf else None


def _reset(text: str, date: datetime | None) -> float | None:
    """Seconds from the response until a reset."""
    text = text.strip()
    number = _number(text)
    if number is None:
        parts = _DURATION.fullmatch(text)
        if text and parts is not None:
            days, hours, minutes, seconds, milliseconds = (
                float(part or 0) for part in parts.groups()
            )
            return days * 86400 + hours * 3600 + minutes * 60 + seconds + milliseconds / 1000
        return _until(_iso_date(text) or _http_date(text), date)
    if number < EPOCH:
        return number
    number = number / 1000 if number >= EPOCH_MS else number
    return max(0.0, number - date.timestamp()) if date is not None else None


def _until(when: datetime | None, date: datetime | None) -> float | None:
    if when is None or date is None:
        return None
    return max(0.0, (when - date).total_seconds())


def _iso_date(text: str) -> datetime | None:
    try:
        when = datetime.fromisoformat(text)
    except ValueError:
        return None
    return when if when.utcoffset() is not None else None


def _http_date(text: str) -> datetime | None:
    """The three forms of RFC 9110 (5.6.7); the third names no zone, and means UTC."""
    try:
        when = parsedate_to_datetime(text)
    except (ValueError, TypeError, IndexError, OverflowError):
        return None
    return when if when.utcoffset() is not None else when.replace(tzinfo=UTC)
