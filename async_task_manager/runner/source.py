"""The lines of the input: a file, or whatever comes through standard input."""

from __future__ import annotations

import asyncio
import os
import select
import stat
from collections.abc import AsyncIterator
from typing import Final

from async_task_manager._watchers import resolve

__all__ = ["LONGEST", "Lines"]

LONGEST: Final = 16 * 1024 * 1024
"""Bytes of a line: what is longer is no request, and would have to be held in memory."""

_CHUNK: Final = 262_144


class Lines:
    """The lines of a file descriptor, with their numbers; and how many there are or will have been.

    Args:
        fd: Open for reading; it may be a pipe or a terminal, from which lines come as they come.
        csv: The lines are records: one ends with the line in which its quotes are closed.
    """

    def __init__(self, fd: int, *, csv: bool = False) -> None:
        self._fd = fd
        self._csv = csv
        status = os.fstat(fd)
        self._is_file = stat.S_ISREG(status.st_mode)
        self._size = status.st_size
        self._bytes = self._count = 0
        self._over = False

    @property
    def expected(self) -> int | None:
        """Extrapolated from what was read; exact once all was. None: there is no telling."""
        if self._over:
            return self._count
        if not self._bytes or not self._is_file:
            return None
        return max(self._count, round(self._count * self._size / self._bytes))

    async def __aiter__(self) -> AsyncIterator[tuple[int, bytes] | None]:
        """The number of each line, and the line; None whenever there is nothing right now.

        Of a line that is longer than `LONGEST` a longer beginning is given.
        """
        number, first, record = 0, 1, b""
        async for line in self._lines():
            if line is None:
                yield None
                continue
            number += 1
            record = record + b"\n" + line if record else line
            if self._csv and record.count(b'"') % 2 and len(record) <= LONGEST:
                continue
            self._bytes += len(record) + 1
            self._count += bool(record.strip())
            yield first, record
            first, record = number + 1, b""
        if record:
            self._count += 1
            yield first, record
        self._over = True

    async def _lines(self) -> AsyncIterator[bytes | None]:
        parts: list[bytes] = []
        length = 0
        async for chunk in self._chunks():
            if chunk is None:
                yield None
                continue
            *whole, rest = chunk.split(b"\n")
            for line in whole:
                yield b"".join((*parts, line))
                parts.clear()
                length = 0
            if length <= LONGEST:  # what comes after it is not kept
                parts.append(rest)
                length += len(rest)
        if length:
            yield b"".join(parts)

    async def _chunks(self) -> AsyncIterator[bytes | None]:
        while True:
            if not self._is_file and not select.select([self._fd], [], [], 0)[0]:
                yield None
                await self._readable()
            chunk = os.read(self._fd, _CHUNK)
            if not chunk:
                return
            yield chunk

    async def _readable(self) -> None:
        loop = asyncio.get_running_loop()
        ready = loop.create_future()
        loop.add_reader(self._fd, resolve, ready)
        try:
            await ready
        finally:
            loop.remove_reader(self._fd)
