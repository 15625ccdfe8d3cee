"""A breaker leaves alone what is broken, and tries it again with care."""

from __future__ import annotations

import asyncio
import copy
import json
import logging
from collections.abc import Callable, Hashable
from fractions import Fraction
from functools import partial
from math import inf, nextafter
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from async_task_manager import Chain, CircuitOpen, NonRetryable, Task, TaskManager
from async_task_manager.errors import InvalidType, InvalidValue
from async_task_manager.strategies import (
    CircuitBreakerStrategy,
    ConcurrentLimitStrategy,
    Provider,
    ProviderRouterStrategy,
    Usage,
)
from async_task_manager.strategies import circuit_breaker as module
from async_task_manager.strategies._snapshot import snapshot_of
from async_task_manager.task import Outcome

NEVER_BEGAN = Outcome("cancelled", None, 0.0)
OUTCOMES = {
    "success": Outcome("success", 0.0, 0.0),
    "failure": Outcome("failure", 0.0, 0.0, ConnectionError()),
    "mistake": Outcome("failure", 0.0, 0.0, NonRetryable()),
    "cancelled": Outcome("cancelled", 0.0, 0.0),
    "never began": NEVER_BEGAN,
}


def breaker(**options: Any) -> CircuitBreakerStrategy:
    defaults = {"min_calls": 4, "window_seconds": 10, "cooldown": 5}
    return CircuitBreakerStrategy(**{**defaults, **options})


def run(
    limit: CircuitBreakerStrategy, kind: str, now: float, key: Hashable = None, times: int = 1
) -> None:
    """Lets one in after the other, each with the same outcome."""
    for _ in range(times):
        assert limit.ready_at(key, 1, now) <= now
        limit.release(limit.acquire(key, 1, now), OUTCOMES[kind], now)


def opened(now: float = 0.0, **options: Any) -> CircuitBreakerStrategy:
    limit = breaker(**options)
    run(limit, "failure", now, times=4)
    assert limit.state() == "open"
    return limit


class Listener:
    def __init__(self) -> None:
        self.heard: list[object] = []

    def policy_changed(self, policy: object, key: object) -> None:
        self.heard.append(key)


def listened(limit: CircuitBreakerStrategy) -> Listener:
    listener = Listener()
    limit._home = lambda: listener  # type: ignore[assignment]
    return listener


# ---- any life, beside a naive one ---------------------------------------------------------------


class Naive:
    """What the docstring says, in lists that only grow."""

    rate, least, window, cooldown, most = Fraction(1, 2), 4, 10.0, 5.0, 2

    def __init__(self) -> None:
        self.turns: list[tuple[str, float]] = [("closed", -inf)]
        self.tasks: list[dict[str, Any]] = []
        self.slice = -inf

    @property
    def state(self) -> str:
        return self.turns[-1][0]

    def mine(self) -> list[dict[str, Any]]:
        return [task for task in self.tasks if task["turn"] == len(self.turns)]

    def ready_at(self, now: float) -> float:
        state, since = self.turns[-1]
        inside = [task for task in self.mine() if task["outcome"] is None]
        passed = [task for task in self.mine() if task["outcome"] == "success"]
        if state == "open":
            return since + self.cooldown
        if state == "closed":
            careful = len(self.turns) > 1
            if not careful or len(inside) < 2 * self.most + len(passed):
                return now
            return since + self.cooldown
        places = [task for task in inside if not task["replaced"]]
        if places and len(places) + len(passed) >= self.most:
            return float(places[0]["began"]) + self.cooldown
        return now

    def acquire(self, now: float) -> None:
        if self.state == "open":
            self.turns.append(("half_open", now))
        if self.state == "half_open":
            inside = [task for task in self.mine() if task["outcome"] is None]
            passed = [task for task in self.mine() if task["outcome"] == "success"]
            places = [task for task in inside if not task["replaced"]]
            if places and len(places) + len(passed) >= self.most:
                places[0]["replaced"] = True
        self.tasks.append(
            {"turn": len(self.turns), "began": now, "outcome": None, "replaced": False}
        )

    def release(self, task: dict[str, Any], kind: str, now: float) -> None:
        task["outcome"] = {"mistake": "success", "never began": "cancelled"}.get(kind, kind)
        if task["turn"] != len(self.turns) or task["outcome"] == "cancelled":
            return
        if self.state == "half_open":
            passed = [task for task in self.mine() if task["outcome"] == "success"]
            if kind == "failure":
                self.turns.append(("open", now))
            elif len(passed) == self.most:
                self.turns.append(("closed", now))
                self.slice = -inf
            return
        if self.slice + self.window / 10 <= now:
            self.slice = now
        task["slice"] = self.slice
        counted = [t for t in self.mine() if t.get("slice", -inf) + self.window > now]
        failures = [t for t in counted if t["outcome"] == "failure"]
        if len(counted) >= self.least and len(failures) >= self.rate * len(counted):
            self.turns.append(("open", now))
            self.slice = -inf


