"""What is to be done in a simulation: jobs, made up by numbers and a seed."""

from __future__ import annotations

import random
import re
from bisect import bisect
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from itertools import accumulate
from typing import Any, Final, TypeAlias

from async_task_manager._validate import number, one_of, whole
from async_task_manager.errors import InvalidValue
from async_task_manager.rates import parse_rate

__all__ = ["Distribution", "Job", "generate", "sampler"]

Distribution: TypeAlias = "float | str | Callable[[random.Random], float]"

FORMS: Final = (
    "a number, 'exp(mean)', 'uniform(low, high)', 'normal(mean, deviation)', "
    "'lognormal(median, sigma)', 'pareto(least, alpha)' or a function of a random.Random"
)
_CALL: Final = re.compile(r"(\w+)\s*\(\s*([^()]*?)\s*\)")


@dataclass(slots=True)
class Job:
    """One task to come: when, how long, and what the strategies read of it."""

    at: float = 0.0
    """Seconds from the beginning of the simulation at which it is added."""
    duration: float = 0.0
    """Seconds that each attempt runs."""
    metadata: dict[str, Any] | None = None
    id: str | int | None = None
    failures: int = 0
    """How many of its first attempts fail."""
    actual: float | dict[str, float] | None = None
    """The actual cost, told at the end of an attempt; None: the estimate was right."""


def generate(
    tasks: int,
    *,
    rate: float | str | None = None,
    burst: int = 1,
    spacing: str = "random",
    duration: Distribution = 1.0,
    cost: Distribution | Mapping[str, Distribution] | None = None,
    users: int = 0,
    skew: float = 1.0,
    priorities: Mapping[Any, float] | None = None,
    failures: float = 0.0,
    seed: int = 0,
) -> Iterator[Job]:
    """Jobs by numbers: the same seed gives the same.

    Args:
        tasks: How many, at least 1.
        rate: How many arrive, per second or as "600/minute"; None: all are there at the beginning.
        burst: How many arrive at one instant, at least 1; the rate is that of all.
        spacing: ``"random"``: bursts come independently of each other (a Poisson process);
            ``"even"``: at equal distances.
        duration: Seconds that each runs: a number, or a distribution such as "lognormal(2, 0.8)",
            of which the first is the median.
        cost: What each costs; also by unit: ``{"tokens": "exp(900)"}``.
        users: How many users there are; 0: nobody is named. ``user_id`` is "user-1" and so on.
        skew: How unequal they are: user k submits in proportion to ``1 / k ** skew``; 0: equally.
        priorities: Shares by priority: ``{"high": 1, "normal": 8, "low": 1}``.
        failures: The probability, 0 to below 1, with which an attempt fails.
        seed: Of the random numbers.

    Raises:
        InvalidValue, InvalidType: an argument is out of range, or no distribution.
    """
    whole("tasks", tasks, at_least=1)
    whole("burst", burst, at_least=1)
    whole("users", users, at_least=0)
    number("skew", skew, at_least=0)
    number("failures", failures, at_least=0)
    if failures >= 1:
        raise InvalidValue(f"failures must be a probability below 1, not {failures!r}")
    even = one_of("spacing", spacing, ("random", "even")) == "even"
    dice = random.Random(seed)
    gap = 0.0 if rate is None else burst / _per_second(rate)
    lasts = sampler("duration", duration, dice)
    fields: list[tuple[str, Callable[[], Any]]] = []
    if users:
        names = [f"user-{k}" for k in range(1, users + 1)]
        fields.append(("user_id", _choice(names, [k**-skew for k in range(1, users + 1)], dice)))
    if priorities:
        for name, share in priorities.items():
            number(f"priorities[{name!r}]", share, at_least=0)
        if not any(priorities.values()):
            raise InvalidValue("priorities must hold a share above 0")
        fields.append(("priority", _choice([*priorities], [*priorities.values()], dice)))
    if isinstance(cost, Mapping):
        units = [(unit, sampler(f"cost {unit}", each, dice)) for unit, each in cost.items()]
        fields.append(("cost", lambda: {unit: sample() for unit, sample in units}))
    elif cost is not None:
        fields.append(("cost", sampler("cost", cost, dice)))

    def jobs() -> Iterator[Job]:
        at = 0.0
        for i in range(tasks):
            if gap and i and i % burst == 0:
                at = gap * (i // burst) if even else at + dice.expovariate(1 / gap)
            metadata = {name: sample() for name, sample in fields} if fields else None
            job = Job(at, lasts(), metadata, i)
            if failures:
                while dice.random() < failures:
                    job.failures += 1
            yield job

    return jobs()


def _per_second(rate: float | str) -> float:
    if isinstance(rate, str):
        parsed = parse_rate(rate)
        return parsed.amount / parsed.seconds
    return number("rate", rate, above=0)


def _choice(values: list[Any], weights: list[float], dice: random.Random) -> Callable[[], Any]:
    sums = list(accumulate(weights))
    total, last = sums[-1], len(values) - 1

    def choose() -> Any:
        return values[min(bisect(sums, dice.random() * total), last)]

    return choose


def sampler(name: str, spec: Distribution, dice: random.Random) -> Callable[[], float]:
    """A function that gives one value after the other, none below 0.

    Raises:
        InvalidValue, InvalidType: it is no distribution; the message names all forms.
    """
    if callable(spec):
        return partial(spec, dice)
    if not isinstance(spec, str):
        constant = number(name, spec, at_least=0)
        return lambda: constant
    call = _CALL.fullmatch(spec.strip())
    try:
        if call is None:
            constant = number(name, float(spec), at_least=0)
            return lambda: constant
        first, *rest = [number(name, float(part)) for part in call[2].split(",")]
        made = _distribution(call[1], first, rest, dice)
    except (ValueError, ArithmeticError):
        made = None
    if made is None:
        raise InvalidValue(f"{name} must be {FORMS}, not {spec!r}")
    return made


def _distribution(
    kind: str, first: float, rest: list[float], dice: random.Random
) -> Callable[[], float] | None:
    if kind == "exp" and not rest and first > 0:
        return lambda: dice.expovariate(1 / first)
    if len(rest) != 1:
        return None
    (second,) = rest
    if kind == "uniform" and 0 <= first <= second:
        return lambda: dice.uniform(first, second)
    if kind == "normal" and second >= 0:
        return lambda: max(0.0, dice.gauss(first, second))
    if kind == "lognormal" and first > 0 and second >= 0:
        return lambda: first * dice.lognormvariate(0, second)
    if kind == "pareto" and first > 0 and second > 0:
        return lambda: first * dice.paretovariate(second)
    return None
