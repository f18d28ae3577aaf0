"""A restart whose memory follows, beside one that waits for it: when the pod runs, and has it all.

A program has 1 GiB in memory, as in bench/programs.py. It is restarted in both ways in turns; then
it reads the last page of its memory, which follows last, and all of it.
"""

import os
import signal
import statistics
import time
from pathlib import Path

from bench.host import Host
from bench.programs import MEMORY
from ckpt import lazy
from examples.exim import mail
from launcher import enter, pods
from launcher.places import Places

MIB, ROUNDS = 1024, 5
HEADING = ("ms", "it runs", "one page of it", "all of its memory", "nothing to come")
PROGRAM = (
    MEMORY.format(mib=MIB).rpartition("print")[0]
    + """
import signal
signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGUSR1])
print("ready", flush=True)
signal.sigwait([signal.SIGUSR1])
last = kept[-1]
print("last", flush=True)
none = kept.count(0)
print("all", flush=True)
time.sleep(1e6)
"""
)


def measure(host: Host, root: Path, rounds: int = ROUNDS) -> list[tuple[str, ...]]:
    """Return the table, as lines of cells."""
    file, ways = host.scratch / "gib.pod", {"restart": (), "restart --lazy": ("--lazy",)}
    host.run("autopod", "add", "gib", "--base", root)
    host.run("autopod", "addproc", "gib", "/usr/bin/python3", "-c", PROGRAM)
    mail.wait_until(lambda: "ready" in host.run("launcher", "logs", "gib"), "the program is ready")
    host.run("autopod", "checkpoint", "gib", "-o", file)
    took: dict[str, list[tuple[float, ...]]] = {way: [] for way in ways}
    for number in range(rounds + 1):
        for way in list(ways)[:: 1 if number % 2 else -1]:
            found = _restart(host, file, ways[way])
            if number:
                took[way].append(found)
            host.run("launcher", "kill", "gib")
    host.run("autopod", "rm", "gib", "--purge")
    return [HEADING, *_lines(took)]


def _restart(host: Host, file: Path, more: tuple[str, ...]) -> tuple[float, ...]:
    """Return seconds since the command began: it ended, a page was there, all were, no server."""
    log = host.prefix / "var/lib/autopod/gib/log"
    log.write_bytes(b"")
    began = time.monotonic()
    host.run("autopod", "restart", "gib", "-i", file, "--replace", *more)
    runs = time.monotonic() - began
    pid = next(pid for pid in enter.pids(pods.find(Places(host.prefix), "gib")))
    os.kill(pid, signal.SIGUSR1)
    found = [runs]
    for word in ("last\n", "all\n"):
        while word not in log.read_text():
            time.sleep(0.001)
        found.append(time.monotonic() - began)
    lazy.wait(Places(host.prefix), "gib")
    return (*found, time.monotonic() - began)


def _lines(took: dict[str, list[tuple[float, ...]]]) -> list[tuple[str, ...]]:
    """Return medians, and ratios to those of the first way."""
    medians = {
        way: [1000 * statistics.median(column) for column in zip(*found, strict=True)]
        for way, found in took.items()
    }
    first = next(iter(medians.values()))
    return [
        (way, *(f"{ms:.0f} ({ms / other:.2f})" for ms, other in zip(found, first, strict=True)))
        for way, found in medians.items()
    ]
