"""Which packages a reduced tree is made from, told in the tree as dpkg tells it.

So `autopod status` finds the security updates that a pod without a package manager needs.
"""

import os
import re
import shutil
from collections.abc import Iterator
from pathlib import Path

_STATUS = "var/lib/dpkg/status"
_RELEASE = "usr/lib/os-release"
_MERGED = re.compile(r"/usr(?=/(?:bin|sbin|lib\w*)/)")


def record(full: Path, target: Path) -> None:
    """Write into *target* what dpkg of the tree *full* knows of the packages that its files are of.

    Args:
        full: a Debian tree.
        target: a tree of some of its files.
    """
    owners = dict(_owners(full / "var/lib/dpkg/info"))
    packages = {owners.get(_as_dpkg_has_it(path)) for path in _files(target)}
    known = (full / _STATUS).read_text(encoding="utf-8").split("\n\n")
    kept = [text.strip("\n") for text in known if _name(text) in packages]
    for path in (_STATUS, _RELEASE):
        (target / path).parent.mkdir(parents=True, exist_ok=True)
    (target / _STATUS).write_text("".join(f"{text}\n\n" for text in kept), encoding="utf-8")
    shutil.copyfile(full / _RELEASE, target / _RELEASE)


def _owners(info: Path) -> Iterator[tuple[str, str]]:
    """Yield each path that dpkg has installed, and its package."""
    for file in info.glob("*.list"):
        package = file.stem.partition(":")[0]
        for path in file.read_text(encoding="utf-8").splitlines():
            yield _as_dpkg_has_it(path), package


def _as_dpkg_has_it(path: str) -> str:
    """Return *path* without /usr where it may have been moved there (hier(7), merged /usr)."""
    return _MERGED.sub("", path, count=1)


def _files(tree: Path) -> Iterator[str]:
    for directory, _, names in os.walk(tree):
        for name in names:
            yield f"/{os.path.relpath(os.path.join(directory, name), tree)}"


def _name(paragraph: str) -> str | None:
    found = re.search(r"^Package: (\S+)$", paragraph, re.MULTILINE)
    return found[1] if found else None
