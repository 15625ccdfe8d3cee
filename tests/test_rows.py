"""Requests as rows of a CSV file."""

from __future__ import annotations

import json
from typing import Any

import pytest

from async_task_manager.config import ConfigError
from async_task_manager.runner import BadRequest, Request, Rows


def row(header: str, record: str | bytes) -> Request:
    rows = Rows()
    assert rows(header, 1) is None
    request = rows(record, 2)
    assert request is not None
    return request


def test_columns_are_fields() -> None:
    request = row(
        "\ufeffid, path ,json.model,json.messages.0.role,json.messages.0.content,"
        "json.max_tokens:number,json.stop:json,cost.tokens,headers.X-a.b,priority,metadata.user",
        'a,/v1/chat,m,user,"2024, ""quoted""\nand more",100,"[""x""]",7.5,y,high,u',
    )
    assert (request.id, request.method, request.target) == ("a", "POST", "v1/chat")
    assert json.loads(request.content or b"") == {
        "model": "m",
        "messages": [{"role": "user", "content": '2024, "quoted"\nand more'}],
        "max_tokens": 100,
        "stop": ["x"],
    }
    assert request.headers["X-a.b"] == "y"
    assert request.metadata == {"user": "u", "priority": "high", "cost": {"tokens": 7.5}}


def test_an_empty_cell_is_none() -> None:
    request = row("id,path,cost,json:json,valid_after,body", ',/x,,"{""a"": 1}",,')
    assert (request.id, request.content, request.metadata) == (2, b'{"a":1}', {})
    assert row("path,cost", b"/x,5").metadata == {"cost": 5}
    assert row("path,json", '/x,"[1]"').content == b"[1]"


@pytest.mark.parametrize(
    ("header", "says"),
    [
        ("id,paht", "column 'paht', and there is no such field; did you mean 'path'"),
        ("zzz", "no such field; the fields are id, method"),
        ("path.x", "column 'path.x', and there is no such field"),
        ("headers", "column 'headers', and there is no such field"),
        ("json.x:int", "column 'json.x:int': a cell is text, number or json"),
    ],
)
def test_a_column_that_is_no_field(header: str, says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        Rows()(header, 1)


@pytest.mark.parametrize(
    ("header", "record", "says"),
    [
        ("id,path", "a", "a row must have 2 cells, as the first has, not 1"),
        ("id,path", b"\xff,/", "'utf-8' codec can't decode"),
        ("id,path", 'a,"/', "unexpected end of data"),
        ("path,cost", "/,x", "cost must be a number, not 'x'"),
        ("path,cost.tokens", "/,true", "cost.tokens must be a number, not 'true'"),
        ("path,json", "/,x", "json must be JSON, not 'x'"),
        ("path,json,json.a", "/,1,2", "json.a lies inside of what another column fills"),
        ("path,priority", "/,hihg", "priority must be one of"),
    ],
)
def test_a_bad_row_says_why(header: str, record: Any, says: str) -> None:
    with pytest.raises(BadRequest, match=says) as caught:
        row(header, record)
    assert caught.value.id in (2, "a")
