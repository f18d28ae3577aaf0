"""stackfs against the plain directory: the same work in both, and the ratio."""

import os
import shutil
import statistics
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

from bench.host import Host
from bench.measure import Row, times

Workload = Callable[[Path], object]


def _walk(root: Path) -> None:
    for directory, _, names in os.walk(root / "usr"):
        for name in names:
            os.lstat(os.path.join(directory, name))


def _read_all(root: Path) -> None:
    argv = ["tar", "--create", "--file=-", "--directory", root, "usr/lib"]
    with subprocess.Popen(argv, stdout=subprocess.PIPE) as tar:
        while tar.stdout.read(1 << 20):
            pass


def _import(root: Path) -> None:
    code = "import asyncio, email, http.client, json, sqlite3, unittest, xml.dom.minidom"
    subprocess.run(["chroot", root, "/usr/bin/python3", "-c", code], check=True)


def _create_and_remove(root: Path) -> None:
    directory = root / "srv/many"
    directory.mkdir()
    for number in range(1000):
        (directory / str(number)).write_bytes(b"x" * 4096)
    shutil.rmtree(directory)


def _write_big(root: Path) -> None:
    path = root / "srv/big"
    block = bytes(1 << 20)
    with path.open("wb", buffering=0) as file:
        for _ in range(64):
            file.write(block)
        os.fsync(file.fileno())
    path.unlink()


def _append_small(root: Path) -> None:
    path = root / "srv/log"
    with path.open("wb", buffering=0) as file:
        for _ in range(5000):
            file.write(b"a line of a log file, about as long as they are\n")
    path.unlink()


WORKLOADS: dict[str, Workload] = {
    "walk and lstat /usr": _walk,
    "tar of /usr/lib (read all)": _read_all,
    "Python starts and imports 7 packages": _import,
    "create, write, remove 1000 files of 4 KiB": _create_and_remove,
    "write 64 MiB in 1 MiB pieces, fsync": _write_big,
    "append 5000 lines unbuffered": _append_small,
}


def measure(host: Host, root: Path) -> list[Row]:
    """Return a row per workload; caches are warm."""
    plain = host.scratch / "plain"
    subprocess.run(["cp", "-a", root, plain], check=True)
    host.run("stackfs", "mount", "files", "--lower", root)
    mounted = host.prefix / "autopod/files/root"
    try:
        return [_compare(what, work, plain, mounted) for what, work in WORKLOADS.items()]
    finally:
        host.run("stackfs", "umount", "files")
        shutil.rmtree(plain)


def _compare(what: str, work: Workload, plain: Path, mounted: Path) -> Row:
    sys.stderr.write(f"  {what}\n")
    native = statistics.median(times(lambda: work(plain)))
    ours = statistics.median(times(lambda: work(mounted)))
    return Row(what, f"{1000 * ours:.0f}", f"{1000 * native:.0f}", f"{ours / native:.1f}")
