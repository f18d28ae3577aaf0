"""Pods that are really checkpointed and restarted: stackfs below, the launcher around.

A workload (tests/workloads) is a program that checks one kernel feature itself: it sets the
feature up, prints `ready`, and when it gets SIGUSR1 after the restart it prints `ok`, or
`fail: reason`, and ends. Its output is the pod's log. Lines that begin with `# toml:` or
`// toml:` are the pod's configuration.
"""

import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import msgspec

from ckpt import dump, restore
from ckpt.archive import keys
from ckpt.progress import Silent
from launcher import commands, config, enter, network, pods, users
from launcher.lock import locked
from stackfs import mounting
from stackfs.places import Places
from tests.patience import DEADLINE_S

WORKLOADS = Path(__file__).parents[2] / "workloads"
NO_NETWORK = '[network]\nmode = "none"\n'


def names():
    """Return the file names of all workloads."""
    return sorted(p.name for p in WORKLOADS.iterdir() if p.suffix in {".py", ".c"})


def tool(name, *argv, timeout=2 * DEADLINE_S):
    """Run one of our commands; return what it wrote to standard output."""
    run = subprocess.run(
        [Path(sys.executable).with_name(name), *argv],
        capture_output=True,
        text=True,
        check=False,
        timeout=timeout,
    )
    assert run.returncode == 0, f"{name} {' '.join(map(str, argv))}: {run.stderr}"
    return run.stdout


def poll(predicate, what, seconds=DEADLINE_S, every=0.005):
    """Wait until *predicate* is true; return what it gave. It is asked *every* so many seconds."""
    deadline = time.monotonic() + seconds
    while not (found := predicate()):
        assert time.monotonic() < deadline, f"no {what} within {seconds} s"
        time.sleep(every)
    return found


class Pod:
    """One pod of a test; a context manager that ends it and unmounts its root."""

    def __init__(self, places, lower, toml="", name="w"):
        self.places = places
        self.name = name
        self.archive = places.prefix / f"{name}.pod"
        self._lower = lower
        keys.ensure(places.keys(), places.trust())
        file = places.config(name)
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(toml or NO_NETWORK)

    def __enter__(self):
        base = users.ensure(self.places, config.load(self.places, self.name)) or 0
        tool("stackfs", "mount", self.name, "--lower", self._lower, "--shift", str(base))
        return self

    def move_users(self):
        """Let the pod, which has ended, have other ids of the host; return by how much."""
        mine = config.load(self.places, self.name)
        other = msgspec.structs.replace(mine, name="other")
        self._unmount()
        before = users.base(self.places, self.name)
        users.forget(self.places, self.name)
        users.ensure(self.places, other)
        after = users.ensure(self.places, mine)
        tool("stackfs", "mount", self.name, "--shift", str(after))
        return after - before

    def __exit__(self, *_):
        pods.destroy(self.places, self.name)
        network.remove_network(self.places, self.name)
        self._unmount()

    def _unmount(self):
        """Do what `stackfs umount` does, without an interpreter of its own."""
        mounting.umount(Places(self.places.prefix), self.name, lazy=False)

    @property
    def root(self):
        return self.places.root(self.name)

    def put(self, path, content, mode=0o755):
        """Make a file in the pod."""
        target = self.root / path.lstrip("/")
        target.write_bytes(content if isinstance(content, bytes) else content.encode())
        target.chmod(mode)

    def start(self, *argv):
        """Do what `launcher start` does, without an interpreter of its own."""
        commands.start(self.places, self.name, [*map(os.fspath, argv)])

    def log(self):
        return self.places.log(self.name).read_text()

    def wait_for(self, text):
        self.wait_for_match(re.escape(text))

    def wait_for_match(self, pattern):
        try:
            return poll(lambda: re.search(pattern, self.log(), re.MULTILINE), pattern)
        except AssertionError as e:
            e.add_note(f"the log: {self.log()}")
            for pid, host_pid in self.host_pids().items():
                for task in sorted(Path(f"/proc/{host_pid}/task").iterdir()):
                    about = [(task / name).read_text() for name in ("stat", "syscall", "wchan")]
                    e.add_note(f"process {pid}: {' '.join(about)}")
            raise

    def running(self):
        return pods.find(self.places, self.name)

    def host_pids(self):
        """Host pids by pids in the pod."""
        found, running = {}, self.running()
        for pid in enter.pids(running) if running else []:
            try:
                status = Path(f"/proc/{pid}/status").read_text()
            except (FileNotFoundError, ProcessLookupError):
                continue
            found[int(re.search(r"NSpid:.*\s(\d+)$", status, re.MULTILINE)[1])] = pid
        return found

    def signal(self, pid, number=signal.SIGUSR1):
        os.kill(self.host_pids()[pid], number)

    def finish(self, pid):
        """Have the workload with leader *pid* check itself."""
        self.signal(pid)
        assert self.wait_for_match(r"^(ok|fail:.*)$")[1] == "ok", self.log()

    def dump(self, *, leave_running=False, tcp=None):
        key = keys.load_private(self.places.keys() / keys.PRIVATE)
        with locked(self.places, self.name):
            return dump.dump(
                self.places,
                self.name,
                self.archive,
                leave_running=leave_running,
                key=key,
                progress=Silent(),
                tcp=tcp,
            )

    def restore(self, *, tcp=None, gate=lambda: (), lazy=None):
        with locked(self.places, self.name):
            return restore.restore(
                self.places,
                self.name,
                self.archive,
                trusted=keys.load_trusted(self.places.trust()),
                lowers=None,
                replace=False,
                progress=Silent(),
                tcp=tcp,
                gate=gate,
                lazy=lazy,
            )

    def check(self):
        return dump.check(self.places, self.name)


def configuration(source):
    """Return the pod configuration that a workload's text asks for."""
    return "\n".join(re.findall(r"^(?:#|//) toml: ?(.*)$", source, re.MULTILINE))


def install(pod, name, build):
    """Put workload *name* into the pod; return how to start it."""
    source = (WORKLOADS / name).read_text()
    if name.endswith(".py"):
        pod.put(f"/tmp/{name}", source)
        return ["/usr/bin/python3", "-I", f"/tmp/{name}"]
    pod.put(f"/tmp/{name[:-2]}", build(WORKLOADS / name).read_bytes())
    return [f"/tmp/{name[:-2]}"]
