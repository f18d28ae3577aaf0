"""The pod's network while it is checkpointed."""

import os
from typing import Self

from launcher import pods, wall


class Wire:
    """Holds the pod's packets back while its connections are read. Leaving the context cleans up.

    If this process is killed, packets pass again.
    """

    def __init__(self, running: pods.Pod) -> None:
        self._netns_fd = os.open(f"/proc/{running.init_pid}/ns/net", os.O_RDONLY | os.O_CLOEXEC)
        self._wall: wall.Wall | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        os.close(self._netns_fd)
        if self._wall is not None:
            self._wall.close()

    def hold(self) -> None:
        """Hold packets back, from now until open().

        Raises:
            OSError: as netlink(7).
        """
        self._wall = wall.build(self._netns_fd)

    def open(self) -> None:
        """Let packets pass, if they were held back."""
        if self._wall is not None:
            self._wall.open()

    def keep_closed(self) -> None:
        """Hold packets back until the pod comes back, if they are held now."""
        if self._wall is not None:
            wall.build_lasting(self._netns_fd)
