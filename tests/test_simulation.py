"""`simulate`: the same strategies on virtual time, against the manager, by hand and by file."""

from __future__ import annotations

import asyncio
import json
import random
import sys
import xml.etree.ElementTree as ET
from collections import Counter
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from test_chain_oracle import RetryFailures, stages

from async_task_manager import (
    Chain,
    InvalidState,
    InvalidType,
    InvalidValue,
    MissingExtra,
    Task,
    TaskManager,
    current_task,
)
from async_task_manager.simulation import (
    Job,
    SimulatedFailure,
    Waits,
    compare,
    generate,
    jain,
    recorded,
    requests,
    simulate,
    trace,
)
from async_task_manager.simulation.words import span
from async_task_manager.simulation.workload import sampler
from async_task_manager.strategies import (
    AdaptiveStrategy,
    BaseStrategy,
    BulkStrategy,
    CircuitBreakerStrategy,
    ConcurrentLimitStrategy,
    CooldownStrategy,
    DeadlineStrategy,
    DelayedStrategy,
    FairShareStrategy,
    FixedWindowStrategy,
    Limit,
    PriorityQueueStrategy,
    Provider,
    ProviderRouterStrategy,
    RetryStrategy,
    SlidingWindowStrategy,
    Source,
    TimeBasedStrategy,
    TokenBucketStrategy,
    Usage,
    WeightedRoundRobinStrategy,
    exponential,
    fixed,
)
from async_task_manager.testing import run_virtual

ROOT = Path(__file__).parents[1]
START = 1_700_000_000.0


def two_providers() -> Chain:
    groq = [SlidingWindowStrategy(30, 60), ConcurrentLimitStrategy(4)]
    spare = [ConcurrentLimitStrategy(2)]
    return Chain(
        PriorityQueueStrategy(),
        ProviderRouterStrategy([Provider("groq", groq), Provider("spare", spare)]),
    )


# ---- against the manager ------------------------------------------------------------------------


def workload(seed: int) -> list[Job]:
    rng = random.Random(seed)
    coarse = rng.random() < 0.5
    at, jobs = 0.0, []
    for i in range(rng.randint(5, 40)):
        # What comes at the very instant of an end may come before it or after: never so here.
        at += rng.choice([0, 0, 0.25, 0.5]) + rng.random() / 1000 if coarse else rng.random()
        metadata = {
            "number": i,
            "user": rng.choice("ab"),
            "model": rng.choice("xyz"),
            "priority": rng.choice([-1, 0, 1, "high"]),
            "cost": {"tokens": rng.choice([0, 0.1, 0.5, 1, 5])},
        }
        if rng.random() < 0.2:
            metadata["provider"] = "P1"
        jobs.append(
            Job(at, rng.choice([0.25, 0.5, 1]) if coarse else rng.random() * 2, metadata, i)
        )
    return jobs


async def really(chain: Chain, jobs: list[Job]) -> list[tuple[Any, float, float]]:
    """What the manager makes of the jobs: id, start and end of every attempt."""
    attempts: list[tuple[Any, float, float]] = []
    tasks: dict[Any, Task[None]] = {}
    clock = asyncio.get_running_loop().time

    async def work(job: Job) -> None:
        began = clock()
        await asyncio.sleep(job.duration)
        attempts.append((job.id, START + began, START + clock()))
        if tasks[job.id].attempt <= job.failures:
            raise SimulatedFailure("as the workload has it")

    async with TaskManager(chain) as manager:
        for job in jobs:
            delay = job.at - asyncio.get_running_loop().time()
            if delay > 0:
                await asyncio.sleep(delay)
            try:
                tasks[job.id] = manager.add_task(partial(work, job), dict(job.metadata or {}))
            except ValueError:
                continue  # too large, or for a provider that isn't there
        await asyncio.sleep(1000)
        for task in tasks.values():
            task.cancel()  # what waits for a provider that is switched off
    for task in tasks.values():
        if task.state in ("failed", "rejected"):
            task.exception()  # seen
    return attempts


def test_it_does_what_the_manager_does() -> None:
    compared = 0
    for seed in range(120):
        jobs = workload(seed)
        told = run_virtual(really(Chain(*stages(random.Random(seed))), jobs))
        report = simulate(Chain(*stages(random.Random(seed))), jobs, start=START)
        attempts = report.timeline[0]
        seen = [
            (jobs[place].id, START + start, START + end)
            for place, start, end in zip(attempts.task, attempts.start, attempts.end, strict=True)
        ]
        assert sorted(seen) == sorted(told), f"seed {seed}"
        compared += len(seen)
    assert compared > 1_000


