"""Names of unix sockets: unix(7), "Address format".

The address is what the program gave to bind(2): relative to its current directory and root then,
which may have changed. The node in the file system is what connects; it may have been renamed or
removed since. The restarted socket shows the same address and stands at the same node.
"""

import contextlib
import errno
import fcntl
import os
import socket
import stat as mode_bits
from collections.abc import Iterator

import msgspec

from ckpt.kinds import abi, ghost, location, sockets
from ckpt.kinds.protocol import Dump, Source, Workshop


class Name(msgspec.Struct, frozen=True):
    """The name of a unix socket.

    Attributes:
        address: as getsockname(2) shows it; an abstract one begins with a zero byte.
        path: of its node, absolute, in the pod; None for an abstract name.
        linked: does path still lead to the node?
        mode, uid, gid: of the node.
    """

    address: bytes
    path: bytes | None = None
    linked: bool = False
    mode: int = 0
    uid: int = 0
    gid: int = 0


def collect(source: Source, dump: Dump) -> Name | None:
    """Return the name of a socket; None if it has none."""
    with sockets.borrowed(source.local_fd) as s:
        address = os.fsencode(s.getsockname())
    if not address:
        return None
    node = _node(source.local_fd)
    if node is None:
        return Name(address)
    try:
        stat = os.fstat(node)
        link = os.fsencode(os.readlink(f"/proc/self/fd/{node}"))
    finally:
        os.close(node)
    path = location.locate(link, stat, dump)
    return Name(
        address=address,
        path=path or location.removed_name(link),
        linked=path is not None,
        mode=mode_bits.S_IMODE(stat.st_mode),
        uid=stat.st_uid,
        gid=stat.st_gid,
    )


def bind(s: socket.socket, name: Name | None, workshop: Workshop) -> None:
    """Give *s* its name, and the name its node.

    What stands at the path is in the way: the node of the socket from before, which is replaced,
    or something newer, which is put aside meanwhile.
    """
    if name is None:
        return
    if name.path is None:
        s.bind(name.address)
        return
    directory, base = os.path.split(name.path)
    with ghost.lent_directory(directory, workshop) as directory_fd:
        aside = _clear(directory_fd, base, name.linked)
        if aside is None and not name.linked:
            workshop.lend(name.path, directory_fd)
        _bind_as(s, name.address, name.path)
        os.chown(base, name.uid, name.gid, dir_fd=directory_fd)
        os.chmod(base, name.mode, dir_fd=directory_fd)
        if not name.linked:
            os.unlink(base, dir_fd=directory_fd)
        if aside is not None:
            os.rename(aside, base, src_dir_fd=directory_fd, dst_dir_fd=directory_fd)


@contextlib.contextmanager
def reach(target: socket.socket, workshop: Workshop) -> Iterator[bytes | str]:
    """Give an address that leads to *target*, even if its node has no path any more.

    A node is reached by its descriptor in the host's /proc, from there as the current directory.
    """
    node = _node(target.fileno())
    if node is None:
        yield os.fsencode(target.getsockname())
        return
    try:
        os.fchdir(workshop.host_proc_fd)
        yield f"self/fd/{node}"
    finally:
        os.chdir("/")
        os.close(node)


def _node(fd: int) -> int | None:
    """Return an O_PATH descriptor of the node of a bound socket; None if it has none.

    Source: net/unix/af_unix.c, unix_open_file().
    """
    try:
        return fcntl.ioctl(fd, abi.SIOCUNIXFILE)
    except FileNotFoundError:
        return None


def _clear(directory_fd: int, base: bytes, linked: bool) -> bytes | None:
    """Make room for a node; return the name that something to be kept has meanwhile."""
    try:
        stat = os.stat(base, dir_fd=directory_fd, follow_symlinks=False)
    except FileNotFoundError:
        return None
    if linked and mode_bits.S_ISSOCK(stat.st_mode):
        os.unlink(base, dir_fd=directory_fd)
        return None
    aside = f".ckpt-{os.urandom(8).hex()}".encode()
    os.rename(base, aside, src_dir_fd=directory_fd, dst_dir_fd=directory_fd)
    return aside


def _bind_as(s: socket.socket, address: bytes, path: bytes) -> None:
    """Bind to *address* from where it means *path*: from another root, or another directory."""
    if address == path:
        s.bind(address)
        return
    child = os.fork()  # root and current directory are the child's own, the socket is not
    if child == 0:
        os._exit(_bind_elsewhere(s, address, path))
    _, status = os.waitpid(child, 0)
    code = os.waitstatus_to_exitcode(status)
    if code:
        raise OSError(code, f"bind: {os.strerror(code)}", os.fsdecode(path))


def _bind_elsewhere(s: socket.socket, address: bytes, path: bytes) -> int:
    try:
        if address.startswith(b"/") and path.endswith(address):
            os.chroot(path.removesuffix(address))
            s.bind(address)
        elif path.endswith(b"/" + address):
            os.chdir(path.removesuffix(address))
            s.bind(address)
        else:
            # Through a symbolic link, or renamed: the place counts more than the spelling.
            here = address.startswith(b"/") and os.path.realpath(address) == path
            s.bind(address if here else path)
    except OSError as e:
        return e.errno or errno.EIO
    return 0
