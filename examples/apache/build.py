"""The root tree of the Apache pod: one program, its modules, its pages; no shell.

`.venv/bin/python -m examples.apache.build` builds it if needed and prints where it is.
"""

import sys
from pathlib import Path

from examples import roots

HERE = Path(__file__).parent
MODULES = ("mpm_event", "authz_core", "dir", "mime")

SELECTION = roots.Selection(
    programs=("/usr/sbin/apache2",),
    files=(
        "/etc/mime.types",
        "/lib/x86_64-linux-gnu/libnss_files.so.2",
        *(f"/usr/lib/apache2/modules/mod_{module}.so" for module in MODULES),
    ),
    directories=("/etc/apache2", "/var/log/apache2", "/var/www/html"),
    accounts=frozenset({"root", "adm", "nogroup", "nobody", "www-data"}),
)


def build() -> Path:
    """Return the tree; the first call of all takes a minute, for Debian is fetched.

    Raises:
        examples.roots.BuildError: it could not be made.
    """
    added = {HERE / "etc": "etc", HERE / "www": "var/www/html"}
    return roots.reduced("apache", roots.debian(), SELECTION, added, _finish)


def _finish(root: Path) -> None:
    (root / "run/apache2").mkdir()  # made by apachectl otherwise


if __name__ == "__main__":
    sys.exit(roots.main(build))