POLICIES: Any = ("ordered", "weighted", "least_loaded", "fastest", "earliest")


def any_stages(rng: random.Random) -> list[BaseStrategy]:
    """A chain with something of all that there is."""
    found: list[BaseStrategy] = [RetryStrategy(3, backoff=fixed(rng.choice([0.5, 1.1])))]
    if rng.random() < 0.5:
        found.append(
            FairShareStrategy(
                key="user",
                by=rng.choice(["levels", "share"]),
                maximum=rng.choice([None, 2]),
            )
        )
    else:
        found.append(rng.choice([PriorityQueueStrategy(), DeadlineStrategy(key="due")]))
    limits: list[Callable[[], Limit]] = [
        lambda: CircuitBreakerStrategy(
            min_calls=2, cooldown=rng.choice([1, 3]), key=rng.choice([None, "model"])
        ),
        lambda: CircuitBreakerStrategy(min_calls=2, cooldown=2, on_open="reject"),
        lambda: CooldownStrategy(key=rng.choice([None, "user"]), default_seconds=1.5),
        lambda: AdaptiveStrategy(initial_limit=3, algorithm=rng.choice(["aimd", "gradient"])),
        lambda: TokenBucketStrategy(2, 3, cost="tokens", default_cost=1),
        lambda: SlidingWindowStrategy(4, 2, key=rng.choice([None, "user"])),
        lambda: ConcurrentLimitStrategy(rng.choice([1, 3])),
    ]
    found += [make() for make in rng.sample(limits, rng.randint(1, 3))]
    if rng.random() < 0.5:
        providers = [
            Provider(name, [make() for make in rng.sample(limits, rng.randint(0, 2))])
            for name in ("P1", "P2")
        ]
        found.append(ProviderRouterStrategy(providers, policy=rng.choice(POLICIES)))
    elif rng.random() < 0.3:
        found.append(WeightedRoundRobinStrategy({"P1": 2, "P2": 1}))
    return found


def test_it_does_what_the_manager_does_with_all_strategies_and_failures() -> None:
    compared = failed = 0
    for seed in range(150):
        rng = random.Random(seed)
        jobs = workload(seed)
        for job in jobs:
            job.failures = rng.choice([0, 0, 0, 1, 2, 5])
            assert job.metadata is not None
            job.metadata["due"] = timedelta(seconds=rng.choice([1, 5, 50]))
        told = run_virtual(really(Chain(*any_stages(random.Random(seed))), jobs))
        report = simulate(Chain(*any_stages(random.Random(seed))), jobs, start=START)
        attempts = report.timeline[0]
        columns = zip(attempts.task, attempts.start, attempts.end, strict=True)
        seen = [(jobs[place].id, START + start, START + end) for place, start, end in columns]
        assert sorted(seen) == sorted(told), f"seed {seed}"
        compared += len(seen)
        failed += report.failed
    assert compared > 3_000
    assert failed > 100


def test_a_chain_that_makes_batches() -> None:
    async def insert(rows: list[Any]) -> list[Any]:
        raise AssertionError("nothing is run")

    chain = Chain(BulkStrategy(insert, max_size=3, max_wait=1.0), ConcurrentLimitStrategy(1))
    jobs = [Job(0.0, 2.0), Job(0.0, 5.0), Job(0.0, 1.0), Job(0.5, 1.0, actual=3.0)]
    report = simulate(chain, jobs)
    attempts = report.timeline[0]
    assert list(attempts.start) == [0.0, 0.0, 0.0, 5.0]  # full; then the first call has the slot
    assert list(attempts.end) == [5.0, 5.0, 5.0, 6.0]
    assert report.succeeded == 4


def test_a_schedule_uses_up_limits_and_does_not_count() -> None:
    class Every(Source):
        """A task of its own every two seconds, that takes no time."""

        def __init__(self) -> None:
            self.next = 0.0

        def next_due(self, now: float) -> float:
            return self.next

        def emit(self, now: float) -> list[Task]:
            self.next += 2
            return [Task(partial(asyncio.sleep, 1), {"cost": 7 if now == 4 else 1})]

    chain = Chain(Every(), SlidingWindowStrategy(3, 10, cost="units"))
    jobs = [Job(1.0, 1.0, {"cost": 1}), Job(3.0, 1.0, {"cost": 1})]
    report = simulate(chain, jobs)
    assert (report.tasks, report.attempts) == (2, 2)
    assert list(report.timeline[0].start) == [1.0, 10.0]  # two of the window are the schedule's


# ---- by hand ------------------------------------------------------------------------------------


