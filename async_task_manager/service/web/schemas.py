"""What goes over the wire, as models: they check what comes in, and are the OpenAPI schemas."""

from __future__ import annotations

import re
from datetime import datetime, timedelta
from typing import Annotated, Final, Literal, TypeAlias

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, JsonValue, StringConstraints

__all__ = [
    "Accepted",
    "Batch",
    "BatchAnswer",
    "Message",
    "Problem",
    "ProviderChange",
    "ProviderStatus",
    "Queues",
    "Result",
    "Submission",
    "TaskDetails",
    "TaskList",
    "User",
    "Users",
]

_DELAY: Final = re.compile(r"\+([0-9]{1,9}(?:\.[0-9]{1,9})?) ?(ms|s|m|h|d)")
_UNITS: Final = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}

Status: TypeAlias = Literal["PENDING", "STARTED", "RETRY", "SUCCESS", "FAILURE", "REVOKED"]


class _In(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)


class _Out(BaseModel):
    model_config = ConfigDict(extra="forbid")


def instant_in(text: str) -> datetime | timedelta:
    """What ``valid_after`` means: a delay from now, "+3s", or ISO-8601 (without an offset, the
    local time of the service).
    """
    if delay := _DELAY.fullmatch(text):
        return timedelta(seconds=float(delay[1]) * _UNITS[delay[2]])
    return datetime.fromisoformat(text)


def _is_instant(text: str) -> str:
    try:
        instant_in(text)
    except (ValueError, OverflowError):
        raise ValueError(
            "must be ISO-8601, such as '2030-01-31T08:00:00Z', or a delay such as '+500ms', "
            "'+3s', '+2m', '+1h', '+1d'"
        ) from None
    return text


Name: TypeAlias = Annotated[str, StringConstraints(min_length=1, max_length=200)]
Amount: TypeAlias = Annotated[float, Field(ge=0, le=1e15, allow_inf_nan=False)]


