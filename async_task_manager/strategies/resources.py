"""How busy this machine is, for limits that are to spare it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from async_task_manager._validate import number, optional
from async_task_manager.errors import MissingExtra

__all__ = ["Load", "Resources"]

PRESSURE = tuple(Path("/proc/pressure", name) for name in ("cpu", "memory", "io"))
"""Pressure stall information of the Linux kernel, from 4.20 on; elsewhere there is none."""


@dataclass(frozen=True, slots=True)
class Load:
    """What was measured, each in per cent; None: not here."""

    cpu: float | None = None
    """Of all cores, since the last measurement."""
    memory: float | None = None
    """Of what is installed, in use and not reclaimable."""
    pressure: float | None = None
    """Of the last ten seconds in which some process waited for the CPU, memory or disk: the highest
    of the three."""


class Resources:
    """Bounds for the load of this machine; above one of them, a limit is lowered.

    Args:
        cpu_percent: Of all cores; above 0, at most 100. None: not looked at.
        memory_percent: Of the installed memory; above 0, at most 100. None: not looked at.
        pressure_percent: Of the time in which something waited for the CPU, memory or disk, where
            the kernel tells; above 0, at most 100. None: not looked at.
        interval: Seconds above 0 between measurements.

    Raises:
        InvalidValue, InvalidType: A parameter is out of range or has the wrong type.
        MissingExtra: psutil isn't installed.
    """

    def __init__(
        self,
        cpu_percent: float | None = 85,
        memory_percent: float | None = 90,
        *,
        pressure_percent: float | None = 60,
        interval: float = 1.0,
    ) -> None:
        self.cpu_percent = optional(number, "cpu_percent", cpu_percent, above=0, at_most=100)
        self.memory_percent = optional(
            number, "memory_percent", memory_percent, above=0, at_most=100
        )
        self.pressure_percent = optional(
            number, "pressure_percent", pressure_percent, above=0, at_most=100
        )
        self.interval = number("interval", interval, above=0)
        try:
            import psutil
        except ImportError:
            raise MissingExtra("adaptive", "psutil") from None
        self._psutil = psutil

    def measure(self) -> Load:
        """The present load; it takes a tenth of a millisecond, and never waits."""
        return Load(
            None if self.cpu_percent is None else self._psutil.cpu_percent(),
            None if self.memory_percent is None else self._psutil.virtual_memory().percent,
            None if self.pressure_percent is None else pressure(),
        )

    def exceeded(self, load: Load) -> bool:
        """Whether the load is above a bound."""
        return any(
            bound is not None and value is not None and value > bound
            for value, bound in (
                (load.cpu, self.cpu_percent),
                (load.memory, self.memory_percent),
                (load.pressure, self.pressure_percent),
            )
        )

    def __deepcopy__(self, memo: object) -> Resources:
        return self  # it has no state of its own, and modules can't be copied

    def __repr__(self) -> str:
        return (
            f"Resources({self.cpu_percent!r}, {self.memory_percent!r}, "
            f"pressure_percent={self.pressure_percent!r}, interval={self.interval!r})"
        )


def pressure() -> float | None:
    """The highest share of the last ten seconds in which some process was stalled, in per cent."""
    found = []
    for path in PRESSURE:
        try:
            text = path.read_text()  # "some avg10=1.53 avg60=0.87 avg300=0.40 total=4711\nfull ..."
        except OSError:
            continue  # not Linux, or switched off
        found.append(float(text.split("avg10=", 1)[1].split(maxsplit=1)[0]))
    return max(found, default=None)