def test_figures_by_hand() -> None:
    # One at a time, two seconds each; a at 0, b and c at 1: b waits 1, c waits 3.
    jobs = [
        Job(0.0, 2.0, {"priority": "high", "user_id": "ann"}, "a"),
        Job(1.0, 2.0, {"user_id": "bob"}, "b"),
        Job(1.0, 2.0, {"user_id": "bob"}, "c"),
    ]
    limit = ConcurrentLimitStrategy(1)
    report = simulate(limit, jobs)
    assert (report.tasks, report.succeeded, report.attempts) == (3, 3, 3)
    assert report.start_order == ["a", "b", "c"]
    assert (report.makespan, report.throughput) == (6.0, 0.5)
    assert report.waits == Waits(3, 4 / 3, 1.0, 3.0, 3.0, 3.0)
    assert report.classes["high"] == Waits(1, 0.0, 0.0, 0.0, 0.0, 0.0)
    assert report.classes["none"] == Waits(2, 2.0, 1.0, 3.0, 3.0, 3.0)
    # Ann was served all her time, Bob 4 of his 8 seconds.
    assert report.jain == pytest.approx((1 + 0.5) ** 2 / (2 * (1 + 0.25)))
    (use,) = report.limits
    assert (use.limit, use.provider, use.peak) == ("at most 1 task at once", None, 1.0)
    assert use.mean == pytest.approx(1.0)
    assert limit.usage(None, 0).used == 0  # it stays as it is


def test_what_is_refused_expires_fails_and_is_left() -> None:
    class Short(TimeBasedStrategy):
        def not_after(self, task: Task, now: float) -> float:
            return now + float(task.metadata.get("patience", "inf"))

    chain = Chain(
        RetryFailures(1, 2.0),
        Short(),
        ProviderRouterStrategy([Provider("groq"), Provider("off", enabled=False)]),
        ConcurrentLimitStrategy(10, cost="slots", default_cost=1),
        ConcurrentLimitStrategy(1, key="one"),
    )
    jobs = [
        Job(0.0, 1.0, {"number": 0, "cost": {"slots": 50}}),
        Job(0.0, 1.0, {"number": 1, "provider": "nowhere"}),
        Job(0.0, 3.0, {"number": 2, "one": "x"}),
        Job(0.0, 1.0, {"number": 3, "one": "x", "patience": 2}),
        Job(0.0, 1.0, {"number": 4}, failures=1),
        Job(0.0, 1.0, {"number": 5}, failures=2),
        Job(0.0, 1.0, {"number": 6, "provider": "off"}),
    ]
    report = simulate(chain, jobs)
    assert (report.succeeded, report.failed, report.rejected) == (2, 1, 2)
    assert (report.expired, report.unfinished, report.attempts) == (1, 1, 5)
    assert report.refusals == {"TaskTooLarge": 1, "UnknownProvider": 1, "QueueTimeout": 1}
    assert report.makespan == 5.0
    text = str(report)
    for line in ("failed", "rejected", "expired", "unfinished", "attempts"):
        assert f"\n{line} " in text


def test_it_can_be_ended_early() -> None:
    report = simulate(ConcurrentLimitStrategy(1), generate(100, duration=1.0), until=9.5)
    assert (report.succeeded, report.unfinished) == (9, 91)
    with pytest.raises(InvalidValue, match="until must be"):
        simulate(ConcurrentLimitStrategy(1), [], until=0)


def test_nothing_to_do() -> None:
    report = simulate(ConcurrentLimitStrategy(1), [])
    assert (report.tasks, report.makespan, report.throughput, report.jain) == (0, 0.0, 0.0, None)
    assert "wait p50 / p95 / p99" in str(report)
    assert report.to_json()["waits"]["p50"] is None
    ET.fromstring(report.svg())


def test_actual_costs_correct_estimates() -> None:
    window = SlidingWindowStrategy(10, 60, cost="tokens")
    jobs = [
        Job(0.0, 1.0, {"cost": {"tokens": 10}}, actual=5.0),
        Job(0.0, 1.0, {"cost": {"tokens": 5}}),
    ]
    assert simulate(window, jobs).makespan == 2.0
    jobs[0].actual = None
    assert simulate(window, jobs).makespan == 61.0


def test_calendars_begin_where_they_are_told() -> None:
    day = FixedWindowStrategy(1, "day", align="clock", timezone="UTC")
    jobs = [Job(0.0, 1.0), Job(0.0, 1.0)]
    noon = datetime(2026, 3, 1, 12, tzinfo=UTC)
    assert simulate(day, jobs, start=noon).makespan == 12 * 3600 + 1
    assert simulate(day, jobs, start=noon.timestamp() + 3600).makespan == 11 * 3600 + 1
    assert simulate(day, jobs).makespan <= 86_401


