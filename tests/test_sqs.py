"""What is SQS's own: batches, partial failures, throttling, groups, other people's messages."""

from __future__ import annotations

import asyncio
import subprocess
import sys
from collections import Counter
from collections.abc import Awaitable, Callable
from typing import Any

import pytest
from sqs_server import SqsServer

from async_task_manager.errors import (
    InvalidState,
    InvalidType,
    InvalidValue,
    LeaseLost,
    SendFailed,
    StoreError,
)
from async_task_manager.queues import Depth, Message, open_queue
from async_task_manager.queues._sqs_calls import batches
from async_task_manager.queues.sqs import SqsQueue

pytestmark = pytest.mark.real_time


def url_of(sqs: SqsServer, name: str) -> str:
    return str(sqs.client.get_queue_url(QueueName=name)["QueueUrl"])


async def all_of(queue: SqsQueue) -> list[Message]:
    return await queue.receive(100)


# ---- batches ------------------------------------------------------------------------------------


def test_batches_are_of_ten_and_no_larger_than_allowed() -> None:
    assert list(batches([1] * 25, 100)) == [range(10), range(10, 20), range(20, 25)]
    assert list(batches([60, 40, 1, 100, 1], 100)) == [
        range(2),
        range(2, 3),
        range(3, 4),
        range(4, 5),
    ]
    assert list(batches([], 100)) == []


async def test_a_batch_of_any_length_goes_in_tens(sqs: SqsServer) -> None:
    async with SqsQueue(sqs.make()) as queue:
        sqs.calls.clear()
        ids = await queue.send([Message(n) for n in range(25)])
        assert sqs.calls == ["SendMessageBatch"] * 3
        messages = await all_of(queue)
        assert sorted(message.body for message in messages) == list(range(25))
        assert {message.id for message in messages} == set(ids)
        sqs.calls.clear()
        assert await queue.extend(messages, 60) == [None] * 25
        assert await queue.acknowledge(messages) == [None] * 25
        assert Counter(sqs.calls) == {
            "ChangeMessageVisibilityBatch": 3,
            "DeleteMessageBatch": 3,
        }


async def test_size_limits_are_the_queues(sqs: SqsServer) -> None:
    name = sqs.make(MaximumMessageSize="2000")
    async with SqsQueue(name) as queue:
        with pytest.raises(InvalidValue, match=f"message 1 .* at most 2000 bytes .* {name} says"):
            await queue.send([Message(1), Message("x" * 1990, {"user_id": "ann"})])
        assert await queue.receive() == []
        sqs.calls.clear()
        await queue.send([Message("x" * 900)] * 5)
        assert sqs.calls == ["SendMessageBatch"] * 3
        assert len(await all_of(queue)) == 5


def failing(
    operation: str, times: int, *, whose: bool = False, code: str = "InternalError"
) -> tuple[Callable[[str, dict[str, Any]], tuple[int, dict[str, Any]] | None], list[list[str]]]:
    """A fault of every second entry of a call, so many times; and what was asked in each call."""
    asked: list[list[str]] = []

    def fault(name: str, parameters: dict[str, Any]) -> tuple[int, dict[str, Any]] | None:
        if name != operation:
            return None
        asked.append([entry["Id"] for entry in parameters["Entries"]])
        if len(asked) > times:
            return None
        done = [{"Id": id, "MessageId": "m", "MD5OfMessageBody": ""} for id in asked[-1][::2]]
        failed = [
            {"Id": id, "SenderFault": whose, "Code": code, "Message": "no"}
            for id in asked[-1][1::2]
        ]
        return 200, {"Successful": done, "Failed": failed}

    return fault, asked


async def test_entries_that_failed_are_sent_again_alone(sqs: SqsServer) -> None:
    async with SqsQueue(sqs.make()) as queue:
        sqs.fault, asked = failing("SendMessageBatch", 2)
        ids = await queue.send([Message(n) for n in range(4)])
        assert asked == [["0", "1", "2", "3"], ["1", "3"], ["3"]]
        assert len(ids) == 4
        assert [message.body for message in await all_of(queue)] == [
            3
        ]  # the others were the fault's


