"""The main job, for real: two rate-limited HTTP servers, a few hundred requests, `atm run`."""

from __future__ import annotations

import json
import random
import subprocess
import sys
import tempfile
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


def start(name: str, stats: Path) -> tuple[subprocess.Popen[str], str]:
    """A provider as a process of its own, and its URL."""
    settings = PROVIDERS[name]
    command = [sys.executable, str(HERE / "fake_provider.py"), "--name", name]
    for limit in settings.limits:
        command += ["--limit", limit]
    command += ["--max-concurrent", str(settings.max_concurrent)]
    command += ["--latency", settings.latency, "--stats", str(stats)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    return process, process.stdout.readline().split()[-1]


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
    with tempfile.TemporaryDirectory() as folder:
        files = Path(folder)
        servers = {name: start(name, files / f"{name}.json") for name in PROVIDERS}
        try:
            write_requests(files / "requests.jsonl")
            write_config(files / "flow.toml", {name: url for name, (_, url) in servers.items()})
            print((files / "flow.toml").read_text())
            atm = Path(sys.executable).with_name("atm")
            arguments = "run requests.jsonl --config flow.toml --output results.jsonl"
            print(f"$ atm {arguments}", flush=True)
            ran = subprocess.run([str(atm), *arguments.split()], cwd=files, check=False)
        finally:
            for process, _ in servers.values():
                process.terminate()
            for process, _ in servers.values():
                process.wait()
        counts = {name: json.loads((files / f"{name}.json").read_text()) for name in servers}
    rejected = sum(count["rejected"] for count in counts.values())
    for name, count in counts.items():
        print(f"{name} itself counted {count['accepted']} accepted, {count['rejected']} rejected")
    print(f"429s: {rejected}")
    return ran.returncode or int(rejected > 0)


if __name__ == "__main__":
    sys.exit(main())
