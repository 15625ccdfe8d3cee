"""Runs every async test in virtual time; opt in from the topmost ``conftest.py``::

    pytest_plugins = ["async_task_manager.testing.pytest_plugin"]

A test marked ``@pytest.mark.real_time`` (the function, its class, or ``pytestmark`` of its module)
gets a real event loop instead. Needs pytest-asyncio 1.4 or later, in either of its modes.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import pytest

from async_task_manager.testing.virtual_time import VirtualTimeLoop


def pytest_configure(config: pytest.Config) -> None:
    hook = getattr(config.hook, "pytest_asyncio_loop_factories", None)
    if hook is None or not hook.has_spec():  # else tests would silently run in real time
        raise pytest.UsageError(
            f"{__name__} needs pytest-asyncio 1.4 or later: pip install 'pytest-asyncio>=1.4'"
        )
    config.addinivalue_line("markers", "real_time: run this async test on a real event loop")


# Optional, so that without pytest-asyncio it is the error above that is seen, not pluggy's.
@pytest.hookimpl(optionalhook=True)
def pytest_asyncio_loop_factories(
    config: pytest.Config, item: pytest.Item
) -> dict[str, Callable[[], asyncio.AbstractEventLoop]]:
    # One factory at a time: with two, pytest-asyncio would append their names to the test's id.
    if item.get_closest_marker("real_time") is not None:
        return {"real": asyncio.new_event_loop}
    return {"virtual": VirtualTimeLoop}
