"""A request that the daemon has been told of is gone before it reads it: its program was killed."""

import os
import subprocess

import pytest

from ckpt import abi
from ckpt.stops import SyscallStop
from ckpt.tracee import Tracee

from .conftest import wait_until

pytestmark = pytest.mark.needs("root", "fuse")

READ = 0  # <asm/unistd_64.h>


def test_the_daemon_goes_on(host):
    (host.lower / "file").write_text("lower")
    root = host.mount()
    daemon = Tracee.seize(host.daemon(), abi.PTRACE_O_TRACESYSGOOD)
    daemon.interrupt()
    assert daemon.wait_stop(deadline=float("inf"))
    with subprocess.Popen(["cat", root / "file"], stdout=subprocess.DEVNULL) as program:
        wait_until(lambda: asks(program.pid))
        run_to_read(daemon)
        program.kill()
        program.wait()
    daemon.detach()
    assert host.daemon() == daemon.tid
    assert (root / "file").read_text() == "lower"


def asks(pid):
    """Does the process wait for the daemon?"""
    with open(f"/proc/{pid}/wchan") as file:
        return file.read() == "request_wait_answer"


def run_to_read(daemon):
    """Let the daemon run until it stands before a read(2) of /dev/fuse."""
    while True:
        abi.ptrace(abi.PTRACE_SYSCALL, daemon.tid)
        assert isinstance(daemon.wait(), SyscallStop)
        registers = daemon.registers()
        if registers.orig_rax == READ and fd_path(daemon.tid, registers.rdi) == "/dev/fuse":
            return


def fd_path(pid, fd):
    return os.readlink(f"/proc/{pid}/fd/{fd}")
