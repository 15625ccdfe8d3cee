"""The dashboard and the API's documentation: files of the package, read once."""

from __future__ import annotations

from hashlib import blake2s
from importlib.resources import files
from pathlib import PurePosixPath

from starlette.requests import Request
from starlette.responses import Response

from async_task_manager.service.web.problems import Problem

__all__ = ["Pages"]

TYPES = {
    ".css": "text/css; charset=utf-8",
    ".html": "text/html; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".svg": "image/svg+xml",
    ".txt": "text/plain; charset=utf-8",
}

# rapidoc writes its styles into the page; the page shows nothing but the API's description.
DOCS_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self' 'unsafe-inline'; "
    "img-src 'self' data:; connect-src 'self'; base-uri 'none'; form-action 'none'; "
    "frame-ancestors 'none'"
)


class Pages:
    """Handlers; what is asked for by name is looked up among the files, and never a path."""

    def __init__(self) -> None:
        self._files: dict[str, tuple[bytes, str, str]] = {}
        for file in files("async_task_manager.service").joinpath("assets").iterdir():
            kind = TYPES.get(PurePosixPath(file.name).suffix)
            if kind is not None:
                content = file.read_bytes()
                self._files[file.name] = content, kind, f'"{blake2s(content).hexdigest()[:20]}"'

    async def dashboard(self, request: Request) -> Response:
        """`/`."""
        return self._file(request, "index.html")

    async def docs(self, request: Request) -> Response:
        """`/docs`."""
        response = self._file(request, "docs.html")
        response.headers["content-security-policy"] = DOCS_POLICY
        return response

    async def asset(self, request: Request) -> Response:
        """`/assets/{name}`."""
        return self._file(request, request.path_params["name"])

    def _file(self, request: Request, name: str) -> Response:
        found = self._files.get(name)
        if found is None:
            raise Problem(404, "there is no such page")
        content, kind, etag = found
        headers = {"content-type": kind, "etag": etag, "cache-control": "no-cache"}
        if request.headers.get("if-none-match") == etag:
            return Response(status_code=304, headers=headers)
        return Response(content, headers=headers)
