"""The queue in a file among processes, damage and full disks."""

from __future__ import annotations

import asyncio
import json
import random
import sqlite3
import subprocess
import sys
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from async_task_manager.errors import SendFailed, StoreCorrupt, StoreError
from async_task_manager.queues import Depth, Message
from async_task_manager.queues.sqlite import SqliteQueue

pytestmark = pytest.mark.real_time


@pytest.fixture
async def queue(tmp_path: Path) -> AsyncIterator[SqliteQueue]:
    async with SqliteQueue(tmp_path / "queue.db", busy_timeout=0.05) as queue:
        yield queue


def change(queue: SqliteQueue, statement: str, *parameters: Any) -> None:
    """What somebody else does to the file."""
    with closing(sqlite3.connect(queue._file.path, isolation_level=None)) as connection:
        connection.execute(statement, parameters)


# ---- messages that are none ---------------------------------------------------------------------


@pytest.mark.parametrize(
    ("column", "value", "reason"),
    [
        ("body", '{"n": ', "its bytes changed in the file"),
        ("attributes", '{"a":2}', "its bytes changed in the file"),
        ("id", "other", "its bytes changed in the file"),
    ],
)
async def test_bytes_that_changed_are_noticed(
    column: str, value: str, reason: str, queue: SqliteQueue
) -> None:
    await queue.send([Message({"n": 1}, {"a": 1})])
    change(queue, f"UPDATE message SET {column} = ?", value)
    await queue.send([Message("good")])
    assert [message.body for message in await queue.receive()] == ["good"]
    (letter,) = await queue.dead_letters()
    assert letter.reason == reason
    assert await queue.depth() == Depth(0, 0, 1, 1)


@pytest.mark.parametrize("body", ["", "{", "NaN", "1" * 5000, "[" * 100_000, "{'a': 1}"])
async def test_a_body_that_is_no_json_is_no_loop(body: str, queue: SqliteQueue) -> None:
    from async_task_manager.queues._schema import crc

    await queue.send([Message(1, {"user_id": "ann"})])
    change(
        queue, "UPDATE message SET body = ?, id = 'x', crc = ?", body, crc("x", body, ATTRIBUTES)
    )
    assert await queue.receive() == []
    (letter,) = await queue.dead_letters()
    assert (letter.body, letter.attributes) == (body, {"user_id": "ann"})
    assert letter.reason.startswith("the body is no JSON: ")
    assert await queue.redrive() == 1
    assert await queue.receive() == []
    assert await queue.depth() == Depth(0, 0, 0, 1)


ATTRIBUTES = '{"user_id":"ann"}'


async def test_attributes_of_a_dead_letter_may_be_broken(queue: SqliteQueue) -> None:
    await queue.send([Message(1)])
    change(queue, "UPDATE message SET attributes = '{'")
    assert await queue.receive() == []
    (letter,) = await queue.dead_letters()
    assert letter.attributes == {"undecodable": "{"}


# ---- the disk -----------------------------------------------------------------------------------


async def test_a_full_disk_is_told_and_nothing_is_half_sent(queue: SqliteQueue) -> None:
    await queue.send([Message(0)])
    (pages,) = await queue._file.read(lambda c: c.execute("PRAGMA page_count").fetchone())
    await queue._file.read(lambda c: c.execute(f"PRAGMA max_page_count={pages}").fetchall())
    with pytest.raises(SendFailed, match=r"2 of 2 messages were not sent: .* full") as caught:
        await queue.send([Message("small"), Message("x" * 100_000)])
    assert caught.value.ids == [None, None]
    assert caught.value.errors.keys() == {0, 1}
    assert await queue.depth() == Depth(1, 0, 0, 0)
    (message,) = await queue.receive()  # what needs no room goes on
    assert await queue.acknowledge([message]) == [None]
    await queue._file.read(lambda c: c.execute("PRAGMA max_page_count=1000000").fetchall())
    assert len(await queue.send([Message("x" * 100_000)])) == 1


