"""A steady rate, with bursts."""

from __future__ import annotations

from collections.abc import Hashable, Iterable
from math import inf
from typing import TYPE_CHECKING, Any, TypeAlias

from async_task_manager._validate import exact, number
from async_task_manager.strategies._heard import said_to
from async_task_manager.strategies._keys import (
    States,
    call,
    per_key,
    plain,
    read_cost,
    read_key,
    shown,
    too_large,
    words,
    write_cost,
    write_key,
)
from async_task_manager.strategies.base import Cost, CostSpec, KeySpec, Limit, Usage

if TYPE_CHECKING:
    from async_task_manager.task import Outcome

__all__ = ["TokenBucketStrategy"]

Grant: TypeAlias = "list[Any]"
"""[key, bucket, cost, all that was charged by then, the bucket's turn, what was lost by then, what
`settle` charged in excess], and what the server said in answer to it. A list, because it is made
for every task, and an object with names takes three times as long."""

UNHEARD = 7
"""The length of a grant until an answer is heard."""


class _Bucket:
    """One key, as GCRA keeps it: it is full again at ``since + spent / rate``.

    The theoretical arrival time, in two parts: a single float, added to at each task, would drift
    until a full bucket refused the last task of a burst.
    """

    __slots__ = ("flying", "lost", "not_before", "refunded", "since", "spent", "turn")

    def __init__(self, since: float, spent: Cost = 0) -> None:
        self.since = since
        self.spent = spent
        self.refunded: Cost = 0
        self.turn = 0
        """How often it was full, and began anew: nothing charged before can come back."""
        self.flying: Cost = 0
        """Acquired, and neither ended nor answered: a server may not have counted it yet."""
        self.lost: Cost = 0
        """The sum of what ended without an answer: a server may have counted it at any time."""
        self.not_before = -inf


