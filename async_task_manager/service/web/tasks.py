"""The resources of a task: submit it, ask for its result, look at it, end it."""

from __future__ import annotations

import json
import re
from hashlib import blake2s
from typing import Any

from pydantic import ValidationError
from starlette.requests import Request

from async_task_manager._explain import _words as words_of
from async_task_manager.errors import (
    InvalidType,
    InvalidValue,
    ManagerClosed,
    QueueFull,
    StoreError,
    TaskManagerError,
    TaskRejected,
    TaskTooLarge,
    UnknownProvider,
)
from async_task_manager.runner.results import dumps
from async_task_manager.service.core import Core, Unstored, Wanted
from async_task_manager.service.entry import Entry
from async_task_manager.service.idempotency import KeyReused
from async_task_manager.service.records import ENDED, Record
from async_task_manager.service.web.bodies import read_json
from async_task_manager.service.web.problems import Json, Problem, parsed, user_asked_for, words
from async_task_manager.service.web.schemas import Submission, instant_in
from async_task_manager.strategies.time_based import instant_of

__all__ = ["Tasks"]

MOST_PATIENT = 60.0
"""Seconds that a long poll may last."""

KEY = re.compile(r"[!-~]{1,255}")
LISTED = 50
FIELDS = ("priority", "valid_after", "cost", "provider", "user_id")


