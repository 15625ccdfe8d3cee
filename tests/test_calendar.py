"""The calendar against a list."""

from __future__ import annotations

import random
from math import inf

from async_task_manager.strategies._calendar import Calendar


def test_it_gives_what_is_due_in_order_and_forgets_what_does_not_matter() -> None:
    for seed in range(50):
        rng = random.Random(seed)
        alive: dict[int, float] = {}
        order: list[int] = []
        calendar: Calendar[int] = Calendar(lambda instant, item: alive.get(item) == instant)  # noqa: B023
        now = 0.0
        for item in range(1_000):
            act = rng.random()
            if act < 0.5:
                alive[item] = now + rng.choice([0, 0, 1, 2, 50])
                order.append(item)
                calendar.push(alive[item], item)
            elif act < 0.75 and alive:
                del alive[rng.choice(list(alive))]
            else:
                now += rng.choice([0, 0.5, 1])
                due = [i for i in order if alive.get(i, inf) <= now]
                due.sort(key=alive.__getitem__)
                for expected in due:  # of one instant, the first that came
                    assert calendar.pop(now) == expected
                    del alive[expected]
                assert calendar.pop(now) is None
            assert calendar.next() == min(alive.values(), default=inf)
            assert len(calendar.heap) <= max(256, 2 * len(alive)) + 1


def test_it_is_swept_as_it_grows() -> None:
    alive: set[int] = set()
    calendar: Calendar[int] = Calendar(lambda _, item: item in alive)
    for item in range(100_000):
        alive.add(item)
        calendar.push(1.0, item)
        alive.discard(item - 1_000)
        assert len(calendar.heap) <= 2_001
    assert calendar.next() == 1.0
