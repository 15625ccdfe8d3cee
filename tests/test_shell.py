"""The menu and the wizard, driven through a pseudo-terminal as a person would."""

from __future__ import annotations

import os
import re
import sys
import tomllib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pexpect
import pytest

from async_task_manager.cli.desk import PRETEND, Desk
from async_task_manager.cli.toml import to_toml
from async_task_manager.cli.wizard import example_simulation
from async_task_manager.config import parse_config

sys.path.insert(0, str(Path(__file__).parents[1] / "examples"))

from fake_provider import FakeProvider  # an example, not a package

# A pseudo-terminal is made by a fork, of which newer Pythons warn where threads run.
pytestmark = pytest.mark.filterwarnings("ignore:.*multi-threaded:DeprecationWarning")

ATM = str(Path(sys.executable).with_name("atm"))
DOWN, ENTER = "\x1b[B", "\r"


class Terminal:
    """What a person does: looks for words, types, moves the cursor in a menu."""

    def __init__(self, child: Any) -> None:
        self._child = child

    def sees(self, words: str) -> None:
        self._child.expect(re.escape(words))

    def types(self, text: str) -> None:
        self._child.send("\x15" + text + ENTER)  # Ctrl-U: not what stands there by default

    def picks(self, prompt: str, down: int) -> None:
        self.sees(prompt)
        self.sees("(Use arrow keys)")
        self._child.send(DOWN * down + ENTER)

    def says(self, prompt: str, answer: str) -> None:
        self.sees(prompt)
        self._child.send(answer)

    def ends(self) -> int:
        self._child.expect(pexpect.EOF)
        self._child.close()
        return int(self._child.exitstatus)


@contextmanager
def terminal(folder: Path, *arguments: str, columns: int = 100) -> Iterator[Terminal]:
    child = pexpect.spawn(
        sys.executable,
        [ATM, *arguments],
        cwd=str(folder),
        env={**os.environ, "TERM": "xterm-256color", "PROMPT_TOOLKIT_NO_CPR": "1"},
        dimensions=(40, columns),
        timeout=20,
        encoding="utf-8",
    )
    try:
        yield Terminal(child)
    finally:
        child.close(force=True)


# ---- the wizard ---------------------------------------------------------------------------------


def test_the_wizard_asks_again_with_the_reason_simulates_and_saves(tmp_path: Path) -> None:
    (tmp_path / "taken.toml").write_text("")
    with terminal(tmp_path, "wizard") as person:
        person.sees("What is the provider called?")
        person.types("my groq")
        person.sees("letters, digits, dashes and dots, please, not 'my groq'")
        person.types("groq")
        person.sees("Its rates")
        person.types("30/parsec")
        person.sees("like 30/minute or 900 tokens/hour, not '30/parsec'")
        person.types("30/minute; 6000 tokens/minute")
        person.sees("Requests at once:")
        person.types("none")
        person.sees("a whole number of at least 1, please, not 'none'")
        person.types("3")
        person.sees("Its address")
        person.types("nowhere")
        person.sees("must be an http:// or https:// URL")
        person.types("")
        person.says("Another provider?", "y")
        person.sees("What is the provider called?")
        person.types("groq")
        person.sees("there is a provider 'groq' already")
        person.types("spare")
        person.sees("Its rates")
        person.types("1/s")
        person.sees("Requests at once:")
        person.types("2")
        person.sees("Its address")
        person.types("http://127.0.0.1:8000/")
        person.says("Another provider?", "n")
        person.sees("In the long run the limits allow:")
        person.sees("How many requests?")
        person.types("60")
        person.picks("What next?", down=0)
        person.sees("60 tasks")
        person.sees("succeeded")
        person.says("Save the providers as a config?", "y")
        person.sees("Save it as:")
        person.types("taken.toml")
        person.sees("taken.toml exists already")
        person.types("flow.toml")
        person.sees("wrote flow.toml")
        assert person.ends() == 0
    config = parse_config(tomllib.loads((tmp_path / "flow.toml").read_text()))
    assert [provider.name for provider in config.providers] == ["groq", "spare"]
    assert config.providers[0].labels == ("30/minute", "6000 tokens/minute", "3 at once")
    assert config.providers[0].base_url == PRETEND
    assert config.providers[1].base_url == "http://127.0.0.1:8000"