class Tasks:
    """Handlers."""

    def __init__(self, core: Core, body_seconds: float) -> None:
        self._core = core
        self._body_seconds = body_seconds

    # ---- POST /task -------------------------------------------------------------------------

    async def submit(self, request: Request) -> Json:
        """Takes a task in, durable before the answer."""
        core = self._core
        body = await read_json(request, core.settings.max_body_bytes, self._body_seconds)
        key = request.headers.get("idempotency-key")
        if key is not None and not KEY.fullmatch(key):
            what = "must be 1 to 255 printable ASCII characters, without spaces"
            raise Problem(400, errors=[("Idempotency-Key", what)])
        submission = parsed(Submission, body)
        user_id = str(submission.user_id)
        try:
            function = core.registry.get(submission.task)
        except InvalidValue as error:
            raise Problem(422, errors=[("task", str(error))]) from None
        args = self._args(submission, function)
        try:
            metadata = self._metadata(submission)
            number = await core.submit(
                Wanted(function, args, user_id, metadata),
                key,
                blake2s(body, digest_size=16).digest() if key is not None else None,
            )
        except KeyReused as error:
            raise Problem(422, errors=[("Idempotency-Key", str(error))]) from None
        except (QueueFull, Unstored, ManagerClosed) as error:
            raise Problem(503, str(error), headers={"retry-after": "5"}) from None
        except (InvalidValue, InvalidType, TaskRejected) as error:
            raise Problem(422, errors=[(_field(error), str(error))]) from None
        id = core.store.tickets.id_of(number)
        url = f"/result/{id}"
        return Json({"task_id": id, "result_url": url, "user_id": user_id}, 202, {"location": url})

    def _args(self, submission: Submission, function: Any) -> bytes:
        given = submission.model_fields_set
        if "x" in given and submission.args is not None:
            raise Problem(422, errors=[("x", "x and args exclude each other")])
        args: Any = [submission.x] if "x" in given else submission.args or {}
        field = "x" if "x" in given else "args"
        try:
            encoded = dumps(function.by_name(args))
            function.check(encoded)
        except ValidationError as error:
            raise Problem(422, errors=words(error, "args")) from None
        except ValueError as error:
            raise Problem(422, errors=[(field, str(error))]) from None
        return encoded

    def _metadata(self, submission: Submission) -> dict[str, Any]:
        metadata: dict[str, Any] = {}
        if submission.priority is not None:
            metadata["priority"] = submission.priority
        if submission.cost is not None:
            metadata["cost"] = submission.cost
        if submission.provider is not None:
            if self._core.router is None:
                raise UnknownProvider("provider: this service has no router")
            metadata["provider"] = submission.provider
        if submission.valid_after is not None:
            # By the wall clock, so that it holds over a restart.
            now = self._core.wall()
            metadata["valid_after"] = max(
                float(instant_of("valid_after", instant_in(submission.valid_after), now)), 1e9
            )
        return metadata

    # ---- GET /result/{id} -------------------------------------------------------------------

    async def result(self, request: Request) -> Json:
        """How far the task is; with ``?wait=30``, once it has ended, or after 30 s."""
        id = request.path_params["id"]
        number = self._number(id)
        wait = request.query_params.get("wait")
        entry = self._core.entries.get(number)
        if entry is not None and wait is not None:
            await self._core.wait(entry, _seconds(wait))
            entry = self._core.entries.get(number)
        elif wait is not None:
            _seconds(wait)
        if entry is not None:
            return _result(id, entry.status, b"null")
        found = self._core.store.result(number)
        if found is None or self._expired(found[2]):
            raise self._gone()
        status, result, _ = found
        return _result(id, status, result if result is not None else b"null")

    def _number(self, id: str) -> int:
        number = self._core.store.tickets.number_of(id)
        if number is None:
            raise Problem(404, "there is no such task")
        return number

    def _expired(self, finished: float | None) -> bool:
        core = self._core
        return finished is not None and finished + core.settings.result_ttl <= core.wall()

    def _gone(self) -> Problem:
        return Problem(410, "the task has ended, and its result is not kept any more")

    # ---- /task/{id} -------------------------------------------------------------------------

    async def details(self, request: Request) -> Json:
        """All about it."""
        number = self._number(request.path_params["id"])
        record = self._core.store.record(number)
        if record is None or self._expired(record.finished):
            raise self._gone()
        return Json(self._shown(record))

    async def cancel(self, request: Request) -> Json:
        """Ends it: 200 once it has, 202 where it takes its time, 409 where it ended otherwise."""
        id = request.path_params["id"]
        number = self._number(id)
        core = self._core
        was = core.store.result(number)
        try:
            await self._end(number, was)
        except StoreError as error:
            raise Problem(503, str(error), headers={"retry-after": "5"}) from None
        if number in core.entries:
            return _result(id, core.entries[number].status, b"null", 202)
        found = core.store.result(number)
        if found is None or self._expired(found[2]):
            raise self._gone()
        if found[0] != "REVOKED":
            raise Problem(409, f"the task has ended already: {found[0]}")
        return _result(id, "REVOKED", b"null")

    async def _end(self, number: int, was: tuple[str, bytes, float | None] | None) -> None:
        core = self._core
        if number in core.entries:
            await core.revoke(number)
        elif was is not None and was[2] is None:  # it waits for a function that isn't registered
            await core.forget(number)

    async def listed(self, request: Request) -> Json:
        """A user's tasks, the latest first."""
        records = self._core.store.of_user(user_asked_for(request), LISTED)
        return Json({"tasks": [self._shown(r) for r in records if not self._expired(r.finished)]})

    def _shown(self, record: Record) -> dict[str, Any]:
        core = self._core
        entry = core.entries.get(record.number)
        status = entry.status if entry is not None else record.status
        waits = status in ("PENDING", "RETRY")
        position, reasons = self._why(record, entry) if waits else (None, [])
        return {
            "task_id": core.store.tickets.id_of(record.number),
            "task": record.task,
            "user_id": record.user_id,
            "task_status": status,
            "task_result": json.loads(record.result) if record.result else None,
            "attempt": record.attempt,
            "priority": record.metadata.get("priority"),
            "level": entry.level if entry is not None else None,
            "cost": record.metadata.get("cost"),
            "provider": record.provider or record.metadata.get("provider"),
            "position": position,
            "waits_for": reasons,
            "valid_after": record.metadata.get("valid_after"),
            "submitted_at": record.submitted,
            "started_at": record.started if status in {*ENDED, "STARTED"} else None,
            "finished_at": record.finished,
            "earlier_attempts": record.earlier,
        }

    def _why(self, record: Record, entry: Entry | None) -> tuple[int | None, list[dict[str, Any]]]:
        """The place in the queue, and what keeps the task from starting."""
        if entry is None:
            what = f"no function {record.task!r} is registered"
            return None, [{"what": what, "until": None}]
        told = self._core.manager.explain(entry.task)
        reasons = [{"what": words_of(reason), "until": reason.opens_at} for reason in told.reasons]
        if told.note is not None:
            reasons.insert(0, {"what": told.note, "until": None})
        return told.position, reasons


def _result(id: str, status: str, result: bytes, code: int = 200) -> Json:
    return Json(
        b'{"task_id":"%s","task_status":"%s","task_result":%s}'
        % (id.encode(), status.encode(), result),
        code,
    )


def _seconds(text: str) -> float:
    try:
        seconds = float(text)
    except ValueError:
        seconds = -1.0
    if not 0 <= seconds <= MOST_PATIENT:
        raise Problem(
            422, errors=[("wait", f"must be a number of seconds from 0 to {MOST_PATIENT:g}")]
        )
    return seconds


def _field(error: TaskManagerError) -> str:
    """The field that an error of the chain is about."""
    if isinstance(error, UnknownProvider):
        return "provider"
    if isinstance(error, TaskTooLarge):
        return "cost"
    text = str(error)
    return next((field for field in FIELDS if field in text), "")
