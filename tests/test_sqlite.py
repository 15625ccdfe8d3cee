"""The file of queues and results: group commit, errors that stay with whose they are, refusals."""

from __future__ import annotations

import asyncio
import random
import sqlite3
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager, closing
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from async_task_manager._sqlite import SqliteFile
from async_task_manager.errors import InvalidState, InvalidValue, StoreCorrupt, StoreError
from async_task_manager.testing import run_virtual

SCHEMA = ["CREATE TABLE line (text TEXT UNIQUE NOT NULL)"]


def opened(path: Path, **options: Any) -> SqliteFile:
    return SqliteFile(path, SCHEMA, **{"application_id": 77, **options})


@asynccontextmanager
async def using(path: Path, **options: Any) -> AsyncIterator[SqliteFile]:
    file = opened(path, **options)
    try:
        yield file
    finally:
        await file.close()


def insert(connection: sqlite3.Connection, texts: list[str]) -> list[str]:
    connection.executemany("INSERT INTO line VALUES (?)", [(text,) for text in texts])
    return [text.upper() for text in texts]


def lines(connection: sqlite3.Connection) -> list[str]:
    return [text for (text,) in connection.execute("SELECT text FROM line ORDER BY rowid")]


def found(path: Path) -> list[str]:
    """What another connection sees."""
    with closing(sqlite3.connect(path)) as connection:
        return lines(connection)


async def test_what_is_done_is_on_disk(tmp_path: Path) -> None:
    path = tmp_path / "file.db"
    async with using(path) as file:
        assert await file.write_together(insert, "a") == "A"
        assert found(path) == ["a"]
        assert await file.write(lambda c: c.execute("DELETE FROM line").rowcount) == 1
        assert found(path) == await file.read(lines) == []
        assert await file.read(lambda c: c.execute("PRAGMA synchronous").fetchone()) == (2,)
        assert await file.read(lambda c: c.execute("PRAGMA journal_mode").fetchone()) == ("wal",)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["file.db"]


async def test_all_that_comes_during_a_commit_shares_the_next(tmp_path: Path) -> None:
    async with using(tmp_path / "file.db") as file:
        traced: list[str] = []
        await file.read(lambda c: c.set_trace_callback(traced.append))
        writes = [file.write_together(insert, str(n)) for n in range(100)]
        counts = [file.write(lambda c: len(lines(c))) for _ in range(2)]
        await asyncio.sleep(0)  # the first commit has begun
        writes += [file.write_together(insert, str(n)) for n in range(100, 200)]
        assert await asyncio.gather(*writes) == [str(n) for n in range(200)]
        assert await asyncio.gather(*counts) == [100, 100]
        assert traced.count("COMMIT") == 2
        assert traced.count("BEGIN IMMEDIATE") == 2


async def test_an_operation_that_raises_undoes_itself_alone(tmp_path: Path) -> None:
    def fails(connection: sqlite3.Connection) -> None:
        insert(connection, ["half done"])
        raise ZeroDivisionError

    async with using(tmp_path / "file.db") as file:
        a = file.write_together(insert, "a")
        wrong = file.write(fails)
        b = file.write_together(insert, "b")
        again = file.write_together(insert, "a")
        c = file.write_together(insert, "c")
        bad = file.read(lambda c: c.execute("SELECT nonsense"))
        asked: list[asyncio.Future[Any]] = [a, wrong, b, again, c, bad]
        results = await asyncio.gather(*asked, return_exceptions=True)
        assert results[0::2] == ["A", "B", "C"]
        assert isinstance(results[1], ZeroDivisionError)
        assert isinstance(results[3], StoreError) and "UNIQUE" in str(results[3])
        assert isinstance(results[5], StoreError) and "nonsense" in str(results[5])
        assert isinstance(results[5].__cause__, sqlite3.OperationalError)
        assert await file.read(lines) == ["a", "b", "c"]


async def test_what_undoes_the_transaction_is_everyones_error(tmp_path: Path) -> None:
    def undo(connection: sqlite3.Connection) -> None:
        connection.execute("INSERT OR ROLLBACK INTO line VALUES ('a')")

    async with using(tmp_path / "file.db") as file:
        await file.write_together(insert, "a")
        writes: list[asyncio.Future[Any]] = [file.write_together(insert, "b"), file.write(undo)]
        for error in await asyncio.gather(*writes, return_exceptions=True):
            assert isinstance(error, StoreError) and "UNIQUE" in str(error)
        await file.write_together(insert, "c")
        with pytest.raises(StoreError, match="UNIQUE"):
            await file.write_together(insert, "a")
        assert await file.read(lines) == ["a", "c"]


