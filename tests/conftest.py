from __future__ import annotations

import os
from collections.abc import Iterator
from typing import TYPE_CHECKING

import pytest
from hypothesis import HealthCheck, settings

if TYPE_CHECKING:
    from sqs_server import SqsServer

pytest_plugins = ["async_task_manager.testing.pytest_plugin", "pytester"]

# How fast an example runs says more about the machine's load than about the code.
settings.register_profile(
    "default", deadline=None, print_blob=True, suppress_health_check=[HealthCheck.too_slow]
)
settings.register_profile("ci", settings.get_profile("default"), derandomize=True)
settings.register_profile("soak", settings.get_profile("default"), max_examples=5_000)

_in_ci = os.environ.get("CI", "").lower() in ("1", "true", "yes")
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE") or ("ci" if _in_ci else "default"))


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "soak: takes minutes; run by `make soak`")


@pytest.fixture(scope="session")
def sqs_server() -> Iterator[SqsServer]:
    """One for all tests of a process: to start it takes seconds."""
    from sqs_server import SqsServer

    server = SqsServer()
    yield server
    server.close()


@pytest.fixture
def sqs(sqs_server: SqsServer, monkeypatch: pytest.MonkeyPatch) -> Iterator[SqsServer]:
    """SQS, where AWS's own environment variables say."""
    from sqs_server import ENVIRONMENT

    for name, value in {**ENVIRONMENT, "AWS_ENDPOINT_URL_SQS": sqs_server.url}.items():
        monkeypatch.setenv(name, value)
    yield sqs_server
    sqs_server.fault = None