async def test_entries_that_can_never_be_are_told_one_by_one(sqs: SqsServer) -> None:
    async with SqsQueue(sqs.make()) as queue:
        await queue.send([Message(n) for n in range(3)])
        messages = await all_of(queue)
        sqs.fault, asked = failing(
            "DeleteMessageBatch", 9, whose=True, code="ReceiptHandleIsInvalid"
        )
        results = await queue.acknowledge(messages)
        assert asked == [["0", "1", "2"]]
        assert [type(result) for result in results] == [type(None), LeaseLost, type(None)]
        sqs.fault, asked = failing("SendMessageBatch", 9, whose=True, code="InvalidMessageContents")
        with pytest.raises(SendFailed, match=r"1 of 2 .*InvalidMessageContents: no") as caught:
            await queue.send([Message(1), Message(2)])
        assert caught.value.ids == ["m", None]
        assert isinstance(caught.value.errors[1], StoreError)


async def test_an_entry_that_fails_for_ever_is_given_up(sqs: SqsServer) -> None:
    async with SqsQueue(sqs.make()) as queue:

        def fault(name: str, parameters: dict[str, Any]) -> tuple[int, dict[str, Any]]:
            failed = [
                {"Id": e["Id"], "Code": "Busy", "SenderFault": False} for e in parameters["Entries"]
            ]
            return 200, {"Successful": [], "Failed": failed}

        sqs.fault = fault
        sqs.calls.clear()
        with pytest.raises(SendFailed, match="Busy"):
            await queue.send([Message(1)])
        assert len(sqs.calls) == 6


THROTTLED = 400, {"__type": "com.amazonaws.sqs#RequestThrottled", "message": "slow down"}


async def test_throttled_it_backs_off_and_goes_on(sqs: SqsServer) -> None:
    async with SqsQueue(sqs.make()) as queue:
        calls = 0

        def fault(name: str, parameters: dict[str, Any]) -> tuple[int, dict[str, Any]] | None:
            nonlocal calls
            calls += 1
            return THROTTLED if calls % 2 else None

        sqs.fault = fault
        await queue.send([Message(n) for n in range(3)])
        messages = await all_of(queue)
        assert len(messages) == 3
        assert await queue.acknowledge(messages) == [None] * 3
        assert await queue.depth() == Depth(0, 0, 0, 0)


async def test_throttled_for_ever_it_says_so(sqs: SqsServer) -> None:
    name = sqs.make()
    async with SqsQueue(name) as queue:
        sqs.fault = lambda *_: THROTTLED
        sqs.calls.clear()
        asked: list[Awaitable[Any]] = [queue.send([Message(1)]), queue.receive(), queue.depth()]
        answers = await asyncio.gather(*asked, return_exceptions=True)
        assert isinstance(answers[0], SendFailed)
        for answer in answers:
            assert isinstance(answer, StoreError) and "slow down" in str(answer)
        assert sqs.calls.count("SendMessageBatch") == 4


# ---- FIFO ---------------------------------------------------------------------------------------


async def test_a_group_keeps_its_order(sqs: SqsServer) -> None:
    async with SqsQueue(sqs.make(fifo=True), max_receives=9) as queue:
        await queue.send([Message(n, {"group_id": "g"}) for n in range(12)])
        first = await queue.receive(3)
        assert [message.body for message in first] == [0, 1, 2]
        assert first[0].attributes == {"group_id": "g"}
        assert await queue.receive() == []  # while any of them is under way
        await queue.send([Message("other", {"group_id": "h"})])
        assert [message.body for message in await queue.receive()] == ["other"]
        assert await queue.acknowledge(first[:1]) == [None]
        assert await queue.release(first[1:]) == [None, None]
        assert [message.body for message in await queue.receive(10)] == list(range(1, 11))


