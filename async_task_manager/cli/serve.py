"""`atm serve`: finds the service in a module, and serves it."""

from __future__ import annotations

import logging
import os
import sys
import tempfile
import threading
from pathlib import Path

from rich.console import Console

from async_task_manager.cli.target import find
from async_task_manager.errors import InvalidState, InvalidValue, StoreError, TaskManagerError
from async_task_manager.service import TaskService
from async_task_manager.service.demo import demonstration, visit

__all__ = ["serve_command"]

BAD_USAGE, FAILED = 2, 1


def serve_command(
    target: str | None,
    *,
    host: str,
    port: int,
    tokens: list[str],
    hosts: list[str],
    max_connections: int,
) -> int:
    """Serves until a signal ends it, and gives the exit code."""
    logging.basicConfig(format="%(asctime)s %(levelname)s %(message)s")
    logging.getLogger("async_task_manager").setLevel(logging.INFO)
    console = Console(highlight=False)
    if not tokens:
        tokens = [token for token in os.environ.get("ATM_TOKEN", "").split(",") if token]
    over = threading.Event()
    try:
        with tempfile.TemporaryDirectory(prefix="atm-demo-") as folder:
            service = demonstration(Path(folder)) if target is None else found(target)

            def listening(url: str) -> None:
                console.print(f"serving {target or 'a demonstration'} on {url} (dashboard, API)")
                if target is None:
                    visitors = threading.Thread(target=visit, args=(url, over, tokens), daemon=True)
                    visitors.start()

            try:
                service.serve(
                    host,
                    port,
                    tokens=tokens,
                    hosts=hosts,
                    max_connections=max_connections,
                    on_listening=listening,
                )
            finally:
                over.set()
    except (InvalidState, StoreError) as error:
        return _refuse(str(error), FAILED)
    except (TaskManagerError, ImportError, ValueError) as error:
        return _refuse(str(error), BAD_USAGE)
    except OSError as error:
        return _refuse(f"{host}:{port}: {error.strerror or error}", FAILED)
    return 0


def found(target: str) -> TaskService:
    """The service that ``module:name`` means.

    Raises:
        InvalidValue: there is none.
    """
    service = find(target)
    if not isinstance(service, TaskService):
        raise InvalidValue(f"{target} is {service!r}, not a TaskService")
    return service


def _refuse(message: str, code: int) -> int:
    for line in message.splitlines():
        print(f"atm: {line}", file=sys.stderr)
    return code
