"""What servers say about their limits, in the headers that they really send."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta, timezone
from email.utils import format_datetime

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from async_task_manager.headers import Quota, dated, parse_retry_after, quotas, retry_after

NOW = datetime(2023, 11, 14, 22, 13, 20, tzinfo=UTC)
EPOCH = 1_700_000_000
DATE = "Tue, 14 Nov 2023 22:13:20 GMT"
assert NOW.timestamp() == EPOCH


@pytest.mark.parametrize(
    ("value", "meaning"),
    [
        ("120", 120.0),
        (" 0 ", 0.0),
        ("1.5", 1.5),
        (DATE, NOW),
        ("Tuesday, 14-Nov-23 22:13:20 GMT", NOW),  # RFC 850
        ("Tue Nov 14 22:13:20 2023", NOW),  # asctime
        ("-1", None),
        ("nan", None),
        ("inf", None),
        ("soon", None),
        ("Tue, 99 Nov 2023 22:13:20 GMT", None),
        ("", None),
    ],
)
def test_both_forms_of_retry_after(value: str, meaning: object) -> None:
    assert parse_retry_after(value) == meaning


@pytest.mark.parametrize(
    ("headers", "meaning"),
    [
        ({"Retry-After": "30"}, 30.0),
        ({"retry-after": DATE}, NOW),
        ({"retry-after": "Tue, 14 Nov 2023 22:14:20 GMT", "date": DATE}, 60.0),
        ({"retry-after": "Tue, 14 Nov 2023 22:00:00 GMT", "date": DATE}, 0.0),
        ({"retry-after": DATE, "date": "today"}, NOW),
        ({"retry-after": "2", "retry-after-ms": "1500"}, 1.5),
        ({"retry-after": "2", "retry-after-ms": "?"}, 2.0),
        ({}, None),
    ],
)
def test_the_earliest_return_that_a_response_allows(
    headers: dict[str, str], meaning: object
) -> None:
    assert retry_after(headers) == meaning


DIALECTS: dict[str, tuple[dict[str, str], list[Quota]]] = {
    "OpenAI": (
        {
            "x-ratelimit-limit-requests": "60",
            "x-ratelimit-limit-tokens": "150000",
            "x-ratelimit-remaining-requests": "59",
            "x-ratelimit-remaining-tokens": "149984",
            "x-ratelimit-reset-requests": "1s",
            "x-ratelimit-reset-tokens": "6m0s",
        },
        [Quota("requests", None, 60, 59, 1), Quota("tokens", None, 150_000, 149_984, 360)],
    ),
    "Groq": (
        {
            "x-ratelimit-remaining-requests": "14370",
            "x-ratelimit-reset-requests": "2m59.56s",
            "x-ratelimit-remaining-tokens": "17997",
            "x-ratelimit-reset-tokens": "7.66s",
        },
        [
            Quota("requests", remaining=14_370, reset=pytest.approx(179.56)),  # type: ignore[arg-type]
            Quota("tokens", remaining=17_997, reset=7.66),
        ],
    ),
    "Azure, where -1 is no number": (
        {"x-ratelimit-remaining-requests": "-1", "x-ratelimit-remaining-tokens": "0"},
        [Quota("tokens", remaining=0)],
    ),
    "GitHub": (
        {
            "Date": DATE,
            "X-RateLimit-Limit": "5000",
            "X-RateLimit-Remaining": "4987",
            "X-RateLimit-Reset": str(EPOCH + 60),
            "X-RateLimit-Used": "13",
            "X-RateLimit-Resource": "core",
        },
        [Quota(None, None, 5000, 4987, 60)],
    ),
    "GitHub, without a date to hold it against": (
        {"X-RateLimit-Remaining": "3", "X-RateLimit-Reset": str(EPOCH + 60)},
        [Quota(remaining=3)],
    ),
    "milliseconds since 1970": (
        {"date": DATE, "X-RateLimit-Reset": str((EPOCH + 60) * 1000)},
        [Quota(reset=60)],
    ),
    "X": (
        {
            "date": DATE,
            "x-rate-limit-limit": "15",
            "x-rate-limit-remaining": "3",
            "x-rate-limit-reset": str(EPOCH + 900),
        },
        [Quota(None, None, 15, 3, 900)],
    ),
    "Discord": (
        {
            "x-ratelimit-limit": "5",
            "x-ratelimit-remaining": "0",
            "x-ratelimit-reset": "1470173023.123",
            "x-ratelimit-reset-after": "64.57",
            "x-ratelimit-bucket": "abcd1234",
        },
        [Quota(None, None, 5, 0, 64.57)],
    ),
    "Anthropic": (
        {
            "date": DATE,
            "anthropic-ratelimit-requests-limit": "50",
            "anthropic-ratelimit-requests-remaining": "49",
            "anthropic-ratelimit-requests-reset": "2023-11-14T22:13:21Z",
            "anthropic-ratelimit-input-tokens-limit": "40000",
            "anthropic-ratelimit-input-tokens-remaining": "0",
            "anthropic-ratelimit-input-tokens-reset": "2023-11-14T22:14:00+00:00",
        },
        [Quota("requests", None, 50, 49, 1), Quota("input_tokens", None, 40_000, 0, 40)],
    ),
    "Kong": (
        {
            "X-RateLimit-Limit-Minute": "10",
            "X-RateLimit-Remaining-Minute": "9",
            "X-RateLimit-Remaining-Day": "99",
            "RateLimit-Limit": "10",
            "RateLimit-Remaining": "9",
            "RateLimit-Reset": "54",
        },
        [
            Quota(None, 60, 10, 9),
            Quota(None, 86_400, None, 99),
            Quota(None, None, 10, 9, 54),
        ],
    ),
    "Mistral": (
        {"x-ratelimit-limit-req-minute": "20", "x-ratelimit-remaining-tokens-per-minute": "5"},
        [Quota("requests", 60, 20), Quota("tokens", 60, None, 5)],
    ),
    "IETF": (
        {
            "RateLimit-Policy": '"burst";q=100;w=60, "da,i;ly";q=1000;w=86400;qu="content-bytes"',
            "RateLimit": '"da,i;ly";r=50;t=30;pk=:abc=:, "burst";r=3, "unknown";r=1;t=2',
        },
        [
            Quota("content_bytes", 86_400, 1000, 50, 30),
            Quota(None, 60, 100, 3),
            Quota(None, None, None, 1, 2),
        ],
    ),
    "IETF, draft 7": (
        {"RateLimit": "limit=100, remaining=50, reset=5", "RateLimit-Policy": "10;w=1, 100;w=60"},
        [Quota(None, 60, 100, 50, 5)],
    ),
    "IETF, draft 7, without a policy": (
        {"RateLimit": "limit=100, remaining=50, reset=5"},
        [Quota(None, None, 100, 50, 5)],
    ),
    "IETF, draft 6": (
        {
            "RateLimit-Limit": "100, 100;w=60",
            "RateLimit-Remaining": "4",
            "RateLimit-Reset": "5",
            "RateLimit-Policy": "100;w=60",
        },
        [Quota(None, 60, 100, 4, 5)],
    ),
    "an HTTP date": (
        {"date": DATE, "x-ratelimit-reset": "Tue, 14 Nov 2023 22:13:30 GMT"},
        [Quota(reset=10)],
    ),
    "a reset that has passed": (
        {"date": DATE, "x-ratelimit-reset": "2023-11-14T22:00:00Z"},
        [Quota(reset=0)],
    ),
    "a local time says nothing": ({"date": DATE, "x-ratelimit-reset": "2023-11-14T22:00:00"}, []),
    "days and milliseconds": ({"x-ratelimit-reset": "1d2h3m4s5ms"}, [Quota(reset=93_784.005)]),
    "nonsense": (
        {
            "x-ratelimit-reset": "",
            "x-ratelimit-limit": "many",
            "x-ratelimit-remaining": "inf",
            "x-ratelimit-limit-remaining": "3",
            "x-ratelimit": "3",
            "ratelimit": '"',
            "content-type": "text/plain",
        },
        [Quota()],
    ),
    "nothing": ({}, []),
}


@pytest.mark.parametrize("dialect", DIALECTS)
def test_a_dialect_is_understood(dialect: str) -> None:
    headers, meaning = DIALECTS[dialect]
    assert [quota for quota in quotas(headers) if quota != Quota()] == [
        quota for quota in meaning if quota != Quota()
    ]


@given(st.dictionaries(st.text(max_size=30), st.text(max_size=60), max_size=4), st.text())
@example({"ratelimit": '"a', "ratelimit-policy": ";;,,="}, "")
@example({"ratelimit": "=,a=,=b", "x-ratelimit-reset": "9" * 400}, "9" * 400)
@example({"x-ratelimit-reset": "1e300", "date": DATE}, "Mon, 1 Jan 99999 00:00:00 GMT")
@example({"x-ratelimit-reset": "9999-12-31T23:59:59-23:59", "date": DATE}, "")
def test_nothing_that_a_server_sends_raises(headers: dict[str, str], after: str) -> None:
    for quota in quotas(headers):
        for number in (quota.window, quota.limit, quota.remaining, quota.reset):
            assert number is None or 0 <= number < float("inf")
    for field in ("x-ratelimit-reset", "ratelimit", "ratelimit-policy", "retry-after"):
        quotas({field: after, "date": DATE})
    retry_after({"retry-after": after, **headers})


@given(
    st.integers(0, 10**6),
    st.sampled_from([UTC, timezone(timedelta(hours=5, minutes=30)), timezone(-timedelta(hours=8))]),
)
def test_however_a_reset_is_written_it_means_the_same(seconds: int, zone: timezone) -> None:
    when = NOW + timedelta(seconds=seconds)
    minutes, rest = divmod(seconds, 60)
    for text in (
        str(seconds),
        f"{seconds}s",
        f"{minutes}m{rest}s",
        f"{seconds * 1000}ms",
        str(EPOCH + seconds),
        str((EPOCH + seconds) * 1000),
        when.astimezone(zone).isoformat(),
        format_datetime(when, usegmt=True),
    ):
        assert quotas({"x-ratelimit-reset": text, "date": DATE}) == [Quota(reset=seconds)]


def test_a_response_without_a_date_gets_that_of_its_arrival() -> None:
    headers = {"Date": DATE, "x": "1"}
    assert dated(headers, EPOCH + 99.0) is headers
    assert dated({"x": "1"}, EPOCH + 0.7) == {"x": "1", "date": DATE}
