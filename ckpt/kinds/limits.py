"""Resource limits: getrlimit(2)."""

import struct
from typing import Final

import msgspec

from ckpt import procfs
from ckpt.kinds.stages import Stage, Subject, Target

STAGE = Stage.SETTLE

_NUMBERS: Final = {  # <asm-generic/resource.h>
    "cpu": 0,
    "fsize": 1,
    "data": 2,
    "stack": 3,
    "core": 4,
    "rss": 5,
    "nproc": 6,
    "nofile": 7,
    "memlock": 8,
    "as": 9,
    "locks": 10,
    "sigpending": 11,
    "msgqueue": 12,
    "nice": 13,
    "rtprio": 14,
    "rttime": 15,
}
_RLIMIT: Final = struct.Struct("<QQ")
_INFINITY: Final = (1 << 64) - 1


class State(msgspec.Struct, frozen=True):
    """Soft and hard limit by name; None is unlimited."""

    limits: dict[str, tuple[int | None, int | None]]


def collect(subject: Subject) -> State:
    """Read /proc/PID/limits: prlimit(2) would need CAP_SYS_RESOURCE for another user's process."""
    return State(procfs.parse_limits(procfs.read(subject.host_pid, "limits")))


def rebuild(state: State, target: Target) -> None:
    """Set the limits; one above our own hard limit becomes that where it cannot be raised."""
    for name, (soft, hard) in state.limits.items():
        resource = _NUMBERS[name]
        wanted = [_INFINITY if limit is None else limit for limit in (soft, hard)]
        try:
            target.remote.syscall("prlimit64", 0, resource, _RLIMIT.pack(*wanted), 0)
        except PermissionError:
            raw = bytearray(_RLIMIT.size)
            target.remote.syscall("prlimit64", 0, resource, 0, raw)
            ceiling = _RLIMIT.unpack(raw)[1]
            clamped = _RLIMIT.pack(min(wanted[0], ceiling), ceiling)
            target.remote.syscall("prlimit64", 0, resource, clamped, 0)
            target.note(f"limit {name!r} stays at {ceiling}: this host may not raise it")
