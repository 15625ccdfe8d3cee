"""What stands between a queued task and its start: the limits and routers of a chain, in order."""

from __future__ import annotations

from collections.abc import Hashable, Iterable
from typing import TYPE_CHECKING, Any

from async_task_manager.errors import StrategyError, TaskManagerError, TaskTooLarge
from async_task_manager.strategies._lanes import Lane, Node
from async_task_manager.strategies.base import Branch, Limit, Router

if TYPE_CHECKING:
    from async_task_manager.task import Task

__all__ = ["Gate", "Refusal", "RouterGate", "later"]


class Gate:
    """One limit of the chain, or of a branch, with the nodes at which lanes wait for it."""

    __slots__ = ("branch", "index", "inner", "limit", "nodes")

    def __init__(
        self, limit: Limit, index: int, branch: Branch | None = None, inner: int = 0
    ) -> None:
        self.limit = limit
        self.index = index
        self.branch = branch
        self.inner = inner
        self.nodes: dict[Hashable, Node] = {}

    def plan(self, task: Task[Any]) -> tuple[Hashable, Any]:
        """The task's key and cost, once and for all; raises where it can never pass."""
        limit = self.limit
        key, cost = limit.key_of(task), limit.cost_of(task)
        limit.check(key, cost)
        return key, cost

    def ready_at(self, lane: Lane, task: Task[Any], now: float) -> float:
        """The limit's answer for the head of a lane."""
        key, cost = lane.keys[self.index], task._costs[self.index]
        if self.branch is not None:
            key, cost = key[1][self.branch][self.inner], cost[self.branch][self.inner]
        return self.limit.ready_at(key, cost, now)

    def node(self, key: Hashable) -> Node:
        node = self.nodes.get(key)
        if node is None:
            node = self.nodes[key] = Node(self, key)
        return node

    def all_nodes(self) -> Iterable[Node]:
        return tuple(self.nodes.values())


class RouterGate:
    """A router, with the gates inside its branches and a node for each pin."""

    __slots__ = ("index", "inner", "limit", "pins", "router")

    def __init__(self, router: Router, index: int) -> None:
        self.router = router
        self.index = index
        self.pins: dict[Hashable, Node] = {}
        self.inner: dict[Branch, tuple[Gate, ...]] = {}

    def gates(self, branch: Branch) -> tuple[Gate, ...]:
        gates = self.inner.get(branch)
        if gates is None:
            gates = tuple(
                Gate(limit, self.index, branch, i) for i, limit in enumerate(branch.limits)
            )
            self.inner[branch] = gates
        return gates

    def plan(self, task: Task[Any]) -> tuple[Hashable, Any]:
        """As `plan_for`, with the pin that the router reads off the task."""
        return self.plan_for(task, self.router.pin_of(task), lenient=False)

    def plan_for(self, task: Task[Any], pin: Hashable, lenient: bool) -> tuple[Hashable, Any]:
        """The pin with the keys in every branch, and the costs there; branches that can never
        admit the task are left out. ``lenient``: also those whose metadata it lacks.

        Raises:
            TaskTooLarge: no branch, enabled or not, could ever admit it.
            UnknownProvider: the pin is no branch's.
        """
        keys: dict[Branch, tuple[Hashable, ...]] = {}
        costs: dict[Branch, tuple[Any, ...]] = {}
        refusal: TaskManagerError | None = None
        for branch in self.router.all_branches(pin):
            try:
                plans = [gate.plan(task) for gate in self.gates(branch)]
            except TaskTooLarge as error:
                refusal = error
            except TaskManagerError as error:
                if not lenient:
                    raise
                refusal = error
            else:
                keys[branch] = tuple(key for key, _ in plans)
                costs[branch] = tuple(cost for _, cost in plans)
        if not keys and refusal is not None:
            raise refusal
        return (pin, keys), costs

    def node(self, pin: Hashable) -> Node:
        node = self.pins.get(pin)
        if node is None:
            # Lanes wait there as at a limit's; whoever reads a limit off it looks first.
            node = self.pins[pin] = Node(self, pin)  # type: ignore[arg-type]
        return node

    def all_nodes(self) -> Iterable[Node]:
        yield from tuple(self.pins.values())
        for gates in tuple(self.inner.values()):
            for gate in gates:
                yield from gate.all_nodes()


class Refusal:
    """Where a lane has to wait: gates and keys, and the instants that they named (None: behind a
    better lane). The nodes are made only once it is parked there.
    """

    __slots__ = ("instants", "places")

    def __init__(self) -> None:
        self.places: list[tuple[Gate | RouterGate, Hashable]] = []
        self.instants: list[float | None] = []

    def add(self, gate: Gate | RouterGate, key: Hashable, instant: float | None) -> Refusal:
        self.places.append((gate, key))
        self.instants.append(instant)
        return self


def later(instant: float, limit: Limit, now: float) -> float:
    """When a limit that is closed may open, unless it named no such instant.

    Raises:
        StrategyError: NaN; or a `TaskRejected` in a branch with an ``until`` that has passed, for
            which the limit would be asked again at once, and for ever.
    """
    if not instant > now:
        raise StrategyError(
            f"{limit!r} is closed until {instant!r}: that must be later than now, {now!r}, or inf"
        )
    return instant
