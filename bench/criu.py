"""CRIU, where it is installed: the same programs dumped and restored by it, without a pod.

It runs where its programs run, in one mount and one process namespace, on a plain directory: so it
finds nothing of namespaces to dump, which costs it least. The programs share the network namespace
of the measurement. Nothing is compressed, signed or synced to disk, and no files are saved.

BENCH_CRIU names the program; else it is looked for in PATH.
"""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

from bench.measure import timed

_OPTIONS = (
    "--images-dir=/images", "--file-locks", "--tcp-established", "--network-lock=nftables",
    "--manage-cgroups=ignore", "--ghost-limit=1G", "--log-file=log",
)  # fmt: skip
_FROZEN_TIME = (1, 2)  # images/stats.proto: stats_entry.dump, dump_stats_entry.frozen_time


def program() -> Path | None:
    """Return where CRIU is, None if nowhere."""
    found = os.environ.get("BENCH_CRIU") or shutil.which("criu")
    return Path(found) if found else None


class Peer:
    """One program, and CRIU beside it. As a context: nothing is left at its end."""

    def __init__(self, criu: Path, root: Path, scratch: Path) -> None:
        """Make the place: a copy of the tree *root*, below *scratch*."""
        self._root = scratch / "peer"
        subprocess.run(["cp", "-a", root, self._root], check=True)
        self._libraries(criu)
        argv = ["unshare", "--mount", "--pid", "--fork", "--kill-child", "--propagation", "private"]
        argv += [sys.executable, "-m", "bench.init", os.fspath(self._root)]
        self._init = subprocess.Popen(
            argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, start_new_session=True
        )
        self._init.stdout.readline()
        (self._pid,) = _children(self._init.pid)

    def __enter__(self) -> "Peer":
        return self

    def __exit__(self, *_: object) -> None:
        self._init.communicate("")
        shutil.rmtree(self._root)

    def _libraries(self, criu: Path) -> None:
        """Put CRIU into the tree, with its libraries: the tree may lack them."""
        own = self._root / "criu"
        own.mkdir()
        listed = subprocess.run(["ldd", criu], capture_output=True, text=True, check=True).stdout
        for path in [criu, *re.findall(r"(/\S+) \(0x", listed)]:
            shutil.copy(path, own)
        (self._root / "images").mkdir()

    def start(self, argv: Sequence[str]) -> None:
        """Start the program."""
        self._init.stdin.write(json.dumps(argv) + "\n")
        self._init.stdin.flush()

    def said(self) -> str:
        """Return what it has printed."""
        log = self._root / "log"
        return log.read_text() if log.exists() else ""

    def dump(self) -> tuple[float, float]:
        """Dump the program, which ends; return the seconds of the command, and those frozen."""
        images = self._root / "images"
        shutil.rmtree(images)
        images.mkdir()
        taken = timed(lambda: self._criu("dump", f"--tree={self._program()}"))
        fields = dict(_fields((images / "stats-dump").read_bytes()[12:]))
        return taken, dict(_fields(fields[_FROZEN_TIME[0]]))[_FROZEN_TIME[1]] / 1e6

    def restore(self) -> float:
        """Restore it; return the seconds of the command."""
        return timed(lambda: self._criu("restore", "--restore-detached"))

    def image_bytes(self) -> int:
        """Return the size of the images."""
        return sum(file.stat().st_size for file in (self._root / "images").iterdir())

    def kill(self) -> None:
        """End the program."""
        for pid in _children(self._pid):
            os.kill(pid, signal.SIGKILL)

    def _program(self) -> int:
        """Return the id, in the place, of the one process that the first has, when it has one."""
        while len(children := _children(self._pid)) != 1:
            time.sleep(0.01)
        status = Path(f"/proc/{children[0]}/status").read_text()
        return int(re.search(r"^NSpid:.*\s(\d+)$", status, re.MULTILINE)[1])

    def _criu(self, *words: str) -> None:
        argv = ["nsenter", f"--target={self._pid}", "--mount", "--pid"]
        argv += ["/criu/ld-linux-x86-64.so.2", "--library-path", "/criu", "/criu/criu"]
        run = subprocess.run(
            [*argv, *words, *_OPTIONS],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            check=False,
            timeout=300,
        )
        if run.returncode:
            log = (self._root / "images/log").read_text().splitlines()[-20:]
            raise RuntimeError("\n".join([f"criu {words[0]}:", *log]))


def _children(pid: int) -> list[int]:
    return list(map(int, Path(f"/proc/{pid}/task/{pid}/children").read_text().split()))


def _fields(message: bytes) -> Iterator[tuple[int, int | bytes]]:
    """Yield number and value of each field: integers, and what has a length.

    Source: https://protobuf.dev/programming-guides/encoding/.
    """
    at = 0
    while at < len(message):
        key, at = _varint(message, at)
        value, at = _varint(message, at)
        if key & 7 == 2:
            yield key >> 3, message[at : at + value]
            at += value
        else:
            yield key >> 3, value


def _varint(message: bytes, at: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        byte = message[at]
        at += 1
        value |= (byte & 0x7F) << shift
        shift += 7
        if byte < 0x80:
            return value, at
