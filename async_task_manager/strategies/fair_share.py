"""Whoever used little goes first."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Hashable, Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from math import inf
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

from async_task_manager._validate import exact, number, one_of
from async_task_manager.errors import InvalidType, InvalidValue
from async_task_manager.strategies._keys import States, call, per_key, read_key, write_key
from async_task_manager.strategies._per_user import GUARANTEED, MAXIMUM, WEIGHT, PerUser
from async_task_manager.strategies._submissions import Submissions
from async_task_manager.strategies.base import Cost, CostSpec, GroupOrder, Limit, Usage

if TYPE_CHECKING:
    from async_task_manager.task import Outcome, Task

__all__ = ["FairShareStrategy", "PerUser", "Standing"]

LEVELS = (0, 5, 15, 25, 35)


@dataclass(frozen=True, slots=True)
class Standing:
    """Where a user stands: for a dashboard."""

    weight: float
    recent: int
    """By levels: tasks submitted in the last window."""
    level: int
    """By levels: the level that a task would get now."""
    ahead: float
    """By share: cost over weight by which the user is ahead of whoever starts now; below 0: behind.
    """
    queued: int
    running: int


class _User:
    __slots__ = ("owed", "queued", "running", "submissions", "tag")

    def __init__(self, tag: float) -> None:
        self.submissions = Submissions()
        self.queued = 0
        self.running = 0
        self.tag = tag
        """The start tag of the user's next task: cost over weight charged so far, on the clock of
        `FairShareStrategy._virtual`.
        """
        self.owed = 0.0
        """How far the tag may lie behind that clock: charges that turned out too high."""

    def __deepcopy__(self, memo: object) -> _User:
        # By hand: there may be a hundred thousand of them in a chain that is to be run ahead.
        twin = _User(self.tag)
        twin.submissions = self.submissions.copy()
        twin.queued, twin.running, twin.owed = self.queued, self.running, self.owed
        return twin


Grant: TypeAlias = "list[Any]"
"""[user, what was charged, by which weight]."""


class FairShareStrategy(GroupOrder, Limit):
    """Whoever used little goes first: by recent requests, or by equal shares of what is consumed.

    **By levels**: a task's level is fixed when it is submitted, by the number of tasks that its
    user submitted in the last window before it, divided by the user's weight (whole division). A
    lower level goes first, ties first come, first served. With the default ``levels``: level 0 for
    0, 1 for 1 to 5, 2 for 6 to 15, 3 for 16 to 25, 4 for 26 to 35, 5 above.

    **By share**: start-time fair queueing (Goyal, Vin, Cheng 1996) on the cost of what started,
    corrected by `settle`. Between two users who both have tasks waiting for nothing but their turn,
    the difference of cost over weight stays below a bound that depends on the size of
    their largest tasks and on how many run at once, not on what else they submit. The task of a
    user who had none waiting comes within one round: each of the others starts about one before it.

    Args:
        key: Who submits: a metadata name, or a callable. Tasks that don't say are one user's.
        by: ``"levels"`` or ``"share"``.
        window_seconds: By levels: the window, in seconds above 0.
        levels: By levels: the most that each level allows, ascending; what is above the last gets
            one level more.
        weights: The user's weight, above 0; 1 where it is None. One of weight 2 gets twice as much.
        cost: By share: what a task consumes, as for any limit. None: every task counts 1.
        default_cost: For tasks that don't say.
        guaranteed: As long as a user runs fewer tasks than this, the next goes before those of all
            who run as many as is guaranteed them; of several such users, the one who runs fewest
            goes first. It keeps no slot free.
        maximum: How many tasks of a user may run at once, at least 1; None: any number.

    ``weights``, ``guaranteed`` and ``maximum`` are a number for all, a mapping by user, or a
    function of the user, which is asked anew each time: live. After a change inside a mapping call
    ``changed(user)``. They, ``levels`` and ``window_seconds`` can also be set.

    Raises:
        InvalidValue, InvalidType: a parameter is out of range or has the wrong type; from
            ``add_task``, what a mapping or function says about the user.

    O(log n) per task for n users who wait. Memory by levels: 8 bytes for each submission of the
    last window. A user is forgotten once nothing is left to remember. `dump` keeps submissions, and
    who is how far ahead.
    """

    def __init__(
        self,
        *,
        key: str | Callable[[Task], Hashable] = "user_id",
        by: Literal["levels", "share"] = "levels",
        window_seconds: float = 3600,
        levels: Sequence[float] = LEVELS,
        weights: PerUser = None,
        cost: CostSpec = None,
        default_cost: float | None = None,
        guaranteed: PerUser = None,
        maximum: PerUser = None,
    ) -> None:
        super().__init__(key=key, cost=cost, default_cost=default_cost)
        if key is None:
            raise InvalidType("key must be a metadata name or a callable, not None")
        self._by_share = one_of("by", by, ("levels", "share")) == "share"
        if not self._by_share and (cost is not None or default_cost is not None):
            raise InvalidValue("cost needs by='share': levels count tasks")
        self._users: States[_User] = States()
        self._busy = 0
        """Tasks queued and running, of all users."""
        self._virtual = 0.0
        """The latest start tag, in cost over weight: where a user begins who had nothing queued."""
        self.window_seconds = window_seconds
        self.levels = levels
        self.weights = weights
        self.guaranteed = guaranteed
        self.maximum = maximum

    # ---- live change ------------------------------------------------------------------------

    @property
    def by(self) -> Literal["levels", "share"]:
        """``"levels"`` or ``"share"``."""
        return "share" if self._by_share else "levels"

    @property
    def window_seconds(self) -> float:
        """The window, in seconds. Levels that were given stay; what has left the window is gone."""
        return self._window

    @window_seconds.setter
    def window_seconds(self, value: float) -> None:
        self._window = number("window_seconds", value, above=0)

    @property
    def levels(self) -> tuple[float, ...]:
        """The most that each level allows. Levels that were given stay."""
        return self._levels

    @levels.setter
    def levels(self, value: Sequence[float]) -> None:
        if isinstance(value, str) or not isinstance(value, Sequence):
            raise InvalidType(f"levels must be a sequence of numbers, not {value!r}")
        found = tuple(number(f"levels[{i}]", level, at_least=0) for i, level in enumerate(value))
        if not found or any(after <= before for before, after in pairwise(found)):
            raise InvalidValue(f"levels must be one number or more, ascending, not {value!r}")
        self._levels = found

    @property
    def weights(self) -> PerUser:
        """The users' weights."""
        return self._weights

    @weights.setter
    def weights(self, value: PerUser) -> None:
        self._weights = WEIGHT.checked("weights", value)
        self.changed()

    @property
    def guaranteed(self) -> PerUser:
        """How many tasks of a user go before the others'."""
        return self._guaranteed

    @guaranteed.setter
    def guaranteed(self, value: PerUser) -> None:
        self._guaranteed = GUARANTEED.checked("guaranteed", value)
        self.changed()

    @property
    def maximum(self) -> PerUser:
        """How many tasks of a user may run at once."""
        return self._maximum

    @maximum.setter
    def maximum(self, value: PerUser) -> None:
        self._maximum = MAXIMUM.checked("maximum", value)
        self.changed()

    # ---- the order --------------------------------------------------------------------------

    def group(self, task: Task) -> Hashable:
        """Who submitted the task."""
        return self.key_of(task)

    def rank(self, task: Task, now: float) -> int:
        """By levels: the level of a task that is submitted now."""
        return 0 if self._by_share else self._level(self.key_of(task), now)

    def label(self, task: Task, rank: Any) -> str | None:
        """By levels: "level 2"."""
        return None if self._by_share else f"level {rank}"

    def group_rank(self, group: Hashable, now: float) -> tuple[int, float]:
        """Who runs less than is guaranteed goes first; by share, then whoever is behind most."""
        user = self._users.get(group)
        running = user.running if user is not None else 0
        if self._guaranteed is not None and running < self._guarantee(group):
            return 0, running
        return 1, user.tag if user is not None else self._virtual

    def last_rank(self, group: Hashable, now: float) -> float:
        """By share: how many tasks the user has queued, over the weight."""
        return self._users[group].queued / self._weight(group) if self._by_share else 0

    def arrive(self, group: Hashable, now: float, again: bool) -> None:
        """A submission, unless the task comes again."""
        user = self._user(group)
        user.queued += 1
        self._busy += 1
        if not (again or self._by_share):
            user.submissions.add(now, self._window)
        self._users.sweep(self._idle, now)

    def activate(self, group: Hashable, now: float) -> None:
        """What the user left unused while nothing was waiting is not saved up."""
        user = self._user(group)
        user.tag = max(user.tag, self._virtual)
        user.owed = 0.0

    def leave(self, group: Hashable, now: float) -> None:
        """One less of the user is queued."""
        self._users[group].queued -= 1
        self._rest()

    # ---- the limit --------------------------------------------------------------------------

    def check(self, key: Hashable, cost: Cost) -> None:
        """Raises what there is against what mappings and functions say about the user."""
        self._weight(key)
        self._guarantee(key)
        self._most(key)

    def ready_at(self, key: Hashable, cost: Cost, now: float) -> float:
        """Now, while fewer than the maximum of the user's tasks run; else only an end helps."""
        if self._maximum is None:
            return now
        user = self._users.get(key)
        return now if user is None or user.running < self._most(key) else inf

    def acquire(self, key: Hashable, cost: Cost, now: float) -> Grant:
        """Charges the user."""
        user = self._user(key)
        charge, weight = 0.0, 1.0
        if self._by_share:
            weight = float(self._weight(key))
            charge = float(cost) / weight
            # Whoever was held up by limits of his own, not by others, has not saved that up, or
            # nobody else would get anything for as long as it takes to make up for it.
            start = max(user.tag, self._virtual - user.owed)
            if user.running >= self._guarantee(key):
                # A start out of turn says nothing of where the others are.
                self._virtual = max(self._virtual, start)
            user.tag = start + charge
            user.owed = max(0.0, min(user.owed, self._virtual - user.tag))
        user.running += 1
        self._busy += 1
        self._users.sweep(self._idle, now)
        return [key, charge, weight]

    def settle(self, grant: Grant, actual: Cost, now: float) -> None:
        """Charges what the task really consumed, instead of what it was charged so far."""
        key, charge, weight = grant
        grant[1] = float(number("the actual cost", actual, at_least=0)) / weight
        if self._by_share:
            self._correct(self._users[key], grant[1] - charge)

    def release(self, grant: Grant, outcome: Outcome, now: float) -> None:
        """The user runs one less; what never started is not charged."""
        key, charge, _ = grant
        user = self._users[key]
        user.running -= 1
        if not outcome.started:
            self._correct(user, -charge)
        self._rest()

    def _correct(self, user: _User, more: float) -> None:
        user.tag += more
        if more < 0:
            # While it was charged too much, others went first: that is owed, and no more than that.
            user.owed = max(0.0, min(user.owed - more, self._virtual - user.tag))

    def _rest(self) -> None:
        """Something is over. When everything is, nobody competes, and shares begin anew."""
        self._busy -= 1
        if not self._busy and self._by_share:
            self._users = States()
            self._virtual = 0.0

    def _user(self, key: Hashable) -> _User:
        user = self._users.get(key)
        return user if user is not None else self._users.add(key, _User(self._virtual))

    def _idle(self, user: _User, now: float) -> bool:
        return (
            not (user.queued or user.running)
            and user.tag <= self._virtual
            and user.submissions.idle(now, self._window)
        )

    # ---- what people ask --------------------------------------------------------------------

    def _weight(self, key: Hashable) -> float:
        return WEIGHT.of(key, self._weights)

    def _guarantee(self, key: Hashable) -> float:
        return GUARANTEED.of(key, self._guaranteed)

    def _most(self, key: Hashable) -> float:
        return MAXIMUM.of(key, self._maximum)

    def _recent(self, key: Hashable, now: float) -> int:
        user = self._users.get(key)
        return user.submissions.count(now, self._window) if user is not None else 0

    def _level(self, key: Hashable, now: float) -> int:
        recent = self._recent(key, now) // exact(self._weight(key))
        return bisect_left(self._levels, recent)

    def standing(self, user: Hashable, now: float) -> Standing:
        """Recent use, level and weight of a user, at an instant of chain time."""
        known = self._users.get(user)
        return Standing(
            weight=self._weight(user),
            recent=self._recent(user, now),
            level=self._level(user, now),
            ahead=known.tag - self._virtual if known is not None else 0.0,
            queued=known.queued if known is not None else 0,
            running=known.running if known is not None else 0,
        )

    def usage(self, key: Hashable, now: float) -> Usage:
        """How many tasks of the user run, of how many that may."""
        user = self._users.get(key)
        return Usage(user.running if user is not None else 0, self._most(key))

    def keys(self) -> Iterable[Hashable]:
        """The users of whom something is remembered."""
        return self._users

    def dump(self) -> Any:
        """Submissions by user, and how far the user is ahead; nothing of what waits or runs."""
        return [
            [write_key(key), user.submissions.dump(), max(0.0, user.tag - self._virtual)]
            for key, user in self._users.items()
        ]

    def load(self, state: Any) -> None:
        """Takes them back."""
        for key, stamps, ahead in state:
            user = self._user(read_key(key))
            user.submissions = Submissions(stamps)
            user.tag = self._virtual + ahead

    def describe(self) -> str:
        """In words: "whoever submitted least in the last 3600 s first"."""
        first = (
            "equal shares of what is consumed"
            if self._by_share
            else f"whoever submitted least in the last {self._window} s first"
        )
        if self._maximum is None:
            return first
        most = "so many" if callable(self._maximum) else self._maximum
        return f"{first}, at most {most} at once{per_key(self)}"

    def __repr__(self) -> str:
        return call(
            self,
            by="share" if self._by_share else None,
            window_seconds=self._window if self._window != 3600 else None,
            levels=self._levels if self._levels != LEVELS else None,
            weights=self._weights,
            guaranteed=self._guaranteed,
            maximum=self._maximum,
        )
