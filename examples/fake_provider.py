"""A provider with limits of its own: an HTTP/1.1 server on loopback that plays an LLM's API.

    python examples/fake_provider.py --name groq --limit "30/minute" --limit "6000 tokens/minute"

or inside a program::

    async with FakeProvider("groq", limits=["30/minute"], latency="0.02-0.08") as provider:
        ...                                # send anything to provider.url
        print(provider.stats.rejected)     # how many 429s its limits caused

Every method and path is a completion, except `GET /stats` (the counters) and `POST /control` (a
JSON object of `Behaviour` fields, which hold from the next request on). A request costs 1 of
"requests", and at least 1 of any other unit: of "tokens" its JSON field `max_tokens` or `tokens`,
else a quarter of its bytes; of another unit the JSON field of that name, else 1. What the limits
let pass is charged, also where it ends in an injected error; what they refuse costs nothing.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import random
import re
import signal
import sys
import time
from collections import Counter, deque
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from email.utils import formatdate
from http import HTTPStatus
from pathlib import Path
from typing import Any

MAX_HEAD = 64 * 1024  # bytes
MAX_BODY = 10 * 1024 * 1024  # bytes
MAX_PATHS = 1000  # told apart in the statistics
IDLE_TIMEOUT = 60.0  # seconds for a request to come in whole, the silence before it included
SECOND, MILLISECOND = 1_000_000_000, 1_000_000  # whole nanoseconds keep the windows exact

LIMIT = re.compile(r"(\d+)(?: +([a-z_]+))? */ *(?:(second|minute|hour|day)|(\d+\.?\d*)s)", re.ASCII)
HEADERS = ("all", "retry-after", "date", "none")
PERIODS = {"second": 1, "minute": 60, "hour": 3600, "day": 86400}
TOKEN = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+")  # RFC 9110, section 5.6.2
LENGTH = re.compile(r"[0-9]{1,18}")
CHUNK_SIZE = re.compile(rb"[0-9A-Fa-f]{1,16}")
REASONS = {status.value: status.phrase for status in HTTPStatus}


def checked(name: str, value: Any, low: float, high: float, kind: str = "an integer") -> Any:
    """`value` where it is of that kind and from `low` to `high`; else a ValueError that says so."""
    types = int if kind == "an integer" else (int, float)
    if isinstance(value, bool) or not isinstance(value, types) or not low <= value <= high:
        raise ValueError(f"{name} must be {kind} from {low} to {high}, not {value!r}")
    return value


def http_date(seconds: int) -> str:
    """So many seconds from now, rounded up to the next: HTTP has whole ones."""
    return formatdate(time.time() // 1 + seconds + 1, usegmt=True)


def rounded_up(duration: int, unit: int) -> int:
    return -(-duration // unit)


class SlidingWindow:
    """An exact limit: no interval of `period` ns, wherever it begins, holds more than `amount`."""

    def __init__(self, text: str) -> None:
        match = LIMIT.fullmatch(text.strip()) if isinstance(text, str) else None
        if match is None:
            raise ValueError(f'limit must be like "30/minute" or "900 tokens/10s", not {text!r}')
        amount, unit, name, length = match.groups()
        seconds = float(PERIODS[name] if name else length)
        checked(f"the period of limit {text!r}", seconds, 0.001, 1e8, "seconds")
        self.amount: int = checked(f"the amount of limit {text!r}", int(amount), 1, 10**9)
        self.period, self.unit = round(seconds * SECOND), unit or "requests"
        self.text = match.string
        self.used = 0
        self.log: deque[tuple[int, int]] = deque()  # (instant, cost) of what the window holds

    def wait(self, cost: int, now: int) -> int:
        """Nanoseconds until `cost`, at most `amount`, fits if nothing else comes; 0: now."""
        while self.log and now >= self.log[0][0] + self.period:
            self.used -= self.log.popleft()[1]
        excess = self.used + cost - self.amount
        for instant, charged in self.log if excess > 0 else ():
            excess -= charged
            if excess <= 0:
                return instant + self.period - now
        return 0

    def charge(self, cost: int, now: int) -> None:
        self.log.append((now, cost))
        self.used += cost

    def headers(self, now: int) -> str:
        """How much remains, and when all of it is back."""
        reset = max(0, self.log[-1][0] + self.period - now) if self.log else 0
        return (
            f"x-ratelimit-limit-{self.unit}: {self.amount}\r\n"
            f"x-ratelimit-remaining-{self.unit}: {max(0, self.amount - self.used)}\r\n"
            f"x-ratelimit-reset-{self.unit}: {rounded_up(reset, MILLISECOND) / 1000:.3f}s\r\n"
        )


@dataclass
class Behaviour:
    """What the provider does to its clients; a setting out of its range is a ValueError."""

    limits: Sequence[str] = ()
    max_concurrent: int | None = None  # requests in flight; None: any number
    latency: float | str = 0.0  # seconds, or "low-high" for a uniform draw
    error_rate: float = 0.0  # share of accepted requests that end in a 500
    reset_rate: float = 0.0  # share whose connection is closed without an answer
    fail_next: int = 0  # accepted requests still to be answered with `status`
    status: int = 500
    reset_next: int = 0  # accepted requests whose connection is still to be closed unanswered
    drop_rate: float = 0.0  # share whose connection is closed in the middle of the answer
    drop_next: int = 0  # accepted requests for which that is still to be done
    garble_next: int = 0  # accepted requests still to be answered with broken JSON
    headers: str = "all"  # or "retry-after", "date" (the same as a date), "none"
    retry_after: int | None = None  # seconds that an injected error asks for

    def __post_init__(self) -> None:
        if not isinstance(self.limits, list | tuple):
            raise ValueError(f"limits must be a list of texts, not {self.limits!r}")
        if self.max_concurrent is not None:
            checked("max_concurrent", self.max_concurrent, 1, 10**6)
        for name in ("error_rate", "reset_rate", "drop_rate"):
            checked(name, getattr(self, name), 0, 1, "a number")
        for name in ("fail_next", "reset_next", "drop_next", "garble_next"):
            checked(name, getattr(self, name), 0, 10**9)
        checked("status", self.status, 400, 599)
        if self.headers not in HEADERS:
            raise ValueError(f"headers must be one of {', '.join(HEADERS)}, not {self.headers!r}")
        if self.retry_after is not None:
            checked("retry_after", self.retry_after, 0, 3600)
        ends: list[Any] = [self.latency]
        if isinstance(self.latency, str):
            with contextlib.suppress(ValueError):  # what is no number fails the checks below
                ends = [float(end) for end in self.latency.split("-", 1)]
        self.fastest = checked("latency", ends[0], 0, 3600, "seconds")
        self.slowest = checked("latency", ends[-1], self.fastest, 3600, "seconds")


@dataclass
class Stats:
    """The provider's own count. A 429 from its limits is one violation: of the one open last."""

    received: int = 0  # completions read whole, whatever the answer
    accepted: int = 0
    in_flight: int = 0
    max_in_flight: int = 0
    tokens: int = 0  # of accepted requests
    resets: int = 0
    drops: int = 0
    garbled: int = 0
    violations: Counter[str] = field(default_factory=Counter)  # by limit
    peaks: Counter[str] = field(default_factory=Counter)  # most in any one window, by limit
    statuses: dict[str, Counter[str]] = field(default_factory=dict)  # by path, then status

    @property
    def rejected(self) -> int:
        return self.violations.total()

    def count(self, path: str, status: object) -> None:
        path = path if path in self.statuses or len(self.statuses) < MAX_PATHS else "(other)"
        self.statuses.setdefault(path, Counter())[str(status)] += 1

    def as_dict(self) -> dict[str, Any]:
        return {**vars(self), "rejected": self.rejected}