async def test_a_commit_that_fails_is_everyones_error(tmp_path: Path) -> None:
    def orphan(connection: sqlite3.Connection) -> None:
        connection.execute(
            "CREATE TABLE page (line REFERENCES line (text) DEFERRABLE INITIALLY DEFERRED)"
        )
        connection.execute("INSERT INTO page VALUES ('nowhere')")

    async with using(tmp_path / "file.db") as file:
        await file.read(lambda c: c.execute("PRAGMA foreign_keys=ON"))
        writes: list[asyncio.Future[Any]] = [file.write_together(insert, "a"), file.write(orphan)]
        for error in await asyncio.gather(*writes, return_exceptions=True):
            assert isinstance(error, StoreError) and "FOREIGN KEY" in str(error)
        await file.write_together(insert, "b")
        assert await file.read(lines) == ["b"]


async def test_a_full_disk_fails_loudly_and_recovers(tmp_path: Path) -> None:
    async with using(tmp_path / "file.db") as file:
        await file.write_together(insert, "kept")
        (pages,) = await file.read(lambda c: c.execute("PRAGMA page_count").fetchone())
        await file.read(lambda c: c.execute(f"PRAGMA max_page_count={pages}").fetchone())
        with pytest.raises(StoreError, match="full"):
            await file.write_together(insert, "x" * 100_000)
        assert await file.read(lines) == ["kept"]
        await file.read(lambda c: c.execute("PRAGMA max_page_count=1000000").fetchone())
        assert await file.write_together(insert, "later") == "LATER"
        assert found(file.path) == ["kept", "later"]


async def test_a_locked_file_is_waited_for_so_long_and_no_longer(tmp_path: Path) -> None:
    async with using(tmp_path / "file.db", busy_timeout=0.05) as file:
        await file.write_together(insert, "a")
        with closing(sqlite3.connect(file.path, isolation_level=None)) as other:
            other.execute("BEGIN IMMEDIATE")
            with pytest.raises(StoreError, match=r"locked by another process for more than 0\.05"):
                await file.write_together(insert, "b")
            assert await file.read(lines) == ["a"]  # whoever reads waits for nobody
            other.execute("ROLLBACK")
        await file.write_together(insert, "c")
        assert found(file.path) == ["a", "c"]


@pytest.mark.real_time
async def test_a_new_file_that_another_is_making_is_waited_for(tmp_path: Path) -> None:
    path = tmp_path / "file.db"
    with closing(sqlite3.connect(path, isolation_level=None)) as other:
        other.execute("BEGIN EXCLUSIVE")
        with pytest.raises(StoreError, match="locked"):
            async with using(path, busy_timeout=0) as file:
                await file.read(lines)
        async with using(path, busy_timeout=30) as file:
            waiting = file.write_together(insert, "a")
            await asyncio.sleep(0.05)
            assert not waiting.done()
            other.execute("ROLLBACK")
            assert await waiting == "A"


# ---- what is refused ----------------------------------------------------------------------------


async def filled(path: Path, rows: int = 2000) -> None:
    async with using(path) as file:
        await asyncio.gather(*[file.write_together(insert, f"line {n}" * 5) for n in range(rows)])


@pytest.mark.parametrize("place", ["header", "page"])
async def test_flipped_bytes_are_refused_and_left_as_they_are(place: str, tmp_path: Path) -> None:
    path = tmp_path / "file.db"
    await filled(path)
    content = bytearray(path.read_bytes())
    start = 0 if place == "header" else 4096 * 5
    content[start : start + 8] = random.Random(place).randbytes(8)
    path.write_bytes(content)
    async with using(path) as file:
        for _ in range(2):  # asked again, it looks again
            with pytest.raises(StoreCorrupt, match=r"(?s)left as it is.*\.recover") as caught:
                await file.write_together(insert, "new")
            assert caught.value.path == path
    assert path.read_bytes() == content
    assert not any(log.stat().st_size for log in tmp_path.glob("*-wal"))


