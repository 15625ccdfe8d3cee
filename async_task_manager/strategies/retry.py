"""Another attempt for what failed."""

from __future__ import annotations

import random
from collections import deque
from collections.abc import Callable
from math import floor, inf
from typing import TYPE_CHECKING, Any, TypeAlias

from async_task_manager._validate import exact, number, optional, whole
from async_task_manager.errors import (
    DeadlineExceeded,
    InvalidType,
    NonRetryable,
    RateLimited,
    StrategyError,
    TaskRejected,
)
from async_task_manager.strategies._keys import plain
from async_task_manager.strategies._retry_after import retry_after
from async_task_manager.strategies.backoff import Backoff, exponential
from async_task_manager.strategies.base import Feedback, RetryAt

if TYPE_CHECKING:
    from async_task_manager.task import Outcome, Task

__all__ = ["RetryBudget", "RetryOn", "RetryStrategy"]

RetryOn: TypeAlias = "type[Exception] | tuple[type[Exception], ...] | Callable[[Exception], bool]"

SLICES = 20
"""Parts of a budget's window: what is older than the window is forgotten a part at a time."""


class RetryBudget:
    """Bounds retries by first attempts, so that an outage doesn't become a storm.

    In any window, at most ``ratio`` times the first attempts that ended in it, plus
    ``min_per_second`` for each second of it, are retried. What the budget refuses fails with the
    error that it has.

    Args:
        ratio: Retries for each first attempt; at least 0. 0.2: at most a fifth more load.
        min_per_second: Retries that are allowed all the same, where there is little traffic; at
            least 0.
        window_seconds: The length of the window, in seconds above 0.

    Raises:
        InvalidValue, InvalidType: A parameter is out of range or has the wrong type.

    ``ratio`` and ``min_per_second`` can be set at any time. Several strategies may share a budget.
    Time and memory are O(1): the window is kept as twenty slices, and rounded to the safe side.
    """

    def __init__(
        self, ratio: float = 0.2, min_per_second: float = 1.0, *, window_seconds: float = 10.0
    ) -> None:
        self.ratio = ratio
        self.min_per_second = min_per_second
        self._window = plain(number("window_seconds", window_seconds, above=0))
        self._slices: deque[list[int]] = deque()  # [number, first attempts, retries]

    @property
    def ratio(self) -> float:
        """Retries for each first attempt."""
        return plain(self._ratio)

    @ratio.setter
    def ratio(self, value: float) -> None:
        self._ratio = exact(number("ratio", value, at_least=0))

    @property
    def min_per_second(self) -> float:
        """Retries a second that are always allowed."""
        return plain(self._min)

    @min_per_second.setter
    def min_per_second(self, value: float) -> None:
        self._min = exact(number("min_per_second", value, at_least=0))

    def first(self, now: float) -> None:
        """A first attempt has ended."""
        self._current(now)[1] += 1

    def spend(self, now: float) -> bool:
        """True, and the retry is counted, if the budget allows one more."""
        current = self._current(now)
        oldest = current[0] - SLICES
        # The oldest slice reaches out of the window: its retries still count, and its first
        # attempts don't.
        first = sum(part[1] for part in self._slices if part[0] > oldest)
        retries = sum(part[2] for part in self._slices)
        if retries + 1 > self._ratio * first + self._min * exact(self._window):
            return False
        current[2] += 1
        return True

    def _current(self, now: float) -> list[int]:
        index = floor(now / self._window * SLICES)
        slices = self._slices
        while slices and slices[0][0] < index - SLICES:
            slices.popleft()
        if not slices or slices[-1][0] < index:
            slices.append([index, 0, 0])
        return slices[-1]

    def dump(self) -> Any:
        """What counts in the window, as JSON-able data."""
        return [list(part) for part in self._slices]

    def load(self, state: Any) -> None:
        """Takes back what `dump` gave."""
        self._slices = deque(list(part) for part in state)

    def __repr__(self) -> str:
        return (
            f"RetryBudget({self.ratio!r}, {self.min_per_second!r}, window_seconds={self._window!r})"
        )


