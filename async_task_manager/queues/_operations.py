"""What a SQLite queue does to its file: each function runs inside a transaction of the writer.

A message is in one of four states. The indexes hold it by state, so that a claim costs the same
among a thousand messages and a million, however many are leased, delayed or behind others:

    READY    can be claimed, in the order (rank, turn, seq)
    DELAYED  becomes ready when it is due
    LEASED   becomes ready when it is due, unless it was received too often: then it is dead
    BEHIND   has others of its group before it; becomes one of the above when they are gone

The group's first alone is READY, DELAYED or LEASED. Whoever holds a lease proves it by the token,
another one whenever the message changes hands.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Sequence
from math import inf
from typing import Any, NamedTuple

from async_task_manager.errors import LeaseLost
from async_task_manager.queues._drafts import Draft, Undecodable, decoded
from async_task_manager.queues._intake import Intake
from async_task_manager.queues._schema import BEHIND, DELAYED, LEASED, READY, crc, now_of
from async_task_manager.queues.base import DeadLetter, Depth, Message

__all__ = [
    "Claimed",
    "begin",
    "bury",
    "claim",
    "data_version",
    "dead_letters",
    "delete",
    "depth",
    "extend",
    "insert",
    "redrive",
    "release",
]

Receipt = tuple[int, int]
"""A message's number, and the fencing token of its lease."""

Results = list[Exception | None]


# ---- in -----------------------------------------------------------------------------------------


def insert(connection: sqlite3.Connection, batches: list[list[Draft]]) -> list[list[str]]:
    """Stores the drafts of all batches; gives the ids of each."""
    intake = Intake(connection, now_of(connection))
    ids = [[intake.send(draft) for draft in batch] for batch in batches]
    intake.save()
    return ids


# ---- out ----------------------------------------------------------------------------------------


class Claimed(NamedTuple):
    """What a claim gave."""

    messages: list[Message]
    seen: int
    """The version of the file, as `data_version` gives it."""
    due_in: float
    """Seconds until a message that waits is due; inf: none does."""


def claim(
    connection: sqlite3.Connection, *, most: int, lease: float, max_receives: int, ahead: bool
) -> Claimed:
    """Leases the first messages that are ready."""
    now = now_of(connection)
    promote(connection, now, max_receives)
    messages: list[Message] = []
    reached: dict[float, float] = {}
    while len(messages) < most:
        rows = connection.execute(
            "UPDATE message SET state = 2, due = ?, receives = receives + 1, token = token + 1, "
            "begun = CASE WHEN ? AND receives > 0 THEN 0 ELSE 1 END "
            "WHERE seq IN "
            "(SELECT seq FROM message WHERE state = 0 ORDER BY rank, turn, seq LIMIT ?) "
            "RETURNING rank, turn, seq, id, body, attributes, crc, receives, token",
            (now + lease, ahead, most - len(messages)),
        ).fetchall()
        if not rows:
            break
        for row in sorted(rows):
            reached[row[0]] = row[1]
            message = _message(connection, now, row[2:])
            if message is not None:
                messages.append(message)
    for rank, turn in reached.items():
        connection.execute(
            "INSERT INTO clock VALUES (?, ?) "
            "ON CONFLICT DO UPDATE SET turn = max(turn, excluded.turn)",
            (rank, turn),
        )
        connection.execute("DELETE FROM turn WHERE rank = ? AND next <= ?", (rank, turn))
    if not messages and connection.execute("SELECT 1 FROM message LIMIT 1").fetchone() is None:
        connection.execute("DELETE FROM clock")  # an empty queue remembers nobody
        connection.execute("DELETE FROM turn")
    (due,) = connection.execute("SELECT min(due) FROM message WHERE state IN (1, 2)").fetchone()
    return Claimed(messages, data_version(connection), inf if due is None else due - now)