def test_classes_and_users_are_chosen() -> None:
    jobs = [Job(0.0, 1.0, {"model": "a", "tenant": 1}), Job(0.0, 1.0, {"model": "b", "tenant": 2})]
    report = simulate(ConcurrentLimitStrategy(2), jobs, by="model", user=lambda m: m["tenant"])
    assert set(report.classes) == {"a", "b"}
    assert report.jain == 1.0
    with pytest.raises(InvalidType, match="by and user must be metadata fields or functions"):
        simulate(ConcurrentLimitStrategy(2), jobs, by=7)  # type: ignore[arg-type]


class Foreign(BaseStrategy):
    def add_task(self, task: Task) -> None: ...

    def get_next_task(self) -> Task | None:
        return None

    async def get_sleep_interval(self) -> float | None:
        return None


def test_what_cannot_be_simulated() -> None:
    chain = Chain(ConcurrentLimitStrategy(1))
    chain.add_task(Task(partial(asyncio.sleep, 1)))
    with pytest.raises(InvalidState, match="is in use"):
        simulate(chain, [])
    with pytest.raises(InvalidState, match="four methods only"):
        simulate(Foreign(), [])
    limit = ConcurrentLimitStrategy(1)
    with pytest.raises(InvalidType, match="made of Jobs, not 5"):
        simulate(limit, [5])  # type: ignore[list-item]
    with pytest.raises(InvalidValue, match="in order of time"):
        simulate(limit, [Job(2.0), Job(1.0)])
    for duration in (-1.0, float("nan")):
        with pytest.raises(InvalidValue, match="a duration must be at least 0 seconds"):
            simulate(limit, [Job(0.0, duration)])


# ---- generated workloads ------------------------------------------------------------------------


def test_the_same_seed_gives_the_same() -> None:
    def some(seed: int) -> list[Job]:
        return list(
            generate(
                50,
                rate="30/minute",
                duration="lognormal(2, 0.8)",
                cost="exp(900)",
                users=4,
                priorities={"high": 1, "low": 2},
                failures=0.2,
                seed=seed,
            )
        )

    assert some(1) == some(1)
    assert some(1) != some(2)


def test_rates_bursts_and_spacing() -> None:
    jobs = list(generate(6_000, rate="600/minute"))
    assert jobs[-1].at == pytest.approx(600, rel=0.05)
    gaps = [after.at - before.at for before, after in pairwise(jobs)]
    assert sum(gap < 0.1 for gap in gaps) / len(gaps) == pytest.approx(0.632, abs=0.03)  # Poisson
    even = [job.at for job in generate(10, rate=2.0, burst=4, spacing="even")]
    assert even == [0, 0, 0, 0, 2, 2, 2, 2, 4, 4]
    burst = Counter(job.at for job in generate(100, rate=10, burst=5))
    assert set(burst.values()) == {5}
    assert {job.at for job in generate(10)} == {0.0}


def test_shares_of_users_and_priorities() -> None:
    jobs = list(generate(9_000, users=3, priorities={"high": 1, 0: 2}))
    assert all(job.metadata is not None for job in jobs)
    users = Counter(job.metadata["user_id"] for job in jobs if job.metadata)
    whole = 1 + 1 / 2 + 1 / 3
    for k in (1, 2, 3):
        assert users[f"user-{k}"] / 9_000 == pytest.approx(1 / k / whole, abs=0.02)
    urgent = sum(job.metadata["priority"] == "high" for job in jobs if job.metadata)
    assert urgent / 9_000 == pytest.approx(1 / 3, abs=0.02)
    equal = Counter((job.metadata or {})["user_id"] for job in generate(9_000, users=3, skew=0))
    assert min(equal.values()) > 2_800


def test_costs_and_failures() -> None:
    jobs = list(generate(5_000, cost={"tokens": 900, "images": "uniform(0, 2)"}, failures=0.5))
    assert (jobs[0].metadata or {})["cost"]["tokens"] == 900
    images = [(job.metadata or {})["cost"]["images"] for job in jobs]
    assert sum(images) / 5_000 == pytest.approx(1.0, abs=0.05)
    assert sum(job.failures for job in jobs) / 5_000 == pytest.approx(1.0, abs=0.1)
    assert (next(generate(1, cost=5)).metadata or {}) == {"cost": 5}


