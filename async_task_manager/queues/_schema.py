"""The tables of a SQLite queue."""

from __future__ import annotations

import sqlite3
import zlib

__all__ = ["APPLICATION_ID", "BEHIND", "DELAYED", "LEASED", "READY", "SCHEMA", "crc", "now_of"]

APPLICATION_ID = 0x61746D71  # "atmq"

READY, DELAYED, LEASED, BEHIND = range(4)
"""The states of a message: see `_operations`."""

SCHEMA = (
    """CREATE TABLE message (
        seq INTEGER PRIMARY KEY AUTOINCREMENT,
        id TEXT NOT NULL,
        body TEXT NOT NULL,
        attributes TEXT NOT NULL,
        crc INTEGER NOT NULL,
        rank REAL NOT NULL,
        turn REAL NOT NULL,
        user TEXT NOT NULL,
        group_id TEXT,
        state INTEGER NOT NULL,
        due REAL,
        receives INTEGER NOT NULL DEFAULT 0,
        token INTEGER NOT NULL DEFAULT 0,
        begun INTEGER NOT NULL DEFAULT 1,
        reason TEXT NOT NULL DEFAULT ''
    )""",
    "CREATE INDEX ready ON message (rank, turn, seq) WHERE state = 0",
    "CREATE INDEX due ON message (due) WHERE state IN (1, 2)",
    "CREATE INDEX grouped ON message (group_id, seq) WHERE group_id IS NOT NULL",
    """CREATE TABLE dead (
        number INTEGER PRIMARY KEY AUTOINCREMENT,
        id TEXT UNIQUE NOT NULL,
        body TEXT NOT NULL,
        attributes TEXT NOT NULL,
        rank REAL NOT NULL,
        user TEXT NOT NULL,
        group_id TEXT,
        receives INTEGER NOT NULL,
        reason TEXT NOT NULL,
        died_at REAL NOT NULL
    )""",
    "CREATE TABLE clock (rank REAL PRIMARY KEY, turn REAL NOT NULL) WITHOUT ROWID",
    """CREATE TABLE turn (
        rank REAL NOT NULL, user TEXT NOT NULL, next REAL NOT NULL, PRIMARY KEY (rank, user)
    ) WITHOUT ROWID""",
    "CREATE INDEX turn_next ON turn (rank, next)",
    "CREATE TABLE sent (deduplication TEXT PRIMARY KEY, id TEXT, until REAL) WITHOUT ROWID",
    "CREATE INDEX sent_until ON sent (until)",
)


def now_of(connection: sqlite3.Connection) -> float:
    """The store's time, epoch seconds: one clock for every process, whatever its own says."""
    row = connection.execute("SELECT (julianday('now') - 2440587.5) * 86400.0").fetchone()
    return row[0]  # type: ignore[no-any-return]


def crc(*texts: str) -> int:
    """Tells flipped bits in what the integrity check of SQLite can't judge: content."""
    return zlib.crc32("\0".join(texts).encode("utf-8", "surrogatepass"))
