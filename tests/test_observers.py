"""Observers: log lines, spans, metrics, and a progress bar."""

from __future__ import annotations

import asyncio
import io
import logging
import sys
from collections.abc import Iterable
from math import inf
from typing import Any

import pytest
from opentelemetry import trace
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from prometheus_client import CollectorRegistry
from rich.console import Console

from async_task_manager import Chain, InvalidType, InvalidValue, MissingExtra, Task, TaskManager
from async_task_manager.events import Started
from async_task_manager.observers import LogObserver, OtelObserver, PrometheusObserver, track
from async_task_manager.strategies import (
    ConcurrentLimitStrategy,
    Feedback,
    Provider,
    ProviderRouterStrategy,
    RetryAt,
)
from async_task_manager.strategies.base import Source
from async_task_manager.task import Outcome


class Again(Feedback):
    """One more attempt, five seconds later."""

    def review(self, task: Task, outcome: Outcome, now: float) -> RetryAt | None:
        again = outcome.kind == "failure" and task.attempt < 2
        return RetryAt(now + 5) if again else None


async def nap(seconds: float = 1.0) -> float:
    await asyncio.sleep(seconds)
    return seconds


async def fail() -> None:
    await asyncio.sleep(1)
    raise LookupError("lost")


def chain() -> Chain:
    return Chain(
        Again(), ProviderRouterStrategy([Provider("P1", limits=[ConcurrentLimitStrategy(1)])])
    )


async def live(manager: TaskManager) -> None:
    """One that succeeds, one that fails twice, one that expires, one that is cancelled."""
    async with manager:
        manager.add_task(nap)
        failed = manager.add_task(fail, name="the failing one")
        manager.add_task(nap, queue_timeout=0.5)
        cancelled = manager.add_task(nap)
        await asyncio.sleep(0.1)
        cancelled.cancel()
        with pytest.raises(LookupError):
            await failed


# ---- logging ------------------------------------------------------------------------------------


async def test_every_event_is_a_line_with_fields(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG, "async_task_manager.events")
    manager = TaskManager(chain())
    manager.subscribe(LogObserver())
    await live(manager)
    lines = [r for r in caplog.records if r.name == "async_task_manager.events"]
    fields = [vars(line) for line in lines]
    failing = [f for f in fields if f.get("task_name") == "the failing one"]
    assert [f["event"] for f in failing] == ["queued", "started", "retried", "started", "finished"]
    assert failing[2]["error"] == "LookupError('lost')"
    assert failing[2]["levelno"] == logging.WARNING
    assert (failing[4]["state"], failing[4]["provider"]) == ("failed", "P1")
    assert failing[4]["levelno"] == logging.WARNING
    assert failing[3]["waited"] == 5
    assert failing[4]["duration"] == 1
    assert {"expired", "stage_closed", "stage_opened"} <= {f["event"] for f in fields}
    closed = next(f for f in fields if f["event"] == "stage_closed")
    assert (closed["stage"], closed["branch"]) == ("ConcurrentLimitStrategy(1)", "P1")


