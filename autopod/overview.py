"""`autopod list`: the pods of this host, gathered and printed."""

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import msgspec

from autopod.errors import Refused
from ckpt import stack, stackcommand
from launcher import config, enter, pods, tables
from launcher.places import Places

State = Literal["running", "stopped", "unmounted", "leaving"]


class Row(msgspec.Struct, frozen=True):
    """One pod.

    Attributes:
        pod: its name.
        state: "stopped" has a mounted root and no process; "unmounted" is known, no more;
            "leaving" was given to another host, which has not confirmed it.
        address: `A.B.C.D/N`; None without network.
        processes: how many, its init not counted.
        memory_bytes: proportional set size of all of them (proc(5), smaps_rollup).
        uptime_s: seconds since its init was started; None unless running.
        lower: base directories, topmost first.
        problem: why the configuration cannot be read; None if it can.
    """

    pod: str
    state: State
    address: str | None
    processes: int
    memory_bytes: int
    uptime_s: int | None
    lower: list[str]
    problem: str | None = None


def gather(places: Places) -> list[Row]:
    """Return the pods of this host by name. A pod that changes meanwhile may be shown half."""
    return [_row(places, known) for known in tables.pods_known(places)]


def check_known(places: Places, pod: str) -> None:
    """Raise Refused unless this host knows *pod*."""
    if pod not in pods.names(places):
        raise Refused(f"there is no pod {pod!r}", "autopod list shows those that are here")


def _row(places: Places, known: tables.PodRow) -> Row:
    running = pods.find(places, known.pod)
    lower = _lower(places, known.pod)
    return Row(
        pod=known.pod,
        state=_state(places, known.pod, running is not None, lower is not None),
        address=known.address,
        processes=known.processes,
        memory_bytes=sum(map(_memory_bytes, enter.pids(running))) if running else 0,
        uptime_s=known.age,
        lower=lower or [],
        problem=_problem(places, known.pod),
    )


def _state(places: Places, name: str, running: bool, mounted: bool) -> State:
    if running:
        return "running"
    if places.departure(name).exists():
        return "leaving"
    return "stopped" if mounted else "unmounted"


def _lower(places: Places, name: str) -> list[str] | None:
    """The base directories of a mounted pod; None if it is not mounted."""
    try:
        return [layer.path for layer in stack.status(places, name).lower]
    except stackcommand.StackError:
        return None


def _problem(places: Places, name: str) -> str | None:
    try:
        config.load(places, name)
    except config.ConfigError as e:
        return str(e)
    return None


def _memory_bytes(pid: int) -> int:
    """Proportional set size of process *pid*; 0 if it is gone, or a zombie."""
    try:
        text = Path(f"/proc/{pid}/smaps_rollup").read_text()
    except OSError:
        return 0
    found = re.search(r"^Pss:\s+(\d+) kB$", text, re.MULTILINE)
    return int(found[1]) * 1024 if found else 0


def as_json(rows: Sequence[msgspec.Struct]) -> str:
    """Return *rows* as a JSON array for a program."""
    return msgspec.json.format(msgspec.json.encode(rows), indent=2).decode() + "\n"


def table(rows: list[Row]) -> str:
    """Return *rows* as text for a person. Pure."""
    lines = [("POD", "STATE", "ADDRESS", "PROCESSES", "MEMORY", "UP", "BASE")]
    lines += [
        (
            row.pod,
            row.state,
            row.address or "-",
            str(row.processes),
            f"{row.memory_bytes / 2**20:.1f} MiB" if row.processes else "-",
            duration(row.uptime_s),
            row.problem or " ".join(row.lower) or "-",
        )
        for row in rows
    ]
    return columns(lines)


def columns(lines: Sequence[tuple[str, ...]]) -> str:
    """Return *lines* of as many cells each, the cells below each other. Pure."""
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    return "".join(
        "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip()
        + "\n"
        for line in lines
    )


def duration(seconds: int | None) -> str:
    """Return *seconds* in its two greatest units: `3d 4h`. Pure."""
    if seconds is None:
        return "-"
    sizes = ((86400, "d"), (3600, "h"), (60, "m"), (1, "s"))
    first = next((i for i, (size, _) in enumerate(sizes) if seconds >= size), len(sizes) - 1)
    parts = []
    for size, unit in sizes[first : first + 2]:
        parts.append(f"{seconds // size}{unit}")
        seconds %= size
    return " ".join(parts)
