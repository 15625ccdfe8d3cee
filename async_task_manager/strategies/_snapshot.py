"""A chain copied as it stands, to be run ahead while the original goes its own way.

Policies are copied, and so is the machine that holds the tasks; tasks become ghosts, which share
the work, metadata, context and callables of their originals and have a state of their own. It is
no plain deepcopy: lanes and nodes refer to each other in chains as long as there are lanes, so that
recursion would end at Python's limit, and keys must stay the objects that they are.
"""

from __future__ import annotations

import copy
import random
from collections import deque
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any, Final
from weakref import WeakValueDictionary

from async_task_manager._run import Options, Run
from async_task_manager.errors import InvalidState
from async_task_manager.strategies._by_hand import ByHand
from async_task_manager.strategies.base import Limit
from async_task_manager.task import Task

if TYPE_CHECKING:
    from async_task_manager.strategies.chain import Chain

__all__ = ["snapshot_of"]

ATOMIC: Final = frozenset({int, float, str, bool, bytes, type(None)})

MACHINE: Final = ("async_task_manager.strategies._", "async_task_manager.strategies.chain")
"""Modules whose objects are the machine's own: copied attribute by attribute."""

OWN: Final = {
    "Chain": ("_by_hand", "_manager", "_bound", "observers"),
    "Task": ("__weakref__", "_metadata", "_watchers", "_work"),
    "Run": ("driver", "grants"),
    "Options": ("timer",),
    "Dispatch": ("touched",),
    "Lane": ("__weakref__",),
}
"""What a copy doesn't take over: it has its own, or none."""


def snapshot_of(
    chain: Chain, running: Iterable[Task[Any]] = (), seed: int | None = None
) -> tuple[Chain, dict[Task[Any], Task[Any]]]:
    """The copy, and the ghost of each task that is queued in it or among the running ones.

    Random numbers are those that the original would draw, or begin with the seed.

    Raises:
        InvalidState: a stage speaks the four methods only, or cannot be copied.
    """
    for stage in chain.foreigners():
        raise InvalidState(
            f"{stage!r} speaks the four methods only, so that nobody but it knows what it would do "
            "later: a chain with it can neither be copied nor run ahead; write it as a role instead"
        )
    copier = _Copier(chain, [*chain.tasks(), *running])
    found = copier.copy()
    if seed is not None:
        for copied in tuple(copier.memo.values()):
            if isinstance(copied, random.Random):
                seed += 1
                copied.seed(seed)
    return found


class Ghost:
    """Stands for work that belongs to the original, which alone may run it."""

    __slots__ = ("__qualname__",)

    def __init__(self, work: object) -> None:
        self.__qualname__ = getattr(work, "__qualname__", "task")

    def __call__(self) -> Any:
        raise InvalidState(f"{self.__qualname__} is work of the original: a ghost doesn't run it")


class _Copier:
    """Makes an empty twin for whatever it meets first, and fills the twins one after another."""

    def __init__(self, chain: Chain, tasks: list[Task[Any]]) -> None:
        self.chain = chain
        self.tasks = tasks
        self.memo: dict[int, Any] = {}
        """As `copy.deepcopy` keeps it, by which the policies are copied."""
        self.empty: deque[tuple[Any, Any]] = deque()
        self.names: dict[type, tuple[str, ...]] = {}
        self.branches: dict[Any, Any] = {}
        """All through which a task may go, or has gone."""
        self.ways: dict[type, Callable[[Any], Any]] = {
            list: lambda given: [self.twin(item) for item in given],
            tuple: lambda given: tuple([self.twin(item) for item in given]),
            deque: lambda given: deque([self.twin(item) for item in given], given.maxlen),
            set: lambda given: {self.twin(item) for item in given},
            dict: self._dict,
            WeakValueDictionary: self._weak,
            Task: self._shell,
            Run: self._shell,
            Options: self._shell,
        }

    def copy(self) -> tuple[Chain, dict[Task[Any], Task[Any]]]:
        self._share_keys()
        chain = self._shell(self.chain)
        ghosts = {task: self._shell(task) for task in self.tasks}
        for stage in self.chain.stages:
            try:
                copy.deepcopy(stage, self.memo)
            except Exception as error:
                raise InvalidState(f"{stage!r} cannot be copied: {error!r}") from error
        for branch in self.branches:
            copy.deepcopy(branch, self.memo)  # one that was removed is no part of a stage any more
        while self.empty:
            self._fill(*self.empty.popleft())
        chain._by_hand, chain._manager, chain.observers = ByHand(chain), None, None
        chain.dispatch.watch(False)
        chain._bound = {}
        chain._bind()
        return chain, ghosts

    # ---- what is met ------------------------------------------------------------------------

    def twin(self, given: Any) -> Any:
        kind = type(given)
        if kind in ATOMIC:
            return given
        found = self.memo.get(id(given), self)
        if found is not self:
            return found
        way = self.ways.get(kind)
        if way is None:
            way = self.ways[kind] = (
                self._shell if kind.__module__.startswith(MACHINE) else lambda given: given
            )
        return way(given)

    def _dict(self, given: dict[Any, Any]) -> dict[Any, Any]:
        return {self.twin(key): self.twin(value) for key, value in given.items()}

    def _weak(self, given: Any) -> Any:
        twins: Any = WeakValueDictionary()
        for key, value in given.items():
            twins[self.twin(key)] = self.twin(value)
        return twins

    # ---- objects ----------------------------------------------------------------------------

    def _shell(self, given: Any) -> Any:
        twin = self.memo[id(given)] = given.__class__.__new__(given.__class__)
        self.empty.append((given, twin))
        return twin

    def _fill(self, given: Any, twin: Any) -> None:
        kind = type(given)
        names = self.names.get(kind)
        if names is None:
            names = self.names[kind] = _names(given)
        for name in names:
            try:
                value = getattr(given, name)
            except AttributeError:
                continue  # a slot that nothing has filled
            setattr(twin, name, value if type(value) in ATOMIC else self.twin(value))
        if isinstance(given, Task):
            twin._metadata = given._metadata
            twin._watchers = None
            work = self.twin(given._work)  # a batch's is a part of the machine
            twin._work = work if callable(work) else Ghost(work)
        elif kind is Run:
            twin.driver = None
            # What a limit wrote down for the task may be a part of the limit's own state.
            twin.grants = copy.deepcopy(given.grants, self.memo)
        elif kind is Options:
            twin.timer = None

    def _share_keys(self) -> None:
        """Keys are compared with those that will be given, and so stay the same objects."""
        for policy in self.chain._bound.values():
            if isinstance(policy, Limit):
                for key in tuple(policy.keys()):
                    self._share(key)
        for task in self.tasks:
            assert task._lane is not None
            for key in (*task._lane.keys, *task._lane.groups):
                self._share(key)

    def _share(self, key: Any) -> None:
        if type(key) in ATOMIC:
            return
        if type(key) is tuple:
            for part in key:
                self._share(part)
        elif type(key) is dict:  # a router's: the keys inside each branch
            for parts in key.values():
                self._share(parts)
            self.branches.update(key)
        else:
            self.memo[id(key)] = key


def _names(given: object) -> tuple[str, ...]:
    kind = type(given)
    names = dict.fromkeys(getattr(given, "__dict__", ()))
    for cls in kind.__mro__:
        names.update(dict.fromkeys(cls.__dict__.get("__slots__", ())))
    # A subclass of the chain, too, is one.
    own = next((OWN[cls.__name__] for cls in kind.__mro__ if cls.__name__ in OWN), ())
    return tuple(name for name in names if name not in own and name not in ("__dict__",))
