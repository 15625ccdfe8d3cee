"""A naive chain, to hold the clever one against: everything is a loop over lists.

The rule, as plainly as it can be put. Tasks are grouped in lanes: the same key at every limit, the
same groups, the same pin and the same keys inside every branch of a router. Inside a lane they
stand by (rank, arrival); the first is the lane's head, and lanes compare by (rank of the head with
the ranks of its groups, arrival of the head).

A lane is unparked, or parked: at one node (a limit and a key), or, if a router refused it, at the
first refusing node of every branch that it may take now and at the node of its pin. A limit that
says `TaskRejected` inside a branch is a closed one there. A lane may also keep its place at nodes
that it has left.

One step: go through the lanes, best first. A parked one is passed over unless one of its nodes is
open for its head, with no better lane parked or keeping a place there (the node of a pin never
opens; a limit that raises counts as open, but `TaskRejected` in a branch is closed until then).
Any other is asked about from the first limit on. The first limit at whose node a better lane is
parked or keeps a place, or which is not ready, is where it is parked now. Does it thereby leave
other nodes for the fifth time since a task of it started, or later, it keeps its place at those
of them that are no router's. If nothing refuses, the head starts. Either way, begin anew with the
best lane; a step in which nothing changed ends the pull.

A lane is unparked when it has another head, or when its head has another rank: the ranks of groups
are asked for when the head changes, after each acquire, settle and release in the group, and after
`changed`. Its kept places go when its head starts, or when it is empty. `changed` of a router, or
of a limit in one, unparks the lanes at the nodes of that router; branches that come or go
make all lanes anew.

Items wait in an open batch first: that of those that share bulk key, keys and groups. It closes at
once when it is full or when a limit refuses what they cost together with the next; at the first
pull at which its oldest has waited long enough, if there are enough of them, or else as soon as
there are. Closed, it stands in the lane as one entry, with the best rank, the first arrival and
the sum of the costs; at the first pull after one of them has left or has another rank, it takes
its place anew. What was tried before is a batch of its own.

Held tasks join their lane at the first pull at which their instants have come, expired ones leave
the queue at the first pull at which theirs have. A failed task that is to run again keeps rank,
arrival and bounds.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterator
from dataclasses import dataclass, field
from math import inf
from typing import Any, TypeAlias

from async_task_manager.errors import (
    DeadlineExceeded,
    QueueTimeout,
    TaskManagerError,
    TaskRejected,
    TaskTooLarge,
)
from async_task_manager.strategies.base import (
    ALL,
    BaseStrategy,
    Branch,
    Collector,
    Feedback,
    GroupOrder,
    Hold,
    Limit,
    Order,
    Role,
    Router,
    WallTime,
    _Home,
)
from async_task_manager.strategies.cost_estimator import CostEstimator
from async_task_manager.task import Outcome, Task

__all__ = ["Oracle"]

Node: TypeAlias = "tuple[Any, ...]"
"""(stage, key), (stage, branch, position in it, key), or (stage, "pin", pin)."""

Way: TypeAlias = "tuple[Branch, list[Branch]]"
"""A branch, and those that would have been asked after it."""

PATIENCE = 4


@dataclass(eq=False)
class Entry:
    """What the oracle knows about a task."""

    task: Task[Any]
    arrival: int
    rank: tuple[Any, ...]
    keys: list[Any]
    costs: list[Any]
    groups: list[Hashable]
    opens: float = -inf
    opens_wall: float = -inf
    closes: list[tuple[float, type[Exception]]] = field(default_factory=list)
    state: str = "held"
    grants: list[tuple[Limit, Any, Hashable]] = field(default_factory=list)
    taken: list[tuple[Router, Branch]] = field(default_factory=list)
    provider: str | None = None
    bulk: tuple[Hashable] | None = None
    """Its bulk key, if it is an item."""
    batch: Batch | None = None
    bound: int = 0
    held: int = 0
    """Where it stands among those that expire, or are held until, the same instant."""


@dataclass(eq=False)
class Batch(Entry):
    """Items that wait, and run, as one."""

    members: dict[Entry, float] = field(default_factory=dict)
    """With the instants at which they came."""
    enough: float = inf
    """Once it has so many, it closes."""

    def fold(self) -> None:
        first, *_ = self.members
        self.arrival = min(one.arrival for one in self.members)
        self.rank = min(one.rank for one in self.members)
        self.keys, self.groups = first.keys, first.groups
        said = [one.task.metadata for one in self.members]
        common = {
            name: value
            for name, value in said[0].items()
            if all(name in other and other[name] == value for other in said)
        }
        self.task.metadata.clear()
        self.task.metadata.update(common)


@dataclass(eq=False)
class Lane:
    entries: list[Entry]
    nodes: list[Node] = field(default_factory=list)
    kept: list[Node] = field(default_factory=list)
    moves: int = 0
    head: Entry | None = None
    rank: Any = None

    @property
    def place(self) -> tuple[Any, int]:
        assert self.head is not None
        return self.rank, self.head.arrival


class Oracle:
    """Speaks as much of `Chain` as a random life needs, and starts what a chain should start."""

    def __init__(self, *stages: BaseStrategy) -> None:
        self.stages = stages
        self.orders = [stage for stage in stages if isinstance(stage, Order)]
        self.gates = [stage for stage in stages if isinstance(stage, Limit | Router)]
        collectors = [stage for stage in stages if isinstance(stage, Collector)]
        self.collector = collectors[0] if collectors else None
        self.open: list[Batch] = []
        self.thinned: list[Batch] = []
        self.holds = 0
        self.entries: dict[Task[Any], Entry] = {}
        self.lanes: list[Lane] = []
        self.out: list[tuple[Task[Any], Exception]] = []
        self.offset: float | None = None
        self.now = 0.0
        self.arrivals = 0
        self.listen()

    def policies(self) -> Iterator[Role]:
        for stage in self.stages:
            assert isinstance(stage, Role)
            yield stage
            if isinstance(stage, Router):
                for branch in stage.all_branches(None):
                    yield from branch.limits

    def listen(self) -> None:
        for policy in self.policies():
            if policy._home is None and self.offset is not None:
                policy.set_wall_offset(self.offset, self.now)
            policy._home = _Home(self)

    # ---- intake -----------------------------------------------------------------------------

    def add(self, task: Task[Any], now: float) -> None:
        self.now = now
        plans = [self.plan(gate, task) for gate in self.gates]
        groups = [order.group(task) for order in self.orders if isinstance(order, GroupOrder)]
        rank = tuple(order.rank(task, now) for order in self.orders)
        entry = Entry(task, 0, rank, [k for k, _ in plans], [c for _, c in plans], groups)
        for hold in self.stages:
            if isinstance(hold, Hold):
                opens = hold.not_before(task, now)
                if isinstance(opens, WallTime):
                    entry.opens_wall = max(entry.opens_wall, opens)
                else:
                    entry.opens = max(entry.opens, opens)
                entry.closes.append((hold.not_after(task, now), QueueTimeout))
        options = task._options
        if options is not None and options.queue_timeout is not None:
            entry.closes.append((now + options.queue_timeout, QueueTimeout))
        if options is not None and options.deadline is not None:
            entry.closes.append((options.deadline, DeadlineExceeded))
        if self.collector is not None and self.collector.collects(task):
            entry.bulk = (self.collector.key_of(task),)
        self.holds += 2
        entry.bound, entry.held = self.holds, self.holds + 1
        self.arrivals += 1
        entry.arrival = self.arrivals
        self.entries[task] = entry
        self.greet(entry, now, again=False)
        self.join_if_due(entry, now)

    def plan(self, gate: Limit | Router, task: Task[Any]) -> tuple[Any, Any]:
        if isinstance(gate, Router):
            return self.plan_router(gate, task, gate.pin_of(task), lenient=False)
        key, cost = gate.key_of(task), gate.cost_of(task)
        gate.check(key, cost)
        return key, cost

    def plan_router(
        self, router: Router, task: Task[Any], pin: Hashable, *, lenient: bool
    ) -> tuple[Any, Any]:
        plans: dict[Branch, list[tuple[Any, Any]]] = {}
        refusal: TaskManagerError | None = None
        for branch in router.all_branches(pin):
            try:
                plans[branch] = [self.plan(limit, task) for limit in branch.limits]
            except TaskManagerError as error:
                if not lenient and not isinstance(error, TaskTooLarge):
                    raise
                refusal = error
        if not plans and refusal is not None:
            raise refusal
        keys = {branch: tuple(key for key, _ in plan) for branch, plan in plans.items()}
        costs = {branch: tuple(cost for _, cost in plan) for branch, plan in plans.items()}
        return (pin, keys), costs

    def plan_again(self, entry: Entry) -> bool:
        """Asks the routers anew; False if the task can go nowhere any more."""
        try:
            for i, gate in enumerate(self.gates):
                if isinstance(gate, Router):
                    pin = entry.keys[i][0]
                    entry.keys[i], entry.costs[i] = self.plan_router(
                        gate, entry.task, pin, lenient=True
                    )
        except TaskManagerError as error:
            self.dismiss(entry, "rejected", error)
            return False
        return True

    def greet(self, entry: Entry, now: float, *, again: bool) -> None:
        orders = [order for order in self.orders if isinstance(order, GroupOrder)]
        for order, group in zip(orders, entry.groups, strict=True):
            order.arrive(group, now, again)
        for i, gate in enumerate(self.gates):
            if isinstance(gate, Router):
                gate.arrive(entry.keys[i][0])

    def farewell(self, entry: Entry, now: float) -> None:
        orders = [order for order in self.orders if isinstance(order, GroupOrder)]
        for order, group in zip(orders, entry.groups, strict=True):
            order.leave(group, now)
        for i, gate in enumerate(self.gates):
            if isinstance(gate, Router):
                gate.leave(entry.keys[i][0])

    def join_if_due(self, entry: Entry, now: float) -> None:
        wall = entry.opens_wall == -inf or (
            self.offset is not None and entry.opens_wall - self.offset <= now
        )
        if entry.opens <= now and wall:
            entry.state = "waiting"
            if entry.bulk is None:
                self.join(entry, now)
            elif entry.task.attempt:
                self.join(self.batch_of([entry]), now)
            else:
                self.fill(entry, now, now)
        else:
            entry.state = "held"

    # ---- batches ----------------------------------------------------------------------------

    def batch_of(self, members: list[Entry]) -> Batch:
        batch = Batch(Task(members[0].task._work, {}), 0, (), [], [], [])  # type: ignore[arg-type]  # it waits
        run = members[0].task._run
        if run is not None:
            batch.task._progress().failed_at = run.failed_at
        for member in members:
            self.put(batch, member, self.now)
        return batch

    def put(self, batch: Batch, entry: Entry, since: float) -> bool:
        """Adds the entry, unless a limit refuses them together."""
        costs = self.together([*batch.members, entry])
        if batch.members:
            try:
                self.check(entry, costs)
            except TaskManagerError:
                return False
        batch.members[entry] = since
        entry.batch = batch
        batch.costs = costs
        batch.fold()
        return True

    def together(self, members: list[Entry]) -> list[Any]:
        costs: list[Any] = []
        for i, gate in enumerate(self.gates):
            parts = [member.costs[i] for member in members]
            if isinstance(gate, Limit):
                costs.append(total(gate, parts))
            else:
                costs.append(
                    {
                        branch: tuple(
                            total(limit, [part[branch][j] for part in parts])
                            for j, limit in enumerate(branch.limits)
                        )
                        for branch in parts[0]
                    }
                )
        return costs

    def check(self, entry: Entry, costs: list[Any]) -> None:
        for gate, key, cost in zip(self.gates, entry.keys, costs, strict=True):
            if isinstance(gate, Limit):
                if counts(gate):
                    continue
                gate.check(key, cost)
                continue
            for branch, keys in key[1].items():
                for limit, inner, part in zip(branch.limits, keys, cost[branch], strict=True):
                    if not counts(limit):
                        limit.check(inner, part)

    def fill(self, entry: Entry, now: float, since: float) -> None:
        assert self.collector is not None
        for batch in self.open:
            first = next(iter(batch.members))
            if (first.bulk, first.keys, first.groups) == (entry.bulk, entry.keys, entry.groups):
                if self.put(batch, entry, since):
                    break
                self.shut(batch, now)
        if entry.batch is None:
            batch = self.batch_of([entry])
            batch.members[entry] = since
            self.open.append(batch)
        assert entry.batch is not None
        if len(entry.batch.members) >= min(entry.batch.enough, self.collector.max_size):
            self.shut(entry.batch, now)

    def shut(self, batch: Batch, now: float) -> None:
        self.open.remove(batch)
        self.join(batch, now)

    def thin(self, batch: Batch) -> None:
        """It lost a member, or one has another rank."""
        if not batch.members:
            if batch in self.open:
                self.open.remove(batch)
            self.remove(batch, self.now)
        elif batch in self.open:
            batch.enough = inf
            batch.costs = self.together(list(batch.members))
            batch.fold()
        elif batch not in self.thinned:
            self.thinned.append(batch)

    def turn_batches(self, now: float) -> None:
        for batch in self.thinned:
            self.remove(batch, now)
            if batch.members:
                batch.costs = self.together(list(batch.members))
                batch.fold()
                self.join(batch, now)
        self.thinned = []
        for batch in list(self.open):
            assert self.collector is not None
            oldest = next(iter(batch.members.values()))
            if len(batch.members) >= self.collector.max_size:
                self.shut(batch, now)
                continue
            if batch.enough == inf and oldest + self.collector.max_wait <= now:
                batch.enough = self.collector.min_size
                if len(batch.members) >= batch.enough:
                    self.shut(batch, now)

    def gather(self, entries: list[Entry], now: float) -> None:
        """Batches of what has waited, as few as may be."""
        assert self.collector is not None
        batches: list[Batch] = []
        for entry in entries:
            if entry.task.attempt:
                self.join(self.batch_of([entry]), now)
                continue
            like = [
                batch
                for batch in batches
                for first in [next(iter(batch.members))]
                if (first.bulk, first.keys, first.groups) == (entry.bulk, entry.keys, entry.groups)
            ]
            full = like and len(like[-1].members) >= self.collector.max_size
            if not like or full or not self.put(like[-1], entry, now):
                batches.append(self.batch_of([entry]))
        for batch in batches:
            self.join(batch, now)

    # ---- lanes ------------------------------------------------------------------------------

    def join(self, entry: Entry, now: float) -> None:
        entry.state = "waiting"
        for lane in self.lanes:
            other = lane.entries[0]
            if other.keys == entry.keys and other.groups == entry.groups:
                lane.entries.append(entry)
                break
        else:
            orders = [order for order in self.orders if isinstance(order, GroupOrder)]
            for i, (order, group) in enumerate(zip(orders, entry.groups, strict=True)):
                if all(lane.entries[0].groups[i] != group for lane in self.lanes):
                    order.activate(group, now)
            lane = Lane([entry])
            self.lanes.append(lane)
        self.look(lane, now)

    def remove(self, entry: Entry, now: float) -> None:
        for lane in self.lanes:
            if entry in lane.entries:
                lane.entries.remove(entry)
                self.look(lane, now)
                return

    def look(self, lane: Lane, now: float) -> None:
        """Something came or went in the lane: it may have another head."""
        if not lane.entries:
            self.lanes.remove(lane)
            return
        head = min(lane.entries, key=lambda entry: (entry.rank, entry.arrival))
        if head is not lane.head:
            lane.head = head
            lane.rank = self.rank(head, now)
            lane.nodes = []

    def rank(self, entry: Entry, now: float) -> tuple[Any, ...]:
        groups = iter(entry.groups)
        return tuple(
            (order.group_rank(next(groups), now), own) if isinstance(order, GroupOrder) else own
            for order, own in zip(self.orders, entry.rank, strict=True)
        )

    def regroup(self, groups: list[Hashable], now: float) -> None:
        for lane in self.lanes:
            head = lane.head
            assert head is not None
            if any(mine == theirs for mine, theirs in zip(head.groups, groups, strict=True)):
                rank = self.rank(head, now)
                if rank != lane.rank:
                    lane.rank = rank
                    lane.nodes = []

    # ---- the next task ----------------------------------------------------------------------

    def pull(self, now: float) -> Task[Any] | None:
        self.now = now
        self.turn(now)
        while True:
            for lane in sorted(self.lanes, key=lambda lane: lane.place):
                if not lane.nodes or self.may_move(lane, now):
                    started = self.step(lane, now)
                    if started is not None:
                        return started
                    break
            else:
                return None

    def turn(self, now: float) -> None:
        # What is due by the wall clock comes last; else one after the other, as they come due.
        due: list[tuple[bool, float, int, Entry, type[Exception] | None]] = []
        for entry in self.entries.values():
            if entry.state in ("held", "waiting"):
                for bound, error in entry.closes:
                    by_wall = isinstance(bound, WallTime)
                    instant = bound - (self.offset or 0.0) if by_wall else bound
                    if instant <= now and not (by_wall and self.offset is None):
                        due.append((by_wall, instant, entry.bound, entry, error))
            if entry.state == "held":
                by_wall = entry.opens_wall > -inf
                due.append(
                    (by_wall, entry.opens_wall if by_wall else entry.opens, entry.held, entry, None)
                )
        for *_, entry, late in sorted(due, key=lambda event: event[:3]):
            if entry.state == "held" and late is None:
                self.join_if_due(entry, now)
            elif late is not None and entry.state in ("held", "waiting"):
                self.dismiss(entry, "expired", late("too late"))
        self.turn_batches(now)

    def bounds(self, entry: Entry) -> Iterator[tuple[float, type[Exception]]]:
        for instant, error in entry.closes:
            if not isinstance(instant, WallTime):
                yield instant, error
            elif self.offset is not None:
                yield instant - self.offset, error

    def dismiss(self, entry: Entry, state: str, error: Exception | None) -> None:
        if isinstance(entry, Batch):
            self.refuse(entry, error)
            return
        self.farewell(entry, self.now)
        if entry.batch is not None:
            batch, entry.batch = entry.batch, None
            del batch.members[entry]
            self.thin(batch)
        else:
            self.remove(entry, self.now)
        entry.state = state
        if error is not None:
            self.out.append((entry.task, error))

    def refuse(self, batch: Batch, error: Exception | None) -> None:
        """A limit refused the batch for good: its members, unless each may fit by itself."""
        self.remove(batch, self.now)
        members = list(batch.members)
        batch.members.clear()
        for member in members:
            member.batch = None
            if len(members) > 1 and isinstance(error, TaskTooLarge):
                self.join(self.batch_of([member]), self.now)
            else:
                self.dismiss(member, "rejected", error)

    def step(self, lane: Lane, now: float) -> Task[Any] | None:
        """Asks every limit about the head of the lane: it starts, is parked, or is rejected."""
        head = lane.head
        assert head is not None
        try:
            way, nodes = self.ask(lane, head, now)
        except (TaskRejected, TaskTooLarge) as error:
            self.dismiss(head, "rejected", error)
            return None
        if not nodes:
            self.start(lane, head, way, now)
            return head.task
        assert set(nodes) != set(lane.nodes), "a node that was open refuses"
        if lane.nodes:
            lane.moves += 1
            if lane.moves > PATIENCE:
                lane.kept += [node for node in lane.nodes if len(node) == 2]
        lane.kept = [node for node in lane.kept if node not in nodes]
        lane.nodes = nodes
        return None

    def ask(self, lane: Lane, head: Entry, now: float) -> tuple[list[Way | None], list[Node]]:
        """The branches to take (None for a limit), or the nodes at which to wait."""
        way: list[Way | None] = []
        for i, gate in enumerate(self.gates):
            if isinstance(gate, Router):
                found, nodes = self.route(i, gate, lane, head, now)
                if found is None:
                    return [], nodes
                way.append(found)
            else:
                node = (i, head.keys[i])
                if self.blocked(node, lane) or gate.ready_at(*self.terms(node, head), now) > now:
                    return [], [node]
                way.append(None)
        return way, []

    def route(
        self, i: int, router: Router, lane: Lane, head: Entry, now: float
    ) -> tuple[Way | None, list[Node]]:
        pin, keys = head.keys[i]
        nodes: list[Node] = []
        rejections: list[TaskRejected] = []
        too_large: TaskTooLarge | None = None
        branches = [branch for branch in router.branches(pin) if branch in keys]
        order = list(router.choose(branches, head.task, now))
        for at, branch in enumerate(order):
            try:
                closed = self.enter(i, branch, lane, head, now)
            except TaskTooLarge as error:
                too_large = error
                continue
            if closed is None:
                return (branch, order[at + 1 :]), []
            node, rejection = closed
            nodes.append(node)
            rejections += [rejection] if rejection is not None else []
        if rejections and len(rejections) == len(nodes):
            raise min(rejections, key=until)
        if too_large is not None and not nodes and not self.hope(router, head, i):
            raise too_large
        return None, [*nodes, (i, "pin", pin)]

    def enter(
        self, i: int, branch: Branch, lane: Lane, head: Entry, now: float
    ) -> tuple[Node, TaskRejected | None] | None:
        for j, limit in enumerate(branch.limits):
            node = (i, branch, j, head.keys[i][1][branch][j])
            if self.blocked(node, lane):
                return node, None
            try:
                if limit.ready_at(*self.terms(node, head), now) > now:
                    return node, None
            except TaskRejected as error:
                return node, error
        return None

    def hope(self, router: Router, head: Entry, i: int) -> bool:
        """Whether a branch, though perhaps not now, could still take the task."""
        for branch, keys in head.keys[i][1].items():
            try:
                for limit, key, cost in zip(
                    branch.limits, keys, head.costs[i][branch], strict=True
                ):
                    limit.check(key, cost)
            except TaskTooLarge:
                continue
            return True
        return False

    def limit_at(self, node: Node) -> Limit:
        gate = self.gates[node[0]] if len(node) == 2 else node[1].limits[node[2]]
        assert isinstance(gate, Limit)
        return gate

    def terms(self, node: Node, entry: Entry) -> tuple[Any, Any]:
        """The key and the cost by which the limit at a node knows the task."""
        cost = entry.costs[node[0]]
        return node[-1], cost if len(node) == 2 else cost[node[1]][node[2]]

    def blocked(self, node: Node, lane: Lane) -> bool:
        return any(
            other.place < lane.place for other in self.lanes if node in other.nodes + other.kept
        )

    def instant(self, node: Node, lane: Lane, now: float) -> float:
        """When the node opens for the head of the lane, if nothing happens."""
        assert lane.head is not None
        if len(node) == 3:
            return inf  # a pin
        try:
            return self.limit_at(node).ready_at(*self.terms(node, lane.head), now)
        except TaskRejected as error:
            return now if len(node) == 2 else until(error)
        except TaskTooLarge:
            return now

    def may_move(self, lane: Lane, now: float) -> bool:
        return any(
            not self.blocked(node, lane) and self.instant(node, lane, now) <= now
            for node in lane.nodes
        )

    def start(self, lane: Lane, head: Entry, way: list[Way | None], now: float) -> None:
        for i, (gate, found) in enumerate(zip(self.gates, way, strict=True)):
            if isinstance(gate, Limit):
                grant = gate.acquire(*self.terms((i, head.keys[i]), head), now)
                head.grants.append((gate, grant, head.keys[i]))
            else:
                assert found is not None
                branch, others = found
                for j, limit in enumerate(branch.limits):
                    node = (i, branch, j, head.keys[i][1][branch][j])
                    grant = limit.acquire(*self.terms(node, head), now)
                    head.grants.append((limit, grant, node[3]))
                gate.took(branch, others, now)
                head.taken.append((gate, branch))
                head.provider = branch.name
        head.task._enter([])  # it counts the attempts
        head.state = "running"
        lane.moves = 0
        lane.kept = []
        if isinstance(head, Batch):
            self.entries[head.task] = head
            for member in head.members:
                member.task._enter([])
                member.task._progress().provider = head.provider
                member.state = "running"
                self.farewell(member, now)
        else:
            self.farewell(head, now)
        self.remove(head, now)
        self.regroup(head.groups, now)

    def next_wake(self, now: float) -> float:
        """The first instant at which a pull may do anything, if nothing happens until then."""
        if any(not lane.nodes for lane in self.lanes) or self.thinned:
            return now
        instants = [
            self.instant(node, lane, now)
            for lane in self.lanes
            for node in lane.nodes
            if not self.blocked(node, lane)
        ]
        for batch in self.open:
            assert self.collector is not None
            if len(batch.members) >= self.collector.max_size:
                return now
            if batch.enough == inf:
                instants.append(next(iter(batch.members.values())) + self.collector.max_wait)
        for entry in self.entries.values():
            if entry.state in ("held", "waiting"):
                instants += [instant for instant, _ in self.bounds(entry)]
            if entry.state == "held":
                if entry.opens > now:
                    instants.append(entry.opens)
                elif self.offset is not None:
                    instants.append(entry.opens_wall - self.offset)
        return min(instants, default=inf)

    # ---- what happens to a task -------------------------------------------------------------

    def begun(self, task: Task[Any], now: float) -> None:
        self.now = now
        for limit, grant, _ in self.entries[task].grants:
            limit.started(grant, now)

    def finish(self, task: Task[Any], outcome: Outcome, now: float) -> bool:
        self.now = now
        entry = self.entries[task]
        if outcome.cost is not None and outcome.started:
            self.settle(task, outcome.cost, now)
        for limit, grant, _ in entry.grants:
            limit.release(grant, outcome, now)
        entry.grants = []
        run = task._progress()  # where the strategies look
        for router, branch in entry.taken:
            router.ended(branch, outcome, now)
            if outcome.kind == "failure":
                run.failed_at = (*(run.failed_at or ()), branch.name)
        entry.taken = []
        if isinstance(entry, Batch):
            entry.state = outcome.kind
            self.regroup(entry.groups, now)
            return False
        if entry.batch is not None:
            del entry.batch.members[entry]
            entry.batch = None
            if outcome.kind == "failure" and run.provider is not None:
                run.failed_at = (*(run.failed_at or ()), run.provider)
        else:
            self.regroup(entry.groups, now)
        answers = [
            stage.review(task, outcome, now) for stage in self.stages if isinstance(stage, Feedback)
        ]
        wanted = [answer for answer in answers if answer is not None]
        entry.state = outcome.kind
        if not wanted or outcome.kind == "cancelled":
            return False
        entry.opens = max(now, *(answer.instant for answer in wanted))
        wall = max(answer.wall for answer in wanted)
        entry.opens_wall = WallTime(wall)
        assert self.offset is not None
        again = max(entry.opens, wall - self.offset)
        if any(instant <= again for instant, _ in self.bounds(entry)):
            return False
        entry.task._progress().tried(outcome.error)
        self.holds += 2
        entry.bound, entry.held = self.holds, self.holds + 1
        entry.state = "held"
        self.greet(entry, now, again=True)
        if self.plan_again(entry):
            self.join_if_due(entry, now)
        return True

    def settle(self, task: Task[Any], actual: float | dict[str, float], now: float) -> None:
        self.now = now
        entry = self.entries[task]
        learned: list[CostEstimator] = []
        for limit, grant, _ in entry.grants:
            cost = limit.cost
            unit = cost.unit if isinstance(cost, CostEstimator) else cost
            if isinstance(unit, str):
                value = actual.get(unit) if isinstance(actual, dict) else actual
                if value is not None:
                    limit.settle(grant, value, now)
                    if isinstance(cost, CostEstimator) and cost not in learned:
                        learned.append(cost)
        self.regroup(entry.groups, now)
        for estimator in learned:
            assert estimator.unit is not None
            value = actual[estimator.unit] if isinstance(actual, dict) else actual
            if isinstance(entry, Batch):
                estimator.settled_together([member.task for member in entry.members], value)
            else:
                estimator.settled(task, value)

    def observe(self, task: Task[Any], sample: Any, now: float) -> None:
        self.now = now
        for limit, grant, key in self.entries[task].grants:
            limit.observe(sample, now, key, grant)

    def cancel(self, task: Task[Any], now: float) -> None:
        self.now = now
        self.dismiss(self.entries[task], "cancelled", None)

    def ranks(self, task: Task[Any]) -> tuple[Any, ...]:
        return self.entries[task].rank

    def rerank(self, task: Task[Any], ranks: tuple[Any, ...], now: float) -> None:
        self.now = now
        entry = self.entries[task]
        entry.rank = ranks
        if entry.batch is not None and entry.state == "waiting":
            self.thin(entry.batch)
        for lane in self.lanes:
            if entry in lane.entries:
                if lane.head is entry:
                    lane.head = None  # it has another rank, and is to be asked anew
                self.look(lane, now)

    def queued(self) -> set[Task[Any]]:
        return {task for task, entry in self.entries.items() if entry.state in ("held", "waiting")}

    # ---- what changes from outside ----------------------------------------------------------

    def set_wall_offset(self, offset: float, now: float) -> None:
        first = self.offset is None
        self.offset = offset
        for policy in self.policies():
            if policy.uses_wall_time:
                policy.set_wall_offset(offset, now)
                self.policy_changed(policy, ALL)
        for task, entry in self.entries.items():
            if first and entry.state in ("held", "waiting"):
                ranks = [
                    order.rank(task, now) if order.uses_wall_time else rank
                    for order, rank in zip(self.orders, entry.rank, strict=True)
                ]
                self.rerank(task, tuple(ranks), now)

    def policy_changed(self, policy: Role, key: Hashable) -> None:
        if policy is self.collector:
            for batch in self.open:
                batch.enough = inf
        if isinstance(policy, GroupOrder):
            for lane in self.lanes:
                assert lane.head is not None
                if key is ALL or key in lane.head.groups:
                    self.regroup(lane.head.groups, self.now)
        for i, gate in enumerate(self.gates):
            if isinstance(gate, Router):
                inside = [limit for branch in gate.all_branches(None) for limit in branch.limits]
                if policy is gate or policy in inside:
                    for lane in self.lanes:
                        if any(node[0] == i and len(node) > 2 for node in lane.nodes):
                            lane.nodes = []

    def policy_restructured(self, policy: Role) -> None:
        self.listen()
        in_line = sorted(
            (entry for lane in self.lanes for entry in lane.entries), key=lambda e: e.arrival
        )
        self.lanes = []
        closed = [one for batch in in_line if isinstance(batch, Batch) for one in batch.members]
        opened = [came for batch in self.open for came in batch.members.items()]
        self.open, self.thinned = [], []
        for entry in [*closed, *(one for one, _ in opened)]:
            assert entry.batch is not None
            entry.batch.members.clear()
            entry.batch = None
        for entry in self.entries.values():
            if entry.state in ("held", "waiting") and not isinstance(entry, Batch):
                if self.plan_again(entry) and entry.state == "waiting" and entry.bulk is None:
                    self.join(entry, self.now)
        if self.collector is not None:
            self.gather([entry for entry in closed if entry.state == "waiting"], self.now)
        for entry, since in sorted(opened, key=lambda came: (came[1], came[0].arrival)):
            if entry.state == "waiting":
                if entry.task.attempt:
                    self.join(self.batch_of([entry]), self.now)
                else:
                    self.fill(entry, self.now, since)


def until(error: TaskRejected) -> float:
    return inf if error.until is None else error.until


def counts(limit: Limit) -> bool:
    """Whether it counts tasks: a batch is one."""
    return limit.cost is None and type(limit).cost_of is Limit.cost_of


def total(limit: Limit, parts: list[Any]) -> Any:
    return parts[0] if counts(limit) else sum(parts)
