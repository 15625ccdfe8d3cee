"""A queue from a URL."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any
from urllib.parse import SplitResult, parse_qsl, unquote, urlsplit

from async_task_manager.errors import InvalidType, InvalidValue
from async_task_manager.queues.base import MessageQueue

__all__ = ["open_queue"]

FORMS = "sqlite:///file.db, sqs://name or memory://"


def open_queue(url: str) -> MessageQueue:
    """The queue that the URL names.

    `sqlite:///tasks.db` is a file in the working directory, `sqlite:////var/tasks.db` one
    elsewhere; `sqs://name` a queue of Amazon SQS, with the account and region of the environment;
    `memory://` a new queue in memory. Options of the backend's class follow as in
    `sqlite:///tasks.db?visibility_timeout=60&max_receives=3`.

    Nothing is opened or asked yet; the first call does that.

    Raises:
        InvalidType, InvalidValue: it is no such URL, or an option is unknown or out of range.
        MissingExtra: the backend needs a library that isn't installed.
    """
    if not isinstance(url, str):
        raise InvalidType(f"the URL of a queue must be a str, not {url!r}")
    try:
        parts = urlsplit(url)
    except ValueError as error:
        raise InvalidValue(f"{url!r} is no URL: {error}") from None
    backend = BACKENDS.get(parts.scheme)
    if backend is None:
        raise InvalidValue(f"the URL of a queue must be {FORMS}, not {url!r}")
    return backend(url, parts)


def _sqlite(url: str, parts: SplitResult) -> MessageQueue:
    from async_task_manager.queues.sqlite import SqliteQueue

    path = unquote(parts.path[1:])
    if parts.netloc or not path:
        raise InvalidValue(f"three slashes and a path make a file, sqlite:///tasks.db, not {url!r}")
    return SqliteQueue(
        path,
        **_options(
            url,
            parts,
            visibility_timeout=float,
            max_receives=int,
            busy_timeout=float,
            poll_interval=float,
        ),
    )


def _memory(url: str, parts: SplitResult) -> MessageQueue:
    from async_task_manager.queues.memory import MemoryQueue

    if parts.netloc or parts.path:
        raise InvalidValue(f"a queue in memory has no name: memory://, not {url!r}")
    return MemoryQueue(**_options(url, parts, visibility_timeout=float, max_receives=int))


def _sqs(url: str, parts: SplitResult) -> MessageQueue:
    from async_task_manager.queues.sqs import SqsQueue

    if parts.path or not parts.netloc:
        raise InvalidValue(f"a queue of SQS is named as in sqs://name, not {url!r}")
    return SqsQueue(
        parts.netloc,
        **_options(
            url,
            parts,
            visibility_timeout=float,
            max_receives=int,
            dead_letter_queue=str,
            region=str,
            endpoint_url=str,
        ),
    )


def _options(url: str, parts: SplitResult, **kinds: Callable[[str], Any]) -> dict[str, Any]:
    options: dict[str, Any] = {}
    for name, text in parse_qsl(parts.query, keep_blank_values=True):
        kind = kinds.get(name)
        if kind is None:
            raise InvalidValue(f"{url!r} takes the options {', '.join(kinds)}, not {name!r}")
        try:
            options[name] = kind(text)
        except ValueError:
            raise InvalidValue(f"{name} in {url!r} must be a number, not {text!r}") from None
    return options


BACKENDS: dict[str, Callable[[str, SplitResult], MessageQueue]] = {
    "sqlite": _sqlite,
    "sqs": _sqs,
    "memory": _memory,
}
