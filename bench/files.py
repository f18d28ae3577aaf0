"""stackfs, its peers and a plain directory: the same work in each, in turn, on one disk image."""

import contextlib
import json
import math
import os
import shutil
import statistics
import subprocess
import sys
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

from bench import workloads
from bench.host import Host
from bench.measure import timed

NATIVE, STACKFS, PEER = "plain", "stackfs", "fuse-overlayfs"
_LAYERS = "lowerdir={low},upperdir={upper},workdir={work}"
MOUNTS = {
    "overlay": f"mount -t overlay overlay -o {_LAYERS} {{root}}",
    PEER: f"fuse-overlayfs -o {_LAYERS},suid,dev,allow_other {{root}}",
    "unionfs-fuse": "unionfs -o cow,suid,dev,allow_other,use_ino,kernel_cache,nonempty "
    "{upper}=RW:{low}=RO {root}",
}
"""How a peer is mounted; one whose program is not installed is left out."""

Times = dict[str, dict[str, list[float]]]
"""Seconds of each round, by workload and file system."""


class Disk:
    """An ext4 of its own, on a loop device that leaves caching to it."""

    def __init__(self, scratch: Path) -> None:
        self.image, self.at = scratch / "disk.img", scratch / "disk"
        with self.image.open("wb") as file:
            file.truncate(6 << 30)
        self.at.mkdir()
        subprocess.run(["mkfs.ext4", "-q", self.image], check=True)
        argv = ["losetup", "--direct-io=on", "--find", "--show", self.image]
        self.device = subprocess.run(
            argv, capture_output=True, text=True, check=True
        ).stdout.strip()
        self.mount()

    def mount(self) -> None:
        subprocess.run(["mount", self.device, self.at], check=True)

    def unmount(self) -> None:
        subprocess.run(["umount", self.at], check=True)

    def close(self) -> None:
        """Give it up; what still uses it after a failure keeps it no longer than that."""
        subprocess.run(["umount", "--lazy", self.at], check=True)
        self.at.rmdir()
        subprocess.run(["losetup", "--detach", self.device], check=True)
        self.image.unlink()


class FileSystem:
    """One of those that are compared, with its directories on the disk."""

    def __init__(self, host: Host, disk: Disk, name: str) -> None:
        self._host, self._disk, self._name = host, disk, name
        self._places = {key: disk.at / key for key in ("low", "upper", "work", "root")}
        roots = {NATIVE: disk.at / "plain", STACKFS: host.prefix / "autopod/files/root"}
        self.root = roots.get(name, self._places["root"])

    def clear(self) -> None:
        """Begin with an empty upper layer."""
        for path in self._disk.at.iterdir():
            if path.name not in ("low", "plain", "lost+found"):
                shutil.rmtree(path)
        shutil.rmtree(self._disk.at / "plain/scratch", ignore_errors=True)
        for key in ("upper", "work", "root"):
            self._places[key].mkdir()

    def up(self) -> None:
        """Mount it."""
        if self._name == STACKFS:
            layers = ("--lower", self._places["low"], "--upper", self._places["upper"])
            self._host.run("stackfs", "mount", "files", *layers)
        elif self._name != NATIVE:
            subprocess.run(MOUNTS[self._name].format(**self._places).split(), check=True)

    def down(self) -> None:
        """Unmount it."""
        if self._name == STACKFS:
            self._host.run("stackfs", "umount", "files")
        elif self._name != NATIVE:
            subprocess.run(["umount", self._places["root"]], check=True)

    def forget(self) -> None:
        """Empty all caches of it and of the disk."""
        self.down()
        self._disk.unmount()
        self._disk.mount()
        self.up()