@pytest.mark.parametrize(
    ("spec", "mean"),
    [
        (3, 3),
        ("3", 3),
        ("exp(2)", 2),
        ("uniform(1, 3)", 2),
        ("normal(5, 1)", 5),
        ("lognormal(2, 0.5)", 2 * 2.718281828 ** (0.125)),
        ("pareto(1, 3)", 1.5),
        (lambda dice: dice.uniform(0, 2), 1),
    ],
)
def test_distributions(spec: Any, mean: float) -> None:
    sample = sampler("duration", spec, random.Random(7))
    values = [sample() for _ in range(20_000)]
    assert min(values) >= 0
    assert sum(values) / len(values) == pytest.approx(mean, rel=0.05)


@pytest.mark.parametrize(
    "spec",
    [
        "exp(0)",
        "exp(1, 2)",
        "uniform(3, 1)",
        "normal(1)",
        "normal(1, -1)",
        "lognormal(0, 1)",
        "pareto(1, 0)",
        "gauss(1, 2)",
        "exp()",
        "exp(x)",
        "soon",
        "nan",
        -1,
        "-1",
    ],
)
def test_what_is_no_distribution(spec: Any) -> None:
    with pytest.raises(InvalidValue, match=r"^duration must be"):
        generate(1, duration=spec)


@pytest.mark.parametrize(
    ("bad", "words"),
    [
        ({"tasks": 0}, "tasks must be"),
        ({"rate": 0}, "rate must be"),
        ({"rate": "often"}, "often"),
        ({"burst": 0}, "burst must be"),
        ({"spacing": "odd"}, "spacing must be one of"),
        ({"users": -1}, "users must be"),
        ({"skew": -1}, "skew must be"),
        ({"failures": 1}, "failures must be a probability below 1"),
        ({"failures": -0.1}, "failures must be"),
        ({"priorities": {"high": -1}}, r"priorities\['high'\]"),
        ({"priorities": {"high": 0}}, "a share above 0"),
        ({"duration": None}, "duration must be a number"),
    ],
)
def test_what_is_no_workload(bad: dict[str, Any], words: str) -> None:
    with pytest.raises((InvalidValue, InvalidType), match=words):
        generate(**{"tasks": 1, **bad})


# ---- files --------------------------------------------------------------------------------------


def test_a_file_of_requests(tmp_path: Path) -> None:
    path = tmp_path / "requests.jsonl"
    path.write_text(
        '{"id": "a", "path": "/x", "json": {"max_tokens": 5}, "priority": "high"}\n'
        "\n"
        '{"custom_id": "b", "at": 2, "duration": 4, "cost": 7, "valid_after": "+3s"}\n'
        '{"id": 3, "at": 2.5, "failures": 1, "valid_after": "2030-01-31T08:00:00Z"}\n'
    )
    a, b, c = requests(path, duration="2", cost=lambda data: data.get("json", {}).get("max_tokens"))
    assert (a.id, a.at, a.duration, a.metadata) == ("a", 0.0, 2.0, {"priority": "high", "cost": 5})
    assert (b.id, b.at, b.duration) == ("b", 2, 4)
    assert b.metadata is not None and b.metadata["cost"] == 7
    assert b.metadata["valid_after"].total_seconds() == 3
    assert c.metadata is not None and c.metadata["valid_after"].year == 2030
    assert c.failures == 1
    report = simulate(Chain(TimeBasedStrategy()), [a, b])
    assert report.makespan == 9.0


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("[1]", r":1: must be a JSON object, not \[1\]"),
        ("{", ":1: not valid JSON"),
        ('{"at": -1}', ":1: at must be"),
        ('{"duration": "x"}', ":1: duration must be a number"),
        ('{"failures": -1}', ":1: failures must be"),
        ('{"valid_after": "+3 parsecs"}', ":1: valid_after must be ISO-8601"),
        ('{"valid_after": "+s"}', ":1: valid_after must be ISO-8601"),
    ],
)
def test_a_line_that_is_no_request(line: str, words: str, tmp_path: Path) -> None:
    path = tmp_path / "requests.jsonl"
    path.write_text(line + "\n")
    with pytest.raises((InvalidValue, InvalidType), match=words):
        list(requests(path))


def test_the_trace_that_is_shipped() -> None:
    jobs = list(trace(ROOT / "examples" / "llm_trace.csv"))
    assert len(jobs) == 600
    assert jobs[0].at == 0.0
    assert jobs[0].metadata is not None
    tokens = jobs[0].metadata["cost"]["tokens"]
    assert 20 < tokens < 10_000
    assert all(before.at <= after.at for before, after in pairwise(jobs))
    assert jobs == list(trace(ROOT / "examples" / "llm_trace.csv"))
    report = simulate(SlidingWindowStrategy(100_000, 60, cost="tokens"), jobs)
    assert report.succeeded == 600


