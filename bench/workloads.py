"""What is done in each file system: the life of a container's root, and single calls.

Shell commands, run in the root directory as a pod's programs are; in this order, for some use what
others made.
"""

import json
import os
import random
import statistics
import subprocess
import time
from dataclasses import dataclass
from pathlib import Path

PACKAGES = ("gcc", "libc6-dev", "make", "python3")
"""Of the lower layer, a Debian."""

_STAT = "xargs -0 -n 4000 stat -c %s < {inputs}/files > /dev/null"
_TAR = "tar cf - --one-file-system usr etc var | cat > /dev/null"
_IMPORT = "asyncio, email.message, http.client, json, logging.config, sqlite3, unittest, xml.dom"
_FIO = (
    "fio --name=x --filename=scratch/big --size=64m --output-format=terse --thread --invalidate=0 "
)


@dataclass(frozen=True, slots=True)
class Workload:
    """One of them.

    Attributes:
        run: what is timed, a shell command.
        cold: whether disk and file system are mounted anew before, so that nothing is cached.
        before: a shell command that is not timed.
    """

    run: str
    cold: bool = False
    before: str = ""


WORKLOADS = {
    "find, cold": Workload("find . -xdev -type f | wc -l", cold=True),
    "find": Workload("find . -xdev -type f | wc -l"),
    "stat, cold": Workload(_STAT, cold=True),
    "stat": Workload(_STAT),
    "tar, cold": Workload(_TAR, cold=True),
    "tar": Workload(_TAR),
    "Python imports, cold": Workload(f"chroot . python3 -c 'import {_IMPORT}'", cold=True),
    "Python imports": Workload(f"for i in 1 2 3; do chroot . python3 -c 'import {_IMPORT}'; done"),
    "untar 6000 files": Workload("tar xf {inputs}/bulk.tar -C scratch", True, "mkdir -p scratch"),
    "find in those": Workload("find scratch -type f | wc -l"),
    "rm -r of those": Workload("rm -r scratch/bulk"),
    "git clone": Workload("git clone -q --no-hardlinks file://{inputs}/git scratch/git"),
    "git status": Workload("for i in 1 2 3; do git -C scratch/git status --porcelain; done"),
    "compile 30, cold": Workload(
        "chroot . make -s -j2 -C scratch/c", True, "cp -r {inputs}/c scratch/c"
    ),
    "compile 30": Workload(
        "chroot . make -s -j2 -C scratch/c", before="make -s -C scratch/c clean"
    ),
    "SQLite, 200 commits": Workload(
        "chroot . python3 scratch/tx.py scratch/db", before="cp {inputs}/tx.py scratch"
    ),
    "chmod and chown lower files": Workload(
        "chmod -R g-w usr/share/perl && chown -R 7:7 usr/share/perl", cold=True
    ),
    "append to lower files": Workload('for f in usr/lib/python3*/*.py; do echo "#" >> $f; done'),
    "replace programs as dpkg does": Workload(
        "for f in usr/bin/*; do [ -f $f -a ! -L $f ] && cp -p $f $f.new && mv $f.new $f; done; true"
    ),
    "write 64 MiB": Workload(_FIO + "--rw=write --bs=128k --end_fsync=1"),
    "write 16 MiB at random": Workload(_FIO + "--rw=randwrite --bs=4k --end_fsync=1 --io_size=16m"),
    "read 64 MiB, cold": Workload(_FIO + "--rw=read --bs=128k", cold=True),
    "read 64 MiB": Workload(_FIO + "--rw=read --bs=128k"),
    "mmap 64 MiB, cold": Workload(_FIO + "--rw=read --bs=4k --ioengine=mmap", cold=True),
    "mmap 64 MiB": Workload(_FIO + "--rw=randread --bs=4k --ioengine=mmap"),
    "single calls": Workload("{python} -m bench.workloads > {inputs}/calls", True),
}
"""The last one prints the microseconds of each call, rows of their own."""


