"""Control groups of a pod, on hosts with cgroup v1, v2, or both.

Whatever has limits goes where its controller lives. If there is any cgroup2 mount, the pod has a
group in it even without controllers: it can be frozen and killed there as a whole.

Where a group is made differs by purpose. In the hierarchies by which a service manager finds the
processes of a session or service (cgroup2, and v1 `name=systemd`), it is made at the top: the end
of whoever started the pod must not be the pod's. In v1 resource controllers it is made below our
own group, so that limits set on us hold for our pods, too.

Each start makes groups with new names: after a write to `cgroup.kill` Linux 6.18 kills every
process that clone3(2) puts into that group from outside (tried).
"""

import os
import time
from collections.abc import Iterable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Final

from msgspec import Struct

from launcher.config import Limits
from launcher.errors import PodError
from launcher.places import Places

_PERIOD_US: Final = 100_000
_TRACKERS: Final = frozenset({"name=systemd"})
_REMOVAL_S: Final = 5.0


class Hierarchy(Struct, frozen=True):
    """A mounted hierarchy.

    Attributes:
        version: 1 or 2.
        top: where our groups begin: the mount point, or below it our own group.
        controllers: names of the controllers that live in it.
    """

    version: int
    top: Path
    controllers: frozenset[str]


def hierarchies() -> list[Hierarchy]:
    """Return the hierarchies mounted here, the cgroup2 one, if any, first."""
    mountinfo = Path("/proc/self/mountinfo").read_text()
    found = parse(mountinfo, Path("/proc/self/cgroup").read_text())
    return [_with_controllers(h) if h.version == 2 else h for h in found]


def _with_controllers(hierarchy: Hierarchy) -> Hierarchy:
    controllers = (hierarchy.top / "cgroup.controllers").read_text().split()
    return Hierarchy(2, hierarchy.top, frozenset(controllers))


def parse(mountinfo: str, cgroup: str) -> list[Hierarchy]:
    """Return the hierarchies in *mountinfo* (proc_pid_mountinfo(5)), each once, v2 first.

    Args:
        mountinfo: text of /proc/self/mountinfo.
        cgroup: text of /proc/self/cgroup (cgroups(7)), which gives our own groups.
    """
    own = {frozenset(c.split(",")): path for _, c, path in _fields(cgroup)}
    found: dict[frozenset[str], Hierarchy] = {}
    for line in mountinfo.splitlines():
        mount, _, filesystem = line.partition(" - ")
        root, mount_point = (field.replace("\\040", " ") for field in mount.split()[3:5])
        fstype, _, options = filesystem.split(" ", 2)
        if fstype == "cgroup2":
            found.setdefault(frozenset(), Hierarchy(2, Path(mount_point), frozenset()))
        elif fstype == "cgroup":
            controllers = next((c for c in own if c and c <= set(options.split(","))), None)
            if controllers:
                tracker = controllers <= _TRACKERS
                top = mount_point if tracker else _below(mount_point, root, own[controllers])
                found.setdefault(controllers, Hierarchy(1, Path(top), controllers))
    return sorted(found.values(), key=lambda h: -h.version)


def _fields(cgroup: str) -> list[list[str]]:
    return [line.split(":", 2) for line in cgroup.splitlines()]


def _below(mount_point: str, root: str, own: str) -> Path:
    """Return our own group *own*, as seen through a mount of *root*."""
    inside = os.path.relpath(own, root)
    return Path(mount_point) if inside.startswith("..") else Path(mount_point, inside)


def settings(limits: Limits, version: int) -> dict[str, list[tuple[str, str]]]:
    """Return what to write for *limits*: controller -> (file, value). A `?` marks what may lack."""
    found: dict[str, list[tuple[str, str]]] = {}
    if limits.memory_bytes is not None:
        value = str(limits.memory_bytes)
        found["memory"] = (
            [("memory.max", value), ("memory.swap.max?", "0")]
            if version == 2
            else [("memory.limit_in_bytes", value), ("memory.memsw.limit_in_bytes?", value)]
        )
    if limits.pids is not None:
        found["pids"] = [("pids.max", str(limits.pids))]
    if limits.cpus is not None:
        quota = str(int(limits.cpus * _PERIOD_US))
        found["cpu"] = (
            [("cpu.max", f"{quota} {_PERIOD_US}")]
            if version == 2
            else [("cpu.cfs_period_us", str(_PERIOD_US)), ("cpu.cfs_quota_us", quota)]
        )
    return found