async def test_deduplication(sqs: SqsServer) -> None:
    async with SqsQueue(sqs.make(fifo=True)) as queue:
        attributes = {"group_id": "g", "deduplication_id": "x"}
        await queue.send([Message(1, attributes)])
        await queue.send([Message(2, attributes)])
        await queue.send([Message(3), Message(3)])
        assert sorted(message.body for message in await all_of(queue)) == [1, 3, 3]
    async with SqsQueue(sqs.make(fifo=True, ContentBasedDeduplication="true")) as queue:
        await queue.send([Message(3), Message(3)])
        assert [message.body for message in await all_of(queue)] == [3]


@pytest.mark.parametrize(
    ("fifo", "attributes", "reason"),
    [
        (False, {"group_id": "g"}, "message 0 .* need a FIFO queue"),
        (False, {"deduplication_id": "g"}, "need a FIFO queue"),
        (True, {"delay_seconds": 1}, "can't be on a FIFO queue"),
        (False, {"delay_seconds": 901}, "at most 900 on SQS, not 901"),
        (False, {f"a{n}": 1 for n in range(10)}, "at most 9 attributes on SQS, not 10"),
        (False, {"a b": 1}, "not 'a b'"),
        (False, {"dead_letter": 1}, "must not be named 'dead_letter'"),
        (False, {"AWS.x": 1}, r"not 'AWS\.x'"),
    ],
)
async def test_what_sqs_does_not_take(
    fifo: bool, attributes: dict[str, Any], reason: str, sqs: SqsServer
) -> None:
    async with SqsQueue(sqs.make(fifo=fifo)) as queue:
        with pytest.raises(InvalidValue, match=reason):
            await queue.send([Message(1, attributes)])


# ---- attributes, and other people's messages ----------------------------------------------------


async def test_attributes_come_back_as_they_were(sqs: SqsServer) -> None:
    attributes = {
        "text": "ä\t",
        "empty": "",
        "control": "\x00",
        "whole": -(10**37),
        "huge": 10**60,
        "real": 1.5e-7,
        "tiny": 1e-300,
        "flag": True,
        "deep": {"a": [None]},
    }
    async with SqsQueue(sqs.make()) as queue:
        await queue.send([Message(1, attributes)])
        (message,) = await queue.receive()
        assert message.attributes == attributes
        assert [type(value) for value in message.attributes.values()].count(bool) == 1


async def test_messages_of_others_are_understood(sqs: SqsServer) -> None:
    name = sqs.make()
    sqs.client.send_message(
        QueueUrl=url_of(sqs, name),
        MessageBody='{"n": 1}',
        MessageAttributes={
            "user_id": {"DataType": "String", "StringValue": "ann"},
            "priority": {"DataType": "Number", "StringValue": "7"},
            "odd": {"DataType": "Number", "StringValue": "+7"},
            "cost": {"DataType": "Number.float", "StringValue": "0.5"},
            "raw": {"DataType": "Binary", "BinaryValue": b"\xff"},
        },
    )
    async with SqsQueue(name) as queue:
        (message,) = await queue.receive()
        assert message.attributes == {
            "user_id": "ann",
            "priority": 7,
            "odd": "+7",
            "cost": 0.5,
            "raw": {"base64": "/w=="},
        }


@pytest.mark.parametrize("fifo", [False, True])
async def test_what_is_no_json_becomes_a_dead_letter_as_it_is(fifo: bool, sqs: SqsServer) -> None:
    name = sqs.make(fifo=fifo)
    url = url_of(sqs, name)
    group = {"MessageGroupId": "g", "MessageDeduplicationId": "x"} if fifo else {}
    mark = {"a": {"DataType": "String", "StringValue": "b"}}
    sqs.client.send_message(QueueUrl=url, MessageBody="not json", MessageAttributes=mark, **group)
    async with SqsQueue(name) as queue:
        assert await queue.receive() == []
        assert await queue.depth() == Depth(0, 0, 0, 1)
        (letter,) = await queue.dead_letters()
        assert (letter.body, letter.receive_count) == ("not json", 1)
        assert letter.attributes == {"a": "b"} | ({"group_id": "g"} if fifo else {})
        assert letter.reason.startswith("the body is no JSON: ")
        assert (await queue.dead_letters())[0].id == letter.id  # looked at, it is still there


