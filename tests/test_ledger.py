"""What a run leaves on disk: nothing lost, nothing twice, torn lines cut off."""

from __future__ import annotations

import io
import json
import os
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from async_task_manager.runner import Ledger, OutputError, journal_of, open_ledger
from async_task_manager.runner.ids import Ids


def result(id: str | int, status: str = "succeeded", **more: Any) -> dict[str, Any]:
    return {"id": id, "status": status, "provider": "p", "http_status": 200, **more}


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_bytes().splitlines()]


# ---- ids ----------------------------------------------------------------------------------------


@given(
    st.lists(
        st.one_of(
            st.tuples(st.just("finish"), st.sampled_from("abc"), st.booleans()),
            st.tuples(st.just("take"), st.sampled_from("abc"), st.integers(1, 9)),
        )
    )
)
def test_ids_are_as_a_dict_has_them(steps: list[tuple[str, str, Any]]) -> None:
    done: dict[str, bool] = {}
    taken: dict[str, int] = {}
    with Ids() as ids:
        for what, id, value in steps:
            if what == "finish":
                ids.finish([(id, value)])
                done[id] = value
                taken.pop(id, None)
            else:
                assert ids.take(id, value) == taken.get(id)
                taken.setdefault(id, value)
            for each in "abc":
                assert ids.done(each) is done.get(each)


# ---- a file -------------------------------------------------------------------------------------


def test_results_and_starts_are_written_at_once(tmp_path: Path) -> None:
    out = tmp_path / "out.jsonl"
    with open_ledger(out) as ledger:
        assert not ledger.resumed
        ledger.begun(1, "p", 5.0, {"tokens": 3}, {"model": "m"})
        assert lines(journal_of(out)) == [
            {"start": 1, "provider": "p", "at": 5.0, "cost": {"tokens": 3}, "keys": {"model": "m"}}
        ]
        ledger.settled(1, 6.0, {"tokens": 2})
        ledger.ended(result(1))
        assert lines(out) == [result(1)]
        ledger.sync()
    with open_ledger(out) as ledger:
        assert ledger.resumed and ledger.finished(1) and ledger.finished("1")
        assert not ledger.finished(2)
        assert [record["at"] for record in ledger.starts()] == [5.0, 6.0]
        assert ledger.in_flight == 0


@pytest.mark.parametrize("torn", [b"{", b'{"id":9,"status":"succeeded"}', b"x" * 200_000])
def test_a_torn_last_line_is_cut_off(tmp_path: Path, torn: bytes) -> None:
    out = tmp_path / "out.jsonl"
    with open_ledger(out) as ledger:
        ledger.begun(1, "p", 5.0, None, {})
        ledger.ended(result(1))
        ledger.begun(9, "p", 6.0, None, {})
    for path in (out, journal_of(out)):
        with path.open("ab") as file:
            file.write(torn)
    with open_ledger(out) as ledger:
        assert ledger.finished(1) and not ledger.finished(9)
        assert ledger.in_flight == 1
        ledger.ended(result(9))
    assert [line["id"] for line in lines(out)] == [1, 9]
    assert [line["start"] for line in lines(journal_of(out))] == [1, 9]


def test_a_line_torn_at_every_byte(tmp_path: Path) -> None:
    out = tmp_path / "out.jsonl"
    with open_ledger(out) as ledger:
        for id in ("a\n\u2028", "b"):
            ledger.begun(id, "p", 5.0, None, {})
            ledger.ended(result(id, response="ä\n"))
    whole, journal = out.read_bytes(), journal_of(out).read_bytes()
    second = whole.index(b"\n") + 1
    for end in range(len(whole) + 1):
        out.write_bytes(whole[:end])
        journal_of(out).write_bytes(journal)
        with open_ledger(out) as ledger:
            assert ledger.finished("a\n\u2028") is (end >= second)
            assert ledger.finished("b") is (end == len(whole))
            assert ledger.in_flight == (end < second) + (end < len(whole))
        assert out.read_bytes() == whole[: second * (end >= second)] or end == len(whole)


def test_the_last_line_of_an_id_wins(tmp_path: Path) -> None:
    out = tmp_path / "out.jsonl"
    with open_ledger(out) as ledger:
        for each in ("failed", "succeeded"):
            ledger.ended(result("up", each))
        for each in ("succeeded", "failed"):
            ledger.ended(result("down", each))
        ledger.ended(result("flying", "cancelled"))
        ledger.ended(result("huge", "rejected", line=4))
        ledger.ended({"id": "bad", "line": 7, "status": "invalid", "error": "why"})
    for retry, finished in ((False, {"up", "down", "huge"}), (True, {"up"})):
        with open_ledger(out, retry_failed=retry) as ledger:
            ids = ("up", "down", "flying", "huge", "bad")
            assert {id for id in ids if ledger.finished(id)} == finished
            assert ledger.told(7) and not ledger.told(4)


def test_twins_are_noticed(tmp_path: Path) -> None:
    with open_ledger(tmp_path / "out.jsonl") as ledger:
        assert ledger.twin("a", 1) is None
        assert ledger.twin("a", 2) == 1
        assert ledger.twin(3, 3) is None and ledger.twin("3", 4) == 3


