"""The documentation leaves nothing out that somebody may call or override."""

from __future__ import annotations

import re
from pathlib import Path

from async_task_manager._asked import Asked
from async_task_manager._life import Life
from async_task_manager.strategies import base

DOCS = Path(__file__).parents[1] / "docs"


def public(cls: type) -> set[str]:
    return {name for name in vars(cls) if not name.startswith("_")}


def test_the_reference_shows_what_people_ask_a_manager() -> None:
    """It shows a class with its own members; those of a base class have to be named."""
    page = (DOCS / "reference.md").read_text(encoding="utf-8")
    shown = re.search(r"TaskManager\n\s+options:\s+inherited_members:\s+\[([^\]]+)\]", page)
    assert shown is not None
    assert set(re.findall(r"\w+", shown[1])) == public(Life) | public(Asked)


def test_how_to_write_a_strategy_names_every_hook() -> None:
    page = (DOCS / "writing-a-strategy.md").read_text(encoding="utf-8")
    named = {word for code in re.findall(r"`([^`\n]+)`", page) for word in re.findall(r"\w+", code)}
    everything: list[type[base.Role]] = [
        thing for thing in vars(base).values() if isinstance(thing, type)
    ]
    roles = [cls for cls in everything if issubclass(cls, base.Role)]
    assert len(roles) == 9
    for role in roles:
        hooks = public(role) - public(base.BaseStrategy)
        assert hooks <= named, f"{role.__name__}: {hooks - named}"
