"""`atm simulate`, as a person runs it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

from async_task_manager.cli.app import app

ATM = str(Path(sys.executable).with_name("atm"))
PROVIDER = Path(__file__).parents[1] / "examples" / "fake_provider.py"

FLOW = """
[[providers]]
name = "groq"
base_url = "https://api.groq.com/openai/v1"
headers = { Authorization = "Bearer ${A_KEY_THAT_NOBODY_HAS}" }
limits = ["30/minute"]
max_concurrent = 4

[[providers]]
name = "spare"
base_url = "http://127.0.0.1:8000/v1"
enabled = false
max_concurrent = 2

[[chain]]
strategy = "priority_queue"
"""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "flow.toml").write_text(FLOW)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def atm(*arguments: str) -> str:
    result = CliRunner().invoke(app, ["simulate", "flow.toml", *arguments])
    assert result.exit_code == 0, result.output
    return result.stdout


def refused(*arguments: str) -> str:
    result = CliRunner().invoke(app, ["simulate", "flow.toml", *arguments])
    assert result.exit_code == 2, result.output
    return " ".join(result.stderr.split())


def test_how_long_the_evening_will_take(folder: Path) -> None:
    text = atm("--requests", "10000", "--duration", "2")
    assert text.startswith("10,000 tasks\ntakes")
    assert "5 h 33 min" in text  # 30 in 60.05 s
    assert "groq: at most 30 tasks in any 60 s" in text


def test_before_and_after_side_by_side(folder: Path) -> None:
    text = atm(
        *("-n", "200", "--duration", "30"), *("--what-if", "providers.groq.max_concurrent=8")
    )
    rows = text.splitlines()
    assert rows[0].split() == ["before", "after"]
    assert rows[1].endswith(" 12 min 30 s")
    assert "25 min" in rows[1]
    both = json.loads(
        atm(
            "-n",
            "20",
            "--json",
            *("--what-if", "providers.spare.enabled=true"),
            *("--what-if", "providers.groq.limits.0=60/minute"),
            *("--what-if", "chain.0.aging=60"),
        )
    )
    assert set(both["after"]["providers"]) == {"groq", "spare"}
    assert both["after"]["makespan"] < both["before"]["makespan"]
    assert set(both["before"]["providers"]) == {"groq"}


def test_a_workload_over_time_with_users_and_priorities(folder: Path) -> None:
    options = ["-n", "300", "--rate", "40/minute", "--burst", "5", "--users", "3"]
    options += ["--duration", "exp(3)", "--priorities", "high=1, normal=8", "--failures", "0.1"]
    text = atm(*options, "--seed", "4", "--start", "2026-01-01 12:00:00")
    assert "  high (" in text and "fairness (Jain)" in text and "attempts" in text
    assert text == atm(*options, "--seed", "4", "--start", "2026-01-01 12:00:00")
    data = json.loads(atm(*options, "--json", "--start", "2026-01-01T12:00:00"))
    assert data["tasks"] == 300


def test_it_draws(folder: Path) -> None:
    atm("-n", "50", "--picture", "run.svg")
    assert (folder / "run.svg").read_text().startswith("<svg")
    atm("-n", "50", "-p", "run.png", "--what-if", "providers.groq.max_concurrent=8")
    assert (folder / "run.png").read_bytes().startswith(b"\x89PNG")
    assert "saved as .svg, .png or .json" in refused("-n", "5", "-p", "run.pdf")


@pytest.mark.parametrize("number", ["0", "-5"])
def test_a_number_that_is_none_is_not_taken_for_a_file(folder: Path, number: str) -> None:
    assert f"a number of at least 1, or a file, not '{number}'" in refused("-n", number)


@pytest.mark.parametrize("unbuffered", ["", "1"])
def test_whoever_reads_may_have_enough(folder: Path, unbuffered: str) -> None:
    reader, writer = os.pipe()
    os.close(reader)
    with open(writer, "wb") as out:
        done = subprocess.run(
            [sys.executable, "-m", "async_task_manager.cli", "simulate", "flow.toml", "-n", "5"],
            stdout=out,
            stderr=subprocess.PIPE,
            env={**os.environ, "PYTHONUNBUFFERED": unbuffered},
            timeout=30,
            check=False,
        )
    assert (done.returncode, done.stderr) == (0, b"")


def test_files_of_requests_and_traces(folder: Path) -> None:
    (folder / "requests.jsonl").write_text('{"id": 1, "path": "/x"}\n{"id": 2, "duration": 9}\n')
    assert "succeeded 2 " in " ".join(atm("-n", "requests.jsonl").split())
    (folder / "trace.csv").write_text(
        "TIMESTAMP,ContextTokens,GeneratedTokens\n2026-01-01 00:00:00.1,10,5\n"
    )
    assert atm("--trace", "trace.csv").startswith("1 tasks")
    assert "nowhere.jsonl" in refused("-n", "nowhere.jsonl")
    assert "there is no column" in refused("--trace", "requests.jsonl")


def test_costs_come_from_the_option_or_the_config(folder: Path) -> None:
    flow = FLOW.replace('"30/minute"', '"600 tokens/minute"')
    (folder / "flow.toml").write_text(flow)
    assert "limits tokens: say how many a request takes, such as --cost 900" in refused("-n", "5")
    assert "3 min" in atm("-n", "15", "--cost", "150")
    priced = flow.replace("max_concurrent = 4", 'max_concurrent = 4\ncost = "150"')
    (folder / "flow.toml").write_text(priced)
    assert "3 min" in atm("-n", "15")
    third = '[[providers]]\nname = "third"\nbase_url = "http://x/v1"\nlimits = ["9 tokens/s"]\n'
    (folder / "flow.toml").write_text(third + 'cost = "7"\n' + third.replace("third", "last"))
    assert "sent to last" in atm("-n", "15")  # what the first says of tokens, holds for the second
    by_field = flow.replace(
        "max_concurrent = 4", 'max_concurrent = 4\ncost = "chars/4 + max_tokens"'
    )
    (folder / "flow.toml").write_text(by_field)
    (folder / "in.jsonl").write_text('{"path": "/x", "json": {"max_tokens": 591}}\n' * 3)
    assert "2 min" in atm("-n", "in.jsonl")
    (folder / "in.jsonl").write_text('{"path": "/x", "body": "abcd"}\n')
    assert "rejected" in atm("-n", "in.jsonl")  # no max_tokens, so that nobody knows


def test_a_recorded_run_again(folder: Path) -> None:
    lines = [
        {
            "id": i,
            "duration": 1.0,
            "started_at": f"2026-01-01T00:00:0{i // 4}.000+00:00",
            "created_at": "2026-01-01T00:00:00.000+00:00",
        }
        for i in range(8)
    ]
    (folder / "out.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    text = atm("--replay", "out.jsonl")
    assert text.endswith("recorded: 2 s, 0.0% off; order of the starts: the same\n")
    (folder / "in.jsonl").write_text("".join(f'{{"id": {i}, "path": "/x"}}\n' for i in range(8)))
    assert "the same" in atm("--replay", "out.jsonl", "-n", "in.jsonl")
    other = FLOW.replace("max_concurrent = 4", "max_concurrent = 1")
    (folder / "flow.toml").write_text(other)
    assert "recorded: 2 s, 300.0% off" in atm("--replay", "out.jsonl")
    (folder / "out.jsonl").write_text("")
    assert "recorded: 0 s, 0.0% off" in atm("--replay", "out.jsonl")


def test_a_real_run_again(folder: Path) -> None:
    """Through HTTP: the limits decide, and a few milliseconds of the machine."""
    provider = subprocess.Popen(
        [sys.executable, str(PROVIDER), "--latency", "0.02-0.2", "--headers", "none"],
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        assert provider.stdout is not None
        url = provider.stdout.readline().split()[-1]
        (folder / "flow.toml").write_text(
            f'[[providers]]\nname = "fake"\nbase_url = "{url}"\n'
            'limits = ["20/second"]\nmax_concurrent = 4\n'
        )
        urgent = ("high", "normal", "low")
        lines = [{"id": i, "path": "/x", "priority": urgent[i % 3]} for i in range(80)]
        (folder / "in.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
        run = ["run", "in.jsonl", "--config", "flow.toml", "--output", "out.jsonl"]
        ran = subprocess.run([ATM, *run], cwd=folder, capture_output=True, timeout=60, check=False)
        assert ran.returncode == 0, ran.stderr
    finally:
        provider.terminate()
        provider.communicate(timeout=30)
    text = atm("--replay", "out.jsonl", "-n", "in.jsonl")
    off = float(text.rsplit("% off", 1)[0].split()[-1])
    assert off < 5, text  # 2 where nothing else runs
    assert text.endswith("order of the starts: the same\n")


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ("providers.grok.max_concurrent=8", "there is no 'grok'; did you mean 'groq'?"),
        ("providers.groq.max_concurent=8", "there is no such key; did you mean 'max_concurrent'?"),
        ("providers.groq.max_concurrent=0", "max_concurrent: must be"),
        ("provider.groq.max_concurrent=8", "there is no 'provider'; did you mean 'providers'?"),
        ("providers.groq.limits.7=60/minute", "there is no item '7' of 1"),
        ("providers.groq.name.x=1", "there is nothing to set in 'groq'"),
        ("providers.groq.name.x.y=1", "there is no 'x'"),
        ("max_concurrent", "--what-if takes key=value, such as"),
    ],
)
def test_a_change_that_cannot_be_made(change: str, words: str, folder: Path) -> None:
    assert words in refused("--what-if", change)


def test_bad_usage(folder: Path) -> None:
    assert "shares are such as high=1" in refused("--priorities", "high")
    assert "duration must be a number" in refused("--duration", "soon")
    assert "rate" in refused("--rate", "never")
    (folder / "flow.toml").write_text("providers = 3")
    assert "flow.toml: providers: must be a list" in refused()
    (folder / "flow.toml").write_text("providers = [3]")
    assert "flow.toml: providers[0]: must be a table" in refused()
    (folder / "flow.toml").write_text("= 3")
    assert "flow.toml: not valid TOML" in refused()
    (folder / "flow.toml").unlink()
    assert "flow.toml: No such file" in refused()
