"""Ranks: what goes first, and how long the rest can be made to wait."""

from __future__ import annotations

import copy
import heapq
import math
from enum import IntEnum, StrEnum
from fractions import Fraction
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from async_task_manager.errors import InvalidType, InvalidValue
from async_task_manager.strategies.priority_queue import PriorityQueueStrategy
from async_task_manager.task import Task


async def nothing() -> None: ...


def task(priority: object = None) -> Task[None]:
    return Task(nothing, None if priority is None else {"priority": priority})


def served(policy: PriorityQueueStrategy, arrivals: list[tuple[float, object]]) -> list[int]:
    """The order in which tasks start that all wait: by rank, ties by arrival."""
    ranks = [policy.rank(task(priority), at) for at, priority in arrivals]
    return sorted(range(len(ranks)), key=lambda number: (ranks[number], number))


class Level(StrEnum):
    HIGH = "high"


class Urgency(IntEnum):
    URGENT = 7


# ---------------------------------------------------------------- strict priority


@pytest.mark.parametrize(
    ("priority", "rank"),
    [
        (None, 0),
        (0, 0),
        (5, -5),
        (-5, 5),
        (10**400, -(10**400)),
        (2.5, -2.5),
        (-0.0, 0),
        (Fraction(1, 3), Fraction(-1, 3)),
        ("high", -1),
        ("normal", 0),
        ("low", 1),
        (Level.HIGH, -1),
        (Urgency.URGENT, -7),
    ],
)
def test_rank_is_the_priority_negated(priority: object, rank: float) -> None:
    given_rank = PriorityQueueStrategy().rank(task(priority), 123.0)
    assert given_rank == rank
    assert hash(given_rank) == hash(rank)  # one level of the queue, however it was written


@pytest.mark.parametrize("priority", [None, 3, -3, "high", "normal", "low", Urgency.URGENT])
def test_rank_of_an_int_is_an_int(priority: object) -> None:
    assert type(PriorityQueueStrategy().rank(task(priority), 0.5)) is int


@given(
    st.lists(st.one_of(st.integers(-3, 3), st.sampled_from(["high", "normal", "low"])), max_size=30)
)
def test_higher_goes_first_and_ties_first_come_first_served(priorities: list[Any]) -> None:
    level = {"high": 1, "normal": 0, "low": -1}
    expected = sorted(
        range(len(priorities)),
        key=lambda number: -level.get(priorities[number], priorities[number]),
    )
    assert served(PriorityQueueStrategy(), [(0.0, p) for p in priorities]) == expected


def test_without_priority_the_default_counts_and_no_dict_is_made() -> None:
    plain = Task(nothing)
    assert PriorityQueueStrategy(default="low").rank(plain, 0.0) == 1
    assert PriorityQueueStrategy(default=2.5).rank(task("normal"), 0.0) == 0
    assert PriorityQueueStrategy(default=2.5).rank(Task(nothing, {"priority": None}), 0.0) == -2.5
    assert plain._metadata is None


def test_key_names_another_field_or_is_a_callable() -> None:
    by_name = PriorityQueueStrategy(key="urgency")
    assert by_name.rank(Task(nothing, {"urgency": 4, "priority": 9}), 0.0) == -4
    by_call = PriorityQueueStrategy(key=lambda task: task.metadata["plan"], levels={"paid": 10})
    assert by_call.rank(Task(nothing, {"plan": "paid"}), 0.0) == -10
    assert by_call.rank(Task(nothing, {"plan": None}), 0.0) == 0


def test_metadata_that_changes_later_changes_no_rank() -> None:
    one = task(3)
    rank = PriorityQueueStrategy().rank(one, 0.0)
    one.metadata["priority"] = -3
    assert rank == -3


def test_levels_are_copied() -> None:
    levels: dict[str, float] = {"gold": 2}
    policy = PriorityQueueStrategy(levels=levels)
    levels["gold"] = -2
    levels["tin"] = 0
    assert policy.rank(task("gold"), 0.0) == -2
    with pytest.raises(InvalidValue, match="tin"):
        policy.rank(task("tin"), 0.0)


# ---------------------------------------------------------------- aging


