"""`atm init` and `atm check`: a config to begin with, and what one means."""

from __future__ import annotations

import shutil
import sys
import textwrap
from pathlib import Path

from async_task_manager.config import ConfigError, FlowConfig, load_config
from async_task_manager.config.example import example
from async_task_manager.config.words import in_words

__all__ = ["check_command", "init_command", "print_words"]


def init_command(file: Path, *, force: bool) -> int:
    """Writes the commented example, and gives the exit code."""
    try:
        with file.open("w" if force else "x", encoding="utf-8") as sink:
            sink.write(example())
    except FileExistsError:
        return _refuse(f"{file} exists already; --force overwrites it")
    except OSError as error:
        return _refuse(f"{file}: {error.strerror}")
    print(f"wrote {file}: change it to what limits you, then: atm check {file}")
    return 0


def check_command(file: Path) -> int:
    """Prints what the config means, or all that is wrong with it, and gives the exit code."""
    try:
        config = load_config(file)
    except ConfigError as error:
        for line in str(error).splitlines():
            _refuse(line)
        return 2
    count = len(config.providers)
    print(f"{file} is sound: {count} provider{'' if count == 1 else 's'}.\n")
    print_words(config)
    return 0


def print_words(config: FlowConfig) -> None:
    """What the config means, in lines as wide as the terminal, where there is one."""
    width = shutil.get_terminal_size().columns if sys.stdout.isatty() else 0
    for line in in_words(config):
        indent = " " * (len(line) - len(line.lstrip()) + 2)
        print(textwrap.fill(line, width, subsequent_indent=indent) if width else line)


def _refuse(message: str) -> int:
    print(f"atm: {message}", file=sys.stderr)
    return 2
