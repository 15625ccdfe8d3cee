"""Why a task waits: the stages that keep it from starting, and its place among those before it."""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Iterator
from dataclasses import dataclass
from math import inf
from typing import TYPE_CHECKING, Any

from async_task_manager.errors import TaskRejected, TaskTooLarge
from async_task_manager.strategies._batch import CLOSED, Batch
from async_task_manager.strategies._batches import Batches
from async_task_manager.strategies._gates import Gate, RouterGate
from async_task_manager.strategies._lanes import Lane, Node
from async_task_manager.strategies._single_lane import SingleLane
from async_task_manager.strategies.base import BaseStrategy, Hold, Limit, Usage, WallTime

if TYPE_CHECKING:
    from async_task_manager.strategies._dispatch import Dispatch
    from async_task_manager.strategies.chain import Chain
    from async_task_manager.task import Task

__all__ = ["Reason", "Waiting", "causes_of", "reasons_of", "waiting"]


@dataclass(frozen=True, slots=True)
class Reason:
    """One stage that doesn't let the task start now."""

    stage: BaseStrategy
    """The strategy: a limit, a hold, a router without an open provider, a custom strategy."""
    key: Hashable = None
    """For which key of a limit, or which pin of a router; None where it has none."""
    provider: str | None = None
    """The router's branch that the limit belongs to: another branch that opens will do as well."""
    usage: Usage | None = None
    """How much of the limit is in use for that key; None for what is no limit."""
    opens_at: float | None = None
    """When it opens, if nothing else happens: chain time; epoch seconds where a manager tells it.
    None: only an event can open it."""


@dataclass(frozen=True, slots=True)
class Waiting:
    """Why a queued task has not started, in chain time."""

    position: int | None
    """1 for the first of those that wait for the same; None for a task that stands in no line."""
    reasons: tuple[Reason, ...]
    """What binds comes first: the limit that opens last, or the branch of a router that opens
    first. Empty: nothing, it starts at the next look."""


def waiting(chain: Chain, task: Task[Any], now: float) -> Waiting:
    """For a task that is queued in the chain."""
    if task in chain._held:
        return Waiting(None, _held(chain, task, now, _held_until(chain)[task]))
    if chain.batches is not None and (batch := chain.batches.of.get(task)) is not None:
        if batch.due != CLOSED:
            return Waiting(None, (_open(chain.batches, batch),))
        task = batch
    stage = chain._inside.get(task)
    if stage is None and chain.foreign is not None and task not in chain.dispatch.waiting():
        stage = chain._first()
    if stage is not None:
        return Waiting(None, (Reason(stage.strategy),))
    lane = task._lane
    assert lane is not None
    return Waiting(_position(chain, lane, task, now), reasons_of(chain, lane, now))


def _open(batches: Batches, batch: Batch) -> Reason:
    """Others may still join the batch."""
    usage = Usage(len(batch.members), batches.collector.max_size)
    opens_at = None if batch.due == inf else batch.due
    return Reason(batches.collector, batches.keys[next(iter(batch.members))], None, usage, opens_at)


def _held(chain: Chain, task: Task[Any], now: float, until: float) -> tuple[Reason, ...]:
    """Who holds a task that is not to start yet."""
    offset = _offset(chain)

    def last(hold: Hold) -> float:
        instant = hold.not_before(task, now)
        return instant - offset if isinstance(instant, WallTime) else instant

    stage = chain.feedbacks[0] if task.attempt else max(chain.holds, key=last)
    return (Reason(stage, opens_at=until),)


def _held_until(chain: Chain) -> dict[Task[Any], float]:
    """Until when each task is held that is not to start yet. O(tasks with bounds)."""
    offset = _offset(chain)
    found: dict[Task[Any], float] = {}
    for at, _, bound in chain._bounds.heap:
        if bound.error is None:
            found[bound.task] = max(at, bound.opens_wall - offset)
    for at, _, bound in chain._wall_bounds.heap:
        if bound.error is None:
            found[bound.task] = at - offset
    return found


def _offset(chain: Chain) -> float:
    return 0.0 if chain._offset is None else chain._offset


def reasons_of(chain: Chain, lane: Lane, now: float) -> tuple[Reason, ...]:
    """What the first task of a lane waits for, and all behind it."""
    head = lane.peek()
    if head is None:
        return ()
    dispatch = chain.dispatch
    if not isinstance(dispatch, SingleLane):
        return tuple(_Asked(dispatch, now).lane(lane, head))
    found = [
        reason
        for limit, cost in zip(dispatch.limits, head._costs, strict=True)
        if (reason := _refusal(limit, None, cost, now)) is not None
    ]
    return tuple(sorted(found, key=_opens, reverse=True))