def inputs(at: Path, low: Path) -> None:
    """Make in the directory *at* what the workloads read, besides the lower layer *low*."""
    found = subprocess.run(
        ["find", ".", "-xdev", "-type", "f", "-print0"], cwd=low, capture_output=True, check=True
    )
    (at / "files").write_bytes(found.stdout)
    numbers = random.Random(1)
    for number in range(6000):
        path = at / f"bulk/{number // 400}/{number // 20 % 20}/{number}"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(numbers.randbytes(numbers.choice([200, 800, 2000, 5000])))
    subprocess.run(["tar", "cf", "bulk.tar", "bulk"], cwd=at, check=True)
    git = ["git", "-c", "user.name=x", "-c", "user.email=x@x", "-C", at / "bulk"]
    for words in (["init", "-q"], ["add", "."], ["commit", "-qm", "x"]):
        subprocess.run([*git, *words], check=True)
    (at / "bulk/.git").rename(at / "git")
    subprocess.run(["rm", "-r", at / "bulk"], check=True)
    (at / "c").mkdir()
    for number in range(30):
        (at / f"c/f{number}.c").write_text(f"#include <stdio.h>\nint f{number};\n")
    objects = " ".join(f"f{number}.o" for number in range(30))
    (at / "c/Makefile").write_text(f"all: {objects}\nclean:\n\trm -f *.o\n")
    (at / "tx.py").write_text(
        "import sqlite3, sys\nc = sqlite3.connect(sys.argv[1])\nc.execute('create table t(a)')\n"
        "for i in range(200):\n    with c: c.execute('insert into t values (?)', ('x' * 100,))\n"
    )


def _each(what, count: int) -> float:
    """Median of three times *count* calls, in microseconds a call."""
    took = []
    for turn in range(3):
        begun = time.perf_counter()
        for number in range(turn * count, (turn + 1) * count):
            what(number)
        took.append((time.perf_counter() - begun) / count * 1e6)
    return statistics.median(took)


def _exists(path: str) -> None:
    os.path.lexists(path)


def _open_read_close(path: str) -> None:
    fd = os.open(path, os.O_RDONLY)
    os.read(fd, 4096)
    os.close(fd)


def _create_write_unlink(number: int) -> None:
    fd = os.open("scratch/new", os.O_WRONLY | os.O_CREAT, 0o644)
    os.write(fd, b"hello")
    os.close(fd)
    os.unlink("scratch/new")


def _mkdir_rmdir(number: int) -> None:
    os.mkdir("scratch/dir")
    os.rmdir("scratch/dir")


def _rename_pair(number: int) -> None:
    os.rename("scratch/many/1", "scratch/many/x")
    os.rename("scratch/many/x", "scratch/many/1")


def calls() -> dict[str, float]:
    """Return the microseconds that single calls take in the working directory."""
    argv = ["find", "usr", "-xdev", "-type", "f", "-size", "-8k"]
    found = subprocess.run(argv, stdout=subprocess.PIPE, text=True, check=True)
    files = found.stdout.splitlines()
    random.Random(4).shuffle(files)
    os.makedirs("scratch/many")
    for number in range(1000):
        os.close(os.open(f"scratch/many/{number}", os.O_CREAT, 0o644))
    fd = os.open("scratch/file", os.O_RDWR | os.O_CREAT, 0o644)
    page = bytes(4096)
    return {
        "open, read, close, first": _each(lambda n: _open_read_close(files[n]), 700),
        "open, read, close": _each(lambda n: _open_read_close(files[n % 700]), 700),
        "lstat": _each(lambda n: os.lstat(files[n % 700]), 2000),
        "look up what is missing, first": _each(lambda n: _exists(f"scratch/no{n}"), 1000),
        "look up what is missing": _each(lambda n: _exists("scratch/no"), 2000),
        "create, write, close, unlink": _each(_create_write_unlink, 300),
        "mkdir, rmdir": _each(_mkdir_rmdir, 300),
        "rename there and back": _each(_rename_pair, 300),
        "list 1000 names": _each(lambda n: os.listdir("scratch/many"), 30),
        "pwrite 4 KiB": _each(lambda n: os.pwrite(fd, page, n % 2000 * 4096), 2000),
        "pread 4 KiB": _each(lambda n: os.pread(fd, 4096, n % 2000 * 4096), 2000),
        "pwrite, fsync": _each(lambda n: (os.pwrite(fd, b"y", 0), os.fsync(fd)), 30),
    }


if __name__ == "__main__":
    print(json.dumps(calls()))
