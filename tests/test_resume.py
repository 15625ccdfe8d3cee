"""A run that was killed goes on where it was: nothing lost, nothing twice, no limit overshot."""

from __future__ import annotations

import asyncio
import io
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

sys.path.insert(0, str(Path(__file__).parents[1] / "examples"))

from fake_provider import FakeProvider  # an example, not a package

from async_task_manager.config import FlowConfig, build_chain
from async_task_manager.runner import Batch, Ledger, journal_of, open_ledger
from async_task_manager.runner.recall import reach, recall
from async_task_manager.strategies import Chain, ProviderRouterStrategy
from async_task_manager.task import Task

real_time = pytest.mark.real_time
ATM = str(Path(sys.executable).with_name("atm"))


def written(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_bytes().splitlines()]


async def killed(folder: Path, results: int) -> None:
    """A run that is killed as soon as it has written so many results."""
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        ATM,
        *["run", "in.jsonl", "--config", "flow.toml", "--output", "out.jsonl"],
        cwd=folder,
        stdout=subprocess.DEVNULL,
    )
    out = folder / "out.jsonl"
    async with asyncio.timeout(30):
        while not (out.exists() and out.read_bytes().count(b"\n") >= results):
            await asyncio.sleep(0.005)
    process.kill()
    await process.wait()


async def resumed(folder: Path, *options: str) -> tuple[int, str]:
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        ATM,
        *["run", "in.jsonl", "--config", "flow.toml", "--output", "out.jsonl"],
        *options,
        cwd=folder,
        stdout=subprocess.PIPE,
        env={**os.environ, "COLUMNS": "100"},
    )
    async with asyncio.timeout(30):
        stdout, _ = await process.communicate()
    assert process.returncode is not None
    return process.returncode, stdout.decode()


@real_time
async def test_a_run_that_is_killed_again_and_again(tmp_path: Path) -> None:
    (tmp_path / "in.jsonl").write_text(
        "".join(json.dumps({"id": f"r{i}", "path": f"/{i}"}) + "\n" for i in range(60))
    )
    async with FakeProvider("p", limits=["20/2s"], max_concurrent=4, latency=0.02) as provider:
        (tmp_path / "flow.toml").write_text(
            f'[[providers]]\nname = "p"\nbase_url = "{provider.url}"\nmax_concurrent = 3\n'
            'limits = ["20/2s"]\nslack = 0.3\nretry = false\n'
        )
        for results in (7, 25, 50):
            await killed(tmp_path, results)
        sent = Counted(provider)
        code, stdout = await resumed(tmp_path)
    lines = written(tmp_path / "out.jsonl")
    assert code == 0, stdout
    assert "resuming out.jsonl: what is finished is not sent again" in stdout
    assert {line["id"] for line in lines} == {f"r{i}" for i in range(60)}
    assert len(lines) == 60, "what has a result is not sent again"
    assert provider.stats.rejected == 0, "starts of the runs before count in the window"
    assert 0 <= sum(sent.all().values()) - 60 <= 9, "at most what was in flight goes twice"


class Counted:
    def __init__(self, provider: FakeProvider) -> None:
        self.provider = provider

    def all(self) -> dict[str, int]:
        return {path: count.total() for path, count in self.provider.stats.statuses.items()}


@real_time
async def test_what_failed_is_sent_again_if_asked_for(tmp_path: Path) -> None:
    (tmp_path / "in.jsonl").write_text(
        "".join(json.dumps({"id": i, "path": f"/{i}"}) + "\n" for i in range(8)) + "nonsense\n"
    )
    async with FakeProvider("p", fail_next=3) as provider:
        (tmp_path / "flow.toml").write_text(
            f'[[providers]]\nname = "p"\nbase_url = "{provider.url}"\nretry = false\n'
        )
        code, _ = await resumed(tmp_path)
        assert (code, provider.stats.received) == (1, 8)
        code, _ = await resumed(tmp_path)
        assert (code, provider.stats.received) == (1, 8), "what failed is finished, too"
        code, stdout = await resumed(tmp_path, "--retry-failed")
        assert (code, provider.stats.received) == (1, 11), "a line is still no request"
        assert "5 were finished before" in stdout
        (tmp_path / "in.jsonl").write_text(
            (tmp_path / "in.jsonl").read_text().replace("nonsense", '{"id": "mended", "path": "/"}')
        )
        code, _ = await resumed(tmp_path)
        assert (code, provider.stats.received) == (0, 12)
    last = {line["id"]: line["status"] for line in written(tmp_path / "out.jsonl")}
    assert set(last.values()) == {"succeeded", "invalid"}
    assert last[9] == "invalid" and last["mended"] == "succeeded"


@real_time
async def test_an_interrupt_says_how_to_go_on(tmp_path: Path) -> None:
    (tmp_path / "in.jsonl").write_text('{"path": "/"}\n' * 30)
    async with FakeProvider("p", latency=0.2) as provider:
        (tmp_path / "flow.toml").write_text(
            f'[[providers]]\nname = "p"\nbase_url = "{provider.url}"\nmax_concurrent = 2\n'
        )
        for number in (signal.SIGINT, signal.SIGTERM):
            process = await asyncio.create_subprocess_exec(
                sys.executable,
                ATM,
                *["run", "in.jsonl", "--config", "flow.toml", "--output", "out.jsonl"],
                cwd=tmp_path,
                stdout=subprocess.PIPE,
            )
            received = provider.stats.received
            async with asyncio.timeout(30):
                while provider.stats.received < received + 2:
                    await asyncio.sleep(0.005)
                process.send_signal(number)
                stdout, _ = await process.communicate()
            assert process.returncode == 130
            assert b"  atm run in.jsonl --config flow.toml --output out.jsonl\n" in stdout
    lines = written(tmp_path / "out.jsonl")
    assert len({line["id"] for line in lines}) == len(lines) == provider.stats.received