class TokenBucketStrategy(Limit):
    """``rate`` per second in the long run, and up to ``burst`` at once after a pause.

    In any interval of t seconds, at most ``burst + rate * (t + catch_up)`` is let go, in units of
    cost; a full bucket gives exactly ``burst`` at once, and a task that fits never waits here.

    Args:
        rate: Units of cost per second; a finite number above 0.
        burst: What a full bucket holds; a finite number above 0. It bounds the cost of a task.
        catch_up: Seconds, at least 0. A loop wakes a little late, a millisecond or more, and what
            would have been let go meanwhile is lost for good, at small bursts a third of the rate.
            Lateness up to ``catch_up`` is made good; a longer pause counts as rest. 0: none is.
        key: What splits the limit, a metadata name or a callable: each key has a bucket of its own.
            None: one limit for all.
        cost: What a task uses up. None: 1; a number, a callable, or the name of a unit in
            ``metadata["cost"]``. `settle` charges or refunds the difference.
        default_cost: For tasks that don't say.

    Raises:
        InvalidValue, InvalidType: A parameter is out of range or has the wrong type.

    All three numbers can be set at any time. Setting ``rate`` takes O(keys), everything else O(1).
    Memory per key: a few numbers. A key is forgotten once its bucket is full again.

    The algorithm is GCRA, the virtual scheduling of ITU-T I.371: no timer fills the bucket.
    """

    def __init__(
        self,
        rate: float,
        burst: float,
        *,
        catch_up: float = 0.01,
        key: KeySpec = None,
        cost: CostSpec = None,
        default_cost: float | None = None,
    ) -> None:
        super().__init__(key=key, cost=cost, default_cost=default_cost)
        self._rate = plain(number("rate", rate, above=0))
        self._burst = exact(number("burst", burst, above=0))
        self._catch_up = plain(number("catch_up", catch_up, at_least=0))
        self._now = 0.0
        self._buckets: States[_Bucket] = States()
        self._hears = False
        """A server told of its own count: what is under way keeps its key."""

    # ---- live change ------------------------------------------------------------------------

    @property
    def rate(self) -> float:
        """Units of cost per second, for each key."""
        return self._rate

    @rate.setter
    def rate(self, value: float) -> None:
        old = self._rate
        self._rate = plain(number("rate", value, above=0))
        for bucket in self._buckets.values():
            # What is owed at this instant stays owed, and is worked off at the new rate.
            bucket.since = self._now - (self._now - bucket.since) * (old / self._rate)
        self.changed()

    @property
    def burst(self) -> float:
        """What a full bucket holds, for each key."""
        return plain(self._burst)

    @burst.setter
    def burst(self, value: float) -> None:
        self._burst = exact(number("burst", value, above=0))
        self.changed()

    @property
    def catch_up(self) -> float:
        """Seconds of lateness that are made good."""
        return self._catch_up

    @catch_up.setter
    def catch_up(self, value: float) -> None:
        self._catch_up = plain(number("catch_up", value, at_least=0))
        self.changed()

    # ---- the limit --------------------------------------------------------------------------

    def check(self, key: Hashable, cost: Cost) -> None:
        """Raises `TaskTooLarge` for a cost above ``burst``."""
        if cost > self._burst:
            raise too_large(self, cost, "burst", self._burst)

    def ready_at(self, key: Hashable, cost: Cost, now: float) -> float:
        """When the bucket holds the cost. It doesn't depend on ``now``: exact to the bit."""
        if cost > self._burst:
            self.check(key, cost)
        bucket = self._buckets.get(key)
        if bucket is None:
            return now
        instant = bucket.since + (bucket.spent + cost - self._burst) / self._rate
        return instant if instant > bucket.not_before else bucket.not_before

    def acquire(self, key: Hashable, cost: Cost, now: float) -> Grant:
        """Takes the cost out of the bucket."""
        bucket = self._charge(key, cost, now)
        bucket.flying += cost
        if self._buckets.ring:
            self._buckets.sweep(self._idle, now)
        charged = bucket.spent + bucket.refunded
        return [key, bucket, cost, charged, bucket.turn, bucket.lost, None]

    def settle(self, grant: Grant, actual: Cost, now: float) -> None:
        """Charges what was used in excess, or refunds what was not, as far as `release` would."""
        key, bucket, cost = grant[:3]
        actual = exact(number("the actual cost", actual, at_least=0))
        if len(grant) == UNHEARD:
            bucket.flying += actual - cost
        if actual > cost:
            bucket = self._charge(key, actual - cost, now)
            excess = [actual - cost, bucket, bucket.spent + bucket.refunded, bucket.turn]
            grant[6] = [*(grant[6] or ()), excess]
        else:
            self._give_back(grant, cost - actual, now)
        grant[2] = actual

    def release(self, grant: Grant, outcome: Outcome, now: float) -> None:
        """Refunds work that never started, as far as the bucket has not refilled since."""
        if len(grant) == UNHEARD:
            grant[1].flying -= grant[2]
            if outcome.started_at is not None:
                grant[1].lost += grant[2]
        if outcome.started_at is None:
            self._give_back(grant, grant[2], now)

    def observe(self, sample: Any, now: float, key: Hashable = None, grant: Any = None) -> None:
        """Follows what the headers of a response say about the server's own bucket.

        Less remains there than here, with what is under way: so it does here from now on. A
        reset changes nothing, since it is told of a bucket when it will be full.
        """
        said = said_to(self, sample)
        if said is None:
            return
        if grant is not None and len(grant) == UNHEARD:
            grant.append(said)  # the server has counted it
            grant[1].flying -= grant[2]
            said.lose(grant[1].lost - grant[5])
        self._hears = True
        bucket = self._charge(key, 0, now)
        bucket.not_before = max(bucket.not_before, now + said.after)
        if said.remaining is not None:
            owed = bucket.spent - exact(max(0.0, now - bucket.since) * self._rate)
            bucket.spent += max(0, self._burst - said.remaining + bucket.flying - owed)

    def _charge(self, key: Hashable, cost: Cost, now: float) -> _Bucket:
        self._now = now
        bucket = self._buckets.get(key)
        if bucket is None:
            bucket = self._buckets.add(key, _Bucket(now))
        elif bucket.since + bucket.spent / self._rate < now - self._catch_up:
            bucket.since = now
            bucket.spent = bucket.refunded = 0
            bucket.turn += 1
        bucket.spent += cost
        return bucket

    def _give_back(self, grant: Grant, amount: Cost, now: float) -> None:
        """Refunds what was charged last first."""
        self._now = now
        refunded: Cost = 0
        for excess in reversed(grant[6] or ()):
            excess[2] += refunded  # what was charged after it, and is refunded, was no debt then
            part = min(amount, excess[0])
            excess[0] -= part
            amount -= part
            refunded += self._refund(excess[1], excess[2], excess[3], part, now)
        grant[3] += refunded
        self._refund(grant[1], grant[3], grant[4], amount, now)

    def _refund(self, bucket: _Bucket, charged: Cost, turn: int, amount: Cost, now: float) -> Cost:
        """Gives back at most what time and other refunds have left of what was owed at the grant.

        Once the bucket would be full without the grant, it costs nobody anything any more: to
        refund it all the same, on top of what was charged since, would admit more than the burst
        and the rate allow. So would refunds that each count the same debt.
        """
        if turn != bucket.turn:
            return 0
        owed = charged - bucket.refunded - (now - bucket.since) * self._rate
        refund = amount if amount <= owed else exact(max(0.0, owed))
        bucket.spent -= refund
        bucket.refunded += refund
        return refund

    def _idle(self, bucket: _Bucket, now: float) -> bool:
        if self._hears and (bucket.flying or bucket.not_before > now):
            return False
        return bucket.since + bucket.spent / self._rate < now - self._catch_up

    def usage(self, key: Hashable, now: float) -> Usage:
        """What the bucket lacks, and when it is full again."""
        bucket = self._buckets.get(key)
        full = now if bucket is None else bucket.since + bucket.spent / self._rate
        if bucket is not None and bucket.not_before > now:
            return Usage(plain(self._burst), plain(self._burst), max(full, bucket.not_before))
        if bucket is None or full <= now:
            return Usage(0, plain(self._burst))
        return Usage((full - now) * self._rate, plain(self._burst), full)

    def keys(self) -> Iterable[Hashable]:
        """The keys that have state."""
        return self._buckets

    def dump(self) -> Any:
        """The buckets, by key."""
        return [
            [
                write_key(key),
                bucket.since,
                write_cost(bucket.spent),
                bucket.not_before if bucket.not_before > -inf else None,
            ]
            for key, bucket in self._buckets.items()
        ]

    def load(self, state: Any) -> None:
        """Takes the buckets back."""
        for key, since, spent, not_before in state:
            bucket = self._buckets.add(read_key(key), _Bucket(since, read_cost(spent)))
            bucket.not_before = -inf if not_before is None else not_before
            self._hears = self._hears or not_before is not None

    def describe(self) -> str:
        """In words: "at most 10 tasks per second, 20 at once"."""
        rate = words(self, self._rate)
        return f"at most {rate} per second, {self.burst} at once{per_key(self)}"

    def tell(self, usage: Usage) -> str:
        """In a sentence: "has used 4.2 of the 5 requests that may go at once"."""
        most = words(self, usage.capacity, "request")
        return f"has used {shown(usage.used)} of the {most} that may go at once"

    def __repr__(self) -> str:
        catch_up = self._catch_up if self._catch_up != 0.01 else None
        return call(self, self._rate, self.burst, catch_up=catch_up)
