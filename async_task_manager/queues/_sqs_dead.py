"""Dead letters on SQS: they lie in a queue of their own, with the reason in an attribute."""

from __future__ import annotations

import json
import time
from typing import Any, NamedTuple

from async_task_manager.queues._drafts import Undecodable
from async_task_manager.queues._sqs_attributes import (
    DEAD,
    SqsAttributes,
    encoded,
    from_sqs,
    size_of,
)
from async_task_manager.queues.base import DeadLetter, Message

__all__ = ["ALONE", "DEAD", "Grave", "Receipt", "letter_of", "name_group"]

ALONE = "alone."
"""What the group of a message without one begins with on a FIFO queue, which has no other."""


class Receipt(NamedTuple):
    """What SQS wants to see for a message that was received."""

    handle: str
    group: str | None


class Grave(NamedTuple):
    """What goes to the dead-letter queue."""

    id: str
    body: str
    attributes: SqsAttributes
    receipt: Receipt

    @classmethod
    def for_(cls, message: Message, reason: str) -> Grave:
        """Of a message that was received."""
        body = json.dumps(message.body, separators=(",", ":"))
        attributes = encoded(message.attributes)
        attributes = _with_epitaph(attributes, message.id, message.receive_count, reason)
        return cls(message.id, body, attributes, message.receipt)

    def within(self, most: int) -> Grave:
        """As it is, or without the reason, if it has more bytes than that with it."""
        if size_of(self.body, self.attributes) <= most:
            return self
        rest = {name: value for name, value in self.attributes.items() if name != DEAD}
        return self._replace(attributes=rest)

    @classmethod
    def of(cls, raw: dict[str, Any], reason: str) -> Grave:
        """Of what SQS gave, and could not be read."""
        id, system, attributes = (
            raw["MessageId"],
            raw["Attributes"],
            raw.get("MessageAttributes", {}),
        )
        receives = int(system["ApproximateReceiveCount"])
        receipt = Receipt(raw["ReceiptHandle"], system.get("MessageGroupId"))
        return cls(id, raw["Body"], _with_epitaph(attributes, id, receives, reason), receipt)


def _with_epitaph(attributes: SqsAttributes, id: str, receives: int, reason: str) -> SqsAttributes:
    if len(attributes) >= 10:
        return attributes  # another's message, and as many as SQS takes: they go before our reason
    text = json.dumps([id, receives, time.time(), reason[:1000]])
    return attributes | {DEAD: {"DataType": "String.json", "StringValue": text}}


def name_group(attributes: dict[str, Any], group: str | None) -> None:
    """Adds the group, unless it is one of our own making."""
    if group is not None and not group.startswith(ALONE):
        attributes["group_id"] = group


def letter_of(raw: dict[str, Any], max_receives: int) -> DeadLetter:
    """What lies in the dead-letter queue."""
    attributes = dict(raw.get("MessageAttributes", {}))
    system = raw["Attributes"]
    try:
        id, receives, died_at, reason = json.loads(attributes[DEAD]["StringValue"])
        del attributes[DEAD]
    except (KeyError, ValueError, TypeError):  # SQS itself has moved it; or it is another's
        id, receives = raw["MessageId"], max_receives
        died_at = int(system["SentTimestamp"]) / 1000
        reason = (
            "moved by SQS: received too often and never acknowledged "
            "(or no room was left for the reason)"
        )
    meant: dict[str, Any] = {}
    for name, attribute in attributes.items():
        try:
            meant |= from_sqs({name: attribute})
        except Undecodable:
            meant[name] = attribute["StringValue"]
    name_group(meant, system.get("MessageGroupId"))
    return DeadLetter(id, raw["Body"], meant, receives, reason, died_at)
