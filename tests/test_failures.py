"""Answers that are none become the errors that strategies understand."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from email.utils import format_datetime

import httpx
import pytest

from async_task_manager.errors import NonRetryable, RateLimited
from async_task_manager.runner.failures import BadAnswer, failure, told

SOON = datetime.now(UTC).replace(microsecond=0) + timedelta(minutes=5)


@pytest.mark.parametrize(
    ("headers", "expected"),
    [
        ({}, None),
        ({"Retry-After": "7"}, 7.0),
        ({"Retry-After": " 0.5 "}, 0.5),
        ({"retry-after-ms": "1500", "retry-after": "2"}, 1.5),
        ({"Retry-After": format_datetime(SOON, usegmt=True)}, SOON),
        ({"Retry-After": SOON.strftime("%a, %d %b %Y %H:%M:%S -0000")}, SOON),
        (
            {"Retry-After": "Sun, 06 Nov 1994 08:49:37 GMT"},
            datetime(1994, 11, 6, 8, 49, 37, 0, UTC),
        ),
        ({"Retry-After": "-5"}, None),
        ({"Retry-After": "soon"}, None),
        ({"Retry-After": "inf"}, None),
    ],
)
def test_both_forms_of_retry_after(headers: dict[str, str], expected: object) -> None:
    assert told(httpx.Headers(headers)) == expected


@pytest.mark.parametrize("text", ["99999999999", "Fri, 31 Dec 2100 23:59:59 GMT", "1" * 200])
def test_no_server_is_believed_that_asks_for_years(text: str) -> None:
    after = told(httpx.Headers({"Retry-After": text}))
    assert isinstance(after, datetime)
    assert timedelta(days=30) < after - datetime.now(UTC) <= timedelta(days=31)


@pytest.mark.parametrize(
    ("status", "headers", "kind"),
    [
        (429, {}, RateLimited),
        (429, {"Retry-After": "3"}, RateLimited),
        (503, {"Retry-After": "3"}, RateLimited),
        (503, {}, None),
        (500, {"Retry-After": "3"}, None),
        (408, {}, None),
        (400, {}, NonRetryable),
        (401, {}, NonRetryable),
        (302, {}, NonRetryable),
    ],
)
def test_what_an_answer_means(status: int, headers: dict[str, str], kind: type | None) -> None:
    error = failure(httpx.Response(status, headers=headers), {"a": 1})
    assert isinstance(error, RateLimited) is (kind is RateLimited)
    assert isinstance(error, NonRetryable) is (kind is NonRetryable)
    assert (error.status, error.content) == (status, {"a": 1})
    assert str(error).startswith(f"HTTP {status} ")
    if isinstance(error, RateLimited):
        assert error.retry_after == (3.0 if headers else None)


def test_a_2xx_that_is_no_json() -> None:
    error = BadAnswer(httpx.Response(200), "{")
    assert (error.status, error.content) == (200, "{")
    assert not isinstance(error, NonRetryable | RateLimited)