def test_a_trace_with_more_columns(tmp_path: Path) -> None:
    path = tmp_path / "trace.csv"
    path.write_text(
        "TIMESTAMP,ContextTokens,GeneratedTokens,duration,user_id\n"
        "2023-11-16 18:17:03.9799600,4808,10,,ann\n"
        "2023-11-16 18:17:04.0319600,3180,8,2.5,bob\n"
    )
    first, second = trace(path)
    assert first.duration == pytest.approx(0.2 + 0.0002 * 4808 + 0.02 * 10)
    assert second.at == pytest.approx(0.052)
    assert second.duration == 2.5
    assert second.metadata == {"cost": {"tokens": 3188.0}, "user_id": "bob"}
    assert next(trace(path, duration=lambda context, generated: generated)).duration == 10


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "there is no column 'TIMESTAMP'.* not nothing"),
        ("TIMESTAMP,ContextTokens\n", "there is no column 'GeneratedTokens'"),
        ("TIMESTAMP,ContextTokens,GeneratedTokens\nsoon,1,2\n", "csv:2: "),
        ("TIMESTAMP,ContextTokens,GeneratedTokens\n2023-11-16,x,2\n", "csv:2: "),
        ("TIMESTAMP,ContextTokens,GeneratedTokens\n2023-11-16,-9999999,2\n", "csv:2: duration"),
    ],
)
def test_what_is_no_trace(text: str, words: str, tmp_path: Path) -> None:
    path = tmp_path / "trace.csv"
    path.write_text(text)
    with pytest.raises(InvalidValue, match=words):
        list(trace(path))


# ---- a recorded run -----------------------------------------------------------------------------


def iso(epoch: float | None) -> str:
    assert epoch is not None
    return datetime.fromtimestamp(epoch, UTC).isoformat(timespec="milliseconds")


async def a_run(path: Path, asked: Path, failing: int) -> None:
    """A run of a manager, written down as `atm run` does."""
    dice = random.Random(3)
    lines: list[dict[str, Any]] = []
    wanted: list[dict[str, Any]] = []

    async def work(number: int) -> None:
        await asyncio.sleep(dice.uniform(0.5, 3))
        task = current_task()
        if number % 20 == 7 and failing and task is not None and task.attempt <= failing:
            raise ConnectionError

    chain = Chain(two_providers(), RetryStrategy(5, backoff=fixed(0.5)))
    async with TaskManager(chain) as manager:
        tasks = []
        for number in range(80):
            if number % 20 == 0:
                await asyncio.sleep(1)
            priority = dice.choice(["high", "normal", "low"])
            wanted.append({"id": number, "path": "/x", "priority": priority})
            tasks.append(manager.add_task(partial(work, number), {"priority": priority}))
        await manager.join()
    for number, task in sorted(enumerate(tasks), key=lambda pair: pair[1].finished_at or 0):
        assert task.started_at and task.finished_at
        lines.append(
            {
                "id": number,
                "status": "succeeded",
                "provider": task.provider,
                "attempts": task.attempt,
                "waited": 1.0,
                "duration": round(task.finished_at - task.started_at, 6),
                "created_at": iso(task.created_at),
                "started_at": iso(task.started_at),
                "cost": None,
            }
        )
    lines.append({"id": 99, "status": "invalid", "error": "no request"})
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    asked.write_text("".join(json.dumps(line) + "\n" for line in wanted))


@pytest.mark.parametrize("failing", [0, 2])
def test_a_recorded_run_is_replayed(failing: int, tmp_path: Path) -> None:
    results, asked = tmp_path / "results.jsonl", tmp_path / "requests.jsonl"
    run_virtual(a_run(results, asked, failing))
    run = recorded(results, asked)
    chain = Chain(two_providers(), RetryStrategy(5, backoff=fixed(0.5)))
    report = simulate(chain, run)
    assert run.same_order(report.start_order)
    # Of what was sent several times only the last attempt is recorded.
    assert report.makespan == pytest.approx(run.makespan, rel=0.15 if failing else 0.02)
    assert (report.succeeded, report.attempts) == (80, 80 + 4 * failing)
    assert not run.same_order(reversed(report.start_order))
    free = recorded(results, asked, pinned=False)
    assert simulate(Chain(), free).makespan < run.makespan / 2
    assert simulate(ProviderRouterStrategy([Provider("x")]), run).rejected == 80


