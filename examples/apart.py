"""A place apart from the host: for tests, demonstrations and measurements.

What is mounted or configured there, the host does not see, and the kernel takes it away with the
last process.
"""

import os
import subprocess

from launcher import abi

CLONE_NEWNET = 0x40000000  # <linux/sched.h>


def leave_host() -> int:
    """Move this process, which must have one thread, to new mount and network namespaces.

    Returns:
        A descriptor of the network namespace left behind, for what must still fetch packages; the
        caller owns it.

    Raises:
        OSError: not allowed here (unshare(2): CAP_SYS_ADMIN).
    """
    network = os.open("/proc/self/ns/net", os.O_RDONLY | os.O_CLOEXEC)
    abi.unshare(abi.CLONE_NEWNS | CLONE_NEWNET)
    abi.mount(None, "/", None, abi.MS_REC | abi.MS_PRIVATE)
    subprocess.run(["ip", "link", "set", "lo", "up"], check=True)
    return network
