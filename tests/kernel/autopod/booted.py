"""A machine that boots: this one's files, copied on write, and systemd as the first process.

It has namespaces and control groups of its own, in the hierarchies that the host has, and keeps its
disk over a reboot. Run as a program, this becomes that first process.
"""

import contextlib
import os
import shutil
import subprocess
import sys
import uuid
from pathlib import Path

from examples.exim.mail import wait_until
from launcher import abi

PROJECT = Path(__file__).parents[3]
MS_RDONLY = 1  # <linux/mount.h>
DEVICES = ("full", "fuse", "null", "random", "tty", "urandom", "zero")
ENVIRONMENT = {"container": "test", "PATH": "/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"}


class Machine:
    """One of them, which is off at first."""

    def __init__(self, place, *shared):
        """Put its disk at *place*; *shared* directories are there under their own names."""
        self.disk, self._shared = place, (PROJECT, *shared)
        self._groups = [Path(point) / f"booted-{os.getpid()}" for point, _, _ in hierarchies()]
        abi.mount("tmpfs", os.fspath(place), "tmpfs", 0)
        for name in ("root", "state", "upper", "work"):
            (place / name).mkdir()
        self._process = None

    def boot(self):
        """Return when everything that begins with the machine has begun."""
        for group in self._groups:
            group.mkdir(exist_ok=True)
        enter = (
            'for g; do shift; [ "$g" = -- ] && break; echo 0 >"$g/cgroup.procs"; done; exec "$@"'
        )
        namespaces = ["--mount", "--propagation=private", "--uts", "--ipc", "--net", "--cgroup"]
        argv = ["sh", "-c", enter, "sh", *self._groups, "--", "unshare", *namespaces]
        argv += ["--pid", "--fork", "--kill-child", sys.executable, "-m", __name__, self.disk]
        null = subprocess.DEVNULL
        self._process = subprocess.Popen(
            [*argv, *self._shared], cwd=PROJECT, stdin=null, stdout=null, stderr=null
        )
        try:
            wait_until(self._is_up, "the machine has booted", 120)
        except TimeoutError:
            print(self.run("systemctl", "list-jobs", "--no-pager"))
            print(self.run("journalctl", "--boot", "--no-pager"))
            raise

    def _is_up(self):
        assert self._process.poll() is None, "the machine did not boot"
        state = self.run("systemctl", "is-system-running", expect=None)
        return state in ("running\n", "degraded\n")

    def run(self, *argv, expect=0):
        """Run a program in it, whose status is *expect* unless that is None; return its output."""
        tasks = Path(f"/proc/{self._process.pid}/task/{self._process.pid}/children")
        init = tasks.read_text().strip()
        enter = ["nsenter", "-t", init, "-m", "-u", "-i", "-n", "-p", "-C", "--", "env", "-i"]
        variables = [f"{name}={value}" for name, value in ENVIRONMENT.items()]
        run = subprocess.run(
            [*enter, *variables, *argv],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=120,
            check=False,
        )
        assert expect in (None, run.returncode), f"{argv}: {run.returncode}\n{run.stdout}"
        return run.stdout

    def wait_until_down(self):
        """Return when it has come to its end by itself."""
        self._process.wait(120)

    def close(self):
        """Switch it off, and take it away."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()
        for group in self._groups:
            for path, _, _ in os.walk(group, topdown=False):
                wait_until(lambda path=path: _is_removed(path), f"{path} is empty", 60)
        abi.umount2(os.fspath(self.disk))


def hierarchies():
    """Yield mount point, type and options of the host's control group hierarchies."""
    for line in Path("/proc/self/mountinfo").read_text().splitlines():
        before, _, after = line.partition(" - ")
        kind, _, options = after.split()
        if kind in ("cgroup", "cgroup2"):
            own = [word for word in options.split(",") if word not in ("rw", "ro")]
            named = ["none"] if any(word.startswith("name=") for word in own) else []
            yield before.split()[4], kind, ",".join(named + own) if kind == "cgroup" else ""


