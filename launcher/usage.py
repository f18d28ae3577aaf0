"""`launcher top`: what pods use of the machine, from their control groups.

Where a controller has no group of the pod (v1 groups are made for limits only), the pod's processes
are summed up instead.
"""

import os
import re
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path
from typing import Final

from msgspec import Struct

from launcher import enter, pods
from launcher.places import Places
from launcher.pods import Pod

_TICKS: Final = os.sysconf("SC_CLK_TCK")
_PAGE: Final = os.sysconf("SC_PAGE_SIZE")
_VICTIM: Final = re.compile(r"oom-kill:.*,task_memcg=([^,]*),task=(.*),pid=([0-9]+),uid=")


class UsageRow(Struct, frozen=True):
    """A running pod.

    *cpu* in seconds of all its life; *memory* and *limit* in KiB; the pressures: percentage of the
    last ten seconds in which some process waited for it (PSI), if the kernel tells;
    *oom_kills*: processes that the kernel killed for want of memory, if there is a limit;
    *oom_killed*: the last of them, as far back as the kernel's log goes.
    """

    pod: str
    processes: int
    cpu: float
    memory: int
    limit: int | None
    cpu_pressure: float | None
    memory_pressure: float | None
    io_pressure: float | None
    oom_kills: int | None
    oom_killed: str | None


def running(places: Places) -> list[UsageRow]:
    """Return what each running pod uses now."""
    found = (pods.find(places, name) for name in pods.names(places))
    return [of(pod) for pod in found if pod is not None]


def of(pod: Pod) -> UsageRow:
    """Return what a running pod uses now."""
    texts = _texts(pod.cgroups)
    pids = [pod.init_pid, *enter.pids(pod)]
    spent, resident = _of_processes(pids)
    limit = _number(texts, "memory.max", "memory.limit_in_bytes")
    memory = _number(texts, "memory.current", "memory.usage_in_bytes")
    cpu = counter(texts.get("cpu.stat", ""), "usage_usec")
    events = texts.get("memory.events") or texts.get("memory.oom_control", "")
    kills = counter(events, "oom_kill")
    return UsageRow(
        pod.name,
        len(pids) - 1,
        round(cpu / 1e6 if cpu is not None else spent, 2),
        (resident if memory is None else memory) // 1024,
        None if limit is None else limit // 1024,
        average(texts.get("cpu.pressure", "")),
        average(texts.get("memory.pressure", "")),
        average(texts.get("io.pressure", "")),
        kills,
        victim(_kernel_log(), pod.cgroups) if kills else None,
    )


def _texts(groups: Iterable[Path]) -> dict[str, str]:
    """Return the files of the groups that matter here: name -> content; those that are there."""
    names = (
        "cpu.stat", "cpu.pressure", "memory.pressure", "io.pressure", "memory.max",
        "memory.current", "memory.events", "memory.limit_in_bytes", "memory.usage_in_bytes",
        "memory.oom_control",
    )  # fmt: skip
    found: dict[str, str] = {}
    for group in groups:  # the cgroup2 one first: its files are looked at first
        for name in names:
            with suppress(OSError):
                found.setdefault(name, (group / name).read_text())
    return found


def _number(texts: dict[str, str], *names: str) -> int | None:
    """Return the number in the first of the files that has one ("max" is none)."""
    for name in names:
        if texts.get(name, "").strip().isdecimal():
            return int(texts[name])
    return None


def counter(text: str, name: str) -> int | None:
    """Return the value of line "NAME VALUE" of *text*. Pure."""
    for line in text.splitlines():
        key, _, value = line.partition(" ")
        if key == name:
            return int(value)
    return None


def victim(log: Iterable[str], groups: Iterable[Path]) -> str | None:
    """Return name and host pid of the process in *groups* that the kernel killed last. Pure.

    Source: mm/oom_kill.c, dump_oom_victim() and oom_kill_process().
    """
    names = {f"{group.parent.name}/{group.name}" for group in groups}
    found = None
    for line in log:
        match = _VICTIM.search(line)
        if match and any(match[1].endswith(name) for name in names):
            found = f"{match[2]} ({match[3]})"
    return found


def _kernel_log() -> list[str]:
    """Return the kernel's log; nothing where it cannot be read. Source: kmsg(4)."""
    lines = []
    with suppress(OSError):
        fd = os.open("/dev/kmsg", os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        try:
            while True:  # a record at a time; at the end: EAGAIN
                with suppress(BrokenPipeError):  # it was overwritten meanwhile
                    lines.append(os.read(fd, 8192).decode("utf-8", "replace"))
        finally:
            os.close(fd)
    return lines


def average(text: str) -> float | None:
    """Return `avg10` of the line "some" of a pressure file. Pure.

    Source: Documentation/accounting/psi.rst.
    """
    for line in text.splitlines():
        words = line.split()
        if words[0] == "some":
            return float(words[1].removeprefix("avg10="))
    return None


def _of_processes(pids: Iterable[int]) -> tuple[float, int]:
    """Return seconds of processor time and resident bytes of living processes."""
    ticks, pages = 0, 0
    for pid in pids:
        with suppress(FileNotFoundError, ProcessLookupError):
            fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
            ticks += int(fields[11]) + int(fields[12])
            pages += int(fields[21])
    return ticks / _TICKS, pages * _PAGE
