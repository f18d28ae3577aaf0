"""Requests per second of Apache: in a pod, and in a bare network namespace.

The same program with the same files, on the same bridge, asked by the same wrk(1) in turns. Once
the bare one has the pod's own mounted root, so that the difference is the pod's alone; once the
lower directory itself, copied, so that it is the file system's as well.
"""

import contextlib
import os
import re
import shutil
import statistics
import subprocess
import time
import urllib.request
from pathlib import Path

from bench.host import Host
from launcher.identity import bridge_name
from launcher.places import Places

POD_TOML = Path(__file__).parent.parent / "examples/apache/pod.toml"
IN_POD, SAME_FILES, PLAIN = "in a pod", "bare, on the pod's root", "bare, on a plain directory"
ADDRESS = {IN_POD: "10.98.0.20", SAME_FILES: "10.98.0.21", PLAIN: "10.98.0.22"}
ROUNDS = 7
SECONDS = 3


def measure(host: Host, root: Path, rounds: int = ROUNDS) -> list[tuple[str, ...]]:
    """Return the table, as lines of cells."""
    if shutil.which("wrk") is None:
        return [("wrk is not installed",)]
    file = host.prefix / "etc/autopod/pods/apache.toml"
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(POD_TOML.read_text())
    host.run("autopod", "add", "apache", "--base", root)
    plain = host.scratch / "plain"
    shutil.copytree(root, plain, symlinks=True)
    mounted = host.prefix / "autopod/apache/root"
    rates: dict[str, list[float]] = {where: [] for where in ADDRESS}
    try:
        host.run("autopod", "addproc", "apache", "/usr/sbin/apache2")
        with _bare(mounted, SAME_FILES), _bare(plain, PLAIN):
            for where in rates:
                _wait_for(ADDRESS[where])
                _ask(ADDRESS[where], 1)
            for _ in range(rounds):
                for where, taken in rates.items():
                    taken.append(_ask(ADDRESS[where], SECONDS))
    finally:
        host.run("autopod", "rm", "apache", "--purge")
        shutil.rmtree(plain)
    lines = [("Apache", "requests/s", "pod's share")]
    own = statistics.median(rates[IN_POD])
    for where, taken in rates.items():
        middle = statistics.median(taken)
        lines.append((where, f"{middle:.0f}", f"{own / middle:.3f}"))
    return lines


def _ask(address: str, seconds: int) -> float:
    argv = ["wrk", "-t1", "-c16", f"-d{seconds}s", f"http://{address}/"]
    out = subprocess.run(argv, capture_output=True, text=True, check=True).stdout
    return float(re.search(r"Requests/sec:\s+([\d.]+)", out)[1])


def _wait_for(address: str) -> None:
    deadline = time.monotonic() + 20
    while True:
        try:
            urllib.request.urlopen(f"http://{address}/", timeout=5).close()
        except OSError:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.05)
        else:
            return


@contextlib.contextmanager
def _bare(root: Path, where: str):
    """Apache in a network namespace that is a port of the pods' bridge, chrooted to *root*."""
    bridge = bridge_name(Places.from_environment())
    number = ADDRESS[where].rpartition(".")[2]
    script = (
        f"mount --bind /dev {root}/dev && read -r _ && ip link set lo up && "
        f"ip addr add {ADDRESS[where]}/16 dev eth0 && ip link set eth0 up && "
        f"rm -f {root}/run/apache2/*.pid && "
        f"exec chroot {root} /usr/sbin/apache2 -D FOREGROUND -c 'PidFile /run/bare{number}.pid'"
    )
    (root / "dev").mkdir(exist_ok=True)
    # No pid namespace: who lives in one does not pass the barrier directory.
    argv = ["unshare", "--net", "--mount", "sh", "-ec", script]
    process = subprocess.Popen(argv, stdin=subprocess.PIPE, text=True)
    try:
        _wait_until_apart(process.pid)
        port = f"bare{number}"
        peer = ("peer", "name", "eth0", "netns", str(process.pid))
        subprocess.run(["ip", "link", "add", port, "type", "veth", *peer], check=True)
        subprocess.run(["ip", "link", "set", port, "master", bridge, "up"], check=True)
        process.stdin.write("go\n")
        process.stdin.flush()
        yield
    finally:
        process.terminate()  # Apache ends its children then
        process.communicate()


def _wait_until_apart(pid: int) -> None:
    """Wait until unshare(1) is in its own network namespace."""
    ours = os.stat("/proc/self/ns/net").st_ino
    while os.stat(f"/proc/{pid}/ns/net").st_ino == ours:
        time.sleep(0.01)
