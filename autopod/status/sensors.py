"""Reads what a host tells of itself. What it does not have is said, and is no fault."""

import os
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Final

from autopod.status import health
from autopod.status.health import Fault
from autopod.status.policy import Faults
from ckpt import stack
from ckpt.stackcommand import StackError
from launcher import pods
from launcher.places import Places

_KMSG: Final = Path("/dev/kmsg")
_PRESSURE: Final = Path("/proc/pressure")
_THERMAL: Final = Path("/sys/class/thermal")
_SUPPLIES: Final = Path("/sys/class/power_supply")
_SYSTEMD: Final = Path("/run/systemd/system")
_UNITS: Final = ("autopod*", "pod@*", "pod-root@*")
_TIMEOUT_S: Final = 60


def look(places: Places, limits: Faults) -> tuple[list[Fault], list[str]]:
    """Return what is wrong, and what of the host cannot be looked at."""
    faults: list[Fault] = []
    absent: list[str] = []
    for sensor in (_kernel, _pressure, _temperature, _battery, *_upses(), _smart, _units):
        try:
            faults += sensor(limits)
        except _Absent as e:
            absent.append(str(e))
    return [*faults, *_disks(places, limits), *_daemons(places)], absent


class _Absent(Exception):  # noqa: N818 (what is the case)
    """The host does not have it."""


def _kernel(limits: Faults) -> list[Fault]:
    now_us = time.clock_gettime_ns(time.CLOCK_MONOTONIC) // 1000
    try:
        return health.kernel_faults(_records(), now_us - int(limits.hours * 3600e6))
    except OSError as e:
        raise _Absent(f"the kernel's log: {e.strerror}") from e


def _records() -> Iterator[health.Record]:
    """Yield what the kernel still has of its messages: one by each read(2)."""
    fd = os.open(_KMSG, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    try:
        while True:
            try:
                data = os.read(fd, 8192)
            except BlockingIOError:  # the end
                return
            except BrokenPipeError:  # it was overwritten: the next read gives the oldest there is
                continue
            record = health.parse_kmsg(data.decode(errors="replace"))
            if record:
                yield record
    finally:
        os.close(fd)


def _pressure(limits: Faults) -> list[Fault]:
    if not _PRESSURE.is_dir():
        raise _Absent("pressure: the kernel does not measure it")
    faults = []
    for resource, most in (("memory", limits.memory_pressure), ("io", limits.io_pressure)):
        with suppress(OSError):  # measured, but switched off: psi=0
            text = (_PRESSURE / resource).read_text()
            faults.append(health.pressure_fault(resource, text, most))
    return [fault for fault in faults if fault]


def _temperature(_limits: Faults) -> list[Fault]:
    zones = sorted(_THERMAL.glob("thermal_zone*"))
    if not zones:
        raise _Absent("temperature: the host has no sensor")
    faults = []
    for zone in zones:
        with suppress(OSError, ValueError):  # a sensor that is asleep: EAGAIN, ENODATA
            now = int((zone / "temp").read_text())
            name = (zone / "type").read_text().strip()
            faults.append(health.temperature_fault(name, now, _trips(zone)))
    return [fault for fault in faults if fault]


def _trips(zone: Path) -> list[tuple[str, int]]:
    trips = []
    for kind in zone.glob("trip_point_*_type"):
        limit = kind.with_name(kind.name.replace("_type", "_temp"))
        with suppress(OSError, ValueError):
            trips.append((kind.read_text().strip(), int(limit.read_text())))
    return trips


def _battery(_limits: Faults) -> list[Fault]:
    supplies = [found for one in sorted(_SUPPLIES.glob("*")) if (found := _supply(one))]
    if not any(one.stores for one in supplies):
        raise _Absent("power: the kernel knows no battery")
    try:
        fault = health.battery_fault(supplies)
    except ValueError as e:
        raise _Absent(f"power: {e}") from e
    return [fault] if fault else []


def _supply(directory: Path) -> health.Supply | None:
    """Return a supply of the host's; None: it is a mouse's or the like, or there is none in it."""
    said = {}
    for name in ("type", "scope", "present", "online", "status", "capacity"):
        with suppress(OSError):  # each kind has its own; some fail while they have nothing to say
            said[name] = (directory / name).read_text().strip()
    if "type" not in said or said.get("scope") == "Device" or said.get("present") == "0":
        return None
    return health.Supply(
        name=directory.name,
        kind=said["type"],
        online=said.get("online", "0") != "0",
        status=said.get("status", ""),
        capacity=said.get("capacity", ""),
    )


def _upses() -> list[Callable[[Faults], list[Fault]]]:
    """Return a sensor for each UPS that NUT looks after here; without one, one that says so."""
    names = health.upses(_output("upsc", "-l"))
    return [partial(_ups, name) for name in names] or [_no_ups]


def _ups(name: str, _limits: Faults) -> list[Fault]:
    try:
        fault = health.ups_fault(name, _output("upsc", name, "ups.status"))
    except ValueError as e:
        raise _Absent(f"power: {e}") from e
    return [fault] if fault else []


def _no_ups(_limits: Faults) -> list[Fault]:
    has = "finds no UPS" if shutil.which("upsc") else "is not installed"
    raise _Absent(f"power: upsc {has}")


def _smart(_limits: Faults) -> list[Fault]:
    if not shutil.which("smartctl"):
        raise _Absent("disks' own health: smartctl is not installed")
    devices = health.smart_devices(_output("smartctl", "--scan", "--json"))
    if not devices:
        raise _Absent("disks' own health: smartctl finds no disk that tells")
    faults = (health.smart_fault(one, _output("smartctl", "-H", "--json", one)) for one in devices)
    return [fault for fault in faults if fault]


def _units(_limits: Faults) -> list[Fault]:
    if not _SYSTEMD.is_dir():
        raise _Absent("units: systemd does not run")
    said = _output("systemctl", "list-units", "--failed", "--plain", "--no-legend", *_UNITS)
    return [Fault("daemon", line.split()[0], "the unit has failed") for line in said.splitlines()]


def _output(*argv: str) -> str:
    """Return what a command prints; its exit status tells more than whether it worked."""
    try:
        run = subprocess.run(
            argv, stdin=subprocess.DEVNULL, capture_output=True, timeout=_TIMEOUT_S, check=False
        )
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return run.stdout.decode(errors="replace")


def _disks(places: Places, limits: Faults) -> list[Fault]:
    faults: dict[int, Fault | None] = {}
    for path in (Path("/"), Path("/boot"), places.states(), places.barrier("x").parent):
        with suppress(OSError):
            device, found = path.stat().st_dev, os.statvfs(path)
            fault = health.disk_fault(
                os.fspath(path), found.f_blocks, found.f_bavail, limits.disk_percent
            )
            files = health.disk_fault(
                f"{path} (inodes)", found.f_files, found.f_favail, limits.disk_percent
            )
            faults.setdefault(device, fault or files)
    return [fault for fault in faults.values() if fault]


def _daemons(places: Places) -> list[Fault]:
    """Return the pods that run without their file system."""
    faults = []
    for name in pods.names(places):
        if pods.find(places, name) is None:
            continue
        try:
            stack.status(places, name)
        except (StackError, OSError) as e:
            faults.append(Fault("daemon", f"pod {name}", f"its file system does not answer: {e}"))
    return faults