# ---- the windows --------------------------------------------------------------------------------


def flow(**more: Any) -> FlowConfig:
    provider = {"name": "p", "base_url": "http://p", "slack": 0} | more
    return FlowConfig.model_validate({"providers": [provider]})


def starts(*ages: float, **more: Any) -> list[dict[str, Any]]:
    now = time.time()
    return [
        {"start": i, "provider": "p", "at": now - age, "cost": None, "keys": {}} | more
        for i, age in enumerate(ages)
    ]


def opens(chain: Chain, metadata: dict[str, Any] | None = None, index: int = 0) -> float:
    """When the limit of provider p admits a task with this metadata."""
    router = next(stage for stage in chain.stages if isinstance(stage, ProviderRouterStrategy))
    limit = router["p"].limits[index]
    task = Task(asyncio.Event().wait, metadata)
    return limit.ready_at(limit.key_of(task), limit.cost_of(task), 0.0)


def recalled(config: FlowConfig, records: list[dict[str, Any]]) -> Chain:
    chain = build_chain(config)
    recall(records, chain)
    return chain


@given(st.lists(st.floats(0, 20), max_size=8))
def test_a_window_holds_over_a_restart(ages: list[float]) -> None:
    ages = sorted(ages, reverse=True)
    chain = recalled(flow(limits=["3/10s"]), starts(*ages))
    inside = [age for age in ages if age < 9.9]
    if len(inside) >= 3:
        assert opens(chain) == pytest.approx(10 - inside[-3], abs=0.1)
    elif len([age for age in ages if age < 10.1]) < 3:
        assert opens(chain) <= 0
    assert opens(chain, index=1) <= 0, "nothing runs any more"


def test_costs_keys_and_settlements_are_remembered() -> None:
    config = flow(
        limits=["100 tokens/10s", {"rate": "1/10s", "key": "model"}], settle="usage.total_tokens"
    )
    (record,) = starts(4, cost={"tokens": 90}, keys={"model": "m"})
    chain = recalled(config, [record])
    cost = {"cost": {"tokens": 50}}
    assert opens(chain, cost) == pytest.approx(6, abs=0.1)
    assert opens(chain, {"model": "m"}, index=1) == pytest.approx(6, abs=0.1)
    assert opens(chain, {"model": "other"}, index=1) <= 0
    settled = {"settle": 0, "at": record["at"] + 1, "actual": {"tokens": 40}}
    assert opens(recalled(config, [record, settled]), cost) <= 0


def test_a_calendar_s_window_is_remembered() -> None:
    config = flow(limits=["2/day@UTC"])
    day = 86_400 - time.time() % 86_400
    if day < 10 or day > 86_390:
        time.sleep(20)  # midnight: what was today is not, any more
        day = 86_400 - time.time() % 86_400
    assert opens(recalled(config, starts(2, 1))) == pytest.approx(day, abs=0.5)
    assert opens(recalled(config, starts(90_000, 89_999))) <= 0


def test_a_changed_config_takes_what_it_understands() -> None:
    config = flow(limits=["100 tokens/10s", "1/10s"])
    chain = recalled(config, starts(4))
    assert opens(chain, {"cost": {"tokens": 100}}) <= 0, "it counted no tokens then"
    assert opens(chain, index=1) == pytest.approx(6, abs=0.1)
    assert opens(recalled(flow(limits=["1/10s"]), starts(4, provider="gone"))) <= 0


def test_a_clock_that_was_set_back_lets_nothing_slip() -> None:
    assert opens(recalled(flow(limits=["1/10s"]), starts(-3600))) == pytest.approx(10, abs=0.1)


def test_limits_of_the_chain_are_charged_too() -> None:
    config = flow().model_validate(
        {
            "providers": [{"name": "p", "base_url": "http://p"}],
            "chain": [{"strategy": "sliding_window", "max_requests": 1, "window_seconds": 10}],
        }
    )
    (limit, *_) = recalled(config, starts(4)).stages
    assert limit.ready_at(None, 1, 0.0) == pytest.approx(6, abs=0.1)  # type: ignore[attr-defined]


def test_how_long_a_start_counts() -> None:
    assert reach(flow()) == 0
    assert reach(flow(limits=["9/minute", {"rate": "9/hour", "slack": 2}])) == 3602
    assert reach(flow(limits=["9/day@UTC"])) == 3 * 86_400
    assert reach(flow(limits=[{"strategy": "token_bucket", "rate": 1, "burst": 1}])) == 86_400


@real_time
async def test_a_journal_that_cannot_be_written_lets_nothing_out(tmp_path: Path) -> None:
    class Full(io.BytesIO):
        def write(self, line: Any) -> int:
            raise OSError(28, "No space left on device")

    async with FakeProvider("p") as provider:
        config = flow(base_url=provider.url)
        with pytest.raises(OSError, match="No space"):
            await Batch(config).run(['{"path": "/"}'], Ledger(io.BytesIO(), Full()))
    assert provider.stats.received == 0


@real_time
async def test_the_journal_is_ahead_of_the_request(tmp_path: Path) -> None:
    out = tmp_path / "out.jsonl"
    seen = []

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        seen.append(len(written(journal_of(out))))
        writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\nconnection: close\r\n\r\n")
        await writer.drain()
        writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    async with server:
        config = flow(base_url=f"http://127.0.0.1:{port}", max_concurrent=1)
        with open_ledger(out) as ledger:
            await Batch(config).run(['{"path": "/"}'] * 5, ledger)
    assert seen == [1, 2, 3, 4, 5]
