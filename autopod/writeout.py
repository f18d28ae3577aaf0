"""A file that grows is written out meanwhile, so that little is left when all must be durable.

By fdatasync(2): sync_file_range(2) leaves the data in the disk's own cache, and to empty that took
a second at the end, when a GiB had gone there.
"""

import os
import threading
from types import TracebackType
from typing import Self


class WriteOut:
    """Writes one file out as often as need be, in a thread of its own.

    As a context: at its end the thread is left to end by itself; nobody waits for the disk. What
    the last writing meets is told by the syncfs(2) that must come before the file is relied upon:
    a file system keeps its errors for that apart from those of each file (include/linux/pagemap.h,
    mapping_set_error()).
    """

    def __init__(self) -> None:
        self._fd = -1
        self._wanted = threading.Semaphore(0)
        self._ended = False
        self._error: OSError | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, e: BaseException | None, tb: TracebackType | None
    ) -> None:
        self._ended = True
        self._wanted.release()

    def more(self, fd: int) -> None:
        """Begin with what was written to *fd*, the file; what is under way is finished before.

        Raises:
            OSError: what was written before cannot be written out.
        """
        if self._error:
            raise self._error
        if self._fd < 0:
            self._fd = os.dup(fd)
            threading.Thread(target=self._run, daemon=True).start()
        self._wanted.release()

    def _run(self) -> None:
        try:
            while self._wanted.acquire() and not self._ended:
                while self._wanted.acquire(blocking=False):
                    pass
                os.fdatasync(self._fd)
        except OSError as e:
            self._error = e
        finally:
            os.close(self._fd)