def _message(connection: sqlite3.Connection, now: float, row: tuple[Any, ...]) -> Message | None:
    """The message; None if it is none any more, and was buried."""
    seq, id, body, attributes, check, receives, token = row
    try:
        if crc(id, body, attributes) != check:
            raise Undecodable("its bytes changed in the file")
        size = len(body) + len(attributes)
        receipt = seq, token
        return Message(decoded(body), decoded(attributes), id, receives, size, receipt)
    except Undecodable as error:
        _bury(connection, now, seq, str(error))
        return None


def data_version(connection: sqlite3.Connection) -> int:
    """Another number whenever another process has changed the file."""
    (version,) = connection.execute("PRAGMA data_version").fetchone()
    return version  # type: ignore[no-any-return]


def promote(connection: sqlite3.Connection, now: float, max_receives: int) -> None:
    """What is due becomes ready; what was received too often, dead."""
    spent = connection.execute(
        "SELECT seq, receives, reason FROM message "
        "WHERE state IN (1, 2) AND state = 2 AND due <= ? AND receives >= ? AND begun",
        (now, max_receives),
    ).fetchall()
    for seq, receives, reason in spent:
        told = f"received {receives} times and never acknowledged"
        _bury(connection, now, seq, f"{told}; the last failure: {reason}" if reason else told)
    connection.execute(
        "UPDATE message SET state = 0, due = NULL, receives = receives - (begun = 0), begun = 1 "
        "WHERE state IN (1, 2) AND due <= ?",
        (now,),
    )


# ---- what becomes of it -------------------------------------------------------------------------


def delete(connection: sqlite3.Connection, batches: list[list[Receipt]]) -> list[Results]:
    """Those whose lease is held are gone."""
    return [[_delete(connection, receipt) for receipt in batch] for batch in batches]


def _delete(connection: sqlite3.Connection, receipt: Receipt) -> Exception | None:
    gone = connection.execute(
        "DELETE FROM message WHERE seq = ? AND token = ? RETURNING group_id", receipt
    ).fetchone()
    if gone is None:
        return lost()
    if gone[0] is not None:
        _advance(connection, gone[0])
    return None


def _advance(connection: sqlite3.Connection, group: str) -> None:
    """The first of the group is gone: the next stands behind nobody now."""
    connection.execute(
        "UPDATE message SET state = CASE WHEN due IS NULL THEN 0 ELSE 1 END "
        "WHERE seq = (SELECT min(seq) FROM message WHERE group_id = ?)",
        (group,),
    )


def lost() -> LeaseLost:
    """The answer to a token that is not the latest."""
    return LeaseLost("the lease was lost: the message was released, received again, or is gone")


def begin(connection: sqlite3.Connection, batches: list[list[Receipt]]) -> list[Results]:
    """Work on those whose lease is held begins: their receive counts."""
    statement = "UPDATE message SET begun = 1 WHERE seq = ? AND token = ?"
    return [[_held(connection.execute(statement, receipt)) for receipt in b] for b in batches]


def extend(
    connection: sqlite3.Connection, batches: list[tuple[list[Receipt], float]]
) -> list[Results]:
    """Leases that are held end so many seconds from now."""
    now = now_of(connection)
    statement = "UPDATE message SET state = 2, due = ? WHERE seq = ? AND token = ?"
    return [
        [_held(connection.execute(statement, (now + seconds, *receipt))) for receipt in receipts]
        for receipts, seconds in batches
    ]


def _held(cursor: sqlite3.Cursor) -> Exception | None:
    return None if cursor.rowcount else lost()


class Release(NamedTuple):
    """How messages are given back."""

    items: list[tuple[Receipt, float, str]]
    """Each with its delay and the reason."""
    counted: bool
    max_receives: int


def release(connection: sqlite3.Connection, releases: list[Release]) -> list[Results]:
    """Those whose lease is held are ready, at once or later; what failed too often is dead."""
    now = now_of(connection)
    return [[_release(connection, now, item, given) for item in given.items] for given in releases]


