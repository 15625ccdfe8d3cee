"""`atm queue` and `atm worker`, as a person runs them."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from sqs_server import ENVIRONMENT, SqsServer
from typer.testing import CliRunner, Result

from async_task_manager.cli.app import app

ATM = str(Path(sys.executable).with_name("atm"))
URL = "sqlite:///tasks.db"

APP = """
import asyncio, time
from async_task_manager import Chain
from async_task_manager.queues import Message
from async_task_manager.strategies import BulkStrategy, ConcurrentLimitStrategy
from async_task_manager.worker import Worker

async def handler(message):
    print("got", message.body, message.receive_count, flush=True)
    if message.body == "bad":
        raise ValueError("it is bad\\n\\x1b[31m")
    if message.body == "slow":
        await asyncio.sleep(60)

def plain(message):
    print("plain", message.body, flush=True)
    if message.body == "slow":
        time.sleep(60)

async def many(messages):
    print("many", sorted(message.body for message in messages), flush=True)
    return [None] * len(messages)

class Holder:
    batch = BulkStrategy(many, max_size=5)

worker = Worker("sqlite:///other.db", handler, Chain(ConcurrentLimitStrategy(5)))
nothing = 5
"""


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "app_of_this_test.py").write_text(APP)
    (tmp_path / "broken.py").write_text("import surely_missing")
    monkeypatch.chdir(tmp_path)
    for name in ("QUEUE_URL", "MAX_CONCURRENT", "MAX_THREADS"):
        monkeypatch.delenv(name, raising=False)
    return tmp_path


def invoke(*arguments: str, **options: Any) -> Result:
    return CliRunner().invoke(app, list(arguments), **options)


def atm(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [ATM, *arguments],
        env={**os.environ, "COLUMNS": "100", **environment},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


# ---- atm queue ----------------------------------------------------------------------------------


def test_send_and_depth() -> None:
    sent = invoke(
        "queue", "send", '{"n": 1}', "-", "-a", "user_id=ann", "-a", "delay_seconds=60",
        "--queue", URL, input="2\n\n[3]\n",
    )  # fmt: skip
    assert (sent.exit_code, sent.stdout) == (0, "3 sent\n")
    depth = invoke("queue", "depth", "--json", env={"QUEUE_URL": URL})
    assert json.loads(depth.stdout) == {"ready": 0, "delayed": 3, "in_flight": 0, "dead": 0}
    table = invoke("queue", "depth", "--queue", URL).stdout
    assert re.findall(r"^(.*?) +(\d+)$", table, re.MULTILINE) == [
        ("ready", "0"),
        ("delayed", "3"),
        ("in flight", "0"),
        ("dead", "0"),
    ]


def test_many_lines_go_in_batches() -> None:
    sent = invoke("queue", "send", "-", "--queue", URL, input="\n".join(map(str, range(2500))))
    assert sent.stdout == "2500 sent\n"
    assert json.loads(invoke("queue", "depth", "--json", "--queue", URL).stdout)["ready"] == 2500


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (("send", "nonsense", "--queue", URL), "message 1 must be JSON, not 'nonsense'"),
        (("send", "1", "-a", "priority=urgent", "--queue", URL), "'low', not 'urgent'"),
        (("send", "1", "--queue", "tasks.db"), "not 'tasks.db'"),
        (("depth", "--queue", "sqlite:///x?lease=1"), "not 'lease'"),
    ],
)
def test_bad_input_is_told_in_a_line(arguments: tuple[str, ...], reason: str) -> None:
    ran = invoke("queue", *arguments)
    assert ran.exit_code == 2
    assert ran.stderr.startswith("atm: ") and reason in ran.stderr


@pytest.mark.parametrize(
    "arguments",
    [
        ("send", "1"),
        ("send", "1", "-a", "priority", "--queue", URL),
        ("dead-letters", "--id", "x", "--queue", URL),
        ("dead-letters", "--limit", "0", "--queue", URL),
    ],
)
def test_bad_usage(arguments: tuple[str, ...]) -> None:
    ran = invoke("queue", *arguments)
    assert ran.exit_code == 2 and "Error" in ran.stderr


def test_a_queue_that_fails_is_told(folder: Path) -> None:
    (folder / "tasks.db").write_bytes(b"this is no database, but it is long enough" * 100)
    ran = invoke("queue", "depth", "--queue", URL)
    assert ran.exit_code == 1
    assert "atm: tasks.db is damaged (file is not a database)" in ran.stderr
    assert ".recover" in ran.stderr


def test_dead_letters_are_shown_and_sent_again() -> None:
    invoke("queue", "send", '"bad"', "-a", "x=y", "--queue", URL + "?max_receives=1")
    ran = atm(
        "worker", "app_of_this_test:handler", "--queue", URL + "?max_receives=1", "--until-empty"
    )
    assert ran.returncode == 0, ran.stderr
    assert "1 failed and given back" in ran.stdout
    shown = invoke("queue", "dead-letters", "--queue", URL)
    assert "\x1b" not in shown.stdout
    (letter,) = map(json.loads, shown.stdout.splitlines())
    assert letter["reason"] == "ValueError: it is bad\\n\\x1b[31m"
    assert (letter["body"], letter["attributes"]) == ('"bad"', {"x": "y"})
    assert re.fullmatch(r"20\d\d-\d\d-\d\dT[\d:]+\+00:00", letter["died_at"])
    none = invoke("queue", "dead-letters", "--redrive", "--id", "unknown", "--queue", URL)
    assert none.stdout == "0 sent again\n"
    again = invoke("queue", "dead-letters", "--redrive", "--id", letter["id"], "--queue", URL)
    assert again.stdout == "1 sent again\n"
    assert json.loads(invoke("queue", "depth", "--json", "--queue", URL).stdout)["ready"] == 1


# ---- atm worker ---------------------------------------------------------------------------------


def test_a_handler_by_its_name() -> None:
    invoke("queue", "send", *map(str, range(9)), "--queue", URL)
    invoke("queue", "send", '"urgent"', "-a", "priority=high", "--queue", URL)
    ran = atm(
        "worker", "app_of_this_test:handler", "--until-empty", QUEUE_URL=URL, MAX_CONCURRENT="1"
    )
    assert ran.returncode == 0, ran.stderr
    lines = ran.stdout.splitlines()
    assert lines[0] == "working on SqliteQueue('tasks.db'); Ctrl-C or SIGTERM finishes what runs"
    assert lines[1:11] == ["got urgent 1", *(f"got {n} 1" for n in range(9))]
    assert lines[11].startswith("10 acknowledged, 0 failed")


@pytest.mark.parametrize("name", ["plain", "Holder.batch"])
def test_handlers_of_other_kinds(name: str) -> None:
    invoke("queue", "send", *map(str, range(10)), "--queue", URL)
    ran = atm(
        "worker", f"app_of_this_test:{name}", "--queue", URL, "--until-empty", MAX_THREADS="2"
    )
    assert ran.returncode == 0, ran.stderr
    assert ran.stdout.count("plain" if name == "plain" else "many [") in (2, 10)
    assert "10 acknowledged" in ran.stdout


def test_a_worker_brings_its_own_and_options_change_it(folder: Path) -> None:
    invoke("queue", "send", "1", "--queue", "sqlite:///other.db")
    arguments = ["worker", "app_of_this_test:worker", "--until-empty"]
    assert "got 1 1" in atm(*arguments).stdout
    invoke("queue", "send", "2", "--queue", URL)
    ran = atm(*arguments, "--queue", URL, "--max-concurrent", "1", "--grace", "5")
    assert "got 2 1" in ran.stdout


@pytest.mark.parametrize(
    ("target", "reason"),
    [
        ("app_of_this_test", "say where it is as module:name, not 'app_of_this_test'"),
        ("surely_missing:x", "there is no module 'surely_missing' in "),
        ("broken:x", "No module named 'surely_missing'"),
        ("app_of_this_test:absent", "there is no 'absent' in "),
        ("app_of_this_test:nothing", "app_of_this_test:nothing is 5: no handler, BulkStrategy"),
    ],
)
def test_what_is_no_handler(target: str, reason: str) -> None:
    ran = atm("worker", target, "--queue", URL)
    assert ran.returncode == 2
    assert ran.stderr.startswith("atm: ") and reason in ran.stderr


@pytest.mark.parametrize("arguments", [("--max-concurrent", "0"), ("--max-threads", "x")])
def test_bad_options(arguments: tuple[str, ...]) -> None:
    ran = invoke("worker", "app_of_this_test:handler", "--queue", URL, *arguments)
    assert ran.exit_code == 2 and "Error" in ran.stderr


def test_bad_variables_are_named() -> None:
    ran = invoke("worker", "app_of_this_test:handler", env={"MAX_CONCURRENT": "many"})
    assert ran.exit_code == 2 and "MAX_CONCURRENT" in ran.stderr
    without = atm("worker", "app_of_this_test:handler")
    assert (without.returncode, without.stderr) == (
        2, "atm: a handler needs a queue: --queue URL, or QUEUE_URL\n"
    )  # fmt: skip


def test_a_damaged_file_ends_it(folder: Path) -> None:
    (folder / "tasks.db").write_bytes(b"this is no database, but it is long enough" * 100)
    ran = atm("worker", "app_of_this_test:handler", "--queue", URL)
    assert ran.returncode == 1
    assert "atm: tasks.db is damaged" in ran.stderr


@contextmanager
def started(*arguments: str, seen: str) -> Iterator[subprocess.Popen[str]]:
    """A worker that has printed such a line."""
    process = subprocess.Popen(
        [ATM, "worker", *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        assert process.stdout is not None
        for line in process.stdout:
            if line.startswith(seen):
                break
        yield process
    finally:
        process.kill()
        process.communicate()


def depth() -> dict[str, int]:
    ran = invoke("queue", "depth", "--json", "--queue", URL)
    return json.loads(ran.stdout)  # type: ignore[no-any-return]


@pytest.mark.parametrize("name", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_gives_back_what_has_not_begun(name: signal.Signals) -> None:
    invoke("queue", "send", '"slow"', *map(str, range(20)), "--queue", URL)
    arguments = ("app_of_this_test:handler", "--queue", URL, "--max-concurrent", "1")
    with started(*arguments, seen="got slow 1") as process:
        process.send_signal(name)
        give_up = time.monotonic() + 20
        while depth() != {"ready": 20, "delayed": 0, "in_flight": 1, "dead": 0}:
            assert time.monotonic() < give_up
        assert process.poll() is None  # what runs has its time
        process.send_signal(name)
        stdout, _ = process.communicate(timeout=20)
    assert process.returncode == 0
    assert depth() == {"ready": 21, "delayed": 0, "in_flight": 0, "dead": 0}
    assert "1 failed and given back" in stdout


def test_a_thread_that_does_not_end_is_left_behind() -> None:
    invoke("queue", "send", '"slow"', "--queue", URL)
    arguments = ("app_of_this_test:plain", "--queue", URL, "--grace", "0.1")
    with started(*arguments, seen="plain slow") as process:
        process.terminate()
        _, stderr = process.communicate(timeout=20)
    assert process.returncode == 1
    assert "1 handlers are left behind in their threads" in stderr
    assert depth()["in_flight"] == 1  # until its lease runs out


def test_a_worker_on_sqs(sqs: SqsServer) -> None:
    """AWS's own variables say where."""
    name = sqs.make()
    for body in ("1", '"bad"'):
        assert invoke("queue", "send", body, "--queue", f"sqs://{name}").exit_code == 0
    ran = atm(
        "worker",
        "app_of_this_test:handler",
        "--queue",
        f"sqs://{name}?max_receives=1",
        "--until-empty",
        AWS_ENDPOINT_URL_SQS=sqs.url,
        **ENVIRONMENT,
    )
    assert ran.returncode == 0, ran.stderr
    assert "1 acknowledged, 1 failed and given back" in ran.stdout
    (letter,) = invoke("queue", "dead-letters", "--queue", f"sqs://{name}").stdout.splitlines()
    assert json.loads(letter)["reason"].startswith("ValueError: it is bad")
