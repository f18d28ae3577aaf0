"""The first process of the place in which CRIU and its programs run: `python -m bench.init ROOT`.

It stands in mount and process namespaces of its own (unshare(1)), makes ROOT the root, and starts
what it is told to, a JSON list of arguments in each line of standard input. All ends with it.
"""

import json
import os
import signal
import sys

from launcher import abi


def main(root: str) -> None:
    """Be that process, until standard input ends."""
    abi.mount(root, root, None, abi.MS_BIND)
    os.chdir(root)
    for name in ("dev", "proc"):
        os.makedirs(name, exist_ok=True)
    abi.mount("/dev", "dev", None, abi.MS_BIND | abi.MS_REC)
    abi.mount("proc", "proc", "proc", 0)
    made = os.listdir("run")
    abi.mount("tmpfs", "run", "tmpfs", 0)  # as it is everywhere: CRIU remembers the kernel there
    for name in made:
        os.mkdir(f"run/{name}")
    abi.pivot_root(".", ".")
    abi.umount2(".", abi.MNT_DETACH)
    os.chdir("/")
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # whatever ends is forgotten
    print("ready", flush=True)
    for line in sys.stdin:
        if os.fork() == 0:
            _execute(json.loads(line))


def _execute(argv: list[str]) -> None:
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    os.setsid()
    null = os.open("/dev/null", os.O_RDWR)
    log = os.open("/log", os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    for fd, source in enumerate((null, log, log)):
        os.dup2(source, fd)
    os.closerange(3, 100)
    os.execv(argv[0], argv)


if __name__ == "__main__":
    main(sys.argv[1])
