"""Requests as rows of a CSV file."""

from __future__ import annotations

import csv
import json
from typing import Any, Final

from async_task_manager.config.problems import ConfigError, meant
from async_task_manager.errors import InvalidType
from async_task_manager.runner.requests import (
    FIELDS,
    BadRequest,
    Request,
    checked_id,
    request_of,
)

__all__ = ["Rows"]

NESTED: Final = ("headers", "json", "cost", "metadata")
"""Fields with parts: a column for each, "json.model", "json.messages.0.content", "cost.tokens"."""
TYPES: Final = ("text", "number", "json")


class Rows:
    """Makes requests of the records of a CSV file, the first of which names the columns.

    A column is called like the field that it fills, or its part: ``id``, ``path``,
    ``json.messages.0.content``, ``cost.tokens``, ``headers.X-Trace``. A cell is text, but for
    ``cost``; ``json.max_tokens:number`` and ``json.stop:json`` say otherwise. An empty cell is no
    cell.
    """

    def __init__(self) -> None:
        self._columns: list[tuple[list[str], str]] | None = None

    def __call__(self, record: str | bytes, number: int) -> Request | None:
        """The request of a record; None for the one that names the columns.

        Raises:
            BadRequest: it is none.
            ConfigError: a column is called like no field.
        """
        id: str | int = number
        try:
            text = record if isinstance(record, str) else record.decode()
            cells = next(csv.reader([text.removeprefix("\ufeff")], strict=True))
            if self._columns is None:
                self._columns = [_column(name.strip()) for name in cells]
                return None
            data = self._fields(cells)
            id = checked_id(data.pop("id", number))
            return request_of(id, data)
        except ConfigError:
            raise
        except (ValueError, InvalidType, csv.Error) as error:
            raise BadRequest(str(error), id) from None

    def _fields(self, cells: list[str]) -> dict[str, Any]:
        columns = self._columns or []
        if len(cells) != len(columns):
            wanted = f"{len(columns)} cells, as the first has"
            raise ValueError(f"a row must have {wanted}, not {len(cells)}")
        data: dict[str, Any] = {}
        for (path, kind), cell in zip(columns, cells, strict=True):
            if cell:
                _put(data, path, _value(cell, kind, ".".join(path)))
        return {name: _lists(value) for name, value in data.items()}


def _column(name: str) -> tuple[list[str], str]:
    path, _, kind = name.partition(":")
    field, _, rest = path.partition(".")
    if field not in FIELDS or (rest and field not in NESTED) or (not rest and field == "headers"):
        raise ConfigError(
            f"the CSV has a column {name!r}, and there is no such field"
            f"{meant(field, FIELDS) or '; the fields are ' + ', '.join(FIELDS)}"
        )
    if kind not in (*TYPES, ""):
        raise ConfigError(f"the CSV has a column {name!r}: a cell is text, number or json")
    plain = "number" if field == "cost" else "json" if path in ("json", "metadata") else "text"
    # A header's name may have dots.
    parts = [field, rest] if field == "headers" else path.split(".")
    return parts, kind or plain


def _value(cell: str, kind: str, name: str) -> Any:
    if kind == "text":
        return cell
    try:
        value = json.loads(cell)
        if kind == "number" and (isinstance(value, bool) or not isinstance(value, int | float)):
            raise ValueError
    except (ValueError, RecursionError):
        wanted = "a number" if kind == "number" else "JSON"
        raise ValueError(f"{name} must be {wanted}, not {cell!r}") from None
    return value


def _put(data: dict[str, Any], path: list[str], value: Any) -> None:
    for part in path[:-1]:
        data = data.setdefault(part, {})
        if not isinstance(data, dict):
            raise ValueError(f"{'.'.join(path)} lies inside of what another column fills")
    data[path[-1]] = value


def _lists(value: Any) -> Any:
    """Objects whose names are 0, 1, 2 … are lists."""
    if not isinstance(value, dict):
        return value
    inner = {name: _lists(part) for name, part in value.items()}
    if inner and all(name.isdecimal() for name in inner):
        return [inner[name] for name in sorted(inner, key=int)]
    return inner
