"""Who a thread is and what it may do: credentials(7), capabilities(7), no_new_privs.

The kernel keeps all of this per thread; a libc keeps the threads of a process alike.
"""

import struct
from collections.abc import Iterable
from typing import Final

import msgspec

from ckpt import procfs
from ckpt.kinds.flags import bit_names, bits, signal_name, signal_number
from ckpt.kinds.stages import Stage, SubjectThread, Target
from ckpt.remote import Remote
from launcher import capabilities
from launcher.abi import CLONE_NEWUSER

STAGE = Stage.CONFINE

# <linux/prctl.h>
_PR_SET_PDEATHSIG, _PR_GET_PDEATHSIG = 1, 2
_PR_CAPBSET_DROP: Final = 24
_PR_GET_SECUREBITS, _PR_SET_SECUREBITS = 27, 28
_PR_SET_NO_NEW_PRIVS: Final = 38
_PR_CAP_AMBIENT, _PR_CAP_AMBIENT_RAISE = 47, 2
_LINUX_CAPABILITY_VERSION_3: Final = 0x2008_0522
_SECUREBITS: Final = {  # <linux/securebits.h>
    "noroot": 1 << 0,
    "noroot-locked": 1 << 1,
    "no-setuid-fixup": 1 << 2,
    "no-setuid-fixup-locked": 1 << 3,
    "keep-caps": 1 << 4,
    "keep-caps-locked": 1 << 5,
    "no-cap-ambient-raise": 1 << 6,
    "no-cap-ambient-raise-locked": 1 << 7,
}


class State(msgspec.Struct, frozen=True):
    """Credentials of a thread.

    Attributes:
        users: real, effective, saved and file-system user id.
        groups: the same group ids.
        supplementary: supplementary group ids.
        inheritable: capability set; so are permitted, effective, bounding and ambient.
        securebits: flags of capabilities(7), "The securebits flags".
        no_new_privileges: PR_SET_NO_NEW_PRIVS.
        death_signal: what it gets when its parent dies (PR_SET_PDEATHSIG).
    """

    users: tuple[int, int, int, int]
    groups: tuple[int, int, int, int]
    supplementary: list[int]
    inheritable: list[str]
    permitted: list[str]
    effective: list[str]
    bounding: list[str]
    ambient: list[str]
    securebits: list[str]
    no_new_privileges: bool
    death_signal: str | None


def collect(thread: SubjectThread) -> State:
    """Read /proc/PID/task/TID/status and ask for the rest."""
    status = thread.status
    raw = bytearray(4)
    thread.remote.syscall("prctl", _PR_GET_PDEATHSIG, raw, 0, 0, 0)
    death = struct.unpack("<i", raw)[0]
    secure = thread.remote.syscall("prctl", _PR_GET_SECUREBITS, 0, 0, 0, 0)
    return State(
        users=_four(status["Uid"]),
        groups=_four(status["Gid"]),
        supplementary=[int(group) for group in status["Groups"].split()],
        inheritable=_capabilities(status["CapInh"]),
        permitted=_capabilities(status["CapPrm"]),
        effective=_capabilities(status["CapEff"]),
        bounding=_capabilities(status["CapBnd"]),
        ambient=_capabilities(status["CapAmb"]),
        securebits=bit_names(secure, _SECUREBITS),
        no_new_privileges=status["NoNewPrivs"] == "1",
        death_signal=signal_name(death) if death else None,
    )


def _capabilities(mask: str) -> list[str]:
    return list(capabilities.names(int(mask, 16)))


def _four(text: str) -> tuple[int, int, int, int]:
    real, effective, saved, file_system = map(int, text.split())
    return real, effective, saved, file_system


def rebuild(state: State, target: Target) -> None:
    """Become the thread that it was.

    The order is forced: ids while all capabilities last, kept by no-setuid-fixup; ambient ones
    while the securebits allow it; securebits and the bounding set while CAP_SETPCAP lasts. A change
    of ids clears the death signal.
    """
    call = target.remote.later
    status = procfs.parse_status(procfs.read(target.host_pid, "status"))
    have = int(status["CapPrm"], 16)
    count = len(state.supplementary)
    call("setgroups", count, struct.pack(f"<{count}I", *state.supplementary))
    call("prctl", _PR_SET_SECUREBITS, _SECUREBITS["no-setuid-fixup"], 0, 0, 0)
    for call_ids, call_file_id, ids in (
        ("setresgid", "setfsgid", state.groups),
        ("setresuid", "setfsuid", state.users),
    ):
        call(call_ids, *ids[:3])
        if ids[3] != ids[1]:  # else it is that already: setresuid(2)
            call(call_file_id, ids[3])
    inheritable = capabilities.mask(state.inheritable)
    _capset(target, inheritable, have, have)
    for name in state.ambient:
        call("prctl", _PR_CAP_AMBIENT, _PR_CAP_AMBIENT_RAISE, _number(name), 0, 0)
    _bound(target.remote, int(status["CapBnd"], 16), capabilities.mask(state.bounding))
    call("prctl", _PR_SET_SECUREBITS, bits(state.securebits, _SECUREBITS), 0, 0, 0)
    if state.no_new_privileges:
        call("prctl", _PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)
    permitted, effective = capabilities.mask(state.permitted), capabilities.mask(state.effective)
    if missing := capabilities.names(permitted & ~have):
        target.note(f"this host has no capability {', '.join(missing)} to give")
    _capset(target, inheritable, permitted & have, effective & have)
    if state.death_signal:
        call("prctl", _PR_SET_PDEATHSIG, signal_number(state.death_signal), 0, 0, 0)


def enter_namespace(users_fd: int, remote: Remote) -> None:
    """Have a process become root in the user namespace *users_fd*; it has one thread (setns(2))."""
    remote.syscall("setns", users_fd, CLONE_NEWUSER)
    remote.syscall("setgroups", 0, 0)
    remote.syscall("setresgid", 0, 0, 0)
    remote.syscall("setresuid", 0, 0, 0)


def narrow(states: Iterable[State], first: Remote) -> None:
    """Take from *first*, of which all threads are cloned, what the bounding sets of none have.

    That is a call for each capability, not for each of each thread. What is inheritable stays:
    capset(2) wants it to be in the bounding set when it becomes that.
    """
    status = procfs.parse_status(procfs.read(first.tracee.tid, "status"))
    kept = {name for state in states for name in (*state.bounding, *state.inheritable)}
    _bound(first, int(status["CapBnd"], 16), capabilities.mask(kept))


def _bound(remote: Remote, have: int, wanted: int) -> None:
    """Drop from a thread's bounding set, which is *have*, what is not *wanted*."""
    for number in range(have.bit_length()):
        if (have & ~wanted) >> number & 1:
            remote.later("prctl", _PR_CAPBSET_DROP, number, 0, 0, 0)


def _number(name: str) -> int:
    return capabilities.NAMES.index(name)


def _capset(target: Target, inheritable: int, permitted: int, effective: int) -> None:
    header = struct.pack("<Ii", _LINUX_CAPABILITY_VERSION_3, 0)
    words = (effective, permitted, inheritable)
    data = struct.pack(
        "<6I", *(word & 0xFFFF_FFFF for word in words), *(word >> 32 for word in words)
    )
    target.remote.later("capset", header, data)
