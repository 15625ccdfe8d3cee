"""`atm run`: opens the files, runs the batch, and turns what became of it into an exit code."""

from __future__ import annotations

import asyncio
import shlex
import signal
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

from rich.console import Console

from async_task_manager.cli.progress import shown
from async_task_manager.config import ConfigError, load_config
from async_task_manager.errors import MissingExtra
from async_task_manager.runner import (
    Batch,
    Ledger,
    Lines,
    OutputError,
    Rows,
    Summary,
    journal_of,
    open_ledger,
    parse_request,
)
from async_task_manager.runner.page import page
from async_task_manager.runner.recall import reach

__all__ = ["RunOptions", "run_command"]

SUCCEEDED, FAILED, BAD_USAGE, INTERRUPTED = 0, 1, 2, 130
STDIN = Path("-")


@dataclass(frozen=True, slots=True)
class RunOptions:
    """What was asked for on the command line."""

    requests: Path
    config: Path
    output: Path
    format: str
    csv: bool
    retry_failed: bool
    strict: bool
    force: bool
    look_ahead: int
    report: Path | None = None
    plot: Path | None = None


def run_command(options: RunOptions) -> int:
    """Runs the batch and gives the exit code."""
    console = Console()
    running = False
    try:
        with ExitStack() as files:
            config = load_config(options.config)
            csv = options.csv or options.requests.suffix.lower() == ".csv"
            batch = Batch(
                config,
                look_ahead=options.look_ahead,
                strict=options.strict,
                parse=Rows() if csv else parse_request,
                record=options.report is not None or options.plot is not None,
            )
            _check_pictures(options)
            lines = Lines(files.enter_context(_opened(options.requests)), csv=csv)
            _check_output(options)
            ledger = files.enter_context(
                open_ledger(
                    options.output,
                    format=options.format,
                    force=options.force,
                    retry_failed=options.retry_failed,
                    since=time.time() - reach(config),
                )
            )
            if ledger.resumed:
                console.print(_resuming(options.output, ledger), highlight=False, soft_wrap=True)
            running = True
            summary = asyncio.run(_interruptible(batch, lines, ledger, console))
            _draw(batch, summary, options)
    except (ConfigError, OutputError, MissingExtra) as error:
        return _refuse(str(error))
    except OSError as error:
        what = f"{error.filename}: " if error.filename else ""
        return _refuse(f"{what}{error.strerror or error}", FAILED if running else BAD_USAGE)
    except KeyboardInterrupt:  # before the run took it over
        return INTERRUPTED
    return _conclude(batch, summary, console)


@contextmanager
def _opened(requests: Path) -> Iterator[int]:
    """A file descriptor; of standard input, if the path is "-"."""
    if requests == STDIN:
        yield sys.stdin.fileno()
        return
    with requests.open("rb") as file:
        yield file.fileno()


def _check_output(options: RunOptions) -> None:
    inputs = [path for path in (options.requests, options.config) if path != STDIN]
    for path in (options.output, journal_of(options.output)):
        if path.exists() and any(map(path.samefile, inputs)):
            raise ConfigError(f"{path} is an input; the results need a file of their own")


def _check_pictures(options: RunOptions) -> None:
    """Before anything is sent: an evening's run must not end with a picture that can't be."""
    for name, path, kinds in (
        ("--report", options.report, (".html",)),
        ("--plot", options.plot, (".svg", ".png")),
    ):
        if path is None:
            continue
        if path.suffix not in kinds:
            raise ConfigError(f"{name} must end in {' or '.join(kinds)}, not {path.name!r}")
        if not path.parent.is_dir():
            raise ConfigError(f"{name}: there is no folder {str(path.parent)!r}")
        if path.suffix == ".png" and find_spec("matplotlib") is None:
            raise MissingExtra("plot", "matplotlib")


def _draw(batch: Batch, summary: Summary, options: RunOptions) -> None:
    title = f"{options.requests.name} through {options.config.name}"
    if options.report is not None:
        options.report.write_text(page(summary, batch.report(), title), encoding="utf-8")
    if options.plot is not None:
        batch.report().save(options.plot, title=title)


def _resuming(output: Path, ledger: Ledger) -> str:
    flight = ledger.in_flight
    lost = f"; {flight} that were in flight are sent again" if flight else ""
    return f"resuming {output}: what is finished is not sent again{lost}"


async def _interruptible(batch: Batch, lines: Lines, ledger: Ledger, console: Console) -> Summary:
    """The run, with Ctrl-C, or a request to terminate, as its interrupt."""
    loop = asyncio.get_running_loop()

    def interrupt() -> None:
        again = batch.interrupted
        batch.interrupt()
        running = sum(part.running for part in batch.summary.providers.values())
        if again:
            console.print(f"interrupted again: cancelling {running} that run")
        else:
            console.print(f"interrupted: finishing {running} that run; Ctrl-C again cancels them")

    numbers = (signal.SIGINT, signal.SIGTERM)
    before = [
        signal.signal(number, lambda *_: loop.call_soon_threadsafe(interrupt)) for number in numbers
    ]
    try:
        async with shown(batch, lambda: lines.expected, console):
            return await batch.run(lines, ledger)
    finally:
        for number, handler in zip(numbers, before, strict=True):
            signal.signal(number, handler)


def _conclude(batch: Batch, summary: Summary, console: Console) -> int:
    for table in summary.tables():
        console.print(table)
    for line in batch.malformed:
        print(f"atm: {line}", file=sys.stderr)
    more = summary.statuses["invalid"] - len(batch.malformed)
    if more > 0:
        print(f"atm: and {more} more lines are no requests", file=sys.stderr)
    if batch.stopped:
        print("atm: stopped there, as --strict says", file=sys.stderr)
    if batch.interrupted:
        console.print(
            f"interrupted: {summary.unsent} requests that were read were not sent, "
            "nor was what comes after them; to go on, run the same again:",
        )
        print(f"  atm {shlex.join(sys.argv[1:])}")
    console.print(f"429s: {summary.too_many}", highlight=False)
    if batch.interrupted and not batch.stopped:
        return INTERRUPTED
    return SUCCEEDED if summary.all_succeeded else FAILED


def _refuse(message: str, code: int = BAD_USAGE) -> int:
    for line in message.splitlines():
        print(f"atm: {line}", file=sys.stderr)
    return code