def test_force_begins_anew(tmp_path: Path) -> None:
    out = tmp_path / "out.jsonl"
    out.write_text("precious\n")
    with open_ledger(out, force=True) as ledger:
        ledger.begun(1, "p", 5.0, None, {})
        ledger.ended(result(1))
    with open_ledger(out, force=True) as ledger:
        assert not ledger.resumed and not ledger.finished(1)
    assert out.read_bytes() == journal_of(out).read_bytes() == b""


@pytest.mark.parametrize(
    ("content", "format", "says"),
    [
        (b"precious", "jsonl", "is no output of atm run; --force"),
        (b"precious\n", "jsonl", "line 1 is no result in the format jsonl"),
        (b"[1]\n", "jsonl", "line 1 is no result"),
        (b'{"id":1,"status":"succeeded"}\n', "openai-batch", "line 1 is no result in .* openai"),
        (b'{"id":1,"status":"succeeded"}\n{}\n', "jsonl", "line 2 is no result"),
    ],
)
def test_something_else_is_left_alone(
    tmp_path: Path, content: bytes, format: str, says: str
) -> None:
    out = tmp_path / "out.jsonl"
    out.write_bytes(content)
    with pytest.raises(OutputError, match=says), open_ledger(out, format=format):
        pass
    assert out.read_bytes() == content


def test_two_runs_don_t_write_one_output(tmp_path: Path) -> None:
    out = tmp_path / "out.jsonl"
    with open_ledger(out), pytest.raises(OutputError, match="another run"), open_ledger(out):
        pass


def test_starts_that_count_nowhere_are_forgotten(tmp_path: Path) -> None:
    out = tmp_path / "out.jsonl"
    with open_ledger(out) as ledger:
        for at in range(10):
            ledger.begun(f'"at":{at + 100}', "p", float(at), None, {"at": 99})
            ledger.ended(result(f'"at":{at + 100}'))
    with open_ledger(out, since=7.0) as ledger:
        assert [record["at"] for record in ledger.starts()] == [7.0, 8.0, 9.0]
        ledger.begun("new", "p", 10.0, None, {})
    assert [line["at"] for line in lines(journal_of(out))] == [7.0, 8.0, 9.0, 10.0]
    with open_ledger(out, since=99.0) as ledger:
        assert list(ledger.starts()) == []
        assert ledger.in_flight == 1
    assert not list(tmp_path.glob("*.new"))


class Small(io.BytesIO):
    """A disk with room for so many bytes."""

    def __init__(self, room: int) -> None:
        super().__init__()
        self.room = room

    def write(self, line: Any) -> int:
        fits = line[: self.room - self.tell()]
        if not fits:
            raise OSError(28, os.strerror(28))
        return super().write(fits[:7])


@settings(max_examples=50)
@given(st.integers(0, 200))
def test_a_full_disk_leaves_no_half_line(room: int) -> None:
    disk = Small(room)
    ledger = Ledger(disk)
    written = 0
    with suppress(OSError):
        while True:
            ledger.ended(result(written))
            written += 1
    assert [json.loads(line)["id"] for line in disk.getvalue().splitlines()] == list(range(written))
    disk.room = 10_000
    ledger.ended(result("later"))
    assert json.loads(disk.getvalue().splitlines()[-1])["id"] == "later"


def test_what_is_no_file_is_written_all_the_same() -> None:
    with ExitStack() as stack:
        ledger = stack.enter_context(open_ledger(Path("/dev/null")))
        ledger.begun(1, "p", 5.0, None, {})
        ledger.ended(result(1))
        assert not ledger.finished(1) and list(ledger.starts()) == []
        ledger.sync()


# ---- OpenAI's format ----------------------------------------------------------------------------


def test_openai_s_format(tmp_path: Path) -> None:
    out = tmp_path / "out.jsonl"
    with open_ledger(out, format="openai-batch") as ledger:
        ledger.ended(result("good", response={"a": 1}))
        ledger.ended(result("bad", "failed", error="HTTP 500", response="x") | {"http_status": 500})
        gone = {"http_status": None, "error": "ConnectError"}
        ledger.ended(result("gone", "failed") | gone)
        ledger.ended(result("flying", "cancelled") | gone)
        ledger.ended({"id": 7, "line": 7, "status": "invalid", "error": "why"})
    assert lines(out)[0] == {
        "id": "batch_req_good",
        "custom_id": "good",
        "response": {"status_code": 200, "request_id": "p-good", "body": {"a": 1}},
        "error": None,
    }
    assert lines(out)[1]["response"]["status_code"] == 500
    assert lines(out)[2]["error"] == {"code": "failed", "message": "ConnectError"}
    assert lines(out)[2]["response"] is None
    with open_ledger(out, format="openai-batch", retry_failed=True) as ledger:
        assert ledger.finished("good") and not ledger.finished("bad")
        assert ledger.told(7)
    with open_ledger(out, format="openai-batch") as ledger:
        assert ledger.finished("bad") and ledger.finished("gone") and not ledger.finished("flying")
