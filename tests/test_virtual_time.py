"""The loop on which every other test runs, and the plugin that puts them there."""

from __future__ import annotations

import asyncio
import contextlib
import math
import re
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from async_task_manager.errors import InvalidType, InvalidValue
from async_task_manager.testing import Deadlock, VirtualTimeLoop, run_virtual

ROOT = Path(__file__).parents[1]


def virtual_loop() -> VirtualTimeLoop:
    loop = asyncio.get_running_loop()
    assert isinstance(loop, VirtualTimeLoop)
    return loop


@contextlib.contextmanager
def real_seconds(at_most: float) -> Iterator[None]:
    began = time.monotonic()
    yield
    assert time.monotonic() - began <= at_most


# ---------------------------------------------------------------- instants and order


async def test_time_starts_at_zero_and_stands_still_while_code_runs() -> None:
    loop = virtual_loop()
    assert loop.time() == 0.0
    for _ in range(100):
        await asyncio.sleep(0)
    assert loop.time() == 0.0


async def test_a_million_seconds_pass_at_once() -> None:
    with real_seconds(at_most=5):
        await asyncio.sleep(1_000_000)
    assert virtual_loop().time() == 1_000_000.0


@given(
    st.lists(
        st.one_of(
            st.sampled_from([0.0, 5e-324, 0.1, 0.1 + 0.2, 0.3, 1.0, 1.0 + 2**-52, 1e9, 1e300]),
            st.floats(min_value=-10, max_value=1e12),
        ),
        min_size=1,
        max_size=30,
    )
)
def test_each_timer_runs_exactly_at_its_instant_ties_in_order(instants: list[float]) -> None:
    async def main() -> list[tuple[float, int]]:
        loop = asyncio.get_running_loop()
        ran: list[tuple[float, int]] = []
        done = asyncio.Event()

        def run(number: int) -> None:
            ran.append((loop.time(), number))
            if len(ran) == len(instants):
                done.set()

        for number, when in enumerate(instants):
            loop.call_at(when, run, number)
        await done.wait()
        return ran

    ran = run_virtual(main())
    order = sorted(range(len(instants)), key=lambda number: instants[number])
    assert [number for _, number in ran if instants[number] > 0] == [
        number for number in order if instants[number] > 0
    ]
    assert [at for at, _ in ran] == [max(0.0, instants[number]) for _, number in ran]


async def test_those_who_sleep_equally_long_wake_in_order() -> None:
    woken: list[int] = []

    async def sleep(number: int) -> None:
        await asyncio.sleep(1)
        woken.append(number)

    await asyncio.gather(*(sleep(number) for number in range(50)))
    assert woken == list(range(50))


async def test_a_cancelled_timer_does_not_move_the_clock() -> None:
    loop = virtual_loop()
    loop.call_later(5, lambda: pytest.fail("ran though cancelled")).cancel()
    await asyncio.sleep(7)
    assert loop.time() == 7.0


async def test_a_timer_set_by_a_timer_for_earlier_than_the_next_runs_first() -> None:
    loop = virtual_loop()
    ran: list[tuple[str, float]] = []
    loop.call_at(10, lambda: ran.append(("late", loop.time())))
    loop.call_at(1, lambda: loop.call_later(2, lambda: ran.append(("inserted", loop.time()))))
    await asyncio.sleep(20)
    assert ran == [("inserted", 3.0), ("late", 10.0)]


async def test_timeouts_strike_at_their_instant_and_spare_what_is_in_time() -> None:
    loop = virtual_loop()
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(30):
            await asyncio.sleep(31)
    assert loop.time() == 30.0
    with pytest.raises(TimeoutError):
        await asyncio.wait_for(asyncio.Event().wait(), 12.5)
    assert loop.time() == 42.5
    assert await asyncio.wait_for(asyncio.sleep(1, "in time"), 2) == "in time"
    assert loop.time() == 43.5


async def test_a_hundred_thousand_timers() -> None:
    loop = virtual_loop()
    late: list[float] = []
    ran = 0

    def run(when: float) -> None:
        nonlocal ran
        ran += 1
        if loop.time() != when:
            late.append(when)

    instants = [(number * 48_271 % 100_003) * 0.864 for number in range(100_000)]
    with real_seconds(at_most=30):  # one or two, on a machine that does nothing else
        for when in instants:
            loop.call_at(when, run, when)
        await asyncio.sleep(86_403)
    assert (ran, late) == (100_000, [])