STEP = st.tuples(
    st.sampled_from(["take", "take", "take", "end", "end", "wait", "jump"]),
    st.integers(0, 9),
    st.sampled_from(
        ["success", "success", "failure", "failure", "mistake", "cancelled", "never began"]
    ),
)


@settings(max_examples=200)
@given(st.lists(STEP, min_size=40, max_size=120), st.integers(0, 9))
def test_any_life_matches_a_naive_one(life: list[tuple[str, int, str]], failing: int) -> None:
    """For some tenths of the life everything fails, and for the rest hardly anything."""
    limit, naive, now = breaker(half_open_max=2), Naive(), 0.0
    held: list[tuple[Any, dict[str, Any]]] = []
    for i, (act, number, how) in enumerate(life):
        recovered = how == "failure" and number and i * 10 > failing * len(life)
        kind = "success" if recovered else how
        instant = limit.ready_at(None, 1, now)
        assert max(instant, now) == max(naive.ready_at(now), now)
        assert limit.state() == naive.state
        if act == "take" and instant <= now:
            naive.acquire(now)
            held.append((limit.acquire(None, 1, now), naive.tasks[-1]))
        elif act == "end" and held:
            grant, task = held.pop(number % len(held))
            limit.release(grant, OUTCOMES[kind], now)
            naive.release(task, kind, now)
        elif act == "wait":
            now += number / 3
        elif act == "jump" and instant > now:
            assert limit.ready_at(None, 1, nextafter(instant, 0)) > nextafter(instant, 0)
            now = instant
            assert limit.ready_at(None, 1, now) <= now
    assert len(limit._circuits) <= 1
    for circuit in limit._circuits.values():
        assert len(circuit.slices) <= 11
        assert len(circuit.probes) <= 2
        assert circuit.calls == sum(part[1] for part in circuit.slices)
        assert circuit.failures == sum(part[2] for part in circuit.slices)


# ---- opening ------------------------------------------------------------------------------------


def test_it_opens_at_the_share_of_failures_and_not_below_the_least_number() -> None:
    limit = breaker(failure_rate=0.5, min_calls=6)
    run(limit, "success", 0, times=3)
    run(limit, "failure", 0, times=2)
    assert limit.state() == "closed"
    assert limit.usage(None, 1).used == 0.4
    run(limit, "failure", 0)
    assert limit.state() == "open"
    assert limit.ready_at(None, 1, 0) == 5


def test_few_failures_of_many_do_not_open_it() -> None:
    limit = breaker(failure_rate=0.3)
    run(limit, "success", 0, times=8)
    run(limit, "failure", 0, times=3)
    assert limit.state() == "closed"
    run(limit, "failure", 0)
    assert limit.state() == "open"


