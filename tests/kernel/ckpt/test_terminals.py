"""Pseudo-terminals through collector and workshop."""

import fcntl
import os
import pty
import struct
import termios

import pytest

from ckpt.kinds import pty as kind
from ckpt.kinds import ptyqueue
from ckpt.states import state_of
from tests.kernel.ckpt import roundtrip as harness
from tests.kernel.ckpt.roundtrip import roundtrip
from tests.kernel.ckpt.test_files import at

pytestmark = pytest.mark.needs("root")


def own_devpts():
    """A devpts for this process and those it will start; /dev/ptmx stays out of it."""
    if harness.libc.mount(b"devpts", b"/dev/pts", b"devpts", 0, b"newinstance,ptmxmode=666") != 0:
        raise OSError("mount")


def test_pair_inside():
    def setup():
        masters = [os.open("/dev/pts/ptmx", os.O_RDWR | os.O_NOCTTY) for _ in range(3)]
        at(masters[2], 10)
        for fd in masters[:2]:
            os.close(fd)
        fcntl.ioctl(10, 0x40045431, struct.pack("i", 0))
        at(os.open("/dev/pts/2", os.O_RDWR | os.O_NOCTTY), 11)
        settings = termios.tcgetattr(11)
        settings[3] &= ~(termios.ECHO | termios.ICANON)
        settings[6][termios.VINTR] = b"\x01"
        settings[4] = settings[5] = termios.B9600
        termios.tcsetattr(11, termios.TCSANOW, settings)
        fcntl.ioctl(10, termios.TIOCSWINSZ, struct.pack("4H", 33, 77, 0, 0))
        fcntl.ioctl(10, termios.TIOCPKT, struct.pack("i", 1))
        os.fchown(11, 33, 5)
        os.fchmod(11, 0o620)
        return termios.tcgetattr(11)

    def check(settings):
        assert os.readlink("/proc/self/fd/11") == "/dev/pts/2"
        assert termios.tcgetattr(11) == settings
        assert struct.unpack("4H", fcntl.ioctl(11, termios.TIOCGWINSZ, bytes(8)))[:2] == (33, 77)
        stat = os.fstat(11)
        assert (stat.st_uid, stat.st_gid, stat.st_mode & 0o777) == (33, 5, 0o620)
        os.write(11, b"out")
        assert os.read(10, 100) == b"\0out"
        os.write(10, b"i")
        assert os.read(11, 1) == b"i"

    roundtrip(with_devpts(setup), check, mounts=True, before=own_devpts)


def open_pair():
    """Make pair 0 of a devpts of our own, with its master at 10; return its slave."""
    own_devpts()
    at(os.open("/dev/pts/ptmx", os.O_RDWR | os.O_NOCTTY), 10)
    fcntl.ioctl(10, 0x40045431, struct.pack("i", 0))
    return os.open("/dev/pts/0", os.O_RDWR | os.O_NOCTTY)


def test_what_is_on_its_way():
    def setup():
        at(open_pair(), 11)
        settings = termios.tcgetattr(11)
        settings[3] &= ~termios.ECHO
        termios.tcsetattr(11, termios.TCSANOW, settings)
        os.write(11, b"shown\n")
        os.write(10, b"line\rnot yet")

    def check(_):
        assert os.read(10, 100) == b"shown\r\n"
        assert os.read(11, 100) == b"line\n"
        os.write(10, b"\x7f\x7f\x7fnow\r")
        assert os.read(11, 100) == b"not now\n"

    roundtrip(setup, check, mounts=True, before=own_devpts)


def test_the_last_output_of_a_program_that_has_ended():
    def setup():
        slave = open_pair()
        os.write(slave, b"bye")
        os.close(slave)

    def check(_):
        assert os.read(10, 100) == b"bye"
        with pytest.raises(OSError, match="Input/output error"):
            os.read(10, 100)

    roundtrip(setup, check, mounts=True, before=own_devpts)


def test_a_mere_look_takes_nothing_from_a_program():
    def setup():
        at(open_pair(), 11)
        os.write(11, b"shown")

    def queues(pair):
        return state_of(pair.part, kind.ObjectState).queues

    with harness.stopped(setup, mounts=True) as (pid, _):
        (pair,) = harness.collect(pid).objects
        assert queues(pair) == ptyqueue.Queues()
        (pair,) = harness.collect(pid, store=harness.Pages().store).objects
        assert queues(pair).shown == b"shown"


def lead_session():
    os.setsid()
    own_devpts()


def with_devpts(setup):
    def wrapped():
        own_devpts()
        return setup()

    return wrapped


def test_controlling_terminal_with_the_master_outside():
    """The master goes to the console; the leader takes the slave and its group the foreground."""
    consoles = []

    def setup():
        os.setsid()
        own_devpts()
        master = os.open("/dev/pts/ptmx", os.O_RDWR | os.O_NOCTTY)
        fcntl.ioctl(master, 0x40045431, struct.pack("i", 0))
        # Somebody who is not collected holds the master.
        keeper = os.fork()
        if not keeper:
            import signal

            os.closerange(3, master)
            os.closerange(master + 1, 4096)
            os.dup2(master, 100)
            signal.alarm(20)
            signal.pause()
        at(os.open("/dev/pts/0", os.O_RDWR), 11)
        os.close(master)
        return keeper

    def check(keeper):
        assert [index for index, _ in consoles] == [0]
        master = consoles[0][1]
        tty = os.open("/dev/tty", os.O_RDWR)
        assert os.tcgetpgrp(tty) == os.getpgrp()
        os.write(tty, b"hello")
        assert os.read(master, 100) == b"hello"
        os.write(master, b"typed\n")
        assert os.read(11, 100) == b"typed\n"

    roundtrip(
        setup,
        check,
        mounts=True,
        before=lead_session,
        give_console=lambda index, fd: consoles.append((index, at(os.dup(fd), harness.CONSOLE))),
    )


def test_terminal_of_the_host_is_refused():
    master, slave = pty.openpty()
    try:

        def setup():
            at(os.open(f"/proc/{os.getppid()}/fd/{slave}", os.O_RDWR | os.O_NOCTTY), 10)

        (refusal,) = harness.refusals(setup, mounts=True)
        assert refusal.why == "it is a terminal of the host"
    finally:
        os.close(master)
        os.close(slave)
