"""What a process of a pod loses before it executes its program.

The pod's init, `start`, `run` and `exec` all come through here, so none is confined less. Runs
in the process itself: nothing may import lazily (see launcher.execute).
"""

import os
import resource
import signal
from collections.abc import Callable
from typing import Final

from msgspec import Struct

from launcher import abi, capabilities, policy, seccomp
from launcher.config import Privileges

_LAST_CAPABILITY: Final = 63


class Confinement(Struct, frozen=True):
    """What a program is allowed.

    Attributes:
        capabilities: its bounding, permitted and effective set, as a bit mask.
        no_new_privileges: see prctl(2), PR_SET_NO_NEW_PRIVS.
        filter: a packed BPF program for seccomp(2), or b"" for none.
        install: installs a filter that leaves calls to the pod's monitor, and returns its listener
            (launcher.listener, which only such a filter needs); else None.
        limits: resources and what they are limited to, at most (setrlimit(2)).
    """

    capabilities: int
    no_new_privileges: bool
    filter: bytes
    limits: tuple[tuple[int, int], ...] = ()
    install: Callable[[bytes], int] | None = None


def of_programs(privileges: Privileges) -> Confinement:
    """Return what the pod's programs are allowed: no capability that we have not ourselves."""
    lowered = policy.lowered_limits(privileges.capabilities)
    install = None
    if privileges.rules is not None and privileges.rules.emulated:
        from launcher import listener

        install = listener.install
    return Confinement(
        capabilities.mask(privileges.capabilities) & _bounding_set(),
        privileges.no_new_privileges,
        _filter(privileges.rules),
        tuple((getattr(resource, f"RLIMIT_{name}"), most) for name, most in lowered.items()),
        install,
    )


def of_init(privileges: Privileges) -> Confinement:
    """Return what the pod's init is allowed: it only reaps, and needs nothing for that."""
    rules = None if privileges.rules is None else policy.rules()
    return Confinement(0, no_new_privileges=True, filter=_filter(rules))


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
        listener_fd = confinement.install(confinement.filter)
    elif confinement.filter:
        abi.set_seccomp_filter(confinement.filter)
    for number in range(_LAST_CAPABILITY + 1):
        if not confinement.capabilities >> number & 1 and not _drop(number):
            break
    abi.prctl(abi.PR_CAP_AMBIENT, abi.PR_CAP_AMBIENT_CLEAR_ALL)
    abi.capset(confinement.capabilities, confinement.capabilities, 0)
    return listener_fd


def reset_signals() -> None:
    """Give every signal its default disposition and unblock all; execve(2) would not."""
    for number in signal.valid_signals() - {signal.SIGKILL, signal.SIGSTOP}:
        signal.signal(number, signal.SIG_DFL)
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
    return b"" if rules is None else seccomp.compile_rules(rules, os.uname().machine)