def test_a_success_that_makes_the_number_full_opens_it_as_well() -> None:
    limit = breaker()
    run(limit, "failure", 0, times=2)
    run(limit, "success", 0, times=2)
    assert limit.state() == "open"


def test_the_share_is_exact() -> None:
    """0.7 * 10 is more than 7."""
    limit = breaker(failure_rate=0.7, min_calls=10)
    run(limit, "success", 0, times=3)
    run(limit, "failure", 0, times=6)
    assert limit.state() == "closed"
    run(limit, "failure", 0)
    assert limit.state() == "open"


def test_old_outcomes_do_not_count() -> None:
    limit = breaker(min_calls=2)
    run(limit, "failure", 0)
    assert limit.usage(None, nextafter(10, 0)).frees_at == 10
    assert limit.usage(None, 10).used == 0
    run(limit, "success", 10, times=2)
    assert limit.state() == "closed"


def test_mistakes_of_the_caller_and_cancelled_work_do_not_open_it() -> None:
    limit = breaker()
    run(limit, "mistake", 0, times=9)
    run(limit, "cancelled", 0, times=9)
    run(limit, "never began", 0, times=9)
    assert limit.state() == "closed"


@pytest.mark.parametrize(
    ("is_failure", "error", "counts"),
    [
        (None, ValueError(), True),
        (None, NonRetryable(), False),
        (OSError, ConnectionError(), True),
        (OSError, ValueError(), False),
        ((OSError, ValueError), ValueError(), True),
        (lambda error: error.args == ("503",), RuntimeError("503"), True),
        (lambda error: error.args == ("503",), RuntimeError("404"), False),
    ],
)
def test_is_failure_says_what_counts(is_failure: Any, error: Exception, counts: bool) -> None:
    limit = breaker(min_calls=1, is_failure=is_failure)
    limit.release(limit.acquire(None, 1, 0), Outcome("failure", 0.0, 0.0, error), 0)
    assert limit.state() == ("open" if counts else "closed")


# ---- half-open ----------------------------------------------------------------------------------


def test_after_the_cooldown_one_probe_passes_and_closes_it() -> None:
    limit = opened()
    assert limit.ready_at(None, 1, nextafter(5, 0)) == 5
    probe = limit.acquire(None, 1, 5)
    assert limit.state() == "half_open"
    assert limit.ready_at(None, 1, 5) == 10
    limit.release(probe, OUTCOMES["success"], 6)
    assert limit.state() == "closed"
    assert limit.ready_at(None, 1, 6) == 6


def test_a_probe_that_fails_opens_it_for_another_cooldown() -> None:
    limit = opened()
    run(limit, "failure", 7)
    assert limit.state() == "open"
    assert limit.ready_at(None, 1, 7) == 12


def test_all_probes_have_to_succeed() -> None:
    limit = opened(half_open_max=3)
    probes = [limit.acquire(None, 1, 5) for _ in range(3)]
    assert limit.ready_at(None, 1, 5) == 10
    limit.release(probes[0], OUTCOMES["success"], 6)
    limit.release(probes[1], OUTCOMES["mistake"], 6)
    assert limit.state() == "half_open"
    assert limit.ready_at(None, 1, 6) == 10
    limit.release(probes[2], OUTCOMES["failure"], 6)
    assert limit.state() == "open"


@pytest.mark.parametrize("kind", ["cancelled", "never began"])
def test_a_cancelled_probe_leaves_its_place_to_another(kind: str) -> None:
    limit = opened()
    run(limit, kind, 5, times=3)
    assert limit.state() == "half_open"
    run(limit, "success", 5)
    assert limit.state() == "closed"


def test_probes_that_never_end_do_not_jam_it() -> None:
    limit = opened()
    for now in (5, 10, 15):
        assert limit.ready_at(None, 1, now) <= now
        limit.acquire(None, 1, now)
        assert limit.ready_at(None, 1, now) == now + 5
    run(limit, "success", 20)
    assert limit.state() == "closed"


