"""What is on its way through a pseudo-terminal: typed and not read, written and not shown.

Nothing can look into these queues: they are read empty and filled again, while nobody else runs.
Source: drivers/tty/n_tty.c, drivers/tty/pty.c.
"""

import fcntl
import os
import select
import signal
import struct
import termios as tty
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final, Literal

import msgspec

from ckpt.kinds import termios

_TIOCSTI: Final = 0x5412
_TIOCPKT: Final = 0x5420
_TIOCGPKT: Final = 0x80045438
_EXTPROC: Final = 0o200000  # <asm-generic/termbits.h>
_TCXONC: Final = 0x540A
_TCOOFF, _TCOON = 0, 1
_DISCIPLINE_HOLDS: Final = 4095
"""Bytes (N_TTY_BUF_SIZE - 1); what was typed beyond waits, and is not looked at before."""
_QUEUE_LIMIT: Final = 1 << 16
"""Bytes, which both queues are far below: drivers/tty/pty.c, tty_buffer_set_limit()."""
_TRIES: Final = 1000
_NEWLINE: Final = 10
_START, _STOP = 17, 19
_SIGNALS: Final = {signal.SIGINT, signal.SIGTERM, signal.SIGHUP}


class Queues(msgspec.Struct, frozen=True, omit_defaults=True):
    """What a pair holds.

    Attributes:
        lines: in canonical mode, what each read(2) would return; one that does not end in a
            delimiter was ended by the end-of-file character.
        rest: typed after that: the line that is being edited, or all in another mode.
        waiting: typed after that, and not looked at by the line discipline.
        shown: written, and not read from the master.
        stopped: is the output stopped, by the stop character or by tcflow(3)?
    """

    lines: list[bytes] = []
    rest: bytes = b""
    waiting: bytes = b""
    shown: bytes = b""
    stopped: Literal["", "typed", "called"] = ""


def has_output(master: int) -> bool:
    """Return whether something was written that the master has not read."""
    return _ready(master, select.POLLIN)


def look(master: int, slave: int) -> Queues:
    """Return what a pair holds that nobody else uses now.

    A process of its own takes it and puts it back, so that the death of this one loses nothing.

    Args:
        master: one end.
        slave: the other; O_RDWR and O_NONBLOCK.

    Raises:
        OSError: it cannot be had.
    """
    read_end, write_end = os.pipe()
    blocked = signal.pthread_sigmask(signal.SIG_BLOCK, _SIGNALS)
    try:
        pid = os.fork()
        if pid == 0:
            _look_and_exit(master, slave, write_end)
        os.close(write_end)
        with open(read_end, "rb") as pipe:
            said = pipe.read()
        if os.waitpid(pid, 0)[1]:
            raise OSError(said.decode(errors="replace") or "its queues cannot be read")
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, blocked)
    return msgspec.msgpack.decode(said, type=Queues)


def _look_and_exit(master: int, slave: int, report: int) -> None:
    status = 1
    try:
        queues = take(master, slave)
        put(queues, master, slave)
        os.write(report, msgspec.msgpack.encode(queues))
        status = 0
    except BaseException as e:  # noqa: BLE001 (told to the parent)
        os.write(report, str(e).encode())
    finally:
        os._exit(status)


def take(master: int, slave: int) -> Queues:
    """Read a pair empty; see look()."""
    with _out_of_packet_mode(master):
        shown = _read_master(master)
        stopped = _start(slave)
        settings = termios.get(slave)
        try:
            lines: list[bytes] = []
            if _is_canonical(settings):
                # What was not looked at yet, as the queue was full, is neither echoed nor a signal.
                termios.put(slave, _plain(settings, canonical_end=0))
                lines = _read(slave)
            termios.put(slave, _plain(settings))
            rest = b"".join(_read(slave))
        finally:
            termios.put(slave, settings)
        shown += _read_master(master)  # an echo that had been stopped, too
    return _split(Queues(lines, rest, b"", shown, stopped))


def put(queues: Queues, master: int, slave: int) -> None:
    """Fill the empty queues of a pair that has its settings; arguments as for look().

    Raises:
        OSError: it cannot be done: TIOCSTI wants CAP_SYS_ADMIN.
    """
    if queues == Queues():
        return
    settings = termios.get(slave)
    with _out_of_packet_mode(master):
        try:
            termios.put(slave, _plain(settings))
            _write_all(slave, queues.shown)
            if _is_canonical(settings):
                ends = _delimiters(settings)
                mark = _unused(b"".join(queues.lines) + queues.rest, ends)
                termios.put(slave, _plain(settings, canonical_end=mark))
                for line in queues.lines:
                    _type(slave, line if line[-1:] and line[-1] in ends else line + bytes([mark]))
            _type(slave, queues.rest)
        finally:
            termios.put(slave, settings)
        _stop(slave, queues.stopped)
    _write_all(master, queues.waiting)


