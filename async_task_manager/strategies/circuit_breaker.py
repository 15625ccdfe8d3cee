"""Leaves alone what is broken, and tries it again with care."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Hashable, Iterable
from fractions import Fraction
from itertools import islice
from math import inf
from typing import TYPE_CHECKING, Any, Literal, TypeAlias, cast

from async_task_manager._validate import awaitable, exact, number, one_of, whole
from async_task_manager.errors import CircuitOpen, InvalidType
from async_task_manager.strategies._circuit import Circuit, CircuitState
from async_task_manager.strategies._failing import Failing, check_failing, tells_of_failure
from async_task_manager.strategies._keys import States, call, per_key, plain
from async_task_manager.strategies.base import KeySpec, Limit, Sampling, Usage

if TYPE_CHECKING:
    from async_task_manager.strategies.base import Cost
    from async_task_manager.task import Outcome

__all__ = ["CircuitBreakerStrategy", "CircuitState"]

HealthCheck: TypeAlias = Callable[..., Awaitable[object]]
Grant: TypeAlias = "tuple[Circuit, int, int | None]"
"""The circuit, its generation, and the number of a probe."""

ON_OPEN = ("wait", "reject")

FORGET = 3600.0
"""Seconds after its cooldown for which a circuit that nobody asks for is remembered as open."""

CHECKS = 20
"""Health checks in one round: a thousand circuits may be open."""


class _Well:
    """What a round of health checks found: circuits, with their generations of then."""

    __slots__ = ("circuits",)

    def __init__(self, circuits: list[tuple[Circuit, int]]) -> None:
        self.circuits = circuits


class CircuitBreakerStrategy(Limit):
    """Stops what keeps failing, for a cooldown; then a few probes decide whether it goes on.

    **Closed**, everything passes. Once at least ``min_calls`` outcomes of the last
    ``window_seconds`` are known and ``failure_rate`` of them are failures, it is **open** for
    ``cooldown``: nothing passes. Then it is **half-open**: ``half_open_max`` probes pass. If all
    succeed, it closes; one that fails opens it for another cooldown. Closed again, it picks up
    pace: for one cooldown no more run at once than twice ``half_open_max`` and one more for each
    success, so that those who waited don't come all together.

    Cancelled work is no outcome, and a cancelled probe leaves its place to another. A probe that
    has not ended after ``cooldown`` does so, too, though what it finds still counts. What began
    before the breaker changed its state changes nothing when it ends.

    Args:
        failure_rate: The share of failures at which it opens; above 0, at most 1.
        min_calls: Outcomes in the window below which it stays closed; at least 1.
        window_seconds: For how long an outcome counts, in seconds above 0; to a tenth of it.
        cooldown: Seconds above 0 from its opening to the first probe.
        half_open_max: Probes let through, and needed to close it; at least 1.
        on_open: "wait" holds tasks until they may pass; "reject" finishes them with `CircuitOpen`
            (in a provider's limits it sends them elsewhere).
        key: What splits it, a metadata name or a callable: each key has a circuit of its own. None:
            one circuit for all.
        is_failure: Which errors count as failures: an exception class, a tuple of them, or a
            callable of the error. Others count as successes: the other side did answer. None:
            every error but `NonRetryable`.
        health_check: An async function that says whether the other side is well again. The manager
            awaits it while the circuit is open, with the key if there is a ``key``, without
            arguments otherwise. What is true closes the circuit before its cooldown is over, an
            error doesn't.
        check_interval: Seconds above 0 between health checks, and the most that one may take.

    Raises:
        InvalidValue, InvalidType: A parameter is out of range or has the wrong type.

    All but ``key``, ``is_failure`` and ``health_check`` can be set at any time. Every operation is
    O(1), and so is the memory of a key, which is forgotten once its window is empty; an open one an
    hour after its cooldown, and begins closed.
    """

    def __init__(
        self,
        *,
        failure_rate: float = 0.5,
        min_calls: int = 10,
        window_seconds: float = 30.0,
        cooldown: float = 30.0,
        half_open_max: int = 1,
        on_open: Literal["wait", "reject"] = "wait",
        key: KeySpec = None,
        is_failure: Failing = None,
        health_check: HealthCheck | None = None,
        check_interval: float = 5.0,
    ) -> None:
        super().__init__(key=key)
        if health_check is not None and not callable(health_check):
            raise InvalidType(f"health_check must be an async function, not {health_check!r}")
        self.failure_rate = failure_rate
        self.min_calls = min_calls
        self.window_seconds = window_seconds
        self.cooldown = cooldown
        self.half_open_max = half_open_max
        self.on_open = on_open
        self.check_interval = check_interval
        self._failing = check_failing(is_failure)
        self._check = health_check
        self._circuits: States[Circuit] = States()
        self._ailing: dict[Hashable, Circuit] = {}
        """Open circuits that are to be checked."""

    # ---- live change ------------------------------------------------------------------------

    @property
    def failure_rate(self) -> float:
        """The share of failures at which it opens."""
        return plain(self._rate)

    @failure_rate.setter
    def failure_rate(self, value: float) -> None:
        # Exact: 0.7 * 10 is more than 7.
        self._rate = Fraction(exact(number("failure_rate", value, above=0, at_most=1)))

    @property
    def min_calls(self) -> int:
        """Outcomes in the window below which it stays closed."""
        return self._min_calls

    @min_calls.setter
    def min_calls(self, value: int) -> None:
        self._min_calls = whole("min_calls", value, at_least=1)

    @property
    def window_seconds(self) -> float:
        """For how long an outcome counts."""
        return self._window

    @window_seconds.setter
    def window_seconds(self, value: float) -> None:
        self._window = plain(number("window_seconds", value, above=0))

    @property
    def cooldown(self) -> float:
        """Seconds from its opening to the first probe."""
        return self._cooldown

    @cooldown.setter
    def cooldown(self, value: float) -> None:
        self._cooldown = plain(number("cooldown", value, above=0))
        self.changed()

    @property
    def half_open_max(self) -> int:
        """Probes let through, and needed to close it."""
        return self._half_open_max

    @half_open_max.setter
    def half_open_max(self, value: int) -> None:
        self._half_open_max = whole("half_open_max", value, at_least=1)
        self.changed()

    @property
    def on_open(self) -> Literal["wait", "reject"]:
        """What becomes of tasks while it is open."""
        return self._on_open

    @on_open.setter
    def on_open(self, value: Literal["wait", "reject"]) -> None:
        self._on_open: Literal["wait", "reject"] = cast(
            "Literal['wait', 'reject']", one_of("on_open", value, ON_OPEN)
        )
        self.changed()

    @property
    def check_interval(self) -> float:
        """Seconds between health checks."""
        return self._interval

    @check_interval.setter
    def check_interval(self, value: float) -> None:
        self._interval = plain(number("check_interval", value, above=0))

    # ---- the limit --------------------------------------------------------------------------

    def state(self, key: Hashable = None) -> CircuitState:
        """As the last event left it: it stays "open" after the cooldown, until a probe passes."""
        circuit = self._circuits.get(key)
        return "closed" if circuit is None else circuit.state

    def ready_at(self, key: Hashable, cost: Cost, now: float) -> float:
        """Now, or the end of a cooldown: its own, the oldest probe's, or that of the careful start.

        Raises:
            CircuitOpen: it is open, or its probes are under way, and ``on_open`` is "reject".
        """
        circuit = self._circuits.get(key)
        if circuit is None:
            return now
        if circuit.state == "closed":
            return now if circuit.inside < circuit.room else circuit.since + self._cooldown
        until = self._opens(circuit)
        if until > now and self._on_open == "reject":
            of_key = "" if self.key is None else f" for {key!r}"
            raise CircuitOpen(
                f"{self!r} is open{of_key}: the next probe is in {until - now:.3g} s", until
            )
        return until

    def _opens(self, circuit: Circuit) -> float:
        """When the next probe may pass."""
        if circuit.state == "open":
            return circuit.since + self._cooldown
        return circuit.oldest() + self._cooldown if circuit.full(self._half_open_max) else -inf

    def acquire(self, key: Hashable, cost: Cost, now: float) -> Grant:
        """Lets a task through: as a probe, unless the circuit is closed."""
        circuit = self._circuits.get(key)
        if circuit is None:
            circuit = self._circuits.add(key, Circuit(key))
        elif circuit.state != "closed" and self._idle(circuit, now):
            self._forget(circuit)
            circuit = self._circuits[key] = Circuit(key)
        number = None
        if circuit.state != "closed":
            if circuit.state == "open":
                circuit.turn("half_open", now)
                self._forget(circuit)
            number = circuit.probe(now, self._half_open_max)
        circuit.inside += 1
        if self._circuits.ring:
            self._circuits.sweep(self._idle, now)
        return circuit, circuit.generation, number

    def release(self, grant: Grant, outcome: Outcome, now: float) -> None:
        """Learns from the outcome, if it is one of this generation."""
        circuit, generation, number = grant
        if generation != circuit.generation:
            return
        circuit.inside -= 1
        if number is not None:
            circuit.probes.pop(number, None)
        if outcome.started_at is None or outcome.kind == "cancelled":
            return
        failed = outcome.kind == "failure" and tells_of_failure(self._failing, outcome.error)
        if circuit.state == "closed":
            self._count(circuit, failed, now)
        elif failed:
            self._open(circuit, now)
        else:
            circuit.passed += 1
            if circuit.passed >= self._half_open_max:
                self._close(circuit, now)

    def _count(self, circuit: Circuit, failed: bool, now: float) -> None:
        circuit.count(failed, now, self._window)
        if not failed:
            circuit.room += 1
        calls, rate = circuit.calls, self._rate
        if calls >= self._min_calls:
            if circuit.failures * rate.denominator >= rate.numerator * calls:
                self._open(circuit, now)

    def _open(self, circuit: Circuit, now: float) -> None:
        circuit.turn("open", now)
        if self._check is not None:
            self._ailing[circuit.key] = circuit

    def _close(self, circuit: Circuit, now: float) -> None:
        circuit.turn("closed", now)
        circuit.room = 2 * self._half_open_max
        self._forget(circuit)

    def _forget(self, circuit: Circuit) -> None:
        """It needs no health checks any more; another one of that key may."""
        if self._ailing.get(circuit.key) is circuit:
            del self._ailing[circuit.key]

    def _idle(self, circuit: Circuit, now: float) -> bool:
        if circuit.inside:
            return False
        if circuit.state != "closed":
            return circuit.since + self._cooldown + FORGET <= now
        return circuit.empty(now, self._window) and (
            circuit.room == inf or circuit.since + self._cooldown <= now
        )

    # ---- health checks ----------------------------------------------------------------------

    def sampling(self, now: float) -> Sampling | None:
        """Health checks, while a circuit is open whose cooldown is not over."""
        ailing = self._ailing
        while ailing:
            key, circuit = next(iter(ailing.items()))
            if now < circuit.since + self._cooldown:
                return Sampling(self._examine, self._interval)
            del ailing[key]
        return None

    async def _examine(self) -> _Well:
        """Asks after some of the open circuits; the others come next."""
        asked = [(circuit, circuit.generation) for circuit in islice(self._ailing.values(), CHECKS)]
        for circuit, _ in asked:
            del self._ailing[circuit.key]
            self._ailing[circuit.key] = circuit
        answers = await asyncio.gather(
            *[self._ask(circuit.key) for circuit, _ in asked], return_exceptions=True
        )
        well = [pair for pair, answer in zip(asked, answers, strict=True) if answer is True]
        errors = [answer for answer in answers if isinstance(answer, Exception)]
        if errors and not well:
            raise errors[0]
        return _Well(well)

    async def _ask(self, key: Hashable) -> bool:
        assert self._check is not None
        answer = self._check() if self.key is None else self._check(key)
        async with asyncio.timeout(self._interval):
            return bool(await awaitable("health_check", answer))

    def observe(self, sample: Any, now: float, key: Hashable = None, grant: Any = None) -> None:
        """Closes the circuits that were found to be well again, unless they changed meanwhile."""
        if isinstance(sample, _Well):
            for circuit, generation in sample.circuits:
                if circuit.generation == generation and circuit.state == "open":
                    self._close(circuit, now)
                    self.changed(circuit.key)

    # ---- what people see --------------------------------------------------------------------

    def usage(self, key: Hashable, now: float) -> Usage:
        """The present share of failures, of that at which it opens; it is all while not closed."""
        circuit, rate = self._circuits.get(key), self.failure_rate
        if circuit is None or self._idle(circuit, now):
            return Usage(0, rate)
        if circuit.state != "closed":
            until = self._opens(circuit)
            return Usage(rate, rate, until if until > now else None)
        share, forgotten = circuit.share(now, self._window)
        return Usage(share, rate, forgotten)

    def keys(self) -> Iterable[Hashable]:
        """The keys that have state."""
        return self._circuits

    def dump(self) -> Any:
        """The circuits, by key. What runs does not run any more after a restart."""
        return [circuit.dump() for circuit in self._circuits.values()]

    def load(self, state: Any) -> None:
        """Takes the circuits back."""
        for data in state:
            circuit = Circuit.load(data)
            self._circuits.add(circuit.key, circuit)
            if circuit.state == "open" and self._check is not None:
                self._ailing[circuit.key] = circuit

    def describe(self) -> str:
        """In words: "none for 30 s once 50 % of 10 calls or more within 30 s have failed"."""
        share = f"{100 * self.failure_rate:.3g} %"
        return (
            f"none for {self._cooldown:g} s once {share} of {self._min_calls} "
            f"calls or more within {self._window:g} s have failed{per_key(self)}"
        )

    def tell(self, usage: Usage) -> str:
        """In a sentence: "holds tasks back, since too many have failed"."""
        return "holds tasks back, since too many have failed"

    def __repr__(self) -> str:
        return call(
            self,
            failure_rate=self.failure_rate,
            min_calls=self._min_calls,
            window_seconds=self._window,
            cooldown=self._cooldown,
            half_open_max=self._half_open_max if self._half_open_max != 1 else None,
            on_open=self._on_open if self._on_open != "wait" else None,
            is_failure=self._failing,
            health_check=self._check,
        )
