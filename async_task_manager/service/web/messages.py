"""Messages for the configured queue: a worker elsewhere reads them."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel, ValidationError
from starlette.requests import Request

from async_task_manager.errors import InvalidType, InvalidValue, SendFailed, StoreError
from async_task_manager.queues import Message
from async_task_manager.queues._drafts import drafted
from async_task_manager.service.core import Core
from async_task_manager.service.web import schemas
from async_task_manager.service.web.bodies import read_json
from async_task_manager.service.web.problems import Json, Problem, parsed, words

__all__ = ["Messages"]

Answer = dict[str, Any]


class Messages:
    """Handlers."""

    def __init__(
        self, core: Core, body_seconds: float, model: type[BaseModel] | None = None
    ) -> None:
        self._core = core
        self._body_seconds = body_seconds
        self._model = model

    async def put(self, request: Request) -> Json:
        """Puts what is right, and says of each what became of it."""
        core = self._core
        if core.queue is None:
            raise Problem(501, "this service has no queue: TaskService(..., queue=URL)")
        body = await read_json(request, core.settings.max_body_bytes, self._body_seconds)
        batch = parsed(schemas.Batch, body)
        answers: dict[int, Answer] = {}
        right: dict[int, Message] = {}
        for i, given in enumerate(batch.messages):
            try:
                right[i] = self._message(given)
            except ValueError as error:
                answers[i] = {"index": i, "message_id": None, "error": str(error)}
        try:
            ids: list[str | None] = [*await core.queue.send(right.values())] if right else []
            errors: dict[int, Exception] = {}
        except SendFailed as error:
            ids, errors = error.ids, error.errors
        except StoreError as error:
            raise Problem(503, str(error), headers={"retry-after": "5"}) from None
        for place, (i, id) in enumerate(zip(right, ids, strict=True)):
            failed = errors.get(place)
            answers[i] = {"index": i, "message_id": id, "error": failed and str(failed)}
        return Json(
            {
                "accepted": sum(id is not None for id in ids),
                "entries": [answers[i] for i in sorted(answers)],
            }
        )

    def _message(self, given: object) -> Message:
        """Raises a ValueError that says what is wrong."""
        try:
            entry = schemas.Message.model_validate(given)
            if self._model is not None:
                self._model.model_validate(entry.body)
        except ValidationError as error:
            raise ValueError("; ".join(f"{f}: {m}" if f else m for f, m in words(error))) from None
        attributes = dict(entry.attributes)
        if entry.delay_seconds is not None:
            attributes["delay_seconds"] = entry.delay_seconds
        message = Message(entry.body, attributes)
        try:
            drafted(message, 0)
        except (InvalidValue, InvalidType) as error:
            raise ValueError(str(error).replace(" of message 0 of the batch", "")) from None
        return message
