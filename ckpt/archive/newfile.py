"""A new file that appears under its name whole, durable and at once, or not at all."""

import errno
import os
import stat
from contextlib import suppress
from pathlib import Path
from typing import Final

_NO_TMPFILE: Final = {errno.EOPNOTSUPP, errno.EISDIR, errno.ENOSYS}


def _check(path: Path) -> None:
    """Refuse to take the place of a device, a symbolic link, a directory: /dev/null is needed."""
    if path.is_dir():
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), os.fspath(path))
    if os.path.lexists(path) and not stat.S_ISREG(path.lstat().st_mode):
        why = "Not a regular file, and so not replaced"
        raise FileExistsError(errno.EEXIST, why, os.fspath(path))


class NewFile:
    """A file, 0600, being written in the directory where it will have its name.

    Where the file system allows it has no name until commit() (open(2), O_TMPFILE), so that not
    even SIGKILL leaves anything behind; elsewhere it has a hidden one.

    Attributes:
        fd: open for reading and writing; owned by this object.
    """

    def __init__(self, path: Path) -> None:
        """Open a new file that will be *path*.

        Raises:
            OSError: the directory does not allow it, or *path* is something else than a file.
        """
        _check(path)
        self._name = path.name
        self._hidden = f".{path.name[:200]}.{os.urandom(4).hex()}"
        self._is_hidden = False
        try:
            self._dir_fd = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
            try:
                self.fd = self._open()
            except OSError:
                os.close(self._dir_fd)
                raise
        except OSError as e:
            e.filename = os.fspath(path)
            raise

    def _open(self) -> int:
        flags = os.O_RDWR | os.O_CLOEXEC
        try:
            return os.open(".", flags | os.O_TMPFILE, 0o600, dir_fd=self._dir_fd)
        except OSError as e:
            if e.errno not in _NO_TMPFILE:
                raise
        fd = os.open(self._hidden, flags | os.O_CREAT | os.O_EXCL, 0o600, dir_fd=self._dir_fd)
        self._is_hidden = True
        return fd

    def commit(self, *, durable: bool = True) -> None:
        """Make it durable and give it its name, in place of what has the name now.

        Args:
            durable: also after a power failure.

        Raises:
            OSError: as fsync(2), linkat(2), rename(2); the caller goes on to discard().
        """
        if durable:
            os.fsync(self.fd)
        if not self._is_hidden:
            try:
                self._link(self._name)
            except FileExistsError:
                self._link(self._hidden)
                self._is_hidden = True
        if self._is_hidden:
            os.rename(self._hidden, self._name, src_dir_fd=self._dir_fd, dst_dir_fd=self._dir_fd)
            self._is_hidden = False
        if durable:
            os.fsync(self._dir_fd)

    def _link(self, name: str) -> None:
        _link(self.fd, name, self._dir_fd)

    def discard(self) -> None:
        """Close it; without commit() nothing is left of it. Call it once."""
        if self._is_hidden:
            with suppress(FileNotFoundError):
                os.unlink(self._hidden, dir_fd=self._dir_fd)
        os.close(self.fd)
        os.close(self._dir_fd)


def name(fd: int, path: Path) -> None:
    """Give an open file, which may have other names or none, a new one.

    Raises:
        FileExistsError: something has it.
    """
    directory_fd = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        _link(fd, path.name, directory_fd)
    finally:
        os.close(directory_fd)


def _link(fd: int, name: str, directory_fd: int) -> None:
    """Link an open file as open(2) shows under O_TMPFILE."""
    os.link(
        f"/proc/self/fd/{fd}",
        name,
        src_dir_fd=directory_fd,  # unused, but without it os.link() does not follow
        dst_dir_fd=directory_fd,
        follow_symlinks=True,
    )
