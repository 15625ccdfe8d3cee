"""`python tools/make_trace.py`: writes examples/llm_trace.csv, a small trace of LLM requests.

Made up, and in the form of the Azure traces of 2023: TIMESTAMP with seven decimals, ContextTokens,
GeneratedTokens; long prompts and short answers, and calls that come in clusters.
"""

from __future__ import annotations

import random
from datetime import datetime, timedelta
from pathlib import Path

TRACE = Path(__file__).parents[1] / "examples" / "llm_trace.csv"
REQUESTS = 600


def main() -> None:
    dice = random.Random(2023)
    moment = datetime(2026, 1, 15, 18, 0, 3)
    lines = ["TIMESTAMP,ContextTokens,GeneratedTokens"]
    for i in range(REQUESTS):
        # Clusters: a quick succession of calls, then a pause.
        moment += timedelta(seconds=dice.expovariate(1 / (4 if i % 12 == 0 else 0.4)))
        context = max(20, round(1_400 * dice.lognormvariate(0, 0.9)))
        generated = max(4, round(16 * dice.lognormvariate(0, 0.8)))
        lines.append(f"{moment:%Y-%m-%d %H:%M:%S.%f}0,{min(context, 7_700)},{generated}")
    TRACE.write_text("\n".join(lines) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
