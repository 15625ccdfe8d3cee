"""A TOML file becomes a chain, or an error that says which key is wrong."""

from __future__ import annotations

from pathlib import Path

import pytest

from async_task_manager.config import ConfigError, build_chain, load_config
from async_task_manager.strategies import ConcurrentLimitStrategy, ProviderRouterStrategy

GOOD = """
[[providers]]
name = "groq"
base_url = "https://api.groq.com/openai/v1"
limits = ["30/minute", "6000 tokens/minute", "14400/day@America/Los_Angeles"]
max_concurrent = 4
headers = { Authorization = "Bearer ${GROQ_KEY}" }

[[providers]]
name = "spare"
base_url = "http://127.0.0.1:8000"
enabled = false
"""


@pytest.fixture
def file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("GROQ_KEY", "gsk-very-secret")
    return tmp_path / "flow.toml"


def test_a_file_becomes_a_chain(file: Path) -> None:
    file.write_text(GOOD)
    config = load_config(file)
    assert config.providers[0].headers["Authorization"].get_secret_value() == (
        "Bearer gsk-very-secret"
    )
    router = build_chain(config).stages[-1]
    assert isinstance(router, ProviderRouterStrategy)
    assert list(router.names) == ["groq", "spare"]
    assert [limit.describe() for limit in router["groq"].limits][-1] == "at most 4 tasks at once"
    assert isinstance(router["groq"].limits[-1], ConcurrentLimitStrategy)
    assert not router["spare"].enabled


def test_secrets_are_not_shown(file: Path) -> None:
    file.write_text(GOOD)
    assert "very-secret" not in repr(load_config(file))


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (("30/minute", "30 parsecs"), r"providers\[0\]\.limits: .*30 parsecs"),
        (("max_concurrent = 4", "max_concurrent = 0"), r"max_concurrent: .*than or equal to 1.*0"),
        (
            ("max_concurrent", "max_concurent"),
            r"max_concurent: there is no such key; did you mean 'max_concurrent'",
        ),
        (("enabled = false", "colour = 1"), r"providers\[1\]\.colour: there is no such key$"),
        (("[[providers]]", "[[provider]]"), r"provider: .*did you mean 'providers'"),
        (('"spare"', '"groq"'), "two providers are called 'groq'"),
        (("https://api", "ftp://api"), r"base_url: .*ftp://api"),
        (("${GROQ_KEY}", "${NO_SUCH_KEY}"), "no variable NO_SUCH_KEY"),
        (('name = "groq"', 'name = "groq'), "not valid TOML"),
    ],
)
def test_an_error_names_the_key_and_the_value(
    file: Path, change: tuple[str, str], says: str
) -> None:
    file.write_text(GOOD.replace(*change))
    with pytest.raises(ConfigError, match=says) as caught:
        load_config(file)
    assert str(file) in str(caught.value)
    assert "very-secret" not in str(caught.value)


def test_all_problems_are_told_at_once(file: Path) -> None:
    file.write_text(GOOD.replace("4", "-4").replace("enabled", "enabeld"))
    with pytest.raises(ConfigError) as caught:
        load_config(file)
    assert len(str(caught.value).splitlines()) >= 2


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="No such file"):
        load_config(tmp_path / "none.toml")


def test_a_file_without_providers(file: Path) -> None:
    file.write_text("providers = []")
    with pytest.raises(ConfigError, match="providers"):
        load_config(file)
