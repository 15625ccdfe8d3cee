"""schemathesis against the running service: it does what its description says, and nothing else."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from serving import Process

PROGRAM = """
    from async_task_manager import Chain
    from async_task_manager.service import TaskService
    from async_task_manager.strategies import *

    router = ProviderRouterStrategy([Provider("one", [ConcurrentLimitStrategy(2)])])
    service = TaskService(
        Chain(PriorityQueueStrategy(), FairShareStrategy(), router),
        queue="sqlite:///queue.db",
        grace=0.1,
    )

    @service.task
    async def work(x: str = "") -> str:
        return x
"""
TOKEN = "a-token-of-sufficient-length"

# A schema knows no function's arguments, and no provider's limits: 422 may be the right answer.
CONFIG = """
[checks.positive_data_acceptance]
expected-statuses = ["2xx", "401", "403", "404", "409", "422", "5xx"]
"""


@pytest.mark.parametrize("secured", [False, True])
def test_the_api_is_as_described(tmp_path: Path, secured: bool) -> None:
    (tmp_path / "schemathesis.toml").write_text(CONFIG)
    tokens = ("--token", TOKEN) if secured else ()
    with Process(tmp_path, PROGRAM, *tokens) as server:
        ran = subprocess.run(
            [
                sys.executable,
                str(Path(sys.executable).with_name("schemathesis")),
                *("--config-file", str(tmp_path / "schemathesis.toml")),
                *("run", f"{server.url}/openapi.json"),
                *("--max-examples", "8"),
                *("--exclude-path", "/events"),  # a stream without end
                *("--request-timeout", "20"),
                *("--seed", "1"),
                *(("--header", f"Authorization: Bearer {TOKEN}") if secured else ()),
            ],
            cwd=tmp_path,
            capture_output=True,
            text=True,
            timeout=240,
            check=False,
        )
        assert ran.returncode == 0, ran.stdout
    log = (tmp_path / "stderr").read_text()
    assert "Traceback" not in log, log
