"""One suite for every backend: what `MessageQueue` promises."""

from __future__ import annotations

import asyncio
import json
import random
from collections import Counter
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from async_task_manager.errors import (
    InvalidState,
    InvalidType,
    InvalidValue,
    LeaseLost,
)
from async_task_manager.queues import DeadLetter, Depth, Message, MessageQueue, open_queue
from async_task_manager.queues.memory import MemoryQueue
from async_task_manager.queues.sqlite import SqliteQueue
from async_task_manager.queues.sqs import SqsQueue

pytestmark = pytest.mark.real_time  # leases run on the store's time


@dataclass
class Backend:
    """A backend under test, and how it differs."""

    queue: MessageQueue
    again: MessageQueue
    """Another door to the same queue, or the same one."""
    lease: float = 0.3
    """Seconds, the queue's visibility timeout."""
    fenced: bool = True
    """It knows who lost a lease."""


LOCAL = pytest.mark.parametrize("backend", ["memory", "sqlite"], indirect=True)
"""What these alone promise: order and turns over the whole queue, fencing, uncounted returns."""

DELAYING = pytest.mark.parametrize("backend", ["memory", "sqlite", "sqs"], indirect=True)


@pytest.fixture(params=["memory", "sqlite", "sqs", "fifo"])
async def backend(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Backend]:
    options: dict[str, Any] = {"visibility_timeout": 0.3, "max_receives": 2}
    if request.param == "memory":
        queue: MessageQueue = MemoryQueue(**options)
        backend = Backend(queue, queue)
    elif request.param == "sqlite":
        path = tmp_path / "queue.db"
        queue = SqliteQueue(path, **options)
        backend = Backend(queue, SqliteQueue(path, **options))
    else:
        server = request.getfixturevalue("sqs")
        queue = SqsQueue(server.make(fifo=request.param == "fifo"))
        backend = Backend(queue, queue, 1.0, fenced=False)
    async with queue, backend.again:
        yield backend


async def send(queue: MessageQueue, *bodies: Any, **attributes: Any) -> list[str]:
    return await queue.send([Message(body, attributes) for body in bodies])


async def bodies(queue: MessageQueue, most: int = 10, wait: float = 0.0) -> list[Any]:
    return [message.body for message in await queue.receive(most, wait)]


async def the_one(queue: MessageQueue, wait: float = 0.0) -> Message:
    (message,) = await queue.receive(10, wait)
    return message


def unhurried(backend: Backend) -> None:
    """Leases are not the subject: none shall run out, however busy the machine is."""
    backend.queue.visibility_timeout = 60.0


def errors(results: list[Exception | None]) -> list[type[Exception] | None]:
    return [None if error is None else type(error) for error in results]


# ---- there and back -----------------------------------------------------------------------------


async def test_what_is_sent_is_received_until_it_is_acknowledged(backend: Backend) -> None:
    unhurried(backend)
    queue = backend.queue
    ids = await send(queue, {"n": 1}, user_id="ann", note=["ä", {"deep": None}], priority=2)
    message = await the_one(queue)
    assert message.id == ids[0] and message.receive_count == 1
    assert message.body == {"n": 1}
    assert message.attributes == {"user_id": "ann", "note": ["ä", {"deep": None}], "priority": 2}
    assert message.size > 0
    assert await queue.receive() == []
    assert await queue.acknowledge([message]) == [None]
    assert await queue.depth() == Depth(0, 0, 0, 0)
    again = errors(await queue.acknowledge([message]))
    assert again == [LeaseLost if backend.fenced else None]


BODIES = [
    None,
    True,
    0,
    -1.5,
    10**20,
    "",
    "ä\0\x01\r\n\"'<&>\ud800",
    [],
    {},
    [[{"a": [1]}]],
    {"": 0},
]


async def test_any_json_goes_through(backend: Backend) -> None:
    unhurried(backend)
    await backend.queue.send([Message(body) for body in BODIES])
    received: list[Message] = []
    while batch := await backend.queue.receive(10):
        received += batch
    key = json.dumps
    assert sorted(map(key, (m.body for m in received))) == sorted(map(key, BODIES))
    assert errors(await backend.queue.acknowledge(received)) == [None] * len(BODIES)


