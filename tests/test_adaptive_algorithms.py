"""The algorithms alone: a limit and a sample give the next limit."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from math import sqrt
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from async_task_manager.errors import InvalidType, InvalidValue
from async_task_manager.strategies import Aimd, Gradient, LimitAlgorithm, Sample, Vegas

FULL = 10**6
"""More than any limit: all of it was used."""


def rounds(algorithm: LimitAlgorithm, limit: float, times: int, sample: Sample) -> float:
    for _ in range(times):
        limit = algorithm.update(limit, sample)
    return limit


def test_aimd_adds_one_and_multiplies_after_a_failure() -> None:
    aimd = Aimd(backoff=0.5, timeout=2)
    assert aimd.update(10, Sample(1, 10)) == 11
    assert aimd.update(10, Sample(1, 5)) == 11
    assert aimd.update(10, Sample(1, 4)) == 10
    assert aimd.update(10, Sample(1, 4, dropped=True)) == 5
    assert aimd.update(10, Sample(2, 10)) == 11
    assert aimd.update(10, Sample(2.1, 10)) == 5


def test_gradient_grows_while_the_time_stays_and_shrinks_in_proportion() -> None:
    gradient = Gradient(tolerance=1.5, queue=4, smoothing=0.2)
    assert gradient.update(10, Sample(1, FULL)) == pytest.approx(10.8)
    assert gradient.baseline == 1
    # 1.5 * 1 / 3 is the least gradient: half of it, and the queue.
    assert gradient.update(10, Sample(3, FULL)) == pytest.approx(10 + 0.2 * (5 + 4 - 10), abs=0.02)
    assert gradient.update(10, Sample(30, FULL)) == pytest.approx(9.8)
    assert gradient.update(10, Sample(30, 4)) == 10
    assert gradient.update(10, Sample(0, FULL)) == pytest.approx(10.8)
    assert gradient.update(10, Sample(1, 3, dropped=True)) == 9


def test_the_baseline_of_gradient_is_an_exponential_average_of_six_hundred_rounds() -> None:
    gradient = Gradient()
    gradient.update(10, Sample(1, FULL))
    gradient.update(10, Sample(3, FULL))
    assert gradient.baseline == pytest.approx(1 + (3 - 1) * 2 / 601, rel=1e-12)
    # Where half of the limit is in use, it moves: 10 + 0.2 * (0.5025 * 10 + 4 - 10).
    following = gradient.update(10, Sample(3, 5))
    share = 1.5 * gradient.baseline / 3
    assert following == pytest.approx(10 + 0.2 * (10 * share + 4 - 10), rel=1e-12)
    assert gradient.update(10, Sample(3, 4)) == 10


def test_the_baseline_of_gradient_follows_slowly_up_and_quickly_down() -> None:
    gradient = Gradient(long_window=600, probe_every=10**6)
    gradient.rounds = 0
    gradient.update(10, Sample(1, FULL))
    rounds(gradient, 10, 100, Sample(4, FULL))
    assert 1.5 < gradient.baseline < 2
    gradient.baseline = 64
    rounds(gradient, 10, 80, Sample(1, FULL))
    assert gradient.baseline < 2


def test_vegas_moves_by_the_queue_that_it_sees() -> None:
    vegas = Vegas()
    assert vegas.update(10, Sample(1, FULL)) == 16  # no queue
    assert vegas.update(10, Sample(1.25, FULL)) == 11  # 2, below 3
    assert vegas.update(10, Sample(2, FULL)) == 10  # 5, between 3 and 6
    assert vegas.update(10, Sample(4, FULL)) == 9  # 8, above 6
    assert vegas.update(10, Sample(4, 4)) == 10
    assert vegas.update(10, Sample(0.5, FULL)) == 16
    assert vegas.baseline == 0.5
    assert vegas.update(1000, Sample(0.5, FULL)) == 1018
    assert vegas.update(10, Sample(0.5, 1, dropped=True)) == 9
    assert vegas.update(10, Sample(0, FULL)) == 16


@pytest.mark.parametrize(
    ("limit", "changes"),
    [(16, [6, 6, 1, 0, 0, 0, 0, -1, -1]), (128, [12, 12, 12, 2, 2, 2, *[0] * 7, -2, -2])],
)
def test_the_bounds_of_vegas(limit: int, changes: list[int]) -> None:
    """By the queue at the server; a step is 1 up to a limit of 99, then 2."""
    for queue, change in enumerate(changes):
        vegas = Vegas()
        vegas.baseline = limit - queue
        assert vegas.update(limit, Sample(limit, limit // 2)) == limit + change, queue


@pytest.mark.parametrize("kind", [Gradient, Vegas])
def test_now_and_then_a_probe_finds_the_baseline(kind: Callable[..., Any]) -> None:
    algorithm = kind(probe_every=3)
    algorithm.baseline = 0.1
    for _ in range(2):
        assert algorithm.update(100, Sample(2, FULL)) < 100
    assert algorithm.update(100, Sample(2, FULL)) == sqrt(100)
    after = algorithm.update(10, Sample(1, 10))
    assert 80 <= after < 100
    assert algorithm.baseline == 1
    assert algorithm.update(after, Sample(1, FULL)) > after


def test_the_first_probe_comes_soon_and_another_where_the_baseline_was_far_off() -> None:
    vegas = Vegas(probe_every=1000)

    def until_a_probe() -> int:
        for number in range(1, 2000):
            if vegas.update(100, Sample(8, FULL)) == sqrt(100):
                return number
        raise AssertionError

    assert until_a_probe() == 10
    vegas.update(10, Sample(3, 10))
    assert until_a_probe() == 10
    vegas.update(10, Sample(2, 10))
    assert until_a_probe() == 1000


def test_a_probe_that_fails_finds_nothing() -> None:
    vegas = Vegas(probe_every=2)
    vegas.update(100, Sample(1, FULL))
    assert vegas.update(112, Sample(1, FULL)) == sqrt(112)
    assert vegas.update(sqrt(112), Sample(0, 3, dropped=True)) == 124
    assert vegas.baseline == 1


def test_where_the_limit_is_not_used_there_is_no_probe() -> None:
    vegas = Vegas(probe_every=2)
    assert rounds(vegas, 100, 10, Sample(1, 49)) == 100
    assert vegas.update(100, Sample(1, 50)) == sqrt(100)


@given(
    st.sampled_from([Aimd(), Gradient(probe_every=3), Vegas(probe_every=3)]),
    st.lists(
        st.tuples(st.floats(0, 1e6), st.integers(0, 10**6), st.booleans()), min_size=1, max_size=60
    ),
)
def test_whatever_they_are_fed_a_limit_comes_out(
    kind: LimitAlgorithm, samples: list[tuple[float, int, bool]]
) -> None:
    algorithm, limit = copy.deepcopy(kind), 10.0
    for rtt, in_flight, dropped in samples:
        given = limit
        limit = max(1.0, min(1e6, algorithm.update(limit, Sample(rtt, in_flight, dropped))))
        assert limit == limit
        if dropped and getattr(algorithm, "resume", None) is None:
            assert limit <= max(1, given) or algorithm.rounds == 0  # type: ignore[attr-defined]


@pytest.mark.parametrize("kind", [Aimd, Gradient, Vegas])
def test_they_survive_a_restart(kind: Callable[[], LimitAlgorithm]) -> None:
    algorithm, fresh = kind(), kind()
    rounds(algorithm, 10, 5, Sample(2, FULL))
    fresh.load(json.loads(json.dumps(algorithm.dump())))
    assert vars(fresh) == vars(algorithm)


def test_their_defaults() -> None:
    gradient = Gradient()
    assert (gradient.tolerance, gradient.queue, gradient.smoothing) == (1.5, 4, 0.2)
    assert (gradient.long_window, gradient.backoff, gradient.probe_every) == (600, 0.9, 100)
    assert (Vegas().probe_every, Aimd().backoff, Aimd().timeout) == (100, 0.9, None)


def test_they_say_what_they_are() -> None:
    assert repr(Gradient()) == "Gradient()"
    assert repr(Gradient(tolerance=2, probe_every=50)) == "Gradient(tolerance=2, probe_every=50)"
    assert repr(Aimd(timeout=3)) == "Aimd(timeout=3)"


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: Aimd(backoff=1), InvalidValue, r"backoff must be at least 0\.5 and below 1"),
        (lambda: Aimd(backoff=0.4), InvalidValue, "backoff"),
        (lambda: Aimd(backoff="half"), InvalidType, "backoff must be a number"),  # type: ignore[arg-type]
        (lambda: Aimd(timeout=0), InvalidValue, "timeout"),
        (lambda: Gradient(tolerance=0.9), InvalidValue, "tolerance .*at least 1"),
        (lambda: Gradient(queue=0), InvalidValue, "queue"),
        (lambda: Gradient(smoothing=1.1), InvalidValue, "smoothing"),
        (lambda: Gradient(long_window=0), InvalidValue, "long_window"),
        (lambda: Vegas(probe_every=1), InvalidValue, "probe_every .*at least 2"),
    ],
)
def test_bad_parameters_are_refused(
    make: Callable[[], object], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        make()
