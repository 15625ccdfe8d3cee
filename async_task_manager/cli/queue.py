"""`atm queue`: sends messages, counts them, and looks after dead letters."""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import Callable, Coroutine, Iterable
from dataclasses import asdict
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from async_task_manager.queues import MessageQueue

__all__ = ["queue"]

DONE, FAILED, BAD_USAGE = 0, 1, 2
AT_ONCE = 1000
"""Messages of one batch."""

queue = typer.Typer(
    name="queue", no_args_is_help=True, help="Messages: send them, count them, see dead letters."
)

Url = Annotated[
    str, typer.Option("--queue", envvar="QUEUE_URL", help="sqlite:///tasks.db or sqs://name.")
]


@queue.command()
def send(
    bodies: Annotated[
        list[str], typer.Argument(help="JSON, one message each; - reads lines of JSON.")
    ],
    *,
    queue: Url,
    attribute: Annotated[
        list[str] | None,
        typer.Option(
            "--attribute", "-a", help="name=value of every message: priority=high, user_id=ann."
        ),
    ] = None,
) -> None:
    """Sends messages; done when they are safe in the queue.

    An attribute's value is JSON, or else text. These mean something: `priority`, `user_id`,
    `delay_seconds`, `group_id`, `deduplication_id`.

    Exit codes: 0 all are sent; 1 the queue failed; 2 bad usage, and nothing was sent of what came
    after.

    **Example:** `atm queue send '{"to": "ann"}' -a priority=high --queue sqlite:///tasks.db`
    """

    async def work(opened: MessageQueue) -> None:
        from async_task_manager.queues import Message

        attributes = dict(map(_attribute, attribute or []))
        batch: list[Message] = []
        sent = 0
        for number, text in enumerate(_lines(bodies), 1):
            batch.append(Message(_parsed(text, number), attributes))
            if len(batch) == AT_ONCE:
                sent += len(await opened.send(batch))
                batch.clear()
        sent += len(await opened.send(batch))
        print(f"{sent} sent")

    raise typer.Exit(_with(queue, work))


@queue.command()
def depth(
    *, queue: Url, as_json: Annotated[bool, typer.Option("--json", help="As JSON.")] = False
) -> None:
    """Counts messages: ready, delayed, in flight, dead. SQS counts approximately.

    **Example:** `atm queue depth --queue sqlite:///tasks.db`
    """

    async def work(opened: MessageQueue) -> None:
        counts = asdict(await opened.depth())
        if as_json:
            print(json.dumps(counts))
            return
        for name, count in counts.items():
            print(f"{name.replace('_', ' '):10}{count:>10}")

    raise typer.Exit(_with(queue, work))


@queue.command("dead-letters")
def dead_letters(
    *,
    queue: Url,
    limit: Annotated[int, typer.Option(min=1, help="How many are shown at most.")] = 100,
    redrive: Annotated[bool, typer.Option("--redrive", help="Send them again.")] = False,
    id: Annotated[
        list[str] | None, typer.Option("--id", help="With --redrive: this one, not all.")
    ] = None,
) -> None:
    """Shows dead letters with their reasons, a line of JSON each; or sends them again.

    **Example:** `atm queue dead-letters --redrive --queue sqlite:///tasks.db`
    """

    async def work(opened: MessageQueue) -> None:
        if redrive:
            print(f"{await opened.redrive(id)} sent again")
            return
        for letter in await opened.dead_letters(limit):
            died = datetime.fromtimestamp(letter.died_at, UTC).isoformat(timespec="seconds")
            print(json.dumps(asdict(letter) | {"died_at": died}))

    if id and not redrive:
        raise typer.BadParameter("goes with --redrive", param_hint="--id")
    raise typer.Exit(_with(queue, work))


def _with(url: str, work: Callable[[MessageQueue], Coroutine[Any, Any, None]]) -> int:
    """Opens the queue, does the work, and gives the exit code."""
    from async_task_manager.errors import StoreError, TaskManagerError
    from async_task_manager.queues import open_queue

    async def main() -> None:
        async with open_queue(url) as opened:
            await work(opened)

    try:
        asyncio.run(main())
    except TaskManagerError as error:
        for line in str(error).splitlines():
            print(f"atm: {line}", file=sys.stderr)
        return FAILED if isinstance(error, StoreError) else BAD_USAGE
    return DONE


def _lines(bodies: list[str]) -> Iterable[str]:
    for body in bodies:
        if body == "-":
            yield from (line for line in sys.stdin if line.strip())
        else:
            yield body


def _parsed(text: str, number: int) -> Any:
    from async_task_manager.errors import InvalidValue

    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        shown = text.strip()
        raise InvalidValue(f"message {number} must be JSON, not {shown[:80]!r}: {error}") from None


def _attribute(text: str) -> tuple[str, Any]:
    name, equals, value = text.partition("=")
    if not equals or not name:
        raise typer.BadParameter(f"must be name=value, not {text!r}", param_hint="--attribute")
    try:
        return name, json.loads(value)
    except ValueError:
        return name, value
