"""What a strategy is: the four methods of any strategy, and the roles of the built-in ones.

A **strategy** answers "which task next?" through four methods (:class:`BaseStrategy`).
A **policy** is a strategy that subclasses one or more *roles* and holds no task, no timer, no
clock and no event loop: time comes in as ``now`` (chain time: seconds since the first start,
never going back). The :class:`~async_task_manager.strategies.chain.Chain` holds the tasks, asks
each policy about a task once, at intake, and from then on shows it keys, costs and grants only.

    role           answers
    Order          which first?
    GroupOrder     which first, decided per group (a user, a tenant)?
    Hold           between when and when?
    Limit          how many, how fast?
    Router         where?
    Feedback       what after the outcome?
    Source         which tasks now, other than those added?
    Collector      which tasks become one?
"""

from __future__ import annotations

import copy
import weakref
from abc import ABC, abstractmethod
from collections.abc import Awaitable, Callable, Hashable, Iterable, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from fractions import Fraction
from typing import TYPE_CHECKING, Any, Final, Protocol, TypeAlias, cast

from async_task_manager._validate import exact, number
from async_task_manager.errors import InvalidState, InvalidType, InvalidValue
from async_task_manager.strategies._fields import check_field, hashable, said
from async_task_manager.strategies._keys import shown

if TYPE_CHECKING:
    from async_task_manager.strategies.chain import Chain
    from async_task_manager.task import Outcome, Task

__all__ = [
    "ALL",
    "BaseStrategy",
    "Branch",
    "Collector",
    "Cost",
    "CostSpec",
    "Feedback",
    "GroupOrder",
    "Hold",
    "Item",
    "KeySpec",
    "Limit",
    "Order",
    "RetryAt",
    "Role",
    "Router",
    "Sampling",
    "Source",
    "Usage",
    "WallTime",
]

Cost: TypeAlias = "int | float | Fraction"
KeySpec: TypeAlias = "str | Callable[[Task], Hashable] | None"
CostSpec: TypeAlias = "float | str | Callable[[Task], float] | None"


class _All:
    """The key that means every key, in ``changed(key=ALL)``."""

    def __repr__(self) -> str:
        return "ALL"

    def __copy__(self) -> _All:
        return self

    def __deepcopy__(self, memo: object) -> _All:
        return self


ALL: Final = _All()


class BaseStrategy(ABC):
    """The contract of any strategy, and all that a custom one needs.

    A strategy written against these methods alone works by itself and anywhere in a chain. It
    need not call ``super().__init__()``.
    """

    @abstractmethod
    def add_task(self, task: Task) -> None:
        """Takes a task in. An error raised here reaches the caller of ``add_task``."""

    @abstractmethod
    def get_next_task(self) -> Task | None:
        """The task to start now, or None if none may start."""

    @abstractmethod
    async def get_sleep_interval(self) -> float | None:
        """Seconds until it is worth asking again.

        0: at once after a task. None, or 0 after ``get_next_task`` gave None: the manager's
        ``poll_interval``. Finite and not negative.
        """

    async def on_task_done(self) -> None:
        """Called after each task that ended, whatever its outcome. Optional."""


class WallTime(float):
    """Epoch seconds, where chain time is expected: the chain converts it, again when the clock
    steps.
    """

    __slots__ = ()


@dataclass(frozen=True, slots=True)
class Usage:
    """How much of a limit is in use: for status, bars and explanations."""

    used: float
    capacity: float
    frees_at: float | None = None
    """Chain time at which something of it frees; None: nothing is used, or only an event frees it.
    """


@dataclass(frozen=True, slots=True)
class RetryAt:
    """The answer of a feedback that wants the task to run again, not before ``instant`` (chain
    time), nor before ``wall`` (epoch seconds), which follows the wall clock.
    """

    instant: float
    wall: float = float("-inf")


@dataclass(frozen=True, slots=True)
class Sampling:
    """What a policy wants to have measured: the load of the machine, the health of a server.

    The manager calls ``sample`` every ``interval`` seconds, the first time one interval after the
    wish arose, and hands what it gives to `Role.observe`. A sample that raises tells nothing:
    `observe` isn't called, and the first one in a stretch of sampling is logged. All this ends with
    the manager's `stop`, and a copy of the policy measures nothing.
    """

    sample: Callable[[], Any]
    """Gives the sample, or an awaitable of it. A plain function runs in the event loop: it must
    not block; an awaitable must end by itself: until then there is no other sample."""
    interval: float
    """Seconds above 0."""

    def __post_init__(self) -> None:
        number("interval", self.interval, above=0)


