"""A thousand rows that come one by one reach SQLite in transactions of up to a hundred.

A row that the table refuses fails alone: the transaction is undone, and its rows are tried again
one by one.

    python examples/bulk_insert.py
"""

from __future__ import annotations

import asyncio
import sqlite3

from async_task_manager import Chain, TaskManager
from async_task_manager.strategies import BulkStrategy, ConcurrentLimitStrategy, Item, RetryStrategy

database = sqlite3.connect(":memory:", isolation_level=None)
database.execute("CREATE TABLE readings (sensor TEXT NOT NULL, value REAL CHECK (value >= 0))")
transactions = 0


async def insert(rows: list[tuple[str, float]]) -> list[int]:
    global transactions
    transactions += 1
    database.execute("BEGIN")
    try:
        for row in rows:
            database.execute("INSERT INTO readings VALUES (?, ?)", row)
    except sqlite3.Error:
        database.execute("ROLLBACK")
        raise
    database.execute("COMMIT")
    return [1] * len(rows)


async def main() -> None:
    chain = Chain(
        RetryStrategy(2, retry_on=sqlite3.Error),
        BulkStrategy(insert, max_size=100, max_wait=0.5),
        ConcurrentLimitStrategy(1),  # one writer
    )
    async with TaskManager(chain) as manager:
        tasks = []
        for i in range(1000):
            value = -1.0 if i == 500 else i / 10
            tasks.append(manager.add_task(Item((f"sensor {i % 7}", value))))
            await asyncio.sleep(0.001)
    failed = [task for task in tasks if task.state == "failed"]
    (count,) = database.execute("SELECT count(*) FROM readings").fetchone()
    print(f"{count} rows in {transactions} transactions; refused: {failed[0].exception()}")
    assert count == 999
    assert len(failed) == 1
    assert transactions <= 115
    database.close()


if __name__ == "__main__":
    asyncio.run(main())