def _is_removed(path):
    with contextlib.suppress(OSError):
        os.rmdir(path)
    return not os.path.exists(path)


def begin(disk, *shared):
    """Be the first process of the machine whose disk is at *disk*."""
    root, groups = disk / "root", list(hierarchies())
    layers = f"lowerdir=/,upperdir={disk}/upper,workdir={disk}/work"
    abi.mount("overlay", os.fspath(root), "overlay", 0, layers)
    for directory in ("proc", "sys", "dev", "run", "tmp"):
        kind = {"proc": "proc", "sys": "sysfs"}.get(directory, "tmpfs")
        flags = MS_RDONLY if kind == "sysfs" else 0
        abi.mount(kind, os.fspath(root / directory), kind, flags)
    for device in DEVICES:
        (root / "dev" / device).touch()
        bind(Path("/dev") / device, root / "dev" / device)
    for name, options in (("pts", "newinstance,ptmxmode=666"), ("shm", "")):
        (root / "dev" / name).mkdir()
        kind = "devpts" if options else "tmpfs"
        abi.mount(kind, os.fspath(root / "dev" / name), kind, 0, options)
    (root / "dev/ptmx").symlink_to("pts/ptmx")
    (root / "dev/fd").symlink_to("/proc/self/fd")
    (root / "run/boot_id").write_text(f"{uuid.uuid4()}\n")
    bind(root / "run/boot_id", root / "proc/sys/kernel/random/boot_id")
    mount_groups(root, groups)
    furnish(root)
    (root / "var/lib/autopod").mkdir(parents=True, exist_ok=True)
    bind(disk / "state", root / "var/lib/autopod")
    for directory in shared:
        (root / directory.relative_to("/")).mkdir(parents=True, exist_ok=True)
        bind(directory, root / directory.relative_to("/"))
    subprocess.run(["ip", "link", "set", "lo", "up"], check=True)
    (root / "mnt/old").mkdir(exist_ok=True)
    abi.pivot_root(os.fspath(root), os.fspath(root / "mnt/old"))
    os.chdir("/")
    abi.umount2("/mnt/old", abi.MNT_DETACH)
    os.execve("/sbin/init", ["/sbin/init"], ENVIRONMENT)


def bind(source, target):
    """Show *source* at *target*, too."""
    abi.mount(os.fspath(source), os.fspath(target), None, abi.MS_BIND)


def mount_groups(root, groups):
    """Mount the hierarchies as the host has them, from our groups down."""
    top = root / "sys/fs/cgroup"
    if any(kind == "cgroup" for _, kind, _ in groups):
        abi.mount("tmpfs", os.fspath(top), "tmpfs", 0)
    for point, kind, options in groups:
        at = root / point.lstrip("/")
        at.mkdir(exist_ok=True)
        abi.mount(kind, os.fspath(at), kind, 0, options)


def furnish(root):
    """Have nothing begin that this host's administrator wants, and the project's units there."""
    if (root / "etc/hostname").read_text() == "booted\n":  # not for the first time
        return
    (root / "etc/hostname").write_text("booted\n")
    for wanted in (root / "etc/systemd/system").glob("*.wants"):
        shutil.rmtree(wanted)
    shutil.rmtree(root / "etc/autopod", ignore_errors=True)
    (root / "var/log/journal").mkdir(exist_ok=True)
    (root / "etc/machine-id").write_text(f"{1:032x}\n")
    for command in ("stackfs", "launcher", "ckpt", "autopod"):
        link = root / "usr/local/bin" / command
        link.symlink_to(PROJECT / ".venv/bin" / command)
    for unit in (PROJECT / "systemd").iterdir():
        shutil.copy(unit, root / "etc/systemd/system")


if __name__ == "__main__":
    begin(*map(Path, sys.argv[1:]))
