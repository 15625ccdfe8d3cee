"""Errors as RFC 9457 has them: application/problem+json."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from http import HTTPStatus
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response

from async_task_manager.runner.results import dumps

__all__ = ["Json", "Problem", "parsed", "problem_response", "user_asked_for", "words"]


TAGS = ("str", "int", "float", "nullable", "none")

M = TypeVar("M", bound=BaseModel)


class Json(Response):
    """A JSON answer, which no cache keeps."""

    media_type = "application/json"

    def __init__(
        self,
        content: Any,
        status_code: int = 200,
        headers: Mapping[str, str] | None = None,
        media_type: str | None = None,
    ) -> None:
        body = content if isinstance(content, bytes) else dumps(content)
        super().__init__(body, status_code, headers, media_type)
        self.headers["cache-control"] = "no-store"


class Problem(HTTPException):
    """What is wrong with a request.

    Args:
        status: 4xx or 5xx.
        detail: For people.
        errors: Per field, what is wrong with it.
        headers: For the answer.
    """

    def __init__(
        self,
        status: int,
        detail: str = "",
        errors: Iterable[tuple[str, str]] = (),
        headers: dict[str, str] | None = None,
    ) -> None:
        self.errors = list(errors)
        told = detail or "; ".join(
            f"{f}: {message}" if f else message for f, message in self.errors
        )
        super().__init__(status, told, headers)


def problem_response(
    status: int,
    detail: str,
    errors: Iterable[tuple[str, str]] = (),
    headers: Mapping[str, str] | None = None,
) -> Json:
    """The answer that says what is wrong."""
    content = {
        "type": "about:blank",
        "title": HTTPStatus(status).phrase,
        "status": status,
        "detail": detail,
        "errors": [{"field": field, "message": message} for field, message in errors],
    }
    return Json(content, status, headers, "application/problem+json")


def words(error: ValidationError, *prefix: str) -> list[tuple[str, str]]:
    """What is wrong, as (field, message); of a field that may be one thing or another, all that it
    isn't in one message.
    """
    fields: dict[Any, dict[str, str]] = {}
    for item in error.errors(include_url=False, include_context=False, include_input=False):
        parts = [part for part in item["loc"] if not _is_tag(part)]
        first, path = parts[0] if parts else "", ".".join(map(str, parts))
        fields.setdefault(first, {})[_message(item)] = path
    return [
        (
            ".".join((*prefix, *(p for p in [paths if len(told) == 1 else str(first)] if p))),
            " or ".join(told),
        )
        for first, told in fields.items()
        for paths in [next(iter(told.values()))]
    ]


def _is_tag(part: object) -> bool:
    """Whether a part of a place names no field, but one of the types that it might have."""
    return isinstance(part, str) and (
        "[" in part
        or part in TAGS
        or part.startswith("constrained-")
        or part.startswith("function")
    )


def _message(item: Any) -> str:
    message: str = item["msg"]
    return message.removeprefix("Value error, ")


def parsed(model: type[M], body: bytes) -> M:
    """The body as a model.

    Raises:
        Problem: 400 where it is no JSON, 422 naming the fields where it isn't what it should be.
    """
    try:
        return model.model_validate_json(body)
    except ValidationError as error:
        found = error.errors(include_url=False, include_context=False, include_input=False)
        if found[0]["type"] == "json_invalid":
            raise Problem(400, f"the body is no valid JSON: {found[0]['msg']}") from None
        raise Problem(422, errors=words(error)) from None


def user_asked_for(request: Request) -> str:
    """The user in the query.

    Raises:
        Problem: 422 where there is none, or what can't be one.
    """
    user_id = request.query_params.get("user_id", "")
    if not 1 <= len(user_id) <= 200:
        raise Problem(422, errors=[("user_id", "must have 1 to 200 characters")])
    return user_id
