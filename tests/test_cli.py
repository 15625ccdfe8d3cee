"""The `atm` command, as a person runs it."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

ATM = str(Path(sys.executable).with_name("atm"))
PROVIDER = Path(__file__).parents[1] / "examples" / "fake_provider.py"


def atm(*arguments: str, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [ATM, *arguments], cwd=cwd, capture_output=True, text=True, timeout=60, check=False
    )


@pytest.fixture
def provider() -> Iterator[str]:
    process = subprocess.Popen(
        [sys.executable, str(PROVIDER), "--latency", "0.05"], stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    yield process.stdout.readline().split()[-1]
    process.terminate()
    process.wait()
    process.stdout.close()


@pytest.fixture
def folder(tmp_path: Path, provider: str) -> Path:
    (tmp_path / "flow.toml").write_text(
        f'[[providers]]\nname = "p"\nbase_url = "{provider}"\nmax_concurrent = 3\n'
        'limits = ["1000/second"]\n'
    )
    lines = [json.dumps({"id": i, "path": "/", "priority": "high"}) for i in range(12)]
    (tmp_path / "in.jsonl").write_text("\n".join(lines) + "\n")
    return tmp_path


ARGUMENTS = ("run", "in.jsonl", "--config", "flow.toml", "--output", "out.jsonl")


def test_version() -> None:
    ran = atm("--version")
    assert (ran.returncode, ran.stdout) == (0, "atm 0.1.0\n")


def test_help_teaches() -> None:
    assert "Commands" in atm("--help").stdout
    help_text = atm("run", "--help").stdout
    assert "atm run requests.jsonl --config flow.toml --output results.jsonl" in help_text
    assert "Exit codes" in help_text


def test_a_run(folder: Path) -> None:
    ran = atm(*ARGUMENTS, cwd=folder)
    assert ran.returncode == 0, ran.stderr
    assert "429s: 0" in ran.stdout
    assert "12 requests in" in ran.stdout
    assert "1000/second" in ran.stdout
    results = [json.loads(line) for line in (folder / "out.jsonl").read_text().splitlines()]
    assert sorted(int(result["id"]) for result in results) == list(range(12))


def test_an_output_is_not_overwritten_by_accident(folder: Path) -> None:
    (folder / "out.jsonl").write_text("precious\n")
    ran = atm(*ARGUMENTS, cwd=folder)
    assert ran.returncode == 2
    assert "--force" in ran.stderr
    assert (folder / "out.jsonl").read_text() == "precious\n"
    assert atm(*ARGUMENTS, "--force", cwd=folder).returncode == 0


def test_failures_show_in_the_exit_code(folder: Path) -> None:
    with (folder / "in.jsonl").open("a") as file:
        file.write("nonsense\n")
    ran = atm(*ARGUMENTS, cwd=folder)
    assert ran.returncode == 1
    assert "1 invalid" in ran.stdout


def test_a_bad_config_is_told_before_anything_is_sent(folder: Path) -> None:
    (folder / "flow.toml").write_text('[[providers]]\nname = "p"\nbase_ulr = "http://x"\n')
    ran = atm(*ARGUMENTS, cwd=folder)
    assert ran.returncode == 2
    assert "did you mean 'base_url'" in ran.stderr
    assert not (folder / "out.jsonl").exists()


def test_a_missing_input(folder: Path) -> None:
    (folder / "in.jsonl").unlink()
    ran = atm(*ARGUMENTS, cwd=folder)
    assert ran.returncode == 2
    assert "in.jsonl" in ran.stderr
    assert not (folder / "out.jsonl").exists()


def test_ctrl_c_finishes_what_runs_and_keeps_the_results(folder: Path) -> None:
    lines = [json.dumps({"id": i, "path": "/"}) for i in range(500)]
    (folder / "in.jsonl").write_text("\n".join(lines) + "\n")
    process = subprocess.Popen(
        [ATM, *ARGUMENTS], cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    out = folder / "out.jsonl"
    give_up = time.monotonic() + 30
    while not (out.exists() and out.read_text().count("\n") > 3):
        assert time.monotonic() < give_up
        time.sleep(0.01)
    process.send_signal(signal.SIGINT)
    stdout, stderr = process.communicate(timeout=30)
    assert process.returncode == 130, stderr
    assert "were not sent" in stdout
    assert "Traceback" not in stderr
    assert all(json.loads(line)["status"] == "succeeded" for line in out.read_text().splitlines())