def test_what_a_slow_probe_finds_still_counts() -> None:
    """Otherwise a breaker whose cooldown is shorter than the work would never close."""
    limit = opened()
    slow, _other = limit.acquire(None, 1, 5), limit.acquire(None, 1, 10)
    limit.release(slow, OUTCOMES["success"], 12)
    assert limit.state() == "closed"


@pytest.mark.parametrize("kind", OUTCOMES)
def test_what_began_in_an_earlier_state_changes_nothing(kind: str) -> None:
    limit = breaker()
    early = [limit.acquire(None, 1, 0) for _ in range(8)]
    run(limit, "failure", 0, times=4)
    limit.release(early.pop(), OUTCOMES[kind], 1)
    assert limit.state() == "open"
    probe = limit.acquire(None, 1, 5)
    limit.release(early.pop(), OUTCOMES[kind], 6)
    assert limit.state() == "half_open"
    limit.release(probe, OUTCOMES["success"], 6)
    assert limit.state() == "closed"
    for grant in early:
        limit.release(grant, OUTCOMES[kind], 7)
    assert limit.state() == "closed"
    assert limit.usage(None, 7).used == 0


# ---- closed again, with care --------------------------------------------------------------------


def taken(limit: CircuitBreakerStrategy, now: float) -> list[Any]:
    """As many as may run at once."""
    grants: list[Any] = []
    while limit.ready_at(None, 1, now) <= now and len(grants) < 100:
        grants.append(limit.acquire(None, 1, now))
    return grants


def test_closed_again_it_picks_up_pace() -> None:
    limit = opened()
    run(limit, "success", 5)
    sizes = []
    for now in (6, 7, 8):
        grants = taken(limit, now)
        sizes.append(len(grants))
        for grant in grants:
            limit.release(grant, OUTCOMES["success"], now)
    assert sizes == [2, 4, 8]
    assert len(taken(limit, 10)) == 100


def test_work_that_never_ends_does_not_jam_it_then() -> None:
    limit = opened()
    run(limit, "success", 5)
    taken(limit, 6)
    assert limit.ready_at(None, 1, 6) == 10
    assert len(taken(limit, 10)) == 100


def test_closed_again_it_opens_by_new_outcomes_alone() -> None:
    limit = opened(half_open_max=2)
    run(limit, "success", 5, times=2)
    run(limit, "failure", 6, times=3)
    assert limit.state() == "closed"
    run(limit, "failure", 6)
    assert limit.state() == "open"


# ---- "reject" -----------------------------------------------------------------------------------


def test_rejecting_names_the_instant_of_the_next_probe() -> None:
    limit = opened(on_open="reject")
    with pytest.raises(CircuitOpen, match=r"the next probe is in 4 s") as refused:
        limit.ready_at(None, 1, 1)
    assert refused.value.until == 5
    limit.acquire(None, 1, 5)
    with pytest.raises(CircuitOpen) as refused:
        limit.ready_at(None, 1, 6)
    assert refused.value.until == 10
    assert limit.ready_at(None, 1, 10) == 10


def test_rejecting_names_the_key() -> None:
    limit = breaker(on_open="reject", key="host", min_calls=1)
    run(limit, "failure", 0, "a.org")
    assert limit.ready_at("b.org", 1, 0) == 0
    with pytest.raises(CircuitOpen, match=r"open for 'a\.org'"):
        limit.ready_at("a.org", 1, 0)


# ---- keys, live change, copies, restarts --------------------------------------------------------


def test_keys_are_apart_and_forgotten_when_their_window_is_empty() -> None:
    limit = breaker(key="host", min_calls=2)
    for number in range(1000):
        run(limit, "failure", 0, number)
    assert len(limit._circuits) == 1000
    run(limit, "failure", 0, 1)
    assert limit.ready_at(1, 1, 0) == 5
    assert limit.ready_at(2, 1, 0) == 0
    for step in range(600):
        run(limit, "success", 20, f"other {step % 2}")
    assert set(limit.keys()) == {1, "other 0", "other 1"}
    for step in range(10):
        run(limit, "success", 5 + module.FORGET, f"other {step % 2}")
    assert set(limit.keys()) == {"other 0", "other 1"}


