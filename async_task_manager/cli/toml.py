"""A config as the file that it could have been read from."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Any, Final

from async_task_manager.cli.desk import PRETEND
from async_task_manager.config import FlowConfig, ProviderConfig
from async_task_manager.config.secrets import secrets_of
from async_task_manager.config.tables import RateTable, StageTable

__all__ = ["to_toml"]

_COMMENTS: Final = {
    ("base_url", PRETEND): "change this to where it is",
    ("cost", 1): "what a request takes of each unit, unless it says",
}
_BARE: Final = re.compile(r"[\w-]+", re.ASCII)
_VARIABLE: Final = re.compile(r"\$\{\w+\}")


def to_toml(config: FlowConfig) -> str:
    """What was said in it, and no defaults. No secret is written out: the value of a header that is
    one becomes a variable of the environment, called after it.
    """
    parts = []
    if "policy" in config.model_fields_set:
        parts.append(f"policy = {_value(config.policy)}\n")
    parts += [_table("providers", _said(provider)) for provider in config.providers]
    for stage in config.chain:
        table = {"strategy": "providers"} if stage is None else stage.table
        parts.append(_table("chain", table))
    return "\n".join(parts)


def _said(provider: ProviderConfig) -> dict[str, Any]:
    said = {
        key: getattr(provider, key)
        for key in ProviderConfig.model_fields
        if key in provider.model_fields_set
    }
    if "headers" in said:
        said["headers"] = {
            name: _no_secret(name, value.get_secret_value())
            for name, value in provider.headers.items()
        }
    if "limits" in said:
        said["limits"] = [_limit(limit) for limit in provider.rates]
    return said


def _no_secret(header: str, value: str) -> str:
    if _VARIABLE.search(value) or not secrets_of([(header, value)]):
        return value
    return f"${{{re.sub(r'[^A-Za-z0-9]', '_', header).upper()}}}"


def _limit(limit: RateTable | StageTable) -> Any:
    if isinstance(limit, StageTable):
        return limit.table
    table = limit.model_dump(exclude_none=True)
    return limit.rate if len(table) == 1 else table


def _table(name: str, table: Mapping[str, Any]) -> str:
    lines = [f"[[{name}]]\n"]
    for key, value in table.items():
        plain = isinstance(value, str | int)
        comment = _COMMENTS.get((key, value)) if plain else None
        lines.append(f"{_key(key)} = {_value(value)}{f'   # {comment}' if comment else ''}\n")
    return "".join(lines)


def _key(key: str) -> str:
    return key if _BARE.fullmatch(key) else _value(key)


def _value(value: Any) -> str:
    """As TOML has it, in one line."""
    if isinstance(value, Mapping):
        return f"{{ {', '.join(f'{_key(key)} = {_value(item)}' for key, item in value.items())} }}"
    if isinstance(value, list | tuple):
        return f"[{', '.join(map(_value, value))}]"
    if isinstance(value, str | bool):  # what JSON and TOML write alike, but for DEL
        return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")
    return str(value)
