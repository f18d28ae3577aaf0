"""The controlling terminal of a session, and its foreground group: credentials(7), ioctl_tty(2).

It belongs to the session's processes one by one: each inherits it from the one that cloned it.
So the session's leader takes it right after setsid(2), before it has children; the foreground
group is set when all processes exist.
"""

import os
import sys
from typing import Final

import msgspec

from ckpt.kinds import abi, location, procinfo, pty
from ckpt.kinds.protocol import Dump, Remote

_TIOCSCTTY: Final = 0x540E
_TIOCSPGRP: Final = 0x5410
_FIRST_MAJOR, _LAST_MAJOR = 136, 143


class ProcessState(msgspec.Struct, frozen=True):
    """Of a session's leader.

    Attributes:
        pty: the object.
        foreground: process group id in the pod; None if that group is not the pod's.
    """

    pty: int
    foreground: int | None


def collect_process(host_pid: int, dump: Dump) -> ProcessState | None:
    """See protocol.ProcessKind."""
    with open(f"/proc/{host_pid}/stat", "rb") as stat:
        session, device, foreground = procinfo.parse_terminal(stat.read())
    if session != host_pid or not device:
        return None
    # fs/proc/array.c prints new_encode_dev(), which os.major() and os.minor() take apart.
    major, minor = os.major(device), os.minor(device)
    if not _FIRST_MAJOR <= major <= _LAST_MAJOR:
        dump.refuse_process(host_pid, "controlling terminal", "it is not a pseudo-terminal")
        return None
    index = (major - _FIRST_MAJOR) * 256 + minor
    try:
        number = _pair(index, dump)
    except (OSError, ValueError) as e:
        dump.refuse_process(
            host_pid,
            "controlling terminal",
            f"pseudo-terminal {index} is not the pod's ({e})",
            "start the program with `launcher start`, or with `launcher run -t`",
        )
        return None
    return ProcessState(number, dump.pid_in_pod(foreground) if foreground > 0 else None)


def take(state: ProcessState, pair: pty.ObjectState, remote: Remote) -> None:
    """Have a new session leader take its terminal."""
    path = pty.slave_path(pair) + b"\0"
    fd = remote.syscall("openat", abi.AT_FDCWD, path, os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC, 0)
    try:
        remote.syscall("ioctl", fd, _TIOCSCTTY, 0)
    finally:
        remote.syscall("close", fd)


def finish_process(state: ProcessState, remote: Remote) -> None:
    """See protocol.ProcessKind."""
    if state.foreground is None:
        return
    group = state.foreground.to_bytes(4, sys.byteorder)
    try:
        fd = remote.syscall("openat", abi.AT_FDCWD, b"/dev/tty\0", os.O_RDWR | os.O_CLOEXEC, 0)
    except OSError:  # its root has no such name: then it has the terminal itself
        remote.syscall("ioctl", 0, _TIOCSPGRP, group)
        return
    remote.syscall("ioctl", fd, _TIOCSPGRP, group)
    remote.syscall("close", fd)


def _pair(index: int, dump: Dump) -> int:
    """Return the object of the pair, even if no process has an end open."""
    path = pty.path_of(index, dump)
    fd = location.open_in_pod(dump.pod_root_fd, path, os.O_RDWR | os.O_NOCTTY | os.O_NONBLOCK)
    try:
        return pty.collect_pair(fd, index, dump)
    finally:
        os.close(fd)
