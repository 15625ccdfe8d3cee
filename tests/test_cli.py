"""The `atm` command, as a person runs it."""

from __future__ import annotations

import json
import os
import pty
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from async_task_manager.cli.app import app

ATM = str(Path(sys.executable).with_name("atm"))
PROVIDER = Path(__file__).parents[1] / "examples" / "fake_provider.py"
PLAIN = {**os.environ, "COLUMNS": "80", "NO_COLOR": "1"}
ARGUMENTS = ("run", "in.jsonl", "--config", "flow.toml", "--output", "out.jsonl")


def python(*arguments: str, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, *arguments]
    return subprocess.run(
        command, cwd=cwd, env=PLAIN, capture_output=True, text=True, timeout=60, check=False
    )


def atm(*arguments: str, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
    return python(ATM, *arguments, cwd=cwd)


def written(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "out.jsonl").read_text().splitlines()]


@contextmanager
def serving(latency: float) -> Iterator[str]:
    process = subprocess.Popen(
        [sys.executable, str(PROVIDER), "--latency", str(latency)],
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        assert process.stdout is not None
        yield process.stdout.readline().split()[-1]
    finally:
        process.terminate()
        process.communicate(timeout=30)


@pytest.fixture(scope="module")
def provider() -> Iterator[str]:
    with serving(0.05) as url:
        yield url


@pytest.fixture
def folder(tmp_path: Path, provider: str) -> Path:
    (tmp_path / "flow.toml").write_text(
        f'[[providers]]\nname = "p"\nbase_url = "{provider}"\nmax_concurrent = 3\n'
        'limits = ["1000/second"]\n'
    )
    fill(tmp_path, 12)
    return tmp_path


def fill(folder: Path, requests: int) -> None:
    lines = [json.dumps({"id": i, "path": "/", "provider": "p"}) for i in range(requests)]
    (folder / "in.jsonl").write_text("\n".join(lines) + "\n")


# ---- usage --------------------------------------------------------------------------------------


def test_version() -> None:
    ran = atm("--version")
    assert (ran.returncode, ran.stdout) == (0, "atm 0.1.0\n")
    again = CliRunner().invoke(app, ["--version", "run"])
    assert (again.exit_code, again.stdout) == (0, "atm 0.1.0\n")
    assert python("-m", "async_task_manager.cli", "--version").stdout == "atm 0.1.0\n"


def test_the_version_needs_none_of_the_libraries() -> None:
    ran = python(
        "-c",
        "import sys; from async_task_manager.cli import main; sys.argv = ['atm', '--version'];"
        "main(); print(sorted({'typer', 'rich', 'pydantic', 'httpx'} & set(sys.modules)))",
    )
    assert ran.stdout == "atm 0.1.0\n[]\n"


@pytest.mark.parametrize("missing", ["typer", "httpx"])  # typer itself needs rich and pydantic
def test_a_missing_extra_is_told_in_one_line(missing: str, folder: Path) -> None:
    ran = python(
        "-c",
        f"import sys; sys.modules[{missing!r}] = None; sys.argv = ['atm', *{ARGUMENTS!r}];"
        "from async_task_manager.cli import main; main()",
        cwd=folder,
    )
    assert ran.returncode == 2
    assert ran.stderr == f"atm: {missing} is missing: pip install 'async-task-manager[cli]'\n"


def test_help_teaches() -> None:
    assert "Commands" in atm("--help").stdout
    help_text = atm("run", "--help").stdout
    assert "atm run requests.jsonl --config flow.toml --output results.jsonl" in help_text
    assert "Exit codes: 0 every request succeeded" in help_text


@pytest.mark.parametrize("arguments", [["run"], ["rn"], [*ARGUMENTS, "--look-ahead", "0"]])
def test_bad_usage(arguments: list[str], folder: Path) -> None:
    ran = atm(*arguments, cwd=folder)
    assert (ran.returncode, ran.stdout) == (2, "")
    assert "Error" in ran.stderr
    assert not (folder / "out.jsonl").exists()


# ---- a config -----------------------------------------------------------------------------------


def test_init_and_check(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ran = atm("init", cwd=tmp_path)
    assert (ran.returncode, ran.stderr) == (0, "")
    assert (
        ran.stdout == "wrote flow.toml: change it to what limits you, then: atm check flow.toml\n"
    )
    assert "# What limits your requests" in (tmp_path / "flow.toml").read_text()
    again = atm("init", "flow.toml", cwd=tmp_path)
    assert again.returncode == 2
    assert again.stderr == "atm: flow.toml exists already; --force overwrites it\n"
    assert atm("init", "--force", cwd=tmp_path).returncode == 0
    nowhere = atm("init", "none/flow.toml", cwd=tmp_path)
    assert (nowhere.returncode, nowhere.stderr) == (
        2,
        "atm: none/flow.toml: No such file or directory\n",
    )
    keyless = atm("check", "flow.toml", cwd=tmp_path)
    assert keyless.returncode == 2
    assert "the environment variable GROQ_API_KEY is not set" in keyless.stderr
    monkeypatch.setitem(PLAIN, "GROQ_API_KEY", "gsk-very-secret")
    sound = atm("check", "flow.toml", cwd=tmp_path)
    assert (sound.returncode, sound.stderr) == (0, "")
    assert sound.stdout.startswith("flow.toml is sound: 2 providers.\n")
    assert "14400/day@America/Los_Angeles is what binds" in sound.stdout
    assert "very-secret" not in sound.stdout


def test_a_config_that_is_not_sound(folder: Path) -> None:
    (folder / "flow.toml").write_text('[[providers]]\nname = ""\nbase_ulr = "http://x"\n')
    ran = atm("check", "flow.toml", cwd=folder)
    assert (ran.returncode, ran.stdout) == (2, "")
    assert len(ran.stderr.splitlines()) == 3
    assert "did you mean 'base_url'" in ran.stderr


@pytest.mark.parametrize("command", ["run", "init", "check", "shell", "wizard"])
def test_every_help_teaches_with_an_example(command: str) -> None:
    assert f"Example: atm {command}" in atm(command, "--help").stdout


# ---- a run --------------------------------------------------------------------------------------


def test_a_run(folder: Path) -> None:
    ran = atm(*ARGUMENTS, cwd=folder)
    assert (ran.returncode, ran.stderr) == (0, "")
    assert re.search(r"12 requests in \d+\.\d s: 12 succeeded", ran.stdout)
    assert re.search(r"│ p +│ +12 │ +12 │ +0 │ +0 │", ran.stdout)
    assert re.search(r"│ p +│ 1000/second │ +\d+% │", ran.stdout)
    assert re.search(r"│ p +│ 3 at once +│ +100% │", ran.stdout)
    assert ran.stdout.splitlines()[-1] == "429s: 0"
    assert max(map(len, ran.stdout.splitlines())) <= 80
    assert sorted(line["id"] for line in written(folder)) == list(range(12))


def test_something_else_is_not_overwritten_by_accident(folder: Path) -> None:
    (folder / "out.jsonl").write_text("precious\n")
    ran = atm(*ARGUMENTS, cwd=folder)
    assert (ran.returncode, ran.stdout) == (2, "")
    assert ran.stderr == (
        "atm: out.jsonl: line 1 is no result in the format jsonl; --force overwrites the file\n"
    )
    assert (folder / "out.jsonl").read_text() == "precious\n"
    assert atm(*ARGUMENTS, "--force", cwd=folder).returncode == 0
    assert len(written(folder)) == 12


def test_the_same_again_sends_nothing(folder: Path) -> None:
    with (folder / "in.jsonl").open("a") as file:
        file.write("nonsense\n")
    assert atm(*ARGUMENTS, cwd=folder).returncode == 1
    before = written(folder)
    again = atm(*ARGUMENTS, cwd=folder)
    assert again.returncode == 1, "a line is still no request"
    assert again.stdout.startswith("resuming out.jsonl: what is finished is not sent again\n")
    assert "1 requests in" in again.stdout and "12 were finished before" in again.stdout
    assert written(folder) == before
    whole = atm(*ARGUMENTS, "--retry-failed", "--force", cwd=folder)
    assert "resuming" not in whole.stdout
    assert len(written(folder)) == 13


@pytest.mark.parametrize("name", ["in.jsonl", "flow.toml"])
def test_an_input_is_never_overwritten(name: str, folder: Path) -> None:
    before = (folder / name).read_text()
    (folder / "out.jsonl").symlink_to(name)
    ran = atm(*ARGUMENTS, "--force", cwd=folder)
    assert ran.returncode == 2
    assert "out.jsonl is an input" in ran.stderr
    assert (folder / name).read_text() == before


def test_failures_show_in_the_exit_code(folder: Path) -> None:
    with (folder / "in.jsonl").open("a") as file:
        file.write("nonsense\n" * 7)
    ran = atm(*ARGUMENTS, cwd=folder)
    assert ran.returncode == 1
    assert "12 succeeded, 7 invalid" in ran.stdout
    told = ran.stderr.splitlines()
    assert [line.split(":")[1] for line in told[:5]] == [f" line {n}" for n in range(13, 18)]
    assert told[5:] == ["atm: and 2 more lines are no requests"]


def test_a_bad_config_is_told_before_anything_is_sent(folder: Path) -> None:
    (folder / "flow.toml").write_text('[[providers]]\nname = ""\nbase_ulr = "http://x"\n')
    ran = atm(*ARGUMENTS, cwd=folder)
    assert ran.returncode == 2
    assert "did you mean 'base_url'" in ran.stderr
    assert len(ran.stderr.splitlines()) == 3
    assert all(line.startswith("atm: flow.toml: ") for line in ran.stderr.splitlines())
    assert not (folder / "out.jsonl").exists()


def test_a_missing_input(folder: Path) -> None:
    (folder / "in.jsonl").unlink()
    ran = atm(*ARGUMENTS, cwd=folder)
    assert ran.returncode == 2
    assert ran.stderr == "atm: in.jsonl: No such file or directory\n"
    assert not (folder / "out.jsonl").exists()


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_a_full_disk_is_told(folder: Path) -> None:
    ran = atm(*ARGUMENTS[:-1], "/dev/full", "--force", cwd=folder)
    assert (ran.returncode, ran.stderr) == (1, "atm: No space left on device\n")


def test_requests_through_a_pipe(folder: Path) -> None:
    process = subprocess.Popen(
        [sys.executable, ATM, "run", "-", *ARGUMENTS[2:]],
        cwd=folder,
        env=PLAIN,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdin is not None
    try:
        process.stdin.write('{"id": "a", "path": "/"}\n')
        process.stdin.flush()
        give_up = time.monotonic() + 30
        while not ((folder / "out.jsonl").exists() and written(folder)):
            assert process.poll() is None and time.monotonic() < give_up
            time.sleep(0.01)  # it is sent before the next is there
        stdout, _ = process.communicate('{"id": "b", "path": "/"}\n', timeout=30)
    finally:
        process.kill()
    assert process.returncode == 0
    assert "2 requests in" in stdout
    assert [line["id"] for line in written(folder)] == ["a", "b"]


def test_ctrl_c_ends_the_wait_for_a_pipe(folder: Path) -> None:
    process = subprocess.Popen(
        [sys.executable, ATM, "run", "-", *ARGUMENTS[2:]],
        cwd=folder,
        env=PLAIN,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdin is not None
    try:
        process.stdin.write('{"id": "a", "path": "/"}\n')
        process.stdin.flush()
        give_up = time.monotonic() + 30
        while not ((folder / "out.jsonl").exists() and written(folder)):
            assert process.poll() is None and time.monotonic() < give_up
            time.sleep(0.01)
        process.send_signal(signal.SIGINT)
        assert process.wait(timeout=30) == 130
    finally:
        process.kill()
        process.communicate()


def test_csv_in_and_openai_s_format_out(folder: Path) -> None:
    (folder / "in.csv").write_text(
        'id,path,json.prompt,json.max_tokens:number\na,/v1/c,"two\nlines",7\nb,/v1/c,x,8\n'
    )
    ran = atm("run", "in.csv", *ARGUMENTS[2:], "--format", "openai-batch", cwd=folder)
    assert (ran.returncode, ran.stderr) == (0, "")
    by_id = {line["custom_id"]: line for line in written(folder)}
    assert by_id["a"]["response"]["body"]["echo"] == "two\nlines"
    assert by_id["b"]["response"]["body"]["usage"] == {"total_tokens": 8}
    assert by_id["a"]["error"] is None and by_id["a"]["response"]["status_code"] == 200


def test_a_column_that_is_no_field_stops_before_anything_is_sent(folder: Path) -> None:
    (folder / "in.csv").write_text("id,paht\na,/\n")
    ran = atm("run", "in.csv", *ARGUMENTS[2:], cwd=folder)
    assert ran.returncode == 2
    assert ran.stderr.startswith("atm: the CSV has a column 'paht', and there is no such field;")


def test_strict_stops_at_a_malformed_line(folder: Path) -> None:
    with (folder / "in.jsonl").open("a") as file:
        file.write("nonsense\n" + '{"path": "/"}\n' * 10)
    ran = atm(*ARGUMENTS, "--strict", "--look-ahead", "3", cwd=folder)
    assert ran.returncode == 1
    assert ran.stderr.startswith("atm: line 13: not valid JSON")
    assert ran.stderr.endswith("\natm: stopped there, as --strict says\n")


def test_a_report_and_a_picture(folder: Path) -> None:
    ran = atm(*ARGUMENTS, "--report", "report.html", "--plot", "plot.svg", cwd=folder)
    assert (ran.returncode, ran.stderr) == (0, "")
    page = (folder / "report.html").read_text()
    assert page.startswith("<!doctype html>") and "in.jsonl through flow.toml" in page
    assert (folder / "plot.svg").read_text().startswith("<svg")


def test_a_png_says_what_it_needs(folder: Path) -> None:
    hidden = python(
        "-c",
        "import sys; sys.modules['matplotlib'] = None;"
        f"sys.argv = ['atm', *{ARGUMENTS!r}, '--plot', 'plot.png'];"
        "from async_task_manager.cli import main; main()",
        cwd=folder,
    )
    assert hidden.returncode == 2
    assert hidden.stderr == "atm: matplotlib is missing: pip install 'async-task-manager[plot]'\n"
    assert not (folder / "out.jsonl").exists()


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (("--report", "report.pdf"), "--report must end in .html, not 'report.pdf'"),
        (("--plot", "plot"), "--plot must end in .svg or .png, not 'plot'"),
        (("--plot", "none/plot.svg"), "--plot: there is no folder 'none'"),
    ],
)
def test_a_picture_that_can_t_be_is_told_first(
    folder: Path, options: tuple[str, ...], says: str
) -> None:
    ran = atm(*ARGUMENTS, *options, cwd=folder)
    assert (ran.returncode, ran.stderr) == (2, f"atm: {says}\n")
    assert not (folder / "out.jsonl").exists()


# ---- while it runs ------------------------------------------------------------------------------


@contextmanager
def started(folder: Path, results: int) -> Iterator[subprocess.Popen[str]]:
    """A run that has written so many results."""
    process = subprocess.Popen(
        [ATM, *ARGUMENTS],
        cwd=folder,
        env=PLAIN,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        out = folder / "out.jsonl"
        give_up = time.monotonic() + 30
        while not (out.exists() and out.read_text().count("\n") >= results):
            assert process.poll() is None and time.monotonic() < give_up
            time.sleep(0.01)
        yield process
    finally:
        process.kill()
        process.communicate()


def test_ctrl_c_finishes_what_runs_and_keeps_the_results(folder: Path) -> None:
    fill(folder, 500)
    with started(folder, results=4) as process:
        process.send_signal(signal.SIGINT)
        stdout, stderr = process.communicate(timeout=30)
    assert (process.returncode, stderr) == (130, "")
    assert re.search(r"interrupted: finishing [0-3] that run", stdout)
    results = written(folder)
    assert {line["status"] for line in results} == {"succeeded"}
    unsent = f"interrupted: {500 - len(results)} requests that were read were not sent"
    assert unsent in stdout.replace("\n", " ")
    assert stdout.splitlines()[-1] == "429s: 0"


def test_a_second_ctrl_c_cancels_what_runs(folder: Path) -> None:
    with serving(600) as url:
        with (folder / "flow.toml").open("a") as file:
            file.write(f'[[providers]]\nname = "slow"\nbase_url = "{url}"\ntimeout = 700\n')
        with (folder / "in.jsonl").open("a") as file:
            file.writelines(
                f'{{"id": "slow{i}", "path": "/", "provider": "slow"}}\n' for i in range(2)
            )
        with started(folder, results=12) as process:
            assert process.stdout is not None
            process.send_signal(signal.SIGINT)
            assert process.stdout.readline().startswith("interrupted: finishing 2 that run")
            process.send_signal(signal.SIGINT)
            assert process.stdout.readline() == "interrupted again: cancelling 2 that run\n"
            process.communicate(timeout=30)
    assert process.returncode == 130
    assert [line["status"] for line in written(folder)[12:]] == ["cancelled"] * 2


def test_a_terminal_shows_a_live_view(folder: Path) -> None:
    fill(folder, 60)
    ours, theirs = pty.openpty()
    process = subprocess.Popen(
        [ATM, *ARGUMENTS],
        cwd=folder,
        env={**os.environ, "COLUMNS": "80", "LINES": "24", "TERM": "xterm-256color"},
        stdin=theirs,
        stdout=theirs,
        stderr=theirs,
    )
    os.close(theirs)
    seen = bytearray()

    def read() -> None:
        try:
            while chunk := os.read(ours, 4096):
                seen.extend(chunk)
        except OSError:
            pass  # the other side is closed

    reader = threading.Thread(target=read, daemon=True)
    reader.start()
    try:
        assert process.wait(timeout=30) == 0
    finally:
        process.kill()
        reader.join(10)
        os.close(ours)
    text = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", seen.decode())
    assert re.search(r"\d+ of 60 .*━", text)
    assert re.search(r"p +sent \d+ +running 3 +failed 0 +429s 0", text)
    assert "60 requests in" in text
    assert text.rstrip().endswith("429s: 0")
