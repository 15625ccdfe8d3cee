"""Questions in a terminal: whoever answers wrongly is asked again, and told why."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from async_task_manager.errors import MissingExtra

try:
    import questionary
    from prompt_toolkit.patch_stdout import patch_stdout
    from questionary import Choice
except ImportError as error:
    raise MissingExtra("cli", "questionary") from error

__all__ = ["Left", "choose", "confirm", "number", "text"]


class Left(Exception):
    """Ctrl-C or Ctrl-D: nothing more is to be asked."""


def _checked(read: Callable[[str], Any]) -> Callable[[str], bool | str]:
    """For questionary: True, or the reason why this is no answer."""

    def check(given: str) -> bool | str:
        try:
            read(given.strip())
        except ValueError as error:
            return str(error) or "that is no answer"
        return True

    return check


async def _answer(question: Any) -> Any:
    try:
        # What is printed meanwhile appears above the prompt. (Its own parameter for that ends with
        # the making of the coroutine, before anything is asked.)
        with patch_stdout():
            return await question.unsafe_ask_async()
    except (KeyboardInterrupt, EOFError):
        raise Left from None


async def text(prompt: str, read: Callable[[str], Any] = str, default: str = "") -> Any:
    """What ``read`` makes of the answer; where it raises a ValueError, that is the reason.

    Raises:
        Left: nothing more is to be asked.
    """
    question = questionary.text(
        prompt, default=default, validate=_checked(read), validate_while_typing=False
    )
    return read((await _answer(question)).strip())


async def number(prompt: str, default: str, *, at_least: float, whole: bool = False) -> Any:
    """A number from ``at_least`` on. Raises Left."""

    def read(given: str) -> float:
        kind = "a whole number" if whole else "a number"
        try:
            value: float = int(given) if whole else float(given)
        except ValueError:
            value = float("nan")
        if not at_least <= value < float("inf"):
            raise ValueError(f"{kind} of at least {at_least:g}, please, not {given!r}")
        return value

    return await text(prompt, read, default)


async def choose(prompt: str, choices: Sequence[tuple[str, Any]]) -> Any:
    """The value of one of these titles. Raises Left."""
    options = [Choice(title, value=(value,)) for title, value in choices]  # None is a value, too
    (value,) = await _answer(questionary.select(prompt, choices=options, use_jk_keys=False))
    return value


async def confirm(prompt: str, default: bool = True) -> bool:
    """Yes or no. Raises Left."""
    return bool(await _answer(questionary.confirm(prompt, default=default)))
