"""Who ends TCP repair mode if a checkpoint is killed while it has a socket in it.

A socket in repair mode stays so when the process that put it there is gone, and its program could
neither send nor receive. So a process of its own, which no signal to the command or its session
reaches, has a duplicate of each, and acts when the command's end of their channel closes without a
word. The kernel lets the pod go in the same moment; a control group holds it until then.
"""

import os
import signal
import socket
from contextlib import suppress
from pathlib import Path
from typing import Final, NoReturn

from ckpt.kinds import sockets, tcprepair

_READY, _DONE = b"r", b"d"
_SIGNALS: Final = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT)


class Keeper:
    """Watches over sockets until it is closed. Made when the pod stands still.

    Args:
        freezer: the file that holds the pod (launcher.cgroups.freezer()): no system call can be
            made in its processes meanwhile.
    """

    def __init__(self, freezer: Path | None) -> None:
        self._freezer = freezer
        self._channel, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._pid = os.fork()
        if self._pid == 0:
            _keep(theirs.detach(), freezer)
        theirs.close()
        self._channel.recv(1)  # from now on it holds nothing of ours open
        if freezer is not None:
            freezer.write_text("1")

    def watch(self, fd: int) -> None:
        """Have the socket *fd* taken out of repair mode, as it is now, if this process dies."""
        with sockets.borrowed(fd) as s:
            reuse = s.getsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR)
        socket.send_fds(self._channel, [bytes([reuse])], [fd])

    def close(self) -> None:
        """No socket is in repair mode any more."""
        if self._freezer is not None:
            self._freezer.write_text("0")
        with self._channel as channel:
            channel.send(_DONE)
            os.waitpid(self._pid, 0)


def _keep(channel_fd: int, freezer: Path | None) -> NoReturn:
    status = 1
    try:
        os.setsid()
        for number in _SIGNALS:
            signal.signal(number, signal.SIG_IGN)
        _close_all_but(channel_fd)
        channel = socket.socket(fileno=channel_fd)
        channel.send(_READY)
        watched = []
        while True:
            word, fds, _, _ = socket.recv_fds(channel, 1, 1)
            if not fds:
                break
            watched.append((fds[0], word[0]))
        if word != _DONE:
            for fd, reuse in watched:
                with sockets.borrowed(fd) as s, suppress(OSError):
                    tcprepair.leave(s, reuse)
            if freezer is not None:
                freezer.write_text("0")
        status = 0
    finally:
        os._exit(status)


def _close_all_but(fd: int) -> None:
    """Close everything: a file of the pod that we have open as well would not end with its own."""
    for other in map(int, os.listdir("/proc/self/fd")):
        if other != fd:
            with suppress(OSError):
                os.close(other)
