"""How messages come into a SQLite queue: deduplicated, in their group, with a turn."""

from __future__ import annotations

import sqlite3
import uuid
from typing import Any

from async_task_manager.queues._drafts import DEDUPLICATION_SECONDS, Draft
from async_task_manager.queues._schema import BEHIND, DELAYED, READY, crc

__all__ = ["Intake"]


class Intake:
    """Takes messages in during one operation; they are in with `save`.

    The turn is that of start-time fair queuing (Goyal, Vin, Cheng 1996), fixed when a message is
    sent: the user's last turn plus one, but not before the turn that was last claimed at this
    rank.
    """

    def __init__(self, connection: sqlite3.Connection, now: float) -> None:
        self._connection = connection
        self._now = now
        self._rows: list[tuple[Any, ...]] = []
        self._groups: set[str] = set()
        """Those that have members, of those that were looked up."""
        self._clocks: dict[float, float] = {}
        self._turns: dict[tuple[float, str], float] = {}

    def send(self, draft: Draft) -> str:
        """Takes it in, unless it was sent lately; gives its id."""
        id = uuid.uuid4().hex
        if draft.deduplication is not None:
            self._connection.execute("DELETE FROM sent WHERE until <= ?", (self._now,))
            known = self._row("SELECT id FROM sent WHERE deduplication = ?", draft.deduplication)
            if known is not None:
                return known[0]  # type: ignore[no-any-return]
            self._connection.execute(
                "INSERT INTO sent VALUES (?, ?, ?)",
                (draft.deduplication, id, self._now + DEDUPLICATION_SECONDS),
            )
        self.put(id, draft)
        return id

    def put(self, id: str, draft: Draft) -> None:
        """Takes it in with this id."""
        state, due = (DELAYED, self._now + draft.delay) if draft.delay else (READY, None)
        group = draft.group
        if group is not None:
            if group in self._groups or self._row(
                "SELECT 1 FROM message WHERE group_id = ? LIMIT 1", group
            ):
                state = BEHIND
            self._groups.add(group)
        body, attributes = draft.body, draft.attributes_text
        check = crc(id, body, attributes)
        turn = self._turn(draft.rank, draft.user)
        self._rows.append(
            (id, body, attributes, check, draft.rank, turn, draft.user, group, state, due)
        )

    def save(self) -> None:
        """Writes it all down."""
        self._connection.executemany(
            "INSERT INTO message "
            "(id, body, attributes, crc, rank, turn, user, group_id, state, due) "
            "VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
            self._rows,
        )
        self._connection.executemany(
            "INSERT INTO turn VALUES (?, ?, ?) ON CONFLICT DO UPDATE SET next = excluded.next",
            [(rank, user, turn) for (rank, user), turn in self._turns.items()],
        )

    def _turn(self, rank: float, user: str) -> float:
        turn = self._turns.get((rank, user))
        if turn is None:
            if rank not in self._clocks:
                reached = self._row("SELECT turn FROM clock WHERE rank = ?", rank)
                self._clocks[rank] = reached[0] if reached else 0.0
            own = self._row("SELECT next FROM turn WHERE rank = ? AND user = ?", rank, user)
            turn = max(self._clocks[rank], own[0] if own else 0.0)
        self._turns[rank, user] = turn + 1
        return turn

    def _row(self, query: str, *parameters: Any) -> tuple[Any, ...] | None:
        return self._connection.execute(query, parameters).fetchone()  # type: ignore[no-any-return]