def test_debug_mode_checks_what_asyncio_checks() -> None:
    async def main() -> None:
        loop = virtual_loop()
        with pytest.raises(TypeError, match="call_at"):
            loop.call_at(1, main)
        with pytest.raises(TypeError, match="run_in_executor"):
            await loop.run_in_executor(None, main)  # type: ignore[unused-coroutine]
        with pytest.raises(RuntimeError, match="Non-thread-safe"):
            await asyncio.to_thread(lambda: loop.call_at(1, int))
        await asyncio.sleep(1)
        assert loop.time() == 1.0

    with asyncio.Runner(loop_factory=VirtualTimeLoop, debug=True) as runner:
        runner.run(main())


def test_a_closed_loop_refuses() -> None:
    loop = VirtualTimeLoop()
    loop.close()
    with pytest.raises(RuntimeError, match="closed"):
        loop.call_at(1, int)
    with pytest.raises(RuntimeError, match="closed"):
        loop.run_in_executor(None, int)


# ---------------------------------------------------------------- threads


async def test_the_clock_waits_for_an_executor_thread() -> None:
    loop = virtual_loop()

    def work() -> str:
        time.sleep(0.05)
        return "done"

    assert await asyncio.wait_for(asyncio.to_thread(work), 0.001) == "done"
    assert loop.time() == 0.0
    assert await loop.run_in_executor(None, work) == "done"
    await asyncio.sleep(1)
    assert loop.time() == 1.0


