"""Self-checking workloads that ask for the same configuration, all in one pod.

On an emulated processor the pod costs far more than a further program in it. Each has its output in
a file of its own, instead of the pod's log.
"""

import os
import re
import signal
from collections.abc import Iterable, Iterator
from pathlib import Path

import msgspec

from launcher import commands
from launcher.places import Places
from tests.kernel.ckpt import harness

READY_S = 600
_BUSY = "busy.c"
"""Takes all the processor time that there is: last of all."""
_ANSWER = re.compile(r"^(ok|fail:.*)$", re.MULTILINE)


def groups(names: Iterable[str]) -> dict[str, list[str]]:
    """Return the workloads *names* by what they want to have configured."""
    found: dict[str, list[str]] = {}
    for name in sorted(names, key=lambda name: name == _BUSY):
        text = (harness.WORKLOADS / name).read_text()
        found.setdefault(harness.configuration(text), []).append(name)
    return found


class Group:
    """The pod of some workloads, on this host.

    Attributes:
        leaders: their first processes, by name: ids in the pod.
    """

    def __init__(self, places: Places, name: str, lower: Path, toml: str, programs: Path) -> None:
        self.pod = harness.Pod(places, lower, toml, name)
        self.leaders: dict[str, int] = {}
        self._lower, self._programs = lower, programs

    def start(self, names: Iterable[str]) -> Iterator[tuple[str, str]]:
        """Start the workloads one after the other; yield each that does not get ready, and why."""
        pod = self.pod
        harness.tool("stackfs", "mount", pod.name, "--lower", self._lower, timeout=READY_S)
        pod.put("/tmp/to_file", (self._programs / "to_file").read_bytes())
        known: set[int] = set()
        for name in names:
            argv = harness.install(pod, name, lambda source: self._programs / source.stem)
            commands.start(pod.places, pod.name, ["/tmp/to_file", f"/tmp/{name}.log", *argv])
            try:
                harness.poll(lambda name=name: "ready\n" in self._log(name), "ready", READY_S)
            except AssertionError:
                yield name, self._log(name)
            new = pod.host_pids().keys() - known - {1}
            known |= new
            if "ready\n" in self._log(name):
                self.leaders[name] = min(new)

    def check(self) -> Iterator[tuple[str, str]]:
        """Have the workloads check themselves; yield each with what it says, "ok" or why not."""
        pids = self.pod.host_pids()
        for name, pid in self.leaders.items():
            if pid not in pids:
                yield name, f"process {pid} is gone; it said: {self._log(name)}"
                continue
            os.kill(pids[pid], signal.SIGUSR1)
            try:
                harness.poll(lambda name=name: _ANSWER.search(self._log(name)), "answer", READY_S)
                yield name, _ANSWER.search(self._log(name))[1]
            except AssertionError:
                yield name, f"no answer; it said: {self._log(name)}"

    def save(self, path: Path) -> None:
        """Write who is who, for the next host."""
        path.write_bytes(msgspec.json.encode(self.leaders))

    def load(self, path: Path) -> None:
        """Read what save() wrote."""
        self.leaders = msgspec.json.decode(path.read_bytes(), type=dict[str, int])

    def _log(self, name: str) -> str:
        path = self.pod.root / f"tmp/{name}.log"
        return path.read_text() if path.exists() else ""
