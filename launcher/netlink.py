"""Netlink to links, addresses and routes: pyroute2, imported by who has something to do there.

It takes most of the time of launcher.links, whose process is the only one that may import it. A pod
without a network needs none of it, and the others a part.
"""

import fcntl
import socket
import struct
import sys
from collections.abc import Callable, Iterable
from contextlib import suppress
from importlib.util import find_spec, module_from_spec
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from pyroute2 import IPRoute

_SIOCGIFFLAGS, _SIOCSIFFLAGS, _IFF_UP = 0x8913, 0x8914, 0x1  # netdevice(7)
_REQUEST: Final = struct.Struct("16sh22x")
_NLM_F_DUMP_INTR = 0x10  # linux/netlink.h


def connect() -> "IPRoute":
    """Return a netlink socket of this thread's network namespace; a context manager."""
    _leave_out_the_rest()
    from pyroute2.iproute import IPRoute

    return IPRoute()


def errors() -> tuple[type[Exception], ...]:
    """Return what pyroute2 raises for what the kernel answers; nothing as long as it was not used.

    For an except clause, which asks when there is something to compare. Their first argument is
    an errno.
    """
    if "pyroute2" not in sys.modules:
        return ()
    from pyroute2.netlink.exceptions import NetlinkError

    return (NetlinkError,)


def dump(ask: Callable[[], Iterable[Any]]) -> list[Any]:
    """Return all that there is of a kind: links, addresses, entries of a bridge.

    What comes and goes while the kernel tells may make it leave out others; it marks such an
    answer (include/net/netlink.h, nl_dump_check_consistent()), which pyroute2 passes on as it is.

    Args:
        ask: asks for it, by pyroute2; again where the answer is marked.
    """
    while True:
        found = list(ask())
        if not any(message["header"]["flags"] & _NLM_F_DUMP_INTR for message in found):
            return found


def is_there(interface: str) -> bool:
    """Is there such an interface in this thread's network namespace?"""
    with suppress(OSError):
        return socket.if_nametoindex(interface) > 0
    return False


def raise_loopback() -> None:
    """Set the loopback interface of this thread's network namespace up.

    Raises:
        OSError: as netdevice(7).
    """
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as s:
        answer = fcntl.ioctl(s, _SIOCGIFFLAGS, _REQUEST.pack(b"lo", 0))
        name, flags = _REQUEST.unpack(answer)
        fcntl.ioctl(s, _SIOCSIFFLAGS, _REQUEST.pack(name, flags | _IFF_UP))


def _leave_out_the_rest() -> None:
    """Let pyroute2 be imported without what its package imports only to offer it.

    That is a third of its time: a database of interfaces, IPVS, wireless networks, and more. The
    package is there, as one whose `__init__` has not been run.
    """
    if "pyroute2" not in sys.modules and (spec := find_spec("pyroute2")) is not None:
        sys.modules["pyroute2"] = module_from_spec(spec)
