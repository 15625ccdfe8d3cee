"""An evening of 3,000 requests: how long, and would a bigger plan or more at once help?"""

from collections.abc import Iterator

from async_task_manager import Chain
from async_task_manager.simulation import Job, compare, generate, simulate
from async_task_manager.strategies import (
    ConcurrentLimitStrategy,
    FairShareStrategy,
    SlidingWindowStrategy,
)


def chain(a_minute: int = 30, at_once: int = 4) -> Chain:
    return Chain(
        FairShareStrategy(by="share"),
        SlidingWindowStrategy(a_minute, 60),
        ConcurrentLimitStrategy(at_once),
    )


def evening() -> Iterator[Job]:
    return generate(3_000, rate="25/minute", burst=50, duration="lognormal(7, 0.6)", users=4)


now = simulate(chain(), evening())
print(now)
print()
print(compare(now, simulate(chain(a_minute=60), evening()), ("now", "60 a minute")))
print()
print(compare(now, simulate(chain(at_once=8), evening()), ("now", "8 at once")))