async def test_no_more_than_asked_for(backend: Backend) -> None:
    unhurried(backend)
    await send(backend.queue, *range(5))
    counts = [len(await backend.queue.receive(most)) for most in (2, 2, 2)]
    assert counts == [2, 2, 1]
    assert await backend.queue.receive(2) == []


async def test_receive_waits_for_what_comes(backend: Backend) -> None:
    queue, loop = backend.queue, asyncio.get_running_loop()
    began = loop.time()
    assert await queue.receive(1, 0.1) == []
    assert 0.1 <= loop.time() - began < 5
    waiting = [asyncio.create_task(bodies(queue, 1, 20)) for _ in range(2)]
    await asyncio.sleep(0.05)
    await send(backend.again, "a", "b")
    assert sorted([body for (body,) in await asyncio.gather(*waiting)]) == ["a", "b"]
    assert loop.time() - began < 15


async def test_nothing_to_do_is_no_work(backend: Backend) -> None:
    queue = backend.queue
    assert await queue.send([]) == []
    assert await queue.acknowledge([]) == await queue.extend([], 1) == []
    assert await queue.release([]) == await queue.dead_letter([], "") == []
    assert await queue.dead_letters() == [] and await queue.redrive() == 0


# ---- leases -------------------------------------------------------------------------------------


async def test_what_is_not_acknowledged_comes_again(backend: Backend) -> None:
    queue = backend.queue
    await send(queue, "a")
    first = await the_one(queue)
    second = await the_one(queue, wait=backend.lease * 10)
    assert (second.id, second.body, second.receive_count) == (first.id, "a", 2)
    assert await queue.acknowledge([second]) == [None]
    await asyncio.sleep(backend.lease * 1.1)
    assert await queue.receive() == []


@LOCAL
async def test_a_lease_that_ran_out_is_anothers(backend: Backend) -> None:
    queue = backend.queue
    await send(queue, "a")
    late = await the_one(queue)
    again = await the_one(queue, wait=backend.lease * 10)
    assert (again.id, again.receive_count) == (late.id, 2)
    for attempt in (
        queue.acknowledge([late]),
        queue.extend([late], 5),
        queue.release([late]),
        queue.dead_letter([late], "late"),
    ):
        assert errors(await attempt) == [LeaseLost]
    assert (await queue.depth()).in_flight == 1
    assert errors(await queue.acknowledge([late, again, late])) == [LeaseLost, None, LeaseLost]
    assert await queue.depth() == Depth(0, 0, 0, 0)


@LOCAL
async def test_work_done_late_still_counts_if_nobody_else_began(backend: Backend) -> None:
    queue = backend.queue
    await send(queue, "a", "b")
    batch = await queue.receive()
    await asyncio.sleep(backend.lease * 1.1)
    assert errors(await queue.acknowledge(batch)) == [None, None]
    assert await queue.receive() == []


async def test_an_extended_lease_lasts(backend: Backend) -> None:
    queue = backend.queue
    await send(queue, "a", "b")
    batch = await queue.receive()
    assert await queue.extend(batch, backend.lease * 5) == [None, None]
    await asyncio.sleep(backend.lease * 1.2)
    assert await queue.receive() == []
    assert await queue.extend(batch[:1], 0) == [None]
    assert await bodies(queue, wait=backend.lease) == [batch[0].body]
    assert await queue.acknowledge(batch[1:]) == [None]


async def test_given_back_it_comes_again_at_once_or_later(backend: Backend) -> None:
    queue = backend.queue
    await send(queue, "a")
    first = await the_one(queue)
    assert await queue.release([first], counted=False) == [None]
    second = await the_one(queue)
    if backend.fenced:
        assert second.receive_count == 1
        assert errors(await queue.acknowledge([first])) == [LeaseLost]
    assert await queue.acknowledge([second]) == [None]
    await send(queue, "b")
    delay = backend.lease * 2
    assert await queue.release([await the_one(queue)], delay) == [None]
    assert (await queue.depth()).ready == 0
    began = asyncio.get_running_loop().time()
    again = await the_one(queue, wait=delay * 5)
    assert asyncio.get_running_loop().time() - began >= delay * 0.9
    assert (again.body, again.receive_count) == ("b", 2)
    assert await queue.acknowledge([again]) == [None]