def test_a_level_is_gained_in_aging_seconds() -> None:
    policy = PriorityQueueStrategy(aging=60)
    low = policy.rank(task("low"), 1000.0)
    assert policy.rank(task("normal"), math.nextafter(1060.0, 0)) < low
    assert policy.rank(task("normal"), 1060.0) == low  # the first come goes first
    assert policy.rank(task("high"), 1119.0) < low < policy.rank(task("high"), 1121.0)


# Halves and quarters divide and subtract without rounding: the bound holds to the bit.
instants = st.integers(0, 4_000).map(lambda n: n / 4)
agings = st.sampled_from([0.25, 0.5, 1, 2.0, 64])
priorities = st.integers(-20, 20).map(lambda n: n / 2)


@given(aging=agings, first=st.tuples(instants, priorities), other=st.tuples(instants, priorities))
def test_a_task_waits_behind_another_level_for_so_many_seconds_of_arrivals_and_no_more(
    aging: float, first: tuple[float, float], other: tuple[float, float]
) -> None:
    policy = PriorityQueueStrategy(aging=aging)
    (at, p), (later, q) = first, other
    overtaken = policy.rank(task(q), later) < policy.rank(task(p), at)
    assert overtaken is (later - at < (q - p) * aging)


@given(
    aging=st.floats(0.001, 1e6),
    first=st.tuples(st.floats(0, 1e7), st.floats(-100, 100)),
    other=st.tuples(st.floats(0, 1e7), st.floats(-100, 100)),
)
def test_the_bound_holds_for_any_numbers_up_to_their_rounding(
    aging: float, first: tuple[float, float], other: tuple[float, float]
) -> None:
    policy = PriorityQueueStrategy(aging=aging)
    (at, p), (later, q) = first, other
    ahead = Fraction(q) - Fraction(p) - (Fraction(later) - Fraction(at)) / Fraction(aging)
    if abs(ahead) > 1e-15 * (max(at, later) / aging + 100) * 4:
        assert (policy.rank(task(q), later) < policy.rank(task(p), at)) is (ahead > 0)


@given(
    aging=agings,
    arrivals=st.lists(st.tuples(instants, st.integers(-3, 3)), max_size=40),
    pace=st.sampled_from([0.25, 1, 16]),
)
def test_a_fixed_rank_serves_as_priorities_that_grow_would(
    aging: float, arrivals: list[tuple[float, int]], pace: float
) -> None:
    """One server, busy for ``pace`` seconds with each: at every turn the highest of all present."""
    arrivals = sorted(arrivals, key=lambda arrival: arrival[0])
    policy = PriorityQueueStrategy(aging=aging)
    coming = list(enumerate(arrivals))
    queue: list[tuple[float, int]] = []
    waiting: dict[int, tuple[float, int]] = {}
    now = 0.0
    while coming or waiting:
        while coming and coming[0][1][0] <= now:
            number, (at, priority) = coming.pop(0)
            heapq.heappush(queue, (policy.rank(task(priority), at), number))
            waiting[number] = (at, priority)
        if waiting:
            grown = {
                number: priority + (now - at) / aging for number, (at, priority) in waiting.items()
            }
            best = max(waiting, key=lambda number: (grown[number], -number))
            assert heapq.heappop(queue)[1] == best
            del waiting[best]
        now += pace


def test_strict_priority_starves_and_aging_does_not() -> None:
    flood = [(float(second), "high") for second in range(1, 1000)]
    arrivals: list[tuple[float, object]] = [(0.0, "low"), *flood]
    assert served(PriorityQueueStrategy(), arrivals).index(0) == 999
    # (1 - -1) * 10 s: the nineteen that arrive at 1 to 19 s; the one at 20 s is a tie, and later
    assert served(PriorityQueueStrategy(aging=10), arrivals).index(0) == 19


@given(
    aging=st.floats(min_value=0, exclude_min=True, allow_infinity=False),
    now=st.floats(0, 1e300),
    priority=st.floats(allow_nan=False, allow_infinity=False),
)
def test_a_rank_always_sorts(aging: float, now: float, priority: float) -> None:
    rank = PriorityQueueStrategy(aging=aging).rank(task(priority), now)
    assert not math.isnan(rank)


def test_aging_refuses_what_no_float_can_hold() -> None:
    with pytest.raises(InvalidValue, match=r"priority of .* below 1\.8e308 .* not 1000"):
        PriorityQueueStrategy(aging=1).rank(task(10**400), 0.0)


