"""The commands: thin; they parse, call the runner, and print."""

from __future__ import annotations

from datetime import datetime
from enum import StrEnum
from importlib.metadata import version
from pathlib import Path
from typing import Annotated

from async_task_manager.errors import MissingExtra

try:
    import typer
except ImportError as error:
    raise MissingExtra("cli", error.name or "typer") from error

from async_task_manager.cli.queue import queue
from async_task_manager.cli.worker import worker

__all__ = ["app"]

app = typer.Typer(
    name="atm",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="markdown",
)


def _print_version(wanted: bool) -> None:
    if wanted:
        print(f"atm {version('async-task-manager')}")
        raise typer.Exit


@app.callback()
def atm(
    _version: Annotated[
        bool,
        typer.Option(
            "--version", callback=_print_version, is_eager=True, help="Print the version and exit."
        ),
    ] = False,
) -> None:
    """Work that must respect limits.

    **Begin with:** `atm init flow.toml`, `atm check flow.toml`, then
    `atm run requests.jsonl --config flow.toml --output results.jsonl`
    """


class Format(StrEnum):
    """How results are written."""

    jsonl = "jsonl"
    openai_batch = "openai-batch"


@app.command()
def run(
    *,
    requests: Annotated[
        Path, typer.Argument(help="JSONL or CSV, one HTTP request per line; - is standard input.")
    ],
    config: Annotated[
        Path, typer.Option("--config", "-c", help="TOML: the providers and their limits.")
    ],
    output: Annotated[
        Path,
        typer.Option("--output", "-o", help="JSONL: one result per line. If it exists, go on."),
    ],
    format: Annotated[Format, typer.Option(help="How results are written.")] = Format.jsonl,
    csv: Annotated[
        bool, typer.Option("--csv", help="The input is CSV, even if its name doesn't say so.")
    ] = False,
    retry_failed: Annotated[
        bool, typer.Option("--retry-failed", help="Send again what has failed before.")
    ] = False,
    strict: Annotated[
        bool, typer.Option("--strict", help="Stop at the first line that is no request.")
    ] = False,
    force: Annotated[
        bool, typer.Option("--force", help="Begin anew: overwrite an existing output.")
    ] = False,
    look_ahead: Annotated[
        int,
        typer.Option(min=1, help="Requests read ahead: as far as priorities and times reach."),
    ] = 1000,
    report: Annotated[
        Path | None, typer.Option(help="HTML: one page with all figures and pictures.")
    ] = None,
    plot: Annotated[
        Path | None, typer.Option(help="SVG or PNG: what ran where, the queue, the limits.")
    ] = None,
) -> None:
    """Sends the requests of a file through rate-limited providers.

    A request is a JSON object: `id`, `method`, `path` (below the provider's base_url) or `url`,
    `headers`, `json` or `body`, `provider`, `priority` (high, normal, low or a number),
    `valid_after` (ISO-8601, or "+3s"), `cost` (a number, or {"tokens": 900}), `metadata`; or a line
    of OpenAI's batch format: `custom_id`, `method`, `url`, `body`. In CSV, columns are called like
    these: `id`, `path`, `json.prompt`, `json.max_tokens:number`.

    Ctrl-C starts nothing more and finishes what runs; a second one cancels that. The same command
    again goes on where it was: what is finished is not sent again.

    Exit codes: 0 every request succeeded; 1 some did not, or a file failed on the way;
    2 bad usage or config, and nothing was sent; 130 interrupted.

    **Example:** `atm run requests.jsonl --config flow.toml --output results.jsonl`
    """
    from async_task_manager.cli.run import RunOptions, run_command

    options = RunOptions(
        requests=requests,
        config=config,
        output=output,
        format=format.value,
        csv=csv,
        retry_failed=retry_failed,
        strict=strict,
        force=force,
        look_ahead=look_ahead,
        report=report,
        plot=plot,
    )
    raise typer.Exit(run_command(options))


@app.command()
def init(
    file: Annotated[Path, typer.Argument(help="Where to write it.")] = Path("flow.toml"),
    force: Annotated[bool, typer.Option("--force", help="Overwrite an existing file.")] = False,
) -> None:
    """Writes a commented config to begin with.

    Exit codes: 0 written; 2 the file exists, or cannot be written.

    **Example:** `atm init flow.toml`
    """
    from async_task_manager.cli.files import init_command

    raise typer.Exit(init_command(file, force=force))


@app.command()
def check(file: Annotated[Path, typer.Argument(help="TOML: providers and their limits.")]) -> None:
    """Says what a config means, and how many requests its limits allow.

    Nothing is sent. All that is wrong is told at once, each with its key, its value and what it
    should be.

    Exit codes: 0 the config is sound; 2 it is not.

    **Example:** `atm check flow.toml`
    """
    from async_task_manager.cli.files import check_command

    raise typer.Exit(check_command(file))


@app.command()
def shell(
    file: Annotated[
        Path | None, typer.Argument(help="TOML: the providers; without it, two to play with.")
    ] = None,
) -> None:
    """A menu over a live manager: what runs goes on while the menu waits.

    Adds requests with a priority and a time, and providers; enables and disables them; starts and
    stops sending; shows queues and limits; simulates; saves the providers as a config. What happens
    is told above the menu. A request is a GET of its provider's address; a provider without one
    only pretends to answer.

    Exit codes: 0 left; 2 bad config.

    **Example:** `atm shell flow.toml`
    """
    from async_task_manager.cli.shell import shell_command

    raise typer.Exit(shell_command(file))