def _split(queues: Queues) -> Queues:
    """Tell apart what the line discipline had looked at. Pure."""
    lines: list[bytes] = []
    held = 0
    for number, line in enumerate(queues.lines):
        if held + len(line) > _DISCIPLINE_HOLDS:
            waiting = b"".join(queues.lines[number:]) + queues.rest
            return msgspec.structs.replace(queues, lines=lines, rest=b"", waiting=waiting)
        lines.append(line)
        held += len(line)
    room = _DISCIPLINE_HOLDS - held
    rest, waiting = queues.rest[:room], queues.rest[room:]
    return msgspec.structs.replace(queues, rest=rest, waiting=waiting)


def _is_canonical(settings: bytes) -> bool:
    """Pure."""
    local = termios.TERMIOS2.unpack(settings)[3]
    return bool(local & tty.ICANON) and not local & _EXTPROC


def _plain(settings: bytes, canonical_end: int | None = None, *, flow: bool = False) -> bytes:
    """Return settings under which all bytes go through as they are. Pure.

    Args:
        settings: those that the terminal has: TERMIOS2.
        canonical_end: the end-of-file character of canonical mode, in which only that, newline
            and the delimiters of *settings* are not ordinary; None: of the other mode.
        flow: start and stop have their meaning.
    """
    _, _, control, local, discipline, before, *speeds = termios.TERMIOS2.unpack(settings)
    characters = bytearray(len(before))  # 0: there is none such
    characters[tty.VMIN] = 1
    mode = 0
    if canonical_end is not None:
        mode = tty.ICANON | local & tty.IEXTEN
        characters[tty.VEOF] = canonical_end
        characters[tty.VEOL], characters[tty.VEOL2] = before[tty.VEOL], before[tty.VEOL2]
    if flow:
        characters[tty.VSTART], characters[tty.VSTOP] = _START, _STOP
    raw_input = tty.IXON if flow else 0
    return termios.TERMIOS2.pack(
        raw_input, 0, control | tty.CREAD, mode, discipline, bytes(characters), *speeds
    )


def _delimiters(settings: bytes) -> frozenset[int]:
    """Return what ends a line. Pure."""
    _, _, _, local, _, characters, *_ = termios.TERMIOS2.unpack(settings)
    ends = {_NEWLINE, characters[tty.VEOL]}
    if local & tty.IEXTEN:
        ends.add(characters[tty.VEOL2])
    return frozenset(ends - {0})


def _unused(data: bytes, others: frozenset[int]) -> int:
    """Return a byte that *data* does not have; of 255 one is free in all but made-up data. Pure."""
    return next((c for c in range(1, 256) if c not in data and c not in others), 4)


def _read(slave: int) -> list[bytes]:
    """Return what each read(2) returns until nothing is left; an empty one is an end of file."""
    pieces: list[bytes] = []
    try:
        while len(pieces) <= _QUEUE_LIMIT:
            pieces.append(os.read(slave, 4096))
    except BlockingIOError:
        return pieces
    raise OSError("its input has no end")


def _read_master(master: int) -> bytes:
    """Read what is there; the flags of its open file are not ours to change."""
    pieces = []
    while _ready(master, select.POLLIN):
        pieces.append(os.read(master, 4096))
    return b"".join(pieces)


def _ready(fd: int, event: int) -> bool:
    """As poll(2), which also waits for what is on its way (tty_buffer_flush_work())."""
    poller = select.poll()
    poller.register(fd, event)
    return any(found & event for _, found in poller.poll(0))


def _type(slave: int, data: bytes) -> None:
    """Have *data* arrive as if typed, now: a write to the master would be looked at later."""
    for byte in data:
        fcntl.ioctl(slave, _TIOCSTI, bytes([byte]))


def _write_all(fd: int, data: bytes) -> None:
    """A worker of the kernel makes room: nothing is said when it has."""
    tries = 0
    while data:
        try:
            data = data[os.write(fd, data) :]
        except BlockingIOError:
            tries += 1
            if tries > _TRIES:
                raise
            time.sleep(0.001)


def _start(slave: int) -> Literal["", "typed", "called"]:
    """Let stopped output go on; say how it was stopped. Nothing waits at the master."""
    if _ready(slave, select.POLLOUT):
        return ""
    _type_flow(slave, _START)
    if _ready(slave, select.POLLOUT):
        return "typed"
    fcntl.ioctl(slave, _TCXONC, _TCOON)
    return "called"


def _stop(slave: int, how: Literal["", "typed", "called"]) -> None:
    if how == "typed":
        _type_flow(slave, _STOP)
    elif how == "called":
        fcntl.ioctl(slave, _TCXONC, _TCOOFF)


def _type_flow(slave: int, character: int) -> None:
    settings = termios.get(slave)
    mark = 4 if _is_canonical(settings) else None
    termios.put(slave, _plain(settings, canonical_end=mark, flow=True))
    try:
        _type(slave, bytes([character]))
    finally:
        termios.put(slave, settings)


@contextmanager
def _out_of_packet_mode(master: int) -> Iterator[None]:
    (packet,) = struct.unpack("i", fcntl.ioctl(master, _TIOCGPKT, bytes(4)))
    if packet:
        fcntl.ioctl(master, _TIOCPKT, struct.pack("i", 0))
    try:
        yield
    finally:
        if packet:
            fcntl.ioctl(master, _TIOCPKT, struct.pack("i", 1))
