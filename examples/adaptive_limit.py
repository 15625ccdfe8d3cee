"""A limit that finds itself: a server's capacity halves and returns, and three algorithms follow.

python examples/adaptive_limit.py [--svg picture.svg]; an hour of server time takes seconds.
"""

import argparse
import asyncio
import random
from collections import deque
from html import escape
from math import ceil
from pathlib import Path

from async_task_manager import TaskManager
from async_task_manager.strategies import AdaptiveStrategy
from async_task_manager.testing import run_virtual


class Server:
    """Works on ``capacity`` requests at once; others queue, and what is too much is refused."""

    def __init__(self, capacity: int, seconds: float, patience: float, seed: int = 1) -> None:
        self.capacity = capacity
        self.seconds = seconds
        """That a request takes on average, from 20 % less to 20 % more."""
        self.patience = patience
        """How many may queue, as a multiple of the capacity."""
        self.dice = random.Random(seed)
        self.busy = 0
        self.queue: deque[asyncio.Future[None]] = deque()
        self.served = self.refused = 0

    async def request(self) -> None:
        """Raises ConnectionError if the queue is full."""
        if len(self.queue) >= self.patience * self.capacity:
            self.refused += 1
            raise ConnectionError("503 Service Unavailable")
        turn = asyncio.get_running_loop().create_future()
        self.queue.append(turn)
        self.admit()
        await turn
        try:
            await asyncio.sleep(self.seconds * self.dice.uniform(0.8, 1.2))
            self.served += 1
        finally:
            self.busy -= 1
            self.admit()

    def admit(self) -> None:
        while self.queue and self.busy < self.capacity:
            self.busy += 1
            self.queue.popleft().set_result(None)


Point = tuple[float, int, int, float]
"""Instant, capacity, limit, and mean seconds of the requests since the last point."""


async def follow(
    limit: AdaptiveStrategy,
    server: Server,
    phases: list[tuple[int, float]],
    span: float,
    every: float = 1.0,
) -> list[Point]:
    """Keeps the server as busy as the limit allows; each phase is a capacity and the seconds that a
    request takes, for a span of seconds.
    """
    points: list[Point] = []
    took: list[float] = []

    async def one() -> None:
        began = asyncio.get_running_loop().time()
        try:
            await server.request()
            took.append(asyncio.get_running_loop().time() - began)
        except ConnectionError:
            await asyncio.sleep(server.seconds / 10)  # refusals travel, too
            raise

    async def feed() -> None:
        while True:
            task = await manager.put(one)
            task.add_done_callback(lambda done: done.state == "failed" and done.exception())

    manager = TaskManager(limit, max_queued=1)
    async with manager:
        feeder = asyncio.create_task(feed())
        for capacity, seconds in phases:
            server.capacity, server.seconds = capacity, seconds
            server.admit()
            until = asyncio.get_running_loop().time() + span
            while (now := asyncio.get_running_loop().time()) < until:
                mean = sum(took) / len(took) if took else 0.0
                points.append((now, capacity, limit.limit(), mean))
                took.clear()
                await asyncio.sleep(every)
        feeder.cancel()
    return points


# ---- the picture --------------------------------------------------------------------------------

COLOURS = {"gradient": "#2a6f97", "vegas": "#d1495b", "aimd": "#e09f3e"}
LEFT, WIDTH, TOP, TALL, LOW, GAP = 52, 700, 40, 220, 120, 46


def path(points: list[tuple[float, float]], span: float, most: float, top: int, height: int) -> str:
    placed = [
        (LEFT + WIDTH * x / span, top + height - height * min(y, most) / most) for x, y in points
    ]
    return "M" + " L".join(f"{x:.1f},{y:.1f}" for x, y in placed)


def axes(most: float, step: float, top: int, height: int, title: str) -> list[str]:
    parts = [f'<text x="{LEFT - 40}" y="{top - 12}" class="title">{escape(title)}</text>']
    for i in range(ceil(most / step) + 1):
        y = top + height - height * i * step / most
        if i * step <= most:
            parts.append(f'<line x1="{LEFT}" x2="{LEFT + WIDTH}" y1="{y:.1f}" y2="{y:.1f}"/>')
            parts.append(f'<text x="{LEFT - 8}" y="{y + 4:.1f}" class="left">{i * step:g}</text>')
    return parts


def picture(runs: dict[str, list[Point]], seconds: float) -> str:
    """As SVG: the limits against the capacity, and below how long requests took."""
    first = next(iter(runs.values()))
    span = first[-1][0]
    most = max(max(point[2] for point in points) for points in runs.values()) * 1.05
    bottom = TOP + TALL + GAP
    steps = [p for t, c, *_ in first for p in ((t, float(c)), (t + span / len(first), float(c)))]
    area = path([(0, 0), *[(min(x, span), y) for x, y in steps], (span, 0)], span, most, TOP, TALL)
    parts = [f'<path d="{area} Z" class="area"/>']
    parts += axes(most, 20, TOP, TALL, "at once")
    parts += axes(3 * seconds, seconds, bottom, LOW, "seconds for a request")
    for i, (name, points) in enumerate(runs.items()):
        for top, height, high, column in ((TOP, TALL, most, 2), (bottom, LOW, 3 * seconds, 3)):
            line = path([(p[0], p[column]) for p in points[1:]], span, high, top, height)
            parts.append(f'<path d="{line}" stroke="{COLOURS[name]}" class="line"/>')
        x = LEFT + 170 + 110 * i
        parts.append(f'<path d="M{x},20 h22" stroke="{COLOURS[name]}" class="line"/>')
        parts.append(f'<text x="{x + 28}" y="24">{name}</text>')
    x = LEFT + 170 + 110 * len(runs)
    parts.append(f'<rect x="{x}" y="13" width="22" height="13" class="area"/>')
    parts.append(f'<text x="{x + 28}" y="24">what the server can do</text>')
    foot = bottom + LOW
    for minute in range(0, int(span / 60) + 1, 5):
        at = LEFT + WIDTH * minute * 60 / span
        parts.append(f'<text x="{at:.1f}" y="{foot + 18}" class="middle">{minute}</text>')
    parts.append(f'<text x="{LEFT + WIDTH}" y="{foot + 36}" class="left">minutes</text>')
    style = (
        "text { font: 13px system-ui, sans-serif; fill: #333 } .title { font-weight: 600 } "
        ".left { text-anchor: end } .middle { text-anchor: middle } line { stroke: #ddd } "
        ".area { fill: #e8edf0 } .line { fill: none; stroke-width: 1.8; stroke-linejoin: round }"
    )
    size = f'width="{LEFT + WIDTH + 24}" height="{foot + 48}"'
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" {size}><style>{style}</style>'
        f'<rect width="100%" height="100%" fill="white"/>{"".join(parts)}</svg>\n'
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--svg", type=Path, help="write a picture to this file")
    options = parser.parse_args()
    runs = {}
    for name in COLOURS:
        server = Server(40, 1.0, patience=1)
        limit = AdaptiveStrategy(algorithm=name)
        runs[name] = run_virtual(follow(limit, server, [(40, 1), (20, 1), (40, 1)], 480, every=5))
        at = [point[2] for point in runs[name][95::96]]
        print(f"{name:9} limit {at} at capacity [40, 20, 40]; served {server.served}, ", end="")
        print(f"refused {server.refused}")
    if options.svg:
        options.svg.write_text(picture(runs, 1.0))


if __name__ == "__main__":
    main()
