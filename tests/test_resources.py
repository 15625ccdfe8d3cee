"""The load of this machine, as it is."""

from __future__ import annotations

import copy
import sys
from pathlib import Path
from typing import Any

import pytest

from async_task_manager.errors import InvalidType, InvalidValue, MissingExtra
from async_task_manager.strategies import Resources
from async_task_manager.strategies import resources as module
from async_task_manager.strategies.resources import Load, pressure


def test_it_measures_what_it_is_asked_for() -> None:
    load = Resources().measure()
    assert load.cpu is not None and 0 <= load.cpu <= 100
    assert load.memory is not None and 0 < load.memory <= 100
    assert load.pressure is None or 0 <= load.pressure <= 100
    assert (load.pressure is None) == (pressure() is None)
    assert Resources(None, None, pressure_percent=None).measure() == Load()


def test_what_is_above_a_bound_is_too_much() -> None:
    resources = Resources(85, 90, pressure_percent=60)
    assert not resources.exceeded(Load(85, 90, 60))
    assert not resources.exceeded(Load())
    for load in (Load(85.1, 0, 0), Load(0, 90.1, 0), Load(0, 0, 60.1)):
        assert resources.exceeded(load)
        assert not Resources(None, None, pressure_percent=None).exceeded(load)


STALLED = "some avg10={} avg60=0.10 avg300=0.00 total=4711\nfull avg10=0.00 avg60=0.00 total=0\n"


def test_the_highest_pressure_counts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    files = [tmp_path / name for name in ("cpu", "memory", "io")]
    monkeypatch.setattr(module, "PRESSURE", files)
    assert pressure() is None
    files[0].write_text(STALLED.format("1.53"))
    assert pressure() == 1.53
    files[2].write_text(STALLED.format("70.01"))
    assert pressure() == 70.01
    assert Resources().exceeded(Resources(None, None).measure())


def test_without_psutil_it_says_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "psutil", None)
    with pytest.raises(MissingExtra, match=r"pip install 'async-task-manager\[adaptive\]'"):
        Resources()


def test_copies_and_words() -> None:
    resources = Resources(None, interval=2)
    assert copy.deepcopy(resources) is resources
    assert repr(resources) == "Resources(None, 90, pressure_percent=60, interval=2)"


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"cpu_percent": 0}, InvalidValue, "cpu_percent .*above 0 and at most 100, not 0"),
        ({"memory_percent": 101}, InvalidValue, "memory_percent"),
        ({"pressure_percent": float("nan")}, InvalidValue, "pressure_percent"),
        ({"interval": 0}, InvalidValue, "interval"),
        ({"cpu_percent": "85"}, InvalidType, "cpu_percent must be a number"),
    ],
)
def test_bad_parameters_are_refused(
    options: dict[str, Any], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        Resources(**options)
