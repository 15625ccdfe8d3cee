"""Workers that are killed at any moment lose nothing, and repeat only what had begun."""

from __future__ import annotations

import asyncio
import json
import random
import signal
import subprocess
import sys
import time
from collections import Counter, defaultdict
from pathlib import Path

import pytest

from async_task_manager.queues import Depth, Message
from async_task_manager.queues.sqlite import SqliteQueue

pytestmark = pytest.mark.real_time

LIFE = """
import asyncio, json, os, sys
from async_task_manager import Chain
from async_task_manager.queues import Message, open_queue
from async_task_manager.strategies import ConcurrentLimitStrategy, PriorityQueueStrategy
from async_task_manager.worker import Worker

folder, life, mode = sys.argv[1:]
log = os.open(f"{folder}/log", os.O_WRONLY | os.O_APPEND | os.O_CREAT)
queue = open_queue(f"sqlite:///{folder}/queue.db?visibility_timeout=0.4&max_receives=100000")

def tell(*what):
    os.write(log, (json.dumps(what) + "\\n").encode())  # one write: whole, or not at all

async def handler(message):
    tell("began", message.body, message.receive_count, int(life))
    await asyncio.sleep(0.005)
    tell("done", message.body, message.receive_count, int(life))

async def produce():
    for batch in range(10**9):
        bodies = [f"{life}-{batch}-{n}" for n in range(20)]
        await queue.send([Message(body) for body in bodies])
        for body in bodies:
            tell("sent", body)
        await asyncio.sleep(0.02)

async def main():
    worker = Worker(queue, handler, Chain(PriorityQueueStrategy(), ConcurrentLimitStrategy(10)))
    if mode == "produce":
        asyncio.create_task(produce())
    print("alive", flush=True)
    await worker.run(until_empty=mode == "drain")
    await queue.close()

asyncio.run(main())
"""


def live(folder: Path, life: int, mode: str) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-c", LIFE, str(folder), str(life), mode]
    return subprocess.Popen(command, stdout=subprocess.PIPE)


def kill_at_random(folder: Path, kills: int) -> None:
    """So many lives, each ended by SIGKILL at a random moment of its work; then a peaceful one."""
    chance = random.Random()
    for life in range(kills):
        with live(folder, life, "produce") as process:
            try:
                assert process.stdout is not None and process.stdout.readline() == b"alive\n"
                time.sleep(chance.uniform(0, 0.5))
            finally:
                process.send_signal(signal.SIGKILL)
    with live(folder, kills, "drain") as process:
        assert process.wait(timeout=600) == 0


async def check(folder: Path, kills: int) -> None:
    sent: set[str] = set()
    began: defaultdict[str, list[tuple[int, int]]] = defaultdict(list)
    done: Counter[str] = Counter()
    for line in (folder / "log").read_text().splitlines():
        what, *rest = json.loads(line)
        if what == "sent":
            sent.add(str(rest[0]))
        elif what == "began":
            body, count, life = rest
            began[str(body)].append((int(str(count)), int(str(life))))
        elif what == "done":
            done[str(rest[0])] += 1
    assert len(sent) > 20 * kills / 4
    assert sent <= done.keys(), "every message that was sent is handled"
    for body, attempts in began.items():
        lives = [life for _, life in attempts]
        counts = [count for count, _ in attempts]
        assert len(set(lives)) == len(lives), "nothing runs twice in one life"
        assert counts == sorted(set(counts)), "and whoever runs it again sees that"
        assert done[body] <= len(attempts)
        if len(attempts) > 1:
            assert counts[-1] > 1
    twice = sum(count - 1 for count in done.values())
    assert twice <= 10 * kills, "no more than ran when a life ended"
    async with SqliteQueue(folder / "queue.db") as queue:
        assert await queue.depth() == Depth(0, 0, 0, 0)


async def test_killed_ten_times_it_loses_nothing(tmp_path: Path) -> None:
    await asyncio.to_thread(kill_at_random, tmp_path, 10)
    await check(tmp_path, 10)


@pytest.mark.soak
async def test_killed_two_hundred_times_it_loses_nothing(tmp_path: Path) -> None:
    await asyncio.to_thread(kill_at_random, tmp_path, 200)
    await check(tmp_path, 200)


POISONED = """
import asyncio, os, sys
from async_task_manager.strategies import ConcurrentLimitStrategy
from async_task_manager.worker import Worker

async def handler(message):
    if message.body == "poison":
        os._exit(9)

url = f"sqlite:///{sys.argv[1]}/queue.db?visibility_timeout=0.3&max_receives=3"
asyncio.run(Worker(url, handler, ConcurrentLimitStrategy(1)).run(until_empty=True))
"""


async def test_a_message_that_kills_the_process_is_given_up_alone(tmp_path: Path) -> None:
    async with SqliteQueue(tmp_path / "queue.db", max_receives=3) as queue:
        await queue.send([Message("poison" if n == 30 else n) for n in range(100)])
        crashes = 0
        while (await queue.depth()).ready + (await queue.depth()).in_flight:
            ran = await asyncio.to_thread(
                subprocess.run, [sys.executable, "-c", POISONED, str(tmp_path)], check=False
            )
            crashes += ran.returncode == 9
            await asyncio.sleep(0.35)
        assert crashes == 3
        (letter,) = await queue.dead_letters()
        assert letter.body == '"poison"'
        assert letter.reason == "received 3 times and never acknowledged"
