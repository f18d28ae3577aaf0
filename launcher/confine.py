"""What a process of a pod loses before it executes its program.

The pod's init, `start`, `run` and `exec` all come through here, so none is confined less. Runs
in the process itself: nothing may import lazily (see launcher.execute).
"""

from __future__ import annotations

import os
import resource
import signal

from launcher import abi

TYPE_CHECKING = False  # launcher.light says why
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Final

    from launcher import policy
    from launcher.config import Privileges

_LAST_CAPABILITY: Final = 63
_LIBRARYS: Final = (32, 33)
"""Signals that signal(7) keeps from programs."""


class Confinement:
    """What a program is allowed.

    Attributes:
        capabilities: its bounding, permitted and effective set, as a bit mask.
        no_new_privileges: see prctl(2), PR_SET_NO_NEW_PRIVS.
        bpf: a packed BPF program for seccomp(2), or b"" for none.
        limits: resources and what they are limited to, at most (setrlimit(2)).
        install: installs a filter that leaves calls to the pod's monitor, and returns its listener
            (launcher.listener, which only such a filter needs); else None.
    """

    def __init__(
        self,
        capabilities: int,
        no_new_privileges: bool,
        bpf: bytes,
        limits: tuple[tuple[int, int], ...] = (),
        install: Callable[[bytes], int] | None = None,
    ) -> None:
        self.capabilities, self.no_new_privileges = capabilities, no_new_privileges
        self.bpf, self.limits, self.install = bpf, limits, install


def of_programs(privileges: Privileges) -> Confinement:
    """Return what the pod's programs are allowed."""
    from launcher import capabilities, policy

    lowered = policy.lowered_limits(privileges.capabilities)
    emulated = privileges.rules is not None and privileges.rules.emulated
    return Confinement(
        capabilities.mask(privileges.capabilities),
        privileges.no_new_privileges,
        _filter(privileges.rules),
        tuple((getattr(resource, f"RLIMIT_{name}"), most) for name, most in lowered.items()),
        _install() if emulated else None,
    )


def _install() -> Callable[[bytes], int]:
    from launcher import listener

    return listener.install


def of_init(privileges: Privileges) -> Confinement:
    """Return what the pod's init is allowed: it only reaps, and needs nothing for that."""
    from launcher import policy

    rules = None if privileges.rules is None else policy.rules()
    return Confinement(0, no_new_privileges=True, bpf=_filter(rules))


def to_plain(confinement: Confinement) -> tuple[object, ...]:
    """Return *confinement* for marshal."""
    c = confinement
    return c.capabilities, c.no_new_privileges, c.bpf, c.limits, c.install is not None


def from_plain(plain: tuple[int, bool, bytes, tuple[tuple[int, int], ...], bool]) -> Confinement:
    """Return the confinement of which to_plain() made *plain*."""
    capabilities, no_new_privileges, bpf, limits, has_listener = plain
    install = _install() if has_listener else None
    return Confinement(capabilities, no_new_privileges, bpf, limits, install)


def at_most_ours(confinement: Confinement) -> Confinement:
    """Return *confinement* without the capabilities that we have not ourselves."""
    return Confinement(
        confinement.capabilities & _bounding_set(),
        confinement.no_new_privileges,
        confinement.bpf,
        confinement.limits,
        confinement.install,
    )


def apply(confinement: Confinement) -> int | None:
    """Confine the calling process; the next execve(2) makes it complete.

    The filter comes first: without no_new_privs it needs CAP_SYS_ADMIN.

    Returns:
        The listener of the filter, if it has one: it belongs into the pod's holder; else None.

    Raises:
        OSError: as prctl(2) or capset(2).
    """
    for number, most in confinement.limits:
        soft, hard = (_at_most(limit, most) for limit in resource.getrlimit(number))
        resource.setrlimit(number, (soft, hard))
    if confinement.no_new_privileges:
        abi.prctl(abi.PR_SET_NO_NEW_PRIVS, 1)
    listener_fd = None
    if confinement.install is not None:
        listener_fd = confinement.install(confinement.bpf)
    elif confinement.bpf:
        abi.set_seccomp_filter(confinement.bpf)
    for number in range(_LAST_CAPABILITY + 1):
        if not confinement.capabilities >> number & 1 and not _drop(number):
            break
    abi.prctl(abi.PR_CAP_AMBIENT, abi.PR_CAP_AMBIENT_CLEAR_ALL)
    abi.capset(confinement.capabilities, confinement.capabilities, 0)
    return listener_fd


def reset_signals() -> None:
    """Give every signal its default disposition and unblock all; execve(2) would not.

    That of 32, too: who was started by posix_spawn(3) of glibc, as by make, ignores it.
    """
    for number in signal.valid_signals() - {signal.SIGKILL, signal.SIGSTOP}:
        signal.signal(number, signal.SIG_DFL)
    for kept in _LIBRARYS:
        abi.reset_signal(kept)
    signal.pthread_sigmask(signal.SIG_SETMASK, ())


def _drop(capability: int) -> bool:
    """Drop *capability* from the bounding set; False if the kernel does not know it."""
    try:
        abi.prctl(abi.PR_CAPBSET_DROP, capability)
    except OSError as e:
        if e.errno != 22:  # EINVAL
            raise
        return False
    return True


def _bounding_set() -> int:
    with open("/proc/self/status") as status:
        line = next(line for line in status if line.startswith("CapBnd:"))
    return int(line.split()[1], 16)


def _at_most(limit: int, most: int) -> int:
    return most if limit == resource.RLIM_INFINITY else min(limit, most)


def _filter(rules: policy.Rules | None) -> bytes:
    from launcher import seccomp

    return b"" if rules is None else seccomp.compile_rules(rules, os.uname().machine)