@app.command()
def wizard() -> None:
    """Asks for providers, their rates and a number of requests; then simulates or runs them.

    What cannot be is asked again, with the reason. In the end the providers can be saved as a
    config.

    Exit codes: 0 done; 130 left with Ctrl-C.

    **Example:** `atm wizard`
    """
    from async_task_manager.cli.wizard import wizard_command

    raise typer.Exit(wizard_command())


@app.command("simulate")
def simulate_(
    config: Annotated[Path, typer.Argument(help="TOML: the providers and their limits.")],
    *,
    requests: Annotated[
        str, typer.Option("--requests", "-n", help="How many; or a file of them, as for atm run.")
    ] = "1000",
    rate: Annotated[
        str | None, typer.Option(help='How many arrive, "40/minute"; else all at once.')
    ] = None,
    burst: Annotated[int, typer.Option(min=1, help="How many arrive together.")] = 1,
    duration: Annotated[
        str, typer.Option(help='Seconds each runs: 1.5, "lognormal(2, 0.8)", "uniform(1, 3)".')
    ] = "1",
    cost: Annotated[
        str | None, typer.Option(help='Units each takes: 900, "exp(900)"; else as the config says.')
    ] = None,
    users: Annotated[int, typer.Option(min=0, help="How many users, some of them busy.")] = 0,
    priorities: Annotated[str, typer.Option(help='Their shares: "high=1,normal=8,low=1".')] = "",
    failures: Annotated[float, typer.Option(help="The probability of a failed attempt.")] = 0.0,
    trace: Annotated[
        Path | None, typer.Option(help="CSV: TIMESTAMP, ContextTokens, GeneratedTokens.")
    ] = None,
    replay: Annotated[
        Path | None, typer.Option(help="JSONL: the results of atm run; with -n the requests.")
    ] = None,
    what_if: Annotated[
        list[str] | None,
        typer.Option(help="key=value: the same with this, side by side. Any number of them."),
    ] = None,
    start: Annotated[
        datetime | None, typer.Option(help="The wall time at which it begins; else now.")
    ] = None,
    seed: Annotated[int, typer.Option(help="Of the random numbers.")] = 0,
    as_json: Annotated[bool, typer.Option("--json", help="JSON instead of a table.")] = False,
    picture: Annotated[
        Path | None, typer.Option("--picture", "-p", help="Draw it: a .svg or .png file.")
    ] = None,
) -> None:
    """How long will it take? Runs a workload through a config on virtual time; nothing is sent.

    The same strategies as in `atm run` decide, so that a day takes seconds. Keys and other headers
    aren't needed.

    - The evening that 10,000 requests take: `atm simulate flow.toml -n 10000 --duration 2`
    - With other limits, side by side:
      `atm simulate flow.toml -n 10000 --what-if providers.groq.max_concurrent=8`
    - Arrivals over time: `atm simulate flow.toml -n 5000 --rate 40/minute --burst 10 -p day.svg`
    - A file: `atm simulate flow.toml -n requests.jsonl --duration "lognormal(2, 0.8)"`
    - A run, again: `atm simulate flow.toml --replay results.jsonl -n requests.jsonl`

    Exit codes: 0 simulated; 2 bad usage, config or workload.
    """
    from async_task_manager.cli.simulate import Workload, shares, simulate_command

    try:
        workload = Workload(
            requests=requests,
            trace=trace,
            replay=replay,
            rate=rate,
            burst=burst,
            duration=duration,
            cost=cost,
            users=users,
            priorities=shares(priorities),
            failures=failures,
            seed=seed,
        )
    except ValueError as error:
        raise typer.BadParameter(str(error), param_hint="--priorities") from None
    raise typer.Exit(
        simulate_command(
            config, workload, what_if=what_if or [], start=start, as_json=as_json, picture=picture
        )
    )


@app.command()
def serve(
    service: Annotated[
        str | None,
        typer.Argument(metavar="MODULE:NAME", help="Where it is; none: a demonstration."),
    ] = None,
    *,
    host: Annotated[str, typer.Option(help="The address to listen on.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="0 takes a free one.")] = 8000,
    token: Annotated[
        list[str] | None,
        typer.Option(help="Opens the service; else those in ATM_TOKEN, with commas between."),
    ] = None,
    allow_host: Annotated[
        list[str] | None, typer.Option(help="A name under which the service is reached.")
    ] = None,
    max_connections: Annotated[int, typer.Option(min=1, help="At once.")] = 1000,
) -> None:
    """Serves a `TaskService`: its tasks over HTTP, and a dashboard.

    Without one, it serves a demonstration, whose tasks come from four users and are forgotten.

    An address that others can reach needs a token. SIGTERM or Ctrl-C takes nothing more in, and
    gives what runs its time.

    Exit codes: 0 stopped; 1 the address is taken, or the store is in use or damaged; 2 bad usage.

    **Example:** `atm serve app:service --port 8000`
    """
    from async_task_manager.cli.serve import serve_command

    raise typer.Exit(
        serve_command(
            service,
            host=host,
            port=port,
            tokens=token or [],
            hosts=allow_host or [],
            max_connections=max_connections,
        )
    )


app.command()(worker)
app.add_typer(queue)