async def test_damage_that_shows_later_is_told_the_same_way(tmp_path: Path) -> None:
    path = tmp_path / "file.db"
    await filled(path)
    async with using(path) as file:
        await file.read(lambda c: None)
        content = bytearray(path.read_bytes())
        for page in range(2, len(content) // 4096):
            content[page * 4096 : page * 4096 + 64] = b"\xff" * 64
        path.write_bytes(content)
        with pytest.raises(StoreCorrupt):
            await file.read(lines)


@pytest.mark.parametrize(
    ("statements", "reason"),
    [
        (["CREATE TABLE theirs (x)"], "tables of something else"),
        (["PRAGMA application_id=5", "CREATE TABLE theirs (x)"], r"are \(5, 0\), not \(77, 1\)"),
        ([*SCHEMA, "PRAGMA application_id=77", "PRAGMA user_version=2"], r"are \(77, 2\)"),
    ],
)
async def test_a_file_of_another_kind_or_version_is_refused(
    statements: Sequence[str], reason: str, tmp_path: Path
) -> None:
    path = tmp_path / "file.db"
    with closing(sqlite3.connect(path, isolation_level=None)) as other:
        for statement in statements:
            other.execute(statement)
    before = path.read_bytes()
    async with using(path) as file:
        with pytest.raises(StoreError, match=reason):
            await file.write_together(insert, "a")
    assert path.read_bytes() == before


@pytest.mark.parametrize(
    ("made", "found", "damage"),
    [
        (b"(text TEXT UNIQUE", b"(next TEXT UNIQUE", "its tables are not those"),
        (b"CREATE TABLE line", b"CREATE TABL\xff line", "a name in it is no text"),
    ],
)
async def test_a_damaged_schema_is_refused(
    made: bytes, found: bytes, damage: str, tmp_path: Path
) -> None:
    path = tmp_path / "file.db"
    await filled(path, rows=1)
    path.write_bytes(path.read_bytes().replace(made, found))
    async with using(path) as file:
        with pytest.raises(StoreCorrupt, match=damage):
            await file.read(lines)


async def test_text_that_is_none_is_read_all_the_same(tmp_path: Path) -> None:
    path = tmp_path / "file.db"
    with closing(sqlite3.connect(path)) as other:
        other.execute("PRAGMA application_id=77")
        other.execute("PRAGMA user_version=1")
        other.execute(SCHEMA[0])
        other.execute("INSERT INTO line VALUES (CAST(x'61ff62' AS TEXT))")
        other.commit()
    async with using(path) as file:
        assert await file.read(lines) == ["a\ufffdb"]


async def test_a_folder_that_does_not_exist_is_told(tmp_path: Path) -> None:
    async with using(tmp_path / "missing" / "file.db") as file:
        with pytest.raises(StoreError, match=r"missing/file\.db: unable to open"):
            await file.read(lines)


async def test_a_schema_that_fails_leaves_nothing(tmp_path: Path) -> None:
    path = tmp_path / "file.db"
    broken = SqliteFile(path, ["CREATE TABLE a (x)", "CREATE TABLE a (x)"], application_id=77)
    with pytest.raises(StoreError, match="already exists"):
        await broken.read(lines)
    await broken.close()
    async with using(path) as file:
        assert await file.read(lines) == []


def test_bad_parameters(tmp_path: Path) -> None:
    with pytest.raises(InvalidValue, match="busy_timeout must be a finite number at least 0"):
        opened(tmp_path / "file.db", busy_timeout=-1)


# ---- life ---------------------------------------------------------------------------------------


async def test_cancelled_before_its_transaction_it_is_left_out(tmp_path: Path) -> None:
    async with using(tmp_path / "file.db") as file:
        early, kept = file.write_together(insert, "early"), file.write_together(insert, "kept")
        early.cancel()
        assert await kept == "KEPT"
        alone = file.write_together(insert, "alone")
        alone.cancel()
        await asyncio.sleep(0)
        under_way = file.write_together(insert, "under way")
        await asyncio.sleep(0)
        under_way.cancel()  # too late: nobody learns of it, and it is done all the same
        await file.write_together(insert, "last")
        assert await file.read(lines) == ["kept", "under way", "last"]


async def test_closing_ends_what_was_asked_for(tmp_path: Path) -> None:
    path = tmp_path / "file.db"
    file = opened(path)
    await file.close()  # nothing to do
    file = opened(path)
    first = [file.write_together(insert, str(n)) for n in range(5)]
    closing_it = asyncio.create_task(file.close())
    await asyncio.sleep(0)
    await asyncio.gather(closing_it, file.close())
    assert await asyncio.gather(*first) == list("01234")
    assert found(path) == list("01234")
    with pytest.raises(InvalidState, match="was closed"):
        file.write(lines)
    await file.close()


async def test_closing_waits_for_a_commit_and_what_came_meanwhile(tmp_path: Path) -> None:
    file = opened(tmp_path / "file.db")
    one = file.write_together(insert, "one")
    await asyncio.sleep(0)
    two = file.write_together(insert, "two")
    gone = file.write_together(insert, "gone")
    gone.cancel()
    await file.close()
    assert [await one, await two] == ["ONE", "TWO"]
    file = opened(tmp_path / "file.db")
    file.write_together(insert, "three").cancel()
    await file.close()
    assert found(file.path) == ["one", "two"]


def test_it_goes_along_to_the_next_loop_and_serves_one_at_a_time(tmp_path: Path) -> None:
    file = opened(tmp_path / "file.db")

    async def once(text: str) -> str:
        return await file.write_together(insert, text)

    assert [run_virtual(once(text)) for text in "ab"] == ["A", "B"]

    async def twice() -> None:
        await once("c")
        elsewhere = partial(asyncio.run, once("d"))
        with pytest.raises(InvalidState, match="another event loop"):
            await asyncio.to_thread(elsewhere)
        await file.close()

    run_virtual(twice())
    assert found(file.path) == ["a", "b", "c"]
