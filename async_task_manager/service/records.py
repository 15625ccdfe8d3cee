"""What the store keeps of a task."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple, TypeAlias

__all__ = ["ENDED", "NewTask", "Record", "Status"]

Status: TypeAlias = Literal["PENDING", "STARTED", "RETRY", "SUCCESS", "FAILURE", "REVOKED"]
ENDED = frozenset({"SUCCESS", "FAILURE", "REVOKED"})


class NewTask(NamedTuple):
    """A task that comes in."""

    number: int
    task: str
    user_id: str
    metadata: str
    """JSON."""
    submitted: float
    idempotency_key: str | None
    fingerprint: bytes | None
    ranks: str | None
    args: bytes
    """JSON."""


@dataclass(slots=True)
class Record:
    """One row."""

    number: int
    task: str
    user_id: str
    metadata: dict[str, Any]
    """What the strategies read, as JSON can hold it: ``valid_after`` in epoch seconds."""
    status: Status
    attempt: int
    interrupted: int
    """How many times it ran when the process died."""
    submitted: float
    started: float | None
    finished: float | None
    provider: str | None
    earlier: list[dict[str, Any]]
    """The attempts before this one: when they ran, and why they weren't the last."""
    ranks: str | None
    """What the orders gave it at intake."""
    result: bytes | None
    """JSON: the result, or the error."""

    @classmethod
    def of(cls, row: tuple[Any, ...]) -> Record:
        """From the columns, in the order of `COLUMNS`."""
        record = cls(*row)
        record.metadata = json.loads(row[3])
        record.earlier = json.loads(row[11]) if row[11] else []
        return record


COLUMNS = (
    "number, task, user_id, metadata, status, attempt, interrupted, submitted, started, finished, "
    "provider, earlier, ranks, result"
)