FILL = """
import asyncio, resource, sys
from async_task_manager.errors import SendFailed
from async_task_manager.queues import Message, open_queue

resource.setrlimit(resource.RLIMIT_FSIZE, (1_000_000, -1))

async def main():
    sent = 0
    queue = open_queue(f"sqlite:///{sys.argv[1]}")
    try:
        while True:
            await queue.send([Message("x" * 1000)])
            sent += 1
    except SendFailed as error:
        print(sent, error)
    resource.setrlimit(resource.RLIMIT_FSIZE, (-1, -1))
    await queue.send([Message("later")])
    await queue.close()

asyncio.run(main())
"""


async def test_a_disk_that_takes_no_more_loses_nothing_it_took(tmp_path: Path) -> None:
    path = tmp_path / "queue.db"
    ran = await asyncio.to_thread(
        subprocess.run,
        [sys.executable, "-c", FILL, str(path)],
        capture_output=True,
        text=True,
        check=True,
    )
    sent = int(ran.stdout.split()[0])
    assert sent > 10
    async with SqliteQueue(path) as queue:
        assert (await queue.depth()).ready == sent + 1


async def test_a_locked_file_is_waited_for_so_long_and_no_longer(queue: SqliteQueue) -> None:
    await queue.send([Message(1)])
    (message,) = await queue.receive()
    with closing(sqlite3.connect(queue._file.path, isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
        with pytest.raises(SendFailed, match=r"locked by another process for more than 0\.05 s"):
            await queue.send([Message(2)])
        with pytest.raises(StoreError, match="locked"):
            await queue.acknowledge([message])
        other.execute("ROLLBACK")
    assert await queue.acknowledge([message]) == [None]
    assert await queue.depth() == Depth(0, 0, 0, 0)


@settings(max_examples=200)
@given(data=st.data())
def test_flipped_bytes_are_refused_or_change_nothing(
    data: st.DataObject, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """Wherever they fall: the file is refused, or each message is as it was, or dead and told."""
    path = tmp_path_factory.mktemp("flipped") / "queue.db"
    sent = {f"{n}": random.Random(n).randbytes(40).hex() for n in range(60)}

    async def fill() -> None:
        async with SqliteQueue(path) as queue:
            await queue.send([Message([n, text], {"user_id": n}) for n, text in sent.items()])

    async def drain() -> None:
        queue = SqliteQueue(path)
        try:
            await queue.open()
        except StoreError:
            return
        else:
            received = await queue.receive(100)
            dead = await queue.dead_letters()
            assert all(sent[n] == text for n, text in (message.body for message in received))
            assert len(received) + len(dead) == len(sent)
        finally:
            await queue.close()

    asyncio.run(fill())
    content = bytearray(path.read_bytes())
    start = data.draw(st.integers(0, len(content) - 8))
    for i in range(start, start + data.draw(st.integers(1, 8))):
        content[i] ^= data.draw(st.integers(1, 255))
    path.write_bytes(content)
    asyncio.run(drain())


async def test_a_damaged_file_is_refused_at_start(tmp_path: Path) -> None:
    path = tmp_path / "queue.db"
    async with SqliteQueue(path) as queue:
        await queue.send([Message(n) for n in range(2000)])
    content = bytearray(path.read_bytes())
    content[4096 * 6 : 4096 * 6 + 20] = b"\xff" * 20
    path.write_bytes(content)
    with pytest.raises(StoreCorrupt, match=r"(?s)is damaged .* left as it is.*\.recover"):
        async with SqliteQueue(path):
            pass
    queue = SqliteQueue(path)
    with pytest.raises(StoreCorrupt):
        await queue.receive()
    with pytest.raises(SendFailed, match="is damaged"):
        await queue.send([Message(1)])
    await queue.close()
    assert path.read_bytes() == content


# ---- among processes ----------------------------------------------------------------------------

RECEIVE = """
import asyncio, json, sys, time
{before}
from async_task_manager.queues import open_queue

async def main():
    got = []
    async with open_queue(f"sqlite:///{{sys.argv[1]}}?visibility_timeout=60") as queue:
        while batch := await queue.receive(10):
            got += [[message.body, message.receive_count] for message in batch]
            assert not any(await queue.acknowledge(batch))
    print(json.dumps(got))

asyncio.run(main())
"""


async def received_by(processes: list[str], path: Path) -> list[list[list[int]]]:
    """What each of the programs received."""

    async def run(program: str) -> list[list[int]]:
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-c", program, str(path), stdout=subprocess.PIPE
        )
        stdout, _ = await process.communicate()
        assert process.returncode == 0
        return json.loads(stdout)  # type: ignore[no-any-return]

    return list(await asyncio.gather(*map(run, processes)))


async def test_eight_processes_claim_each_of_ten_thousand_once(tmp_path: Path) -> None:
    path = tmp_path / "queue.db"
    async with SqliteQueue(path) as queue:
        await queue.send([Message(n) for n in range(10_000)])
    got = await received_by([RECEIVE.format(before="")] * 8, path)
    assert Counter(tuple(message) for one in got for message in one) == Counter(
        (n, 1) for n in range(10_000)
    )
    assert sum(map(bool, got)) > 1


async def test_clocks_five_minutes_apart_make_no_copies(tmp_path: Path) -> None:
    """What a process believes the time to be has no part in whose lease is over."""
    path = tmp_path / "queue.db"
    async with SqliteQueue(path, visibility_timeout=60) as queue:
        await queue.send([Message(n) for n in range(100)])
        held = await queue.receive(50)
        skewed = [
            RECEIVE.format(before=f"now = time.time; time.time = lambda: now() + {skew}")
            for skew in (300, -300)
        ]
        got = await received_by(skewed, path)
        assert sorted(n for one in got for n, _ in one) == list(range(50, 100))
        assert await queue.acknowledge(held) == [None] * 50


async def test_what_another_process_sends_is_noticed(tmp_path: Path) -> None:
    path = tmp_path / "queue.db"
    async with SqliteQueue(path) as queue, SqliteQueue(path, poll_interval=0.01) as other:
        loop = asyncio.get_running_loop()
        receiving = asyncio.create_task(other.receive(1, 30))
        await asyncio.sleep(0.05)
        began = loop.time()
        await queue.send([Message(1)])
        assert [message.body for message in await receiving] == [1]
        assert loop.time() - began < 5


async def test_time_in_the_file_is_kept_across_openings(tmp_path: Path) -> None:
    path = tmp_path / "queue.db"
    async with SqliteQueue(path, visibility_timeout=0.5) as queue:
        await queue.send([Message(1), Message(2, {"delay_seconds": 0.5})])
        await queue.receive()
    async with SqliteQueue(path) as queue:
        assert await queue.depth() == Depth(0, 1, 1, 0)
        assert len(await queue.receive(1, 30)) + len(await queue.receive(1, 30)) == 2


# ---- cancelled ----------------------------------------------------------------------------------


async def test_cancelled_with_a_file_that_fails_or_is_closed(tmp_path: Path) -> None:
    queue = SqliteQueue(tmp_path / "missing" / "queue.db")
    receiving = asyncio.create_task(queue.receive())
    await asyncio.sleep(0)
    receiving.cancel()
    await asyncio.wait([receiving])
    await queue.close()
    path = tmp_path / "queue.db"
    async with SqliteQueue(path) as queue:
        await queue.send([Message(1)])
        receiving = asyncio.create_task(queue.receive())
        await asyncio.sleep(0)
        receiving.cancel()
    assert receiving.cancelled()
    async with SqliteQueue(path) as queue:
        depth = await queue.depth()  # leased by the one that went, or given back in time
        assert depth.in_flight + depth.ready == 1