def test_a_key_in_use_is_kept() -> None:
    limit = breaker(key="host", window_seconds=1)
    grant = limit.acquire("slow", 1, 0)
    for now in range(1, 100):
        run(limit, "success", now, "other")
    assert "slow" in set(limit.keys())
    limit.release(grant, OUTCOMES["failure"], 100)
    assert limit.usage("slow", 100).used == 1


@pytest.mark.parametrize("state", ["open", "half_open"])
def test_long_after_its_cooldown_it_begins_anew(state: str) -> None:
    """Whether the key was swept meanwhile makes no difference."""
    limit = opened()
    late = 5 + module.FORGET
    if state == "half_open":
        run(limit, "cancelled", 5)
        late += 5
    assert limit.usage(None, nextafter(late, 0)).used == 0.5
    assert limit.usage(None, late).used == 0
    limit.acquire(None, 1, late)
    assert limit.state() == "closed"


def test_it_changes_live() -> None:
    limit = opened()
    listener = listened(limit)
    limit.cooldown = 2
    assert limit.ready_at(None, 1, 0) == 2
    limit.half_open_max = 2
    limit.acquire(None, 1, 2)
    assert limit.ready_at(None, 1, 2) <= 2
    limit.acquire(None, 1, 2)
    limit.on_open = "reject"
    with pytest.raises(CircuitOpen):
        limit.ready_at(None, 1, 3)
    assert len(listener.heard) == 3
    limit.failure_rate, limit.min_calls, limit.window_seconds, limit.check_interval = 1, 3, 7, 2
    assert (limit.failure_rate, limit.min_calls, limit.window_seconds) == (1, 3, 7)
    assert (limit.cooldown, limit.half_open_max, limit.on_open) == (2, 2, "reject")
    assert limit.check_interval == 2


def test_fewer_probes_than_have_succeeded_close_it_with_the_next() -> None:
    limit = opened(half_open_max=3)
    run(limit, "success", 5, times=2)
    limit.half_open_max = 1
    run(limit, "success", 6)
    assert limit.state() == "closed"


def test_a_copy_lives_on_its_own() -> None:
    limit = breaker(key="host")
    run(limit, "failure", 0, "a", times=3)
    grant = limit.acquire("a", 1, 0)
    twin, its_grant = copy.deepcopy((limit, grant))
    twin.release(its_grant, OUTCOMES["failure"], 0)
    assert twin.state("a") == "open"
    assert limit.state("a") == "closed"


def test_a_snapshot_of_a_chain_goes_its_own_way() -> None:
    limit = breaker(key="host", min_calls=1)
    chain = Chain(limit)
    for _ in range(2):
        chain.add(Task(asyncio.Event().wait, {"host": "a"}), 0)
    first, second = chain.pull(0), chain.pull(0)
    assert first is not None
    assert second is not None
    copied, ghosts = snapshot_of(chain, [first, second])
    copied.finish(ghosts[first], OUTCOMES["failure"], 1)
    assert (copied["circuit_breaker"].state("a"), limit.state("a")) == ("open", "closed")