class _Listener(Protocol):
    def policy_changed(self, policy: Role, key: Hashable) -> None: ...
    def policy_restructured(self, policy: Role) -> None: ...


class _Home:
    """A weak link from a policy to the chain that listens to it; a copy of the policy starts
    without one.
    """

    __slots__ = ("_ref", "_token")

    def __init__(self, listener: _Listener) -> None:
        self._ref = weakref.ref(listener)

    def __call__(self) -> _Listener | None:
        return self._ref()

    def __deepcopy__(self, memo: object) -> None:
        return None

    def __copy__(self) -> None:
        return None

    def __reduce__(self) -> tuple[Any, ...]:
        return (_no_home, ())


def _no_home() -> None:
    return None


class Role(BaseStrategy):
    """What all policies share: a home to tell of live changes, and life outside a manager.

    Used alone, by hand, the four methods run a private chain of this one policy; a manager that
    is given the policy later adopts that chain with its tasks.
    """

    uses_wall_time: bool = False
    """True: the chain tells the policy how wall time and chain time relate (`set_wall_offset`)."""

    _home: _Home | None = None
    _private: Chain | None = None

    def changed(self, key: Hashable = ALL) -> None:
        """Tells whoever listens that answers may differ from now on, for one key or for all.

        A setter of a live parameter calls it, so that what waits is looked at again at once.
        """
        listener = self._home() if self._home is not None else None
        if listener is not None:
            listener.policy_changed(self, key)

    def restructured(self) -> None:
        """Tells whoever listens that branches came or went: what waits is asked about them anew."""
        listener = self._home() if self._home is not None else None
        if listener is not None:
            listener.policy_restructured(self)

    def set_wall_offset(self, offset: float, now: float) -> None:
        """Wall time (epoch seconds) is chain time plus ``offset`` from this ``now`` on."""

    def awaits_wall_time(self, queued: int) -> bool:
        """Whether a step of the wall clock would change what happens next, with so many tasks
        queued: then somebody looks at the clock once a second. Asked if it `uses_wall_time`.
        """
        return queued > 0

    def sampling(self, now: float) -> Sampling | None:
        """What is to be measured from now on; None: nothing, as long as nobody needs it.

        Asked whenever the manager has looked for tasks to start, and before each sample, so that it
        must be cheap. While it gives None, nothing wakes for it.
        """
        return None

    def observe(self, sample: Any, now: float) -> None:
        """Takes in a fact from outside (load, response headers), sampled by someone else.

        Many kinds of facts come this way: whatever a policy doesn't know it passes over.
        """

    def dump(self) -> Any:
        """The state as JSON-able data, so that it can survive a restart; None: nothing to keep."""
        return None

    def load(self, state: Any) -> None:
        """Takes back what `dump` gave, in a fresh policy with the same parameters."""

    def _private_chain(self) -> Chain:
        if self._private is None:
            # the floor above
            from async_task_manager.strategies.chain import Chain

            self._private = Chain(self)
        return self._private

    def add_task(self, task: Task) -> None:
        """Queues the task in this policy's private chain."""
        self._private_chain().add_task(task)

    def get_next_task(self) -> Task | None:
        """The next task that this policy lets start now, by the private chain's monotonic clock."""
        return self._private_chain().get_next_task()

    async def get_sleep_interval(self) -> float | None:
        """Seconds until the private chain may have a task; None: only an event can bring one."""
        return await self._private_chain().get_sleep_interval()

    def __repr__(self) -> str:
        return f"{type(self).__name__}()"

    def __deepcopy__(self, memo: dict[int, Any]) -> Any:
        # A copy is a policy in the same state, not a second door to the same queue.
        twin = type(self).__new__(type(self))
        memo[id(self)] = twin
        for name, value in _state_of(self):
            if name not in ("_home", "_private"):
                # Callables are shared: what they belong to is the caller's, not ours to copy. Some
                # say themselves how they are copied: a cost that learns.
                shared = callable(value) and not hasattr(value, "__deepcopy__")
                copied = value if shared else copy.deepcopy(value, memo)
                object.__setattr__(twin, name, copied)
        return twin


def _state_of(instance: object) -> Iterable[tuple[str, Any]]:
    yield from getattr(instance, "__dict__", {}).items()
    for cls in type(instance).__mro__:
        for name in getattr(cls, "__slots__", ()):
            if name not in ("__dict__", "__weakref__") and hasattr(instance, name):
                yield name, getattr(instance, name)


