"""`python tools/draw_simulations.py`: draws the pictures of docs/simulation.md."""

from __future__ import annotations

from pathlib import Path

from async_task_manager import Chain
from async_task_manager.simulation import generate, simulate, trace
from async_task_manager.strategies import (
    ConcurrentLimitStrategy,
    PriorityQueueStrategy,
    Provider,
    ProviderRouterStrategy,
    SlidingWindowStrategy,
)

ROOT = Path(__file__).parents[1]
IMAGES = ROOT / "docs" / "images"


def chain(at_once: int = 4) -> Chain:
    """Two providers: a fast one with limits, and a spare one for two at once."""
    groq = [SlidingWindowStrategy(30, 60), ConcurrentLimitStrategy(at_once)]
    return Chain(
        PriorityQueueStrategy(),
        ProviderRouterStrategy(
            [Provider("groq", groq), Provider("spare", [ConcurrentLimitStrategy(2)])]
        ),
    )


def main() -> None:
    jobs = generate(
        500,
        rate="40/minute",
        burst=5,
        duration="lognormal(6, 0.8)",
        users=5,
        priorities={"high": 1, "normal": 8, "low": 1},
    )
    simulate(chain(), jobs, start=0.0).save(IMAGES / "simulation.svg")
    day = generate(40_000, rate="28/minute", burst=20, duration="lognormal(6, 0.8)", seed=1)
    simulate(chain(6), day, start=0.0).save(IMAGES / "simulation_day.svg", title="A day")
    tokens = SlidingWindowStrategy(150_000, 60, cost="tokens")
    report = simulate(Chain(tokens), trace(ROOT / "examples" / "llm_trace.csv"), start=0.0)
    report.save(IMAGES / "simulation_trace.svg", title="A trace of LLM requests")


if __name__ == "__main__":
    main()