@DELAYING
async def test_a_delay_longer_than_a_lease_makes_no_copies(backend: Backend) -> None:
    queue = backend.queue
    await send(queue, "a", delay_seconds=backend.lease * 2)
    assert await queue.receive() == []
    assert await queue.depth() == Depth(0, 1, 0, 0)
    await asyncio.sleep(backend.lease * 1.1)
    assert await queue.receive() == []
    message = await the_one(queue, wait=backend.lease * 10)
    assert message.receive_count == 1
    assert await queue.acknowledge([message]) == [None]
    await asyncio.sleep(backend.lease * 1.1)
    assert await queue.receive() == []


async def test_many_receivers_share_without_overlap(backend: Backend) -> None:
    unhurried(backend)
    count = 200 if backend.fenced else 40
    await backend.queue.send([Message(n) for n in range(count)])
    seen: Counter[int] = Counter()

    async def receiver() -> None:
        while batch := await backend.queue.receive(7):
            seen.update(message.body for message in batch)
            assert not any(await backend.queue.acknowledge(batch))

    await asyncio.gather(*[receiver() for _ in range(5)])
    assert seen == Counter(range(count))


@LOCAL
async def test_a_receiver_that_is_cancelled_takes_nothing_along(backend: Backend) -> None:
    queue, sent = backend.queue, 30
    await queue.send([Message(n) for n in range(sent)])
    chance = random.Random(7)
    for _ in range(sent):
        receiver = asyncio.create_task(queue.receive(3, 5))
        for _ in range(chance.randrange(4)):
            await asyncio.sleep(0)
        receiver.cancel()
        await asyncio.wait([receiver])
        if not receiver.cancelled():
            assert await queue.release(receiver.result(), counted=False) == [None] * 3
    received: list[Message] = []
    while len(received) < sent:
        received += await queue.receive(10, backend.lease / 2)  # long before a lease runs out
    assert sorted(message.body for message in received) == list(range(sent))
    assert {message.receive_count for message in received} == {1}


# ---- order --------------------------------------------------------------------------------------


@LOCAL
async def test_the_urgent_first_then_in_order(backend: Backend) -> None:
    unhurried(backend)
    queue = backend.queue
    for n, priority in enumerate(["normal", "low", 0, "high", 5, "normal", -7, 1]):
        await send(queue, n, priority=priority)
    assert await bodies(queue, 2) == [4, 3]
    assert await bodies(queue, 10) == [7, 0, 2, 5, 1, 6]


@LOCAL
async def test_users_take_turns_over_the_whole_queue(backend: Backend) -> None:
    unhurried(backend)
    queue = backend.queue
    await queue.send([Message(f"a{n}", {"user_id": "a"}) for n in range(50)])
    assert await bodies(queue, 10) == [f"a{n}" for n in range(10)]
    await send(queue, "b0", "b1", user_id="b")
    await send(queue, "c0", user_id="c")
    await send(queue, "nobody's")
    assert await bodies(queue, 8) == ["b0", "c0", "nobody's", "a10", "b1", "a11", "a12", "a13"]
    await send(queue, "urgent", user_id="a", priority="high")
    assert await bodies(queue, 2) == ["urgent", "a14"]


@LOCAL
async def test_an_empty_queue_remembers_nobody(backend: Backend) -> None:
    queue = backend.queue
    for _ in range(2):
        await send(queue, *range(20), user_id="a")
        assert not any(await queue.acknowledge(await queue.receive(100)))
        assert await queue.receive() == []
        await send(queue, "b", user_id="b")
        await send(queue, "a", user_id="a")
        assert await bodies(queue) == ["b", "a"]
        await asyncio.sleep(backend.lease * 1.1)
        assert not any(await queue.acknowledge(await queue.receive(100)))
        assert await queue.receive() == []


