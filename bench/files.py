"""stackfs, its peers and a plain directory: the same work in each, in turn, on one disk image."""

import contextlib
import math
import os
import shutil
import statistics
import subprocess
import sys
from collections import defaultdict
from collections.abc import Callable, Iterator
from pathlib import Path

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


def _walk() -> None:
    for directory, _, names in os.walk("usr"):
        for name in names:
            os.lstat(os.path.join(directory, name))


def _list() -> None:
    for _ in range(20):
        os.listdir("srv/many")


def _read_all() -> None:
    argv = ["tar", "--create", "--file=-", "usr/lib"]
    with subprocess.Popen(argv, stdout=subprocess.PIPE) as tar:
        while tar.stdout.read(1 << 20):
            pass


def _import() -> None:
    code = "import asyncio, email, http.client, json, sqlite3, unittest, xml.dom.minidom"
    subprocess.run(["chroot", ".", "/usr/bin/python3", "-c", code], check=True)


def _create() -> None:
    os.makedirs("srv/many")
    for number in range(1000):
        with open(f"srv/many/{number}", "wb", buffering=0) as file:
            file.write(b"x" * 4096)


def _remove() -> None:
    shutil.rmtree("srv/many")


def _change() -> None:
    """Change the mode of 300 files of the lower layer, which copies them up."""
    found = sorted(Path("usr/share").rglob("*"))
    for path in [path for path in found if path.is_file() and not path.is_symlink()][:300]:
        path.chmod(0o640)


def _write_big() -> None:
    block = bytes(1 << 20)
    with open("srv/big", "wb", buffering=0) as file:
        file.writelines(block for _ in range(64))
        os.fsync(file.fileno())


def _read_big() -> None:
    with open("srv/big", "rb", buffering=0) as file:
        while file.read(1 << 17):
            pass


def _append() -> None:
    with open("srv/log", "ab", buffering=0) as file:
        file.writelines(b"a line of a log file, about as long as they are\n" for _ in range(5000))


WORKLOADS: dict[str, Callable[[], None]] = {
    "walk and lstat /usr, first": _walk,
    "walk and lstat /usr, again": _walk,
    "tar of /usr/lib, first": _read_all,
    "tar of /usr/lib, again": _read_all,
    "Python imports 7 packages, again": _import,
    "create 1000 files of 4 KiB": _create,
    "list 1000 files, 20 times": _list,
    "remove 1000 files": _remove,
    "chmod 300 files of the lower layer": _change,
    "write 64 MiB, fsync": _write_big,
    "read 64 MiB, warm": _read_big,
    "append 5000 lines unbuffered": _append,
}
"""What is done, in this order, with the root directory as working directory: as a pod does it."""


def measure(host: Host, tree: Path, rounds: int) -> Times:
    """Return the times of *rounds* rounds over *tree*."""
    times: Times = defaultdict(lambda: defaultdict(list))
    with _disk(host.scratch) as disk:
        subprocess.run(["cp", "-a", tree, disk / "low"], check=True)
        subprocess.run(["cp", "-a", tree, disk / "plain"], check=True)
        programs = {name: line.split()[0] for name, line in MOUNTS.items()}
        peers = [name for name, program in programs.items() if shutil.which(program)]
        for number in range(rounds):
            for name in (NATIVE, *peers, STACKFS):
                sys.stderr.write(f"  round {number + 1}: {name}\n")
                with _mounted(host, disk, name) as root:
                    _run(root, name, times)
    return times


def _run(root: Path, name: str, times: Times) -> None:
    os.chdir(root)
    try:
        subprocess.run(["rm", "-rf", "srv/many", "srv/big", "srv/log"], check=True)
        _import()
        for what, work in WORKLOADS.items():
            times[what][name].append(timed(work))
    finally:
        os.chdir("/")


@contextlib.contextmanager
def _disk(scratch: Path) -> Iterator[Path]:
    """An ext4 of its own, on a loop device."""
    image, at = scratch / "disk.img", scratch / "disk"
    with image.open("wb") as file:
        file.truncate(4 << 30)
    at.mkdir()
    subprocess.run(["mkfs.ext4", "-q", image], check=True)
    subprocess.run(["mount", "-o", "loop", image, at], check=True)
    try:
        yield at
    finally:
        subprocess.run(["umount", at], check=True)
        image.unlink()


@contextlib.contextmanager
def _mounted(host: Host, disk: Path, name: str) -> Iterator[Path]:
    """Mount one of the file systems, with an empty upper layer; yield its root directory."""
    places = {key: disk / key for key in ("low", "upper", "work", "root")}
    if name == NATIVE:
        yield disk / "plain"
        return
    for key in ("upper", "work", "root"):
        places[key].mkdir()
    try:
        if name == STACKFS:
            host.run(
                "stackfs", "mount", "files", "--lower", disk / "low", "--upper", places["upper"]
            )
            yield host.prefix / "autopod/files/root"
            host.run("stackfs", "umount", "files")
        else:
            subprocess.run(MOUNTS[name].format(**places).split(), check=True)
            yield places["root"]
            subprocess.run(["umount", places["root"]], check=True)
    finally:
        for path in disk.iterdir():
            if path.name not in ("low", "plain", "lost+found"):
                shutil.rmtree(path)


def table(times: Times) -> list[tuple[str, ...]]:
    """Return heading and rows: medians in ms, their ratio to the plain directory's, and ours to
    fuse-overlayfs's; the last row has the geometric means of the ratios."""
    names = list(next(iter(times.values())))
    compared = PEER in names
    rows = [("", *names, *([f"stackfs / {PEER}"] if compared else []))]
    ratios: list[list[float]] = [[] for _ in rows[0][1:]]
    for what, by_name in times.items():
        median = {name: 1000 * statistics.median(by_name[name]) for name in names}
        found = [median[name] / median[NATIVE] for name in names]
        found += [median[STACKFS] / median[PEER]] if compared else []
        for column, ratio in zip(ratios, found, strict=True):
            column.append(ratio)
        cells = [f"{median[n]:.1f} ({r:.1f}x)" for n, r in zip(names, found, strict=False)]
        rows.append((what, *cells, *([f"{found[-1]:.2f}"] if compared else [])))
    means = [f"{math.exp(statistics.fmean(map(math.log, column))):.2f}" for column in ratios]
    rows.append(("geometric mean of the ratios", *means))
    return rows
