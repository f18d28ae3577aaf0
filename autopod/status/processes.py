"""Commands that the service runs, and what it asks of the fleet by some of them.

It has one thread and no event loop, and each command may fail by itself.
"""

import os
import signal
import subprocess
import sys
from collections.abc import Sequence
from typing import Final, Literal

import msgspec
from msgspec import Struct

from launcher import abi
from launcher.places import Places

_COMMAND_S: Final = 3600
_ANSWER_S: Final = 120


class _Choice(Struct):
    """Of what `autopod fleet place --json` prints."""

    pod: str
    host: str
    possible: bool


def slot(places: Places, what: Literal["take", "give", "look"], group: str) -> str | None:
    """Have something done about this host's reboot slot; return why it was not."""
    why = ours(places, "autopod.fleet.slot", what, group)
    return why and why.removeprefix("autopod: error: ")


def placed(places: Places, names: Sequence[str], sent: Sequence[str]) -> dict[str, list[str]]:
    """Return the hosts of the fleet that pods may go to, by pod, the best first.

    A pod that is missing cannot go anywhere; all are, where it cannot be told.

    Args:
        places: the instance.
        names: of pods that leave this host.
        sent: hosts that were sent other pods just now, once for each.
    """
    more = [word for host in sent for word in ("--coming", host)]
    argv = [sys.executable, "-m", "autopod.cli", "fleet", "place", *names, "--json", *more]
    try:
        done = subprocess.run(
            argv,
            env=_environment(places),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            timeout=_ANSWER_S,
            check=False,
        )
        found = msgspec.json.decode(done.stdout, type=list[_Choice])
    except (OSError, subprocess.SubprocessError, msgspec.DecodeError):
        return {}
    hosts: dict[str, list[str]] = {}
    for one in found:
        if one.possible:
            hosts.setdefault(one.pod, []).append(one.host)
    return hosts


def ours(places: Places, module: str, *words: str) -> str | None:
    """Run a command of ours, which ends when we do; return why it failed, None if it did not."""
    return run([sys.executable, "-m", module, *words], _environment(places), leashed=True)


def run(
    argv: Sequence[str], environment: dict[str, str] | None = None, *, leashed: bool = False
) -> str | None:
    """Run a command; return its last words if it failed.

    SIGTERM waits meanwhile: half an installation is worse than a late end of the service.

    Args:
        argv: the command.
        environment: None: ours.
        leashed: it ends when we do; else it goes on.
    """
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})

    def prepare() -> None:  # of a process that has one thread
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
        if leashed:
            abi.prctl(abi.PR_SET_PDEATHSIG, signal.SIGKILL)

    try:
        done = subprocess.run(
            argv,
            env={**(environment or os.environ), "DEBIAN_FRONTEND": "noninteractive"},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            timeout=_COMMAND_S,
            check=False,
            preexec_fn=prepare,
        )
    except (OSError, subprocess.TimeoutExpired) as e:
        return f"{argv[0]}: {e}"
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
    said = done.stdout.decode(errors="replace").strip().splitlines() or ["it said nothing"]
    errors = [line for line in said if ": error: " in line]
    return (errors or said)[-1] if done.returncode else None


def _environment(places: Places) -> dict[str, str]:
    return {**os.environ, "AUTOPOD_PREFIX": os.fspath(places.prefix)}
