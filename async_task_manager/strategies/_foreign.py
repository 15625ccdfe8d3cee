"""Strategies that speak the four methods only, inside a chain.

A foreign stage holds tasks by itself, so that the chain can only feed it and ask it. Its output
is the next stage's input; what the last one yields waits in a slot for one task until every limit
of the chain admits it.
"""

from __future__ import annotations

from collections.abc import Callable
from math import inf, isfinite
from typing import Any

from async_task_manager.errors import StrategyError
from async_task_manager.strategies._lanes import Queue
from async_task_manager.strategies.base import BaseStrategy
from async_task_manager.task import Task

__all__ = ["ForeignStage"]


class ForeignStage:
    """A foreign strategy, what waits to be fed to it, and when it may be asked.

    It keeps the contract it was written for: after every ``get_next_task``, task or none, its
    ``get_sleep_interval`` is honoured before the next. Only the wait that follows a None is cut
    short by a feed: a strategy that paces itself by its interval keeps its pace.
    """

    def __init__(
        self,
        strategy: BaseStrategy,
        above: ForeignStage | None,
        inside: dict[Task[Any], ForeignStage],
        welcome: Callable[[Task[Any], float], bool],
    ) -> None:
        self.strategy = strategy
        self.above = above
        self.inside = inside
        """Which stage has which task: shared by all foreign stages of a chain."""
        self.welcome = welcome
        """Takes in a task that the strategy made itself; False: something is against it."""
        self.queue = Queue()
        """What waits to be fed to the first stage; the others are fed by the stage above."""
        self.due = -inf
        """It may be asked from this instant on; inf: its interval is being asked for."""
        self.asking = False
        self._gave = False
        self._fed = False

    def next(self, now: float) -> Task[Any] | None:
        """The next task that comes out, fed as needed; None if there is none now."""
        if self.asking or self.due > now:
            fed = self._hungry() and self._feed(now)
            if self.asking or not fed:
                return None
        task = self._call(self.strategy.get_next_task)
        self.asking, self.due = True, inf
        self._gave, self._fed = task is not None, False
        if task is None:
            self._feed(now)
        return self._vetted(task, now)

    def fed(self) -> None:
        """Something was added to the strategy from outside, as a feed would."""
        self._fed = True
        if not self._gave and not self.asking:
            self.due = -inf

    def wake(self, now: float) -> float:
        """When `next` may give something: an instant, or inf while only an event can help."""
        own = inf if self.asking else self.due
        if not self._hungry():
            return own
        if self.above is not None:
            return min(own, self.above.wake(now))
        return now if self.queue.size else own

    def _hungry(self) -> bool:
        """Its last answer was None, and it has been given nothing since."""
        return not self._gave and not self._fed

    def _feed(self, now: float) -> bool:
        if self.above is not None:
            task = self.above.next(now)
        else:
            task = self.queue.peek()
            if task is not None:
                self.queue.pop()
        if task is None:
            return False
        self.inside[task] = self
        self._call(self.strategy.add_task, task)
        self._fed = True
        return True

    def _call(self, method: Callable[..., Any], *args: Any) -> Any:
        """What the strategy answers; whatever it raises instead is an error that names it."""
        try:
            return method(*args)
        except (KeyboardInterrupt, SystemExit):
            raise
        except BaseException as error:  # a CancelledError, too: it would pass for one of the loop
            raise StrategyError(f"{self.strategy!r} raised {error!r}") from error

    def _vetted(self, given: Task[Any] | None, now: float) -> Task[Any] | None:
        """What came out, if it is to go on: tasks that were cancelled in there are passed over."""
        if given is None:
            return None
        name = f"{self.strategy!r}: get_next_task"
        if not isinstance(given, Task):
            raise StrategyError(f"{name} must return a Task or None, not {given!r}")
        if self.inside.get(given) is self:
            del self.inside[given]
        elif given._state in ("cancelled", "expired", "rejected"):
            return None
        elif given._state != "new":
            raise StrategyError(f"{name} returned {given!r} a second time")
        elif not self.welcome(given, now):
            return None
        return given

    def answer(self, interval: object, now: float, poll_interval: float) -> None:
        """Takes in what ``get_sleep_interval`` gave.

        Raises:
            StrategyError: neither None nor a finite number of at least 0.
        """
        self.asking = False
        if interval is not None and (
            isinstance(interval, bool)
            or not isinstance(interval, int | float)
            or not isfinite(interval)
            or interval < 0
        ):
            raise StrategyError(
                f"{self.strategy!r}: get_sleep_interval must return None or a finite number "
                f"of at least 0, not {interval!r}"
            )
        if self._fed and not self._gave:
            self.due = now
        elif interval is None or (interval == 0 and not self._gave):
            self.due = now + poll_interval
        else:
            self.due = now + interval
