"""Who looks, all the time, at which host a pod runs: at processes, and at nothing that says so.

A copy of a pod is a control group in which a program runs: one that is neither in a freezer, nor
stopped, nor held by a tracer, as are those that are still being built or were taken down. The
pod's init is none of its programs.
"""

import contextlib
import threading
import time
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from examples.leftovers import tag

PAUSE_S = 0.02
_STANDING = "tTXZ"


class Copy(NamedTuple):
    """A pod's control group at a host."""

    host: str
    group: Path


@dataclass(slots=True)
class Pause:
    """How long a pod ran nowhere.

    Attributes:
        since: when it was last seen, of time.monotonic().
        longest_s: the longest that it was not, since that was asked for.
    """

    since: float
    longest_s: float = 0.0


class Witness:
    """A thread that looks; start it, and end() it."""

    def __init__(self, prefixes: Mapping[str, Path]) -> None:
        """Watch over the hosts, which are instances of these *prefixes*, by name."""
        top = next(
            Path(line.split()[4])
            for line in Path("/proc/self/mountinfo").read_text().splitlines()
            if " - cgroup2 " in line
        )
        self._groups = {name: top / f"autopod-{tag(prefix)}" for name, prefix in prefixes.items()}
        self._over = threading.Event()
        self._lock = threading.Lock()
        self._seen: dict[str, list[Copy]] = {}
        self._pauses: dict[str, Pause] = {}
        self.twice: list[str] = []
        self.looks = 0
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def where(self, pod: str) -> list[str]:
        """Return the hosts at which it ran when last looked."""
        with self._lock:
            return [copy.host for copy in self._seen.get(pod, [])]

    def take_pause(self, pod: str) -> float:
        """Return for how long at most, in seconds, it ran nowhere since that was last asked."""
        with self._lock:
            pause = self._pauses.setdefault(pod, Pause(time.monotonic()))
            longest, pause.longest_s = pause.longest_s, 0.0
        return longest

    def end(self) -> None:
        """Stop looking."""
        self._over.set()
        self._thread.join()

    def _run(self) -> None:
        while not self._over.wait(PAUSE_S):
            found = self._look()
            with self._lock:
                self._note(found)
            self.looks += 1

    def _look(self) -> dict[str, list[Copy]]:
        found: dict[str, list[Copy]] = defaultdict(list)
        for host, parent in self._groups.items():
            for group in _children(parent):
                if running(group):
                    found[group.name.partition(".")[0]].append(Copy(host, group))
        for pod, copies in found.items():
            if len(copies) > 1:
                self._check(pod, copies)
        return found

    def _check(self, pod: str, copies: list[Copy]) -> None:
        """Tell of copies that run at the same time: the first does before and after the others.

        They were looked at one after the other, and the pod may have moved meanwhile.
        """
        first, *others = copies
        before = running(first.group)
        between = [(copy, running(copy.group)) for copy in others]
        after = running(first.group)
        if before.keys() & after.keys():
            for copy, programs in between:
                if programs:
                    here, there = ", ".join(after.values()), ", ".join(programs.values())
                    self.twice.append(
                        f"{pod} at {first.host} ({first.group.name}: {here}) "
                        f"and at {copy.host} ({copy.group.name}: {there})"
                    )

    def _note(self, found: dict[str, list[Copy]]) -> None:
        now = time.monotonic()
        self._seen = found
        for pod in found:
            self._pauses.setdefault(pod, Pause(now)).since = now
        for pause in self._pauses.values():
            pause.longest_s = max(pause.longest_s, now - pause.since)


def running(group: Path) -> dict[int, str]:
    """Return the programs of a control group that are running: process ids, and what they are."""
    found = {}
    with contextlib.suppress(OSError):
        if "frozen 1" in (group / "cgroup.events").read_text():
            return {}
        for pid in (group / "cgroup.procs").read_text().split():
            with contextlib.suppress(OSError):
                status = Path(f"/proc/{pid}/status").read_text()
                if name := program(status):
                    found[int(pid)] = f"{pid} {name}"
    return found


def program(status: str) -> str | None:
    """Return the name of a program that runs; None where it does not, or is an init. Pure.

    Args:
        status: proc_pid_status(5).
    """
    lines = (line.partition(":\t") for line in status.splitlines())
    fields = {name: value for name, _, value in lines}
    is_init = fields["NSpid"].split()[-1] == "1"
    if is_init or fields["TracerPid"] != "0" or fields["State"][0] in _STANDING:
        return None
    return fields["Name"]


def _children(parent: Path) -> list[Path]:
    with contextlib.suppress(OSError):
        return [path for path in parent.iterdir() if path.is_dir()]
    return []
