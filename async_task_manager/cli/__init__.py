"""The `atm` command."""

from __future__ import annotations

import sys

from async_task_manager.errors import MissingExtra

__all__ = ["main"]


def main() -> None:
    """Runs the command; the console script `atm`."""
    if sys.argv[1:] == ["--version"]:
        from importlib.metadata import version

        print(f"atm {version('async-task-manager')}")
        return
    try:
        from async_task_manager.cli.app import app
    except MissingExtra as error:
        sys.exit(_refuse(str(error)))
    app()


def _refuse(message: str) -> int:
    print(f"atm: {message}", file=sys.stderr)
    return 2