class Refused(Exception):
    """The request gets this error status instead of a completion."""

    def __init__(self, status: int, message: str, kind: str = "invalid_request", headers: str = ""):
        self.status, self.headers = status, headers
        self.payload = {"error": {"message": message, "type": kind, "code": status}}


@dataclass
class Spoilt:
    """A 200 that is not what it should be."""

    body: bytes
    dropped: bool  # the connection is closed in its middle


class Request:
    """A request that was read whole."""

    def __init__(self, method: str, path: str, body: bytes, keep_alive: bool) -> None:
        self.method, self.path, self.body, self.keep_alive = method, path[:200], body, keep_alive
        self.is_control = (method, path) in (("GET", "/stats"), ("POST", "/control"))
        self.json: dict[str, Any] = {}
        if body.lstrip()[:1] == b"{":
            with contextlib.suppress(ValueError, RecursionError):  # a completion may have any body
                self.json = json.loads(body)

    def cost(self, unit: str) -> int:
        for name in {"requests": (), "tokens": ("max_tokens", "tokens")}.get(unit, (unit,)):
            if self.json.get(name) is not None:
                return max(1, int(checked(name, self.json[name], 0, 10**9)))
        return max(1, len(self.body) // 4) if unit == "tokens" else 1


async def read_request(
    reader: asyncio.StreamReader, writer: asyncio.StreamWriter
) -> Request | None:
    """The next request; None where the client has closed; Refused where it is not sound HTTP/1."""
    try:
        method, target, version, headers = parse_head(await reader.readuntil(b"\r\n\r\n"))
        coding, length = headers.get("transfer-encoding"), headers.get("content-length", "0")
        if coding is not None and (coding.lower() != "chunked" or "content-length" in headers):
            # With both, two readers could disagree about where the next request begins.
            raise Refused(400, "transfer-encoding must be chunked, without a content-length")
        if not LENGTH.fullmatch(length):
            raise Refused(400, f"content-length must be one whole number, not {length[:100]!r}")
        if int(length) > MAX_BODY:
            raise Refused(413, f"body above {MAX_BODY} bytes")
        if headers.get("expect", "").lower() == "100-continue":
            writer.write(b"HTTP/1.1 100 Continue\r\n\r\n")
        body = await (read_chunks(reader) if coding else reader.readexactly(int(length)))
    except asyncio.LimitOverrunError:
        raise Refused(431, f"header above {MAX_HEAD} bytes") from None
    except asyncio.IncompleteReadError as error:
        if error.partial or error.expected:
            raise Refused(400, "the request ended early") from None
        return None
    options = headers.get("connection", "").lower().replace(",", " ").split()
    keep_alive = "close" not in options and (version == "HTTP/1.1" or "keep-alive" in options)
    return Request(method, target.partition("?")[0], body, keep_alive)


def parse_head(head: bytes) -> tuple[str, str, str, dict[str, str]]:
    """Method, target, version, and headers: names in lower case, repeated ones joined by commas."""
    first, *lines = head[:-4].decode("latin-1").split("\r\n")
    method, target, version = first.split(" ") if first.count(" ") == 2 else ("", "", "")
    stray = {head.count(b"\r"), head.count(b"\n")} != {head.count(b"\r\n")} or b"\0" in head
    readable = target and target.isascii() and target.isprintable()
    if stray or not readable or not TOKEN.fullmatch(method):
        raise Refused(400, f"not an HTTP request: {first[:100]!r}")
    if version not in ("HTTP/1.1", "HTTP/1.0"):
        raise Refused(505, f"version must be HTTP/1.1 or HTTP/1.0, not {version[:100]!r}")
    headers: dict[str, str] = {}
    for line in lines:
        name, colon, value = line.partition(":")
        if not colon or not TOKEN.fullmatch(name):
            raise Refused(400, f"not a header: {line[:100]!r}")
        name, value = name.lower(), value.strip(" \t")
        headers[name] = f"{headers[name]}, {value}" if name in headers else value
    return method, target, version, headers


async def read_chunks(reader: asyncio.StreamReader) -> bytes:
    """A chunked body, without trailers."""
    body, size = bytearray(), -1
    while size != 0:
        digits = (await reader.readuntil(b"\r\n")).partition(b";")[0].strip()
        if not CHUNK_SIZE.fullmatch(digits):
            raise Refused(400, f"not a chunk size: {digits[:100]!r}")
        size = int(digits, 16)
        if len(body) + size > MAX_BODY:
            raise Refused(413, f"body above {MAX_BODY} bytes")
        body += await reader.readexactly(size)
        if await reader.readexactly(2) != b"\r\n":
            raise Refused(400, "a chunk that does not end where its size says")
    return bytes(body)


class FakeProvider:
    """A server on 127.0.0.1 while it is entered; the fields of `Behaviour` are further keywords.

    Port 0 takes a free one. `seed` fixes the latencies and the random errors. `clock` gives
    monotonic nanoseconds: the windows read it once per request, as soon as that is read whole.
    """

    def __init__(
        self,
        name: str = "fake",
        *,
        port: int = 0,
        seed: int = 0,
        clock: Callable[[], int] = time.monotonic_ns,
        **behaviour: Any,
    ) -> None:
        self.name, self.port, self.stats = name, checked("port", port, 0, 65535), Stats()
        self.behaviour, self.windows = Behaviour(), list[SlidingWindow]()
        self._clock, self._random = clock, random.Random(seed)
        self._connections: set[asyncio.Task[None]] = set()
        self._server: asyncio.Server | None = None
        self.change(**behaviour)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def change(self, /, **settings: Any) -> None:
        """Behave so from the next request on; ValueError, and no change at all, if one is bad."""
        known = [each.name for each in fields(Behaviour)]
        if unknown := settings.keys() - set(known):
            raise ValueError(f"unknown setting {min(unknown)!r}: must be one of {', '.join(known)}")
        behaviour = replace(self.behaviour, **settings)
        windows = [SlidingWindow(text) for text in behaviour.limits]
        for window in windows:  # a limit that is changed live still counts what it has let pass
            elders = [elder for elder in self.windows if elder.unit == window.unit]
            if elders:
                eldest = max(elders, key=lambda elder: elder.period)
                window.log, window.used = eldest.log.copy(), eldest.used
            self.stats.violations[window.text] += 0  # shown from the start
            self.stats.peaks[window.text] += 0
        self.behaviour, self.windows = behaviour, windows

    async def __aenter__(self) -> FakeProvider:
        if self._server is not None:
            raise RuntimeError(f"provider {self.name!r} is already listening on {self.url}")
        self._server = await asyncio.start_server(
            self._serve, "127.0.0.1", self.port, limit=MAX_HEAD, backlog=1024
        )
        self.port = self._server.sockets[0].getsockname()[1]
        return self

    async def __aexit__(self, *_: object) -> None:
        server, self._server = self._server, None
        assert server is not None
        server.close()
        for task in self._connections:
            task.cancel()
        await asyncio.gather(*self._connections, return_exceptions=True)
        await server.wait_closed()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task: Any = asyncio.current_task()
        self._connections.add(task)
        try:
            while self._server is not None and await self._exchange(reader, writer):
                pass
        except (ConnectionError, TimeoutError):
            pass  # the client has left or is silent, or an answer is withheld on purpose
        except asyncio.CancelledError:
            writer.transport.abort()  # not raised further: streams of Python 3.11 would log it
        finally:
            self._connections.discard(task)
            writer.close()

    async def _exchange(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
        """Answer one request; True where the connection stays open for the next."""
        request, status = None, 200
        try:
            async with asyncio.timeout(IDLE_TIMEOUT):
                request = await read_request(reader, writer)
            if request is None:
                return False
            payload, headers = await self._respond(request)
        except Refused as error:
            status, payload, headers = error.status, error.payload, error.headers
        if request is None or not request.is_control:
            self.stats.count(request.path if request else "(malformed)", status)
        keep_alive = request is not None and request.keep_alive
        spoilt = payload if isinstance(payload, Spoilt) else None
        body = spoilt.body if spoilt else json.dumps(payload).encode()
        head = (
            f"HTTP/1.1 {status} {REASONS.get(status, 'Error')}\r\n{headers}"
            f"content-type: application/json\r\ncontent-length: {len(body)}\r\n"
            f"connection: {'keep-alive' if keep_alive else 'close'}\r\n\r\n"
        ).encode()
        sent = b"" if request and request.method == "HEAD" else body
        writer.write(head + (sent[: len(sent) // 2] if spoilt and spoilt.dropped else sent))
        await writer.drain()
        if spoilt and spoilt.dropped:
            raise ConnectionResetError
        if request is None:
            # Closing on unread bytes would reset the connection before the client has the answer.
            writer.write_eof()
            async with asyncio.timeout(1.0):
                while await reader.read(MAX_HEAD):
                    pass
        return keep_alive

    async def _respond(self, request: Request) -> tuple[dict[str, Any] | Spoilt, str]:
        """The payload of a 200 and its headers; else Refused."""
        try:
            if not request.is_control:
                return await self._complete(request)
            if request.method == "GET":
                return self.stats.as_dict(), ""
            if not request.json:
                raise ValueError("the body must be a JSON object of settings")
            self.change(**request.json)
            return asdict(self.behaviour), ""
        except ValueError as error:
            raise Refused(400, str(error)) from None

    async def _complete(self, request: Request) -> tuple[dict[str, Any] | Spoilt, str]:
        now, stats = self._clock(), self.stats
        stats.received += 1
        tokens = request.cost("tokens")
        headers = self._admit(request, now)
        stats.accepted += 1
        stats.tokens += tokens
        stats.in_flight += 1
        stats.max_in_flight = max(stats.max_in_flight, stats.in_flight)
        answer = {
            "id": f"{self.name}-{stats.accepted}",
            "provider": self.name,
            "echo": str(request.json.get("prompt", request.path))[:200],
            "usage": {"total_tokens": tokens},
        }
        status = self._draw_status()
        delay = self._random.uniform(self.behaviour.fastest, self.behaviour.slowest)
        try:
            if delay > 0:
                await asyncio.sleep(delay)
        finally:
            stats.in_flight -= 1  # before the answer: who has read it may use the slot at once
        if status == 0:
            stats.resets += 1
            stats.count(request.path, "reset")
            raise ConnectionResetError
        if status != 200:
            raise Refused(status, "injected failure", "server_error", headers + self._ask_to_wait())
        return self._spoil(answer), headers

    def _admit(self, request: Request, now: int) -> str:
        """Charge every limit and give headers that say what is left; or charge none: Refused."""
        costs = [(window, request.cost(window.unit)) for window in self.windows]
        for window, cost in costs:
            if cost > window.amount:  # no wait could help
                raise Refused(413, f"{cost} {window.unit} never fit {window.text}", window.unit)
        waits = [(window.wait(cost, now), window.text, window.unit) for window, cost in costs]
        most = self.behaviour.max_concurrent
        if most is not None and self.stats.in_flight >= most:
            # After the longest latency a slot has certainly become free.
            longest = max(MILLISECOND, round(self.behaviour.slowest * SECOND))
            waits.append((longest, "max_concurrent", "concurrency"))
        wait, reason, unit = max(waits, default=(0, "", ""))
        if wait == 0:
            for window, cost in costs:
                window.charge(cost, now)
                self.stats.peaks[window.text] = max(self.stats.peaks[window.text], window.used)
        # Of several windows of one unit the headers show the one with the least left.
        by_slack = sorted(self.windows, key=lambda window: window.used - window.amount)
        tightest = {window.unit: window for window in by_slack}
        headers = "".join(window.headers(now) for window in tightest.values())
        style = self.behaviour.headers
        if style != "all":
            headers = ""
        if wait > 0:
            self.stats.violations[reason] += 1
            if style == "date":
                headers = f"retry-after: {http_date(rounded_up(wait, SECOND))}\r\n"
            elif style != "none":
                headers += f"retry-after: {rounded_up(wait, SECOND)}\r\n"
                headers += f"retry-after-ms: {rounded_up(wait, MILLISECOND)}\r\n"
            raise Refused(429, f"over {reason}: retry in {wait / SECOND:.3f} s", unit, headers)
        return headers

    def _ask_to_wait(self) -> str:
        """The header of an injected error, if it is to have one."""
        seconds = self.behaviour.retry_after
        if seconds is None:
            return ""
        value = http_date(seconds) if self.behaviour.headers == "date" else seconds
        return f"retry-after: {value}\r\n"

    def _spoil(self, answer: dict[str, Any]) -> dict[str, Any] | Spoilt:
        """The answer, or what becomes of it on a bad day."""
        behaviour, body = self.behaviour, json.dumps(answer).encode()
        if behaviour.garble_next:
            behaviour.garble_next -= 1
            self.stats.garbled += 1
            return Spoilt(body[: len(body) // 2], dropped=False)
        if behaviour.drop_next:
            behaviour.drop_next -= 1
        elif not behaviour.drop_rate or self._random.random() >= behaviour.drop_rate:
            return answer
        self.stats.drops += 1
        return Spoilt(body, dropped=True)

    def _draw_status(self) -> int:
        """200, the status of an injected error, or 0: the connection is closed unanswered."""
        behaviour = self.behaviour
        if behaviour.reset_next:
            behaviour.reset_next -= 1
            return 0
        if behaviour.fail_next:
            behaviour.fail_next -= 1
            return behaviour.status
        if self._random.random() < behaviour.reset_rate:
            return 0
        return 500 if self._random.random() < behaviour.error_rate else 200


async def serve(provider: FakeProvider, stats_file: Path | None) -> None:
    """Serve until SIGINT or SIGTERM, then print a summary."""
    stop, loop = asyncio.Event(), asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: loop.call_soon_threadsafe(stop.set))
    async with provider:
        print(f"listening on {provider.url}", flush=True)
        await stop.wait()
    stats = provider.stats
    if stats_file is not None:
        stats_file.write_text(json.dumps(stats.as_dict(), indent=2) + "\n")
    print(
        f"{provider.name}: {stats.received} received, {stats.accepted} accepted, "
        f"{stats.tokens} tokens, at most {stats.max_in_flight} in flight, "
        f"{stats.resets} resets, {stats.drops} drops, 429s: {stats.rejected}"
    )
    for window in provider.windows:
        peak, violations = stats.peaks[window.text], stats.violations[window.text]
        print(f"  {window.text}: at most {peak} in a window, {violations} violations")


def main() -> None:
    parser = argparse.ArgumentParser(description="An HTTP provider that enforces its own limits.")
    parser.add_argument("--name", default="fake")
    parser.add_argument("--port", type=int, default=0, help="0 (default): a free one")
    parser.add_argument("--limit", action="append", default=[], help='"30/minute"; may be repeated')
    parser.add_argument(
        "--max-concurrent", type=int, help="requests in flight; default: any number"
    )
    parser.add_argument("--latency", default="0", help='seconds, or "low-high"')
    parser.add_argument("--error-rate", type=float, default=0.0, help="share of 500s, 0 to 1")
    parser.add_argument("--reset-rate", type=float, default=0.0, help="share of closed connections")
    parser.add_argument("--drop-rate", type=float, default=0.0, help="share cut off in the middle")
    parser.add_argument("--headers", default="all", help=f"of limits: {', '.join(HEADERS)}")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--stats", type=Path, metavar="FILE", help="write the counters at exit (JSON)"
    )
    options = vars(parser.parse_args())
    stats_file, limits = options.pop("stats"), options.pop("limit")
    if stats_file is not None and not stats_file.parent.is_dir():
        parser.error(f"--stats: there is no folder {str(stats_file.parent)!r}")
    try:
        provider = FakeProvider(limits=limits, **options)
        asyncio.run(serve(provider, stats_file))
    except (ValueError, OSError) as error:
        sys.exit(f"fake_provider: {error}")


if __name__ == "__main__":
    main()
