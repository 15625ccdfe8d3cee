"""`atm worker`: finds the worker or the handler in a module, and lets it work."""

from __future__ import annotations

import asyncio
import logging
import os
import sys
from typing import Annotated

import typer

__all__ = ["worker"]

STOPPED, FAILED, BAD_USAGE = 0, 1, 2


def worker(
    target: Annotated[
        str, typer.Argument(metavar="MODULE:NAME", help="A handler, a BulkStrategy or a Worker.")
    ],
    *,
    queue: Annotated[
        str | None,
        typer.Option(envvar="QUEUE_URL", help="sqlite:///tasks.db or sqs://name."),
    ] = None,
    max_concurrent: Annotated[
        int | None,
        typer.Option(envvar="MAX_CONCURRENT", min=1, help="Messages at once; for a handler, 10."),
    ] = None,
    max_threads: Annotated[
        int | None,
        typer.Option(envvar="MAX_THREADS", min=1, help="Threads for a handler that isn't async."),
    ] = None,
    grace: Annotated[
        float | None,
        typer.Option(min=0, help="Seconds for what runs to finish after SIGTERM; 30."),
    ] = None,
    until_empty: Annotated[
        bool, typer.Option("--until-empty", help="End when only dead letters are left.")
    ] = False,
) -> None:
    """Takes messages from a queue to a handler: app:handler is `handler` in app.py, here.

    A handler is a function of one `Message`; the urgent come first. A `Worker` brings queue and
    strategy of its own; the options change them. SQS takes credentials, region and endpoint from
    where AWS's own tools do.

    SIGTERM or Ctrl-C receives nothing more, gives back at once what has not begun, and finishes
    what runs; a second one cancels that.

    Exit codes: 0 stopped; 1 the queue or a strategy failed; 2 bad usage.

    **Example:** `atm worker app:handler --queue sqlite:///tasks.db --max-concurrent 20`
    """
    code = run_worker(target, queue, max_concurrent, max_threads, grace, until_empty=until_empty)
    raise typer.Exit(code)


def run_worker(
    target: str,
    queue: str | None,
    max_concurrent: int | None,
    max_threads: int | None,
    grace: float | None,
    *,
    until_empty: bool,
) -> int:
    """Works until a signal, and gives the exit code."""
    from async_task_manager.cli.target import find
    from async_task_manager.errors import StoreError, StrategyError, TaskManagerError
    from async_task_manager.strategies import (
        BulkStrategy,
        Chain,
        ConcurrentLimitStrategy,
        PriorityQueueStrategy,
    )
    from async_task_manager.worker import Worker

    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s")
    try:
        found = find(target)
        if isinstance(found, Worker):
            found.configure(queue, max_concurrent, max_threads, grace)
            ours = found
        elif not callable(found) and not isinstance(found, BulkStrategy):
            return refuse(f"{target} is {found!r}: no handler, BulkStrategy or Worker", BAD_USAGE)
        elif queue is None:
            return refuse("a handler needs a queue: --queue URL, or QUEUE_URL", BAD_USAGE)
        else:
            limit = ConcurrentLimitStrategy(max_concurrent or 10)
            ours = Worker(queue, found, Chain(PriorityQueueStrategy(), limit))
            ours.configure(None, None, max_threads, grace)
    except (TaskManagerError, ImportError) as error:
        return refuse(str(error), BAD_USAGE)
    print(f"working on {ours.queue!r}; Ctrl-C or SIGTERM finishes what runs", flush=True)
    try:
        asyncio.run(ours.run(until_empty=until_empty, signals=True))
    except (StoreError, StrategyError) as error:
        return refuse(str(error), FAILED)
    stats = ours.stats()
    print(
        f"{stats.acknowledged} acknowledged, {stats.released} failed and given back, "
        f"{stats.dead} dead, {stats.returned} not begun and given back, {stats.lost} lost"
    )
    if ours.in_threads:
        logging.error("%d handlers are left behind in their threads", ours.in_threads)
        sys.stdout.flush()
        os._exit(FAILED)  # else the process would wait for them
    return STOPPED


def refuse(message: str, code: int) -> int:
    """Says why not, and gives the exit code."""
    for line in message.splitlines():
        print(f"atm: {line}", file=sys.stderr)
    return code
