"""The description of the API, made from the models and a table of the operations."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from importlib.metadata import version
from typing import Any

from pydantic import BaseModel
from pydantic.json_schema import models_json_schema

from async_task_manager.service.registry import Registry
from async_task_manager.service.web import schemas

__all__ = ["openapi"]

Json = dict[str, Any]

PROBLEMS = {
    400: "Malformed: no JSON, a bad length.",
    401: "A token is needed.",
    403: "This Host or Origin is not allowed.",
    404: "There is no such thing.",
    408: "The body came too slowly.",
    409: "It has ended already, in another way.",
    410: "It has ended, and its result is not kept any more.",
    413: "The body is too long.",
    415: "The body is not JSON.",
    422: "A field is wrong; `errors` names it.",
    501: "This service has no queue.",
    503: "Not now: the queue is full, or the disk.",
}
BODY = (400, 408, 413, 415, 422)


@dataclass(frozen=True)
class Operation:
    """What can be done at a path."""

    path: str
    method: str
    summary: str
    answers: dict[int, type[BaseModel] | str]
    """By status a model, or a media type."""
    problems: Sequence[int] = ()
    body: type[BaseModel] | None = None
    parameters: Sequence[Json] = ()
    tag: str = "tasks"
    open: bool = False


def _parameter(name: str, where: str, description: str, schema: Json) -> Json:
    return {
        "name": name,
        "in": where,
        "description": description,
        "required": where == "path",
        "schema": schema,
    }


ID = _parameter("id", "path", "The task's id.", {"type": "string", "minLength": 1})
NAME = _parameter("name", "path", "The provider's name.", {"type": "string", "minLength": 1})
WAIT = _parameter(
    "wait",
    "query",
    "Seconds to wait for the end, if it has not come.",
    {"type": "number", "minimum": 0, "maximum": 60},
)
USER = _parameter(
    "user_id", "query", "Which user.", {"type": "string", "minLength": 1, "maxLength": 200}
)
KEY = _parameter(
    "Idempotency-Key",
    "header",
    "A retry with the same key of the same user gives the task that was made the first time.",
    {"type": "string", "minLength": 1, "maxLength": 255, "pattern": "^[!-~]+$"},
)

OPERATIONS = (
    Operation(
        "/task",
        "post",
        "Submit a task; it is stored before the answer.",
        {202: schemas.Accepted},
        (*BODY, 503),
        schemas.Submission,
        (KEY,),
    ),
    Operation(
        "/result/{id}",
        "get",
        "How far a task is; with wait, once it has ended.",
        {200: schemas.Result},
        (404, 410, 422),
        parameters=(ID, WAIT),
    ),
    Operation(
        "/task/{id}",
        "get",
        "All about a task: its place in the queue, and what it waits for.",
        {200: schemas.TaskDetails},
        (404, 410),
        parameters=(ID,),
    ),
    Operation(
        "/task/{id}",
        "delete",
        "Cancel a task; 202 where it takes its time to end.",
        {200: schemas.Result, 202: schemas.Result},
        (404, 409, 410, 503),
        parameters=(ID,),
    ),
    Operation(
        "/tasks",
        "get",
        "A user's latest tasks.",
        {200: schemas.TaskList},
        (422,),
        parameters=({**USER, "required": True},),
    ),
    Operation(
        "/messages",
        "post",
        "Put messages on the queue; each is answered for itself.",
        {200: schemas.BatchAnswer},
        (*BODY, 501, 503),
        schemas.Batch,
        tag="messages",
    ),
    Operation(
        "/users",
        "get",
        "Who used how much; of one user, or of those with most tasks.",
        {200: schemas.Users},
        (422,),
        parameters=(USER,),
        tag="operations",
    ),
    Operation("/queues", "get", "What waits and runs.", {200: schemas.Queues}, tag="operations"),
    Operation("/providers", "get", "The providers.", {200: schemas.Providers}, tag="operations"),
    Operation(
        "/providers/{name}",
        "get",
        "A provider.",
        {200: schemas.ProviderStatus},
        (404,),
        parameters=(NAME,),
        tag="operations",
    ),
    Operation(
        "/providers/{name}",
        "patch",
        "Switch a provider, or set its limits: all of it, or nothing.",
        {200: schemas.ProviderStatus},
        (404, *BODY),
        schemas.ProviderChange,
        (NAME,),
        tag="operations",
    ),
    Operation("/pause", "post", "Start nothing more.", {200: schemas.State}, tag="operations"),
    Operation("/resume", "post", "Go on.", {200: schemas.State}, tag="operations"),
    Operation(
        "/events",
        "get",
        "What the dashboard shows, as it changes: server-sent events.",
        {200: "text/event-stream"},
        tag="operations",
    ),
    Operation("/metrics", "get", "For Prometheus.", {200: "text/plain"}, tag="operations"),
    Operation("/healthz", "get", "It lives.", {200: schemas.Health}, tag="operations", open=True),
)


def openapi(registry: Registry, secured: bool) -> Json:
    """OpenAPI 3.1, with the functions that are registered."""
    models = {
        model
        for operation in OPERATIONS
        for model in (operation.body, *operation.answers.values(), schemas.Problem)
        if isinstance(model, type)
    }
    _, defined = models_json_schema(
        [(model, "validation") for model in sorted(models, key=lambda m: m.__name__)],
        ref_template="#/components/schemas/{model}",
    )
    paths: dict[str, Json] = {}
    for operation in OPERATIONS:
        paths.setdefault(operation.path, {})[operation.method] = _described(operation, secured)
    components: Json = {"schemas": defined["$defs"]}
    if secured:
        components["securitySchemes"] = {"token": {"type": "http", "scheme": "bearer"}}
    functions = "\n".join(_function(function) for function in registry)
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "async_task_manager service",
            "version": version("async-task-manager"),
            "description": f"Tasks that share limits fairly.\n\nFunctions:\n\n{functions}",
        },
        "paths": paths,
        "components": components,
    }


def _function(function: Any) -> str:
    parameters = ", ".join(str(p) for p in function.parameters)
    doc = function.doc.split("\n", 1)[0]
    return f"- `{function.name}({parameters})` {doc}".rstrip()


def _described(operation: Operation, secured: bool) -> Json:
    closed = secured and not operation.open
    problems = sorted({403, *operation.problems, *((401,) if closed else ())})
    described: Json = {
        "operationId": f"{operation.method}_{operation.path.strip('/').replace('/', '_')}",
        "summary": operation.summary,
        "tags": [operation.tag],
        "responses": {
            **{
                str(status): {
                    "description": (answer.__doc__ or "") if isinstance(answer, type) else answer,
                    "content": _content(answer),
                }
                for status, answer in operation.answers.items()
            },
            **{
                str(status): {
                    "description": PROBLEMS[status],
                    "content": {"application/problem+json": {"schema": _ref(schemas.Problem)}},
                }
                for status in problems
            },
        },
    }
    if operation.parameters:
        described["parameters"] = list(operation.parameters)
    if operation.body is not None:
        content = {"application/json": {"schema": _ref(operation.body)}}
        described["requestBody"] = {"required": True, "content": content}
    if closed:
        described["security"] = [{"token": []}]
    return described


def _content(answer: type[BaseModel] | str) -> Json:
    if isinstance(answer, str):
        return {answer: {"schema": {"type": "string"}}}
    return {"application/json": {"schema": _ref(answer)}}


def _ref(model: type[BaseModel]) -> Json:
    return {"$ref": f"#/components/schemas/{model.__name__}"}
