"""Answers that are none, as the errors that strategies understand."""

from __future__ import annotations

import re
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import TYPE_CHECKING, Any, Final

from async_task_manager.errors import NonRetryable, RateLimited

if TYPE_CHECKING:
    from collections.abc import Mapping

    import httpx

__all__ = ["BadAnswer", "Broken", "HttpFailure", "failure", "retry_after"]

MAY_PASS: Final = (408, 409, 425)
"""Of the 4xx those with which the same request may have more luck later."""
LONGEST: Final = 31 * 86_400.0
"""Seconds: a server that asks for more is not believed."""

_SECONDS: Final = re.compile(r"[0-9]{1,12}(?:\.[0-9]{1,6})?")


class Broken(str):
    """Text that was to be JSON."""

    __slots__ = ()


class HttpFailure(Exception):
    """The provider answered, and not with what was asked for."""

    def __init__(self, response: httpx.Response, content: Any) -> None:
        # Not the next in line, which may be an error with other parameters.
        Exception.__init__(self, f"HTTP {response.status_code} {response.reason_phrase}".rstrip())
        self.status = response.status_code
        self.content = content


class BadAnswer(HttpFailure):
    """A 2xx whose JSON is broken."""

    def __init__(self, response: httpx.Response, content: Any) -> None:
        super().__init__(response, str(content))
        self.args = (f"HTTP {response.status_code}, and the answer is no JSON, as it says it is",)


class SlowDown(HttpFailure, RateLimited):
    """The provider asks to come back later."""

    def __init__(self, response: httpx.Response, content: Any) -> None:
        super().__init__(response, content)
        self.retry_after = retry_after(response.headers)


class Refused(HttpFailure, NonRetryable):
    """The request itself is at fault: it would be refused again."""


def failure(response: httpx.Response, content: Any) -> HttpFailure:
    """The error for an answer that is no 2xx."""
    status = response.status_code
    if status == 429 or (status == 503 and retry_after(response.headers) is not None):
        return SlowDown(response, content)
    if status < 500 and status not in MAY_PASS:
        return Refused(response, content)
    return HttpFailure(response, content)


def retry_after(headers: Mapping[str, str]) -> float | datetime | None:
    """When to come back, in either form of Retry-After (RFC 9110, section 10.2.3), or in
    milliseconds as some have it; None: it isn't said, or not in a way that makes sense.
    """
    for name, unit in (("retry-after-ms", 0.001), ("retry-after", 1.0)):
        text = headers.get(name, "").strip()
        if _SECONDS.fullmatch(text):
            return min(float(text) * unit, LONGEST)
    try:
        moment = parsedate_to_datetime(headers.get("retry-after", ""))
    except (ValueError, IndexError, TypeError):
        return None
    if moment.utcoffset() is None:  # "-0000"
        moment = moment.replace(tzinfo=UTC)
    return moment if (moment - datetime.now(UTC)).total_seconds() <= LONGEST else None
