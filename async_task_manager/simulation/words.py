"""Lengths of time as they are read."""

from __future__ import annotations

__all__ = ["span", "ticks"]

STEPS = (
    *(0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 15, 30),
    *(60, 120, 300, 600, 900, 1800, 3600, 7200, 10_800, 21_600, 43_200),
    *(86_400, 2 * 86_400, 7 * 86_400, 14 * 86_400, 30 * 86_400, 90 * 86_400, 365 * 86_400),
)


def span(seconds: float) -> str:
    """A length of time as it is read: "1.5 s", "12 min 30 s", "2 h 46 min"; "-" for NaN."""
    if seconds != seconds:
        return "-"
    if seconds < 60:
        return f"{seconds:.3g} s"
    whole = round(seconds)
    parts = [
        (whole // 86_400, "d"),
        (whole // 3_600 % 24, "h"),
        (whole // 60 % 60, "min"),
        (whole % 60, "s"),
    ]
    while not parts[0][0]:
        parts.pop(0)
    return " ".join(f"{number} {unit}" for number, unit in parts[:2] if number)


def ticks(until: float) -> list[float]:
    """Up to ten round instants from 0 on, for an axis of time."""
    step = next((step for step in STEPS if until / step <= 9), STEPS[-1])
    return [step * i for i in range(int(until / step) + 1)]
