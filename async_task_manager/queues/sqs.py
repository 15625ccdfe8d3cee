"""A queue of Amazon SQS, standard or FIFO."""

from __future__ import annotations

import asyncio
import json
import uuid
from collections.abc import Iterable, Sequence
from contextlib import AsyncExitStack
from functools import partial
from math import ceil
from typing import Any

from async_task_manager._validate import number, optional, whole
from async_task_manager.errors import (
    InvalidState,
    InvalidType,
    InvalidValue,
    MissingExtra,
    SendFailed,
    StoreError,
)
from async_task_manager.queues._drafts import Draft, Undecodable, decoded
from async_task_manager.queues._sqs_attributes import (
    DEAD,
    from_sqs,
    size_of,
    to_sqs,
)
from async_task_manager.queues._sqs_calls import CONFIG, batches, in_batches, told
from async_task_manager.queues._sqs_dead import ALONE, Grave, Receipt, letter_of, name_group
from async_task_manager.queues.base import (
    DeadLetter,
    Depth,
    Message,
    MessageQueue,
    delays,
    reasons,
    receipts,
)

try:
    from aiobotocore.session import get_session
    from botocore.exceptions import BotoCoreError, ClientError
except ImportError as error:
    raise MissingExtra("sqs", "aiobotocore") from error

__all__ = ["SqsQueue"]

MAX_VISIBILITY = 12 * 3600
MAX_DELAY = 900
MAX_WAIT = 20
LOOKING = 30
"""Seconds for which dead letters are leased while they are looked at."""


