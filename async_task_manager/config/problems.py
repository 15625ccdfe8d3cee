"""What is wrong with a file, in lines that name the key, the value and what it should be."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from difflib import get_close_matches
from typing import Any

from async_task_manager.errors import TaskManagerError

__all__ = ["ConfigError", "meant", "problem"]


class ConfigError(TaskManagerError, ValueError):
    """A config cannot be used; each line of the message names the file, a key and what is wrong.

    It belongs to the tree of `async_task_manager.errors`, below its root.
    """


def meant(word: str, known: Iterable[str]) -> str:
    """The known word that was probably meant, as the end of a sentence; "" if none comes near."""
    near = get_close_matches(word, list(known), 1)
    return f"; did you mean {near[0]!r}?" if near else ""


def problem(error: Any, keys: Callable[[Sequence[Any]], Iterable[str]]) -> str:
    """One of pydantic's errors as a line: the key, what it should be, and the value.

    Args:
        error: An item of ``ValidationError.errors()``.
        keys: The keys that exist beside the one at a place.

    Of values only plain ones are shown, and none from headers or under unknown keys: whatever
    else stands there may be a secret.
    """
    place, kind, value = error["loc"], error["type"], error["input"]
    where = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in place)
    where = where.removeprefix(".")
    if kind == "extra_forbidden":
        return f"{where}: there is no such key{meant(str(place[-1]), keys(place))}"
    if kind == "missing":
        return f"{where}: is missing"
    if kind == "value_error":  # one of our own, which says what it may
        return f"{where}: {str(error['ctx']['error']).strip()}"
    message = error["msg"].replace("Input should be", "must be").replace("valid tuple", "list")
    if kind in ("dict_type", "model_type"):
        message = "must be a table"
    if place == ("providers",):
        message += " of tables: each begins with [[providers]], in two brackets"
    shown = isinstance(value, str | int | float) and "headers" not in place
    return f"{where}: {message}, not {value!r}" if shown else f"{where}: {message}"