@LOCAL
async def test_a_group_comes_one_by_one(backend: Backend) -> None:
    queue = backend.queue
    for n in range(3):
        await send(queue, f"g{n}", group_id="g", priority=n)
        await send(queue, f"h{n}", group_id="h")
    assert sorted(await bodies(queue)) == ["g0", "h0"]
    assert await queue.depth() == Depth(4, 0, 2, 0)
    await asyncio.sleep(backend.lease * 1.1)
    first = await queue.receive(wait_seconds=backend.lease)
    assert sorted(message.body for message in first) == ["g0", "h0"]
    g, h = sorted(first, key=lambda message: str(message.body))
    assert await queue.acknowledge([h]) == [None]
    assert await queue.release([g], backend.lease, counted=False) == [None]
    second = await the_one(queue)
    assert second.body == "h1"
    assert await queue.dead_letter([second], "skipped") == [None]
    third = await the_one(queue)
    assert third.body == "h2"
    assert await queue.acknowledge([third]) == [None]
    assert await bodies(queue, wait=backend.lease * 5) == ["g0"]  # nothing passes it


@LOCAL
async def test_in_a_group_a_delay_holds_up_those_behind(backend: Backend) -> None:
    queue = backend.queue
    await queue.send(
        [
            Message(0, {"group_id": "g"}),
            Message(1, {"group_id": "g", "delay_seconds": backend.lease}),
            Message(2, {"group_id": "g"}),
        ]
    )
    for expected in range(3):
        message = await the_one(queue, wait=backend.lease * 10)
        assert message.body == expected
        assert await queue.acknowledge([message]) == [None]


@LOCAL
async def test_sent_twice_with_one_deduplication_id_it_is_one(backend: Backend) -> None:
    unhurried(backend)
    queue = backend.queue
    (first,) = await send(queue, "a", deduplication_id="x", group_id="g")
    (second,) = await send(queue, "b", deduplication_id="x", group_id="g")
    (third,) = await send(queue, "c", deduplication_id="y", group_id="g")
    assert first == second != third
    message = await the_one(queue)
    assert message.body == "a"
    assert await queue.acknowledge([message]) == [None]
    await send(queue, "d", deduplication_id="x", group_id="g")  # gone, and remembered
    message = await the_one(queue)
    assert message.body == "c"
    assert await queue.acknowledge([message]) == [None]
    assert await queue.receive() == []


# ---- dead letters -------------------------------------------------------------------------------


async def the_dead(queue: MessageQueue) -> DeadLetter:
    (letter,) = await queue.dead_letters()
    return letter


async def test_what_failed_too_often_is_given_up_with_its_reason(backend: Backend) -> None:
    unhurried(backend)
    queue = backend.queue
    ids = await send(queue, {"bad": 1}, user_id="ann")
    for reason in ("first", "second"):
        assert await queue.release([await the_one(queue)], reason=reason) == [None]
    assert await queue.receive() == []
    letter = await the_dead(queue)
    assert (letter.id, letter.receive_count, letter.reason) == (ids[0], 2, "second")
    assert (json.loads(letter.body), letter.attributes) == ({"bad": 1}, {"user_id": "ann"})
    assert letter.died_at > 1.7e9
    assert await queue.depth() == Depth(0, 0, 0, 1)
    assert await queue.redrive() == 1
    again = await the_one(queue)
    assert (again.body, again.receive_count) == ({"bad": 1}, 1)
    assert again.id == ids[0] or not backend.fenced  # SQS gives it another
    assert again.attributes == {"user_id": "ann"}
    assert await queue.dead_letters() == []


async def test_each_of_a_batch_has_its_delay_and_reason(backend: Backend) -> None:
    unhurried(backend)
    queue = backend.queue
    await send(queue, 0, 1)
    for _ in range(2):
        batch = sorted(await queue.receive(), key=lambda message: int(message.body))
        assert await queue.release(batch, [0, 0], reason=["zero", "one"]) == [None, None]
    letters = await queue.dead_letters()
    assert sorted((letter.body, letter.reason) for letter in letters) == [
        ("0", "zero"),
        ("1", "one"),
    ]
    await send(queue, "later", "now")
    later, now = sorted(await queue.receive(), key=lambda message: str(message.body))
    assert await queue.release([later, now], [60, 0]) == [None, None]
    assert await bodies(queue) == ["now"]


