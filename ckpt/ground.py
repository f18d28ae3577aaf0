"""Where a pod's processes are to be raised: its network, its root, its namespaces.

None of that depends on its processes, so that it can be made while they still run elsewhere.
"""

import time
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Self

from ckpt import layers
from ckpt.model import Clocks
from ckpt.seed import RestoreError
from ckpt.stackcommand import Mounting
from launcher import config, enter, network, pods
from launcher.places import Places


class Ground:
    """What of a pod is made before its processes; undone at the end of the context, unless kept.

    Attributes:
        settings: the pod's configuration.
        installed: its root, when lay() has mounted it.
        files: what that is made of.
        running: the pod, when make() has made it.
        clocks: what its clocks began with.
    """

    installed: layers.Installed
    files: layers.Files | None = None
    running: pods.Pod
    clocks: Clocks | None = None

    def __init__(self, places: Places, settings: config.PodConfig, *, walled: bool) -> None:
        """Begin with the network; with *walled* no packet comes until network.open_network().

        Raises:
            RestoreError: the pod runs.
            PodError: its network cannot be made.
        """
        self._places, self.settings = places, settings
        _make_room(places, settings.name)
        with ExitStack() as undo:
            undo.callback(places.restarting(settings.name).unlink, missing_ok=True)
            self._making = network.begin(places, settings, walled=walled)
            undo.callback(self._making.undo)
            undo.enter_context(self._making)
            self._undo = undo.pop_all()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self._undo.close()

    def connect(self) -> None:
        """Return when its network is made.

        Raises:
            PodError: it cannot be made.
        """
        self._making.finish()

    def lay(
        self,
        files: layers.Files,
        lowers: Sequence[Path] | None = None,
        replace: bool = False,
        mounting: Mounting | None = None,
    ) -> None:
        """Mount its root; see layers.install().

        Raises:
            InstallError, StackError, FormatError: it cannot be mounted.
        """
        where = self._places, self.settings.name
        self.installed = layers.install(files, *where, lowers, replace, mounting)
        self._undo.callback(self.installed.undo)
        self.files = files

    def make(self, clocks: Clocks) -> None:
        """Make the pod, whose *clocks* go on; its network is there, and its root.

        Raises:
            PodError: it cannot be made.
        """
        offsets = pods.ClockOffsets(
            clocks.monotonic_ns - time.clock_gettime_ns(time.CLOCK_MONOTONIC),
            clocks.boottime_ns - time.clock_gettime_ns(time.CLOCK_BOOTTIME),
        )
        name = self.settings.name
        self.running = pods.create(self._places, self.settings, clocks=offsets, has_network=True)
        self._undo.callback(pods.destroy, self._places, name)
        self._places.restarting(name).touch()
        self.clocks = clocks

    def keep(self) -> None:
        """Leave all of it: the pod lives."""
        self._undo.pop_all()


def _make_room(places: Places, pod: str) -> None:
    """End what a restart that was killed has left: a pod without processes.

    Raises:
        RestoreError: the pod runs.
    """
    running = pods.find(places, pod)
    if running is not None and enter.pids(running):
        raise RestoreError(f"pod {pod!r} is running", f"end it first: launcher stop {pod}")
    pods.destroy(places, pod)
    if running is not None and network.is_kept(network.path(places, pod)):
        network.leave_network(places, pod)  # connections of that restart may linger in it