class Submission(_In):
    """A task to be done."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {"x": "a text", "user_id": "ada"},
                {"task": "work", "args": {"x": 1}, "user_id": "ada", "priority": "high"},
            ]
        }
    )

    task: Annotated[str, StringConstraints(min_length=1, max_length=100)] | None = Field(
        None, description="The function's name; it can be left out where there is one only."
    )
    x: JsonValue = Field(
        None, description="The function's first argument: short for args with one entry."
    )
    args: dict[str, JsonValue] | list[JsonValue] | None = Field(
        None, description="The function's arguments, by name or in their order."
    )
    user_id: Name | Annotated[int, Field(ge=-(2**53), le=2**53)] = Field(
        description="Whom it is for: fairness is among users."
    )
    priority: (
        Annotated[int, Field(ge=-1_000_000, le=1_000_000)]
        | Annotated[str, StringConstraints(min_length=1, max_length=50)]
        | None
    ) = Field(None, description='A whole number, higher first, or "high", "normal", "low".')
    valid_after: (
        Annotated[str, StringConstraints(max_length=40), AfterValidator(_is_instant)] | None
    ) = Field(
        None,
        description='Not before: ISO-8601, or a delay such as "+3s".',
        examples=["+3s", "2030-01-31T08:00:00Z"],
    )
    cost: Amount | Annotated[dict[Name, Amount], Field(max_length=20)] | None = Field(
        None, description='What it consumes: a number, or units such as {"tokens": 900}.'
    )
    provider: Name | None = Field(None, description="The only provider it may go to.")


class Accepted(_Out):
    """The task is stored, and will be done."""

    task_id: str
    result_url: str
    user_id: str


class Result(_Out):
    """How far a task is."""

    task_id: str
    task_status: Status
    task_result: JsonValue = Field(
        description="What the function returned; of a FAILURE, its type and message; else null."
    )


class Attempt(_Out):
    """An attempt that was not the last."""

    attempt: int
    started_at: float | None
    ended_at: float | None = None
    error: JsonValue = None


class Reason(_Out):
    """What a task waits for."""

    what: str
    until: float | None = Field(description="Epoch seconds, if that is known.")


class TaskDetails(_Out):
    """All about a task; instants are epoch seconds."""

    task_id: str
    task: str
    user_id: str
    task_status: Status
    task_result: JsonValue
    attempt: int = Field(description="How many times it was started.")
    priority: int | str | None
    level: str | None = Field(description="Its priority level, as the chain calls it.")
    cost: JsonValue
    provider: str | None
    position: int | None = Field(description="Its place in the queue, 1 for the next one.")
    waits_for: list[Reason]
    valid_after: float | None
    submitted_at: float
    started_at: float | None
    finished_at: float | None
    earlier_attempts: list[Attempt]


class TaskList(_Out):
    """Some tasks, the latest first."""

    tasks: list[TaskDetails]


class User(_Out):
    """A user who has tasks, or had some lately."""

    user_id: str
    queued: int
    running: int
    recent_use: float | None = Field(description="What fairness counts; null: no fair strategy.")
    level: int | None = Field(description="The fairness level: 0 goes first.")
    weight: float | None


class Users(_Out):
    """Users, those with the most queued tasks first."""

    users: list[User]
    more: int = Field(description="How many more have queued tasks.")


class LimitUse(_Out):
    """How much of a limit is in use."""

    limit: str
    provider: str | None
    key: JsonValue
    used: float
    capacity: float | None = Field(description="null: without bound.")
    frees_at: float | None


class Queues(_Out):
    """What waits and runs."""

    queued: int
    running: int
    paused: bool
    levels: dict[str, int] = Field(description="Queued tasks by priority level.")
    users: dict[str, int] = Field(description="Queued tasks by user, of the longest hundred.")
    limits: list[LimitUse]


class ProviderLimit(_Out):
    """A limit of a provider."""

    limit: str
    parameters: dict[str, float] = Field(description="Those that can be changed.")
    used: float
    capacity: float | None
    frees_at: float | None


class ProviderStatus(_Out):
    """A provider of the chain's router."""

    name: str
    enabled: bool
    running: int
    limits: list[ProviderLimit]


class Providers(_Out):
    """All of them, in the order in which they are tried."""

    providers: list[ProviderStatus]


class ProviderChange(_In):
    """What is to be changed; what is left out stays."""

    enabled: bool | None = Field(None, description="Whether tasks may go there.")
    limits: list[dict[Name, Annotated[float, Field(allow_inf_nan=False)]]] | None = Field(
        None,
        max_length=100,
        description="One object per limit, in their order, of the parameters to set: "
        '[{"max_concurrent": 8}, {}].',
    )


class Message(_In):
    """A message for the queue."""

    body: JsonValue
    attributes: dict[Name, JsonValue] = Field(default_factory=dict, max_length=50)
    delay_seconds: Annotated[float, Field(ge=0, le=1e9, allow_inf_nan=False)] | None = None


class Batch(_In):
    """Messages for the queue."""

    messages: list[JsonValue] = Field(
        min_length=1,
        max_length=1000,
        description='Each {"body": any JSON, "attributes": {...}, "delay_seconds": 3}; what is no '
        "such message is told as an entry's error.",
        examples=[[{"body": {"n": 1}, "attributes": {"user_id": "ada"}}]],
    )


class Entry(_Out):
    """What became of one message: an id, or an error."""

    index: int
    message_id: str | None = None
    error: str | None = None


class BatchAnswer(_Out):
    """What became of each."""

    accepted: int
    entries: list[Entry]


class State(_Out):
    """Whether the service starts tasks."""

    paused: bool


class Health(_Out):
    """The service is alive."""

    status: Literal["ok"]
    version: str
    paused: bool


class FieldError(_Out):
    """What is wrong with one field."""

    field: str
    message: str


class Problem(_Out):
    """RFC 9457: what is wrong."""

    type: str
    title: str
    status: int
    detail: str
    errors: list[FieldError] = Field(default_factory=list)