class Order(Role):
    """Which first? Orders in a chain compare left to right; ties go first come, first served."""

    inherits: bool = False
    """True: a task for which others wait has at least their rank, for as long as they wait."""

    def rank(self, task: Task, now: float) -> Any:
        """A sortable value, lower first; asked once, at intake, and fixed from then on.

        Ranks of one order must compare with each other; NaN must be refused here.
        """
        return 0

    def label(self, task: Task, rank: Any) -> str | None:
        """What people call the task's place in this order ("high"), for counts; None: nothing.

        ``rank`` is what `rank` gave at intake.
        """
        return None


class GroupOrder(Order):
    """Which first, by group: the rank belongs to the group and may change while tasks wait.

    The chain asks `group_rank` when the first task of one of the group's lanes changes, after
    each acquire, settle and release of a task of the group, and after ``changed(group)``. Between
    groups of equal rank, and inside a group, `rank` decides.

    An order that has to know what its groups consume is a `Limit` on the same key as well: it is
    told through `acquire`, `settle` and `release`.
    """

    @abstractmethod
    def group(self, task: Task) -> Hashable:
        """The task's group; asked once, at intake."""

    @abstractmethod
    def group_rank(self, group: Hashable, now: float) -> Any:
        """The group's present rank, lower first."""

    def arrive(self, group: Hashable, now: float, again: bool) -> None:
        """A task of the group was accepted; ``again``: it comes back for another attempt."""

    def activate(self, group: Hashable, now: float) -> None:
        """The group has a task that waits for nothing but its turn; it had none before.

        From `arrive` to here it may be held: for a time that it named, or by a retry's backoff.
        """

    def leave(self, group: Hashable, now: float) -> None:
        """A task of the group left the queue: started, cancelled, expired or rejected."""

    def last_rank(self, group: Hashable, now: float) -> Any:
        """How far back the last of the group's queued tasks stands, lower first; asked when it
        arrives. Where the queue is full, the one that stands last has to go.
        """
        return 0


class Hold(Role):
    """Between when and when? Asked once, at intake."""

    def not_before(self, task: Task, now: float) -> float:
        """The earliest start: chain time, or a `WallTime` that follows the wall clock. <= now: no
        hold.
        """
        return now

    def not_after(self, task: Task, now: float) -> float:
        """The task may start before this instant only (chain time or `WallTime`); inf: no such
        bound.
        """
        return float("inf")


