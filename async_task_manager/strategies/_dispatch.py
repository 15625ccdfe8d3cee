"""Which queued task starts now: the machine of lanes and nodes inside a chain.

The rule, as a naive reading would have it: go through the heads of all lanes, best first; ask each
limit in chain order; the first that refuses a head, or where a better lane waits already, is where
that lane is parked, and it stays parked there until that very node opens for it. What no limit
refuses starts. The machine below does the same while it looks only at lanes for which something
may have changed: a parked lane costs nothing until its node opens, and a node looks at its first
lane only.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterator
from heapq import heappop, heappush
from itertools import count
from math import inf
from typing import TYPE_CHECKING, Any
from weakref import WeakValueDictionary

from async_task_manager.errors import TaskRejected, TaskTooLarge
from async_task_manager.strategies._calendar import Calendar
from async_task_manager.strategies._gates import Gate, Refusal, RouterGate, later
from async_task_manager.strategies._lanes import Lane, Node
from async_task_manager.strategies._verdict import Way, ask, until
from async_task_manager.strategies.base import ALL, GroupOrder, Limit, Router

if TYPE_CHECKING:
    from async_task_manager.events import Turn
    from async_task_manager.strategies.chain import Chain
    from async_task_manager.task import Outcome, Task

__all__ = ["Dispatch"]

MAX_MOVES = 256
"""Nodes and lanes looked at in one pull: 100,000 of them behind one limit, or due at one instant,
must not stall the loop."""

PATIENCE = 4
"""Moves between nodes after which a lane holds its place at those it leaves. Without that, a task
that needs two contended keys starves: whenever one is free, the other has just been taken."""


class Dispatch:
    """Holds the queued tasks that nothing but limits keeps from starting, and picks the next."""

    fixed = only = None  # there are many lanes, and what a task costs may differ

    def __init__(self, chain: Chain, gates: tuple[Gate | RouterGate, ...]) -> None:
        self.chain = chain
        self.gates = gates
        self.routed = any(isinstance(gate, RouterGate) for gate in gates)
        """Tasks go through a router."""
        self.lanes: dict[Hashable, Lane] = {}
        self.coming: WeakValueDictionary[Hashable, Lane] = WeakValueDictionary()
        """Lanes that held tasks will join: a lane for each of them would be a kilobyte for each."""
        self.by_group: dict[tuple[int, Hashable], dict[Lane, None]] = {}
        self.calendar: Calendar[Node] = Calendar(_node_is_due)
        self.ready: list[tuple[Any, int, int, Lane]] = []
        self.dirty: dict[Node, None] = {}
        self.touched: dict[Node, None] | None = None
        """Nodes at which lanes began or ceased to wait, while somebody observes."""
        self.versions = count(1)
        """No two lanes ever have the same: entries of heaps compare, and lanes don't."""
        self.moves = 0
        """Lanes looked at so far: moves per task started is what a chain's shape costs."""
        self.group_orders: tuple[tuple[int, GroupOrder], ...] = tuple(
            (i, order) for i, order in enumerate(chain.orders) if isinstance(order, GroupOrder)
        )

    # ---- tasks come and go ------------------------------------------------------------------

    def lane(self, keys: tuple[Any, ...], groups: tuple[Any, ...]) -> Lane:
        """The lane for these keys, made if it isn't there; it is kept only once a task joins."""
        identity: Hashable = (keys, groups)
        if self.routed:
            hashable = [
                (key[0], tuple(key[1].items())) if isinstance(gate, RouterGate) else key
                for gate, key in zip(self.gates, keys, strict=True)
            ]
            identity = (tuple(hashable), groups)
        lane = self.lanes.get(identity)
        return lane if lane is not None else Lane(self.chain, identity, keys, groups)

    def share(self, task: Task[Any]) -> None:
        """The task will join its lane at some time, and has one with those that will, too."""
        lane = task._lane
        assert lane is not None
        task._lane = self.coming.setdefault(lane.identity, lane)

    def join(self, task: Task[Any], now: float) -> None:
        """The task waits in its lane from now on."""
        lane = task._lane
        assert lane is not None
        settled = self.lanes.get(lane.identity)
        if settled is None:
            self.lanes[lane.identity] = lane
            for place in enumerate(lane.groups):
                others = self.by_group.get(place)
                if others is None:
                    others = self.by_group[place] = {}
                    self.group_orders[place[0]][1].activate(place[1], now)
                others[lane] = None
        elif settled is not lane:
            lane = task._lane = settled  # made twice while neither had joined
        lane.push(task)
        head = lane.peek()
        assert head is not None
        if lane.seq < 0 or head._seq != lane.seq:
            self.look_anew(lane, now)

    def remove(self, task: Task[Any], now: float) -> None:
        """The task, which stood in its lane and is not queued any more, waits no longer."""
        lane = task._lane
        assert lane is not None
        lane.lost()
        if task._seq == lane.seq:
            self.look_anew(lane, now)

    def move(self, task: Task[Any], rank: Any, now: float) -> None:
        """The task has another rank from now on."""
        lane = task._lane
        assert lane is not None
        lane.move(task, rank)
        head = lane.peek()
        assert head is not None
        if head is task or head._seq != lane.seq:
            self.look_anew(lane, now)

    def look_anew(self, lane: Lane, now: float) -> None:
        """The lane's head or rank changed: it leaves its node and is looked at from the start."""
        self.leave(lane)
        head = lane.peek()
        if head is None:
            self.drop(lane)
            return
        lane.seq = head._seq
        lane.rank = self.rank_of(lane, head, now)
        for node in lane.kept or ():
            node.enter(lane)
        self.enlist(lane)

    def leave(self, lane: Lane) -> None:
        """The lane is parked nowhere; the nodes where it was look at their next."""
        lane.version = next(self.versions)
        for node in lane.nodes:
            node.live -= 1
            self.dirty[node] = None
        for node in lane.kept or ():
            node.live -= 1
            self.dirty[node] = None
        lane.nodes = ()

    def drop(self, lane: Lane) -> None:
        lane.kept = None
        lane.moves = 0
        lane.seq = -1
        del self.lanes[lane.identity]
        for place in enumerate(lane.groups):
            group = self.by_group[place]
            del group[lane]
            if not group:
                del self.by_group[place]

    def rank_of(self, lane: Lane, head: Task[Any], now: float) -> Any:
        if not self.group_orders:
            return head._rank
        # The task's own ranks, each behind the present rank of its group where there is one.
        ranks = list(head._rank)
        for (place, order), group in zip(self.group_orders, lane.groups, strict=True):
            ranks[place] = (order.group_rank(group, now), ranks[place])
        return tuple(ranks)

    def regroup(self, lane: Lane, now: float) -> None:
        """Something happened to the lane's groups: lanes of theirs may rank otherwise now."""
        for place in enumerate(lane.groups):
            self.rank_anew(place, now)

    def rank_anew(self, place: tuple[int, Hashable], now: float) -> None:
        for lane in tuple(self.by_group.get(place, ())):
            head = lane.peek()
            if head is not None and self.rank_of(lane, head, now) != lane.rank:
                self.look_anew(lane, now)

    def enlist(self, lane: Lane) -> None:
        """The lane is to be looked at in the next pull."""
        if lane.listed != lane.version:
            lane.listed = lane.version
            heappush(self.ready, (lane.rank, lane.seq, lane.version, lane))

    # ---- the next one -----------------------------------------------------------------------

    def pull(self, now: float) -> Task[Any] | None:
        """The best task that every limit admits now, with its grants acquired; None if there is
        none.

        After looking at `MAX_MOVES` nodes and lanes it gives up for this turn, and `next_wake` says
        ``now``.
        """
        ready, dirty = self.ready, self.dirty
        if self.calendar.heap and not self.turn(now):
            return None
        for _ in range(MAX_MOVES):
            if dirty:
                self.read(dirty.popitem()[0], now)
                continue
            if not ready:
                return None
            _, _, version, lane = heappop(ready)
            if version != lane.version:
                continue
            lane.listed = -1
            self.moves += 1
            if lane.nodes and not self.opened(lane, now):
                dirty.update(dict.fromkeys(lane.nodes))
                continue
            task = lane.peek()
            assert task is not None
            try:
                verdict = ask(self.gates, lane, task, now)
            except (TaskRejected, TaskTooLarge) as error:
                lane.pop()
                self.look_anew(lane, now)
                self.chain.reject(task, error, now)
                continue
            if isinstance(verdict, Refusal):
                self.park(lane, verdict, now)
                continue
            self.acquire(lane, task, verdict, now)
            return task
        return None

    def turn(self, now: float) -> bool:
        """Nodes whose instants have come are to be looked at; False if there may be more."""
        for _ in range(MAX_MOVES):
            node = self.calendar.pop(now)
            if node is None:
                return True
            node.due = inf
            self.dirty[node] = None
        return False

    def read(self, node: Node, now: float) -> None:
        """Looks at the first lane of a node: wakes it if the node is open, else notes when."""
        lane = node.first()
        if lane is None:
            nodes = node.gate.pins if isinstance(node.gate, RouterGate) else node.gate.nodes
            del nodes[node.key]
            node.due = inf
            if self.touched is not None:
                self.touched[node] = None
        elif node in lane.nodes and not isinstance(node.gate, RouterGate):
            instant = self.instant(node, lane, now)
            if instant <= now:
                self.enlist(lane)
            else:
                self.arm(node, instant, now)
        else:
            node.due = inf  # a kept place, or a pin: it is not woken from here

    def instant(self, node: Node, lane: Lane, now: float) -> float:
        head = lane.peek()
        assert head is not None
        try:
            return node.gate.ready_at(lane, head, now)
        except TaskRejected as error:
            if node.gate.branch is None:
                return now  # the lane has to be looked at, and its head rejected
            return until(error)
        except TaskTooLarge:
            return now

    def arm(self, node: Node, instant: float, now: float) -> None:
        if instant != node.due:
            node.due = later(instant, node.gate.limit, now)
            if instant < inf:
                self.calendar.push(instant, node)

    def opened(self, lane: Lane, now: float) -> bool:
        """Whether a node at which the lane is parked is open for it, with nobody before it."""
        for node in lane.nodes:
            if node.first() is lane and not isinstance(node.gate, RouterGate):
                if self.instant(node, lane, now) <= now:
                    return True
        return False

    def park(self, lane: Lane, refusal: Refusal, now: float) -> None:
        """The lane waits at these nodes, and with patience gone keeps its place where it was."""
        nodes = tuple([gate.node(key) for gate, key in refusal.places])
        kept = lane.kept
        if lane.nodes:
            lane.moves += 1
            if lane.moves > PATIENCE:
                kept = dict(kept or ())
                kept.update(
                    (node, None)
                    for node in lane.nodes
                    if isinstance(node.gate, Gate) and node.gate.branch is None
                )
        self.leave(lane)
        if kept:
            kept = {node: None for node in kept if node not in nodes}
            for node in kept:
                node.enter(lane)
        lane.kept = kept or None
        lane.nodes = nodes
        for node in nodes:
            node.enter(lane)
        if self.touched is not None:
            self.touched.update(dict.fromkeys(nodes))
        for node, instant in zip(nodes, refusal.instants, strict=True):
            if instant is not None:  # nobody stands before it there
                self.arm(node, instant, now)

    # ---- grants -----------------------------------------------------------------------------

    def acquire(self, lane: Lane, task: Task[Any], way: dict[int, Way], now: float) -> None:
        grants: list[Any] = []
        try:
            for gate, key, cost in zip(self.gates, lane.keys, task._costs, strict=True):
                if isinstance(gate, Gate):
                    grants.append(gate.limit.acquire(key, cost, now))
                    continue
                branch, _ = way[gate.index]
                inner: list[Any] = []
                grants.append((branch, inner))
                for limit, k, c in zip(branch.limits, key[1][branch], cost[branch], strict=True):
                    inner.append(limit.acquire(k, c, now))
        except Exception as error:
            lane.pop()
            self.look_anew(lane, now)
            self.chain.undo(task, self.taken(grants), error, now)
        run = task._enter(grants)
        if self.routed:
            for gate in self.gates:
                if isinstance(gate, RouterGate):
                    branch, others = way[gate.index]
                    gate.router.took(branch, others, now)
                    run.provider = branch.name
        lane.pop()
        self.leave(lane)
        lane.kept = None
        lane.moves = 0
        self.look_anew(lane, now)

    def taken(self, grants: list[Any]) -> Iterator[tuple[Limit, Any]]:
        """The limits that have given a grant, where others have not yet."""
        for gate, grant in zip(self.gates, grants, strict=False):
            if isinstance(gate, Gate):
                yield gate.limit, grant
            else:
                branch, inner = grant
                yield from zip(branch.limits, inner, strict=False)

    def granted(self, task: Task[Any]) -> Iterator[tuple[Limit, Hashable, Any, Node | None]]:
        """Every limit that the running task holds a grant of, with its key and the node of that."""
        lane = task._lane
        assert lane is not None
        assert task._run is not None
        for gate, key, grant in zip(self.gates, lane.keys, task._run.grants, strict=True):
            if isinstance(gate, Gate):
                yield gate.limit, key, grant, gate.nodes.get(key)
            else:
                branch, inner_grants = grant
                inner = gate.inner.get(branch)
                for i, (limit, own) in enumerate(zip(branch.limits, inner_grants, strict=True)):
                    inner_key = key[1][branch][i]
                    node = inner[i].nodes.get(inner_key) if inner is not None else None
                    yield limit, inner_key, own, node

    def begun(self, task: Task[Any], now: float) -> bool:
        """The first instruction runs; True if a limit that awaited it may be open for others."""
        for limit, _, grant, node in self.granted(task):
            limit.started(grant, now)
            if node is not None:
                self.dirty[node] = None
        return bool(self.dirty)

    def release(self, task: Task[Any], outcome: Outcome, now: float) -> None:
        failed: Exception | None = None
        for limit, _, grant, node in self.granted(task):
            try:
                limit.release(grant, outcome, now)
            except Exception as error:
                failed = error  # the others get theirs back all the same
            if node is not None:
                self.dirty[node] = None
        if self.routed:
            self.arrived(task, outcome, now)
        assert task._lane is not None
        self.regroup(task._lane, now)
        if failed is not None:
            raise failed

    def arrived(self, task: Task[Any], outcome: Outcome, now: float) -> None:
        """The routers hear how it went, and the task remembers where it failed."""
        run = task._run
        assert run is not None
        for gate, grant in zip(self.gates, run.grants, strict=True):
            if isinstance(gate, RouterGate):
                branch, _ = grant
                gate.router.ended(branch, outcome, now)
                if outcome.kind == "failure":
                    run.failed_at_branch(branch.name)

    def settle(self, task: Task[Any], actual_of: Any, now: float) -> None:
        for limit, _, grant, node in self.granted(task):
            actual = actual_of(limit)
            if actual is not None:
                limit.settle(grant, actual, now)
                if node is not None:
                    self.dirty[node] = None
        assert task._lane is not None
        self.regroup(task._lane, now)

    def observe(self, task: Task[Any], sample: Any, now: float) -> None:
        for limit, key, grant, node in self.granted(task):
            limit.observe(sample, now, key, grant)
            if node is not None:
                self.dirty[node] = None

    # ---- live change ------------------------------------------------------------------------

    def limit_changed(self, limit: Limit, key: Hashable) -> None:
        """Parameters of a limit changed: its nodes look at their first lane again."""
        for gate in self.gates:
            if isinstance(gate, Gate):
                if gate.limit is limit:
                    nodes = gate.all_nodes() if key is ALL else [gate.nodes.get(key)]
                    self.dirty.update((node, None) for node in nodes if node is not None)
            elif any(limit in branch.limits for branch in gate.inner):
                self.router_changed(gate.router)

    def router_changed(self, router: Router) -> None:
        """Branches opened or closed: every lane that waits there is looked at anew."""
        for gate in self.gates:
            if isinstance(gate, RouterGate) and gate.router is router:
                lanes = {
                    lane: None
                    for node in gate.all_nodes()
                    for _, _, version, lane in node.heap
                    if lane.version == version
                }
                for lane in lanes:
                    self.look_anew(lane, self.chain.now)

    def order_changed(self, order: GroupOrder, key: Hashable) -> None:
        """Groups rank otherwise now: one of them or all."""
        for i, (_, mine) in enumerate(self.group_orders):
            if mine is order:
                places = [place for place in self.by_group if place[0] == i]
                for place in places if key is ALL else [(i, key)]:
                    self.rank_anew(place, self.chain.now)

    def emptied(self) -> list[Task[Any]]:
        """Takes every waiting task out, in order of arrival: the branches of a router changed."""
        tasks = sorted(
            (task for lane in self.lanes.values() for task in lane), key=lambda task: task._seq
        )
        if self.touched is not None:
            for node in self.nodes():
                node.heap.clear()  # nothing waits there, and others take their places
                self.touched[node] = None
        for gate in self.gates:
            if isinstance(gate, RouterGate):
                gate.pins.clear()
                gate.inner.clear()
            else:
                gate.nodes.clear()
        self.lanes.clear()
        self.coming.clear()
        self.by_group.clear()
        self.ready.clear()
        self.dirty.clear()
        self.calendar = Calendar(_node_is_due)
        return tasks

    def next_wake(self, now: float) -> float:
        """When the next pull may give something: now, an instant, or inf."""
        return now if self.ready or self.dirty else self.calendar.next()

    # ---- what observers see -----------------------------------------------------------------

    def nodes(self) -> Iterator[Node]:
        for gate in self.gates:
            yield from gate.all_nodes()

    def watch(self, on: bool) -> None:
        """Somebody observes from now on, or nobody."""
        self.touched = dict.fromkeys(self.nodes()) if on else None

    def turned(self) -> Iterator[Turn]:
        """Limits for which tasks began or ceased to wait since this was last asked."""
        touched, self.touched = self.touched, {}
        for node in touched or ():
            gate = node.gate
            if isinstance(gate, Gate):
                branch = gate.branch.name if gate.branch is not None else None
                now_there = gate.nodes.get(node.key)  # nodes come and go with what waits
                if now_there is None or now_there.first() is None:
                    yield gate.limit, node.key, branch, None
                else:
                    yield gate.limit, node.key, branch, now_there.due

    def waiting(self) -> Iterator[Task[Any]]:
        for lane in self.lanes.values():
            yield from lane


def _node_is_due(instant: float, node: Node) -> bool:
    return node.due == instant
