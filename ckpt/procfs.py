"""What /proc/PID says, parsed. Text in, records out; only the functions with a pid read files.

Source: proc(5), and fs/proc/task_mmu.c for VmFlags.
"""

import functools
import os
import re
from typing import Final

from msgspec import Struct

_MAPPING: Final = re.compile(
    rb"([0-9a-f]+)-([0-9a-f]+) (....) ([0-9a-f]+) ([0-9a-f]+:[0-9a-f]+) (\d+) *(.*)"
)

_FIELD: Final = re.compile(r"([^:\n]+):[ \t]*(.*)\n")


class Mapping(Struct):
    """A virtual memory area.

    Attributes:
        start: first address.
        end: address after the last.
        mode: four of "rwxs" and "p", "-" as in /proc/PID/maps.
        offset: in the file, in bytes.
        device: number of the file's device as text.
        inode: 0 where no file is mapped.
        name: path, or a name such as b"[heap]".
        flags: two-letter VmFlags.
    """

    start: int
    end: int
    mode: str
    offset: int
    device: str
    inode: int
    name: bytes
    flags: frozenset[str] = frozenset()

    @property
    def shared(self) -> bool:
        """Is it MAP_SHARED?"""
        return self.mode[3] == "s"

    @property
    def link(self) -> str:
        """Its name in /proc/PID/map_files."""
        return f"{self.start:x}-{self.end:x}"


def parse_maps(text: bytes) -> list[Mapping]:
    """Return the mappings of /proc/PID/maps, without flags."""
    return [_mapping(line, frozenset()) for line in text.splitlines()]


def parse_smaps(text: bytes) -> list[Mapping]:
    """Return the mappings of /proc/PID/smaps.

    The pod may stand still: of some 24 lines for each the first and the last are looked at only.
    """
    head, *rest = text.split(b"\nVmFlags:")
    mappings = []
    for part in rest:
        flags, _, following = part.partition(b"\n")
        mappings.append(_mapping(head, _flags(flags)))
        head = following
    return mappings


def _mapping(text: bytes, flags: frozenset[str]) -> Mapping:
    """Return the mapping that the first line of *text* describes."""
    match = _MAPPING.match(text)
    if match is None:
        raise ValueError(f"not a line of /proc/PID/maps: {text[:80]!r}")
    start, end, mode, offset, device, inode, name = match.groups()
    places = (int(start, 16), int(end, 16), mode.decode(), int(offset, 16))
    return Mapping(*places, device.decode(), int(inode), name, flags)


@functools.lru_cache
def _flags(words: bytes) -> frozenset[str]:
    return frozenset(words.decode().split())


def parse_status(text: str) -> dict[str, str]:
    """Return the fields of /proc/PID/status."""
    return dict(_FIELD.findall(text))


def parse_stat(text: str) -> list[str]:
    """Return the fields of /proc/PID/stat so that index N is field N of proc(5); 0 is unused."""
    before, _, after = text.rpartition(")")
    pid, _, command = before.partition(" (")
    return ["", pid, command, *after.split()]


class Timer(Struct, frozen=True):
    """A POSIX timer: timer_create(2)."""

    id: int
    signal: int
    value: int
    notify: str
    tid: int | None
    clock: int


def parse_timers(text: str) -> list[Timer]:
    """Return the timers of /proc/PID/timers.

    Source: fs/proc/base.c, show_timer().
    """
    timers = []
    for block in re.split(r"^ID: ", text, flags=re.MULTILINE)[1:]:
        identity, signal_line, notify_line, clock_line = block.splitlines()
        number, value = signal_line.removeprefix("signal: ").split("/")
        how, target = notify_line.removeprefix("notify: ").split("/")
        kind, _, tid = target.partition(".")
        timers.append(
            Timer(
                int(identity),
                int(number),
                int(value, 16),
                how,
                int(tid) if kind == "tid" else None,
                int(clock_line.removeprefix("ClockID: ")),
            )
        )
    return timers


_LIMIT_NAMES: Final = {
    "Max cpu time": "cpu",
    "Max file size": "fsize",
    "Max data size": "data",
    "Max stack size": "stack",
    "Max core file size": "core",
    "Max resident set": "rss",
    "Max processes": "nproc",
    "Max open files": "nofile",
    "Max locked memory": "memlock",
    "Max address space": "as",
    "Max file locks": "locks",
    "Max pending signals": "sigpending",
    "Max msgqueue size": "msgqueue",
    "Max nice priority": "nice",
    "Max realtime priority": "rtprio",
    "Max realtime timeout": "rttime",
}


def parse_limits(text: str) -> dict[str, tuple[int | None, int | None]]:
    """Return soft and hard limit by the name of its RLIMIT_*, in lower case; None is unlimited."""
    limits = {}
    for line in text.splitlines()[1:]:
        soft, hard = line[26:].split()[:2]
        limits[_LIMIT_NAMES[line[:26].strip()]] = (_limit(soft), _limit(hard))
    return limits


def _limit(word: str) -> int | None:
    return None if word == "unlimited" else int(word)


def read(host_pid: int, name: str) -> str:
    """Return the text of /proc/HOST_PID/NAME; undecodable bytes are kept as surrogates.

    Raises:
        OSError: the process is gone, or may not be looked at.
    """
    return os.fsdecode(read_bytes(host_pid, name))


def read_bytes(host_pid: int, name: str) -> bytes:
    """Return the bytes of /proc/HOST_PID/NAME."""
    fd = os.open(f"/proc/{host_pid}/{name}", os.O_RDONLY | os.O_CLOEXEC)
    try:
        pieces = []
        while piece := os.read(fd, 1 << 16):
            pieces.append(piece)
    finally:
        os.close(fd)
    return b"".join(pieces)


def write(host_pid: int, name: str, text: str) -> None:
    """Write *text*, by one call, to /proc/HOST_PID/NAME.

    Raises:
        OSError: the process is gone, or the kernel does not take it.
    """
    fd = os.open(f"/proc/{host_pid}/{name}", os.O_WRONLY | os.O_CLOEXEC)
    try:
        os.write(fd, text.encode())
    finally:
        os.close(fd)


def threads(host_pid: int) -> list[int]:
    """Return the ids of the threads of a process in the caller's pid namespace, leader first."""
    try:
        return sorted(map(int, os.listdir(f"/proc/{host_pid}/task")), key=lambda t: t != host_pid)
    except (FileNotFoundError, ProcessLookupError):
        return []


def children(tid: int) -> set[int]:
    """Return the ids of the children that a thread has made, as threads() does.

    Raises:
        OSError: it is gone.
    """
    return set(map(int, read(tid, f"task/{tid}/children").split()))


def view(host_pid: int) -> int | None:
    """Return the first thread of a process that lives, the leader if it does; None: a zombie.

    /proc/PID of a first thread that has ended before others shows nothing of what these share, its
    memory and its open files; that of another thread does.
    """
    for tid in threads(host_pid):
        if not is_dead(tid):
            return tid
    return None


def is_dead(tid: int) -> bool:
    """Is the thread a zombie or gone?"""
    try:
        return parse_stat(read(tid, f"task/{tid}/stat"))[3] in {"Z", "X"}
    except OSError:
        return True


def inner_pid(status: dict[str, str], field_name: str = "NSpid") -> int:
    """Return an id (NSpid, NSpgid, NSsid) as the innermost pid namespace numbers it."""
    return int(status[field_name].split()[-1])