class _Asked:
    """One question to a machine of many lanes."""

    def __init__(self, dispatch: Dispatch, now: float) -> None:
        self.dispatch = dispatch
        self.now = now
        self.seen: set[Lane] = set()

    def lane(self, lane: Lane, head: Task[Any]) -> list[Reason]:
        """What each stage that is closed for the lane waits for, that which opens last first."""
        self.seen.add(lane)
        groups: list[list[Reason]] = []
        for gate, key, cost in zip(self.dispatch.gates, lane.keys, head._costs, strict=True):
            if isinstance(gate, Gate):
                groups += [[reason] for reason in self.gate(gate, key, cost, lane)]
            else:
                groups.append(self.router(gate, key, cost, lane))
        # A router opens with the first of its branches, all stages with the last of them.
        groups = sorted([g for g in groups if g], key=lambda g: _opens(g[0]), reverse=True)
        return list(dict.fromkeys(reason for group in groups for reason in group))

    def gate(self, gate: Gate, key: Hashable, cost: Any, lane: Lane) -> list[Reason]:
        """Why this limit doesn't let the lane pass: it is closed, or others wait before it."""
        branch = gate.branch.name if gate.branch is not None else None
        reason = _refusal(gate.limit, key, cost, self.now, branch)
        node = gate.nodes.get(key)
        if reason is None and node is not None and node.blocks(lane):
            first = node.first()
            head = first.peek() if first is not None else None
            if first is None or head is None or first in self.seen:
                return []
            if node not in first.nodes:  # it only keeps its place here, and waits elsewhere
                return self.lane(first, head)
            reason = _refusal(gate.limit, key, _cost_at(gate, head), self.now, branch)
        return [] if reason is None else [reason]

    def router(self, gate: RouterGate, key: Any, costs: Any, lane: Lane) -> list[Reason]:
        """What each branch waits for, the one that opens first first; nothing, if one is open."""
        pin, keys = key
        found: list[Reason] = []
        for branch in gate.router.branches(pin):
            if branch in keys:
                inner: list[Reason] = []
                for own, k, c in zip(gate.gates(branch), keys[branch], costs[branch], strict=True):
                    inner += self.gate(own, k, c, lane)
                if not inner:
                    return []
                found.append(max(inner, key=_opens))
        found.sort(key=_opens)
        return found or [Reason(gate.router, pin)]


def _cost_at(gate: Gate, head: Task[Any]) -> Any:
    cost = head._costs[gate.index]
    return cost if gate.branch is None else cost[gate.branch][gate.inner]


def _refusal(
    limit: Limit, key: Hashable, cost: Any, now: float, provider: str | None = None
) -> Reason | None:
    try:
        instant = limit.ready_at(key, cost, now)
    except TaskRejected as error:
        instant = inf if error.until is None else error.until
    except TaskTooLarge:
        instant = inf
    if instant <= now:
        return None
    opens = None if instant == inf else instant
    return Reason(limit, key, provider, limit.usage(key, now), opens)


def _opens(reason: Reason) -> float:
    return inf if reason.opens_at is None else reason.opens_at


# ---- the line -----------------------------------------------------------------------------------


def _position(chain: Chain, lane: Lane, task: Task[Any], now: float) -> int:
    dispatch = chain.dispatch
    if isinstance(dispatch, SingleLane):
        mine = (task._rank, task._seq)
        return 1 + sum((other._rank, other._seq) < mine for other in lane)
    place = (dispatch.rank_of(lane, task, now), task._seq)
    return 1 + sum(
        (dispatch.rank_of(near, other, now), other._seq) < place
        for near in _neighbours(lane)
        for other in near
    )


def _neighbours(lane: Lane) -> Iterator[Lane]:
    """The lane, and those that wait where it waits."""
    found = {lane: None}
    nodes: Iterable[Node] = lane.nodes
    for node in nodes:
        found |= {near: None for _, _, version, near in node.heap if near.version == version}
    yield from found


def _size(task: Task[Any]) -> int:
    return len(task.members) if isinstance(task, Batch) else 1


# ---- all of them --------------------------------------------------------------------------------


def causes_of(chain: Chain, now: float) -> dict[Reason, int]:
    """What binds the queued tasks, and how many of them. O(lanes + held tasks)."""
    found: dict[tuple[int, Hashable, str | None], tuple[Reason, int]] = {}

    def note(reason: Reason, tasks: int) -> None:
        place = (id(reason.stage), reason.key, reason.provider)
        known, count = found.get(place, (reason, 0))
        if _opens(reason) < _opens(known):
            known = reason  # held tasks: the first of them
        found[place] = known, count + tasks

    until = _held_until(chain) if chain._held else {}
    for task in chain._held:
        note(_held(chain, task, now, until[task])[0], 1)
    for task, stage in chain._inside.items():
        note(Reason(stage.strategy), _size(task))
    if chain.foreign is not None and chain._first().queue.size:
        note(Reason(chain._first().strategy), sum(map(_size, chain._first().queue)))
    if chain.batches is not None:
        for batch in chain.batches.open.values():
            note(_open(chain.batches, batch), len(batch.members))
    dispatch = chain.dispatch
    lanes = [dispatch.only] if isinstance(dispatch, SingleLane) else dispatch.lanes.values()
    for lane in lanes:
        for reason in reasons_of(chain, lane, now)[:1]:
            note(reason, lane.size if chain.batches is None else sum(map(_size, lane)))
    return dict(found.values())
