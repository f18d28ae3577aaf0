"""Does this host offer what a test needs? Each probe tries the thing itself.

A probe returns None if the host can, else the reason in words. It never looks at a version
number: distributions backport, and sandboxes forbid.
"""

import functools
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

PROJECT = Path(__file__).parent.parent


def _in_child(code: str) -> str | None:
    """Run *code* in a fresh interpreter; the last line it wrote to stderr is the reason."""
    argv = [sys.executable, "-c", code]
    run = subprocess.run(argv, capture_output=True, text=True, check=False, cwd=PROJECT)
    return None if run.returncode == 0 else run.stderr.strip().rpartition("\n")[2]


def root() -> str | None:
    return None if os.geteuid() == 0 else "not run as root"


def fuse() -> str | None:
    try:
        os.close(os.open("/dev/fuse", os.O_RDWR))
    except OSError as e:
        return str(e)
    return None


def mount_ns() -> str | None:
    return _in_child("from launcher import abi; abi.unshare(abi.CLONE_NEWNS)")


def namespaces() -> str | None:
    return _in_child("from examples import apart; apart.leave_host()")


def cc() -> str | None:
    run = subprocess.run(["cc", "--version"], capture_output=True, check=False)
    return None if run.returncode == 0 else "no C compiler"


def systemd() -> str | None:
    """Not a running one: its programs, and the message bus."""
    needed = ("systemd-analyze", "systemctl", "/sbin/init", "dbus-daemon")
    missing = [name for name in needed if not shutil.which(name)]
    return f"no {' '.join(missing)}" if missing else None


def browser() -> str | None:
    missing = [name for name in ("chromium", "chromedriver") if not shutil.which(name)]
    return f"no {' '.join(missing)}" if missing else None


def etcd() -> str | None:
    """Debian's server: `make test` takes it out of its package."""
    there = PROJECT / "build/etcd/usr/bin/etcd"
    return None if there.exists() or shutil.which("etcd") else "no etcd (make test fetches it)"


def registry() -> str | None:
    """Debian's docker-registry, which `make test` takes out of its package; and skopeo."""
    there = PROJECT / "build/registry/usr/bin/docker-registry"
    if not (there.exists() or shutil.which("docker-registry")):
        return "no docker-registry (make test fetches it)"
    return None if shutil.which("skopeo") else "no skopeo"


def huge_pages() -> str | None:
    """Whether the kernel has them; that the host can give some, the test demands."""
    pool = Path("/sys/kernel/mm/hugepages/hugepages-2048kB/nr_hugepages")
    return None if os.access(pool, os.W_OK) else "no huge pages of 2 MiB"


def patched_pyfuse3() -> str | None:
    return _in_child("import pyfuse3; pyfuse3.HANDLE_IS_INODE")


PROBES: dict[str, Callable[[], str | None]] = {
    probe.__name__: functools.cache(probe)
    for probe in (
        root,
        fuse,
        mount_ns,
        namespaces,
        cc,
        systemd,
        browser,
        etcd,
        registry,
        huge_pages,
        patched_pyfuse3,
    )
}
