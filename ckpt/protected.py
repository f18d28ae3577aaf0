"""Memory that is watched by write protection.

userfaultfd(2) with UFFD_FEATURE_WP_ASYNC: pages are write-protected, the kernel lifts that by
itself at the first write, and PAGEMAP_SCAN tells where it did. The program sees nothing of it but,
for each such page, a fault that takes a microsecond. The descriptor is made in the program, because
it belongs to its memory, and taken out of it; when this process ends, the kernel forgets it all.

Source: Documentation/admin-guide/mm/userfaultfd.rst and pagemap.rst, since Linux v6.7.
"""

import contextlib
import os

from msgspec import Struct

from ckpt import abi, procfs, userfault
from ckpt.copied import Copied
from ckpt.freeze import FrozenProcess
from ckpt.inject import Injection
from ckpt.kinds import memory
from ckpt.pagemap import PageMap, Range


class Protected(Struct):
    """A Watched, see there.

    Attributes:
        fd: of userfaultfd(2).
    """

    view: int
    fd: int
    copied: Copied
    written: list[Range]

    def take(self, view: int) -> None:
        """See Watched."""
        self.view, self.written = view, []
        with PageMap(self.view) as pages:
            for mapping in memory.private_mappings(self.view):
                if not pages.is_watched(mapping.start):
                    self._register(mapping.start, mapping.end - mapping.start)
                self.written += pages.take_written(mapping.start, mapping.end)

    def settle(self, view: int) -> None:
        """See Watched."""
        with PageMap(view) as pages:
            for mapping in memory.private_mappings(view):
                for start, end in pages.written(mapping.start, mapping.end):
                    self.copied.cut(start, end)

    def close(self) -> None:
        """See Watched."""
        os.close(self.fd)

    def _register(self, start: int, length: int) -> None:
        """Have a mapping watched, if the kernel does that with it.

        It may have been watched before: who moves memory (mremap(2)) ends that for all of the
        mapping it becomes a part of, but pages stay marked as not written to. No mark is believed
        but those that are made from now on.
        """
        wanted = abi.uffdio_register(start, length, abi.UFFDIO_REGISTER_MODE_WP)
        with contextlib.suppress(OSError):
            abi.ioctl(self.fd, abi.UFFDIO_REGISTER, wanted)
            try:
                abi.ioctl(
                    self.fd, abi.UFFDIO_WRITEPROTECT, abi.uffdio_writeprotect(start, length, 0)
                )
            except OSError:
                abi.ioctl(self.fd, abi.UFFDIO_UNREGISTER, abi.uffdio_range(start, length))
                raise


def watch(process: FrozenProcess) -> Protected | None:
    """Begin to watch a frozen process; None: the kernel cannot, or the process has no room.

    Raises:
        LookupError: no system call can be made in it.
    """
    mappings = procfs.parse_maps(procfs.read_bytes(process.view, "maps"))
    flags = os.O_CLOEXEC | abi.UFFD_USER_MODE_ONLY
    with Injection(process, mappings) as injection, injection.borrow(process.leader) as call:
        try:
            there = call.syscall("userfaultfd", flags)
        except OSError:
            return None
        try:
            fd = userfault.take_out(process.view, there)
        finally:
            call.syscall("close", there)
    features = abi.UFFD_FEATURE_WP_ASYNC | abi.UFFD_FEATURE_WP_UNPOPULATED
    try:
        abi.ioctl(fd, abi.UFFDIO_API, abi.uffdio_api(abi.UFFD_API, features))
    except OSError:
        os.close(fd)
        return None
    return Protected(process.view, fd, Copied(), [])
