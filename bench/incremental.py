"""What a checkpoint costs that builds upon an earlier one, beside a whole one of the same moment.

A program has 200 MiB in memory, as in bench/programs.py, and 64 MiB in a file, and rewrites a part
of its memory. Then it is checkpointed twice, whole and since the first one, by turns the one or the
other first, and goes on. From the last two it is restarted.
"""

import json
import os
import re
import signal
import statistics
from pathlib import Path

from bench.host import Host
from bench.measure import timed
from bench.programs import MEMORY
from examples.exim import mail

MIB, FILE_MIB, ROUNDS = 200, 64, 7
CHANGED = (0, 1, 10)
HEADING = (
    "changed", "whole, ms", "since, ms", "frozen, ms", "since", "whole, MiB", "since, MiB",
    "restart, ms", "since",
)  # fmt: skip
PROGRAM = (
    MEMORY.format(mib=MIB).rpartition("print")[0]
    + f"""
import signal, sys
with open("/srv/file", "wb") as file:
    for _ in range({FILE_MIB}):
        file.write(os.urandom(1 << 20).translate(table))
signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGUSR1])
while True:
    print("ready", flush=True)
    signal.sigwait([signal.SIGUSR1])
    for at in range(0, len(kept) * int(sys.argv[1]) // 100, 1 << 16):
        at = at * 7919 % len(kept)  # here and there
        kept[at : at + (1 << 16)] = os.urandom(1 << 16).translate(table)
"""
)


def measure(host: Host, root: Path, rounds: int = ROUNDS) -> list[tuple[str, ...]]:
    """Return the table, as lines of cells."""
    return [HEADING, *(_measure(host, root, percent, rounds) for percent in CHANGED)]


def _measure(host: Host, root: Path, percent: int, rounds: int) -> tuple[str, ...]:
    first = host.scratch / "first.pod"
    host.run("autopod", "add", "busy", "--base", root)
    host.run("autopod", "addproc", "busy", "/usr/bin/python3", "-c", PROGRAM, f"{percent}")
    mail.wait_until(lambda: _ready(host) == 1, "the program is ready")
    _checkpoint(host, first)
    ways = {host.scratch / "whole.pod": (), host.scratch / "since.pod": ("--since", first)}
    took: dict[Path, list[float]] = {file: [] for file in ways}
    frozen: dict[Path, list[float]] = {file: [] for file in ways}
    restart: dict[Path, list[float]] = {file: [] for file in ways}
    for number in range(rounds):
        _change(host)
        for file in list(ways)[:: 1 if number % 2 else -1]:
            said: list[str] = []
            took[file].append(
                timed(lambda f=file, s=said: s.append(_checkpoint(host, f, *ways[f])))
            )
            frozen[file].append(float(re.search(r"frozen ([\d.]+) ms", said[0])[1]))
    for number in range(rounds):
        for file in list(ways)[:: 1 if number % 2 else -1]:
            host.run("launcher", "kill", "busy")
            again = ("autopod", "restart", "busy", "-i", file, "--replace")
            restart[file].append(timed(lambda words=again: host.run(*words)))
    host.run("autopod", "rm", "busy", "--purge")
    return _line(f"{percent} %", *ways, took, frozen, restart)


def _checkpoint(host: Host, file: Path, *more: str | Path) -> str:
    return host.run("autopod", "checkpoint", "busy", "-o", file, "--leave-running", *more)


def _change(host: Host) -> None:
    [row] = [r for r in json.loads(host.run("launcher", "ps", "busy", "--json")) if r["pid"] != 1]
    seen = _ready(host)
    os.kill(row["host_pid"], signal.SIGUSR1)
    mail.wait_until(lambda: _ready(host) > seen, "the program has changed its memory")


def _ready(host: Host) -> int:
    return host.run("launcher", "logs", "busy").count("ready\n")


def _line(
    name: str, whole: Path, since: Path, *aspects: dict[Path, list[float]]
) -> tuple[str, ...]:
    took, frozen, restart = (
        {file: statistics.median(found) for file, found in aspect.items()} for aspect in aspects
    )
    mib = {file: file.stat().st_size / 2**20 for file in (whole, since)}
    return (
        name,
        f"{took[whole] * 1000:.0f}",
        f"{took[since] * 1000:.0f} ({took[since] / took[whole]:.2f})",
        f"{frozen[whole]:.0f}",
        f"{frozen[since]:.0f}",
        f"{mib[whole]:.1f}",
        f"{mib[since]:.1f} ({mib[since] / mib[whole]:.3f})",
        f"{restart[whole] * 1000:.0f}",
        f"{restart[since] * 1000:.0f} ({restart[since] / restart[whole]:.2f})",
    )