async def test_a_release_without_a_reason_still_says_why(backend: Backend) -> None:
    unhurried(backend)
    queue = backend.queue
    await send(queue, "a")
    for _ in range(2):
        assert await queue.release([await the_one(queue)]) == [None]
    assert (await the_dead(queue)).reason == "failed 2 times"


@pytest.mark.parametrize("told", ["", "it broke"])
async def test_what_kills_its_receivers_is_given_up(backend: Backend, told: str) -> None:
    queue = backend.queue
    await send(queue, "poison")
    first = await the_one(queue)
    if told:
        await queue.release([first], reason=told)
    await the_one(queue, wait=backend.lease * 10)
    await asyncio.sleep(backend.lease * 1.1)  # nobody ever answers
    assert await queue.receive() == []
    letter = await the_dead(queue)
    if backend.fenced:
        assert letter.reason.startswith("received 2 times and never acknowledged")
        assert letter.reason.endswith(told)
    else:
        moved = "moved by SQS: received too often and never acknowledged"
        assert letter.reason == f"{moved} (or no room was left for the reason)"


@LOCAL
async def test_what_was_received_ahead_counts_when_it_begins(backend: Backend) -> None:
    queue = backend.queue
    await send(queue, "poison", "beside it")

    async def ahead() -> list[Message]:
        batch = await queue.receive(10, backend.lease * 10, ahead=True)
        while len(batch) < 2:
            batch += await queue.receive(10, backend.lease * 10, ahead=True)
        return sorted(batch, key=lambda message: str(message.body))

    assert [message.receive_count for message in await ahead()] == [1, 1]
    beside, poison = await ahead()
    assert (beside.receive_count, poison.receive_count) == (2, 2)
    assert await queue.begin([poison]) == [None]
    await asyncio.sleep(backend.lease * 1.2)  # and its receiver dies
    for _ in range(3):
        (again,) = await queue.receive(10, backend.lease * 10, ahead=True)
        assert (again.body, again.receive_count) == ("beside it", 2)
    assert [letter.body for letter in await queue.dead_letters()] == ['"poison"']
    assert await queue.begin([again]) == [None]
    assert await queue.release([again]) == [None]
    assert (await queue.depth()).dead == 2


@LOCAL
async def test_dead_letters_are_chosen_by_id(backend: Backend) -> None:
    unhurried(backend)
    queue = backend.queue
    ids = await send(queue, *range(4), group_id="g")
    for n in range(4):
        message = await the_one(queue)
        assert message.body == n
        assert await queue.dead_letter([message], f"no {n}") == [None]
    assert [letter.reason for letter in await queue.dead_letters(3)] == ["no 0", "no 1", "no 2"]
    assert await queue.redrive([ids[2], "unknown", ids[0]]) == 2
    for expected in (2, 0):
        message = await the_one(queue)
        assert message.body == expected
        assert await queue.acknowledge([message]) == [None]
    assert await queue.depth() == Depth(0, 0, 0, 2)


# ---- what is refused ----------------------------------------------------------------------------


