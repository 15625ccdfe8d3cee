"""What becomes of a task that has started: its permits, another attempt, what it says of itself."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from contextlib import suppress
from math import inf
from typing import Any, NoReturn

from async_task_manager._run import Options
from async_task_manager.errors import DeadlineExceeded, QueueTimeout, StrategyError
from async_task_manager.strategies._batch import Batch
from async_task_manager.strategies._dispatch import Dispatch
from async_task_manager.strategies._intake import Intake
from async_task_manager.strategies.base import Feedback, Limit, RetryAt
from async_task_manager.strategies.cost_estimator import CostEstimator
from async_task_manager.task import Outcome, Task

__all__ = ["Outcomes"]


class Outcomes(Intake):
    """The part of a chain that hears what running tasks do, and how they end."""

    def __init__(self) -> None:
        super().__init__()
        self.running = 0

    def begun(self, task: Task[Any], now: float) -> bool:
        """The work's first instruction runs; True if that may let others start."""
        self.now = now
        return self.dispatch.begun(task, now)

    def finish(self, task: Task[Any], outcome: Outcome, now: float, *, last: bool = False) -> bool:
        """An attempt has ended: permits go back; True if the task is to run again, and queued for
        it. Not if it was the ``last``, whatever a feedback says.

        Of a batch, this is the end of the call; each of its members ends by itself after that.
        """
        self.now = now
        batches = self.batches
        if batches is None or not batches.left(task):
            self.running -= 1
            if outcome.cost is not None:
                self._settle_late(task, outcome, now)
            self.dispatch.release(task, outcome, now)
            if type(task) is Batch:
                batches.calls -= 1  # type: ignore[union-attr]  # who made it
                return False
        elif outcome.kind == "failure" and task.provider is not None:
            task._progress().failed_at_branch(task.provider)
        if self.feedbacks and self._again(task, outcome, now, last):
            return True
        if batches is not None:
            batches.keys.pop(task, None)
        return False

    def _again(self, task: Task[Any], outcome: Outcome, now: float, last: bool) -> bool:
        answers = [
            checked_retry(feedback, answer)
            for feedback in self.feedbacks
            if (answer := feedback.review(task, outcome, now)) is not None
        ]
        if not answers or outcome.kind == "cancelled" or last:
            return False
        again = max(now, *(answer.instant for answer in answers))
        wall = max(answer.wall for answer in answers)
        options = task._options
        if options is not None and self._too_late(options, again, wall):
            return False
        task._progress().tried(outcome.error)
        task._state = "queued"
        self.queued += 1
        if self._visited:
            self._arrive(task, now, again=True)
        if isinstance(self.dispatch, Dispatch) and self.dispatch.routed:
            error = self._plan_again(task, self.dispatch)  # branches may have come or gone
            if error is not None:
                self.reject(task, error, now)
                return True
        if options is not None:
            for bound in (options.not_after, options.not_after_wall):
                late = DeadlineExceeded if bound == options.deadline else QueueTimeout
                self._close(task, bound, late)
        self._hold_or_join(task, again, wall, now)
        return True

    def _too_late(self, options: Options, again: float, wall: float) -> bool:
        """Whether a retry at this instant, and not before this wall time, could never start."""
        offset = self._offset
        if offset is None:
            return options.not_after <= again or options.not_after_wall <= wall
        again = max(again, wall - offset)
        return options.not_after <= again or options.not_after_wall - offset <= again

    def settle(self, task: Task[Any], actual: Any, now: float) -> None:
        """The actual cost of a running task is known: a number, or a dict of units."""
        self.now = now

        learning: dict[int, tuple[CostEstimator, Any]] = {}

        def actual_of(limit: Limit) -> Any:
            cost = limit.cost
            if cost is None or isinstance(cost, int | float):
                return None  # it counts tasks
            value = actual
            if isinstance(actual, dict):
                unit = cost.unit if isinstance(cost, CostEstimator) else cost
                value = actual.get(unit) if isinstance(unit, str) else None
            if value is not None and isinstance(cost, CostEstimator):
                learning[id(cost)] = cost, value
            return value

        self.dispatch.settle(task, actual_of, now)
        for estimator, value in learning.values():
            if isinstance(task, Batch):
                estimator.settled_together(task.members, value)
            else:
                estimator.settled(task, value)

    def _settle_late(self, task: Task[Any], outcome: Outcome, now: float) -> None:
        """The outcome brings an actual cost: told by the work before, or by whoever ran it now."""
        if outcome.started and task._run is not None and task._run.actual is None:
            self.settle(task, outcome.cost, now)

    def observe(self, task: Task[Any], sample: Any, now: float) -> None:
        """A running task was told something, such as the headers of a response: whatever limits it
        holds a grant of hear of it.
        """
        self.now = now
        if isinstance(sample, Mapping) and self._offset is not None:
            from async_task_manager.headers import dated  # slow to load, and few need it

            sample = dated(sample, now + self._offset)
        self.dispatch.observe(task, sample, now)

    def undo(
        self, task: Task[Any], taken: Iterable[tuple[Limit, Any]], error: Exception, now: float
    ) -> NoReturn:
        """Called by the dispatch: a limit raised instead of granting. The others get back what they
        granted; the task, which it has taken out, gets the error.
        """
        never_ran = Outcome("cancelled", None, now)
        for limit, grant in taken:
            with suppress(Exception):  # one error is told
                limit.release(grant, never_ran, now)
        blamed = self.blame(error)
        self.reject(task, blamed, now)
        raise blamed from error


def checked_retry(feedback: Feedback, answer: object) -> RetryAt:
    """What a feedback answers, if it names an instant at which the task runs again."""
    # NaN isn't less than anything, either.
    if not isinstance(answer, RetryAt) or not (answer.instant < inf and answer.wall < inf):
        raise StrategyError(
            f"{feedback!r}: review must give None, or RetryAt with a finite instant, not {answer!r}"
        )
    return answer
