"""How long a pod stands still for a checkpoint, how long it takes to come back: beside CRIU.

In each round the pod is checkpointed and goes on, which tells how long it stands still; then
checkpointed and ended, and restarted where its files still are, as CRIU restores; then again, on a
host that has nothing of it. CRIU's turn follows in the same round.
"""

import re
import shutil
import statistics
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path

from bench import criu
from bench.host import Host
from bench.measure import timed
from bench.programs import Program, programs
from examples.exim import mail

ROUNDS = 5
HERE = "127.0.0.1"
ASPECTS = ("frozen", "checkpoint", "restart")
HEADING = (
    "ms (we take so many times as long)",
    "frozen", "CRIU", "checkpoint", "CRIU", "restart", "CRIU", "on an empty host",
    "archive, MiB", "CRIU",
)  # fmt: skip


@dataclass
class Series:
    """Seconds of each round, and MiB of what was written."""

    frozen: list[float] = field(default_factory=list)
    checkpoint: list[float] = field(default_factory=list)
    restart: list[float] = field(default_factory=list)
    elsewhere: list[float] = field(default_factory=list)
    mib: float = 0


def measure(
    host: Host, trees: dict[str, Path], only: str = "", rounds: int = ROUNDS
) -> list[tuple[str, ...]]:
    """Return the table, as lines of cells: of all programs, or of the pod that is named."""
    wanted = [program for program in programs() if only in {"", program.pod}]
    return [HEADING, *(_measure(host, one, trees[one.tree], rounds) for one in wanted)]


def _measure(host: Host, program: Program, root: Path, rounds: int) -> tuple[str, ...]:
    ours, theirs = Series(), Series()
    with ExitStack() as stack:
        pod = _Pod(host, program, root)
        stack.callback(pod.remove)
        there = criu.program()
        peer = stack.enter_context(criu.Peer(there, root, host.scratch)) if there else None
        if peer:
            peer.start(program.argv)
            mail.wait_until(lambda: program.answers(HERE) and program.says in peer.said(), "ready")
            program.fill(HERE)
        for _ in range(rounds + 1):
            pod.round(ours)
            if peer:
                _peer_round(peer, program, theirs)
        program.talk.end()
    return _line(program.name, ours, theirs)


class _Pod:
    """The pod of a program, which runs."""

    def __init__(self, host: Host, program: Program, root: Path) -> None:
        self._host, self._program = host, program
        self._archive = host.scratch / f"{program.pod}.pod"
        if program.settings.exists():
            file = host.prefix / f"etc/autopod/pods/{program.pod}.toml"
            file.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(program.settings, file)
        said = host.run("autopod", "add", program.pod, "--base", root)
        self._address = re.search(r" at ([\d.]+)", said)[1]
        host.run("autopod", "addproc", program.pod, *program.argv)
        mail.wait_until(self._is_ready, f"{program.name} is ready")
        program.fill(self._address)

    def _is_ready(self) -> bool:
        said = self._host.run("launcher", "logs", self._program.pod)
        return self._program.says in said and self._program.answers(self._address)

    def round(self, series: Series) -> None:
        self._begin()
        said = self._checkpoint("--leave-running")
        series.frozen.append(float(re.search(r"frozen ([\d.]+) ms", said)[1]) / 1000)
        series.checkpoint.append(timed(self._checkpoint))
        series.mib = self._archive.stat().st_size / 2**20
        series.restart.append(timed(self._restart))
        self._goes_on()
        self._begin()
        self._checkpoint()
        self._host.run("autopod", "rm", self._program.pod, "--purge")
        series.elsewhere.append(timed(self._restart))
        self._goes_on()

    def _begin(self) -> None:
        self._program.begin(self._program.talk, self._address)

    def _goes_on(self) -> None:
        _check(self._program, self._address)

    def _checkpoint(self, *options: str) -> str:
        pod = self._program.pod
        return self._host.run("autopod", "checkpoint", pod, "-o", self._archive, *options)

    def _restart(self) -> None:
        self._host.run("autopod", "restart", self._program.pod, "-i", self._archive)

    def remove(self) -> None:
        self._host.run("autopod", "rm", self._program.pod, "--purge")


def _peer_round(peer: criu.Peer, program: Program, series: Series) -> None:
    program.begin(program.talk, HERE)
    taken, frozen = peer.dump()
    series.checkpoint.append(taken)
    series.frozen.append(frozen)
    series.mib = peer.image_bytes() / 2**20
    series.restart.append(peer.restore())
    _check(program, HERE)


def _check(program: Program, address: str) -> None:
    if not program.goes_on(program.talk) or not program.answers(address):
        raise RuntimeError(f"{program.name} does not go on as it was")


def _line(name: str, ours: Series, theirs: Series) -> tuple[str, ...]:
    """Return medians, and ratios to CRIU's; the first round does not count."""
    cells = [name]
    for aspect in ASPECTS:
        own = statistics.median(getattr(ours, aspect)[1:]) * 1000
        if theirs.frozen:
            other = statistics.median(getattr(theirs, aspect)[1:]) * 1000
            cells += [f"{own:.0f} ({own / other:.2f})", f"{other:.0f}"]
        else:
            cells += [f"{own:.0f}", ""]
    cells.append(f"{statistics.median(ours.elsewhere[1:]) * 1000:.0f}")
    cells += [f"{ours.mib:.1f}", f"{theirs.mib:.1f}" if theirs.mib else ""]
    return tuple(cells)
