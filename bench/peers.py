"""Starts beside crun, runc, bubblewrap and systemd-nspawn: /bin/true in namespaces of its own.

Each tool runs as its manual page begins: `crun spec` and `runc spec` as they are (pid, mount, ipc,
uts, network and cgroup namespaces, no system-call filter, loopback only). Ours has the time
namespace, the filter, an address on a bridge and its names besides. Rounds go through all tools,
so that what else the machine does hits them alike.
"""

import json
import os
import shutil
import statistics
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

from bench.host import BIN, Host
from bench.measure import timed
from launcher import abi

ROUNDS = 15


class Tools:
    """The other tools, in a mount namespace that suits them all.

    crun refuses a hybrid of cgroup versions, and nspawn a /run on a disk.
    """

    def __init__(self, scratch: Path, root: Path) -> None:
        self.bundle = scratch / "bundle"
        self.root = root
        self.bundle.mkdir()
        script = (
            "umount /sys/fs/cgroup/unified 2>/dev/null; mount -t tmpfs tmpfs /run && "
            "echo ready && exec sleep 1000000"
        )
        argv = ["unshare", "--mount", "--propagation", "private", "sh", "-c", script]
        self._holder = subprocess.Popen(argv, stdout=subprocess.PIPE)
        self._holder.stdout.readline()
        self._mount_ns = os.open(f"/proc/{self._holder.pid}/ns/mnt", os.O_RDONLY | os.O_CLOEXEC)
        if shutil.which("crun"):
            self._write_bundle()

    def close(self) -> None:
        os.close(self._mount_ns)
        self._holder.kill()
        self._holder.communicate()

    def _write_bundle(self) -> None:
        self.run("crun", "spec", "--bundle", self.bundle)
        file = self.bundle / "config.json"
        spec = json.loads(file.read_text())
        spec["process"]["terminal"] = False
        spec["root"] = {"path": os.fspath(self.root), "readonly": True}
        for name, args in (("true", ["/bin/true"]), ("sleep", ["/bin/sleep", "1000"])):
            directory = self.bundle / name
            directory.mkdir()
            spec["process"]["args"] = args
            (directory / "config.json").write_text(json.dumps(spec))

    def run(self, *argv: object) -> None:
        words = [os.fspath(word) for word in argv]
        with open(self.bundle / "errors", "w+") as errors:  # no pipe: containers keep it open
            run = subprocess.run(
                words,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=errors,
                preexec_fn=lambda: abi.setns(self._mount_ns, abi.CLONE_NEWNS),
                check=False,
                timeout=20,
            )
            errors.seek(0)
            if run.returncode:
                raise OSError(f"{words[0]}: {errors.read().strip()}")


def ours(*argv: object) -> None:
    """Run a command of the project the way that Tools.run() runs others."""
    words = [BIN / str(argv[0]), *map(os.fspath, argv[1:])]
    subprocess.run(
        words,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        preexec_fn=lambda: None,
        check=True,
    )


class Contest:
    """Seconds of each tool at each task, taken in rounds."""

    def __init__(self) -> None:
        self.seconds: dict[str, dict[str, list[float]]] = {}

    def take(self, task: str, tool: str, action: Callable[[], object]) -> None:
        self.seconds.setdefault(task, {}).setdefault(tool, []).append(timed(action))

    def lines(self, tools: list[str]) -> list[tuple[str, ...]]:
        """The table: medians in ms, and ours by each of the others."""
        lines = [("ms (we take so many times as long)", *tools)]
        for task, by_tool in self.seconds.items():
            medians = {tool: 1000 * statistics.median(taken) for tool, taken in by_tool.items()}
            own = medians["launcher"]
            cells = [
                "" if tool not in medians
                else f"{own:.1f}" if tool == "launcher"
                else f"{medians[tool]:.1f} ({own / medians[tool]:.2f})"
                for tool in tools
            ]  # fmt: skip
            lines.append((task, *cells))
        return lines


def measure(host: Host, root: Path, rounds: int = ROUNDS) -> list[tuple[str, ...]]:
    """Return the table, as lines of cells."""
    tools = Tools(host.scratch, root)
    contest = Contest()
    host.run("autopod", "add", "peer", "--base", root)
    try:
        there = [name for name in _WAYS if _works(name, tools)]
        for _ in range(rounds):
            _round(contest, tools, there)
    finally:
        tools.close()
        host.run("autopod", "rm", "peer", "--purge")
    return contest.lines(["launcher", *there])


def _works(name: str, tools: Tools) -> bool:
    try:
        _WAYS[name](Contest(), tools)
    except OSError as e:
        sys.stderr.write(f"bench: without {name}: {e}\n")
        return False
    return True


def _round(contest: Contest, tools: Tools, there: list[str]) -> None:
    contest.take(_START, "launcher", lambda: ours("launcher", "start", "peer", "/bin/sleep", "99"))
    contest.take(_EXEC, "launcher", lambda: ours("launcher", "exec", "peer", "/bin/true"))
    ours("launcher", "kill", "peer")
    contest.take(_RUN, "launcher", lambda: ours("launcher", "run", "peer", "/bin/true"))
    for name in there:
        _WAYS[name](contest, tools)


_START = "start in the background"
_EXEC = "exec /bin/true in it"
_RUN = "run /bin/true: made, run, ended"


def _oci(name: str) -> Callable[[Contest, Tools], None]:
    def way(contest: Contest, tools: Tools) -> None:
        sleep, true = (tools.bundle / what for what in ("sleep", "true"))
        argv = (name, "run", "--detach", "--bundle", sleep, "bench-sleep")
        contest.take(_START, name, lambda: tools.run(*argv))
        try:
            contest.take(_EXEC, name, lambda: tools.run(name, "exec", "bench-sleep", "/bin/true"))
        finally:
            tools.run(name, "delete", "--force", "bench-sleep")
        contest.take(_RUN, name, lambda: tools.run(name, "run", "--bundle", true, "bench-true"))

    return way


def _bwrap(contest: Contest, tools: Tools) -> None:
    argv = (
        "bwrap", "--unshare-all", "--new-session", "--ro-bind", tools.root, "/", "--proc", "/proc",
        "--dev", "/dev", "/bin/true",
    )  # fmt: skip
    contest.take(_RUN, "bwrap", lambda: tools.run(*argv))


def _nspawn(contest: Contest, tools: Tools) -> None:
    argv = (
        "systemd-nspawn", "--quiet", "--register=no", "--keep-unit", "--private-network",
        "--volatile=yes", "--directory", tools.root, "/bin/true",
    )  # fmt: skip
    contest.take(_RUN, "systemd-nspawn", lambda: tools.run(*argv))


_WAYS: dict[str, Callable[[Contest, Tools], None]] = {
    "crun": _oci("crun"),
    "runc": _oci("runc"),
    "bwrap": _bwrap,
    "systemd-nspawn": _nspawn,
}
