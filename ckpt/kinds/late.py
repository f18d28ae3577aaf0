"""Files that only the process itself can open, for they depend on who opens them.

The workshop puts a placeholder in their place; when the process stands, it opens the real file
and moves it over the placeholder. Processes that shared one description then have one each.
"""

import os
import re
import stat as mode_bits
from typing import Final

from ckpt.kinds.protocol import Remote, Source

PIDFD: Final = "anon_inode:[pidfd]"
OF_PROCESS: Final = re.compile(r"/proc/(\d+)( \(deleted\))?(/.*)?")
NAMESPACE: Final = re.compile(r"(cgroup|ipc|mnt|net|pid|time|user|uts):\[\d+\]")
_TTY: Final = os.makedev(5, 0)
_FD_CLOEXEC: Final = 1


def is_late(source: Source) -> bool:
    """Is *source* such a file: a pidfd, /dev/tty, or of /proc/PID?"""
    of_process = OF_PROCESS.fullmatch(source.link) or NAMESPACE.fullmatch(source.link)
    return source.link == PIDFD or is_tty(source.stat) or of_process is not None


def is_tty(stat: os.stat_result) -> bool:
    """Is it /dev/tty, the controlling terminal of whoever opens it?"""
    return mode_bits.S_ISCHR(stat.st_mode) and stat.st_rdev == _TTY


def placeholder() -> int:
    """Return a descriptor to hold the place."""
    return os.open("/", os.O_PATH | os.O_CLOEXEC)


def replace(fd: int, new: int, remote: Remote) -> None:
    """Move the process's descriptor *new* to *fd*, which keeps its close-on-exec flag."""
    cloexec = remote.syscall("fcntl", fd, 1, 0) & _FD_CLOEXEC  # F_GETFD
    remote.syscall("dup3", new, fd, os.O_CLOEXEC if cloexec else 0)
    remote.syscall("close", new)
