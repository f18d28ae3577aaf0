"""What is on its way through a pseudo-terminal is seen, and stays where it was."""

import fcntl
import os
import select
import struct
import termios

import pytest

from ckpt.kinds import ptyqueue
from ckpt.kinds.ptyqueue import Queues

pytestmark = pytest.mark.needs("root")
LONG = b"long " * 100 + b"\n"
STOP, EOF = b"\x13", b"\x04"
ODD = bytes(byte for byte in range(256) if byte != 10)


@pytest.fixture
def pair():
    master, slave = os.openpty()
    again = os.open(os.ttyname(slave), os.O_RDWR | os.O_NOCTTY | os.O_NONBLOCK)
    yield master, again
    for fd in master, slave, again:
        os.close(fd)


def set_mode(slave, *, local, **characters):
    settings = termios.tcgetattr(slave)
    settings[3] = local
    for name, value in characters.items():
        settings[6][getattr(termios, name)] = value
    termios.tcsetattr(slave, termios.TCSANOW, settings)


def typed(pair, data):
    """Type *data*, which has arrived."""
    master, slave = pair
    os.write(master, data)
    arrive(slave)


def arrive(fd):
    """Have what is on its way arrive: poll(2) does, if nothing is there to be read yet."""
    select.select([fd], [], [], 0)


def read(fd, count, skip=0):
    """Read *count* bytes, whatever the pieces; *skip* bytes of each do not count."""
    found = b""
    while len(found) < count:
        found += os.read(fd, 5000)[skip:]
    return found


def readings(slave, count):
    """What *count* calls of read(2) return."""
    found = []
    for _ in range(count):
        try:
            found.append(os.read(slave, 5000))
        except BlockingIOError:
            found.append(None)
    return found


CANONICAL = termios.ICANON | termios.ISIG | termios.IEXTEN


def test_lines(pair):
    master, slave = pair
    set_mode(slave, local=CANONICAL, VEOL=b";")
    typed(pair, LONG + b"one\rtwo;three" + EOF + EOF + b"fou")
    for _ in range(2):
        before = termios.tcgetattr(slave)
        assert ptyqueue.look(master, slave) == Queues(
            [LONG, b"one\n", b"two;", b"three", b""], b"fou"
        )
        assert termios.tcgetattr(slave) == before
    assert readings(slave, 6) == [LONG, b"one\n", b"two;", b"three", b"", None]
    os.write(master, b"\x7fx\n")  # the line is edited on
    assert readings(slave, 1) == [b"fox\n"]


def test_bytes_without_meaning(pair):
    master, slave = pair
    set_mode(slave, local=0, VMIN=200)
    settings = termios.tcgetattr(slave)
    settings[0] = 0
    termios.tcsetattr(slave, termios.TCSANOW, settings)
    typed(pair, ODD[:100])
    assert ptyqueue.look(master, slave) == Queues(rest=ODD[:100])
    typed(pair, ODD[100:])
    assert read(slave, len(ODD)) == ODD


def test_more_than_the_line_discipline_holds(pair):
    master, slave = pair
    set_mode(slave, local=0)
    data = bytes(range(32, 127)) * 60 + b"\rend"
    typed(pair, data)
    assert ptyqueue.look(master, slave).waiting
    set_mode(slave, local=0, VMIN=0)
    assert read(slave, len(data)) == data.replace(b"\r", b"\n")


def test_more_lines_than_the_line_discipline_holds(pair):
    """What it has not looked at is echoed once, when it is."""
    master, slave = pair
    set_mode(slave, local=CANONICAL | termios.ECHO)
    line = b"x" * 90
    typed(pair, (line + b"\r") * 60)
    seen = ptyqueue.look(master, slave)
    assert 0 < len(seen.lines) < 60
    for _ in range(60):
        assert os.read(slave, 100) == line + b"\n"
        arrive(slave)
    assert read(master, 60 * 92) == (line + b"\r\n") * 60
    assert not select.select([master], [], [], 0)[0]


@pytest.mark.parametrize("packet", [0, 1])
def test_output(pair, packet):
    master, slave = pair
    fcntl.ioctl(master, termios.TIOCPKT, struct.pack("i", packet))
    data = b"".join(b"line %d\n" % number for number in range(800))
    shown = data.replace(b"\n", b"\r\n")
    os.write(slave, data)
    assert ptyqueue.look(master, slave) == Queues(shown=shown)
    assert read(master, len(shown), skip=packet) == shown


def test_output_stopped_by_hand(pair):
    master, slave = pair
    set_mode(slave, local=CANONICAL | termios.ECHO)
    os.write(slave, b"shown")
    typed(pair, STOP)
    assert ptyqueue.look(master, slave) == Queues(shown=b"shown", stopped="typed")
    with pytest.raises(BlockingIOError):
        os.write(slave, b"more")
    os.write(master, b"\x11")
    arrive(slave)
    assert os.write(slave, b"more") == 4
    assert read(master, 9) == b"shownmore"


def test_output_stopped_by_a_program(pair):
    master, slave = pair
    os.write(slave, b"shown")
    termios.tcflow(slave, termios.TCOOFF)
    assert ptyqueue.look(master, slave) == Queues(shown=b"shown", stopped="called")
    with pytest.raises(BlockingIOError):
        os.write(slave, b"more")
    termios.tcflow(slave, termios.TCOON)
    assert os.write(slave, b"more") == 4
    assert read(master, 9) == b"shownmore"


def test_nothing(pair):
    assert ptyqueue.look(*pair) == Queues()
