"""A limit that finds itself follows what the server can do, and learns from samples alone."""

from __future__ import annotations

import asyncio
import copy
import importlib.util
import json
import sys
from collections.abc import Hashable
from math import inf
from pathlib import Path
from statistics import mean
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from async_task_manager import Chain, NonRetryable, Task, TaskManager
from async_task_manager.config.stages import make_strategy
from async_task_manager.errors import InvalidType, InvalidValue, StrategyError
from async_task_manager.strategies import (
    AdaptiveStrategy,
    Aimd,
    LimitAlgorithm,
    Resources,
    Sample,
    Usage,
    Vegas,
)
from async_task_manager.strategies import adaptive as module
from async_task_manager.strategies._snapshot import snapshot_of
from async_task_manager.strategies.resources import Load
from async_task_manager.task import Outcome
from async_task_manager.testing import run_virtual

_path = Path(__file__).parents[1] / "examples" / "adaptive_limit.py"
_spec = importlib.util.spec_from_file_location("adaptive_limit", _path)
assert _spec is not None and _spec.loader is not None
example: Any = importlib.util.module_from_spec(_spec)
sys.modules[_spec.name] = example
_spec.loader.exec_module(example)


class Recorder(LimitAlgorithm):
    """Notes the samples, and gives limits that follow from them alone."""

    def __init__(self) -> None:
        self.samples: list[Sample] = []

    def update(self, limit: float, sample: Sample) -> float:
        self.samples.append(sample)
        return next_limit(limit, sample)


def next_limit(limit: float, sample: Sample) -> float:
    return limit / 2 if sample.dropped else (limit * 1.5 if sample.rtt < 3 else limit - 2)


def end(
    limit: AdaptiveStrategy, grant: Any, kind: str = "success", began: float = 0, now: float = 1
) -> None:
    error = {"failure": ConnectionError(), "mistake": NonRetryable()}.get(kind)
    outcome_kind: Any = "failure" if error else "cancelled" if kind == "unstarted" else kind
    started = None if kind == "unstarted" else began
    limit.release(grant, Outcome(outcome_kind, started, now, error), now)


def run(
    limit: AdaptiveStrategy,
    kind: str = "success",
    *,
    key: Hashable = None,
    times: int = 1,
    now: float = 1.0,
    took: float = 1.0,
) -> None:
    for _ in range(times):
        end(limit, limit.acquire(key, 1, now - took), kind, now - took, now)


def recorded(limit: AdaptiveStrategy, key: Hashable = None) -> list[Sample]:
    algorithm = limit._keys[key].algorithm
    return algorithm.samples if isinstance(algorithm, Recorder) else []


# ---- it follows a server ------------------------------------------------------------------------