class Limit(Role):
    """How many, how fast?

    ``key`` splits the limit: a metadata name or a callable; None: one limit for all.
    ``cost`` says what a task consumes: None counts tasks (1 each); a number; a callable; or a unit
    name, read
    from ``metadata["cost"][name]`` (or from a bare number in ``metadata["cost"]``), with
    ``default_cost`` for tasks that don't say.

    Costs reach the limit as exact numbers: an int, or a Fraction for what isn't whole; both
    compute as a float does.
    """

    key: KeySpec = None
    cost: CostSpec = None
    default_cost: float | None = None

    def __init__(
        self,
        *,
        key: KeySpec = None,
        cost: CostSpec = None,
        default_cost: float | None = None,
    ) -> None:
        check_field("key", key, optional=True)
        if cost is not None and not isinstance(cost, str) and not callable(cost):
            number("cost", cost, at_least=0)
        if default_cost is not None:
            number("default_cost", default_cost, at_least=0)
        self.key, self.cost, self.default_cost = key, cost, default_cost

    def key_of(self, task: Task) -> Hashable:
        """The task's key, from ``key``; a metadata name that is missing gives None, a key of its
        own.

        Raises:
            InvalidType: the key isn't hashable.
        """
        if self.key is None:
            return None
        return hashable(self, task, said(self.key, task))

    def cost_of(self, task: Task) -> float:
        """What the task consumes: exact, finite, not negative.

        Raises:
            InvalidType: not a number.
            InvalidValue: NaN, infinite, negative; or the unit is missing and there is no
            ``default_cost``.
        """
        spec = self.cost
        if spec is None:
            return 1
        if isinstance(spec, str):
            value = self._unit(spec, task)
            return _exactly(f"cost {spec!r} of {task!r}", value)
        value = spec(task) if callable(spec) else spec
        return _exactly(f"cost of {task!r}", value)

    def _unit(self, unit: str, task: Task) -> object:
        given = said("cost", task)
        if isinstance(given, dict):
            given = given.get(unit)
        if given is None:
            given = self.default_cost
        if given is None:
            raise InvalidValue(
                f"{self!r}: {task!r} has no metadata['cost'][{unit!r}], a number of at least 0; "
                "give it one, or give the strategy a default_cost"
            )
        return given

    @property
    def unit(self) -> str | None:
        """What the limit counts: "requests" where it counts tasks, the name of a unit of cost, or
        an attribute ``unit`` of a callable ``cost``; None: nobody knows.
        """
        if self.cost is None or isinstance(self.cost, int | float):
            return "requests"
        return self.cost if isinstance(self.cost, str) else getattr(self.cost, "unit", None)

    def check(self, key: Hashable, cost: float) -> None:
        """Raises `TaskTooLarge` where no wait could ever help. Called by ``add_task``."""

    @abstractmethod
    def ready_at(self, key: Hashable, cost: float, now: float) -> float:
        """When this cost fits: <= now: it does; finite: then, if nothing else happens; inf: only an
        event helps.

        Pure. May raise `TaskRejected` (a limit that fails fast) or `TaskTooLarge` (a limit that
        was lowered below a cost that it had accepted).
        """

    @abstractmethod
    def acquire(self, key: Hashable, cost: float, now: float) -> Any:
        """Commits and returns the grant. Must not fail; called only when ``ready_at`` is <= now."""

    def started(self, grant: Any, now: float) -> None:
        """The work's first instruction runs now: windows stamp themselves here."""

    def settle(self, grant: Any, actual: float, now: float) -> None:
        """The actual cost is known."""

    def observe(self, sample: Any, now: float, key: Hashable = None, grant: Any = None) -> None:
        """Takes in a fact from outside: a sample of the manager's, or, with its key and grant, what
        a running task was told, such as the headers of a response.

        What the limit doesn't understand it passes over.
        """

    def release(self, grant: Any, outcome: Outcome, now: float) -> None:
        """Takes the grant back, exactly once per acquire: end, error or cancel.

        ``outcome.started`` False (cancelled before its first instruction): everything is
        refunded, and it is no sample for anyone who learns.
        """

    @abstractmethod
    def usage(self, key: Hashable, now: float) -> Usage:
        """How much is in use for this key."""

    def tell(self, usage: Usage) -> str:
        """What is used, as the rest of a sentence: "has used 30 of 30 requests this minute"."""
        used = f"{shown(usage.used)} of {shown(usage.capacity)}"
        return f"has {used} in use ({self.describe()})"

    def keys(self) -> Iterable[Hashable]:
        """The keys of which something is, or was lately, in use: for status."""
        return ()

    def describe(self) -> str:
        """The limit in a few plain words: "30 requests per minute"."""
        return repr(self)


def _exactly(name: str, value: object) -> float:
    # An int or a Fraction, which type checkers don't take for the number that it is.
    return cast("float", exact(number(name, value, at_least=0)))


def _is_set(limit: Limit, word: str) -> bool:
    """Whether a limit has a parameter of that name that can be set."""
    member = getattr(type(limit), word, None)
    return isinstance(member, property) and member.fset is not None


class Branch:
    """One way through a router: a name, and limits of its own."""

    __slots__ = ("__weakref__", "_enabled", "_limits", "_router", "name")

    def __init__(self, name: str, limits: Iterable[Limit] = (), enabled: bool = True) -> None:
        if not isinstance(name, str) or not name:
            raise InvalidType(f"a branch's name must be a non-empty str, not {name!r}")
        if not isinstance(limits, Iterable):
            raise InvalidType(f"limits of {name!r} must be a list of limits, not {limits!r}")
        if not isinstance(enabled, bool):
            raise InvalidType(f"enabled of {name!r} must be True or False, not {enabled!r}")
        self.name = name
        self._limits = tuple(limits)
        self._enabled = enabled
        self._router: weakref.ref[Router] | None = None
        for limit in self._limits:
            if not isinstance(limit, Limit):
                raise InvalidType(f"limits of {name!r} must be limits, not {limit!r}")

    def __getattr__(self, name: str) -> Any:
        """A parameter of the one limit that has it: ``provider.max_concurrent``."""
        return getattr(self._owner(name), name)

    def __setattr__(self, name: str, value: Any) -> None:
        # Its own attributes first: those of a subclass, too.
        if name.startswith("_") or hasattr(type(self), name):
            object.__setattr__(self, name, value)
        else:
            setattr(self._owner(name), name, value)

    def _owner(self, name: str) -> Limit:
        """The limit that has such a parameter, if exactly one has."""
        if name.startswith("_"):  # also where a copy is being made, and there are no limits yet
            raise AttributeError(name)
        owners = [limit for limit in self._limits if not callable(getattr(limit, name, len))]
        if len(owners) == 1:
            return owners[0]
        if owners:
            raise AttributeError(
                f"{self.name!r} has {len(owners)} limits with a {name!r}: set it on one of "
                f"`.limits`, {list(self._limits)!r}"
            )
        known = sorted(
            {word for limit in self._limits for word in dir(type(limit)) if _is_set(limit, word)}
        )
        near = get_close_matches(name, known, 1)
        hint = f"; did you mean {near[0]!r}?" if near else ""
        raise AttributeError(
            f"{self.name!r} has no {name!r}, and no limit of its has "
            f"(theirs: {', '.join(known) or 'none'}){hint}"
        )

    @property
    def limits(self) -> tuple[Limit, ...]:
        """The limits, all of which must admit a task that goes this way."""
        return self._limits

    @property
    def enabled(self) -> bool:
        """Whether tasks may go this way now."""
        return self._enabled


