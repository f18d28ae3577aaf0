"""Names of other pods, inside a pod: its /etc/hosts, from the pod's own and the address book.

A file `/run/autopod/POD/hosts`, bound read-only over the pod's: no daemon, and programs ask nobody.
It is written in place, since the pod's mount stands for the file and not for its name. What the
pod has itself in its /etc/hosts comes first; what the host knows stands below MARK.
"""

import errno
import os
import stat
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Final

from launcher import abi, addresses
from launcher.config import PodConfig
from launcher.identity import Identity
from launcher.places import Places

MARK: Final = "# the pods of this host:\n"
TARGET: Final = "/etc/hosts"
_LOCAL: Final = "127.0.0.1 localhost\n::1 localhost ip6-localhost ip6-loopback\n"
_CREATE: Final = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
_MOST: Final = 1 << 20
_BELOW_ROOT: Final = abi.RESOLVE_IN_ROOT | abi.RESOLVE_NO_SYMLINKS | abi.RESOLVE_NO_MAGICLINKS


def path(places: Places, name: str) -> Path:
    """Return the file of pod *name*."""
    return places.run(name) / "hosts"


def prepare(places: Places, config: PodConfig) -> Path | None:
    """Write the file of a pod that is about to start; return where it is.

    None: it has no network, or no /etc, or something else than a file as /etc/hosts.

    Raises:
        OSError: the root cannot be read, or the file not be written.
    """
    pods = addresses.read(places).reached
    file = path(places, config.name)
    file.unlink(missing_ok=True)
    own = _own(places.root(config.name)) if config.name in pods else None
    if own is None:
        return None
    text = own or _LOCAL
    if config.host_name not in text.split():
        text = f"{text.rstrip()}\n{_lines({config.host_name: pods[config.name]})}"
    with open(os.open(file, _CREATE, 0o644), "w") as new:
        new.write(text_of(text, config.name, pods))
    return file


def update(places: Places, pods: Mapping[str, Identity]) -> None:
    """Bring the files of all pods up to date."""
    for file in places.runs().glob("*/hosts"):
        with suppress(FileNotFoundError):
            own = file.read_text().partition(MARK)[0]
            _overwrite(file, text_of(own, file.parent.name, pods).encode())


def text_of(own: str, name: str, pods: Mapping[str, Identity]) -> str:
    """Return the file of pod *name*, whose own lines are *own*. Pure."""
    others = {other: found for other, found in sorted(pods.items()) if other != name}
    return f"{own.rstrip()}\n{MARK}{_lines(others)}"


def _lines(pods: Mapping[str, Identity]) -> str:
    pairs = [(address, name) for name, pod in pods.items() for address, _ in pod.pairs]
    return "".join(f"{address.partition('/')[0]} {name}\n" for address, name in pairs)


def _own(root: Path) -> str | None:
    """Return what the pod has in /etc/hosts, made if it is missing; None if there cannot be one."""
    root_fd = os.open(root, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    opened = [root_fd]
    try:
        etc_fd = abi.openat2(root_fd, "etc", os.O_PATH | os.O_DIRECTORY, _BELOW_ROOT)
        opened.append(etc_fd)
        with suppress(FileExistsError):
            opened.append(os.open("hosts", _CREATE, 0o644, dir_fd=etc_fd))
        file_fd = abi.openat2(etc_fd, "hosts", os.O_PATH | os.O_NOFOLLOW, _BELOW_ROOT)
        opened.append(file_fd)
        if not stat.S_ISREG(os.fstat(file_fd).st_mode):
            return None
        with open(f"/proc/self/fd/{file_fd}", "rb") as file:
            return file.read(_MOST).decode("utf-8", "replace").partition(MARK)[0]
    except OSError as e:
        if e.errno in {errno.ENOENT, errno.ENOTDIR, errno.ELOOP, errno.EROFS}:
            return None
        raise
    finally:
        for fd in opened:
            os.close(fd)


def _overwrite(file: Path, text: bytes) -> None:
    """Replace what is in *file*; who reads meanwhile finds whole lines.

    A program of the pod that holds a lease on it (fcntl(2), F_SETLEASE) keeps the old content.
    """
    with suppress(BlockingIOError):
        fd = os.open(file, os.O_WRONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        try:
            os.pwrite(fd, text.ljust(os.fstat(fd).st_size, b"\n"), 0)
            os.ftruncate(fd, len(text))
        finally:
            os.close(fd)
