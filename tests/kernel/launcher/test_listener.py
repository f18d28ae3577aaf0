"""A listener says what there is, and never waits: one thread serves all listeners of a pod."""

import ctypes
import errno
import os
import signal
import socket
import struct

import pytest

from launcher import listener
from launcher.syscalls import NUMBERS

from .conftest import wait_until

pytestmark = pytest.mark.needs("root")

GETPPID = NUMBERS[os.uname().machine]["getppid"]
NOTIFY, ALLOW = 0x7FC0_0000, 0x7FFF_0000
FILTER = b"".join(
    struct.pack("=HBBI", *instruction)
    for instruction in (
        (0x20, 0, 0, 0),  # load the number of the call
        (0x15, 0, 1, GETPPID),
        (0x06, 0, 0, NOTIFY),
        (0x06, 0, 0, ALLOW),
    )
)


class Caller:
    """A process with a filter: whoever writes a byte to `end` has it call getppid(2)."""

    def __init__(self):
        self.end, theirs = socket.socketpair()
        self.pid = os.fork()
        if self.pid == 0:
            try:
                self._call(theirs)
            finally:
                os._exit(255)
        theirs.close()
        (self.fd,) = socket.recv_fds(self.end, 1, 1)[1]

    def _call(self, theirs):
        self.end.close()
        fd = listener.install(FILTER)
        socket.send_fds(theirs, [b"."], [fd])
        os.close(fd)
        theirs.recv(1)
        libc = ctypes.CDLL(None, use_errno=True)
        os._exit(ctypes.get_errno() if libc.syscall(GETPPID) == -1 else 0)

    def ask(self):
        self.end.send(b".")

    def ended(self):
        """Its exit status."""
        pid, self.pid = self.pid, 0
        return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])

    def kill(self):
        os.kill(self.pid, signal.SIGKILL)
        return self.ended()


@pytest.fixture
def caller():
    caller = Caller()
    # What would wait for ever is interrupted: it fails with EINTR.
    before = signal.signal(signal.SIGALRM, lambda *_: None)
    signal.alarm(30)
    yield caller
    signal.alarm(0)
    signal.signal(signal.SIGALRM, before)
    if caller.pid:
        caller.kill()
    caller.end.close()
    os.close(caller.fd)


def test_nobody_asks(caller):
    slot = listener.seccomp_notif()
    assert not listener.receive(caller.fd, slot)
    assert not listener.has_ended(caller.fd)


def test_a_call_is_received_and_answered(caller):
    slot = listener.seccomp_notif()
    caller.ask()
    wait_until(lambda: listener.receive(caller.fd, slot))
    assert (slot.pid, slot.data.nr) == (caller.pid, GETPPID)
    assert not listener.receive(caller.fd, listener.seccomp_notif())
    listener.answer(caller.fd, slot, errno.EXDEV)
    assert caller.ended() == errno.EXDEV
    assert slot.id == 0


def test_all_callers_have_ended(caller):
    """Before Linux 6.11 the kernel waits for a call even then."""
    caller.kill()
    wait_until(lambda: listener.has_ended(caller.fd))
    assert not listener.receive(caller.fd, listener.seccomp_notif())