class Router(Role):
    """Where? Tasks take one of several branches, chosen at dispatch, each with its own limits."""

    @abstractmethod
    def pin_of(self, task: Task) -> Hashable:
        """What ties the task to certain branches (a branch's name); None: any will do.

        Asked once, at intake.

        Raises:
            UnknownProvider: pinned to a branch that doesn't exist.
        """

    @abstractmethod
    def all_branches(self, pin: Hashable) -> Sequence[Branch]:
        """Every branch that matches the pin, enabled or not; for None all there are."""

    @abstractmethod
    def branches(self, pin: Hashable) -> Sequence[Branch]:
        """The branches that a task with this pin may take now: enabled and matching."""

    def choose(self, branches: Sequence[Branch], task: Task, now: float) -> Sequence[Branch]:
        """These branches, which could take the task, in the order in which they are asked. Pure."""
        return branches

    def arrive(self, pin: Hashable) -> None:
        """A task with this pin was accepted."""

    def leave(self, pin: Hashable) -> None:
        """A task with this pin left the queue."""

    def took(self, branch: Branch, others: Sequence[Branch], now: float) -> None:
        """A task goes this way now, and not one of the others, which came after it in `choose`."""

    def ended(self, branch: Branch, outcome: Outcome, now: float) -> None:
        """A task that went this way has ended."""


class Feedback(Role):
    """What after the outcome? A chain with a feedback needs work that can be called again."""

    @abstractmethod
    def review(self, task: Task, outcome: Outcome, now: float) -> RetryAt | None:
        """`RetryAt` to run the task again, None to let the outcome stand."""


class Source(Role):
    """Which tasks now, other than those added? Schedules that fire."""

    @abstractmethod
    def next_due(self, now: float) -> float:
        """The next instant at which `emit` has something; inf: only ``changed()`` can bring it
        nearer.
        """

    @abstractmethod
    def emit(self, now: float) -> Iterable[Task]:
        """The tasks that are due; each is taken in as if it were added now."""


class Item:
    """A value that is dealt with together with others: what a `Collector` collects.

    It stands where another task has its work: ``manager.add_task(Item(row))``.
    """

    __slots__ = ("value",)

    def __init__(self, value: Any) -> None:
        self.value = value

    @staticmethod
    def of(task: Task) -> Item | None:
        """The task's item; None: it has work of its own, or has ended."""
        return task._work if isinstance(task._work, Item) else None

    def __call__(self) -> Awaitable[Any]:
        """Raises InvalidState: callable, as work is that can be repeated, it is never called."""
        raise InvalidState(f"{self!r} is no work by itself: it needs a BulkStrategy")

    def __repr__(self) -> str:
        return f"Item({self.value!r})"


class Collector(Role):
    """Which tasks become one? They wait together, and one call does the work of all: batches.

    Tasks with the same key that also agree in every key, group and pin of the chain share a
    batch. To limits it is one task, which costs what its members cost together (one where only
    tasks are counted), and whose outcome is that of the call; it has the best rank of
    its members. To orders, holds, feedbacks and observers, its members are the tasks.

    A batch closes, and waits for its turn, once it has ``max_size`` members, and once its oldest
    has waited ``max_wait`` seconds and it has ``min_size``.
    """

    max_size: int = 100
    max_wait: float = 0.05
    min_size: int = 1

    def collects(self, task: Task) -> bool:
        """Whether the task is one of those; asked once, at intake."""
        return Item.of(task) is not None

    def key_of(self, task: Task) -> Hashable:
        """What its batch has in common; asked once, at intake."""
        return None

    @abstractmethod
    async def call(self, tasks: Sequence[Task]) -> Sequence[Any]:
        """Does the work of all of them: a result for each, in their order.

        A result that is an exception fails that task alone, an error that is raised all of them.
        """
