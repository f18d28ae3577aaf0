"""`launcher probe`: tries the known ways out of a pod, from inside.

The attempts need no file in the pod: a child of the launcher enters as a program does, is confined
as a program is, and then makes them instead of executing anything, each in a process of its own.
That child stays undumpable, so no program of the pod gets at the interpreter meanwhile.
"""

import os
import signal
from contextlib import suppress
from typing import Final

import msgspec

from launcher import abi, attempts, capabilities, enter, entrance, program, tries
from launcher.attempts import Attempt
from launcher.config import PodConfig, Privileges
from launcher.errors import PodError
from launcher.pods import Pod
from launcher.policy import Emulated
from launcher.program import NULL, Program
from launcher.tries import Found, Outside

_PATIENCE_S: Final = 5


class AttemptRow(msgspec.Struct, frozen=True):
    """An attempt: *state* is "held", "open", or "granted": opened by the pod's configuration."""

    attempt: str
    state: str
    reason: str
    against: str


def probe(pod: Pod, config: PodConfig) -> list[AttemptRow]:
    """Make every attempt in the pod.

    Raises:
        PodError: the pod has ended, or the attempts were not all made.
    """
    reader, writer = os.pipe2(os.O_CLOEXEC)
    outside = Outside(
        {name: os.stat(f"/proc/self/ns/{name}").st_ino for name in enter.NAMESPACES},
        os.stat("/dev/null").st_dev,
        capabilities.mask(config.privileges.capabilities),
    )
    with open(reader, "rb") as answers:
        try:
            body = _Body(outside, config.privileges)
            what = Program(["probe"], {}, (NULL, writer, NULL), body=body.run)
            pid = program.execute(entrance.of(pod, config), what)
        finally:
            os.close(writer)
        said = answers.read()
    os.waitpid(pid, 0)
    try:
        return msgspec.json.decode(said, type=list[AttemptRow])
    except msgspec.DecodeError as e:
        raise PodError("the probe ended before it had made all attempts") from e


class _Body:
    """What the child does: writes the rows to descriptor 1."""

    def __init__(self, outside: Outside, privileges: Privileges) -> None:
        self._outside = outside
        self._privileges = privileges

    def run(self) -> None:
        outside = msgspec.structs.replace(self._outside, passed=_passed())
        abi.close_range(3, 0xFFFFFFFF, 0)
        rows = [_row(a, _apart(a, outside), self._privileges) for a in attempts.ATTEMPTS]
        text = memoryview(msgspec.json.encode(rows))
        while text:
            text = text[os.write(1, text) :]


def _passed() -> tuple[str, ...]:
    """Return the descriptors beyond 2 that execve(2) would pass on."""
    found = []
    for fd in map(int, os.listdir("/proc/self/fd")):
        with suppress(OSError):
            if fd > 2 and os.get_inheritable(fd):
                found.append(str(fd))
    return tuple(found)


def _row(attempt: Attempt, found: Found, privileges: Privileges) -> AttemptRow:
    state, reason = "held", found.reason
    if not found.held:
        why = granted(attempt, privileges)
        state, reason = ("granted", f"{reason}: {why}") if why else ("open", reason)
    return AttemptRow(attempt.name, state, reason, attempt.against)


def granted(attempt: Attempt, privileges: Privileges) -> str:
    """Return which key of the configuration opens *attempt* on purpose; "" if none does. Pure."""
    if privileges.rules is None:
        if attempt.calls or "seccomp" in attempt.grants:
            return 'privileges.seccomp = "none"'
    elif attempt.emulated and any(
        isinstance(privileges.rules.arguments.get(call), Emulated) for call in attempt.calls
    ):
        return f"profile {privileges.profile}: by the monitor"
    for call in attempt.calls:
        if call in privileges.allow:
            return f"privileges.allow has {call}"
    for capability in attempt.grants:
        if capability in privileges.capabilities:
            return f"capability {capability}"
    if "no_new_privileges" in attempt.grants and not privileges.no_new_privileges:
        own = privileges.own_no_new_privileges
        return "no_new_privileges" if own is not None else f"profile {privileges.profile}"
    return ""


def _apart(attempt: Attempt, outside: Outside) -> Found:
    """Make the attempt in a process of its own, which may be killed for it."""
    reader, writer = os.pipe()
    pid = os.fork()
    if pid == 0:
        os.close(reader)
        signal.alarm(_PATIENCE_S)
        found = _made(attempt, outside)
        os.write(writer, msgspec.json.encode(found))
        os._exit(0)
    os.close(writer)
    said = b""
    while part := os.read(reader, 4096):
        said += part
    os.close(reader)
    status = os.waitpid(pid, 0)[1]
    if said:
        return msgspec.json.decode(said, type=Found)
    number = os.WTERMSIG(status)
    by_kernel = number in (signal.SIGSYS, signal.SIGSEGV)
    return Found(by_kernel, f"killed by {signal.Signals(number).name}" if number else "no answer")


def _made(attempt: Attempt, outside: Outside) -> Found:
    try:
        return attempt.do(outside)
    except OSError as e:
        return Found(e.errno in tries.HELD, os.strerror(e.errno or 0))
    except Exception as e:  # noqa: BLE001 (of any kind: nobody else would tell)
        return Found(held=False, reason=f"{type(e).__name__}: {e}")
