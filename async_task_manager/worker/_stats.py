"""What a worker counts."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["WorkerStats"]


@dataclass(slots=True)
class WorkerStats:
    """What a worker has done so far, and what it holds."""

    received: int = 0
    acknowledged: int = 0
    released: int = 0
    """Failed, and given back to be handled again."""
    returned: int = 0
    """Given back without being looked at."""
    dead: int = 0
    """Given up here (what failed ``max_receives`` times the queue gives up)."""
    lost: int = 0
    """The lease was another's before the work was done."""
    held: int = 0
    waiting: int = 0
    """Of those held, not begun."""
