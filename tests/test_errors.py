"""The errors that the work raises to tell strategies what happened."""

from __future__ import annotations

import pickle
from datetime import UTC, datetime
from math import inf, nan

import pytest

from async_task_manager import (
    CircuitOpen,
    InvalidType,
    InvalidValue,
    NonRetryable,
    RateLimited,
    TaskManagerError,
    TaskRejected,
)

NOON = datetime(2026, 11, 26, 12, tzinfo=UTC)


@pytest.mark.parametrize("retry_after", [None, 0, 0.5, 30, NOON])
def test_a_rate_limited_outcome_says_when_to_come_back(retry_after: float | None) -> None:
    error = RateLimited("slow down", retry_after=retry_after)
    assert isinstance(error, TaskManagerError)
    assert str(error) == "slow down"
    assert error.retry_after == retry_after
    twin = pickle.loads(pickle.dumps(error))
    assert (str(twin), twin.retry_after) == ("slow down", retry_after)


def test_a_rate_limited_outcome_needs_no_words() -> None:
    assert str(RateLimited()) == "too many requests"
    assert RateLimited().retry_after is None


@pytest.mark.parametrize(
    ("retry_after", "kind", "words"),
    [
        (-1, InvalidValue, "at least 0, not -1"),
        (nan, InvalidValue, "at least 0, not nan"),
        (inf, InvalidValue, "finite number of seconds, at least 0, not inf"),
        (datetime(2026, 11, 26, 12), InvalidValue, "must be aware"),
        ("30", InvalidType, "not '30'"),
        (True, InvalidType, "not True"),
    ],
)
def test_a_retry_after_that_means_nothing_is_refused(
    retry_after: float, kind: type[Exception], words: str
) -> None:
    with pytest.raises(kind, match=words):
        RateLimited(retry_after=retry_after)


def test_an_open_circuit_is_a_rejection_with_an_end() -> None:
    error = CircuitOpen(until=12.5)
    assert isinstance(error, TaskRejected)
    assert error.until == 12.5
    assert str(error) == "the circuit breaker is open"
    assert str(CircuitOpen("no")) == "no"
    assert CircuitOpen().until is None
    twin = pickle.loads(pickle.dumps(error))
    assert (str(twin), twin.until) == (str(error), 12.5)


def test_a_callers_own_error_can_forbid_retries() -> None:
    class BadRequest(NonRetryable, ValueError):
        pass

    assert issubclass(BadRequest, TaskManagerError)
    assert str(BadRequest("no")) == "no"
