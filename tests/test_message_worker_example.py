"""examples/message_worker: a producer, a worker with batches, a poison message."""

from __future__ import annotations

import json
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

EXAMPLE = Path(__file__).parents[1] / "examples" / "message_worker"
ATM = str(Path(sys.executable).with_name("atm"))


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def run(*command: str) -> str:
    return subprocess.run(command, capture_output=True, text=True, timeout=120, check=True).stdout


def depth() -> dict[str, int]:
    counts = run(ATM, "queue", "depth", "--json", "--queue", "sqlite:///orders.db")
    return json.loads(counts)  # type: ignore[no-any-return]


def test_every_order_is_imported_but_the_poison() -> None:
    sent = run(sys.executable, str(EXAMPLE / "producer.py"), "300")
    assert sent == "301 orders sent; the queue holds 301\n"
    imported = run(sys.executable, str(EXAMPLE / "orders.py"))
    told = re.fullmatch(r"300 imported, (\d+) came again, 1 given up\n", imported)
    assert told is not None
    letters = run(ATM, "queue", "dead-letters", "--queue", "sqlite:///orders.db")
    letter = json.loads(letters)
    assert letter["reason"] == "NonRetryable: order poison: an amount must be a number"
    assert depth() == {"ready": 0, "delayed": 0, "in_flight": 0, "dead": 1}


def test_killed_in_between_it_goes_on(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run(sys.executable, str(EXAMPLE / "producer.py"), "2000")
    monkeypatch.chdir(EXAMPLE)
    url = f"sqlite:///{folder}/orders.db?visibility_timeout=0.5"
    command = [ATM, "worker", "orders:worker", "--queue", url, "--until-empty"]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    monkeypatch.chdir(folder)
    give_up = time.monotonic() + 60
    while depth()["ready"] > 1500:
        assert process.poll() is None and time.monotonic() < give_up
    process.send_signal(signal.SIGKILL)
    process.wait()
    left = depth()
    assert left["ready"] + left["delayed"] + left["in_flight"] > 0
    monkeypatch.chdir(EXAMPLE)
    run(*command)
    monkeypatch.chdir(folder)
    assert depth() == {"ready": 0, "delayed": 0, "in_flight": 0, "dead": 1}
