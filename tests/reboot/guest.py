"""What is done in the machine: by its init system, by an administrator, by somebody who looks.

python -m tests.reboot.guest VERB WORD...
"""

import os
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

from autopod.status import store
from examples.exim.mail import wait_until
from launcher.identity import bridge_name
from launcher.places import Places
from tests.kernel.ckpt.harness import tool
from tests.kernels import exim
from tests.reboot.machine import DISK, LABEL, OWN, WEB

APACHE = "apache"
PLACES = Places(Path("/"))
BIN = Path(sys.executable).parent
_TIMEOUT_S = 1200
_LOOK_S = 5
_CONFIGURATION = Path(__file__).parents[2] / "examples/apache/pod.toml"


def mount() -> None:
    """Be the init system: the disk, and what on it is the machine's own."""
    DISK.mkdir(exist_ok=True)
    argv = ["mount", f"LABEL={LABEL}", os.fspath(DISK)]
    wait_until(
        lambda: subprocess.run(argv, capture_output=True, check=False).returncode == 0,
        "the disk is there",
    )
    for path in OWN:
        Path("/", path).mkdir(parents=True, exist_ok=True)
        subprocess.run(["mount", "--bind", DISK / path, f"/{path}"], check=True)
    Path("/proc/sys/net/ipv4/ip_forward").write_text("1\n")


def bridge(address: str) -> None:
    """Be the init system: the pods' bridge, which leads to the machine's network; its address."""
    name = bridge_name(PLACES)
    for words in (
        ["link", "add", name, "type", "bridge"],
        ["addr", "flush", "dev", "eth0"],
        ["link", "set", "eth0", "master", name],
        ["addr", "add", address, "dev", name],
        ["link", "set", name, "up"],
    ):
        subprocess.run(["ip", *words], check=True)


def serve(log: str) -> None:
    """Be the init system: start the status service."""
    with open(log, "ab") as output:
        subprocess.Popen(
            [BIN / "autopod", "statusd"],
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            start_new_session=True,
        )


def install(*packages: str) -> None:
    """Install packages from files."""
    subprocess.run(["dpkg", "--install", *packages], check=True)


def pods() -> None:
    """Make both pods."""
    exim.begin(PLACES, DISK / "roots/exim")
    print(exim.queue().strip())
    shutil.copyfile(_CONFIGURATION, PLACES.config(APACHE))
    tool("autopod", "add", APACHE, "--base", DISK / f"roots/{APACHE}", timeout=_TIMEOUT_S)
    tool("autopod", "addproc", APACHE, "/usr/sbin/apache2", timeout=_TIMEOUT_S)
    _wait(_answers, "Apache answers")


def command(*argv: str) -> int:
    """Run a command of the project; its exit status is ours."""
    return subprocess.run([BIN / argv[0], *argv[1:]], check=False).returncode


def unsafe() -> None:
    """Let the power fail when dpkg configures the next kernel."""
    (DISK / "power-failure").touch()


def release() -> None:
    """Be the administrator: the host is not held any more."""
    policy = PLACES.keys().parent / "autopod.toml"
    kept = [line for line in policy.read_text().splitlines() if not line.startswith("hold")]
    changed = policy.with_suffix(".new")
    changed.write_text("".join(f"{line}\n" for line in kept))
    changed.rename(policy)


def clear() -> None:
    """Be the administrator: the service may act again. It says to try again while it looks."""
    _wait(lambda: command("autopod", "drain", "--clear") == 0, "the service lets itself be told")


def seen(level: str) -> None:
    """Wait until the service has looked, and found *level*."""
    _wait(lambda: _level() == level, f"the service has found: {level}")


def returned() -> None:
    """Wait until the drain has ended; tell how: pods must run, whatever else has failed."""
    _wait(
        lambda: (last := _last()) is not None and last.phase in store.ENDED, "the drain has ended"
    )
    last = _last()
    print(f"{last.phase}; expected {last.expected}; orders to reboot: {last.reboots}")
    for pod in last.pods:
        print(pod.words)
    print(last.failed or "nothing has failed")
    if any(pod.place != "back" for pod in last.pods):
        sys.exit("a pod did not come back")


def mailbox(subject: str) -> None:
    """Print the mail of that subject, as it was delivered; wait for it."""
    found: list[str] = []

    def is_there() -> bool:
        texts = (path.read_text() for path in exim.mailbox(PLACES))
        found.extend(text for text in texts if f"Subject: {subject}\n" in text)
        return bool(found)

    _wait(is_there, f"the mail {subject} is in the mailbox")
    print(found[0], end="")


def mails() -> None:
    """See that the queued mail goes out; tell what is in the queue before and after."""
    print(exim.queue().strip())
    exim.check(PLACES)
    print(f"queue afterwards: {exim.queue().strip() or 'empty'}")


def history() -> None:
    """Print the journal of the service."""
    with store.opened(PLACES) as opened:
        for one in opened.recent(-1):
            print(f"{one.at:%F %T}  {one.kind:6}  {one.text}")


def _answers() -> bool:
    try:
        socket.create_connection((WEB, 80), timeout=5).close()
    except OSError:
        return False
    return True


def _is_over() -> bool:
    last = _last()
    return last is not None and last.phase in store.ENDED


def _last() -> store.Drain | None:
    with store.opened(PLACES) as opened:
        return opened.last_drain()


def _level() -> str | None:
    with store.opened(PLACES) as opened:
        newest = "SELECT level FROM report ORDER BY rowid DESC LIMIT 1"
        row = opened.db.execute(newest).fetchone()
    return row[0] if row else None


def _wait(true: Callable[[], bool], what: str) -> None:
    """An emulated processor has better things to do than to look all the time."""
    deadline = time.monotonic() + _TIMEOUT_S
    while not true():
        if time.monotonic() > deadline:
            sys.exit(f"waited {_TIMEOUT_S} s in vain until {what}")
        time.sleep(_LOOK_S)


VERBS = {one.__name__: one for one in (
    mount, bridge, serve, install, pods, command, unsafe, release, clear, seen, returned, mailbox,
    mails, history,
)}  # fmt: skip


if __name__ == "__main__":
    sys.exit(VERBS[sys.argv[1]](*sys.argv[2:]))