def test_what_is_no_recording(tmp_path: Path) -> None:
    path = tmp_path / "results.jsonl"
    wrong: list[tuple[dict[str, Any], str]] = [
        ({"started_at": "soon", "created_at": "2026-01-01"}, "created_at and started_at must be"),
        ({"started_at": "2026-01-01"}, "created_at and started_at must be"),
        (
            {"started_at": "2026-01-01", "created_at": "2026-01-01", "duration": -1},
            "duration must be",
        ),
    ]
    for line, words in wrong:
        path.write_text(json.dumps({"id": 1, **line}) + "\n")
        with pytest.raises(InvalidValue, match=f":1: {words}"):
            recorded(path)
    path.write_text("")
    assert list(recorded(path)) == []


def test_what_a_recording_says_of_costs_and_times(tmp_path: Path) -> None:
    results, asked = tmp_path / "results.jsonl", tmp_path / "requests.jsonl"
    asked.write_text('{"valid_after": "+2s", "cost": {"tokens": 9}}\n')
    results.write_text(
        '{"id": 1, "duration": 1, "created_at": "2026-01-01T00:00:00Z", "provider": "groq",'
        ' "started_at": "2026-01-01T00:00:02Z", "cost": {"tokens": 5}, "actual_cost": 7}\n'
    )
    (job,) = recorded(results, asked)
    assert job.metadata is not None
    assert job.metadata["cost"] == {"tokens": 5}
    assert job.metadata["valid_after"].total_seconds() == 2
    assert job.metadata["provider"] == "groq"
    assert job.actual == 7
    assert "provider" not in (recorded(results, asked, pinned=False).jobs[0].metadata or {})


# ---- reports ------------------------------------------------------------------------------------


def busy() -> Any:
    jobs = generate(
        300,
        rate="40/minute",
        duration="exp(4)",
        users=3,
        priorities={"high": 1, "normal": 4, "<low>": 1},
        seed=5,
    )
    chain = Chain(
        PriorityQueueStrategy(levels={"high": 1, "normal": 0, "<low>": -1}),
        ProviderRouterStrategy(
            [
                Provider("groq", [SlidingWindowStrategy(20, 60), ConcurrentLimitStrategy(4)]),
                Provider("spare & co", [ConcurrentLimitStrategy(2, key="user_id")]),
            ]
        ),
    )
    return simulate(chain, jobs, start=0.0)


def test_a_report_as_table_and_json() -> None:
    report = busy()
    text = str(report)
    assert text.startswith("300 tasks\n")
    for part in ("wait p50 / p95 / p99", "  high (", "fairness (Jain)", "sent to groq", "% used"):
        assert part in text
    data = json.loads(json.dumps(report.to_json()))
    assert data["tasks"] == 300
    assert data["start"] == "1970-01-01T00:00:00+00:00"
    assert set(data["classes"]) == {"high", "normal", "<low>"}
    assert sum(data["providers"].values()) == 300
    series = data["series"]
    assert {len(series["seconds"]), len(series["queued"]), len(series["running"])} == {
        len(column) for column in series["limits"].values()
    }


def test_two_reports_side_by_side() -> None:
    before = simulate(ConcurrentLimitStrategy(1), generate(10))
    after = simulate(ConcurrentLimitStrategy(2), generate(10))
    rows = compare(before, after).splitlines()
    assert rows[0].split() == ["before", "after"]
    assert rows[1].split() == ["takes", "10", "s", "5", "s"]
    assert rows[-1].split("  ")[-1] == "100% used"
    assert " - " in rows[-1]


def test_samples_stay_few_however_long_it_lasts() -> None:
    report = simulate(ConcurrentLimitStrategy(3), generate(20_000, rate=1.0, duration="exp(2.5)"))
    times = report.series.times
    assert 100 < len(times) < 600
    assert times == sorted(times)
    gaps = [after - before for before, after in pairwise(times)]
    assert max(gaps) < report.makespan / 50
    (use,) = report.limits
    assert use.mean == pytest.approx(2.5 / 3, abs=0.05)


def test_what_nothing_happens_in_counts_as_it_was() -> None:
    jobs = [Job(0.0, 1.0), Job(0.0, 1.0), Job(99.0, 1.0)]
    report = simulate(Chain(ConcurrentLimitStrategy(1), SlidingWindowStrategy(2, 10)), jobs)
    slots, window = report.limits
    assert slots.mean == pytest.approx(3 / 100, abs=0.01)
    # Both starts for 9 of the first 11 s, one for the others and for the last.
    assert window.mean == pytest.approx((9 + 2 / 2 + 1 / 2) / 100, abs=0.01)
    assert (slots.peak, window.peak) == (1.0, 1.0)


