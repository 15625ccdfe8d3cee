"""The resources of the service as a whole: users, queues, providers, pause, events, metrics."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from importlib.metadata import version
from typing import Any

from starlette.requests import Request
from starlette.responses import Response, StreamingResponse

from async_task_manager.errors import InvalidType, InvalidValue, UnknownProvider
from async_task_manager.runner.results import dumps
from async_task_manager.service.core import Core
from async_task_manager.service.live import settable
from async_task_manager.service.web.bodies import read_json
from async_task_manager.service.web.problems import Json, Problem, parsed, user_asked_for
from async_task_manager.service.web.schemas import ProviderChange

__all__ = ["Operations"]

LISTED_USERS = 100
EVENTS_EVERY = 0.5
HEARTBEAT = 15.0


class Operations:
    """Handlers."""

    def __init__(self, core: Core, body_seconds: float, closing: asyncio.Event) -> None:
        self._core = core
        self._body_seconds = body_seconds
        self._closing = closing

    async def users(self, request: Request) -> Json:
        """Recent use, level and weight; of one user, or of those with most tasks."""
        live = self._core.live
        if "user_id" in request.query_params:
            return Json({"users": [live.user(user_asked_for(request))], "more": 0})
        users, more = live.users(LISTED_USERS)
        return Json({"users": users, "more": more})

    async def queues(self, request: Request) -> Json:
        """What waits, by user and level; what each limit is used."""
        core = self._core
        live = core.live
        return Json(
            {
                "queued": live.queued_by_user.total(),
                "running": len(live.running),
                "paused": core.manager.paused,
                "levels": dict(live.queued_by_level),
                "users": dict(live.queued_by_user.most_common(LISTED_USERS)),
                "limits": live.limits(),
            }
        )

    # ---- providers --------------------------------------------------------------------------

    async def providers(self, request: Request) -> Json:
        """All of them."""
        return Json({"providers": self._core.live.providers()})

    async def provider(self, request: Request) -> Json:
        """One of them."""
        return Json(self._core.live.provider(self._named(request)))

    async def change_provider(self, request: Request) -> Json:
        """Switches it, or sets parameters of its limits: all that is asked for, or nothing."""
        core = self._core
        name = self._named(request)
        body = await read_json(request, core.settings.max_body_bytes, self._body_seconds)
        change = parsed(ProviderChange, body)
        assert core.router is not None
        provider = core.router[name]
        if change.limits is not None:
            self._set(provider.limits, change.limits)
        if change.enabled is not None:
            (provider.enable if change.enabled else provider.disable)()
        return Json(core.live.provider(name))

    def _named(self, request: Request) -> str:
        name: str = request.path_params["name"]
        try:
            if self._core.router is not None:
                return self._core.router[name].name
        except UnknownProvider:
            pass
        raise Problem(404, "there is no such provider")

    def _set(self, limits: tuple[Any, ...], changes: list[dict[str, float]]) -> None:
        if len(changes) > len(limits):
            raise Problem(422, errors=[("limits", f"there are {len(limits)}, not {len(changes)}")])
        done: list[tuple[Any, str, Any]] = []
        try:
            for i, (limit, change) in enumerate(zip(limits, changes, strict=False)):
                known = settable(limit)
                for name, value in change.items():
                    field = f"limits.{i}.{name}"
                    if name not in known:
                        what = f"can't be set; {', '.join(known) or 'nothing'} can"
                        raise Problem(422, errors=[(field, what)])
                    before = getattr(limit, name)
                    whole = isinstance(before, int) and value == int(value)
                    try:
                        setattr(limit, name, int(value) if whole else value)
                    except (InvalidValue, InvalidType) as error:
                        raise Problem(422, errors=[(field, str(error))]) from None
                    done.append((limit, name, before))
        except Problem:
            for limit, name, before in reversed(done):
                setattr(limit, name, before)
            raise

    # ---- the whole --------------------------------------------------------------------------

    async def pause(self, request: Request) -> Json:
        """Starts nothing more; what runs goes on, and tasks are taken in."""
        self._core.manager.pause()
        return Json({"paused": True})

    async def resume(self, request: Request) -> Json:
        """Ends the pause."""
        self._core.manager.resume()
        return Json({"paused": False})

    async def health(self, request: Request) -> Json:
        """It lives."""
        paused = self._core.manager.paused
        return Json({"status": "ok", "version": version("async-task-manager"), "paused": paused})

    async def metrics(self, request: Request) -> Response:
        """For Prometheus."""
        from prometheus_client import CONTENT_TYPE_LATEST, generate_latest

        return Response(
            generate_latest(self._core.metrics.registry),
            headers={"content-type": CONTENT_TYPE_LATEST},
        )

    async def events(self, request: Request) -> Response:
        """Snapshots as they change, as server-sent events."""
        return StreamingResponse(
            self._stream(),
            media_type="text/event-stream",
            headers={"cache-control": "no-store", "x-accel-buffering": "no"},
        )

    async def _stream(self) -> AsyncIterator[bytes]:
        live = self._core.live
        since = 0.0
        told: Any = None
        silent = 0.0
        while not self._closing.is_set():
            snapshot = live.snapshot()
            shown = {k: v for k, v in snapshot.items() if k != "at"}
            if shown != told:
                points = live.series(since)
                since = snapshot["at"] - 2
                told, silent = shown, 0.0
                data = dumps({**snapshot, "series": points})
                yield b"event: snapshot\ndata: %s\n\n" % data
            elif silent >= HEARTBEAT:
                silent = 0.0
                yield b": still here\n\n"
            silent += EVENTS_EVERY
            try:
                async with asyncio.timeout(EVENTS_EVERY):
                    await self._closing.wait()
            except TimeoutError:
                pass