# ---------------------------------------------------------------- what is refused


@pytest.mark.parametrize(
    ("priority", "error", "says"),
    [
        (math.nan, InvalidValue, "nan"),
        (math.inf, InvalidValue, "inf"),
        (-math.inf, InvalidValue, "-inf"),
        ("hihg", InvalidValue, r"one of 'high', 'normal', 'low', not 'hihg'"),
        ("1", InvalidValue, "'1'"),
        (True, InvalidType, "True"),
        ([1], InvalidType, r"\[1\]"),
        (1j, InvalidType, "1j"),
    ],
)
@pytest.mark.parametrize("aging", [None, 10])
def test_bad_priorities(
    priority: object, error: type[Exception], says: str, aging: float | None
) -> None:
    one = task(priority)
    with pytest.raises(error, match=rf"the priority of <Task {one.id} .*{says}"):
        PriorityQueueStrategy(aging=aging).rank(one, 0.0)


def test_what_a_callable_raises_is_raised() -> None:
    policy = PriorityQueueStrategy(key=lambda task: task.metadata["missing"])
    with pytest.raises(KeyError, match="missing"):
        policy.rank(Task(nothing, {}), 0.0)


@pytest.mark.parametrize(
    ("options", "error", "says"),
    [
        ({"key": None}, InvalidType, "key must be .* not None"),
        ({"key": 3}, InvalidType, "key must be .* not 3"),
        ({"levels": ["high"]}, InvalidType, r"levels must .* not \['high'\]"),
        ({"levels": {1: 1}}, InvalidType, "name of a level .* not 1"),
        ({"levels": {"high": "1"}}, InvalidType, r"levels\['high'\] must be a number, not '1'"),
        ({"levels": {"high": math.nan}}, InvalidValue, r"levels\['high'\] .* not nan"),
        ({"levels": {"high": True}}, InvalidType, r"levels\['high'\] .* not True"),
        ({"default": "urgent"}, InvalidValue, "default must be .* not 'urgent'"),
        ({"levels": {}, "default": "a"}, InvalidValue, "default must be .*no names, not 'a'"),
        ({"default": None}, InvalidType, "default must be a number, not None"),
        ({"default": math.inf}, InvalidValue, "default .* not inf"),
        ({"aging": 0}, InvalidValue, "aging .* above 0, not 0"),
        ({"aging": -1.5}, InvalidValue, "aging .* above 0, not -1.5"),
        ({"aging": math.nan}, InvalidValue, "aging .* not nan"),
        ({"aging": math.inf}, InvalidValue, "aging .* not inf"),
        ({"aging": True}, InvalidType, "aging .* not True"),
        ({"aging": "60"}, InvalidType, "aging .* not '60'"),
        ({"inherit": 1}, InvalidType, "inherit must be True or False, not 1"),
    ],
)
def test_bad_parameters(options: dict[str, Any], error: type[Exception], says: str) -> None:
    with pytest.raises(error, match=says):
        PriorityQueueStrategy(**options)


def test_all_is_by_keyword() -> None:
    with pytest.raises(TypeError):
        PriorityQueueStrategy("priority")  # type: ignore[call-arg]


# ---------------------------------------------------------------- copies and words


def test_a_copy_ranks_alike() -> None:
    policy = PriorityQueueStrategy(levels={"gold": 3}, default=1, aging=5)
    twin = copy.deepcopy(policy)
    assert twin.rank(task("gold"), 10.0) == policy.rank(task("gold"), 10.0) == -1
    assert repr(twin) == repr(policy)


@pytest.mark.parametrize(
    ("policy", "text"),
    [
        (PriorityQueueStrategy(), "PriorityQueueStrategy()"),
        (
            PriorityQueueStrategy(key="p", levels={"a": 1}, default=2, aging=60),
            "PriorityQueueStrategy(key='p', levels={'a': 1}, default=2, aging=60)",
        ),
        (PriorityQueueStrategy(default="high"), "PriorityQueueStrategy(default=1)"),
    ],
)
def test_repr_is_the_call(policy: PriorityQueueStrategy, text: str) -> None:
    assert repr(policy) == text
    assert repr(eval(text)) == text
