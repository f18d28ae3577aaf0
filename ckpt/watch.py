"""The memory of a running program, watched for what is written to it, by what the kernel has."""

from typing import Protocol

from ckpt import protected, softdirty
from ckpt.copied import Copied
from ckpt.freeze import FrozenProcess
from ckpt.pagemap import Range


class Watched(Protocol):
    """The memory of a process, which is watched until close().

    Attributes:
        view: a thread of the process that lives: see FrozenProcess.view.
        copied: what is stored, as far as it has not been written to since.
        written: what is to be stored, after take().
    """

    view: int
    copied: Copied
    written: list[Range]

    def take(self, view: int) -> None:
        """Note what was written to since the last time, at first all; the process stands still.

        Nobody writes to its memory meanwhile, not even a device: the calls of a thread that stands
        still are over, those that read past the page cache into its memory (O_DIRECT) among them.
        """

    def settle(self, view: int) -> None:
        """Forget of what is stored all that was written to since; the process stands still."""

    def close(self) -> None:
        """End it."""


def watch(process: FrozenProcess) -> Watched | None:
    """Begin to watch a frozen process; None: the kernel cannot.

    Raises:
        LookupError: no system call can be made in it.
    """
    return protected.watch(process) or softdirty.watch(process)
