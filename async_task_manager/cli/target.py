"""What ``module:name`` on the command line means."""

from __future__ import annotations

import importlib
import sys
from functools import reduce
from pathlib import Path

from async_task_manager.errors import InvalidValue

__all__ = ["find"]


def find(target: str) -> object:
    """The object; its module is looked for in the working directory first.

    Raises:
        InvalidValue: there is none.
        Exception: whatever the module raises.
    """
    module_name, _, name = target.partition(":")
    if not module_name or not name:
        raise InvalidValue(f"say where it is as module:name, not {target!r}")
    here = str(Path.cwd())
    if here not in sys.path:
        sys.path.insert(0, here)
    try:
        module = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        if error.name is None or not f"{module_name}.".startswith(f"{error.name}."):
            raise  # it is there, and what it imports isn't
        raise InvalidValue(f"there is no module {error.name!r} in {here}, nor installed") from None
    try:
        return reduce(getattr, name.split("."), module)
    except AttributeError:
        raise InvalidValue(f"there is no {name!r} in {module.__file__}") from None