def test_the_wizard_runs_requests(tmp_path: Path) -> None:
    with terminal(tmp_path, "wizard") as person:
        for question in ("called?", "Its rates", "at once:", "Its address"):
            person.says(question, ENTER)
        person.says("Another provider?", "n")
        person.sees("How many requests?")
        person.types("3")
        person.picks("What next?", down=1)
        person.sees("request-1 started on P1")
        person.sees("3 succeeded, 0 failed, 0 running, 0 queued")
        person.says("Save the providers as a config?", "n")
        assert person.ends() == 0


def test_ctrl_c_leaves_the_wizard(tmp_path: Path) -> None:
    with terminal(tmp_path, "wizard") as person:
        person.says("What is the provider called?", "\x03")
        assert person.ends() == 130


# ---- the menu -----------------------------------------------------------------------------------


def test_what_runs_goes_on_while_the_menu_waits(tmp_path: Path) -> None:
    with terminal(tmp_path, "shell") as person:
        person.sees("providers: P1, P2")
        person.picks("What to do?", down=0)  # add a request
        person.picks("To which provider?", down=2)
        person.picks("How urgent?", down=1)
        person.sees("Not before so many seconds:")
        person.types("-1")
        person.sees("a number of at least 0, please, not '-1'")
        person.types("0.5")
        person.sees("request-1 is queued")
        person.sees("What to do?")
        person.sees("request-1 started on P2")  # nobody has touched a key
        person.sees("request-1 succeeded")
        person._child.send(DOWN * 2 + ENTER)  # enable or disable a provider
        person.picks("Which?", down=1)
        person.sees("P2 is disabled")
        person.picks("What to do?", down=3)
        person.sees("stopped: nothing is sent")
        person.picks("What to do?", down=0)
        person.picks("To which provider?", down=1)
        person.picks("How urgent?", down=0)
        person.says("Not before so many seconds:", ENTER)
        person.sees("request-2 is queued")
        person.picks("What to do?", down=4)  # show queues and limits
        person.sees("1 succeeded, 0 failed, 0 running, 1 queued (1 normal)")
        person.sees("P2 (disabled)")
        person.sees("stopped: nothing is sent")
        person.picks("What to do?", down=3)
        person.sees("request-2 started on P1")
        person.picks("What to do?", down=5)
        person.says("How many requests?", ENTER)
        person.sees("100 tasks")
        person.picks("What to do?", down=1)  # add a provider
        for question in ("called?", "Its rates", "at once:", "Its address"):
            person.says(question, ENTER)
        person.sees("P3 takes requests")
        person.picks("What to do?", down=7)
        person.sees("Save it as:")
        person.types("mine.toml")
        person.sees("wrote mine.toml")
        person.picks("What to do?", down=6)  # the wizard, left again
        person.says("What is the provider called?", "\x03")
        person.sees("left")
        person.picks("What to do?", down=8)
        person.sees("2 succeeded")
        assert person.ends() == 0
    config = parse_config(tomllib.loads((tmp_path / "mine.toml").read_text()))
    assert [provider.name for provider in config.providers] == ["P1", "P2", "P3"]


def test_the_wizard_inside_the_menu_sends(tmp_path: Path) -> None:
    with terminal(tmp_path, "shell", columns=80) as person:
        person.picks("What to do?", down=6)
        person.sees("called?")
        person.types("fresh")
        for question in ("Its rates", "at once:", "Its address"):
            person.says(question, ENTER)
        person.says("Another provider?", "n")
        person.sees("How many requests?")
        person.types("2")
        person.sees("2 tasks")
        person.says("Add these providers here", "y")
        person.says("Save them as a config?", "n")
        person.sees("request-2 started on")
        person.says("What to do?", "\x03")
        assert person.ends() == 0


def test_a_config_that_is_not_sound(tmp_path: Path) -> None:
    (tmp_path / "flow.toml").write_text("")
    with terminal(tmp_path, "shell", "flow.toml") as person:
        person.sees("atm: flow.toml: providers: is missing")
        assert person.ends() == 2


# ---- without a terminal -------------------------------------------------------------------------


