"""The pod's network while it is checkpointed."""

import os
import time
from contextlib import suppress
from pathlib import Path
from typing import Final, Self

from ckpt.keeper import Keeper
from ckpt.kinds import procinfo
from launcher import cgroups, held, network, pods, wall

_PATIENCE_S: Final = 0.2
_PAUSE_S: Final = 0.005


class Wire:
    """Holds the pod's packets back while its connections are read. Leaving the context cleans up.

    Entered while the pod runs. What comes for it meanwhile is delivered when packets pass again.

    If this process is killed, packets pass again, and the connections go on.

    Attributes:
        lost: in words, which connections could not be read.
    """

    def __init__(self, running: pods.Pod) -> None:
        self._init_pid = running.init_pid
        self._freezer = cgroups.freezer(running.cgroups)
        self._netns_fd = os.open(f"/proc/{running.init_pid}/ns/net", os.O_RDONLY | os.O_CLOEXEC)
        self.lost: list[str] = []
        self._wall: wall.Wall | None = None
        self._keeper: Keeper | None = None
        self._port = network.port(running.places, running.name)
        self._catcher: held.Catcher | None = None
        self._delivery = held.Delivery()

    def __enter__(self) -> Self:
        self._wait()
        return self

    def __exit__(self, *_: object) -> None:
        os.close(self._netns_fd)
        if self._wall is not None:
            self._wall.close()
        if self._catcher is not None:
            self._catcher.close()
        self._delivery.close()
        self._dismiss()

    def _dismiss(self) -> None:
        if self._keeper is not None:
            self._keeper.close()
            self._keeper = None

    def _wait(self) -> None:
        """Give the pod, which runs, a moment for the connections that would be lost.

        Its programs may accept them, and the kernel may deliver what they have left behind.
        """
        deadline = time.monotonic() + _PATIENCE_S
        while any(self._unowned()) and time.monotonic() < deadline:
            time.sleep(_PAUSE_S)

    def _lost(self, owned: int) -> list[str]:
        waiting, leaving = self._unowned(owned)
        notes = []
        if waiting:
            notes.append(f"{waiting} TCP connections that nobody has accepted yet are not in it")
        if leaving:
            notes.append(f"{leaving} closed TCP connections, not yet delivered, are not in it")
        return notes

    def _unowned(self, owned: int = 0) -> tuple[int, int]:
        """Return how many connections wait, and how many leave, as parse_tcp_unowned() does.

        Reading the tables takes milliseconds, whatever is in them: it is done only where the kernel
        counts more sockets than the pod's programs own.
        """
        counts = (Path(f"/proc/{self._init_pid}/net/{name}") for name in ("sockstat", "sockstat6"))
        if sum(procinfo.parse_tcp_in_use(c.read_bytes()) for c in counts if c.exists()) == owned:
            return 0, 0
        found = [(0, 0)]
        for name in ("tcp", "tcp6"):
            with suppress(FileNotFoundError):  # a kernel without that family
                table = Path(f"/proc/{self._init_pid}/net/{name}").read_bytes()
                found.append(procinfo.parse_tcp_unowned(table))
        return sum(waiting for waiting, _ in found), sum(leaving for _, leaving in found)

    def hold(self) -> None:
        """Hold packets back, from now until open().

        Raises:
            OSError: as netlink(7), packet(7).
        """
        if self._wall is None:
            self._wall = wall.build(self._netns_fd)
            if self._port is not None:
                self._catcher = held.catch(self._netns_fd)

    def hold_for(self, fd: int) -> None:
        """Do so, for the connected socket *fd* will be read.

        Raises:
            OSError: as netlink(7), packet(7).
        """
        self.hold()
        if self._keeper is None:
            self._keeper = Keeper(self._freezer)
        self._keeper.watch(fd)

    def caught(self) -> list[bytes]:
        """Return what has come for the pod since packets were held back, or the last call."""
        return self._catcher.take() if self._catcher is not None else []

    def have_read(self, owned: int) -> None:
        """Note that the pod's connections, all that there were, have been read.

        Args:
            owned: how many TCP sockets its programs have that are bound to a connection or listen.
        """
        self.lost = self._lost(owned)
        self._dismiss()

    def open(self) -> None:
        """Let packets pass, if they were held back."""
        self._dismiss()
        if self._wall is None:
            return
        before = self.caught()
        self._wall.open()
        after = held.only_tcp(self.caught())  # some of it has passed
        if self._port is not None:
            self._delivery.send(self._port, [*before, *after])

    def keep_closed(self) -> None:
        """Hold packets back until the pod comes back, if they are held now."""
        if self._wall is not None:
            wall.build_lasting(self._netns_fd)
