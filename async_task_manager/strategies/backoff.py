"""How long to wait before another attempt: shapes that grow, and their jitter."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Literal, TypeAlias

from async_task_manager._validate import number, one_of, whole
from async_task_manager.errors import InvalidValue

__all__ = ["Backoff", "Jitter", "decorrelated", "exponential", "fibonacci", "fixed", "linear"]

Jitter: TypeAlias = Literal["full", "equal"] | None

SETTLED = 64
"""Steps after which a decorrelated backoff is distributed as it will be ever after."""


class Backoff:
    """Seconds to wait, by the number of the attempt that failed: 1, 2, …

    It is called with that number, holds no state, and draws from the generator that its caller
    brings. What failed together should not come back together: with jitter ``"full"`` the wait is
    drawn from 0 to the full length, with ``"equal"`` from half of it; None waits exactly that long.
    """

    __slots__ = ("_length", "_text", "jitter")

    def __init__(self, length: Callable[[int], float], jitter: Jitter, text: str) -> None:
        if jitter is not None:
            one_of("jitter", jitter, ("full", "equal"))
        self.jitter = jitter
        self._length = length
        self._text = text

    def __call__(self, attempt: int, generator: random.Random | None = None) -> float:
        """Seconds to wait after this attempt; None: drawn from the generator of `random`."""
        whole("attempt", attempt, at_least=1)
        return self._draw(0.0, self._length(attempt), generator)

    def _draw(self, low: float, high: float, generator: random.Random | None) -> float:
        if self.jitter is None:
            return high
        if self.jitter == "equal":
            low += (high - low) / 2
        draw = random.random() if generator is None else generator.random()
        return low + (high - low) * draw

    def __repr__(self) -> str:
        return f"{self._text}, jitter={self.jitter!r})"


class _Decorrelated(Backoff):
    """Each length is a multiple of what was drawn before: a walk, taken anew for each answer."""

    __slots__ = ("_base", "_factor", "_maximum")

    def __init__(self, base: float, factor: float, maximum: float, jitter: Jitter) -> None:
        text = f"decorrelated({base!r}, factor={factor!r}, maximum={maximum!r}"
        super().__init__(float, jitter, text)
        self._base, self._factor, self._maximum = base, factor, maximum

    def __call__(self, attempt: int, generator: random.Random | None = None) -> float:
        wait = self._base
        for _ in range(min(whole("attempt", attempt, at_least=1), SETTLED)):
            wait = self._draw(self._base, min(self._maximum, self._factor * wait), generator)
        return wait


def exponential(
    base: float = 0.5, *, factor: float = 2.0, maximum: float = 60.0, jitter: Jitter = "full"
) -> Backoff:
    """``base * factor ** (attempt - 1)`` seconds, at most ``maximum``: 0.5, 1, 2, 4, …

    Args:
        base: Seconds after the first attempt, above 0.
        factor: By how much each wait is longer than the one before; at least 1.
        maximum: Seconds that no wait exceeds, at least ``base``.
        jitter: "full", "equal" or None.

    Raises:
        InvalidValue, InvalidType: A parameter is out of range or has the wrong type.
    """
    _check(base, maximum, factor=factor)

    def length(attempt: int) -> float:
        try:
            return min(maximum, base * factor ** (attempt - 1))
        except OverflowError:
            return maximum

    return Backoff(length, jitter, f"exponential({base!r}, factor={factor!r}, maximum={maximum!r}")


def linear(base: float = 1.0, *, maximum: float = 60.0, jitter: Jitter = "full") -> Backoff:
    """``base * attempt`` seconds, at most ``maximum``: 1, 2, 3, …

    Args:
        base: Seconds after the first attempt, and by how much each wait grows; above 0.
        maximum: Seconds that no wait exceeds, at least ``base``.
        jitter: "full", "equal" or None.

    Raises:
        InvalidValue, InvalidType: A parameter is out of range or has the wrong type.
    """
    _check(base, maximum)
    return Backoff(
        lambda attempt: base * attempt if attempt < maximum / base else maximum,
        jitter,
        f"linear({base!r}, maximum={maximum!r}",
    )


def fixed(seconds: float = 1.0, *, jitter: Jitter = None) -> Backoff:
    """The same wait after each attempt; without jitter, unless it is asked for.

    Args:
        seconds: At least 0.
        jitter: "full", "equal" or None.

    Raises:
        InvalidValue, InvalidType: A parameter is out of range or has the wrong type.
    """
    number("seconds", seconds, at_least=0)
    return Backoff(lambda attempt: seconds, jitter, f"fixed({seconds!r}")


def fibonacci(base: float = 1.0, *, maximum: float = 60.0, jitter: Jitter = "full") -> Backoff:
    """``base`` times the Fibonacci numbers, at most ``maximum``: 1, 1, 2, 3, 5, 8, …

    It grows by a factor of 1.6, between `linear` and a doubling.

    Args:
        base: Seconds after the first and the second attempt, above 0.
        maximum: Seconds that no wait exceeds, at least ``base``.
        jitter: "full", "equal" or None.

    Raises:
        InvalidValue, InvalidType: A parameter is out of range or has the wrong type.
    """
    _check(base, maximum)

    def length(attempt: int) -> float:
        wait, following = base, base
        for _ in range(attempt - 1):
            if wait >= maximum:
                break
            wait, following = following, wait + following
        return min(wait, maximum)

    return Backoff(length, jitter, f"fibonacci({base!r}, maximum={maximum!r}")


def decorrelated(
    base: float = 0.5, *, factor: float = 3.0, maximum: float = 60.0, jitter: Jitter = "full"
) -> Backoff:
    """A random walk: from ``base`` to ``factor`` times the wait before, at most ``maximum``.

    It spreads tasks that failed together as "full" does, and never waits less than ``base``.
    The waits before are drawn anew, so that nothing has to be remembered for each task: after an
    attempt a wait is distributed as in the walk of "Exponential Backoff And Jitter" (AWS
    Architecture Blog, 2015).

    Args:
        base: The least wait, in seconds above 0.
        factor: At least 1.
        maximum: Seconds that no wait exceeds, at least ``base``.
        jitter: "full" draws from the whole range, "equal" from its upper half, None takes its end.

    Raises:
        InvalidValue, InvalidType: A parameter is out of range or has the wrong type.
    """
    _check(base, maximum, factor=factor)
    return _Decorrelated(base, factor, maximum, jitter)


def _check(base: float, maximum: float, factor: float = 1.0) -> None:
    number("base", base, above=0)
    number("factor", factor, at_least=1)
    number("maximum", maximum, above=0)
    if maximum < base:
        raise InvalidValue(f"maximum must be at least base, {base!r}, not {maximum!r}")