@pytest.mark.real_time
async def test_a_desk_sends_over_http_and_tells_what_happens() -> None:
    told: list[str] = []
    retry = {"backoff": {"kind": "fixed", "seconds": 0}, "budget": False, "max_attempts": 2}
    async with FakeProvider("real", fail_next=3) as real:
        one = {
            "name": "real",
            "base_url": real.url,
            "retry": retry,
            "limits": ["90 tokens/s"],
            "max_concurrent": 1,
        }
        config = parse_config({"providers": [one | {"cost": 1}]})
        async with Desk(config, told.append) as desk:
            failing = desk.add("real", "high", 0.0)
            good = desk.add(None, "low", 0.1)
            with pytest.raises(Exception, match="HTTP 500"):
                await failing.wait()
            await good.wait()
            with pytest.raises(Exception, match="above"):
                await desk.manager.add_task(desk._send, {"cost": {"tokens": 91}}).wait()
            assert desk.counts() == "1 succeeded, 1 failed, 0 running, 0 queued"
            assert "  0 of 1: at most 1 task at once" in desk.overview()
    lines = [line.split(" ", 1)[1] for line in told]
    assert lines[:2] == [
        "request-1 started on real",
        "request-1 failed and is tried again: HTTP 500 Internal Server Error",
    ]
    assert "request-1 started on real, attempt 2" in lines
    assert "request-1 failed: HTTP 500 Internal Server Error" in lines
    assert lines[-1] == "request-2 succeeded"


@pytest.mark.real_time
async def test_a_provider_that_is_added_has_its_own_retry() -> None:
    told: list[str] = []
    first = parse_config({"providers": [{"name": "first", "base_url": PRETEND}]})
    async with FakeProvider("added", fail_next=1) as added, Desk(first, told.append) as desk:
        retry = {"backoff": {"kind": "fixed", "seconds": 0}}
        (more,) = parse_config(
            {"providers": [{"name": "added", "base_url": added.url, "retry": retry}]}
        ).providers
        await desk.add_provider(more)
        await desk.add("added", "normal", 0.0).wait()
    assert told[-1].endswith("request-1 succeeded")
    assert added.stats.received == 2


def test_what_the_wizard_writes_is_sound() -> None:
    config = parse_config(
        {
            "providers": [
                {"name": "a", "base_url": PRETEND, "limits": ["9/s", "90 tokens/s"], "cost": 1},
                {"name": "b", "base_url": "http://b", "max_concurrent": 7},
            ]
        }
    )
    again = parse_config(tomllib.loads(to_toml(config)))
    assert [p.labels for p in again.providers] == [p.labels for p in config.providers]
    assert example_simulation(config, 20).startswith("20 tasks")


def test_what_is_saved_is_all_that_was_loaded_but_for_secrets(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A shell over a file of someone who knows more than the wizard asks for."""
    monkeypatch.setenv("KEY", "from-the-environment")
    monkeypatch.setenv("X_API_TOKEN", "as-it-stood-in-the-file")
    table: dict[str, Any] = {
        "name": "a",
        "base_url": "http://a/v1",
        "limits": [
            "9/s",
            {"rate": "90 tokens/s", "key": "user.id", "slack": 0.3},
            {"strategy": "token_bucket", "rate": 5, "burst": 10},
        ],
        "headers": {
            "Authorization": "Bearer ${KEY}",
            "X-Api-Token": "as-it-stood-in-the-file",
            "Accept": 'a "quoted" \\ \ttext',
        },
        "cost": {"tokens": "chars/4 + max_tokens"},
        "settle": "usage.total_tokens",
        "timeout": 5.5,
        "retry": {
            "max_attempts": 2,
            "backoff": {"kind": "fixed", "seconds": 1e-7},
            "budget": False,
        },
        "breaker": False,
        "limit_headers": {"x-ratelimit-remaining": "X-Left"},
        "weight": 2,
    }
    chain = [{"strategy": "fair_share", "key": "user"}, {"strategy": "providers"}]
    given = {"policy": "weighted", "providers": [table], "chain": chain}
    text = to_toml(Desk(parse_config(given), list[str]().append).config)
    assert "as-it-stood" not in text and "from-the-env" not in text
    table["headers"]["X-Api-Token"] = "${X_API_TOKEN}"
    assert tomllib.loads(text) == given
    assert parse_config(tomllib.loads(text)).providers[0].secrets() != ()