def text_of(svg: str) -> str:
    return " ".join(
        "".join(e.itertext()) for e in ET.fromstring(svg).iter() if e.tag[-4:] == "text"
    )


def test_the_picture_is_sound_and_says_what_is_there() -> None:
    report = busy()
    words = text_of(report.svg())
    for part in ("300 tasks in", "groq: what runs there", "spare & co", "<low>", "queued", "min"):
        assert part in words
    attempts = sum(report.providers.values())
    bars = report.svg().count('rx="1.5"')
    assert bars == attempts
    assert "With <more>" in text_of(report.svg(title="With <more>"))


def test_a_picture_of_many_is_drawn_as_areas() -> None:
    many = simulate(two_providers(), generate(3_000, rate=1.0, duration=3.0))
    assert many.svg().count('rx="1.5"') == 0
    assert len(many.svg()) < 200_000
    wide = simulate(Chain(ConcurrentLimitStrategy(200)), generate(300, duration=5.0))
    assert wide.svg().count('rx="1.5"') == 0
    assert "what runs (300 attempts)" in text_of(wide.svg())
    cut = simulate(ConcurrentLimitStrategy(1), [Job(0.0, 5.0), Job(0.0, 50.0)], until=20)
    assert cut.svg().count('rx="1.5"') == 2
    free = simulate(Chain(), [Job(0.0, 5.0)])
    assert "use of the limits" not in text_of(free.svg())
    assert "(1 attempt)" in text_of(free.svg())


def test_saved_as_svg_json_or_png(tmp_path: Path) -> None:
    report = busy()
    report.save(tmp_path / "a.svg", title="A day")
    assert "A day" in (tmp_path / "a.svg").read_text()
    report.save(tmp_path / "a.json")
    assert json.loads((tmp_path / "a.json").read_text())["tasks"] == 300
    report.save(str(tmp_path / "a.png"))
    assert (tmp_path / "a.png").read_bytes().startswith(b"\x89PNG")
    simulate(Chain(), [Job(0.0, 5.0)]).save(tmp_path / "b.png")
    with pytest.raises(InvalidValue, match=r"\.svg, \.png or \.json, not 'a\.pdf'"):
        report.save(tmp_path / "a.pdf")


def test_a_png_without_matplotlib(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(MissingExtra, match=r"\[plot\]"):
        busy().save(tmp_path / "a.png")


def test_times_that_are_no_text_are_left_to_the_strategy(tmp_path: Path) -> None:
    path = tmp_path / "requests.jsonl"
    path.write_text('{"valid_after": 1900000000}\n')
    (job,) = requests(path)
    assert job.metadata == {"valid_after": 1900000000}
    assert simulate(TimeBasedStrategy(), [job], start=1_899_999_990).makespan == 11.0


def test_a_limit_without_a_bound_for_some_and_users_who_are_left_out() -> None:
    class PerUser(ConcurrentLimitStrategy):
        """Some users have no bound."""

        def usage(self, key: Any, now: float) -> Usage:
            found = super().usage(key, now)
            return Usage(found.used, float("inf")) if key == "vip" else found

    jobs = [Job(0.0, 2.0, {"user_id": user}) for user in ("vip", "ann", "ann")]
    report = simulate(PerUser(1, key="user_id"), jobs, until=3)
    (use,) = report.limits
    assert use.peak == 1.0
    assert report.jain == 1.0  # of what has ended
    assert report.unfinished == 1


def test_jains_index() -> None:
    assert jain([1, 1, 1]) == 1.0
    assert jain([1, 0, 0, 0]) == 0.25
    assert jain([0, 0]) == 1.0


@pytest.mark.parametrize(
    ("seconds", "words"),
    [
        (0, "0 s"),
        (0.123456, "0.123 s"),
        (59.4, "59.4 s"),
        (60, "1 min"),
        (90.4, "1 min 30 s"),
        (3600, "1 h"),
        (9_960, "2 h 46 min"),
        (90_000, "1 d 1 h"),
        (float("nan"), "-"),
    ],
)
def test_lengths_of_time_are_read(seconds: float, words: str) -> None:
    assert span(seconds) == words


def test_a_limit_of_delays_has_its_use() -> None:
    report = simulate(DelayedStrategy(1.0), generate(5, duration=1.0))
    assert report.limits[0].mean == pytest.approx(1.0)


def test_jitter_comes_from_a_seed() -> None:
    chain = Chain(RetryStrategy(3, backoff=exponential(1.0)))
    starts = [
        list(simulate(chain, generate(50, failures=0.3), seed=seed).timeline[0].start)
        for seed in (1, 1, 2)
    ]
    assert starts[0] == starts[1] != starts[2]
