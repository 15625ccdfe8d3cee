"""A random life of a limit, which checks at each step what it says and does."""

from __future__ import annotations

import json
import math
import random
from collections.abc import Hashable
from typing import Any

from async_task_manager.errors import TaskRejected
from async_task_manager.strategies.base import Limit
from async_task_manager.task import Outcome

__all__ = ["ROUNDS", "LimitLife"]

ROUNDS = 200


def ready_at(limit: Limit, key: Hashable, cost: Any, now: float) -> float:
    """The limit's answer; what one that fails fast says in an error is one, too."""
    try:
        return limit.ready_at(key, cost, now)
    except TaskRejected as error:
        until = math.inf if error.until is None else error.until
    assert until > now, f"it refuses at {now} until {until}, which is not later"
    return until


class LimitLife:
    """A random life of a limit beside a twin to which the same happens, but which is asked less."""

    def __init__(self, limit: Limit, twin: Limit, plans: list[tuple[Hashable, Any]]) -> None:
        self.limit, self.twin, self.plans = limit, twin, plans
        self.random = random.Random(1)  # a fixed seed: the same life every time
        self.now = 0.0
        self.held: list[tuple[Any, Any, Hashable, bool]] = []

    def step(self) -> None:
        key, cost = self.random.choice(self.plans)
        match self.random.randrange(4):
            case 0:
                self.now += self.random.choice((0.0, 0.01, 0.1, 1.0, 7.0))
            case 1:
                self.wait(key, cost)
            case 2:
                self.take(key, cost)
            case 3 if self.held:
                self.give_back()

    def ask(self, key: Hashable, cost: Any, now: float) -> float:
        instant = ready_at(self.limit, key, cost, now)
        again = ready_at(self.limit, key, cost, now)
        assert instant == again, f"ready_at must be pure: first {instant}, then {again}"
        assert instant == instant, "ready_at must not be NaN"
        return instant

    def wait(self, key: Hashable, cost: Any) -> None:
        """To the advertised instant: shut just before it, open exactly at it."""
        instant = self.ask(key, cost, self.now)
        if self.now < instant < math.inf:
            before = math.nextafter(instant, -math.inf)
            if before > self.now:
                assert self.ask(key, cost, before) > before, (
                    f"it said {instant}, and is open at {before} already"
                )
            at = self.ask(key, cost, instant)
            assert at <= instant, f"it said {instant}, and says {at} when that comes"
            self.now = instant

    def take(self, key: Hashable, cost: Any) -> None:
        if self.ask(key, cost, self.now) > self.now:
            return
        usage = self.limit.usage(key, self.now)
        assert usage.used == usage.used, "usage must be a number"
        grants = (
            self.limit.acquire(key, cost, self.now),
            self.twin.acquire(key, cost, self.now),
        )
        started = self.random.random() < 0.8
        if started:
            self.limit.started(grants[0], self.now)
            self.twin.started(grants[1], self.now)
        try:
            self.limit.observe(object(), self.now, key, grants[0])
        except Exception as error:
            raise AssertionError(
                f"observe must pass over what it doesn't know: {error!r}"
            ) from error
        self.held.append((*grants, key, started))

    def give_back(self) -> None:
        mine, twins, key, started = self.held.pop(self.random.randrange(len(self.held)))
        kind = self.random.choice(("success", "failure", "cancelled")) if started else "cancelled"
        outcome = Outcome(kind, self.now if started else None, self.now)  # type: ignore[arg-type]
        self.limit.release(mine, outcome, self.now)
        self.twin.release(twins, outcome, self.now)
        cost = next(cost for own, cost in self.plans if own == key)
        answers = [ready_at(policy, key, cost, self.now) for policy in (self.limit, self.twin)]
        assert answers[0] == answers[1], "the same life, another answer: it is not deterministic"

    def drain(self) -> None:
        """Everything back: nobody waits for ever."""
        while self.held:
            self.give_back()
        for key, cost in self.plans:
            ends = self.ask(key, cost, self.now)
            assert ends < math.inf, f"nothing is held, and key {key!r} would wait for ever"

    def hand_down(self, heir: Limit) -> None:
        """What is used up, as far as use and end can, is so for an heir that loads the dump."""
        used = Outcome("success", self.now, self.now)
        for key, cost in self.plans:
            for _ in range(ROUNDS):
                if self.ask(key, cost, self.now) > self.now:
                    break
                grant = self.limit.acquire(key, cost, self.now)
                self.limit.started(grant, self.now)
                self.limit.release(grant, used, self.now)
        state = json.loads(json.dumps(self.limit.dump()))
        if state is None:
            return
        heir.load(state)
        for key, cost in self.plans:
            mine, its = [
                (ready_at(limit, key, cost, self.now), limit.usage(key, self.now))
                for limit in (self.limit, heir)
            ]
            assert mine == its, f"dump and load must keep it: {mine} became {its}"
