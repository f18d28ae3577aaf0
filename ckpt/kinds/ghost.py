"""Names for what has none any more, while it is made anew.

Its last name is what /proc/PID shows of it, and the directory of that says on which file system it
is. So an object without a name is made under the last one, where that is free, and then removed
like before.
"""

import contextlib
import errno
import os
from collections.abc import Iterator

from ckpt.kinds import location
from ckpt.kinds.protocol import Workshop


@contextlib.contextmanager
def lent_name(
    directory: bytes, name: bytes | None, workshop: Workshop
) -> Iterator[tuple[int, bytes]]:
    """Lend a free name; what is made under it is removed in the end, and the name with it.

    Args:
        directory: as for lent_directory().
        name: the wanted one; a hidden one takes its place where it is None or not free.
        workshop: is told of it.

    Yields:
        A descriptor of the directory, and the name in it.
    """
    with lent_directory(directory, workshop) as directory_fd:
        if name is None or not _is_free(name, directory_fd):
            name = f".ckpt-{os.urandom(8).hex()}".encode()
        workshop.lend(os.path.join(directory, name), directory_fd)
        try:
            yield directory_fd, name
        finally:
            _remove(name, directory_fd)


@contextlib.contextmanager
def lent_directory(directory: bytes, workshop: Workshop) -> Iterator[int]:
    """Give a descriptor of *directory*; what is missing of it is made meanwhile.

    Its times are put back in the end.
    """
    with contextlib.ExitStack() as undo:
        yield _open(directory, undo, workshop)


def _open(directory: bytes, undo: contextlib.ExitStack, workshop: Workshop) -> int:
    """Open *directory*, which *undo* leaves as it was.

    Where something else has its name by now, the one above takes its place.
    """
    try:
        fd = location.open_in_pod(None, directory, os.O_RDONLY | os.O_DIRECTORY)
    except OSError as e:
        if e.errno not in {errno.ENOENT, errno.ENOTDIR, errno.ELOOP}:
            raise
        above, name = os.path.split(directory)
        fd = _open(above, undo, workshop)
        if e.errno != errno.ENOENT:
            return fd
        workshop.lend(directory, fd)
        os.mkdir(name, 0o700, dir_fd=fd)
        undo.callback(os.rmdir, name, dir_fd=fd)
        fd = os.open(name, os.O_RDONLY | os.O_DIRECTORY, dir_fd=fd)
    before = os.fstat(fd)
    undo.callback(os.close, fd)
    undo.callback(os.utime, fd, ns=(before.st_atime_ns, before.st_mtime_ns))
    return fd


def _is_free(name: bytes, directory_fd: int) -> bool:
    try:
        os.stat(name, dir_fd=directory_fd, follow_symlinks=False)
    except FileNotFoundError:
        return True
    return False


def _remove(name: bytes, directory_fd: int) -> None:
    with contextlib.suppress(FileNotFoundError):
        try:
            os.unlink(name, dir_fd=directory_fd)
        except IsADirectoryError:
            os.rmdir(name, dir_fd=directory_fd)
