"""The `atm` command."""

from __future__ import annotations

import sys

from async_task_manager.errors import MissingExtra

__all__ = ["main"]


def main() -> None:
    """Runs the command; the console script `atm`."""
    if sys.argv[1:] == ["--version"]:  # at once, without the libraries of the other commands
        from importlib.metadata import version

        print(f"atm {version('async-task-manager')}")
        return
    try:
        from async_task_manager.cli.app import app

        app()
    except MissingExtra as error:
        print(f"atm: {error}", file=sys.stderr)
        sys.exit(2)
