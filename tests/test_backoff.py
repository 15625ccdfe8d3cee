"""Backoffs: their lengths, and what jitter makes of them."""

from __future__ import annotations

import random
from collections.abc import Callable
from statistics import mean
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from async_task_manager.errors import InvalidType, InvalidValue
from async_task_manager.strategies.backoff import (
    Backoff,
    decorrelated,
    exponential,
    fibonacci,
    fixed,
    linear,
)

SHAPES: list[tuple[Callable[..., Backoff], list[float]]] = [
    (lambda **o: exponential(0.5, factor=2, maximum=60, **o), [0.5, 1, 2, 4, 8, 16, 32, 60, 60]),
    (lambda **o: linear(2, maximum=7, **o), [2, 4, 6, 7, 7]),
    (lambda **o: fixed(3, **o), [3, 3, 3]),
    (lambda **o: fibonacci(1, maximum=10, **o), [1, 1, 2, 3, 5, 8, 10, 10]),
    (lambda **o: decorrelated(1, factor=3, maximum=20, **o), [3, 9, 20, 20]),
]


@pytest.mark.parametrize(("shape", "lengths"), SHAPES)
def test_without_jitter_it_waits_exactly_that_long(
    shape: Callable[..., Backoff], lengths: list[float]
) -> None:
    backoff = shape(jitter=None)
    assert [backoff(attempt) for attempt in range(1, len(lengths) + 1)] == lengths


@pytest.mark.parametrize(("shape", "lengths"), SHAPES[:4])
@pytest.mark.parametrize(("jitter", "least"), [("full", 0.0), ("equal", 0.5)])
def test_jitter_spreads_over_its_range(
    shape: Callable[..., Backoff], lengths: list[float], jitter: str, least: float
) -> None:
    backoff, generator = shape(jitter=jitter), random.Random(7)
    for attempt, length in enumerate(lengths, 1):
        waits = [backoff(attempt, generator) for _ in range(1_000)]
        assert all(least * length <= wait <= length for wait in waits)
        assert mean(waits) == pytest.approx((1 + least) / 2 * length, rel=0.05)
        assert min(waits) < (least + 0.05) * length
        assert max(waits) > 0.95 * length


def test_a_decorrelated_backoff_walks_as_the_walk_does() -> None:
    """Against the loop of the paper, which remembers the wait before."""
    for jitter, low in (("full", 0.0), ("equal", 0.5)):
        backoff, ours, theirs = decorrelated(1, maximum=20, jitter=jitter), [], []  # type: ignore[arg-type]
        generator, other = random.Random(1), random.Random(2)
        for _ in range(2_000):
            wait = 1.0
            for _ in range(3):
                end = min(20, 3 * wait)
                wait = other.uniform(1 + low * (end - 1), end)
            theirs.append(wait)
            ours.append(backoff(3, generator))
        assert mean(ours) == pytest.approx(mean(theirs), rel=0.05)
        assert sorted(ours)[200] == pytest.approx(sorted(theirs)[200], rel=0.1)
        assert sorted(ours)[1_800] == pytest.approx(sorted(theirs)[1_800], rel=0.1)


def test_the_generator_decides() -> None:
    backoff = exponential()
    waits = [[backoff(3, random.Random(seed)) for seed in (1, 2)] for _ in range(2)]
    assert waits[0] == waits[1]
    assert waits[0][0] != waits[0][1]
    random.seed(5)
    alone = backoff(3)
    random.seed(5)
    assert backoff(3) == alone


@given(
    base=st.floats(1e-3, 1e3),
    factor=st.floats(1, 1e6),
    attempt=st.integers(1, 10**9),
    jitter=st.sampled_from([None, "full", "equal"]),
)
def test_no_attempt_is_too_high(base: float, factor: float, attempt: int, jitter: Any) -> None:
    for backoff in (
        exponential(base, factor=factor, maximum=1e4, jitter=jitter),
        linear(base, maximum=1e4, jitter=jitter),
        fibonacci(base, maximum=1e4, jitter=jitter),
        decorrelated(base, factor=factor, maximum=1e4, jitter=jitter),
    ):
        assert 0 <= backoff(attempt) <= 1e4


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: exponential(0), "base must be a finite number above 0, not 0"),
        (lambda: exponential(1, factor=0.9), "factor must be .* at least 1, not 0.9"),
        (lambda: linear(float("nan")), "base must be"),
        (lambda: fixed(-1), "seconds must be a finite number at least 0, not -1"),
        (lambda: fibonacci(5, maximum=4), "maximum must be at least base, 5, not 4"),
        (lambda: decorrelated(1, factor=0), "factor must be"),
        (lambda: fixed(1, jitter="some"), "jitter must be one of 'full', 'equal', not 'some'"),  # type: ignore[arg-type]
        (lambda: fixed(1)(0), "attempt must be .* at least 1, not 0"),
        (lambda: decorrelated(1)(0), "attempt must be .* at least 1, not 0"),
    ],
)
def test_bad_parameters_are_named(make: Callable[[], object], words: str) -> None:
    with pytest.raises(InvalidValue, match=words):
        make()


def test_what_is_no_number_is_refused() -> None:
    with pytest.raises(InvalidType, match="base must be a number"):
        exponential("1")  # type: ignore[arg-type]
    with pytest.raises(InvalidType, match="attempt must be a whole number"):
        linear()(1.5)  # type: ignore[arg-type]


def test_it_says_what_it_is() -> None:
    assert repr(exponential()) == "exponential(0.5, factor=2.0, maximum=60.0, jitter='full')"
    assert repr(decorrelated(1)) == "decorrelated(1, factor=3.0, maximum=60.0, jitter='full')"
    assert repr(fixed(2)) == "fixed(2, jitter=None)"