class SqsQueue(MessageQueue):
    """A queue of Amazon SQS. It must exist, and have a dead-letter queue.

    Credentials, region and endpoint come from where AWS's own tools find them: `AWS_PROFILE`,
    `AWS_DEFAULT_REGION`, `AWS_ENDPOINT_URL_SQS` and so on. SQS gives messages out in an order of
    its own, those of a FIFO queue in the order of their group. Seconds are rounded up.

    A batch may have any length: it goes in tens, several at once. Entries that fail through no
    fault of their own are tried again, alone, with backoff; so is a call that is throttled.

    Args:
        name: The queue's name; that of a FIFO queue ends in ``.fifo``.
        visibility_timeout: Seconds of a lease, 1 to 43,200; None: the queue's own.
        max_receives: How often a message may fail before it becomes a dead letter, at least 1;
            None: as often as the queue's redrive policy says.
        dead_letter_queue: The name of the dead-letter queue; None: that of the redrive policy.
        region: None: that of the environment.
        endpoint_url: None: that of the environment, or AWS.

    Every call may raise `StoreError`.
    """

    def __init__(
        self,
        name: str,
        *,
        visibility_timeout: float | None = None,
        max_receives: int | None = None,
        dead_letter_queue: str | None = None,
        region: str | None = None,
        endpoint_url: str | None = None,
    ) -> None:
        for what, value in (("name", name), ("dead_letter_queue", dead_letter_queue)):
            if not (isinstance(value, str) or (value is None and what != "name")):
                raise InvalidType(f"{what} must be a str, not {value!r}")
        optional(
            number, "visibility_timeout", visibility_timeout, at_least=1, at_most=MAX_VISIBILITY
        )
        optional(whole, "max_receives", max_receives, at_least=1)
        self.name = name
        self.visibility_timeout = visibility_timeout or 30.0
        self.max_receives = max_receives or 5
        self._given = visibility_timeout, max_receives, dead_letter_queue
        self._where = {"region_name": region, "endpoint_url": endpoint_url}
        self._fifo = name.endswith(".fifo")
        self._deduplicates = False
        self._max_bytes = self._dead_bytes = 0
        self._stack = AsyncExitStack()
        self._opening = asyncio.Lock()
        self._client: Any = None
        self._url = self._dead_url = ""
        self._closed = False

    # ---- life -------------------------------------------------------------------------------

    async def open(self) -> None:
        """See `MessageQueue.open`."""
        async with self._opening:
            if self._closed:
                raise InvalidState(f"{self!r} was closed")
            if self._client is not None:
                return
            async with AsyncExitStack() as stack:
                session = get_session()
                try:
                    client = await stack.enter_async_context(
                        session.create_client("sqs", config=CONFIG, **self._where)
                    )
                    await self._look_up(client)
                except (BotoCoreError, ClientError) as error:
                    raise told(error, self.name) from error
                self._stack, self._client = stack.pop_all(), client

    async def _look_up(self, client: Any) -> None:
        self._url = (await client.get_queue_url(QueueName=self.name))["QueueUrl"]
        answer = await client.get_queue_attributes(QueueUrl=self._url, AttributeNames=["All"])
        attributes = answer["Attributes"]
        policy = json.loads(attributes.get("RedrivePolicy", "{}"))
        visibility, receives, dead = self._given
        self.visibility_timeout = visibility or float(attributes["VisibilityTimeout"]) or 30.0
        self.max_receives = receives or int(policy.get("maxReceiveCount", 5))
        self._max_bytes = int(attributes["MaximumMessageSize"])
        self._deduplicates = attributes.get("ContentBasedDeduplication") == "true"
        if dead is None:
            if "deadLetterTargetArn" not in policy:
                raise StoreError(
                    f"SQS queue {self.name} has no dead-letter queue: give it a redrive policy, or "
                    f"name one as in sqs://{self.name}?dead_letter_queue=NAME"
                )
            dead = policy["deadLetterTargetArn"].rpartition(":")[2]
        self._dead_url = (await client.get_queue_url(QueueName=dead))["QueueUrl"]
        answer = await client.get_queue_attributes(
            QueueUrl=self._dead_url, AttributeNames=["MaximumMessageSize"]
        )
        self._dead_bytes = int(answer["Attributes"]["MaximumMessageSize"])

    async def close(self) -> None:
        """See `MessageQueue.close`."""
        self._closed = True
        async with self._opening:
            self._client = None
            await self._stack.aclose()

    async def _ask(self, operation: str, **parameters: Any) -> dict[str, Any]:
        await self.open()
        try:
            return await getattr(self._client, operation)(**parameters)  # type: ignore[no-any-return]
        except (BotoCoreError, ClientError) as error:
            raise told(error, self.name) from error

    # ---- the protocol -----------------------------------------------------------------------

    async def _send(self, drafts: list[Draft]) -> list[str]:
        await self.open()
        entries, sizes = [], []
        for i, draft in enumerate(drafts):
            what = f"message {i} of the batch"
            attributes = to_sqs(what, draft.attributes)
            size = size_of(draft.body, attributes)
            if size > self._max_bytes:
                raise InvalidValue(
                    f"{what} must be at most {self._max_bytes} bytes with its attributes, as the "
                    f"queue {self.name} says, not {size}"
                )
            entries.append(
                {
                    "MessageBody": draft.body,
                    "MessageAttributes": attributes,
                    **self._parameters(what, draft),
                }
            )
            sizes.append(size)
        results = await self._in_batches("send_message_batch", self._url, entries, sizes)
        errors = {i: result for i, result in enumerate(results) if isinstance(result, Exception)}
        ids = [None if isinstance(r, Exception) else str(r["MessageId"]) for r in results]
        if errors:
            raise SendFailed(ids, errors)
        return [id for id in ids if id is not None]

    def _parameters(self, what: str, draft: Draft) -> dict[str, Any]:
        if draft.delay > MAX_DELAY:
            raise InvalidValue(
                f"delay_seconds of {what} must be at most {MAX_DELAY} on SQS, not {draft.delay!r}"
            )
        if not self._fifo:
            if draft.group is not None or draft.deduplication is not None:
                raise InvalidValue(
                    f"group_id and deduplication_id of {what} need a FIFO queue, not {self.name}"
                )
            return {"DelaySeconds": ceil(draft.delay)} if draft.delay else {}
        if draft.delay:
            raise InvalidValue(f"delay_seconds of {what} can't be on a FIFO queue as {self.name}")
        return self._fifo_parameters(draft.group, draft.deduplication)

    def _fifo_parameters(self, group: str | None, deduplication: str | None) -> dict[str, Any]:
        """Where nothing is said, a group of its own, and no deduplication but by content."""
        parameters = {"MessageGroupId": group or ALONE + uuid.uuid4().hex}
        if deduplication is not None or not self._deduplicates:
            parameters["MessageDeduplicationId"] = deduplication or uuid.uuid4().hex
        return parameters

    async def receive(
        self, max_messages: int = 10, wait_seconds: float = 0.0, *, ahead: bool = False
    ) -> list[Message]:
        """See `MessageQueue.receive`.

        Cancelled, it takes along what SQS was just giving out: that comes again when its lease has
        run out.
        """
        whole("max_messages", max_messages, at_least=1)
        number("wait_seconds", wait_seconds, at_least=0)
        await self.open()
        clock = asyncio.get_running_loop().time
        give_up = clock() + wait_seconds
        while True:
            left = max(0.0, give_up - clock())
            wait = min(MAX_WAIT, int(left))
            raw = await self._take(self._url, max_messages, wait, self.visibility_timeout)
            messages = await self._readable(raw)
            if messages or not left:
                return messages
            if not wait:
                await asyncio.sleep(min(left, 0.2))

    async def _take(
        self, url: str, most: int, wait: int, visibility: float
    ) -> list[dict[str, Any]]:
        """Up to so many messages, as SQS has them; waits for the first ten alone."""
        taken: list[dict[str, Any]] = []
        while len(taken) < most:
            answer = await self._ask(
                "receive_message",
                QueueUrl=url,
                MaxNumberOfMessages=min(10, most - len(taken)),
                WaitTimeSeconds=0 if taken else wait,
                VisibilityTimeout=ceil(visibility),
                MessageAttributeNames=["All"],
                MessageSystemAttributeNames=["All"],
            )
            some = answer.get("Messages", [])
            taken += some
            if not some:
                break
        return taken

    async def _readable(self, raw: list[dict[str, Any]]) -> list[Message]:
        """The messages; what is none becomes a dead letter."""
        messages, graves = [], []
        for one in raw:
            try:
                messages.append(self._message(one))
            except Undecodable as error:
                graves.append(Grave.of(one, str(error)))
        await self._bury(graves)
        return messages

    def _message(self, raw: dict[str, Any]) -> Message:
        attributes = raw.get("MessageAttributes", {})
        system = raw["Attributes"]
        meant = from_sqs(attributes)
        group = system.get("MessageGroupId")
        name_group(meant, group)
        return Message(
            decoded(raw["Body"]),
            meant,
            raw["MessageId"],
            int(system["ApproximateReceiveCount"]),
            size_of(raw["Body"], attributes),
            Receipt(raw["ReceiptHandle"], group),
        )

    async def acknowledge(self, batch: Sequence[Message]) -> list[Exception | None]:
        """See `MessageQueue.acknowledge`."""
        entries = [{"ReceiptHandle": receipt.handle} for receipt in receipts(batch)]
        return await self._each("delete_message_batch", entries)

    async def extend(self, batch: Sequence[Message], seconds: float) -> list[Exception | None]:
        """See `MessageQueue.extend`. SQS lets nobody hold a message for more than 12 hours."""
        number("seconds", seconds, at_least=0, at_most=MAX_VISIBILITY)
        return await self._show_in(batch, [seconds] * len(batch))

    async def release(
        self,
        batch: Sequence[Message],
        delay: float | Sequence[float] = 0.0,
        *,
        reason: str | Sequence[str] = "",
        counted: bool = True,
    ) -> list[Exception | None]:
        """See `MessageQueue.release`. A delay is cut to 12 hours; SQS counts every receive."""
        receipts(batch)
        given = list(zip(batch, delays(batch, delay), reasons(batch, reason), strict=True))
        spent = [counted and message.receive_count >= self.max_receives for message in batch]
        graves, back, seconds = [], [], []
        for (message, later, why), is_spent in zip(given, spent, strict=True):
            if is_spent:
                told = why or f"failed {message.receive_count} times"
                graves.append(Grave.for_(message, told))
            else:
                back.append(message)
                seconds.append(min(later, MAX_VISIBILITY))
        buried = iter(await self._bury(graves))
        given_back = iter(await self._show_in(back, seconds))
        return [next(buried if is_spent else given_back) for is_spent in spent]

    async def _show_in(
        self, batch: Sequence[Message], seconds: Sequence[float]
    ) -> list[Exception | None]:
        return await self._each(
            "change_message_visibility_batch",
            [
                {"ReceiptHandle": receipt.handle, "VisibilityTimeout": ceil(one)}
                for receipt, one in zip(receipts(batch), seconds, strict=True)
            ],
        )

    # ---- dead letters -----------------------------------------------------------------------

    async def dead_letter(
        self, batch: Sequence[Message], reason: str | Sequence[str]
    ) -> list[Exception | None]:
        """See `MessageQueue.dead_letter`. A crash in between may leave a copy in both queues."""
        receipts(batch)
        why = reasons(batch, reason)
        return await self._bury([Grave.for_(*each) for each in zip(batch, why, strict=True)])

    async def _bury(self, graves: Sequence[Grave]) -> list[Exception | None]:
        """A copy with the reason goes to the dead-letter queue, then the message is deleted."""
        await self.open()
        graves = [grave.within(self._dead_bytes) for grave in graves]
        copies = [
            {
                "MessageBody": grave.body,
                "MessageAttributes": grave.attributes,
                **(self._fifo_parameters(grave.receipt.group, grave.id) if self._fifo else {}),
            }
            for grave in graves
        ]
        sizes = [size_of(grave.body, grave.attributes) for grave in graves]
        sent = await self._in_batches("send_message_batch", self._dead_url, copies, sizes)
        done = [i for i, result in enumerate(sent) if not isinstance(result, Exception)]
        deleted = await self._in_batches(
            "delete_message_batch",
            self._url,
            [{"ReceiptHandle": graves[i].receipt.handle} for i in done],
        )
        results = [result if isinstance(result, Exception) else None for result in sent]
        for i, result in zip(done, deleted, strict=True):
            results[i] = result if isinstance(result, Exception) else None
        return results

    async def dead_letters(self, limit: int = 100) -> list[DeadLetter]:
        """See `MessageQueue.dead_letters`."""
        whole("limit", limit, at_least=1)
        await self.open()
        raw = await self._take(self._dead_url, limit, 0, LOOKING)
        await self._put_back(raw)
        return [letter_of(one, self.max_receives) for one in raw]

    async def redrive(self, ids: Iterable[str] | None = None) -> int:
        """See `MessageQueue.redrive`. SQS gives each a new id."""
        await self.open()
        chosen = None if ids is None else set(ids)
        count = 0
        others: list[dict[str, Any]] = []
        while raw := await self._take(self._dead_url, 10, 0, LOOKING):
            ours = [x for x in raw if chosen is None or letter_of(x, 0).id in chosen]
            others += [one for one in raw if one not in ours]
            count += await self._send_again(ours)
        await self._put_back(others)
        return count

    async def _send_again(self, raw: list[dict[str, Any]]) -> int:
        entries = []
        for one in raw:
            attributes = {k: v for k, v in one.get("MessageAttributes", {}).items() if k != DEAD}
            entries.append({"MessageBody": one["Body"], "MessageAttributes": attributes})
            if self._fifo:
                group = one["Attributes"].get("MessageGroupId")
                entries[-1] |= self._fifo_parameters(group, uuid.uuid4().hex)
        sent = await self._in_batches("send_message_batch", self._url, entries)
        done = [one for one, r in zip(raw, sent, strict=True) if not isinstance(r, Exception)]
        handles = [{"ReceiptHandle": one["ReceiptHandle"]} for one in done]
        await self._in_batches("delete_message_batch", self._dead_url, handles)
        return len(done)

    async def _put_back(self, raw: list[dict[str, Any]]) -> None:
        entries = [{"ReceiptHandle": x["ReceiptHandle"], "VisibilityTimeout": 0} for x in raw]
        await self._in_batches("change_message_visibility_batch", self._dead_url, entries)

    async def depth(self) -> Depth:
        """See `MessageQueue.depth`; SQS counts approximately."""
        await self.open()
        prefix = "ApproximateNumberOfMessages"
        names = [prefix, f"{prefix}Delayed", f"{prefix}NotVisible"]
        ask = partial(self._ask, "get_queue_attributes", AttributeNames=names)
        ours, dead = await asyncio.gather(ask(QueueUrl=self._url), ask(QueueUrl=self._dead_url))
        ready, delayed, in_flight = (int(ours["Attributes"][name]) for name in names)
        return Depth(ready, delayed, in_flight, int(dead["Attributes"][prefix]))

    # ---- calls ------------------------------------------------------------------------------

    async def _each(
        self, operation: str, entries: Sequence[dict[str, Any]]
    ) -> list[Exception | None]:
        await self.open()
        results = await self._in_batches(operation, self._url, entries)
        return [result if isinstance(result, Exception) else None for result in results]

    async def _in_batches(
        self,
        operation: str,
        url: str,
        entries: Sequence[dict[str, Any]],
        sizes: Sequence[int] | None = None,
    ) -> list[dict[str, Any] | Exception]:
        call = partial(getattr(self._client, operation), QueueUrl=url)
        parts = batches([0] * len(entries) if sizes is None else sizes, self._max_bytes)
        return await in_batches(call, self.name, entries, parts, in_order=self._fifo)

    def __repr__(self) -> str:
        return f"SqsQueue({self.name!r})"
