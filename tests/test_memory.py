"""An input of any size takes little memory."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[1] / "examples"))

from fake_provider import FakeProvider  # an example, not a package

pytestmark = [
    pytest.mark.real_time,
    pytest.mark.skipif(sys.platform != "linux", reason="asks Linux how much memory was used"),
]

MOST = 200_000
"""Kilobytes."""

# What getrusage calls the maximum includes that of the process from which this one was forked.
MEASURED = """
import re
from pathlib import Path
from async_task_manager.cli import main
try:
    main()
finally:
    print("peak", re.search(r"VmHWM:\\s*(\\d+)", Path("/proc/self/status").read_text())[1])
"""


async def peak(folder: Path, lines: int, size: int) -> int:
    """Kilobytes that a run took at most, of so many requests of so many bytes."""
    with (folder / "in.jsonl").open("w") as file:
        for number in range(lines):
            file.write(json.dumps({"id": number, "path": "/", "body": "x" * size}) + "\n")
    async with FakeProvider("p") as provider:
        (folder / "flow.toml").write_text(
            f'[[providers]]\nname = "p"\nbase_url = "{provider.url}"\nmax_concurrent = 8\n'
        )
        process = await asyncio.create_subprocess_exec(
            sys.executable,
            *("-c", MEASURED, "run", "in.jsonl", "-c", "flow.toml", "-o", "out.jsonl"),
            cwd=folder,
            stdout=subprocess.PIPE,
        )
        stdout, _ = await process.communicate()
    assert process.returncode == 0, stdout
    assert provider.stats.accepted == lines
    return int(stdout.split(b"peak ")[1])


async def test_a_file_that_would_not_fit(tmp_path: Path) -> None:
    assert await peak(tmp_path, 600, 400_000) < MOST, "240 MB"


@pytest.mark.soak
async def test_five_gigabytes(tmp_path: Path) -> None:
    assert await peak(tmp_path, 5_000, 1_000_000) < MOST
