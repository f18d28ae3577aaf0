"""The root tree of the Redis pod: one program, its libraries, its configuration; no shell.

`.venv/bin/python -m examples.redis.build` builds it if needed and prints where it is.
"""

import os
import sys
from pathlib import Path

from examples import roots

HERE = Path(__file__).parent

SELECTION = roots.Selection(
    programs=("/usr/bin/redis-server",),
    directories=("/etc/redis", "/var/lib/redis"),
    accounts=frozenset({"root", "redis", "nogroup", "nobody"}),
)


def build() -> Path:
    """Return the tree; the first call of all takes a minute, for Debian is fetched.

    Raises:
        examples.roots.BuildError: it could not be made.
    """
    full = roots.debian(roots.SERVERS)
    return roots.reduced("redis", full, SELECTION, {HERE / "etc": "etc/redis"}, _finish)


def _finish(root: Path) -> None:
    for directory in ("etc/redis", "var/lib/redis"):  # the pod's root has no capability
        os.chown(root / directory, 0, 0)


if __name__ == "__main__":
    sys.exit(roots.main(build))
