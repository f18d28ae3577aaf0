"""How long a pod stands still for a checkpoint, and how long it takes to come back."""

import re
import shutil
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from bench.host import Host
from bench.measure import RUNS, Row, ms, timed
from examples.exim import mail

EXIM = Path(__file__).parent.parent / "examples/exim/pod.toml"
POD = "10.98.0.10"
MEMORY = "import os,time; kept = os.urandom(200 << 20); print('ready', flush=True); time.sleep(1e6)"

# The yardstick: CRIU on the same class of machine (2 cores, Linux 6.18), medians of 5, images on
# ext4 without fsync, no namespaces, no file-system delta, no compression, no signature.
CRIU = {
    "exim": {"frozen": "30", "checkpoint": "39", "restart": "17"},
    "memory": {"frozen": "158", "checkpoint": "167", "restart": "161"},
}


@dataclass
class Series:
    """Seconds of each round."""

    frozen: list[float] = field(default_factory=list)
    checkpoint: list[float] = field(default_factory=list)
    again: list[float] = field(default_factory=list)
    elsewhere: list[float] = field(default_factory=list)
    archive_mib: float = 0


def measure(host: Host, exim_root: Path, debian_root: Path) -> list[Row]:
    """Return the rows of both services."""
    return [*_exim(host, exim_root), *_memory(host, debian_root)]


def _exim(host: Host, root: Path) -> list[Row]:
    file = host.prefix / "etc/autopod/pods/exim.toml"
    file.parent.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(EXIM, file)
    host.run("autopod", "add", "exim", "--base", root)
    host.run("autopod", "addproc", "exim", "/usr/sbin/exim4", "-bd", "-q30m")
    mail.wait_until(lambda: mail.answers(POD), "Exim greets")
    series = _rounds(host, "exim", lambda: mail.wait_until(lambda: mail.answers(POD), "it greets"))
    return _rows("Exim pod", "until SMTP answers", series, CRIU["exim"], ("60", "400"))


def _memory(host: Host, root: Path) -> list[Row]:
    host.run("autopod", "add", "memory", "--base", root)
    host.run("autopod", "addproc", "memory", "/usr/bin/python3", "-c", MEMORY)
    mail.wait_until(lambda: "ready" in host.run("launcher", "logs", "memory"), "it is ready")
    series = _rounds(host, "memory", lambda: None)
    return _rows("Python, 200 MiB", "whole command", series, CRIU["memory"], ("400", ""))


def _rounds(host: Host, pod: str, answers: Callable[[], None]) -> Series:
    """Checkpoint and restart in turn, here and on an empty host; the first round does not count."""
    series = Series()
    archive = host.scratch / f"{pod}.pod"

    def restart() -> None:
        host.run("autopod", "restart", pod, "-i", archive)
        answers()

    for _ in range(RUNS + 1):
        start = time.perf_counter()
        said = host.run("autopod", "checkpoint", pod, "-o", archive)
        series.checkpoint.append(time.perf_counter() - start)
        series.frozen.append(float(re.search(r"frozen ([\d.]+) ms", said)[1]) / 1000)
        series.archive_mib = archive.stat().st_size / 2**20
        series.again.append(timed(restart))
        host.run("autopod", "checkpoint", pod, "-o", archive)
        host.run("autopod", "rm", pod, "--purge")
        series.elsewhere.append(timed(restart))
    host.run("autopod", "rm", pod, "--purge")
    for values in (series.frozen, series.checkpoint, series.again, series.elsewhere):
        values.pop(0)
    return series


def _rows(what: str, until: str, series: Series, other: dict, goals: tuple[str, str]) -> list[Row]:
    frozen, restart = goals
    return [
        Row(f"{what}: frozen", ms(series.frozen), other["frozen"], frozen),
        Row(f"{what}: checkpoint, whole command", ms(series.checkpoint), other["checkpoint"]),
        Row(f"{what}: restart, {until}", ms(series.again), other["restart"], restart),
        Row(f"{what}: the same on an empty host", ms(series.elsewhere)),
        Row(f"{what}: archive", f"{series.archive_mib:.1f} MiB"),
    ]
