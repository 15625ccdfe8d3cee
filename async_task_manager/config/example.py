"""A config to begin with."""

from __future__ import annotations

from importlib.resources import files

__all__ = ["example"]


def example() -> str:
    """A commented TOML file that is sound as it stands, once its key is in the environment."""
    return (files("async_task_manager.config") / "example.toml").read_text(encoding="utf-8")
