"""Event polls: epoll(7).

An entry of an epoll is a file and the number it had when it was added. The number may mean
something else by now, or nothing: kcmp(2) tells which file is meant. Numbers only matter when an
entry is added, so that a short-lived child of the workshop can add them all, each target under
its number there. Only what the process itself must replace (a pidfd, …) is added by the process,
and a signalfd, for it tells of the signals of whoever adds it (fs/signalfd.c, signalfd_poll()).

Not carried over, for the kernel does not tell: that an edge-triggered event was already reported
(it is reported once more), and that a one-shot entry was disabled for errors and hang-ups, too.
"""

import fcntl
import os
import re
import select
from typing import Final

import msgspec

from ckpt.kinds import abi, flags, late, signalfd
from ckpt.kinds.protocol import Dump, Remote, Source, Workshop
from ckpt.model import OpenFile

_ENTRY: Final = re.compile(
    r"^tfd: *(\d+) events: *([0-9a-f]+) data: *([0-9a-f]+) *pos:-?\d+ ino:([0-9a-f]+)",
    re.MULTILINE,
)
_EVENTS: Final = {
    "in": select.EPOLLIN,
    "pri": select.EPOLLPRI,
    "out": select.EPOLLOUT,
    "err": select.EPOLLERR,
    "hup": select.EPOLLHUP,
    "rdnorm": select.EPOLLRDNORM,
    "rdband": select.EPOLLRDBAND,
    "wrnorm": select.EPOLLWRNORM,
    "wrband": select.EPOLLWRBAND,
    "msg": select.EPOLLMSG,
    "rdhup": select.EPOLLRDHUP,
    "nval": 0x20,  # <uapi/linux/eventpoll.h>: EPOLLNVAL
    "exclusive": select.EPOLLEXCLUSIVE,
    "wakeup": 1 << 29,
    "oneshot": select.EPOLLONESHOT,
    "et": 1 << 31,
}


class Entry(msgspec.Struct, frozen=True):
    """A file in the interest list.

    Attributes:
        number: the descriptor that it was added as.
        file: OpenFile.id.
        events: as epoll_ctl(2) names them, in lower case, without the prefix.
        data: what the program gets back with an event.
        late: the process itself must add it; it has the file under *number*.
    """

    number: int
    file: int
    events: list[str]
    data: int
    late: bool


class State(msgspec.Struct, frozen=True):
    """The interest list."""

    entries: list[Entry]


def recognises(source: Source, dump: Dump) -> bool:
    """See protocol.FileKind."""
    return source.link == "anon_inode:[eventpoll]"


def collect(source: Source, dump: Dump) -> State | None:
    """See protocol.FileKind."""
    entries: list[Entry] = []
    seen: dict[int, int] = {}
    for match in _ENTRY.finditer(source.fdinfo):
        number = int(match[1])
        nth = seen[number] = seen.get(number, -1) + 1
        target = _target(source, number, nth, int(match[4], 16), dump)
        if target is None:
            dump.refuse(source, f"it watches a file (as {number}) that no process has open")
            return None
        try:
            events = flags.bit_names(int(match[2], 16), _EVENTS)
        except ValueError as e:
            dump.refuse(source, f"it watches descriptor {number} with {e}")
            return None
        is_late = late.is_late(target) or signalfd.recognises(target, dump)
        if is_late and dump.file_id(source.host_pid, number) != target.id:
            dump.refuse(source, f"descriptor {number}, which it watches, is another file by now")
            return None
        entries.append(Entry(number, target.id, events, int(match[3], 16), is_late))
    return State(entries)


def rebuild(state: State, file: OpenFile, workshop: Workshop) -> int:
    """See protocol.FileKind."""
    epoll = select.epoll()
    fd = os.dup(epoll.fileno())
    epoll.close()
    return fd


def complete(state: State, fd: int, workshop: Workshop) -> None:
    """See protocol.Completing."""
    pairs = [(entry, workshop.file(entry.file)) for entry in state.entries if not entry.late]
    if not pairs:
        return
    child = os.fork()
    if child == 0:
        os._exit(_add(fd, pairs))
    _, status = os.waitpid(child, 0)
    code = os.waitstatus_to_exitcode(status)
    if code:
        raise OSError(code, f"epoll_ctl: {os.strerror(code)}")


def finish(state: State, file: OpenFile, fd: int, remote: Remote) -> None:
    """See protocol.Finishing."""
    for entry in state.entries:
        if entry.late:
            event = abi.epoll_event(flags.bits(entry.events, _EVENTS), entry.data)
            try:
                remote.syscall("epoll_ctl", fd, abi.EPOLL_CTL_ADD, entry.number, event)
            except FileExistsError:  # another descriptor of the same epoll
                continue


def _add(fd: int, pairs: list[tuple[Entry, int]]) -> int:
    """Add the entries, in a descriptor table of our own; return 0 or an errno."""
    top = max(fd, *(max(entry.number, target) for entry, target in pairs)) + 1
    try:
        epoll_fd = fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, top)
        held = [fcntl.fcntl(target, fcntl.F_DUPFD_CLOEXEC, top) for _, target in pairs]
        for (entry, _), target in zip(pairs, held, strict=True):
            os.dup2(target, entry.number, inheritable=False)
            abi.epoll_ctl_add(epoll_fd, entry.number, flags.bits(entry.events, _EVENTS), entry.data)
    except OSError as e:
        return e.errno or 1
    return 0


def _target(source: Source, number: int, nth: int, inode: int, dump: Dump) -> Source | None:
    """Return the open file that the *nth* entry called *number* means; None if nobody has it."""
    sources = dump.sources()
    guess = dump.file_id(source.host_pid, number)
    likely = [sources[guess]] if guess is not None else []
    others = (s for s in sources if s.fd >= 0 and s.stat.st_ino == inode)
    for candidate in (*likely, *others):
        if abi.is_epoll_target(candidate.local_fd, source.local_fd, number, nth):
            return candidate
    return None
