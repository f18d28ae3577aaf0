"""The connection to the kernel: mounting it, and taking it over from a daemon that has died.

The kernel begins a connection with an INIT request, once. libfuse must see one, too, whenever a
daemon begins. So each daemon first gives libfuse one end of a socket pair in the place of
/dev/fuse, sends it the INIT request that was kept since the mount, then the requests that the
kernel sends again, and at last puts the descriptor of /dev/fuse itself in the socket's place.

Source: libfuse 3.14, lib/mount_util.c, fuse_mnt_parse_fuse_fd(); fs/fuse/dev.c, fuse_resend()
(Linux >= 6.9), fuse_dev_do_read(), v6.12.
"""

import collections
import errno
import logging
import os
import select
import socket
from collections.abc import Callable
from pathlib import Path

import pyfuse3

from stackfs import abi, requests
from stackfs.mounts import FSTYPE
from stackfs.requests import Request

log = logging.getLogger(__name__)

_SO_SNDBUFFORCE = 32
_WANTED = requests.DONT_MASK | requests.CACHE_SYMLINKS | requests.HANDLE_KILLPRIV_V2
_UNWANTED = requests.ATOMIC_O_TRUNC
_NOTHING = frozenset({errno.ENODEV, errno.ENOENT, errno.EINTR, errno.EAGAIN})
"""The mount has gone, or the request was taken back."""

_OPTIONS = "rootmode=40000,user_id=0,group_id=0,allow_other,default_permissions"


def mount(pod: str, point: Path) -> tuple[int, bytes]:
    """Mount a file system at *point*; return its /dev/fuse descriptor and INIT request.

    Nothing answers yet.

    Source: Documentation/filesystems/fuse.rst, "Mount options".
    """
    fd = os.open("/dev/fuse", os.O_RDWR | os.O_CLOEXEC)
    try:
        abi.mount(pod, os.fspath(point), FSTYPE, f"fd={fd},{_OPTIONS}")
        return fd, os.read(fd, requests.MAX_BYTES)
    except BaseException:
        os.close(fd)
        raise


def resent(fuse_fd: int) -> list[Request]:
    """Have the kernel send again what was taken and not answered; return that.

    The kernel puts it before everything else, but for what is unordered. The first request after
    it has been read when it is found to be none of them, and is the last one returned.
    """
    try:
        os.write(fuse_fd, requests.notification(abi.FUSE_NOTIFY_RESEND))
    except OSError as e:
        if e.errno == errno.EINVAL:
            log.warning("before Linux 6.9: who waits for the daemon that died, waits forever")
        return []  # else the mount has gone, which the main loop will find
    found: list[Request] = []
    poll = select.poll()
    poll.register(fuse_fd, select.POLLIN)
    while poll.poll(0) == [(fuse_fd, select.POLLIN)]:
        try:
            request = Request.parse(os.read(fuse_fd, requests.MAX_BYTES))
        except OSError as e:
            if e.errno in _NOTHING:
                continue
            raise
        found.append(request)
        if not request.resent and request.opcode not in requests.UNORDERED:
            break
    return found


class Connection:
    """What a daemon reads its requests from: first those in a queue, then the kernel's.

    Attributes:
        queue: requests to be handled first; the INIT request is the first.
        settle: called when every reply is out, before another request is read.
    """

    def __init__(self, fuse_fd: int, init: bytes, *, answered: bool) -> None:
        """Begin with *init*, whose reply the kernel gets unless it was *answered* before."""
        self.queue = collections.deque([init])
        self._init: bytes | None = init
        self.settle: Callable[[], None] = lambda: None
        self._fuse_fd = fuse_fd
        # A request that poll(2) has seen may be taken back before it is read: its program was
        # killed. Who waited in read(2) then would answer nobody else until the next one comes.
        os.set_blocking(fuse_fd, False)
        self._skip = answered
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        for end in (ours, theirs):
            end.setsockopt(socket.SOL_SOCKET, _SO_SNDBUFFORCE, 4 * requests.MAX_BYTES)
        self._ours: socket.socket | None = ours
        self._session_fd = theirs.detach()

    def open(self, operations: pyfuse3.Operations, options: set[str]) -> None:
        """Give libfuse its end."""
        pyfuse3.init(operations, f"/dev/fd/{self._session_fd}", options)

    def before_wait(self) -> bool:
        """Return whether a request of the queue can be read."""
        if self._ours is not None:
            self._forward(self._ours)
            self.settle()
            if self.queue:
                self._ours.send(self.queue.popleft())
                return True
            self._ours.close()
            self._ours = None
            os.dup2(self._fuse_fd, self._session_fd, inheritable=False)
        return False

    def _forward(self, ours: socket.socket) -> None:
        """Pass replies on to the kernel."""
        while True:
            try:
                reply = ours.recv(requests.MAX_BYTES, socket.MSG_DONTWAIT)
            except BlockingIOError:
                return
            if self._init is not None:
                reply = requests.accept(self._init, reply, _WANTED, _UNWANTED)
                self._init = None
                if self._skip:
                    continue
            try:
                os.write(self._fuse_fd, reply)
            except FileNotFoundError:
                log.info("a caller has gone before its reply")
