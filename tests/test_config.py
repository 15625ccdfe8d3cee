"""A TOML file becomes a chain, or an error that says which key is wrong."""

from __future__ import annotations

import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from async_task_manager.config import ConfigError, FlowConfig, build_chain, load_config
from async_task_manager.errors import TaskManagerError
from async_task_manager.strategies import (
    CircuitBreakerStrategy,
    ConcurrentLimitStrategy,
    CooldownStrategy,
    ProviderRouterStrategy,
)

GOOD = """
[[providers]]
name = "groq"
base_url = "https://api.groq.com/openai/v1"
limits = ["30/minute", "6000 tokens/minute", "14400/day@America/Los_Angeles"]
max_concurrent = 4
headers = { Authorization = "Bearer ${GROQ_KEY}" }

[[providers]]
name = "spare"
base_url = "http://127.0.0.1:8000/"
enabled = false
headers = { Authorization = "Bearer ${A_KEY_THAT_IS_NOT_SET}" }
"""
DOCS = Path(__file__).parents[1] / "docs"


@pytest.fixture
def file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("GROQ_KEY", "gsk-very-secret")
    monkeypatch.setenv("EMPTY", "")
    monkeypatch.setenv("TWO_LINES", "gsk-very-secret\n")
    return tmp_path / "flow.toml"


def problems(file: Path, text: str) -> list[str]:
    file.write_text(text)
    with pytest.raises(ConfigError) as caught:
        load_config(file)
    assert "very-secret" not in str(caught.value)
    lines = str(caught.value).splitlines()
    assert all(line.startswith(f"{file}: ") for line in lines)
    return [line.removeprefix(f"{file}: ") for line in lines]


def test_a_file_becomes_a_chain(file: Path) -> None:
    file.write_text(GOOD)
    config = load_config(file)
    router = build_chain(config).stages[2]
    assert isinstance(router, ProviderRouterStrategy)
    assert list(router.names) == ["groq", "spare"]
    assert [limit.describe() for limit in router["groq"].limits[:4]] == [
        "at most 30 tasks in any 60 s",
        "at most 6000 tokens in any 60 s",
        router["groq"].limits[2].describe(),
        "at most 4 tasks at once",
    ]
    assert "America/Los_Angeles" in router["groq"].limits[2].describe()
    assert config.providers[0].labels[-1] == "4 at once"
    assert config.providers[0].units == ("tokens",)
    assert not router["spare"].enabled
    assert config.providers[1].base_url == "http://127.0.0.1:8000"
    slots, breaker, cooldown = router["spare"].limits
    assert isinstance(breaker, CircuitBreakerStrategy)
    assert isinstance(cooldown, CooldownStrategy)
    assert isinstance(slots, ConcurrentLimitStrategy) and slots.max_concurrent == 100
    assert [provider.name for provider in config.only_enabled().providers] == ["groq"]


def test_secrets_come_from_the_environment_and_are_not_shown(file: Path) -> None:
    file.write_text(GOOD)
    config = load_config(file)
    assert config.providers[0].sent_headers() == {"Authorization": "Bearer gsk-very-secret"}
    assert config.providers[0].secrets() == ("gsk-very-secret",)
    for shown in (repr(config), str(config), config.model_dump_json()):
        assert "very-secret" not in shown
        assert "GROQ_KEY" not in shown


