"""Lines of a file, and of a pipe as they come."""

from __future__ import annotations

import asyncio
import os
from pathlib import Path

import pytest

from async_task_manager.runner.source import LONGEST, Lines

real_time = pytest.mark.real_time


async def read(path: Path, **options: bool) -> list[tuple[int, bytes]]:
    with path.open("rb") as file:
        return [item async for item in Lines(file.fileno(), **options) if item is not None]


async def test_lines_and_their_numbers(tmp_path: Path) -> None:
    path = tmp_path / "in"
    path.write_bytes(b"a\n\nb\r\n" + b"c" * 600_000 + b"\nd")
    assert await read(path) == [(1, b"a"), (2, b""), (3, b"b\r"), (4, b"c" * 600_000), (5, b"d")]
    path.write_bytes(b"")
    assert await read(path) == []


async def test_a_line_without_end_is_not_held(tmp_path: Path) -> None:
    path = tmp_path / "in"
    path.write_bytes(b"a\n" + b"x" * (3 * LONGEST) + b"\nb\n")
    (_, a), (_, x), (number, b) = await read(path)
    assert (a, b, number) == (b"a", b"b", 3)
    assert LONGEST < len(x) < LONGEST + 600_000


async def test_records_of_csv_may_span_lines(tmp_path: Path) -> None:
    path = tmp_path / "in.csv"
    path.write_bytes(b'id,text\n1,"two\nlines, ""quoted"""\n2,one\n3,"never closed\n')
    assert await read(path, csv=True) == [
        (1, b"id,text"),
        (2, b'1,"two\nlines, ""quoted"""'),
        (4, b"2,one"),
        (5, b'3,"never closed'),
    ]


async def test_the_number_of_lines_is_extrapolated_and_exact_in_the_end(tmp_path: Path) -> None:
    path = tmp_path / "in"
    path.write_bytes(b"12345678\n" * 100 + b"\n" + b"12\n" * 10)
    with path.open("rb") as file:
        lines = Lines(file.fileno())
        assert lines.expected is None
        iterator = aiter(lines)
        assert await anext(iterator) == (1, b"12345678")
        assert lines.expected == 103
        assert len([item async for item in iterator]) == 110
        assert lines.expected == 110


@real_time
async def test_a_pipe_says_when_it_has_nothing() -> None:
    out, into = os.pipe()
    lines = Lines(out)
    iterator = aiter(lines)
    try:
        os.write(into, b"a\nb")
        assert await anext(iterator) == (1, b"a")
        assert lines.expected is None
        assert await anext(iterator) is None
        waiting = asyncio.ensure_future(anext(iterator))
        await asyncio.sleep(0.02)
        assert not waiting.done()
        os.write(into, b"c\n")
        assert await waiting == (2, b"bc")
        os.write(into, b"d")
        os.close(into)
        assert [item async for item in iterator if item] == [(3, b"d")]
        assert lines.expected == 3
    finally:
        os.close(out)


async def test_nothing_at_all() -> None:
    with open("/dev/null", "rb") as file:
        assert [item async for item in Lines(file.fileno())] == []