def make(places: Places, name: str, limits: Limits) -> tuple[Path, ...]:
    """Make the groups of pod *name*, with its limits set. On failure none is left.

    Raises:
        PodError: there is no controller for a limit.
        OSError: a group cannot be made.
    """
    wanted = set(settings(limits, 2))
    group = Path(parent(places), f"{name}.{os.urandom(4).hex()}")
    made: list[Path] = []
    try:
        for hierarchy in hierarchies():
            here = hierarchy.controllers & wanted
            if hierarchy.version == 2 or here or hierarchy.controllers <= _TRACKERS:
                made.append(make_group(hierarchy, group, here))
                wanted -= here
                _set(made[-1], settings(limits, hierarchy.version), here)
        if wanted:
            raise PodError(f"limits: this host offers no controller for {', '.join(wanted)}")
    except (OSError, PodError):
        remove(made)
        raise
    return tuple(made)


def parent(places: Places) -> str:
    """Return the name of the group that holds those of all pods."""
    return f"autopod-{places.tag}" if places.tag else "autopod"


def make_group(hierarchy: Hierarchy, group: Path, controllers: Iterable[str]) -> Path:
    """Make *group*; another pod's end may remove their common parent in between."""
    path = hierarchy.top / group
    while True:
        path.parent.mkdir(exist_ok=True)
        with suppress(FileNotFoundError):
            if hierarchy.version == 2:
                _enable(hierarchy.top, controllers)
                _enable(path.parent, controllers)
            path.mkdir()
            return path


def _enable(path: Path, controllers: Iterable[str]) -> None:
    """Let the children of v2 group *path* have *controllers*."""
    for controller in controllers:
        try:
            (path / "cgroup.subtree_control").write_text(f"+{controller}")
        except OSError as e:
            raise PodError(
                f"limits: {path} does not pass controller {controller!r} on: {e.strerror}",
                'cgroups(7), "no internal processes": move the processes in it to a group below',
            ) from e


def _set(path: Path, values: dict[str, list[tuple[str, str]]], controllers: Iterable[str]) -> None:
    for file, value in (pair for c in controllers for pair in values[c]):
        target = path / file.rstrip("?")
        if target.exists() or not file.endswith("?"):
            target.write_text(value)


def kill(paths: Sequence[Path]) -> None:
    """Kill every process of the groups at once, where the kernel can (v2, since Linux v5.14)."""
    for path in paths:
        with suppress(FileNotFoundError, PermissionError):
            if (path / "cgroup.kill").exists():
                (path / "cgroup.kill").write_text("1")


def freezer(paths: Sequence[Path]) -> Path | None:
    """Return the file that stops (1) and resumes (0) what is in *paths*; None without cgroup2.

    Source: Documentation/admin-guide/cgroup-v2.rst, cgroup.freeze, since Linux v5.2.
    """
    return next(
        (path / "cgroup.freeze" for path in paths if (path / "cgroup.freeze").exists()), None
    )


def leftovers(places: Places, name: str) -> list[Path]:
    """Return every group that was ever made for pod *name* and is still there."""
    above = parent(places)
    return [p for h in hierarchies() for p in (h.top / above).glob(f"{name}.*") if p.is_dir()]


def remove(paths: Iterable[Path], within_s: float = _REMOVAL_S) -> None:
    """Remove the groups, which must have no living process; also the parent after the last.

    Raises:
        OSError: a group was still busy after *within_s* seconds.
    """
    deadline = time.monotonic() + within_s
    for path in paths:
        while not _removed(path) and time.monotonic() < deadline:
            time.sleep(0.002)
        with suppress(FileNotFoundError):
            path.rmdir()
        with suppress(OSError):
            path.parent.rmdir()


def _removed(path: Path) -> bool:
    """Remove group *path*; False while a process that has just died is still accounted to it."""
    try:
        path.rmdir()
    except FileNotFoundError:
        return True
    except OSError:
        return False
    return True
