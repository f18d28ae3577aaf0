"""What `launcher list` and `launcher ps` say, as rows, for people and for programs."""

import os
import sys
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import msgspec

from launcher import addresses, config, enter, pods, userns
from launcher.commandline import printable
from launcher.errors import PodError
from launcher.places import Places, check_pod_name
from launcher.pods import Pod
from launcher.toml import ConfigError

_TICKS = os.sysconf("SC_CLK_TCK")
_PAGE = os.sysconf("SC_PAGE_SIZE")


class PodRow(msgspec.Struct, frozen=True):
    """A pod: *init* is a pid of the host, *age* is in seconds."""

    pod: str
    state: str
    init: int | None
    processes: int
    address: str | None
    age: int | None


class ProcessRow(msgspec.Struct, frozen=True):
    """A process: *host_pid* on the host, *pid* in the pod; *rss* in KiB, *age* in seconds.

    *user* is the pod's number.
    """

    host_pid: int
    pid: int
    parent: int
    user: int
    state: str
    rss: int
    age: int
    command: str


def pods_known(places: Places) -> list[PodRow]:
    """Return all pods that this host knows."""
    return [_pod_row(places, name) for name in pods.names(places)]


def _pod_row(places: Places, name: str) -> PodRow:
    pod = pods.find(places, name)
    address = _address(places, name)
    if pod is None:
        return PodRow(name, "stopped", None, 0, address, None)
    age = int(time.clock_gettime(time.CLOCK_BOOTTIME) - pod.init_start / _TICKS)
    return PodRow(name, "running", pod.init_pid, len(enter.pids(pod)), address, age)


def _address(places: Places, name: str) -> str | None:
    """Return what the pod has, or will have where its configuration says so."""
    found = addresses.identity_of(places, name)
    if found is None:
        with suppress(ConfigError):
            return config.load(places, name).network.address
        return None
    return found.address or found.address6


def processes(places: Places, name: str) -> list[ProcessRow]:
    """Return the processes of pod *name*, its init first.

    Raises:
        PodError: it is not running.
    """
    pod = pods.find(places, check_pod_name(name))
    if pod is None:
        raise PodError(f"pod {name!r} is not running")
    rows = []
    for pid in (pod.init_pid, *enter.pids(pod)):
        with suppress(FileNotFoundError, ProcessLookupError):
            rows.append(_process_row(pod, pid))
    return rows


def _process_row(pod: Pod, pid: int) -> ProcessRow:
    proc = Path(f"/proc/{pid}")
    status = dict(line.split(":\t", 1) for line in (proc / "status").read_text().splitlines())
    fields = (proc / "stat").read_text().rpartition(")")[2].split()
    command = (proc / "cmdline").read_bytes().rstrip(b"\0").replace(b"\0", b" ")
    parent = int(fields[1])
    return ProcessRow(
        host_pid=pid,
        pid=int(status["NSpid"].split()[-1]),
        parent=1 if parent == pod.init_pid else _pid_inside(parent),
        user=int(status["Uid"].split()[0]) - (userns.base(pod.init_pid) or 0),
        state=fields[0],
        rss=int(fields[21]) * _PAGE // 1024,
        age=int(time.clock_gettime(time.CLOCK_BOOTTIME) - int(fields[19]) / _TICKS),
        command=command.decode("utf-8", "replace") or f"[{status['Name']}]",
    )


def _pid_inside(pid: int) -> int:
    """Return the pid in the pod of process *pid*; 0 if it is outside."""
    with suppress(FileNotFoundError, ProcessLookupError):
        for line in Path(f"/proc/{pid}/status").read_text().splitlines():
            if line.startswith("NSpid:"):
                numbers = line.split()[1:]
                return int(numbers[-1]) if len(numbers) > 1 else 0
    return 0


def show(rows: Sequence[object], columns: type[Any], *, as_json: bool) -> None:
    """Write *rows* to standard output, as an array of objects or as a table with a header."""
    if as_json:
        text = msgspec.json.format(msgspec.json.encode(rows), indent=2).decode() + "\n"
    else:
        text = "".join(f"{line}\n" for line in _table(rows, columns))
    sys.stdout.write(text)


def _table(rows: Sequence[object], columns: type[Any]) -> list[str]:
    names = columns.__struct_fields__
    cells = [[_cell(getattr(row, name)) for name in names] for row in rows]
    header = [name.replace("_", " ").upper() for name in names]
    widths = [max(map(len, column)) for column in zip(header, *cells, strict=True)]
    lines = [header, *cells]
    return [_line(cells, widths) for cells in lines]


def _line(cells: list[str], widths: list[int]) -> str:
    return "  ".join(c.ljust(w) for c, w in zip(cells, widths, strict=True)).rstrip()


def _cell(value: object) -> str:
    return "-" if value is None else printable(str(value))
