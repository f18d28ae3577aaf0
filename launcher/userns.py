"""User namespaces: a pod's is made with its network namespace, which belongs to it and keeps it.

So a capability that a pod has over its network, it has as the root of its user namespace
(user_namespaces(7)). What else a pod is made of belongs to the host's root, and stays closed to the
pod's: its mounts, its pid namespace, its control groups.
"""

from __future__ import annotations

import errno
import os
import resource

from launcher import abi
from launcher.errors import PodError

TYPE_CHECKING = False  # launcher.light says why
if TYPE_CHECKING:
    import socket
    from typing import Final, NoReturn

_COUNTED: Final = (resource.RLIMIT_MSGQUEUE, resource.RLIMIT_SIGPENDING, resource.RLIMIT_MEMLOCK)
_ALL: Final = 1 << 31  # more ids than a pod's namespace has: it is the host's


def new_network(base: int) -> int:
    """Return a descriptor of a new network namespace, of a new user namespace with ids from *base*.

    Raises:
        PodError: the kernel makes none.
        OSError: it cannot be made.
    """
    import socket

    from launcher import capabilities
    from launcher.users import COUNT

    needed = capabilities.mask(["sys_admin"])
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with ours:
        pid = os.fork()
        if not pid:
            ours.close()  # so that its end tells us to go
            _make(theirs, base, needed)
        theirs.close()
        try:
            _expect(ours)
            for name in ("uid_map", "gid_map"):
                with open(f"/proc/{pid}/{name}", "w") as file:
                    file.write(f"0 {base} {COUNT}")
            ours.send(b"mapped")
            _expect(ours)
            return os.open(f"/proc/{pid}/ns/net", os.O_RDONLY | os.O_CLOEXEC)
        finally:
            ours.close()
            os.waitpid(pid, 0)


def _make(channel: socket.socket, base: int, needed: int) -> NoReturn:
    """Be the first process of the namespaces, until the other end of *channel* is closed.

    The network namespace comes when the map is there: what is in it gets its owner as it is made.
    What a pod has of things that the kernel counts for users, it counts for who has made its user
    namespace, too (kernel/ucount.c): were that the host's root, pods would use up its share, and
    each other's.
    """
    try:
        for name in _COUNTED:
            _, most = resource.getrlimit(name)
            resource.setrlimit(name, (most, most))  # the namespace's for ever
        os.seteuid(base)
        abi.capset(needed, needed, 0)
        for flag in (abi.CLONE_NEWUSER, abi.CLONE_NEWNET):
            try:
                abi.unshare(flag)
            except OSError as e:
                channel.send(str(e.errno).encode())
                break
            channel.send(b"0")
            channel.recv(16)
    finally:
        os._exit(0)


def _expect(channel: socket.socket) -> None:
    number = int(channel.recv(16) or str(errno.ESRCH))
    if number == errno.ENOSPC:
        hint = "sysctl user.max_user_namespaces"
        raise PodError("this host makes no user namespace, or no more of them", hint)
    if number:
        raise PodError(f"a user namespace cannot be made: {os.strerror(number)}")


def base(pid: int) -> int | None:
    """Return the first id of the host that belongs to the user namespace of process *pid*.

    None: it has none of its own, and its ids are the host's.
    """
    with open(f"/proc/{pid}/uid_map") as file:
        first, start, count = file.read().split()[:3]
    return int(start) if first == "0" and int(count) < _ALL else None


def of(pidfd: int) -> int | None:
    """Return the same of the process that *pidfd* stands for; it must live."""
    with open(f"/proc/self/fdinfo/{pidfd}") as file:
        return base(next(int(line.split()[1]) for line in file if line.startswith("Pid:")))


def become_root() -> None:
    """Become the root of the user namespace that the calling process has just entered.

    Until it executes a program its memory stays closed to all others of that namespace: it is not
    dumpable, also where the host lets those be that change their user (fs.suid_dumpable), and what
    was the host's is not judged by them (kernel/ptrace.c, mm->user_ns).
    """
    os.setgroups([])
    os.setresgid(0, 0, 0)
    os.setresuid(0, 0, 0)
    abi.prctl(abi.PR_SET_DUMPABLE, 0)
