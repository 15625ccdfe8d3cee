"""One user floods the service with forty tasks; another's single task comes next all the same.

`python flood.py` starts a service of its own; `python flood.py http://127.0.0.1:8000` uses one that
runs already. Where ATM_TOKEN is set, it opens either.
"""

import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx

APP = Path(__file__).with_name("app.py")


@contextmanager
def served() -> Iterator[str]:
    """`atm serve app:service` in a process of its own; gives its URL."""
    with tempfile.TemporaryDirectory() as folder:
        process = subprocess.Popen(
            [sys.executable, "-m", "async_task_manager.cli", "serve", "app:service", "--port", "0"],
            cwd=folder,  # its files go there
            env={**os.environ, "PYTHONPATH": str(APP.parent), "COLUMNS": "120"},
            stdout=subprocess.PIPE,
            text=True,
        )
        try:
            assert process.stdout is not None
            yield process.stdout.readline().partition(" on ")[2].split()[0]
        finally:
            process.terminate()
            process.wait(30)


def submit(client: httpx.Client, user_id: str, x: str) -> str:
    answer = client.post("/task", json={"user_id": user_id, "x": x})
    answer.raise_for_status()
    return str(answer.json()["task_id"])


def finished(client: httpx.Client, id: str) -> float:
    """When the task ended; waits for that."""
    while client.get(f"/result/{id}", params={"wait": 30}).json()["task_status"] != "SUCCESS":
        pass
    return float(client.get(f"/task/{id}").json()["finished_at"])


def show(url: str) -> None:
    token = os.environ.get("ATM_TOKEN", "").partition(",")[0]
    headers = {"authorization": f"Bearer {token}"} if token else {}
    with httpx.Client(base_url=url, headers=headers, timeout=60) as client:
        flood = [submit(client, "flooder", f"number {n}") for n in range(40)]
        time.sleep(0.3)  # some of them are done by now
        single = submit(client, "modest", "just one")
        details = client.get(f"/task/{single}").json()
        print(f"the flooder has {len(flood)} tasks; the single one is number {details['position']}")

        ends = [(finished(client, id), "flooder") for id in flood]
        ends.append((finished(client, single), "modest"))
        order = [user for _, user in sorted(ends)]
        place = order.index("modest") + 1
        print("ended, in this order:", " ".join(user[0] for user in order))
        print(f"the single task was number {place} of {len(order)} to end")
        for user in client.get("/users").json()["users"]:
            print(f"  {user['user_id']:8} lately {user['recent_use']:3g}, level {user['level']}")
        assert place < 15, "it should have gone before the rest of the flood"


def main() -> None:
    if len(sys.argv) > 1:
        show(sys.argv[1])
    else:
        with served() as url:
            show(url)


if __name__ == "__main__":
    main()
