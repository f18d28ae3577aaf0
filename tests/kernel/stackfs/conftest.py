"""Stacks in a mount namespace of their own, which a test reaches through /proc/PID/root."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from stackfs import control

STACKFS = os.fspath(Path(sys.executable).with_name("stackfs"))


class Host:
    """A mount namespace with a prefix in which stackfs is run."""

    def __init__(self, prefix):
        self.prefix = prefix
        self.lower = prefix / "lower"
        self.lower.mkdir()
        argv = ["unshare", "--mount", "--propagation", "private", "sh", "-c", "echo; read x"]
        self._holder = subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        self._holder.stdout.readline()

    @property
    def _enter(self):
        return ["nsenter", f"--mount=/proc/{self._holder.pid}/ns/mnt", "--"]

    def spawn(self, *argv, **options):
        environment = {**os.environ, "AUTOPOD_PREFIX": os.fspath(self.prefix)}
        return subprocess.Popen([*self._enter, *argv], env=environment, **options)

    def run(self, *argv, stdin=None, check=True, **options):
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
        with self.spawn(*argv, **pipes, **options) as process:
            try:
                output, errors = process.communicate(stdin, timeout=60)
            except BaseException:
                process.kill()
                raise
        if check:
            assert process.returncode == 0, errors.decode()
        return subprocess.CompletedProcess(argv, process.returncode, output, errors)

    def stackfs(self, *arguments, **options):
        return self.run(STACKFS, *map(os.fspath, arguments), **options)

    def mount(self, pod="pod", *arguments):
        self.stackfs("mount", pod, "--lower", self.lower, *arguments)
        return self.root(pod)

    def seen(self, path):
        """The same path as the namespace sees it."""
        return Path(f"/proc/{self._holder.pid}/root{path}")

    def root(self, pod="pod"):
        return self.seen(self.prefix / "autopod" / pod / "root")

    def state(self, pod="pod"):
        return self.prefix / "var/lib/autopod" / pod

    def log(self, pod="pod"):
        return (self.prefix / "run/autopod" / pod / "stackfs.log").read_text()

    def request(self, op, pod="pod", **arguments):
        return control.request(self.prefix / "run/autopod" / pod / "stackfs.sock", op, **arguments)

    def list(self):
        return json.loads(self.stackfs("list", "--json").stdout)

    def daemon(self, pod="pod"):
        return json.loads((self.prefix / "run/autopod" / pod / "stackfs.json").read_text())["pid"]

    def kill_daemon(self, pod="pod"):
        """Kill the daemon; its holder starts another one."""
        pid = self.daemon(pod)
        os.kill(pid, 9)
        wait_until(lambda: self.request("status", pod)["pid"] != pid)

    def kill_all(self, pod="pod"):
        """Kill holder and daemon: the mount is lost."""
        found = self.request("status", pod)
        pids = found["holder"], found["pid"]
        for pid in pids:
            os.kill(pid, 9)
        wait_until(lambda: not any(os.path.exists(f"/proc/{pid}/fd/0") for pid in pids))

    def close(self):
        """Have the daemons end, as `umount --lazy` does, but without an interpreter for each."""
        for record in self.prefix.glob("run/autopod/*/stackfs.json"):
            pod = record.parent.name
            pid = self.daemon(pod)
            self._quit(pod)
            wait_until(lambda pid=pid: not os.path.exists(f"/proc/{pid}/fd/0"))
        self._holder.stdin.close()
        self._holder.wait()
        self._holder.stdout.close()

    def _quit(self, pod):
        while True:
            try:
                self.request("quit", pod, lazy=True)
            except control.NoAnswer:
                continue  # it was killed, and there is another one
            except (OSError, control.Refused):
                pass  # nobody is there; what is still mounted goes with the namespace
            return


def wait_until(predicate, seconds=60):
    deadline = time.monotonic() + seconds
    while not predicate():
        assert time.monotonic() < deadline, "it did not happen in time"
        time.sleep(0.002)


@pytest.fixture
def host(tmp_path):
    """A place to mount stacks in; no daemon may have logged an error at the end."""
    host = Host(tmp_path)
    try:
        yield host
    finally:
        host.close()
    for log in tmp_path.glob("run/autopod/*/stackfs.log"):
        assert "ERROR" not in log.read_text(), log.read_text()
        assert "Traceback" not in log.read_text(), log.read_text()


def fill(lower):
    """Put a file into a lower layer."""
    (lower / "etc").mkdir()
    (lower / "etc/motd").write_text("hello\n")
