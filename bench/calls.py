"""What system calls cost in a pod: one that the filter lets through, and emulated ones."""

import subprocess
from pathlib import Path

from bench.host import Host
from bench.measure import RUNS, Row

SOURCE = Path(__file__).with_suffix(".c")
POD = "calls"


def measure(host: Host, root: Path) -> list[Row]:
    """Return the rows."""
    config = host.prefix / f"etc/autopod/pods/{POD}.toml"
    config.parent.mkdir(parents=True, exist_ok=True)
    config.write_text('[privileges]\nprofile = "debian"\n')
    host.run("autopod", "add", POD, "--base", root)
    program = host.prefix / f"autopod/{POD}/root/calls"
    subprocess.run(["cc", "-O1", "-static", "-o", program, SOURCE], check=True)
    native, inside = (min(pair) for pair in zip(*_plain(host, program), strict=True))
    refused, done = map(float, host.run("launcher", "run", POD, "/calls", "emulated").split())
    host.run("autopod", "rm", POD, "--purge")
    return [
        Row("getpid, let through by the filter, ns", f"{inside:.0f}", f"{native:.0f}",
            goal=f"{1.35 * native:.0f}"),
        Row("mount, refused by the monitor, µs", f"{refused / 1000:.0f}", goal="100"),
        Row("mount and umount of a tmpfs by the monitor, each, µs", f"{done / 1000:.0f}"),
    ]  # fmt: skip


def _plain(host: Host, program: Path) -> list[tuple[float, float]]:
    """Return what a plain call costs outside and inside, in turn: the processor's speed varies."""
    return [
        (
            float(subprocess.check_output([program, "plain"])),
            float(host.run("launcher", "run", POD, "/calls", "plain")),
        )
        for _ in range(RUNS)
    ]