def settled(points: list[Any]) -> float:
    """The mean limit of the last third of a span."""
    return float(mean(limit for _, _, limit, _ in points[-len(points) // 3 :]))


BOUNDS = {"gradient": (0.9, 2.2, 8), "vegas": (0.8, 1.5, 6), "aimd": (0.9, 2.1, 3)}
"""Of the limit, in capacities: at least, at most, and so many more."""


@settings(max_examples=8)
@given(
    st.sampled_from(sorted(BOUNDS)),
    st.integers(6, 16),
    st.sampled_from([0.05, 1, 20]),
    st.sampled_from([1, 10, 60]),
)
def test_it_finds_the_capacity_and_follows_when_it_halves_and_returns(
    algorithm: str, capacity: int, seconds: float, initial: int
) -> None:
    server = example.Server(capacity, seconds, patience=1)
    limit = AdaptiveStrategy(algorithm=algorithm, initial_limit=initial)
    capacities = [capacity, capacity // 2, capacity]
    span = 250 * seconds
    phases = [(n, seconds) for n in capacities]
    points = run_virtual(example.follow(limit, server, phases, span, every=seconds))
    low, high, more = BOUNDS[algorithm]
    for i, present in enumerate(capacities):
        found = settled(points[250 * i : 250 * (i + 1)])
        assert low * present <= found <= high * present + more
    possible = sum(capacities) * span / seconds
    assert server.served > 0.85 * possible
    if initial <= 10:  # not counting what it takes to come down from a limit far too high
        assert server.refused < 0.15 * possible


@pytest.mark.parametrize("algorithm", ["gradient", "vegas"])
def test_it_recovers_from_a_baseline_that_is_too_low(algorithm: str) -> None:
    """A request takes three times as long, however few there are at once."""
    server = example.Server(20, 1.0, patience=10)
    limit = AdaptiveStrategy(algorithm=algorithm)
    points = run_virtual(example.follow(limit, server, [(20, 1.0), (20, 3.0)], 900))
    assert min(point[2] for point in points[900:]) < 20
    assert settled(points) >= 18


@pytest.mark.parametrize("algorithm", ["gradient", "vegas"])
def test_it_recovers_from_a_baseline_that_is_too_high(algorithm: str) -> None:
    """The first limit is thirty times what the server can do: all that is ever seen is a queue."""
    server = example.Server(5, 1.0, patience=1000)
    limit = AdaptiveStrategy(algorithm=algorithm, initial_limit=150)
    points = run_virtual(example.follow(limit, server, [(5, 1.0)], 5000, every=10.0))
    assert settled(points) <= 16


async def test_where_everything_fails_one_at_a_time_goes_on() -> None:
    async def fails() -> None:
        await asyncio.sleep(0.1)
        raise ConnectionError

    limit = AdaptiveStrategy(algorithm="aimd")
    async with TaskManager(limit) as manager:
        for _ in range(200):
            manager.add_task(fails).add_done_callback(lambda task: task.exception())
        await manager.join()
        assert limit.limit() == 1
        for _ in range(200):
            manager.add_task(lambda: asyncio.sleep(0.1))
        await manager.join()
        assert limit.limit() > 5


# ---- what is a sample ---------------------------------------------------------------------------


def test_a_round_is_as_many_outcomes_as_the_limit() -> None:
    limit = AdaptiveStrategy(initial_limit=4, algorithm=Recorder())
    grants = [limit.acquire(None, 1, 0) for _ in range(3)]
    for i, grant in enumerate(grants):
        end(limit, grant, began=0, now=1 + i)
    assert limit._keys[None].algorithm is None
    run(limit, now=6, took=2)
    assert recorded(limit) == [Sample((1 + 2 + 3 + 2) / 4, 3)]
    assert limit.limit() == 6


def test_a_round_has_a_hundred_outcomes_at_most() -> None:
    limit = AdaptiveStrategy(initial_limit=500, algorithm=Recorder())
    run(limit, times=99)
    assert limit._keys[None].algorithm is None
    run(limit)
    assert len(recorded(limit)) == 1


@pytest.mark.parametrize("kind", ["cancelled", "unstarted", "mistake"])
def test_cancellations_and_mistakes_are_no_samples(kind: str) -> None:
    limit = AdaptiveStrategy(initial_limit=2, algorithm=Recorder())
    run(limit, kind, times=10, took=0.001)
    assert limit._keys[None].algorithm is None
    run(limit, times=2)
    assert recorded(limit) == [Sample(1, 1)]


def test_is_failure_says_which_errors_are_a_sign() -> None:
    limit = AdaptiveStrategy(initial_limit=8, algorithm=Recorder(), is_failure=TimeoutError)
    run(limit, "failure")
    assert limit._keys[None].algorithm is None
    limit.release(limit.acquire(None, 1, 0), Outcome("failure", 0, 1, TimeoutError()), 1)
    assert recorded(limit) == [Sample(0, 1, dropped=True)]
    assert limit.limit() == 4


def test_what_began_under_the_limit_before_says_nothing_about_this_one() -> None:
    """Ten failures of ten that ran at once are one sign, not ten."""
    limit = AdaptiveStrategy(initial_limit=16, algorithm=Recorder())
    grants = [limit.acquire(None, 1, 0) for _ in range(16)]
    for grant in grants:
        end(limit, grant, "failure")
    assert len(recorded(limit)) == 1
    assert limit.limit() == 8


def test_an_algorithm_that_gives_no_number_is_told_of() -> None:
    class Lost(LimitAlgorithm):
        def update(self, limit: float, sample: Sample) -> float:
            return inf - inf

    limit = AdaptiveStrategy(initial_limit=1, algorithm=Lost())
    with pytest.raises(InvalidValue, match=r"the limit that Lost\(\) gives must be .*not nan"):
        run(limit)
    assert limit.usage(None, 1).used == 0


STEP = st.tuples(
    st.sampled_from(["take", "take", "end", "end", "wait", "load"]),
    st.integers(0, 9),
    st.sampled_from(["success", "success", "failure", "mistake", "cancelled", "unstarted"]),
)


@settings(max_examples=200)
@given(st.lists(STEP, max_size=80))
def test_any_life_matches_a_naive_one(life: list[tuple[str, int, str]]) -> None:
    """The samples, recomputed from the whole history each time."""
    limit = AdaptiveStrategy(initial_limit=4, max_limit=9, algorithm=Recorder(), min_limit=2)
    naive, now, since = 4.0, 0.0, -inf
    held: list[tuple[Any, float]] = []
    ended: list[tuple[float, float, str]] = []
    inside: list[tuple[float, int]] = [(0.0, 0)]
    samples: list[Sample] = []
    peak = 0
    for act, number, kind in life:
        assert limit.limit() == int(naive)
        assert limit.usage(None, now).used == len(held)
        open_ = limit.ready_at(None, 1, now) <= now
        assert open_ == (len(held) < int(naive))
        if act == "take" and open_:
            held.append((limit.acquire(None, 1, now), now))
            inside.append((now, len(held)))
            peak = max(peak, len(held))
        elif act == "wait":
            now += number / 2
        elif act == "end" and held:
            grant, began = held.pop(number % len(held))
            end(limit, grant, kind, began, now)
            if began < since or kind not in ("success", "failure"):
                continue
            ended.append((began, now, kind))
            took = [stop - start for start, stop, how in ended if how == "success"]
            if kind == "failure" or len(took) >= naive:
                rtt = sum(took) / len(took) if took else 0.0
                samples.append(Sample(rtt, peak, kind == "failure"))
                naive = max(2, min(9, next_limit(naive, samples[-1])))
                since, peak, ended = now, len(held), []
        if limit._keys:
            assert [pytest.approx(s) for s in recorded(limit)] == samples or not samples


# ---- keys, live change, copies, restarts --------------------------------------------------------


def test_keys_learn_apart() -> None:
    limit = AdaptiveStrategy(key="host", initial_limit=2, algorithm=Recorder())
    run(limit, "failure", key="a")
    run(limit, key="b", times=2)
    assert (limit.limit("a"), limit.limit("b"), limit.limit("c")) == (1, 3, 2)
    limit.acquire("a", 1, 2)
    assert limit.ready_at("a", 1, 2) == inf
    assert limit.ready_at("b", 1, 2) == 2


def test_keys_are_forgotten_an_hour_after_their_last_task() -> None:
    limit = AdaptiveStrategy(key="host", initial_limit=2)
    run(limit, key="learned", times=4)
    busy = limit.acquire("busy", 1, 1)
    for number in range(500):
        run(limit, key=number)
    assert len(limit._keys) == 502
    for step in range(520):
        run(limit, key="other", now=62 + step / 100)
    assert set(limit.keys()) == {"learned", "busy", "other"}
    for _ in range(5):
        run(limit, key="other", now=2 + module.FORGET)
    assert set(limit.keys()) == {"busy", "other"}
    end(limit, busy)


def test_a_forgotten_key_begins_anew_whether_it_was_swept_or_not() -> None:
    limit = AdaptiveStrategy(initial_limit=4)
    run(limit, "failure")
    assert limit.limit() == 3
    assert limit.usage(None, module.FORGET).capacity == 3
    assert limit.usage(None, 1 + module.FORGET).capacity == 4
    limit.acquire(None, 1, 1 + module.FORGET)
    assert limit.limit() == 4


class Listener:
    def __init__(self) -> None:
        self.heard: list[object] = []

    def policy_changed(self, policy: object, key: object) -> None:
        self.heard.append(key)


def test_it_changes_live() -> None:
    limit = AdaptiveStrategy(initial_limit=4)
    listener = Listener()
    limit._home = lambda: listener  # type: ignore[assignment]
    run(limit, times=4)
    limit.max_limit = 3
    assert (limit.max_limit, limit.initial_limit, limit.limit()) == (3, 3, 3)
    limit.max_limit = 50
    limit.min_limit = 20
    assert (limit.min_limit, limit.initial_limit, limit.limit()) == (20, 20, 20)
    limit.min_limit = 1
    limit.min_limit = 20
    limit.initial_limit = 30
    assert limit.limit("new") == 30
    assert len(listener.heard) == 6
    with pytest.raises(InvalidValue, match=r"initial_limit .*at least 20 and at most 50, not 10"):
        limit.initial_limit = 10
    with pytest.raises(InvalidValue, match=r"min_limit .*at most 50, not 60"):
        limit.min_limit = 60


def test_a_copy_lives_on_its_own() -> None:
    limit = AdaptiveStrategy(initial_limit=4, resources=Resources())
    run(limit, times=4)
    grant = limit.acquire(None, 1, 2)
    twin, its_grant = copy.deepcopy((limit, grant))
    end(twin, its_grant, "failure", 2, 3)
    assert twin.limit() < limit.limit()
    assert twin.usage(None, 3).used == 0
    assert limit.usage(None, 3).used == 1


def test_a_snapshot_of_a_chain_goes_its_own_way() -> None:
    limit = AdaptiveStrategy(key="host", initial_limit=4, algorithm="aimd")
    chain = Chain(limit)
    chain.add(Task(asyncio.Event().wait, {"host": "a"}), 0)
    task = chain.pull(0)
    assert task is not None
    copied, ghosts = snapshot_of(chain, [task])
    copied.finish(ghosts[task], Outcome("failure", 0.0, 1.0, ConnectionError()), 1)
    assert (copied["adaptive"].limit("a"), limit.limit("a")) == (3, 4)
    assert limit.usage("a", 1).used == 1


def test_it_survives_a_restart() -> None:
    limit = AdaptiveStrategy(initial_limit=4, key="host", algorithm="vegas")
    for _ in range(40):
        for grant in [limit.acquire("a", 1, 0) for _ in range(limit.limit("a"))]:
            end(limit, grant)
    run(limit, key="b")
    fresh = AdaptiveStrategy(initial_limit=4, key="host", algorithm="vegas")
    fresh.load(json.loads(json.dumps(limit.dump())))
    assert fresh.limit("a") == limit.limit("a") > 4
    algorithm = fresh._keys["a"].algorithm
    assert isinstance(algorithm, Vegas)
    assert algorithm.baseline == 1
    assert set(fresh.keys()) == {"a"}


# ---- the load of this machine -------------------------------------------------------------------


def test_under_load_it_goes_down_step_by_step_and_then_back() -> None:
    limit = AdaptiveStrategy(initial_limit=100, resources=Resources(), key="host")
    listener = Listener()
    limit._home = lambda: listener  # type: ignore[assignment]
    heavy, light = Load(cpu=99.0), Load(cpu=10.0)
    grants = [limit.acquire("a", 1, 0) for _ in range(50)]
    limit.observe(heavy, 1)
    assert limit.limit("a") == 40
    limit.observe(heavy, 2)
    assert limit.limit("a") == 40  # fifty still run
    for grant in grants[:10]:
        end(limit, grant)
    limit.observe(heavy, 3)
    assert limit.limit("a") == 32
    assert not listener.heard
    limits = []
    for now in range(4, 20):
        limit.observe(light, now)
        limits.append(limit.limit("a"))
    assert limits[:2] == [36, 40]
    assert limits[-1] == 100
    assert listener.heard.count("a") == limits.index(100) + 1


def test_load_is_measured_while_something_runs_and_keys_at_rest_are_let_be() -> None:
    limit = AdaptiveStrategy(initial_limit=10, resources=Resources(interval=3), key="host")
    assert limit.sampling(0) is None
    grants = [limit.acquire(key, 1, 0) for key in "aab"]
    sampling = limit.sampling(0)
    assert sampling is not None
    assert sampling.interval == 3
    end(limit, grants.pop())
    limit.observe(Load(cpu=99.0), 1)
    assert (limit.limit("a"), limit.limit("b")) == (1, 10)
    for grant in grants:
        end(limit, grant)
    assert limit.sampling(2) is None
    without = AdaptiveStrategy()
    without.acquire(None, 1, 0)
    assert without.sampling(0) is None


def test_load_never_closes_it() -> None:
    limit = AdaptiveStrategy(initial_limit=10, min_limit=2, resources=Resources())
    for now in range(100):
        grants = [limit.acquire(None, 1, now) for _ in range(limit.limit())]
        limit.observe(Load(memory=99.0), now)
        for grant in grants:
            end(limit, grant, "cancelled")
    assert limit.limit() == 2


def test_what_it_does_not_know_it_passes_over() -> None:
    limit = AdaptiveStrategy(resources=Resources())
    limit.acquire(None, 1, 0)
    limit.observe({"retry-after": 3}, 1)
    AdaptiveStrategy().observe(Load(cpu=100.0), 1)
    assert limit.limit() == 10


def test_the_bounds_may_come_from_a_config_file() -> None:
    limit = make_strategy({"strategy": "adaptive", "resources": {"cpu_percent": 50}})
    assert isinstance(limit, AdaptiveStrategy)
    assert limit.resources is not None
    assert (limit.resources.cpu_percent, limit.resources.memory_percent) == (50, 90)
    with pytest.raises(ValueError, match=r"adaptive.*cpu_percent .*not 500"):
        make_strategy({"strategy": "adaptive", "resources": {"cpu_percent": 500}})


async def test_the_manager_measures_while_something_runs() -> None:
    """Whatever is in use is above a hundred-thousandth of the memory."""
    limit = AdaptiveStrategy(
        initial_limit=8, resources=Resources(None, 1e-5, pressure_percent=None, interval=2)
    )
    async with TaskManager(limit) as manager:
        await asyncio.sleep(10)
        assert limit.limit() == 8
        for _ in range(200):
            manager.add_task(lambda: asyncio.sleep(0.5))
        await asyncio.sleep(30)
        assert limit.limit() == 1
        limit.resources = Resources(None, None, pressure_percent=None)
        await manager.join()
        assert limit.limit() >= 8


# ---- bad input, and words -----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"initial_limit": 0}, InvalidValue, "initial_limit .*at least 1 and at most 1000, not 0"),
        ({"initial_limit": 2000}, InvalidValue, "initial_limit"),
        ({"initial_limit": 2.5}, InvalidType, "initial_limit must be a whole number"),
        ({"min_limit": 0}, InvalidValue, "min_limit"),
        ({"min_limit": 5, "max_limit": 4}, InvalidValue, "max_limit .*at least 5, not 4"),
        ({"algorithm": "reno"}, InvalidValue, "algorithm must be one of 'aimd', .*not 'reno'"),
        ({"algorithm": Aimd}, InvalidValue, "algorithm"),
        ({"resources": 85}, InvalidType, "resources must be Resources or None, not 85"),
        ({"resources": {"cpu": 85}}, InvalidType, r"parameters of Resources, not \['cpu'\]"),
        ({"is_failure": "503"}, InvalidType, "is_failure"),
        ({"key": 3}, InvalidType, "key"),
    ],
)
def test_bad_parameters_are_refused(
    options: dict[str, Any], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        AdaptiveStrategy(**options)


async def test_an_algorithm_that_raises_is_a_strategy_error() -> None:
    class Broken(LimitAlgorithm):
        def update(self, limit: float, sample: Sample) -> float:
            raise ZeroDivisionError

    manager = TaskManager(AdaptiveStrategy(initial_limit=1, algorithm=Broken()))
    await manager.idle()
    manager.add_task(lambda: asyncio.sleep(1))
    with pytest.raises(StrategyError, match="AdaptiveStrategy"):
        await manager.join()


def test_it_says_what_it_is() -> None:
    limit = AdaptiveStrategy(key="host", algorithm=Aimd(timeout=2), is_failure=OSError)
    assert repr(limit) == (
        "AdaptiveStrategy(initial_limit=10, min_limit=1, max_limit=1000, "
        "algorithm=Aimd(timeout=2), is_failure=OSError, key='host')"
    )
    assert limit.tell(Usage(7, 7)) == "runs 7 at once, and the other side can take 7"
    assert limit.describe() == "as many at once as it can take, 1 to 1000 for each host"
