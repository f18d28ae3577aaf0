"""Capabilities by name. Pure.

Names are those of capabilities(7) in lower case without `cap_`; a set is a bit mask, as in
/proc/PID/status.
"""

from collections.abc import Iterable
from functools import cache
from typing import Final

NAMES: Final = (
    "chown", "dac_override", "dac_read_search", "fowner", "fsetid", "kill", "setgid", "setuid",
    "setpcap", "linux_immutable", "net_bind_service", "net_broadcast", "net_admin", "net_raw",
    "ipc_lock", "ipc_owner", "sys_module", "sys_rawio", "sys_chroot", "sys_ptrace", "sys_pacct",
    "sys_admin", "sys_boot", "sys_nice", "sys_resource", "sys_time", "sys_tty_config", "mknod",
    "lease", "audit_write", "audit_control", "setfcap", "mac_override", "mac_admin", "syslog",
    "wake_alarm", "block_suspend", "audit_read", "perfmon", "bpf", "checkpoint_restore",
)  # fmt: skip
"""By number; <linux/capability.h>, Linux v6.18."""

SERVICE: Final = (
    "chown", "dac_override", "fowner", "fsetid", "kill", "net_bind_service", "setgid", "setuid",
    "sys_chroot",
)  # fmt: skip
"""What services that begin as root need to bind a port, own their files and change user."""

UNSAFE: Final = frozenset(
    {"dac_read_search", "mac_admin", "perfmon", "bpf", "sys_admin", "sys_boot", "sys_module",
     "sys_ptrace", "sys_rawio", "syslog"}
)  # fmt: skip
"""With any of these a pod is no confinement: its root could reach the host."""


def mask(names: Iterable[str]) -> int:
    """Return the bit mask of *names*.

    Raises:
        ValueError: a name is no capability.
    """
    return sum(1 << NAMES.index(name) for name in set(names))


@cache
def names(mask: int) -> tuple[str, ...]:
    """Return the names of the bits of *mask* that this module knows."""
    return tuple(name for number, name in enumerate(NAMES) if mask >> number & 1)