def _release(
    connection: sqlite3.Connection,
    now: float,
    item: tuple[Receipt, float, str],
    given: Release,
) -> Exception | None:
    receipt, delay, reason = item
    due = now + delay if delay else None
    if not given.counted:
        return _held(
            connection.execute(
                "UPDATE message SET state = ?, due = ?, token = token + 1, begun = 1, "
                "receives = receives - 1 WHERE seq = ? AND token = ?",
                (DELAYED if due else READY, due, *receipt),
            )
        )
    row = connection.execute(
        "UPDATE message SET state = ?, due = ?, token = token + 1, begun = 1, reason = ? "
        "WHERE seq = ? AND token = ? RETURNING receives",
        (DELAYED if due else READY, due, reason, *receipt),
    ).fetchone()
    if row is None:
        return lost()
    if row[0] >= given.max_receives:
        _bury(connection, now, receipt[0], reason or f"failed {row[0]} times")
    return None


def bury(connection: sqlite3.Connection, batches: list[list[tuple[Receipt, str]]]) -> list[Results]:
    """Those whose lease is held are dead letters, each with its reason."""
    now = now_of(connection)
    return [
        [
            None if _bury(connection, now, seq, reason, token) else lost()
            for (seq, token), reason in batch
        ]
        for batch in batches
    ]


def _bury(
    connection: sqlite3.Connection, now: float, seq: int, reason: str, token: int | None = None
) -> bool:
    """Whether there was such a message, with this token if one is given."""
    row = connection.execute(
        "DELETE FROM message WHERE seq = ? AND token = ifnull(?, token) "
        "RETURNING id, body, attributes, rank, user, group_id, receives",
        (seq, token),
    ).fetchone()
    if row is None:
        return False
    connection.execute(
        "INSERT OR REPLACE INTO dead "
        "(id, body, attributes, rank, user, group_id, receives, reason, died_at) "
        "VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)",
        (*row, reason, now),
    )
    if row[5] is not None:
        _advance(connection, row[5])
    return True


# ---- dead letters, and counts -------------------------------------------------------------------


def dead_letters(
    connection: sqlite3.Connection, *, limit: int, max_receives: int
) -> list[DeadLetter]:
    """The oldest."""
    promote(connection, now_of(connection), max_receives)
    rows = connection.execute(
        "SELECT id, body, attributes, receives, reason, died_at FROM dead ORDER BY number LIMIT ?",
        (limit,),
    )
    return [
        DeadLetter(id, body, _attributes(text), receives, reason, died_at)
        for id, body, text, receives, reason, died_at in rows
    ]


def _attributes(text: str) -> dict[str, Any]:
    try:
        return decoded(text)  # type: ignore[no-any-return]
    except Undecodable:
        return {"undecodable": text}


def redrive(connection: sqlite3.Connection, *, ids: Sequence[str] | None) -> int:
    """Dead letters are messages again, at the end of their line; gives how many."""
    columns = "SELECT number, id, body, attributes, rank, user, group_id FROM dead "
    if ids is None:
        found = connection.execute(columns + "ORDER BY number").fetchall()
    else:
        one = columns + "WHERE id = ?"
        found = [row for id in ids for row in connection.execute(one, (id,)).fetchall()]
    intake = Intake(connection, now_of(connection))
    for _, id, body, attributes, rank, user, group in found:
        intake.put(id, Draft(body, {}, attributes, rank, user, 0.0, group, None))
    intake.save()
    connection.executemany("DELETE FROM dead WHERE number = ?", [row[:1] for row in found])
    return len(found)


def depth(connection: sqlite3.Connection, *, max_receives: int) -> Depth:
    """Counts by state."""
    now = now_of(connection)
    promote(connection, now, max_receives)
    counts = dict(
        connection.execute(
            "SELECT CASE WHEN state = 3 AND due > ? THEN 1 ELSE state END, count(*) "
            "FROM message GROUP BY 1",
            (now,),
        ).fetchall()
    )
    (dead,) = connection.execute("SELECT count(*) FROM dead").fetchone()
    ready = counts.get(READY, 0) + counts.get(BEHIND, 0)
    return Depth(ready, counts.get(DELAYED, 0), counts.get(LEASED, 0), dead)
