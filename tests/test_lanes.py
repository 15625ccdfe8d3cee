"""Queues and nodes against lists that are sorted anew each time."""

from __future__ import annotations

import random
from itertools import count
from typing import Any

import pytest

from async_task_manager import Chain, Task
from async_task_manager.strategies import ConcurrentLimitStrategy, _lanes
from async_task_manager.strategies._dispatch import Dispatch
from async_task_manager.strategies._gates import Gate
from async_task_manager.strategies._lanes import PRUNE_AT, Lane, Node, Queue


async def nothing() -> None: ...


def queued(rank: Any, seq: int) -> Task[None]:
    task = Task(nothing)
    task._rank, task._seq, task._state = rank, seq, "queued"
    return task


def by_place(task: Task[Any]) -> tuple[Any, int]:
    return task._rank, task._seq


@pytest.mark.parametrize("prune_at", [PRUNE_AT, 0])
@pytest.mark.parametrize("seed", range(200))
def test_a_queue_is_a_sorted_list(
    seed: int, prune_at: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_lanes, "PRUNE_AT", prune_at)
    rng = random.Random(seed)
    queue, model = Queue(), list[Task[Any]]()
    ranks = rng.choice([[0], [0, 1], range(5), [(0, "b"), (0, "a"), (1, "")], range(1000)])
    away: list[Task[Any]] = []
    seqs = count()
    for _ in range(150):
        act = rng.random()
        if act < 0.45:
            model.append(queued(rng.choice(ranks), next(seqs)))
            queue.push(model[-1])
        elif act < 0.55 and away:
            back = away.pop(rng.randrange(len(away)))  # a retry, with its arrival number
            back._state = "queued"
            queue.push(back)
            model.append(back)
        elif act < 0.65 and model:
            queue.move(rng.choice(model), rng.choice(ranks))
        elif act < 0.8 and model:
            gone = model.pop(rng.randrange(len(model)))
            gone._state = "cancelled"
            queue.lost()
        elif model:
            first = min(model, key=by_place)
            assert queue.peek() is first
            queue.pop()
            model.remove(first)
            first._state = "running"
            away.append(first)
        assert queue.size == len(model)
        assert sorted(queue, key=by_place) == sorted(model, key=by_place)
    for first in sorted(model, key=by_place):
        assert queue.peek() is first
        queue.pop()
    assert queue.peek() is None
    assert queue.size == 0


def test_a_queue_lets_go_of_what_was_cancelled() -> None:
    queue = Queue()
    stays = queued(0, 0)
    queue.push(stays)
    for seq in range(1, 50 * PRUNE_AT):
        gone = queued(seq % 7, seq)
        queue.push(gone)
        gone._state = "cancelled"
        queue.lost()
        entries = [queue.front, *queue._levels.values()]
        assert sum(len(e) if not isinstance(e, Task) else 1 for e in entries) <= PRUNE_AT + 2
    assert queue.peek() is stays


def test_a_node_knows_the_best_lane_and_forgets_the_rest() -> None:
    chain = Chain(ConcurrentLimitStrategy(1, key="k"))
    assert isinstance(chain.dispatch, Dispatch)
    (gate,) = chain.dispatch.gates
    assert isinstance(gate, Gate)
    node = Node(gate, "k")
    rng = random.Random(1)
    versions = count(1)
    lanes = [Lane(chain, i, (i,), ()) for i in range(20)]
    inside: set[Lane] = set()
    for _ in range(2_000):
        lane = rng.choice(lanes)
        lane.version = next(versions)
        if lane in inside:
            inside.remove(lane)
            node.live -= 1
        else:
            lane.rank, lane.seq = rng.randrange(5), lane.version
            node.enter(lane)
            inside.add(lane)
            assert len(node.heap) <= 2 * node.live + 16
        best = min(inside, key=lambda lane: (lane.rank, lane.seq), default=None)
        assert node.first() is best
        for other in inside:
            assert node.blocks(other) is (other is not best)