class RetryStrategy(Feedback):
    """Runs a task that failed again, up to ``max_attempts`` times in all.

    Between attempts it holds nothing: its permits go back at once, it waits out its backoff outside
    the queue, and then comes back to its old place by rank and arrival, and pays every limit anew.
    Whoever waits for it gets the outcome of the last attempt. Work is a callable: a coroutine runs
    only once, and is refused by ``add_task``.

    Never retried: `NonRetryable`, cancellation, rejection, and what a deadline or a queue timeout
    would not let start any more. An error with an attribute ``retry_after`` (seconds, or an aware
    datetime) is not retried earlier than that, nor than its backoff.

    Args:
        max_attempts: How many attempts may fail, the first one included; at least 1.
        backoff: Seconds from the number of the attempt that failed (1, 2, …): a `Backoff`
            (`exponential`, `linear`, `fixed`, `fibonacci`, `decorrelated`) or any callable. An
            attempt that failed and one that was rate limited are numbered each among its own
            kind.
        retry_on: What is retried: an exception class, a tuple of them, or a callable of the error.
        budget: A `RetryBudget` that all retries have to fit in; None: no bound.
        max_rate_limited: How many `RateLimited` outcomes of a task are retried, whatever
            ``retry_on`` says; at least 0. They don't count as attempts. None: any number.
        seed: Of the generator for jitter; None: a random one.

    Raises:
        InvalidValue, InvalidType: A parameter is out of range or has the wrong type.

    Everything but ``seed`` can be set at any time, and counts from the next failure on. O(1) for
    each outcome.
    """

    def __init__(
        self,
        max_attempts: int = 5,
        *,
        backoff: Callable[[int], float] = exponential(0.5, factor=2, maximum=60),  # noqa: B008  # no state
        retry_on: RetryOn = Exception,
        budget: RetryBudget | None = None,
        max_rate_limited: int | None = None,
        seed: int | None = None,
    ) -> None:
        self.max_attempts = max_attempts
        self.backoff = backoff
        self.retry_on = retry_on
        self.budget = budget
        self.max_rate_limited = max_rate_limited
        self._generator = random.Random(optional(whole, "seed", seed, at_least=0))

    # ---- live change ------------------------------------------------------------------------

    @property
    def max_attempts(self) -> int:
        """How many attempts may fail."""
        return self._max_attempts

    @max_attempts.setter
    def max_attempts(self, value: int) -> None:
        self._max_attempts = whole("max_attempts", value, at_least=1)

    @property
    def backoff(self) -> Callable[[int], float]:
        """Seconds to wait, from the number of the attempt that failed."""
        return self._backoff

    @backoff.setter
    def backoff(self, value: Callable[[int], float]) -> None:
        if not callable(value):
            raise InvalidType(
                "backoff must be a callable from the attempt to seconds, such as "
                f"exponential(0.5), not {value!r}"
            )
        self._backoff = value

    @property
    def retry_on(self) -> RetryOn:
        """What is retried."""
        return self._retry_on

    @retry_on.setter
    def retry_on(self, value: RetryOn) -> None:
        kinds = value if isinstance(value, tuple) else (value,)
        are_classes = [isinstance(kind, type) and issubclass(kind, Exception) for kind in kinds]
        if not all(are_classes) and (isinstance(value, tuple | type) or not callable(value)):
            raise InvalidType(
                "retry_on must be a class of exceptions, a tuple of them, or a callable that is "
                f"given the error, not {value!r}"
            )
        self._retry_on = value

    @property
    def budget(self) -> RetryBudget | None:
        """What all retries have to fit in."""
        return self._budget

    @budget.setter
    def budget(self, value: RetryBudget | None) -> None:
        if value is not None and not isinstance(value, RetryBudget):
            raise InvalidType(f"budget must be a RetryBudget or None, not {value!r}")
        self._budget = value

    @property
    def max_rate_limited(self) -> int | None:
        """How many rate-limited outcomes of a task are retried."""
        return self._max_rate_limited

    @max_rate_limited.setter
    def max_rate_limited(self, value: int | None) -> None:
        if value is not None:
            whole("max_rate_limited", value, at_least=0)
        self._max_rate_limited = value

    # ---- the feedback -----------------------------------------------------------------------

    def review(self, task: Task[Any], outcome: Outcome, now: float) -> RetryAt | None:
        """When the task runs again, or None if this was its last attempt."""
        budget = self._budget
        if budget is not None and task.attempt == 1 and outcome.started:
            budget.first(now)
        if outcome.kind != "failure" or not isinstance(outcome.error, Exception):
            return None
        failed = self._number(task, outcome.error)
        if failed == 0 or (budget is not None and not budget.spend(now)):
            return None
        instant, wall = retry_after(outcome, now)
        return RetryAt(max(now + self._seconds(failed), instant), wall)

    def _number(self, task: Task[Any], error: Exception) -> int:
        """Which of its kind the failed attempt was; 0: it is final."""
        if isinstance(error, NonRetryable | TaskRejected | DeadlineExceeded):
            return 0
        if isinstance(error, RateLimited):
            number, most = task.rate_limited + 1, self._max_rate_limited
            return number if most is None or number <= most else 0
        number = task.attempt - task.rate_limited
        if number >= self._max_attempts:
            return 0
        wanted = self._retry_on
        if isinstance(wanted, tuple | type):
            return number if isinstance(error, wanted) else 0
        return number if wanted(error) else 0

    def _seconds(self, failed: int) -> float:
        backoff = self._backoff
        if isinstance(backoff, Backoff):
            return backoff(failed, self._generator)
        seconds = backoff(failed)
        if isinstance(seconds, bool) or not isinstance(seconds, int | float):
            raise StrategyError(f"{self!r}: backoff({failed}) gave {seconds!r}, not seconds")
        if not 0 <= seconds < inf:
            raise StrategyError(
                f"{self!r}: backoff({failed}) gave {seconds!r}, not a finite number of seconds, "
                "at least 0"
            )
        return seconds

    def dump(self) -> Any:
        """What the budget has counted; tasks that wait for a retry are not in it."""
        return self._budget.dump() if self._budget is not None else None

    def load(self, state: Any) -> None:
        """Takes back what `dump` gave."""
        if self._budget is not None and state is not None:
            self._budget.load(state)

    def __repr__(self) -> str:
        return f"RetryStrategy({self._max_attempts}, backoff={_shown(self._backoff)})"


def _shown(value: object) -> str:
    return str(getattr(value, "__qualname__", repr(value)))
