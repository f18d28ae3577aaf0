"""The root tree of the workloads: Python and four programs. Small, for an emulated processor has
to read it whole: the identity of a lower layer is a digest of its contents.

.venv/bin/python -m tests.kernels.root       builds it if needed and prints where it is
"""

import sys
from pathlib import Path

from examples import roots

SELECTION = roots.Selection(
    programs=(
        "/usr/bin/python3",
        "/usr/lib/python3.11/lib-dynload/_ctypes.cpython-311-x86_64-linux-gnu.so",
        "/bin/cat",
        "/bin/mount",
        "/bin/true",
        "/bin/umount",
    ),
    files=("/lib/x86_64-linux-gnu/libnss_files.so.2",),
    directories=("/etc", "/root", "/srv", "/usr/share", "/var/tmp"),
    trees=("/usr/lib/python3.11", "/usr/lib/locale/C.utf8"),
    accounts=frozenset({"root", "mail", "nogroup", "nobody", "users"}),
)


def build() -> Path:
    """Return the tree.

    Raises:
        examples.roots.BuildError: it could not be made.
    """
    return roots.reduced("kernels", roots.debian(), SELECTION, {}, _finish)


def _finish(_root: Path) -> None:
    """Nothing is missing."""


if __name__ == "__main__":
    sys.exit(roots.main(build))
