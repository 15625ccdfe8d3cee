"""Attributes as SQS carries them: strings and numbers as its own, so that others can read them."""

from __future__ import annotations

import base64
import json
import re
from collections.abc import Mapping
from typing import Any

from async_task_manager.errors import InvalidValue
from async_task_manager.queues._drafts import Undecodable, decoded

__all__ = ["DEAD", "encoded", "from_sqs", "size_of", "to_sqs"]

MAX_ATTRIBUTES = 9
"""SQS takes ten; one is kept for the reason of a dead letter."""

DEAD = "dead_letter"
"""The attribute in which a dead letter's id, receive count, time and reason go along."""

NOT_CARRIED = ("delay_seconds", "group_id", "deduplication_id")
"""Parameters of SQS itself."""

_NAME = re.compile(r"(?!(?i:aws|amazon)\.)(?!.*\.\.)(?!\.)[\w.-]{1,256}(?<!\.)", re.ASCII)
_TEXT = re.compile(r"[\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]+")
_WHOLE = re.compile(r"-?\d{1,38}")

SqsAttributes = dict[str, dict[str, Any]]


def to_sqs(what: str, attributes: Mapping[str, Any]) -> SqsAttributes:
    """The attributes as SQS takes them.

    Raises:
        InvalidValue: it takes no such name, or not so many.
    """
    carried = {name: value for name, value in attributes.items() if name not in NOT_CARRIED}
    if len(carried) > MAX_ATTRIBUTES:
        raise InvalidValue(
            f"{what} must have at most {MAX_ATTRIBUTES} attributes on SQS, not {len(carried)}"
        )
    for name in carried:
        if name == DEAD:
            raise InvalidValue(
                f"an attribute of {what} must not be named {DEAD!r} on SQS: the reason of a dead "
                "letter goes there"
            )
        if not _NAME.fullmatch(name):
            raise InvalidValue(
                f"an attribute of {what} must be named with 1 to 256 letters, digits, '_', '-' and "
                f"single dots, not starting with 'AWS.' or 'Amazon.', on SQS, not {name!r}"
            )
    return encoded(carried)


def encoded(attributes: Mapping[str, Any]) -> SqsAttributes:
    """The attributes as SQS carries them, whatever it may think of their names and number."""
    return {name: _value(v) for name, v in attributes.items() if name not in NOT_CARRIED}


def _value(value: Any) -> dict[str, Any]:
    if isinstance(value, str) and _TEXT.fullmatch(value):
        return {"DataType": "String", "StringValue": value}
    text = json.dumps(value, separators=(",", ":"))
    plain = isinstance(value, int) and not isinstance(value, bool)
    if (plain and _WHOLE.fullmatch(text)) or (
        isinstance(value, float) and 1e-99 < abs(value) < 1e99
    ):
        return {"DataType": "Number", "StringValue": text}
    return {"DataType": "String.json", "StringValue": text}


def from_sqs(attributes: SqsAttributes) -> dict[str, Any]:
    """The attributes as they were, or as another producer meant them.

    Raises:
        Undecodable: one that says that it is JSON isn't.
    """
    return {name: _meant(name, attribute) for name, attribute in attributes.items()}


def _meant(name: str, attribute: dict[str, Any]) -> Any:
    kind, text = attribute["DataType"], attribute.get("StringValue")
    if text is None:
        return {"base64": base64.b64encode(attribute["BinaryValue"]).decode()}
    if kind == "String.json" or kind.startswith("Number"):
        try:
            return decoded(text)
        except Undecodable as error:
            if kind == "String.json":
                raise Undecodable(f"the attribute {name} is no JSON: {error}") from error
    return text  # a number that JSON writes otherwise, too


def size_of(body: str, attributes: SqsAttributes) -> int:
    """Bytes, as SQS counts them."""
    size = len(body.encode())
    for name, attribute in attributes.items():
        value = attribute.get("StringValue")
        data = attribute["BinaryValue"] if value is None else value.encode()
        size += len(name) + len(attribute["DataType"]) + len(data)
    return size
