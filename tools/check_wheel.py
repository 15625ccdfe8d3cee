"""Run by the Python of an environment that holds the wheel and no extras, away from the source."""

import asyncio
import importlib.metadata
import subprocess
import sys
from pathlib import Path

import async_task_manager
from async_task_manager import TaskManager
from async_task_manager.strategies import ConcurrentLimitStrategy


async def work(number: int) -> int:
    await asyncio.sleep(0.01)
    return number


async def main() -> None:
    async with TaskManager(ConcurrentLimitStrategy(max_concurrent=3)) as manager:
        tasks = [manager.add_task(work(number)) for number in range(8)]
        assert [await task for task in tasks] == list(range(8))


package = Path(async_task_manager.__file__).parent
assert package.is_relative_to(sys.prefix), f"imported from {package}, not from the wheel"
assert (package / "py.typed").is_file(), "users' type checkers need py.typed"

assets = {file.name for file in (package / "service" / "assets").iterdir()}
wanted = {"index.html", "docs.html", "dashboard.js", "uPlot.iife.min.js", "uPlot.LICENSE.txt"}
assert wanted <= assets, f"the dashboard is not whole: {sorted(assets)}"

files = importlib.metadata.files("async-task-manager") or []
strays = [str(file) for file in files if not str(file).startswith(("async_task_manager", "../"))]
assert not strays, f"the wheel packs {strays}"

installed = {found.name.replace("_", "-") for found in importlib.metadata.distributions()}
assert installed == {"async-task-manager", "typing-extensions"}, installed

asyncio.run(main())

atm = subprocess.run([Path(sys.prefix, "bin", "atm")], capture_output=True, text=True, check=False)
assert atm.returncode != 0, "without the extra there is nothing to run"
assert "pip install 'async-task-manager[cli]'" in atm.stderr, atm.stderr

print(f"async-task-manager {importlib.metadata.version('async-task-manager')} works from its wheel")
