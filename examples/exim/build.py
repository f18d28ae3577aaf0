"""The root tree of the Exim pod: one program, its libraries, its configuration; no shell.

.venv/bin/python -m examples.exim.build      builds it if needed and prints where it is
"""

import os
import sys
from pathlib import Path

from examples import roots

HERE = Path(__file__).parent

SELECTION = roots.Selection(
    programs=("/usr/sbin/exim4",),
    # Opened by glibc when it is asked for a user or a host, so no closure shows them.
    files=(
        "/lib/x86_64-linux-gnu/libnss_files.so.2",
        "/lib/x86_64-linux-gnu/libnss_dns.so.2",
        "/etc/services",
    ),
    directories=("/etc/exim4", "/home", "/var/lib/exim4", "/var/mail"),
    trees=("/var/spool/exim4", "/var/log/exim4"),
    accounts=frozenset({"root", "mail", "adm", "nogroup", "nobody", "users", "Debian-exim"}),
)


def build() -> Path:
    """Return the tree; the first call of all takes a minute, for Debian is fetched.

    Raises:
        examples.roots.BuildError: it could not be made.
    """
    return roots.reduced("exim", roots.debian(), SELECTION, {HERE / "etc": "etc"}, _finish)


def _finish(root: Path) -> None:
    run = root / "run/exim4"  # made by Debian's init script otherwise
    run.mkdir()
    spool = (root / "var/spool/exim4").stat()
    os.chown(run, spool.st_uid, spool.st_gid)
    roots.add_account(root, "alice", 1000, group="users")


if __name__ == "__main__":
    sys.exit(roots.main(build))
