"""Answers that are none, as the errors that strategies understand."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any, Final

from async_task_manager.errors import NonRetryable, RateLimited
from async_task_manager.headers import retry_after

if TYPE_CHECKING:
    from collections.abc import Mapping

    import httpx

__all__ = ["BadAnswer", "Broken", "HttpFailure", "failure", "told"]

MAY_PASS: Final = (408, 409, 425)
"""Of the 4xx those with which the same request may have more luck later."""
LONGEST: Final = 31 * 86_400.0
"""Seconds: more than a month no server means, and a run shouldn't wait."""


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
        self.retry_after = told(response.headers)


class Refused(HttpFailure, NonRetryable):
    """The request itself is at fault: it would be refused again."""


def failure(response: httpx.Response, content: Any) -> HttpFailure:
    """The error for an answer that is no 2xx."""
    status = response.status_code
    if status == 429 or (status == 503 and told(response.headers) is not None):
        return SlowDown(response, content)
    if status < 500 and status not in MAY_PASS:
        return Refused(response, content)
    return HttpFailure(response, content)


def told(headers: Mapping[str, str]) -> float | datetime | None:
    """When the headers say to come back; None: they don't, or not in a way that makes sense."""
    after = retry_after(headers)
    if after is None:
        return None
    now = datetime.now(UTC)
    seconds = (after - now).total_seconds() if isinstance(after, datetime) else after
    return after if seconds <= LONGEST else now + timedelta(seconds=LONGEST)
