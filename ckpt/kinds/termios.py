"""Terminal settings by name: ioctl_tty(2), termios(3). Pure but for the two ioctls.

Bits and positions are those of <asm-generic/termbits.h>, which x86_64 and aarch64 share.
"""

import fcntl
import struct
from collections.abc import Mapping
from typing import Final

import msgspec

from ckpt.kinds import flags

_TCGETS2: Final = 0x802C542A
_TCSETS2: Final = 0x402C542B
TERMIOS2: Final = struct.Struct("=IIIIB19sII")
"""struct termios2: c_iflag, c_oflag, c_cflag, c_lflag, c_line, c_cc, c_ispeed, c_ospeed."""
_BAUD: Final = 0o010017  # CBAUD: the speed itself is in c_ispeed and c_ospeed

_INPUT: Final = {
    "ignbrk": 0o1, "brkint": 0o2, "ignpar": 0o4, "parmrk": 0o10, "inpck": 0o20, "istrip": 0o40,
    "inlcr": 0o100, "igncr": 0o200, "icrnl": 0o400, "iuclc": 0o1000, "ixon": 0o2000,
    "ixany": 0o4000, "ixoff": 0o10000, "imaxbel": 0o20000, "iutf8": 0o40000,
}  # fmt: skip
_OUTPUT: Final = {
    "opost": 0o1, "olcuc": 0o2, "onlcr": 0o4, "ocrnl": 0o10, "onocr": 0o20, "onlret": 0o40,
    "ofill": 0o100, "ofdel": 0o200, "nl1": 0o400, "cr1": 0o1000, "cr2": 0o2000, "tab1": 0o4000,
    "tab2": 0o10000, "bs1": 0o20000, "vt1": 0o40000, "ff1": 0o100000,
}  # fmt: skip
_CONTROL: Final = {
    "cs8": 0o60, "cs7": 0o40, "cs6": 0o20, "cstopb": 0o100, "cread": 0o200, "parenb": 0o400,
    "parodd": 0o1000, "hupcl": 0o2000, "clocal": 0o4000, "cmspar": 0o10000000000,
    "crtscts": 0o20000000000,
}  # fmt: skip
_LOCAL: Final = {
    "isig": 0o1, "icanon": 0o2, "xcase": 0o4, "echo": 0o10, "echoe": 0o20, "echok": 0o40,
    "echonl": 0o100, "noflsh": 0o200, "tostop": 0o400, "echoctl": 0o1000, "echoprt": 0o2000,
    "echoke": 0o4000, "flusho": 0o10000, "pendin": 0o40000, "iexten": 0o100000,
    "extproc": 0o200000,
}  # fmt: skip
_CHARACTERS: Final = (
    "intr", "quit", "erase", "kill", "eof", "time", "min", "swtc", "start", "stop", "susp", "eol",
    "reprint", "discard", "werase", "lnext", "eol2",
)  # fmt: skip
_SPEEDS: Final[Mapping[int, int]] = {
    0o15: 9600, 0o16: 19200, 0o17: 38400, 0o10001: 57600, 0o10002: 115200, 0o10003: 230400,
    0o0: 0, 0o11: 1200, 0o13: 2400, 0o14: 4800,
}  # fmt: skip
_OTHER_SPEED: Final = 0o10000  # BOTHER


class Settings(msgspec.Struct, frozen=True):
    """What tcgetattr(3) tells, and the speeds in baud."""

    input: list[str]
    output: list[str]
    control: list[str]
    local: list[str]
    characters: dict[str, int]
    discipline: int
    input_speed: int
    output_speed: int


def collect(fd: int) -> Settings:
    """Return the settings of a terminal, asked at either end.

    Raises:
        OSError: EIO: it was hung up.
        ValueError: a flag is unknown.
    """
    iflag, oflag, cflag, lflag, line, characters, ispeed, ospeed = TERMIOS2.unpack(get(fd))
    return Settings(
        input=flags.bit_names(iflag, _INPUT),
        output=flags.bit_names(oflag, _OUTPUT),
        control=flags.bit_names(cflag & ~(_BAUD | _BAUD << 16), _CONTROL),
        local=flags.bit_names(lflag, _LOCAL),
        characters=dict(zip(_CHARACTERS, characters, strict=False)),
        discipline=line,
        input_speed=ispeed,
        output_speed=ospeed,
    )


def rebuild(settings: Settings, fd: int) -> None:
    """Set them."""
    codes = {speed: code for code, speed in _SPEEDS.items()}
    baud = codes.get(settings.output_speed, _OTHER_SPEED)
    characters = bytes(settings.characters.get(name, 0) for name in _CHARACTERS)
    raw = TERMIOS2.pack(
        flags.bits(settings.input, _INPUT),
        flags.bits(settings.output, _OUTPUT),
        flags.bits(settings.control, _CONTROL) | baud,
        flags.bits(settings.local, _LOCAL),
        settings.discipline,
        characters,
        settings.input_speed,
        settings.output_speed,
    )
    put(fd, raw)


def get(fd: int) -> bytes:
    """Return the settings as the kernel has them: TERMIOS2."""
    return fcntl.ioctl(fd, _TCGETS2, bytes(TERMIOS2.size))


def put(fd: int, raw: bytes) -> None:
    """Set what get() has returned; nothing that waits to be read is lost."""
    fcntl.ioctl(fd, _TCSETS2, raw)