@LOCAL
@pytest.mark.parametrize(
    ("message", "error", "reason"),
    [
        ("text", InvalidType, "message 1 of the batch must be a Message, not 'text'"),
        (Message({1, 2}), InvalidValue, "the body of message 1 of the batch must be JSON"),
        (Message(float("nan")), InvalidValue, "must be JSON"),
        (Message(1, 5), InvalidType, "attributes of message 1 of the batch must be a dict"),  # type: ignore[arg-type]
        (Message(1, {7: 1}), InvalidType, "must be a str, not 7"),  # type: ignore[dict-item]
        (Message(1, {"x": object()}), InvalidValue, "the attributes of message 1"),
        (Message(1, {"priority": "urgent"}), InvalidValue, "'high', 'normal', 'low', not 'urgent'"),
        (Message(1, {"priority": [1]}), InvalidType, "priority of message 1"),
        (Message(1, {"user_id": 5}), InvalidType, "user_id of message 1 .* must be a str, not 5"),
        (Message(1, {"delay_seconds": -1}), InvalidValue, "delay_seconds .* at least 0"),
        (Message(1, {"user_id": "ann\udc80"}), InvalidValue, "user_id .* UTF-8"),
        (Message(1, {"group_id": "a b"}), InvalidValue, "1 to 128 printable ASCII"),
        (Message(1, {"deduplication_id": 1}), InvalidType, "deduplication_id"),
    ],
)
async def test_what_cannot_be_sent(
    message: Any, error: type[Exception], reason: str, backend: Backend
) -> None:
    with pytest.raises(error, match=reason):
        await backend.queue.send([Message("good"), message])
    assert await backend.queue.receive() == []


@LOCAL
async def test_a_body_as_deep_as_no_parser_goes(backend: Backend) -> None:
    deep: Any = []
    for _ in range(100_000):
        deep = [deep]
    with pytest.raises(InvalidValue, match="recursion"):
        await backend.queue.send([Message(deep)])
    while deep:  # or its end would be as deep
        deep = deep.pop()


async def test_bad_arguments(backend: Backend) -> None:
    queue = backend.queue
    with pytest.raises(InvalidValue, match=r"max_messages must be .* at least 1"):
        await queue.receive(0)
    with pytest.raises(InvalidValue, match="wait_seconds"):
        await queue.receive(1, -1)
    with pytest.raises(InvalidValue, match="seconds"):
        await queue.extend([], float("nan"))
    with pytest.raises(InvalidValue, match="delay"):
        await queue.release([], -1)
    with pytest.raises(InvalidValue, match="delay must be one, or 0, not 2"):
        await queue.release([], [1, 2])
    with pytest.raises(InvalidValue, match="reason must be one, or 0, not 1"):
        await queue.dead_letter([], ["why"])
    with pytest.raises(InvalidValue, match="limit"):
        await queue.dead_letters(0)
    sent: Any
    for sent, error in ((Message(1), InvalidValue), (1, InvalidType)):
        for call in (queue.acknowledge, queue.release, partial(queue.dead_letter, reason="why")):
            with pytest.raises(error, match="received"):
                await call([sent])
    no_reason: Any = None
    with pytest.raises(InvalidType, match="reason must be a str, not None"):
        await queue.release([Message(1, receipt=(1, 1))], reason=[no_reason])


async def test_a_reason_may_quote_what_is_no_text(backend: Backend) -> None:
    await send(backend.queue, 1)
    await backend.queue.dead_letter(await backend.queue.receive(), "no file \udcff")
    (letter,) = await backend.queue.dead_letters()
    assert letter.reason == "no file \\udcff"


async def test_closed_it_takes_nothing(backend: Backend) -> None:
    await backend.queue.close()
    await backend.queue.close()
    with pytest.raises(InvalidState, match="was closed"):
        await send(backend.queue, 1)
    with pytest.raises(InvalidState, match="was closed"):
        await backend.queue.receive()


# ---- the URL ------------------------------------------------------------------------------------


def test_a_url_names_a_queue(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    queue = open_queue("sqlite:///a%20b.db?visibility_timeout=60.5&max_receives=3")
    assert repr(queue) == "SqliteQueue('a b.db')"
    assert (queue.visibility_timeout, queue.max_receives) == (60.5, 3)
    assert repr(open_queue(f"sqlite:///{tmp_path}/x.db")) == f"SqliteQueue('{tmp_path}/x.db')"
    assert repr(open_queue("memory://?max_receives=1")) == "<MemoryQueue: 0 messages>"
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("url", "error", "reason"),
    [
        (7, InvalidType, "must be a str, not 7"),
        ("tasks.db", InvalidValue, "sqlite:///file.db, sqs://name or memory://, not 'tasks.db'"),
        ("redis://x", InvalidValue, "not 'redis://x'"),
        ("http://[", InvalidValue, "is no URL"),
        ("sqlite://tasks.db", InvalidValue, "three slashes"),
        ("sqlite:///", InvalidValue, "three slashes"),
        ("memory://name", InvalidValue, "has no name"),
        ("memory://?lease=5", InvalidValue, "visibility_timeout, max_receives, not 'lease'"),
        ("memory://?max_receives=x", InvalidValue, "max_receives in .* must be a number, not 'x'"),
        ("memory://?max_receives=0", InvalidValue, "max_receives must be .* at least 1, not 0"),
        ("sqlite:///x?visibility_timeout=nan", InvalidValue, "visibility_timeout"),
        ("sqlite:///x?poll_interval=0", InvalidValue, "poll_interval"),
    ],
)
def test_a_url_that_names_none(url: Any, error: type[Exception], reason: str) -> None:
    with pytest.raises(error, match=reason):
        open_queue(url)


