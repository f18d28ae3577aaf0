"""A place apart from the host: for tests, demonstrations and measurements.

What is mounted or configured there, the host does not see, and the kernel takes it away with the
last process.
"""

import functools
import os
import subprocess
import tempfile
from pathlib import Path

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


def prefix(name: str = "") -> Path:
    """Make a place for an instance; the caller takes it away.

    Instances that this process makes so have their digests of lower layers together
    (stackfs/layers/identity.py): each would have to read all of the same trees first.

    Not below a long path: the address of a unix socket has 108 bytes (unix(7)).
    """
    made = Path(tempfile.mkdtemp(prefix=f"autopod-{name}"))
    digests = made / "var/cache/autopod/identity"
    digests.parent.mkdir(parents=True)
    digests.symlink_to(_digests().name)
    return made


@functools.cache
def _digests() -> "tempfile.TemporaryDirectory[str]":
    """Gone with this process."""
    return tempfile.TemporaryDirectory(prefix="autopod-digests-")
