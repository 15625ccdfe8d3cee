"""Calls of SQS: in batches of ten, what failed of them again, alone, with backoff."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Awaitable, Callable, Iterator, Sequence
from typing import Any

from async_task_manager.errors import LeaseLost, MissingExtra, StoreError

try:
    from aiobotocore.config import AioConfig
    from botocore.exceptions import BotoCoreError, ClientError
except ImportError as error:
    raise MissingExtra("sqs", "aiobotocore") from error

__all__ = ["CONFIG", "batches", "in_batches", "told"]

ATTEMPTS = 6
"""For an entry that failed in a batch: 5 more, after about 0.1, 0.2, 0.4, 0.8 and 1.6 seconds."""

CONFIG = AioConfig(
    # Throttling, too: after up to 1, 2 and 4 seconds.
    retries={"mode": "standard", "total_max_attempts": 4},
    max_pool_connections=20,
    connect_timeout=10,
    read_timeout=35,  # a long poll takes 20
)

Call = Callable[..., Awaitable[dict[str, Any]]]
Entry = dict[str, Any]


def told(error: BaseException, queue: str) -> Exception:
    """What SQS or the way to it said, as the library's error."""
    if isinstance(error, ClientError):
        code, message = error.response["Error"]["Code"], error.response["Error"].get("Message")
        return StoreError(f"SQS queue {queue}: {code}: {message}")
    return StoreError(f"SQS queue {queue}: {error}")


def refused(entry: dict[str, Any], queue: str) -> Exception:
    """Why SQS did not do one entry of a batch."""
    code, message = entry.get("Code", ""), entry.get("Message", "")
    if "ReceiptHandle" in code or "receipt handle" in message or "MessageNotInflight" in code:
        return LeaseLost(f"the lease was lost: {code}: {message}")
    return StoreError(f"SQS queue {queue}: {code}: {message}")


def batches(sizes: Sequence[int], most: int) -> Iterator[range]:
    """Neighbours, ten at most, that together are no larger than ``most``."""
    start = total = 0
    for i, size in enumerate(sizes):
        if i - start == 10 or (total + size > most and i > start):
            yield range(start, i)
            start, total = i, 0
        total += size
    if start < len(sizes):
        yield range(start, len(sizes))


async def in_batches(
    call: Call, queue: str, entries: Sequence[Entry], parts: Iterator[range], *, in_order: bool
) -> list[dict[str, Any] | Exception]:
    """What SQS answered for each entry, or why it was not done.

    Args:
        call: The batch call, with all but its ``Entries``.
        queue: The queue's name, for errors.
        entries: Without their ``Id``.
        parts: Which of them go together.
        in_order: One batch after another, else several at once.
    """
    results: list[dict[str, Any] | Exception] = [{}] * len(entries)

    async def one(part: range) -> None:
        left = list(part)
        for attempt in range(ATTEMPTS):
            if attempt:
                await asyncio.sleep(0.1 * 2 ** (attempt - 1) * random.uniform(0.75, 1.25))
            try:
                answer = await call(Entries=[{**entries[i], "Id": str(i)} for i in left])
            except (BotoCoreError, ClientError) as error:  # tried again inside
                for i in left:
                    results[i] = told(error, queue)
                return
            for done in answer.get("Successful", ()):
                results[int(done["Id"])] = done
            left = []
            for failed in answer.get("Failed", ()):
                i = int(failed["Id"])
                results[i] = refused(failed, queue)
                if not failed.get("SenderFault"):
                    left.append(i)
            if not left:
                return

    if in_order:
        for part in parts:
            await one(part)
    else:
        await asyncio.gather(*map(one, parts))
    return results