# ---- the file against memory, as its oracle -----------------------------------------------------

SENDING = st.fixed_dictionaries(
    {},
    optional={
        "priority": st.sampled_from([-1, 0, "high", 2.5]),
        "user_id": st.sampled_from("ab"),
        "group_id": st.sampled_from("gh"),
        "deduplication_id": st.sampled_from("xy"),
        "delay_seconds": st.just(1000),
    },
)
STEPS = st.one_of(
    st.tuples(st.just("send"), st.lists(SENDING, min_size=1, max_size=4)),
    st.tuples(st.sampled_from(["receive", "ahead"]), st.integers(1, 4)),
    st.tuples(
        st.sampled_from(
            ["acknowledge", "release", "return", "hold", "bury", "expire", "later", "begin"]
        ),
        st.lists(st.integers(0, 30), min_size=1, max_size=3),
    ),
    st.tuples(st.just("redrive"), st.booleans()),
)


@given(steps=st.lists(STEPS, max_size=40))
def test_the_file_does_what_memory_does(
    steps: list[tuple[str, Any]], tmp_path_factory: pytest.TempPathFactory
) -> None:
    path = tmp_path_factory.mktemp("oracle") / "queue.db"

    async def life() -> None:
        options = {"visibility_timeout": 1000.0, "max_receives": 3}
        async with SqliteQueue(path, **options) as ours, MemoryQueue(**options) as oracle:  # type: ignore[arg-type]
            a, b = Life(ours), Life(oracle)
            for step in steps:
                assert await a.step(*step) == await b.step(*step), step
            assert await ours.depth() == await oracle.depth()

    asyncio.run(life())


class Life:
    """Does one step after another to a queue, and tells what can be seen of it."""

    def __init__(self, queue: MessageQueue) -> None:
        self.queue = queue
        self.received: list[Message] = []
        self.sent = 0

    async def step(self, what: str, how: Any) -> Any:
        queue = self.queue
        if what == "send":
            batch = [Message(self.sent + i, attributes) for i, attributes in enumerate(how)]
            self.sent += len(how)
            return len(set(await queue.send(batch)))
        if what in ("receive", "ahead"):
            batch = await queue.receive(how, ahead=what == "ahead")
            self.received += batch
            return [(m.body, m.attributes, m.receive_count, m.size) for m in batch]
        if what == "redrive":
            letters = await queue.dead_letters()
            ids = [letter.id for letter in letters[::2]] if how else None
            told = [(x.body, x.attributes, x.receive_count, x.reason) for x in letters]
            return await queue.redrive(ids), told
        chosen = [self.received[i % len(self.received)] for i in how] if self.received else []
        acts: dict[str, Callable[[], Any]] = {
            "acknowledge": lambda: queue.acknowledge(chosen),
            "release": lambda: queue.release(chosen, reason="failed"),
            "return": lambda: queue.release(chosen, counted=False),
            "hold": lambda: queue.extend(chosen, 1000),
            "bury": lambda: queue.dead_letter(chosen, "poison"),
            "expire": lambda: queue.extend(chosen, 0),
            "begin": lambda: queue.begin(chosen),
            "later": lambda: queue.release(chosen, 1000),
        }
        return errors(await acts[what]())