async def test_an_error_in_a_thread_lets_the_clock_go() -> None:
    with pytest.raises(ZeroDivisionError):
        await asyncio.to_thread(lambda: 1 // 0)
    await asyncio.sleep(1)
    assert virtual_loop().time() == 1.0


async def test_the_clock_waits_for_every_one_of_many_threads() -> None:
    loop = virtual_loop()
    ended: list[float] = []

    async def work(number: int) -> None:
        await asyncio.to_thread(time.sleep, 0.001 * (number % 3))
        ended.append(loop.time())

    sleeper = asyncio.create_task(asyncio.sleep(1))
    await asyncio.gather(*(work(number) for number in range(100)))
    assert ended == [0.0] * 100
    await sleeper
    assert loop.time() == 1.0


async def test_the_clock_waits_for_a_thread_whose_awaiter_was_cancelled() -> None:
    loop = virtual_loop()
    began, release, told = threading.Event(), threading.Event(), asyncio.Event()

    def work() -> None:
        began.set()
        release.wait()
        loop.call_soon_threadsafe(told.set)

    task = asyncio.create_task(asyncio.to_thread(work))
    await asyncio.sleep(0)
    began.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    threading.Timer(0.05, release.set).start()
    async with asyncio.timeout(0.001):
        await told.wait()
    assert loop.time() == 0.0
    await asyncio.sleep(1)
    assert loop.time() == 1.0


async def test_work_cancelled_before_a_thread_took_it_lets_the_clock_go() -> None:
    loop = virtual_loop()
    release = threading.Event()
    with ThreadPoolExecutor(1) as pool:
        busy = loop.run_in_executor(pool, release.wait)
        queued = loop.run_in_executor(pool, lambda: pytest.fail("ran though cancelled"))
        queued.cancel()
        release.set()
        assert await busy
    await asyncio.sleep(1)
    assert loop.time() == 1.0


async def test_calls_from_an_executor_thread_arrive_at_once() -> None:
    loop = virtual_loop()
    heard: list[tuple[int, float]] = []

    async def answer(number: int) -> int:
        heard.append((number, loop.time()))
        return number * 2

    def ask() -> int:
        return sum(
            asyncio.run_coroutine_threadsafe(answer(number), loop).result(10) for number in range(5)
        )

    asleep = asyncio.create_task(asyncio.sleep(100))
    assert await asyncio.to_thread(ask) == 20
    assert heard == [(number, 0.0) for number in range(5)]
    assert not asleep.done()
    await asleep


async def test_hold_stops_the_clock_for_a_plain_thread() -> None:
    loop = virtual_loop()
    told = asyncio.Event()
    thread = threading.Timer(0.05, loop.call_soon_threadsafe, (told.set,))
    with loop.hold():
        thread.start()
        await asyncio.wait_for(told.wait(), 0.001)
    thread.join()
    assert loop.time() == 0.0
    await asyncio.sleep(1)
    assert loop.time() == 1.0


def test_the_loop_may_close_before_a_thread_ends(caplog: pytest.LogCaptureFixture) -> None:
    release = threading.Event()
    loop = VirtualTimeLoop()

    async def main() -> asyncio.Future[bool]:
        return loop.run_in_executor(None, release.wait)

    future = loop.run_until_complete(main())
    workers = [t for t in threading.enumerate() if t.name.startswith("asyncio_")]
    future.cancel()
    loop.run_until_complete(asyncio.sleep(0))
    loop.close()
    release.set()
    for worker in workers:
        worker.join(10)
    assert workers
    assert not caplog.records


# ---------------------------------------------------------------- deadlocks


def test_a_deadlock_is_an_error_that_names_what_is_pending() -> None:
    async def never_woken() -> None:
        await asyncio.Event().wait()

    async def main() -> None:
        await asyncio.sleep(2.5)
        lost = asyncio.create_task(never_woken(), name="the lost one")
        await lost

    with pytest.raises(Deadlock) as caught:
        run_virtual(main())
    message = str(caught.value)
    assert "virtual time 2.5" in message
    assert "the lost one" in message
    assert "never_woken" in message
    assert "main" in message
    assert isinstance(caught.value, RuntimeError)


def test_a_sleep_without_end_is_a_deadlock() -> None:
    with pytest.raises(Deadlock, match="sleep"):
        run_virtual(asyncio.sleep(math.inf))


def test_a_deadlock_among_thousands_stays_readable() -> None:
    async def main() -> None:
        await asyncio.gather(*(asyncio.Event().wait() for _ in range(1000)))

    with pytest.raises(Deadlock, match=r"pending tasks \(1001\)") as caught:
        run_virtual(main())
    assert "and 981 more" in str(caught.value)
    assert len(str(caught.value).splitlines()) == 22


def test_tasks_of_a_deadlock_are_cancelled_and_cleaned_up() -> None:
    cleaned: list[str] = []

    async def main() -> None:
        try:
            await asyncio.Event().wait()
        finally:
            await asyncio.sleep(1)
            cleaned.append("main")

    with pytest.raises(Deadlock):
        run_virtual(main())
    assert cleaned == ["main"]


# ---------------------------------------------------------------- the wall clock


async def test_the_wall_clock_follows_and_steps() -> None:
    loop = virtual_loop()
    assert loop.wall_time() == 1_700_000_000.0
    await asyncio.sleep(3600)
    assert loop.wall_time() == 1_700_003_600.0
    loop.step_wall(-7200)
    assert (loop.time(), loop.wall_time()) == (3600.0, 1_699_996_400.0)
    loop.step_wall(0.5)
    await asyncio.sleep(0.5)
    assert (loop.time(), loop.wall_time()) == (3600.5, 1_699_996_401.0)
    loop.wall_start = 10.0
    assert loop.wall_time() == 3610.5


def test_the_wall_clock_starts_where_told() -> None:
    async def main() -> float:
        return virtual_loop().wall_time()

    assert run_virtual(main(), wall_start=0.0) == 0.0
    assert run_virtual(main(), wall_start=-1e9) == -1e9


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_numbers_out_of_range_are_refused(bad: float) -> None:
    with pytest.raises(InvalidValue, match=f"wall_start.*finite.*{bad}"):
        VirtualTimeLoop(wall_start=bad)
    with pytest.raises(InvalidValue, match=f"io_grace.*finite.*{bad}"):
        VirtualTimeLoop(io_grace=bad)
    with (
        contextlib.closing(VirtualTimeLoop()) as loop,
        pytest.raises(InvalidValue, match=f"seconds.*finite.*{bad}"),
    ):
        loop.step_wall(bad)


def test_other_bad_arguments_are_refused() -> None:
    with pytest.raises(InvalidValue, match=r"io_grace.*at least 0.*-0\.1"):
        VirtualTimeLoop(io_grace=-0.1)
    with pytest.raises(InvalidType, match=r"wall_start.*number.*'now'"):
        VirtualTimeLoop(wall_start="now")  # type: ignore[arg-type]


# ---------------------------------------------------------------- real input and output


async def test_sockets_on_loopback_work_beside_timers() -> None:
    loop = virtual_loop()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while line := await reader.readline():
            await asyncio.sleep(60)  # a slow server
            writer.write(line.upper())
        writer.close()

    async with await asyncio.start_server(serve, "127.0.0.1", 0) as server:
        reader, writer = await asyncio.open_connection(*server.sockets[0].getsockname())
        for number in range(5):
            writer.write(f"line {number}\n".encode())
            answer = await asyncio.wait_for(reader.readline(), 61)
            assert answer == f"LINE {number}\n".encode()
        assert loop.time() == 300.0
        writer.write(b"too slow\n")
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(reader.readline(), 59)
        assert loop.time() == 359.0
        writer.close()
        await writer.wait_closed()
        await asyncio.sleep(60)


async def test_without_timers_real_input_is_waited_for() -> None:
    loop = virtual_loop()
    child = await asyncio.create_subprocess_exec(
        sys.executable,
        "-c",
        "import time; time.sleep(0.1); print('hello')",
        stdout=asyncio.subprocess.PIPE,
    )
    output, _ = await child.communicate()
    assert (output.split(), child.returncode, loop.time()) == ([b"hello"], 0, 0.0)


def test_a_child_process_without_pipes_is_waited_for_until_it_ends() -> None:
    codes: list[int] = []

    async def main() -> None:
        child = await asyncio.create_subprocess_shell("sleep 0.1; exit 3")
        codes.append(await child.wait())
        await asyncio.Event().wait()

    with pytest.raises(Deadlock):
        run_virtual(main())
    assert codes == [3]


async def test_hold_gives_real_input_the_time_it_needs() -> None:
    loop = virtual_loop()
    child = await asyncio.create_subprocess_shell("sleep 0.2")
    with loop.hold():
        assert await asyncio.wait_for(child.wait(), 0.001) == 0
    assert loop.time() == 0.0


def test_open_sockets_delay_a_jump_by_the_grace_alone() -> None:
    async def main() -> float:
        async with await asyncio.start_server(lambda r, w: None, "127.0.0.1", 0):
            began = time.monotonic()
            for _ in range(10):
                await asyncio.sleep(1000)
            return time.monotonic() - began

    def seconds(io_grace: float) -> float:
        with asyncio.Runner(loop_factory=lambda: VirtualTimeLoop(io_grace=io_grace)) as runner:
            return runner.run(main())

    patient = seconds(io_grace=0.02)
    assert patient >= 0.2
    assert seconds(io_grace=0.0) < patient


# ---------------------------------------------------------------- the pytest plugin


@pytest.mark.real_time
async def test_real_time_uses_a_real_loop() -> None:
    loop = asyncio.get_running_loop()
    assert not isinstance(loop, VirtualTimeLoop)
    began = time.monotonic()
    await asyncio.sleep(0.05)
    assert time.monotonic() - began >= 0.049


@pytest.mark.real_time
class TestAMarkedClass:
    async def test_uses_a_real_loop(self) -> None:
        assert not isinstance(asyncio.get_running_loop(), VirtualTimeLoop)


@pytest.mark.parametrize("number", [1, 2])
async def test_ids_are_those_written(number: int, request: pytest.FixtureRequest) -> None:
    assert request.node.name == f"test_ids_are_those_written[{number}]"


@given(st.floats(min_value=0, max_value=1e6))
async def test_hypothesis_tests_run_in_virtual_time(delay: float) -> None:
    loop = virtual_loop()
    due = loop.time() + delay
    await asyncio.sleep(delay)
    assert loop.time() == due


@pytest.fixture
def outer_project(pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch) -> pytest.Pytester:
    """A project of its own, with the test file that the documentation shows."""
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    monkeypatch.delenv("PYTEST_ADDOPTS", raising=False)
    blocks = re.findall(
        r"```python( notest)?\n(.*?)```", (ROOT / "docs/testing.md").read_text(), re.S
    )
    (conftest,) = (code for _, code in blocks if "pytest_plugins" in code)
    (test_file,) = (code for _, code in blocks if "async def test_" in code)
    pytester.makeconftest(conftest)
    pytester.makepyfile(test_documented=test_file)
    pytester.makeini("[pytest]\nasyncio_default_fixture_loop_scope = function\n")
    return pytester


@pytest.mark.parametrize("options", [(), ("-n2",), ("--asyncio-mode=auto", "--strict-markers")])
def test_the_documented_tests_pass(
    outer_project: pytest.Pytester, options: tuple[str, ...]
) -> None:
    if "-n2" in options:
        pytest.importorskip("xdist")
    result = outer_project.runpytest_subprocess("-Werror", "-v", *options)
    result.assert_outcomes(passed=2)
    result.stdout.re_match_lines_random(
        [r".*test_a_day_passes_at_once\b(?!\[).*", r".*test_real_time_is_real\b(?!\[).*"]
    )


def test_without_pytest_asyncio_the_plugin_says_what_to_install(
    outer_project: pytest.Pytester,
) -> None:
    result = outer_project.runpytest_subprocess("-p", "no:asyncio")
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    result.stderr.fnmatch_lines(["*needs pytest-asyncio 1.4 or later*"])