@pytest.mark.parametrize(
    ("old", "new", "says"),
    [
        ("30/minute", "30 parsecs", r"providers\[0\]\.limits\[0\]: a rate .* not '30 parsecs'"),
        (
            '"30/minute"',
            "30",
            r"limits\[0\]: must be a rate such as '30/minute' or a table, not 30$",
        ),
        ('["30/minute", ', '"30/minute" # [', r"providers\[0\]\.limits: must be a list, not '30/"),
        ("Los_Angeles", "Los_Angels", r"providers\[0\]\.limits\[2\]: .*Los_Angels"),
        ("= 4", "= 0", r"max_concurrent: must be a .* at least 1 and at most 100000, not 0"),
        ("= 4", '= "4"', r"max_concurrent: must be a valid integer, not '4'"),
        ("= 4", "= 4\ntimeout = nan", r"timeout: must be a .* above 0 and at most 86400, not nan"),
        ("= 4", "= 4\ntimeout = 1e9", r"timeout: must be a .* at most 86400, not 1000"),
        ("= 4", "= 4\nslack = -1", r"slack: must be a .* at least 0 and at most 3600, not -1"),
        ("max_concurrent", "max_concurent", r"max_concurent: there is no such key; did you mean"),
        (
            "enabled = false",
            "enabled = false\ncolour = 1",
            r"providers\[1\]\.colour: there is no such key$",
        ),
        ("enabled = false", 'enabled = "no"', r"enabled: must be a valid boolean, not 'no'"),
        ('name = "groq"', "", r"providers\[0\]\.name: is missing"),
        ('name = "groq"', 'name = "a[red]b"', r"name: must be 1 to 64 letters.* not 'a\[red\]b'"),
        ('"spare"', '"groq"', r"providers: 2 are called 'groq'"),
        ("https://api", "ftp://api", r"base_url: must be an http:// .* not 'ftp://api"),
        ("https://api.groq.com/openai", "https:///", r"base_url: must be an http://"),
        ("api.groq.com", "api.groq.com:no", r"base_url: must be an http://"),
        ("openai/v1", "openai/v1?key=1", r"base_url: .*without a query"),
        ("https://api", "https://me:very-secret@api", r"base_url: .*put them into headers$"),
        ("${GROQ_KEY}", "${NO_KEY}", r"\.headers: Authorization: .* NO_KEY is not set"),
        ("${GROQ_KEY}", "${EMPTY}", r"\.headers: Authorization: .* EMPTY is not set, or empty"),
        ("${GROQ_KEY}", "${TWO_LINES}", r"\.headers: Authorization: the value must be .* one line"),
        ("Authorization", '"Bad Name"', r"\.headers: Bad Name: that is no name of a header"),
        ("Authorization", "Content-Length", r"\.headers: Content-Length: the HTTP client itself"),
        ('{ Authorization = "', '["very-secret", "', r"not valid TOML"),
        ('name = "groq"', 'name = "groq', "not valid TOML: .*line 3"),
    ],
)
def test_an_error_names_the_key_the_value_and_the_range(
    file: Path, old: str, new: str, says: str
) -> None:
    assert old in GOOD
    (line,) = problems(file, GOOD.replace(old, new, 1))
    assert re.search(says, line), line


def test_all_problems_are_told_at_once(file: Path) -> None:
    broken = GOOD.replace("= 4", "= -4").replace("enabled = false", 'nmae = ""\nenabled = 3')
    lines = problems(file, broken.replace('"spare"', '"groq"') + '[provider]\nsecret = "x"\n')
    assert [line.partition(":")[0] for line in lines] == [
        "providers[0].max_concurrent",
        "providers[1].enabled",
        "providers[1].nmae",
        "provider",
        "providers",
    ]


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "providers: is missing"),
        ("providers = []", "providers: there must be at least one"),
        ("providers = [1]", r"providers\[0\]: must be a table, not 1"),
        ('providers = "very-much"', r"two brackets, not 'very-much'"),
        ('[providers]\nheaders = {a = "very-secret"}', r"providers: .*\[\[providers\]\], in two"),
        ('[[providers]]\nname = "a"\nbase_url = "http://a"\nenabled = false', "one must be ena"),
        ('[[providers]]\nname = "a"\nbase_url = "http://a"\nheaders = "very-secret"', "a table$"),
        ('[[providers]]\nname = "a"\nbase_url = "http://a"\nheader = {a = "very-secret"}', "did "),
    ],
)
def test_a_file_without_usable_providers(file: Path, text: str, says: str) -> None:
    (line,) = problems(file, text)
    assert re.search(says, line), line


def test_a_file_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"none\.toml: No such file"):
        load_config(tmp_path / "none.toml")
    with pytest.raises(ConfigError, match="Is a directory"):
        load_config(tmp_path)
    (tmp_path / "latin.toml").write_bytes(b'name = "\xe4"')
    with pytest.raises(ConfigError, match=r"latin\.toml: not valid TOML"):
        load_config(tmp_path / "latin.toml")


def test_the_error_belongs_to_the_tree() -> None:
    assert issubclass(ConfigError, TaskManagerError)
    assert issubclass(ConfigError, ValueError)


@pytest.mark.parametrize("page", ["config.md", "tutorial.md"])
def test_the_configs_in_the_docs_are_sound(page: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GROQ_API_KEY", "gsk-very-secret")
    found = re.findall(r"^```toml\n(.*?)^```", (DOCS / page).read_text(), re.M | re.S)
    assert found
    for text in found:
        FlowConfig.model_validate(tomllib.loads(text))


@pytest.mark.parametrize("module", ["config", "runner", "cli.app"])
@pytest.mark.parametrize("missing", ["pydantic", "httpx", "typer"])
def test_a_missing_extra_says_what_to_install(module: str, missing: str) -> None:
    needs = {"config": {"pydantic"}, "runner": {"pydantic", "httpx"}, "cli.app": {"typer"}}
    code = f"import sys; sys.modules[{missing!r}] = None; import async_task_manager.{module}"
    ran = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False
    )
    if missing in needs[module]:
        assert f"{missing} is missing: pip install 'async-task-manager[cli]'" in ran.stderr
        assert "MissingExtra" in ran.stderr
    else:
        assert ran.returncode == 0, ran.stderr
