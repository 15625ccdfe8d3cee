"""One line of the output: what became of a request."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from typing import Any, Final, NamedTuple

__all__ = ["FORMATS", "Format", "dumps"]


def dumps(value: Any) -> bytes:
    """JSON in UTF-8; half a surrogate pair, which UTF-8 cannot hold, stays escaped.

    Raises:
        ValueError: NaN or an infinite number, which JSON cannot hold.
    """
    try:
        return json.dumps(
            value, ensure_ascii=False, allow_nan=False, separators=(",", ":")
        ).encode()
    except UnicodeEncodeError:
        return json.dumps(value, allow_nan=False, separators=(",", ":")).encode()


class Format(NamedTuple):
    """A way to write results."""

    encode: Callable[[dict[str, Any]], dict[str, Any]]
    """The object that is written for a result."""
    read: Callable[[bytes], tuple[str, bool] | None]
    """The id of a line, and whether it need not be sent again; None: it says nothing of an id; for
    a line of the input that was no request, NUL and its number. Anything but a result raises.
    """


# ---- our own ------------------------------------------------------------------------------------

_HEAD: Final = re.compile(rb'\{"id":("(?:[^"\\]|\\.)*"|-?\d+),"(?:line":(\d+),")?status":"(\w+)"')


def _same(result: dict[str, Any]) -> dict[str, Any]:
    return result


def _own(line: bytes) -> tuple[str, bool] | None:
    # The response may be long: what counts stands at the front, in the order in which it is made.
    found = _HEAD.match(line)
    if found is not None:
        id, number, status = str(json.loads(found[1])), found[2], found[3].decode()
    else:
        data = json.loads(line)
        id, number, status = str(data["id"]), data.get("line"), data["status"]
    if status == "invalid":
        return f"\0{int(number)}", False
    if status == "cancelled":
        return None  # it was on its way, and is sent again
    return id, status == "succeeded"


# ---- OpenAI's -----------------------------------------------------------------------------------


def _openai(result: dict[str, Any]) -> dict[str, Any]:
    response = error = None
    if result.get("http_status") is not None:
        response = {
            "status_code": result["http_status"],
            "request_id": f"{result['provider']}-{result['id']}",
            "body": result.get("response"),
        }
    else:
        error = {"code": result["status"], "message": result["error"]}
    line = {"line": result["line"]} if "line" in result else {}
    return {
        "id": f"batch_req_{result['id']}",
        "custom_id": str(result["id"]),
        **line,
        "response": response,
        "error": error,
    }


def _openai_read(line: bytes) -> tuple[str, bool] | None:
    data = json.loads(line)
    id, response, error = data["custom_id"], data["response"], data["error"]
    if response is not None:
        return id, 200 <= response["status_code"] < 300
    if error["code"] == "invalid":
        return f"\0{int(data['line'])}", False
    return None if error["code"] == "cancelled" else (id, False)


FORMATS: Final = {
    "jsonl": Format(_same, _own),
    "openai-batch": Format(_openai, _openai_read),
}