async def test_levels_and_logger_can_be_chosen(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    mine = logging.getLogger("mine")
    manager = TaskManager(ConcurrentLimitStrategy(1))
    manager.subscribe(LogObserver(mine, {Started: logging.ERROR}))

    class Silent(Exception):
        def __repr__(self) -> str:
            raise RuntimeError

    async def odd() -> None:
        raise Silent

    async with manager:
        with pytest.raises(Silent):
            await manager.add_task(odd)
    events = [(vars(r)["event"], r.levelname) for r in caplog.records if r.name == "mine"]
    assert events == [("started", "ERROR"), ("finished", "WARNING")]
    assert [vars(r).get("error") for r in caplog.records if r.name == "mine"] == [None, "Silent"]


# ---- OpenTelemetry ------------------------------------------------------------------------------


async def test_spans_follow_the_caller() -> None:
    exporter = InMemorySpanExporter()
    provider = TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    tracer = provider.get_tracer("test")
    manager = TaskManager(chain())
    manager.subscribe(OtelObserver("mail", provider))

    async def work() -> None:
        with tracer.start_as_current_span("inside"):
            await asyncio.sleep(1)

    with tracer.start_as_current_span("caller") as caller:
        async with manager:
            manager.add_task(work)
            late = manager.add_task(nap, queue_timeout=0.5)
            failing = manager.add_task(fail)
            with pytest.raises(LookupError):
                await failing
    spans: dict[str, list[Any]] = {}
    for span in exporter.get_finished_spans():
        spans.setdefault(span.name, []).append(span)
    here = caller.get_span_context().span_id
    assert [span.parent.span_id for span in spans["process mail"]] == [here] * 3
    (inside,) = spans["inside"]
    assert inside.parent.span_id == spans["process mail"][0].context.span_id
    (settled,) = spans["settle mail"]
    assert settled.parent.span_id == here
    assert settled.attributes["messaging.message.id"] == str(late.id)
    assert settled.attributes["async_task_manager.task.state"] == "expired"
    states = [s.attributes["async_task_manager.task.state"] for s in spans["process mail"]]
    assert states == ["succeeded", "retried", "failed"]
    last = spans["process mail"][2]
    assert last.attributes["error.type"] == "LookupError"
    assert last.status.status_code is trace.StatusCode.ERROR
    assert last.attributes["async_task_manager.task.provider"] == "P1"


async def test_spans_of_tasks_that_never_ran_and_of_odd_errors() -> None:
    exporter = InMemorySpanExporter()
    provider = TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    manager = TaskManager(ConcurrentLimitStrategy(1))

    class Silent(BaseException):
        def __str__(self) -> str:
            raise RuntimeError

    async def odd() -> None:
        await asyncio.sleep(1)
        raise Silent

    async with manager:
        unseen = manager.add_task(nap)
        await asyncio.sleep(0.5)
        manager.subscribe(OtelObserver(tracer_provider=provider))
        failing = manager.add_task(odd)
        cancelled = manager.add_task(nap)
        await asyncio.sleep(0.25)
        cancelled.cancel()
        with pytest.raises(Silent):
            await failing
    spans = {
        span.attributes["messaging.message.id"]: span
        for span in exporter.get_finished_spans()
        if span.attributes is not None
    }
    settled = spans[str(cancelled.id)]
    assert settled.name == "settle tasks"
    assert settled.attributes is not None
    assert settled.attributes["async_task_manager.task.waited"] == 0.25
    assert settled.status.status_code is trace.StatusCode.UNSET  # it was wanted so
    assert settled.start_time is not None
    assert settled.end_time is not None
    assert 0.25e9 <= settled.end_time - settled.start_time < 1e9
    assert spans[str(failing.id)].status.description == "Silent"
    # It was running already: of a span that begins in the middle nobody could tell its length.
    assert str(unseen.id) not in spans


async def test_a_task_that_a_strategy_brings_along_has_a_span_without_a_parent() -> None:
    class Schedule(Source):
        def next_due(self, now: float) -> float:
            return inf if bad.done() or bad.state == "rejected" else 1.0

        def emit(self, now: float) -> Iterable[Task]:
            return [bad]

    exporter = InMemorySpanExporter()
    provider = TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    coroutine = nap()
    bad = Task(coroutine)  # which could not be retried
    manager = TaskManager(Chain(Schedule(), Again()))
    manager.subscribe(OtelObserver(tracer_provider=provider))
    await manager.idle()
    with pytest.raises(InvalidType):
        await bad
    await manager.stop()
    (span,) = exporter.get_finished_spans()
    assert span.parent is None
    assert span.attributes is not None
    assert span.attributes["async_task_manager.task.state"] == "rejected"


# ---- Prometheus ---------------------------------------------------------------------------------


async def test_metrics_count_what_happens() -> None:
    registry = CollectorRegistry()
    manager = TaskManager(chain())
    manager.subscribe(PrometheusObserver(registry, max_jobs=2))
    await live(manager)

    def value(name: str, **labels: str) -> float | None:
        return registry.get_sample_value(f"async_task_manager_{name}", labels)

    assert value("tasks_added_total", job="nap") == 3
    assert value("tasks_started_total", job="the failing one") == 2
    assert value("tasks_retried_total", job="the failing one") == 1
    assert value("tasks_ended_total", job="nap", state="succeeded") == 1
    assert value("tasks_ended_total", job="nap", state="expired") == 1
    assert value("tasks_ended_total", job="nap", state="cancelled") == 1
    assert value("tasks_ended_total", job="the failing one", state="failed") == 1
    assert (value("tasks_queued"), value("tasks_running")) == (0, 0)
    assert value("task_duration_seconds_sum", job="the failing one") == 2
    assert value("stages_closed", stage="ConcurrentLimitStrategy", branch="P1") == 0

    await manager.idle()
    await manager.add_task(nap, name="data 1")
    await manager.join()
    await manager.stop()
    assert value("tasks_added_total", job="other") == 1
    assert value("tasks_added_total", job="data 1") is None


async def test_metrics_that_come_late_never_count_below_zero() -> None:
    registry = CollectorRegistry()
    manager = TaskManager(ConcurrentLimitStrategy(1))
    manager.subscribe(lambda record: None)
    labels = {"stage": "ConcurrentLimitStrategy", "branch": ""}
    name = "async_task_manager_stages_closed"
    async with manager:
        for _ in range(3):
            manager.add_task(nap)
        await asyncio.sleep(0.5)
        manager.subscribe(PrometheusObserver(registry))
        assert registry.get_sample_value(name, labels) == 1
    assert registry.get_sample_value(name, labels) == 0
    assert registry.get_sample_value("async_task_manager_tasks_running") == 0


def test_bad_parameters_of_the_metrics() -> None:
    with pytest.raises(InvalidType, match="job must be a callable"):
        PrometheusObserver(CollectorRegistry(), job="name")  # type: ignore[arg-type]
    with pytest.raises(InvalidValue, match="max_jobs"):
        PrometheusObserver(CollectorRegistry(), max_jobs=0)


# ---- progress -----------------------------------------------------------------------------------


async def test_a_bar_on_a_terminal() -> None:
    screen = io.StringIO()
    console = Console(file=screen, force_terminal=True, width=100)
    manager = TaskManager(ConcurrentLimitStrategy(1))
    await manager.idle()
    async with track(manager, console):
        manager.add_tasks([nap, nap, nap])
    assert manager.stats().succeeded == 3
    assert "3/3" in screen.getvalue()
    assert "1 running" in screen.getvalue()
    await manager.stop()


async def test_without_a_console_it_is_shown_on_standard_error(
    capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    async with TaskManager(ConcurrentLimitStrategy(1)) as manager, track(manager):
        manager.add_task(nap)
    assert capsys.readouterr().out == ""
    assert "1" in caplog.text


async def test_lines_where_there_is_no_terminal(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    manager = TaskManager(ConcurrentLimitStrategy(1))
    await manager.idle()
    manager.add_task(fail)
    async with track(manager, Console(file=io.StringIO(), force_terminal=False)):
        manager.add_task(lambda: nap(11))
    said = [r.getMessage() for r in caplog.records if " done; " in r.getMessage()]
    assert said == ["1 of 2 done; 1 running, 1 failed"] * 2 + ["2 of 2 done; 0 running, 1 failed"]
    await manager.stop()
    async with track(manager, Console(file=io.StringIO())):
        manager.add_task(nap)  # stopped: nobody would ever be done
    await manager.close()


# ---- what is missing ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("module", "make", "extra"),
    [
        ("opentelemetry", OtelObserver, "otel"),
        ("prometheus_client", PrometheusObserver, "prometheus"),
    ],
)
def test_a_missing_extra_is_named(
    module: str, make: Any, extra: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(MissingExtra, match=rf"pip install 'async-task-manager\[{extra}\]'"):
        make()


async def test_a_missing_rich_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "rich.console", None)
    with pytest.raises(MissingExtra, match="cli"):
        async with track(TaskManager(ConcurrentLimitStrategy(1))):
            pytest.fail("there is nothing to draw with")
