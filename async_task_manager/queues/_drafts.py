"""Messages on their way out and in: checked once, as text."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Any, NamedTuple

from async_task_manager._validate import number
from async_task_manager.errors import InvalidType, InvalidValue
from async_task_manager.queues.base import Message
from async_task_manager.strategies.priority_queue import LEVELS

__all__ = ["DEDUPLICATION_SECONDS", "Draft", "Undecodable", "decoded", "drafted"]

DEDUPLICATION_SECONDS = 300.0
"""As long as on SQS."""

_IDENTIFIER = re.compile(r"[!-~]{1,128}")
"""What SQS takes for groups and deduplication: printable ASCII without spaces."""

_LONE = re.compile(r"[\ud800-\udfff]")
"""Half of a pair of surrogates, which no UTF-8 can hold."""


class Draft(NamedTuple):
    """A message to be sent."""

    body: str
    attributes: Mapping[str, Any]
    attributes_text: str
    rank: float
    """Lower first: the priority, negated."""
    user: str
    delay: float
    group: str | None
    deduplication: str | None


class Undecodable(ValueError):
    """A stored message is no JSON; says why."""


def drafted(message: object, position: int) -> Draft:
    """The message as text, its attributes checked; ``position`` is where it stands in its batch."""
    what = f"message {position} of the batch"
    if not isinstance(message, Message):
        raise InvalidType(f"{what} must be a Message, not {message!r}")
    attributes = message.attributes
    if not isinstance(attributes, Mapping):
        raise InvalidType(f"attributes of {what} must be a dict, not {attributes!r}")
    body = _text(f"the body of {what}", message.body)
    if not attributes:
        return Draft(body, {}, "{}", 0.0, "", 0.0, None, None)
    for name in attributes:
        if not isinstance(name, str) or not name:
            raise InvalidType(f"the name of an attribute of {what} must be a str, not {name!r}")
    user = attributes.get("user_id", "")
    if not isinstance(user, str):
        raise InvalidType(f"user_id of {what} must be a str, not {user!r}")
    if not user.isascii() and _LONE.search(user):
        raise InvalidValue(f"user_id of {what} must be text that UTF-8 can hold, not {user!r}")
    return Draft(
        body,
        attributes,
        _text(f"the attributes of {what}", dict(attributes)),
        -float(_priority(what, attributes.get("priority", 0))),
        user,
        number(f"delay_seconds of {what}", attributes.get("delay_seconds", 0.0), at_least=0),
        _identifier(what, "group_id", attributes),
        _identifier(what, "deduplication_id", attributes),
    )


def _text(what: str, value: object) -> str:
    try:
        text = json.dumps(value, allow_nan=False, separators=(",", ":"))
    except (TypeError, ValueError, RecursionError) as error:
        raise InvalidValue(f"{what} must be JSON: {error}") from error
    return text


def _priority(what: str, value: object) -> float:
    if isinstance(value, str):
        if value not in LEVELS:
            words = ", ".join(map(repr, LEVELS))
            raise InvalidValue(f"priority of {what} must be a number or {words}, not {value!r}")
        return LEVELS[value]
    return number(f"priority of {what}", value)


def _identifier(what: str, name: str, attributes: Mapping[str, Any]) -> str | None:
    value = attributes.get(name)
    if value is None:
        return None
    if not isinstance(value, str):
        raise InvalidType(f"{name} of {what} must be a str, not {value!r}")
    if not _IDENTIFIER.fullmatch(value):
        raise InvalidValue(
            f"{name} of {what} must be 1 to 128 printable ASCII characters, not {value!r}"
        )
    return value


def decoded(text: str) -> Any:
    """The JSON value.

    Raises:
        Undecodable: it is none.
    """
    try:
        return json.loads(text, parse_constant=_refuse_constant)
    except (ValueError, RecursionError) as error:  # also a whole number of 5,000 digits
        raise Undecodable(f"the body is no JSON: {error}") from error


def _refuse_constant(name: str) -> Any:
    raise ValueError(f"{name} is no JSON value")