async def test_attributes_that_are_no_json_are_kept_too(sqs: SqsServer) -> None:
    name = sqs.make()
    broken = {f"a{n}": {"DataType": "String.json", "StringValue": "{"} for n in range(10)}
    sqs.client.send_message(QueueUrl=url_of(sqs, name), MessageBody="1", MessageAttributes=broken)
    async with SqsQueue(name) as queue:
        assert await queue.receive() == []
        (letter,) = await queue.dead_letters()
        assert letter.attributes == dict.fromkeys(broken, "{")
        assert letter.reason.startswith("moved")  # there was no room for ours


async def test_others_may_have_ten_attributes_and_die(sqs: SqsServer) -> None:
    name = sqs.make()
    ten = {f"a{n}": {"DataType": "String", "StringValue": "x"} for n in range(10)}
    sqs.client.send_message(QueueUrl=url_of(sqs, name), MessageBody="1", MessageAttributes=ten)
    async with SqsQueue(name) as queue:
        assert await queue.dead_letter(await queue.receive(), "why") == [None]
        (letter,) = await queue.dead_letters()
        assert letter.attributes == dict.fromkeys(ten, "x")


async def test_a_dead_letter_of_others_may_hold_anything(sqs: SqsServer) -> None:
    name = sqs.make()
    theirs = {
        "broken": {"DataType": "String.json", "StringValue": "{"},
        "raw": {"DataType": "Binary", "BinaryValue": b"\x00"},
        "dead_letter": {"DataType": "String", "StringValue": "theirs"},
        "n": {"DataType": "Number", "StringValue": "7"},
    }
    dead = url_of(sqs, name.removesuffix(".fifo") + "-dead")
    sqs.client.send_message(QueueUrl=dead, MessageBody="1", MessageAttributes=theirs)
    async with SqsQueue(name) as queue:
        (letter,) = await queue.dead_letters()
    meant = {"broken": "{", "raw": {"base64": "AA=="}, "dead_letter": "theirs", "n": 7}
    assert letter.attributes == meant


async def test_the_largest_can_die_too(sqs: SqsServer) -> None:
    name = sqs.make(MaximumMessageSize="2000")
    dead = url_of(sqs, name + "-dead")
    sqs.client.set_queue_attributes(QueueUrl=dead, Attributes={"MaximumMessageSize": "2000"})
    async with SqsQueue(name) as queue:
        await queue.send([Message("x" * 1900)])
        assert await queue.dead_letter(await queue.receive(), "y" * 200) == [None]
        (letter,) = await queue.dead_letters()
        assert len(letter.body) == 1902
        assert "no room was left for the reason" in letter.reason


async def test_dead_letters_are_chosen_by_id(sqs: SqsServer) -> None:
    async with SqsQueue(sqs.make()) as queue:
        await queue.send([Message(n, {"n": n}) for n in range(13)])
        assert not any(await queue.dead_letter(await all_of(queue), "no"))
        letters = await queue.dead_letters()
        assert len(letters) == 13 and {letter.reason for letter in letters} == {"no"}
        assert await queue.redrive(letter.id for letter in letters[::4]) == 4
        again = await all_of(queue)
        assert sorted(m.body for m in again) == sorted(int(x.body) for x in letters[::4])
        assert all(message.attributes == {"n": message.body} for message in again)
        assert await queue.depth() == Depth(0, 0, 4, 9)