def test_it_survives_a_restart() -> None:
    async def check(key: str) -> bool:
        return True

    limit = breaker(key="host", health_check=check)
    run(limit, "failure", 0, "open", times=4)
    for key in ("half", "closed again"):
        run(limit, "failure", 0, key, times=4)
    limit.acquire("half", 1, 5)
    run(limit, "success", 5, "closed again")
    run(limit, "failure", 5, "counting", times=3)
    fresh = breaker(key="host", health_check=check)
    fresh.load(json.loads(json.dumps(limit.dump())))
    for key in ("open", "half", "closed again", "counting"):
        assert fresh.state(key) == limit.state(key)
    assert fresh.ready_at("open", 1, 0) == 5
    assert fresh.ready_at("half", 1, 5) <= 5
    assert fresh._circuits["closed again"].room == 2
    run(fresh, "failure", 6, "counting")
    assert fresh.state("counting") == "open"
    assert set(fresh._ailing) == {"open", "counting"}


# ---- bad input, and words -----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"failure_rate": 0}, InvalidValue, "failure_rate .*above 0 and at most 1, not 0"),
        ({"failure_rate": 1.1}, InvalidValue, "failure_rate"),
        ({"min_calls": 0}, InvalidValue, "min_calls .*at least 1, not 0"),
        ({"min_calls": 2.5}, InvalidType, r"min_calls must be a whole number, not 2\.5"),
        ({"window_seconds": 0}, InvalidValue, "window_seconds"),
        ({"cooldown": float("nan")}, InvalidValue, "cooldown must be .*above 0, not nan"),
        ({"half_open_max": 0}, InvalidValue, "half_open_max"),
        ({"on_open": "drop"}, InvalidValue, "on_open must be one of 'wait', 'reject', not 'drop'"),
        ({"check_interval": 0}, InvalidValue, "check_interval"),
        ({"is_failure": 503}, InvalidType, "is_failure must be an exception class, .*not 503"),
        ({"is_failure": int}, InvalidType, "is_failure"),
        ({"is_failure": (OSError, 3)}, InvalidType, "is_failure"),
        ({"health_check": True}, InvalidType, "health_check must be an async function, not True"),
        ({"key": 3}, InvalidType, "key"),
    ],
)
def test_bad_parameters_are_refused(
    options: dict[str, Any], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        CircuitBreakerStrategy(**options)


def test_its_defaults() -> None:
    limit = CircuitBreakerStrategy()
    assert (limit.failure_rate, limit.min_calls, limit.window_seconds) == (0.5, 10, 30)
    assert (limit.cooldown, limit.half_open_max, limit.on_open) == (30, 1, "wait")
    assert limit.check_interval == 5


def test_it_says_what_it_is() -> None:
    assert repr(breaker(on_open="reject", key="host", is_failure=OSError, half_open_max=2)) == (
        "CircuitBreakerStrategy(failure_rate=0.5, min_calls=4, window_seconds=10, cooldown=5, "
        "half_open_max=2, on_open='reject', is_failure=OSError, key='host')"
    )
    assert breaker().tell(Usage(1, 0.5)) == "holds tasks back, since too many have failed"
    assert breaker(key="host").describe() == (
        "none for 5 s once 50 % of 4 calls or more within 10 s have failed for each host"
    )


# ---- in a manager -------------------------------------------------------------------------------


class Server:
    """Fails until it is well again."""

    def __init__(self, well_at: float = inf, takes: float = 0.1) -> None:
        self.calls: list[float] = []
        self.well_at = well_at
        self.takes = takes
        self.checks = 0
        self.at_once = self.most = 0

    def now(self) -> float:
        return asyncio.get_running_loop().time()

    async def call(self) -> None:
        self.calls.append(round(self.now(), 6))
        self.at_once += 1
        self.most = max(self.most, self.at_once)
        try:
            await asyncio.sleep(self.takes)
        finally:
            self.at_once -= 1
        if self.now() < self.well_at:
            raise ConnectionError

    async def check(self) -> bool:
        self.checks += 1
        return self.now() >= self.well_at


def quietly(task: Task[Any]) -> Task[Any]:
    task.add_done_callback(lambda done: done.state == "failed" and done.exception())
    return task


async def test_those_who_wait_are_not_all_sent_at_once_when_it_reopens() -> None:
    server = Server(well_at=12)
    chain = Chain(breaker(min_calls=4), ConcurrentLimitStrategy(4))
    async with TaskManager(chain) as manager:
        for _ in range(3):
            quietly(manager.add_task(server.call))
        await manager.join()
        server.most = 0
        tasks = [quietly(manager.add_task(server.call)) for _ in range(200)]
        await manager.join()
    # The fourth failure opened it at 0.2; probes failed until the server was well.
    probes = [call for call in server.calls if 0.2 <= call < 15.7]
    assert probes == [5.2, 10.3, 15.4, 15.5, 15.5, 15.6, 15.6, 15.6, 15.6]
    assert sum(task.state == "succeeded" for task in tasks) == 200 - 4 - 2


async def test_without_another_limit_pace_doubles_with_each_round() -> None:
    server = Server(well_at=1)
    async with TaskManager(breaker(min_calls=1, cooldown=60)) as manager:
        quietly(manager.add_task(server.call))
        await manager.join()
        tasks = [manager.add_task(server.call) for _ in range(100)]
        await manager.join()
    assert all(task.state == "succeeded" for task in tasks)
    rounds = [server.calls.count(instant) for instant in sorted(set(server.calls))]
    assert rounds == [1, 1, 2, 4, 8, 16, 32, 37]


@pytest.mark.parametrize("steps", range(4))
async def test_a_probe_cancelled_at_any_step_leaves_its_place(steps: int) -> None:
    server = Server(well_at=1)
    async with TaskManager(breaker(min_calls=1)) as manager:
        quietly(manager.add_task(server.call))
        await manager.join()
        probe, other = (manager.add_task(server.call) for _ in range(2))
        await asyncio.sleep(5.05)
        while probe.state == "queued":
            await asyncio.sleep(0)
        for _ in range(steps):
            await asyncio.sleep(0)
        probe.cancel()
        await other
    assert probe.state == "cancelled"


async def test_rejected_tasks_end_with_the_error_and_go_elsewhere_in_a_router() -> None:
    server, spare = Server(), Server(well_at=0)

    async def work() -> None:
        task = manager_task()
        await (server if task.provider == "A" else spare).call()

    def manager_task() -> Task[Any]:
        from async_task_manager import current_task

        task = current_task()
        assert task is not None
        return task

    async with TaskManager(breaker(min_calls=1, on_open="reject")) as manager:
        quietly(manager.add_task(server.call))
        await manager.join()
        with pytest.raises(CircuitOpen) as refused:
            await manager.add_task(server.call)
        assert refused.value.until == pytest.approx(5.1)
    router = ProviderRouterStrategy(
        [Provider("A", [breaker(min_calls=1, on_open="reject")]), Provider("B")]
    )
    async with TaskManager(router) as manager:
        quietly(manager.add_task(work))
        await manager.join()
        others = [manager.add_task(work) for _ in range(5)]
        await manager.join()
    assert [task.provider for task in others] == ["B"] * 5


# ---- health checks ------------------------------------------------------------------------------


async def test_a_health_check_closes_it_early_and_with_care() -> None:
    server = Server(well_at=7)
    limit = breaker(min_calls=1, cooldown=60, check_interval=2, health_check=server.check)
    async with TaskManager(limit) as manager:
        quietly(manager.add_task(server.call))
        await manager.join()
        tasks = [manager.add_task(server.call) for _ in range(10)]
        await manager.join()
        assert all(task.state == "succeeded" for task in tasks)
        assert server.calls[1] == pytest.approx(8.1)
        assert server.most == 4
        assert server.checks == 4
        assert asyncio.get_running_loop().time() < 9


async def test_each_time_it_opens_there_are_health_checks(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Also where nothing else happens: all wait for the breaker, and it is opened by a probe."""
    server = Server(well_at=25)
    limit = breaker(min_calls=1, cooldown=10, check_interval=0.04, health_check=server.check)
    async with TaskManager(limit) as manager:
        quietly(manager.add_task(server.call))
        await manager.join()
        tasks = [quietly(manager.add_task(server.call)) for _ in range(4)]
        await manager.join()
    assert server.calls[:3] == [0, 10.1, 20.2]
    assert 25 <= server.calls[3] <= 25.1  # the probe would have come at 30.3
    assert [task.state for task in tasks].count("succeeded") == 2
    assert not caplog.records  # not to be well is no error


def test_a_check_of_a_circuit_that_was_forgotten_meanwhile_harms_no_other() -> None:
    limit = breaker(min_calls=1, health_check=Server().check)
    run(limit, "failure", 0)
    old = limit._circuits[None]
    run(limit, "failure", 5 + module.FORGET)
    assert limit._ailing == {None: limit._circuits[None]}
    limit.observe(module._Well([(old, old.generation)]), 6 + module.FORGET)
    assert limit._ailing == {None: limit._circuits[None]}
    assert limit.state() == "open"


async def test_a_health_check_that_is_not_async_is_logged_as_an_error(
    caplog: pytest.LogCaptureFixture,
) -> None:
    check: Any = bool
    limit = breaker(min_calls=1, cooldown=10, check_interval=1, health_check=check)
    async with TaskManager(limit) as manager:
        quietly(manager.add_task(Server(takes=0).call))
        await asyncio.sleep(5)
        assert limit.state() == "open"
    assert "health_check must be an async function, not one that gives False" in caplog.text


async def test_no_health_check_while_closed_nor_after_the_cooldown() -> None:
    server = Server()
    limit = breaker(min_calls=1, health_check=server.check, check_interval=1, cooldown=3.5)
    async with TaskManager(limit) as manager:
        await asyncio.sleep(100)
        assert server.checks == 0
        quietly(manager.add_task(server.call))
        await manager.join()
        waiting = manager.add_task(server.call)
        await asyncio.sleep(3)
        assert server.checks == 2
        waiting.cancel()
        await asyncio.sleep(100)
        assert server.checks == 3
        assert limit.sampling(200) is None


async def test_each_open_key_is_asked_after_and_a_slow_or_failing_check_harms_no_other(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(module, "CHECKS", 2)
    asked: list[str] = []

    async def check(key: str) -> bool:
        asked.append(key)
        if key == "slow":
            await asyncio.sleep(1000)
        if key == "bad":
            raise ZeroDivisionError
        return key == "well"

    limit = breaker(min_calls=1, cooldown=600, check_interval=1, health_check=check, key="host")
    failing: Callable[[], Any] = partial(Server(takes=0).call)
    async with TaskManager(limit) as manager:
        hosts = ("bad", "slow", "ill", "well")
        for host in hosts:
            quietly(manager.add_task(failing, {"host": host}))
        await manager.join()
        waiting = {host: quietly(manager.add_task(failing, {"host": host})) for host in hosts}
        await asyncio.sleep(6.5)
        assert [host for host, task in waiting.items() if task.done()] == ["well"]
        assert set(asked[:4]) == set(hosts)
        assert asked.count("bad") >= 2
        for task in waiting.values():
            task.cancel()
    [record] = caplog.records
    assert record.levelno == logging.WARNING
    assert record.exc_info
    assert record.exc_info[0] is ZeroDivisionError


async def test_an_answer_that_comes_too_late_changes_nothing() -> None:
    limit = breaker(health_check=Server().check)
    run(limit, "failure", 0, times=4)
    sampling = limit.sampling(1)
    assert sampling is not None
    limit.observe("something else", 1)
    stale = module._Well([(limit._circuits[None], limit._circuits[None].generation)])
    run(limit, "failure", 5)
    limit.observe(stale, 6)
    assert limit.state() == "open"
    limit.observe(module._Well([(limit._circuits[None], limit._circuits[None].generation)]), 6)
    assert limit.state() == "closed"
