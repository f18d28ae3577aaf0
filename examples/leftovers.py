"""What an instance of the project has on this host: found from outside, by its prefix.

Nothing of the project is used to find it, so that a mistake there cannot hide what it left.
"""

import contextlib
import hashlib
import os
import re
import signal
import subprocess
from pathlib import Path


def tag(prefix: Path) -> str:
    """The mark that global names of the instance carry (launcher/places.py)."""
    return hashlib.sha256(os.fsencode(prefix)).hexdigest()[:4]


def mounts(prefix: Path) -> list[str]:
    """Mount points below *prefix*, deepest first."""
    points = [
        re.sub(r"\\([0-7]{3})", lambda m: chr(int(m[1], 8)), line.split()[4])
        for line in Path("/proc/self/mountinfo").read_text().splitlines()
    ]
    return sorted((p for p in points if Path(p).is_relative_to(prefix)), reverse=True)


def control_groups(prefix: Path) -> list[Path]:
    """Control groups of the instance in every hierarchy, deepest first."""
    roots = [
        Path(line.split()[4])
        for line in Path("/proc/self/mountinfo").read_text().splitlines()
        if " - cgroup" in line
    ]
    pattern = f"*autopod*{tag(prefix)}*"
    found = {group for root in roots for group in _matching(root, pattern)}
    below = {Path(directory) for group in found for directory, _, _ in os.walk(group)}
    return sorted(below, key=lambda path: len(path.parts), reverse=True)


def _matching(root: Path, pattern: str) -> list[Path]:
    with contextlib.suppress(OSError):  # another instance's group may go while we look
        return [path for path in root.rglob(pattern) if path.is_dir()]
    return []


def processes(prefix: Path) -> dict[int, str]:
    """Host process ids and command lines: the pods' processes, and commands and daemons."""
    found = {}
    for group in control_groups(prefix):
        with contextlib.suppress(OSError):
            for pid in (group / "cgroup.procs").read_text().split():
                found[int(pid)] = _command(int(pid))
    mark = b"AUTOPOD_PREFIX=" + os.fsencode(prefix)
    for entry in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            if mark in (entry / "environ").read_bytes().split(b"\0"):
                found[int(entry.name)] = _command(int(entry.name))
    found.pop(os.getpid(), None)
    return found


def _command(pid: int) -> str:
    with contextlib.suppress(OSError):
        return Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode().strip()
    return "?"


def links(prefix: Path) -> list[str]:
    """Network interfaces of the instance in this network namespace."""
    shown = subprocess.run(["ip", "-o", "link"], capture_output=True, text=True, check=True).stdout
    names = [line.split(": ")[1].partition("@")[0] for line in shown.splitlines()]
    return [name for name in names if name.startswith(f"ap{tag(prefix)}")]


def tables(prefix: Path) -> list[str]:
    """Tables of the instance's packet filter rules in this network namespace."""
    shown = subprocess.run(["nft", "list", "tables"], capture_output=True, text=True, check=True)
    return [line for line in shown.stdout.splitlines() if f"autopod_{tag(prefix)}" in line]


def everything(prefix: Path) -> list[str]:
    """All of it, one line each; empty if nothing is left."""
    return [
        *(f"process {pid}: {command}" for pid, command in processes(prefix).items()),
        *(f"mount {point}" for point in mounts(prefix)),
        *(f"control group {path}" for path in control_groups(prefix)),
        *(f"network interface {name}" for name in links(prefix)),
        *tables(prefix),
    ]


def remove(prefix: Path) -> None:
    """End and undo all of it, as far as that goes."""
    for pid in processes(prefix):
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    for point in mounts(prefix):
        subprocess.run(["umount", "--lazy", point], capture_output=True, check=False)
    for group in control_groups(prefix):
        with contextlib.suppress(OSError):
            group.rmdir()
    for table in tables(prefix):
        subprocess.run(["nft", "delete", *table.split()], capture_output=True, check=False)
    for name in links(prefix):
        subprocess.run(["ip", "link", "del", name], capture_output=True, check=False)
