"""`python -m benchmarks [--quick] [--only A,D] [--write]`."""

from __future__ import annotations

import argparse
import sys
import time

from benchmarks.http import http
from benchmarks.messages import messages
from benchmarks.others import keys, latency, limits, memory, moves, queues, virtual
from benchmarks.peers import peers
from benchmarks.report import Row, draw, print_rows, write_rows
from benchmarks.service import service
from benchmarks.strategies import strategies
from benchmarks.throughput import throughput

GROUPS = {
    "throughput": throughput,
    "strategies": strategies,
    "memory": memory,
    "limits": limits,
    "latency": latency,
    "queues": queues,
    "keys": keys,
    "virtual": virtual,
    "moves": moves,
    "messages": messages,
    "peers": peers,
    "service": service,
    "http": http,
}


def main() -> None:
    """Measures, prints, and with --write puts the table into the documentation."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="in about a minute, less steady")
    parser.add_argument("--only", help=f"some of {', '.join(GROUPS)}, with commas")
    parser.add_argument("--write", action="store_true", help="write them into the docs")
    arguments = parser.parse_args()
    chosen = arguments.only.split(",") if arguments.only else list(GROUPS)
    unknown = set(chosen) - GROUPS.keys()
    if unknown:
        parser.error(f"--only takes {', '.join(GROUPS)}, not {', '.join(sorted(unknown))}")
    rows: list[Row] = []
    for name in chosen:
        began = time.monotonic()
        print(f"{name} ...", end=" ", file=sys.stderr, flush=True)
        rows += GROUPS[name](arguments.quick)
        print(f"{time.monotonic() - began:.0f} s", file=sys.stderr)
    print_rows(rows)
    if arguments.write:
        write_rows(rows)
        draw(rows)


main()
