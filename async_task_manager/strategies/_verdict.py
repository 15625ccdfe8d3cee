"""What the gates of a chain say about the first task of a lane: where it is refused, or which way
it may go. Nothing is changed by asking.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from math import inf
from typing import TYPE_CHECKING, Any, TypeAlias

from async_task_manager.errors import TaskRejected, TaskTooLarge
from async_task_manager.strategies._gates import Gate, Refusal, RouterGate
from async_task_manager.strategies._lanes import Lane
from async_task_manager.strategies.base import Branch

if TYPE_CHECKING:
    from async_task_manager.task import Task

__all__ = ["Way", "ask", "until"]

Way: TypeAlias = "tuple[Branch, Sequence[Branch]]"
"""The branch to take, and those that would have been asked after it."""


def ask(
    gates: tuple[Gate | RouterGate, ...], lane: Lane, task: Task[Any], now: float
) -> Refusal | dict[int, Way]:
    """Asks every gate in turn: the first refusal, or the branch to take at each router."""
    way: dict[int, Way] = {}
    for gate, key, cost in zip(gates, lane.keys, task._costs, strict=True):
        if isinstance(gate, Gate):
            node = gate.nodes.get(key)
            if node is not None and node.blocks(lane):
                return Refusal().add(gate, key, None)
            instant = gate.limit.ready_at(key, cost, now)
            if not instant <= now:
                return Refusal().add(gate, key, instant)
        else:
            found = route(gate, lane, task, now)
            if isinstance(found, Refusal):
                return found
            way[gate.index] = found
    return way


def route(gate: RouterGate, lane: Lane, task: Task[Any], now: float) -> Way | Refusal:
    """The best branch that admits the head, or the first refusal in each of them."""
    pin, keys = key = lane.keys[gate.index]
    costs = task._costs[gate.index]
    router = gate.router
    refusal = Refusal()
    rejections: list[TaskRejected] = []
    too_large: TaskTooLarge | None = None
    branches = [branch for branch in router.branches(pin) if branch in keys]
    if branches:
        branches = list(router.choose(branches, task, now))
    for place, branch in enumerate(branches, 1):
        try:
            closed = enter(gate.gates(branch), lane, keys[branch], costs[branch], now)
        except TaskTooLarge as error:
            too_large = error
            continue
        if closed is None:
            return branch, branches[place:]
        shut, inner_key, instant, rejection = closed
        refusal.add(shut, inner_key, instant)
        if rejection is not None:
            rejections.append(rejection)
    if rejections and len(rejections) == len(refusal.places):
        raise min(rejections, key=until)
    if too_large is not None and not refusal.places and not hopeful(gate, key, costs):
        raise too_large
    return refusal.add(gate, pin, inf)


def enter(
    gates: tuple[Gate, ...], lane: Lane, keys: Any, costs: Any, now: float
) -> tuple[Gate, Hashable, float | None, TaskRejected | None] | None:
    """Asks the limits of one branch: None if all admit, else the first refusal."""
    for gate, key, cost in zip(gates, keys, costs, strict=True):
        node = gate.nodes.get(key)
        if node is not None and node.blocks(lane):
            return gate, key, None, None
        try:
            instant = gate.limit.ready_at(key, cost, now)
        except TaskRejected as error:
            return gate, key, until(error), error
        if not instant <= now:
            return gate, key, instant, None
    return None


def hopeful(gate: RouterGate, key: Any, costs: Any) -> bool:
    """Whether any branch, enabled or not, could still admit these costs."""
    for branch, keys in key[1].items():
        try:
            for inner, own_key, cost in zip(gate.gates(branch), keys, costs[branch], strict=True):
                inner.limit.check(own_key, cost)
        except TaskTooLarge:
            continue
        return True
    return False


def until(error: TaskRejected) -> float:
    """When the branch that a limit closed in this way may be open again."""
    return inf if error.until is None else error.until