async def test_a_dead_letter_that_cannot_be_sent_stays_a_message(sqs: SqsServer) -> None:
    async with SqsQueue(sqs.make()) as queue:
        await queue.send([Message(1), Message(2)])
        messages = await all_of(queue)
        sqs.fault, _ = failing("SendMessageBatch", 9, whose=True)
        results = await queue.dead_letter(messages, "no")
        assert [type(result) for result in results] == [type(None), StoreError]
        sqs.fault = None
        assert (await queue.depth()).in_flight == 1


# ---- opening ------------------------------------------------------------------------------------


async def test_a_queue_must_exist_and_have_a_dead_letter_queue(sqs: SqsServer) -> None:
    with pytest.raises(StoreError, match=r"SQS queue missing: .*NonExistentQueue"):
        await SqsQueue("missing").open()
    sqs.client.create_queue(QueueName="plain")
    sqs.client.create_queue(QueueName="for-the-dead")
    with pytest.raises(StoreError, match=r"redrive policy, .*sqs://plain\?dead_letter_queue=NAME"):
        async with SqsQueue("plain"):
            pass
    async with open_queue("sqs://plain?dead_letter_queue=for-the-dead&max_receives=1") as queue:
        assert (queue.visibility_timeout, queue.max_receives) == (30.0, 1)
        await queue.send([Message(1)])
        assert await queue.release(await queue.receive(), reason="once") == [None]
        assert [letter.reason for letter in await queue.dead_letters()] == ["once"]


async def test_an_endpoint_that_does_not_answer_is_told(sqs: SqsServer) -> None:
    queue = open_queue("sqs://q?endpoint_url=http://127.0.0.1:9&region=eu-north-1")
    with pytest.raises(StoreError, match="SQS queue q: Could not connect"):
        await queue.receive()
    await queue.close()
    await queue.close()
    with pytest.raises(InvalidState, match="was closed"):
        await queue.receive()


@pytest.mark.parametrize(
    ("url", "reason"),
    [
        ("sqs://", "named as in sqs://name"),
        ("sqs://a/b", "named as in sqs://name"),
        ("sqs://a?visibility_timeout=0.5", "visibility_timeout must be .* at least 1"),
        ("sqs://a?max_receives=0", "max_receives"),
    ],
)
def test_a_url_that_names_none(url: str, reason: str) -> None:
    with pytest.raises(InvalidValue, match=reason):
        open_queue(url)


def test_names_are_text() -> None:
    with pytest.raises(InvalidType, match="name must be a str, not 5"):
        SqsQueue(5)  # type: ignore[arg-type]
    with pytest.raises(InvalidType, match="dead_letter_queue must be a str, not 5"):
        SqsQueue("a", dead_letter_queue=5)  # type: ignore[arg-type]


@pytest.mark.parametrize("module", ["sqs", "_sqs_calls"])
def test_without_its_library_it_says_what_to_install(module: str) -> None:
    program = (
        "import sys; sys.modules['aiobotocore'] = None\n"
        "from async_task_manager import MissingExtra\n"
        f"try: import async_task_manager.queues.{module}\n"
        "except MissingExtra as error: print(error)"
    )
    ran = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    )
    assert ran.stdout == "aiobotocore is missing: pip install 'async-task-manager[sqs]'\n"


async def test_a_long_poll_that_is_cancelled_loses_nothing(sqs: SqsServer) -> None:
    async with SqsQueue(sqs.make()) as queue:
        polling = asyncio.create_task(queue.receive(1, 20))
        await asyncio.sleep(0.2)
        polling.cancel()
        await asyncio.wait([polling], timeout=1)
        assert polling.cancelled()
        await queue.send([Message(1)])
        (message,) = await queue.receive(1, 5)
        assert message.body == 1


async def test_two_openings_at_once_are_one(sqs: SqsServer) -> None:
    queue = SqsQueue(sqs.make())
    sqs.calls.clear()
    await asyncio.gather(queue.open(), queue.open(), queue.depth())
    assert sqs.calls.count("GetQueueUrl") == 2  # ours, and that of the dead
    await queue.close()
