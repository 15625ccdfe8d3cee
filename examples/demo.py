"""The main job, for real: two rate-limited HTTP servers, a few hundred requests, `atm run`."""

from __future__ import annotations

import json
import random
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import NamedTuple

HERE = Path(__file__).parent


class Settings(NamedTuple):
    """What a provider allows, which the config repeats, and how fast it answers."""

    limits: list[str]
    max_concurrent: int
    latency: str


PROVIDERS = {
    "swift": Settings(["40/2s", "24000 tokens/2s"], 8, "0.02-0.1"),
    "steady": Settings(["20/second", "6000 tokens/second"], 4, "0.05-0.15"),
}
REQUESTS = 320


@contextmanager
def server(name: str, stats: Path) -> Iterator[str]:
    """A provider as a process of its own: its URL. Told to stop, it writes what it counted."""
    settings = PROVIDERS[name]
    command = [sys.executable, str(HERE / "fake_provider.py"), "--name", name]
    for limit in settings.limits:
        command += ["--limit", limit]
    command += ["--max-concurrent", str(settings.max_concurrent)]
    command += ["--latency", settings.latency, "--stats", str(stats)]
    # Its own session: on Ctrl-C `atm run` finishes what runs, for which it needs the provider.
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, start_new_session=True)
    try:
        assert process.stdout is not None
        yield process.stdout.readline().split()[-1]
    finally:
        process.terminate()
        process.communicate()


def write_requests(path: Path) -> None:
    """Mixed priorities, times and costs; a few pinned to a provider."""
    dice = random.Random(42)
    with path.open("w") as file:
        for number in range(REQUESTS):
            tokens = dice.randrange(50, 700)
            request = {
                "id": f"request-{number}",
                "method": "POST",
                "path": "/v1/completions",
                "json": {"prompt": f"question {number}", "max_tokens": tokens},
                "priority": dice.choice(["high", "normal", "normal", "low"]),
                "cost": {"tokens": tokens},
            }
            if number % 10 == 0:
                request["valid_after"] = f"+{dice.randrange(1, 5)}s"
            if number % 16 == 0:
                request["provider"] = dice.choice(list(PROVIDERS))
            file.write(json.dumps(request) + "\n")


def write_config(path: Path, urls: dict[str, str]) -> None:
    """The TOML that a user would write by hand."""
    parts = [
        f"[[providers]]\nname = {json.dumps(name)}\nbase_url = {json.dumps(url)}\n"
        f"limits = {json.dumps(PROVIDERS[name].limits)}\n"
        f"max_concurrent = {PROVIDERS[name].max_concurrent}\n"
        "slack = 0.25  # windows are short here, and a busy machine delivers late\n"
        for name, url in urls.items()
    ]
    path.write_text("\n".join(parts))


def main() -> int:
    """Runs it, and asks the servers whether a limit was overshot."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that the servers are stopped
    signal.signal(signal.SIGINT, lambda *_: None)  # Ctrl-C is for `atm run`, which hears it, too
    with tempfile.TemporaryDirectory() as folder:
        files = Path(folder)
        with ExitStack() as servers:
            urls = {
                name: servers.enter_context(server(name, files / f"{name}.json"))
                for name in PROVIDERS
            }
            write_requests(files / "requests.jsonl")
            write_config(files / "flow.toml", urls)
            print((files / "flow.toml").read_text())
            arguments = "run requests.jsonl --config flow.toml --output results.jsonl"
            print(f"$ atm {arguments}", flush=True)
            atm = [sys.executable, "-m", "async_task_manager.cli", *arguments.split()]
            ran = subprocess.run(atm, cwd=files, check=False)
        counts = {name: json.loads((files / f"{name}.json").read_text()) for name in PROVIDERS}
    rejected = sum(count["rejected"] for count in counts.values())
    for name, count in counts.items():
        print(f"{name} itself counted {count['accepted']} accepted, {count['rejected']} rejected")
    print(f"429s: {rejected}")
    return ran.returncode or int(rejected > 0)


if __name__ == "__main__":
    sys.exit(main())
