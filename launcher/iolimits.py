"""Limits of a pod's input and output: of its stackfs daemon, which reads and writes for it.

The daemon and its holder get a control group of their own: in the pod's they would be frozen and
killed with it. With cgroup v1 the kernel counts what is read, and what is written past the page
cache (O_DIRECT); with v2 all that is written, too.
"""

import os
from contextlib import suppress
from pathlib import Path
from typing import Final

from launcher import cgroups
from launcher.cgroups import Hierarchy
from launcher.config import Limits
from launcher.errors import PodError
from launcher.places import Places

_CONTROLLERS: Final = {1: "blkio", 2: "io"}


def settings(limits: Limits, version: int, device: str) -> list[tuple[str, str]]:
    """Return what to write for *limits* of block device *device* ("MAJOR:MINOR"). Pure."""
    both = (("r", "read", limits.io_read_bytes), ("w", "write", limits.io_write_bytes))
    if version == 2:
        words = [f"{letter}bps={rate or 'max'}" for letter, _, rate in both]
        return [("io.max", " ".join([device, *words]))]
    return [
        (f"blkio.throttle.{name}_bps_device", f"{device} {rate}") for _, name, rate in both if rate
    ]


def make(places: Places, name: str, limits: Limits) -> None:
    """Limit the input and output of pod *name*, if *limits* say so, until remove().

    Raises:
        PodError: there is no controller, no block device, or no stackfs daemon.
        OSError: the kernel refuses a limit.
    """
    remove(places, name)
    if limits.io_read_bytes is None and limits.io_write_bytes is None:
        return
    hierarchy = _hierarchy()
    group = cgroups.make_group(hierarchy, _group(places, name), {_CONTROLLERS[hierarchy.version]})
    try:
        for file, value in settings(limits, hierarchy.version, _device(places.states())):
            (group / file).write_text(value)
        for pid in _daemons(places, name):
            (group / "cgroup.procs").write_text(str(pid))
    except BaseException:
        remove(places, name)
        raise


def remove(places: Places, name: str) -> None:
    """Lift the limits. Idempotent."""
    for hierarchy in cgroups.hierarchies():
        group = hierarchy.top / _group(places, name)
        with suppress(FileNotFoundError):
            for pid in (group / "cgroup.procs").read_text().split():
                with suppress(ProcessLookupError):
                    (hierarchy.top / "cgroup.procs").write_text(pid)
            cgroups.remove([group])


def _group(places: Places, name: str) -> Path:
    """No pod's name begins with `_`: this is no group of a pod (cgroups.leftovers())."""
    return Path(cgroups.parent(places), f"_files.{name}")


def _hierarchy() -> Hierarchy:
    for hierarchy in cgroups.hierarchies():
        if _CONTROLLERS[hierarchy.version] in hierarchy.controllers:
            return hierarchy
    raise PodError("limits: this host offers no controller for io")


def _device(directory: Path) -> str:
    """Return the disk that *directory* is on: limits are not of partitions."""
    number = directory.stat().st_dev
    path = Path(f"/sys/dev/block/{os.major(number)}:{os.minor(number)}")
    if not path.exists():
        raise PodError(f"limits.io: {directory} is not on a block device")
    if (path / "partition").exists():
        path = path.resolve().parent
    return (path / "dev").read_text().strip()


def _daemons(places: Places, name: str) -> list[int]:
    """Return the pids of the pod's stackfs daemon and its holder, from whom a new one comes."""
    import json
    import socket

    directory_fd = os.open(places.run(name), os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        with socket.socket(socket.AF_UNIX) as s:
            s.settimeout(10)
            s.connect(f"/proc/self/fd/{directory_fd}/stackfs.sock")
            s.sendall(b'{"op": "status"}\n')
            with s.makefile("rb") as lines:
                status = json.loads(lines.readline())
            return [status["pid"], status["holder"]]
    except OSError as e:
        raise PodError(f"limits.io: pod {name!r} has no stackfs daemon: {e.strerror}") from e
    finally:
        os.close(directory_fd)
