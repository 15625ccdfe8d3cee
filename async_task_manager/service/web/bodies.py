"""Bodies, bounded in size and in time before anything is done with them."""

from __future__ import annotations

import asyncio

from starlette.requests import ClientDisconnect, Request

from async_task_manager.service.web.problems import Problem

__all__ = ["read_json"]

CLOSE = {"connection": "close"}
"""What is left of the body is not read: the connection is of no use any more."""


async def read_json(request: Request, most: int, seconds: float) -> bytes:
    """The body of a request that says it is JSON.

    Args:
        request: Whose.
        most: Bytes. One that says it is longer is refused before it is read; one that says nothing,
            or lies, as soon as it is.
        seconds: Within which it must be here.

    Raises:
        Problem: 415, 413, 408, or 400 for a length that is no number.
    """
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind != "application/json":
        raise Problem(415, "the content-type must be application/json", headers=CLOSE)
    length = request.headers.get("content-length")
    if length is not None:
        if not (length.isascii() and length.isdecimal()):
            raise Problem(400, "the content-length must be a number", headers=CLOSE)
        if int(length) > most:
            raise _too_large(most)
    body = bytearray()
    try:
        async with asyncio.timeout(seconds):
            async for chunk in request.stream():
                body += chunk
                if len(body) > most:
                    raise _too_large(most)
    except TimeoutError:
        raise Problem(408, f"the body did not come within {seconds:g} s", headers=CLOSE) from None
    except ClientDisconnect:
        raise Problem(400, "the client left in the middle of the body", headers=CLOSE) from None
    return bytes(body)


def _too_large(most: int) -> Problem:
    return Problem(413, f"the body must not be longer than {most} bytes", headers=CLOSE)
