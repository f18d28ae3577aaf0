"""Pods as a whole: make one, find it, end it.

A pod runs as long as its init lives. The record of a running pod is `/run/autopod/POD/pod.json`.
Nothing here locks: commands hold launcher.lock.locked() around it.
"""

from dataclasses import dataclass
from pathlib import Path

from launcher.config import PodConfig
from launcher.places import Places


class PodError(Exception):
    """A pod cannot be made, found or ended; *hint* says what may help, or is ""."""

    def __init__(self, message: str, hint: str = "") -> None:
        super().__init__(message)
        self.hint = hint


@dataclass(frozen=True, slots=True)
class ClockOffsets:
    """What a pod's clocks are ahead of the host's, in nanoseconds (time_namespaces(7))."""

    monotonic_ns: int = 0
    boottime_ns: int = 0


@dataclass(frozen=True, slots=True)
class Pod:
    """A running pod.

    Attributes:
        name: its name.
        init_pid: process id of its init in the host's pid namespace.
        init_start: that process's start time in clock ticks since boot (proc_pid_stat(5)).
        cgroups: directories of its control groups; the cgroup2 one, if there is any, first.
        clocks: its clocks against the host's.
    """

    name: str
    init_pid: int
    init_start: int
    cgroups: tuple[Path, ...]
    clocks: ClockOffsets


def names(places: Places) -> list[str]:
    """Return the names of all pods that this host knows (configuration, state or runtime)."""
    raise NotImplementedError


def find(places: Places, name: str) -> Pod | None:
    """Return pod *name* if it is running."""
    raise NotImplementedError


def create(places: Places, config: PodConfig, *, clocks: ClockOffsets | None = None) -> Pod:
    """Make the pod: control groups, namespaces, mounts, init; no program.

    On failure everything is undone, but for the network, which is made once and kept.

    Raises:
        PodError: the pod runs already, or its root is not mounted, or a limit cannot be set.
        OSError: a system call failed; the text says which, a note says at what.
    """
    raise NotImplementedError


def destroy(places: Places, name: str) -> None:
    """Kill every process of the pod at once, wait for its end, remove groups and record.

    Idempotent, also after a crash of any command. The pod's network is kept.

    Raises:
        PodError: a process did not die in time.
    """
    raise NotImplementedError
