"""Events as lines of the standard library's logging, with their fields in ``extra=``."""

from __future__ import annotations

import logging
from typing import Any

from async_task_manager.events import (
    Event,
    Expired,
    Finished,
    Queued,
    Rejected,
    Retried,
    StageClosed,
    StageOpened,
    Started,
)

__all__ = ["LogObserver"]

KINDS: dict[type[Event], tuple[str, int]] = {
    Queued: ("queued", logging.DEBUG),
    Started: ("started", logging.DEBUG),
    Retried: ("retried", logging.WARNING),
    Finished: ("finished", logging.INFO),
    Rejected: ("rejected", logging.WARNING),
    Expired: ("expired", logging.WARNING),
    StageClosed: ("stage_closed", logging.DEBUG),
    StageOpened: ("stage_opened", logging.DEBUG),
}


class LogObserver:
    """Writes a line for every event, with fields that a JSON formatter can take up.

    Args:
        logger: Where to; None: ``async_task_manager.events``.
        levels: Levels other than the usual ones: DEBUG for what is queued and started and for
            stages, INFO for what finished, WARNING for what failed, was retried, rejected or
            expired.

    Every record has the field ``event``, and ``chain_time``. Of a task: ``task_id``, ``task_name``,
    and where they apply ``attempt``, ``provider``, ``waited``, ``duration`` (seconds), ``state``
    and ``error``. Of a stage: ``stage``, ``stage_key``, ``branch``, ``until``.
    """

    def __init__(
        self,
        logger: logging.Logger | None = None,
        levels: dict[type[Event], int] | None = None,
    ) -> None:
        self._logger = (
            logger if logger is not None else logging.getLogger("async_task_manager.events")
        )
        self._given = levels or {}

    def __call__(self, record: Event) -> None:
        """Writes one line."""
        level = self._level(record)
        if self._logger.isEnabledFor(level):
            fields = fields_of(record)
            subject = fields.get("task_name") or fields["stage"]
            said = " ".join(
                f"{name}={fields[name]!r}"
                for name in ("attempt", "state", "waited", "duration", "error", "branch", "until")
                if name in fields
            )
            self._logger.log(level, "%s %s %s", fields["event"], subject, said or "-", extra=fields)

    def _level(self, record: Event) -> int:
        level = self._given.get(type(record))
        if level is not None:
            return level
        if isinstance(record, Finished) and record.state == "failed":
            return logging.WARNING
        return KINDS[type(record)][1]


def fields_of(record: Event) -> dict[str, Any]:
    """What the event says, flat; fields that say nothing are left out."""
    fields: dict[str, Any] = {"event": KINDS[type(record)][0], "chain_time": record.at}
    if isinstance(record, StageClosed | StageOpened):
        fields |= {"stage": repr(record.stage), "stage_key": record.key, "branch": record.branch}
        if isinstance(record, StageClosed):
            fields["until"] = record.until
    else:
        task = record.task
        fields |= {"task_id": task.id, "task_name": task.name, "provider": task.provider}
        for name in ("attempt", "waited", "duration", "state"):
            fields[name] = getattr(record, name, None)
        fields["error"] = _words(getattr(record, "error", None))
    return {name: value for name, value in fields.items() if value is not None}


def _words(error: BaseException | None) -> str | None:
    if error is None:
        return None
    try:
        return repr(error)
    except Exception:  # an error that cannot even be shown is still one
        return type(error).__name__
