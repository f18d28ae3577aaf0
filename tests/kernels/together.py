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
EVERY_S = 0.2  # an emulated processor has better things to do than to read a log
ALONE = frozenset({"first_thread.c"})
"""What a kernel may refuse: in a pod of its own, so that it alone is refused."""
_BUSY = "busy.c"
"""Takes all the processor time that there is: last of all."""
_ANSWER = re.compile(r"^(ok|fail:.*)$", re.MULTILINE)
_BEGUN = re.compile(r"^(ready|fail:.*)$", re.MULTILINE)


def groups(names: Iterable[str]) -> dict[str, list[str]]:
    """Return the workloads *names* by what is configured for them, a pod for each."""
    found: dict[str, list[str]] = {}
    for name in sorted(names, key=lambda name: name == _BUSY):
        text = (harness.WORKLOADS / name).read_text()
        toml = harness.configuration(text)
        if name in ALONE:
            toml = f"# {name}\n{toml or harness.NO_NETWORK}"
        found.setdefault(toml, []).append(name)
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
            if not self._is_ready(name):
                yield name, f"never ready; it said: {self._log(name)}"
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
                yield name, self._wait_for(name, _ANSWER)[1]
            except AssertionError:
                yield name, f"no answer; it said: {self._log(name)}"

    def save(self, path: Path) -> None:
        """Write who is who, for the next host."""
        path.write_bytes(msgspec.json.encode(self.leaders))

    def load(self, path: Path) -> None:
        """Read what save() wrote."""
        self.leaders = msgspec.json.decode(path.read_bytes(), type=dict[str, int])

    def _is_ready(self, name: str) -> bool:
        """Wait until it is, or has failed before."""
        try:
            return self._wait_for(name, _BEGUN)[1] == "ready"
        except AssertionError:
            return False

    def _wait_for(self, name: str, pattern: re.Pattern[str]) -> re.Match[str]:
        """Wait until the output of workload *name* has *pattern*.

        Raises:
            AssertionError: it never has.
        """
        return harness.poll(lambda: pattern.search(self._log(name)), name, READY_S, EVERY_S)

    def _log(self, name: str) -> str:
        path = self.pod.root / f"tmp/{name}.log"
        return path.read_text() if path.exists() else ""
