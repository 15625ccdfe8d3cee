"""One task per idempotency key, however often and however close together it is submitted."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

from async_task_manager.errors import TaskManagerError
from async_task_manager.service.entry import clean
from async_task_manager.service.store import Store

__all__ = ["IdempotencyKeys", "KeyReused"]

Found = tuple[int, bytes | None]
"""The number of the task that was submitted with a key, and the fingerprint of what was sent."""


class KeyReused(TaskManagerError):
    """The idempotency key came with something else before."""

    def __init__(self, key: str) -> None:
        super().__init__(f"the idempotency key {clean(key)!r} was used for another task")


class IdempotencyKeys:
    """The keys of every user: those in the store, and those whose tasks are just being stored."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._submitting: dict[tuple[str, str], asyncio.Future[Found | None]] = {}

    async def once(
        self,
        user_id: str,
        key: str,
        fingerprint: bytes | None,
        submit: Callable[[], Awaitable[int]],
    ) -> int:
        """The number of the task that the user submitted with the key; what `submit` gives, where
        there is none.

        Raises:
            KeyReused: the key came with something else.
        """
        mark = user_id, key
        found = await self._found(mark)
        if found is None:
            future = asyncio.get_running_loop().create_future()
            self._submitting[mark] = future
            try:
                found = await submit(), fingerprint
            finally:
                del self._submitting[mark]
                if not future.done():
                    future.set_result(found)
        assert found is not None
        if found[1] != fingerprint:
            raise KeyReused(key)
        return found[0]

    async def _found(self, mark: tuple[str, str]) -> Found | None:
        while mark in self._submitting:
            found = await asyncio.shield(self._submitting[mark])
            if found is not None:
                return found
        return self._store.by_key(*mark)