def measure(host: Host, tree: Path, rounds: int, cpu: int | None) -> Times:
    """Return the times of *rounds* rounds over *tree*, all on processor *cpu* unless it is None."""
    times: Times = defaultdict(lambda: defaultdict(list))
    inputs = host.scratch / "inputs"
    inputs.mkdir()
    workloads.inputs(inputs, tree)
    programs = {name: line.split()[0] for name, line in MOUNTS.items()}
    peers = [name for name, program in programs.items() if shutil.which(program)]
    with contextlib.closing(Disk(host.scratch)) as disk, _pinned(cpu):
        for copy in ("low", "plain"):
            subprocess.run(["cp", "-a", tree, disk.at / copy], check=True)
        for number in range(rounds):
            for name in (NATIVE, *peers, STACKFS):
                sys.stderr.write(f"  round {number + 1}: {name}\n")
                system = FileSystem(host, disk, name)
                system.clear()
                system.up()
                try:
                    _run(system, name, inputs, times)
                finally:
                    system.down()
                system.clear()
    shutil.rmtree(inputs)
    return times


@contextlib.contextmanager
def _pinned(cpu: int | None) -> Iterator[None]:
    """Have file systems and work on one processor: there is no waking up of another one."""
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, before if cpu is None else {cpu})
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)


def _run(system: FileSystem, name: str, inputs: Path, times: Times) -> None:
    words = {"inputs": inputs, "python": sys.executable}
    for what, work in workloads.WORKLOADS.items():
        if work.cold:
            system.forget()
        try:
            _shell(work.before.format(**words), system.root)
            took = timed(lambda work=work: _shell(work.run.format(**words), system.root))
        except RuntimeError as e:
            if name in (NATIVE, STACKFS):
                raise
            sys.stderr.write(f"    {e}\n")
            took = math.nan
        if "bench.workloads" in work.run:
            told = "{}" if math.isnan(took) else (inputs / "calls").read_text()
            for call, us in json.loads(told).items():
                times[call][name].append(us / 1e6)
        else:
            times[what][name].append(took)


def _shell(command: str, root: Path) -> None:
    environment = {**os.environ, "PYTHONPATH": os.fspath(Path(__file__).parent.parent)}
    argv = ["bash", "-o", "pipefail", "-c", command]
    run = subprocess.run(
        argv, cwd=root, env=environment, stdin=subprocess.DEVNULL, capture_output=True, check=False
    )
    if run.returncode:
        raise RuntimeError(f"{command}: {run.stderr.decode(errors='replace').strip()}")


def _median(values: list[float]) -> float:
    """Return the median of those that are numbers: a peer may fail."""
    return statistics.median([value for value in values if not math.isnan(value)] or [math.nan])


def ratios(times: Times) -> dict[str, dict[str, float]]:
    """Return medians, by workload and file system, as multiples of the plain directory's."""
    found = {}
    names = list(next(iter(times.values())))
    for what, by_name in times.items():
        median = {name: _median(by_name[name]) for name in names}
        found[what] = {name: value / median[NATIVE] for name, value in median.items()}
    return found


def table(times: Times) -> list[tuple[str, ...]]:
    """Return heading and rows: medians in ms, their ratio to the plain directory's, and ours to
    fuse-overlayfs's; the last row has the geometric means of the ratios."""
    names = list(next(iter(times.values())))
    rows = [("", *names, f"{STACKFS} / {PEER}")]
    found = ratios(times)
    ours = [row[STACKFS] / row.get(PEER, math.nan) for row in found.values()]
    for (what, row), ratio in zip(found.items(), ours, strict=True):
        cells = [f"{1000 * _median(times[what][n]):.4g} ({row[n]:.1f}x)" for n in names]
        rows.append((what, *cells, f"{ratio:.2f}"))
    columns = [[row[name] for row in found.values()] for name in names] + [ours]
    means = [f"{_geometric_mean(column):.2f}" for column in columns]
    rows.append(("geometric mean of the ratios", *means))
    return rows


def _geometric_mean(values: list[float]) -> float:
    numbers = [math.log(value) for value in values if not math.isnan(value)]
    return math.exp(statistics.fmean(numbers)) if numbers else math.nan
