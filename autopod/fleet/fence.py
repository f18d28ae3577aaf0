"""A host ends its own pods before the fleet may think that it is dead.

A lease that cannot be renewed ends, and then another host may restart what ran here. So the pods
that the fleet was told of (*armed*) are frozen when a third of the lease's time is left, and killed
when a sixth is. The clock is CLOCK_BOOTTIME, which runs on while the host is suspended.

What must be known by who comes after a killed agent is in `/run/autopod/fleet.json`.
"""

import os
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Final, Literal

import msgspec
import trio
from msgspec import Struct

from launcher import cgroups, pods
from launcher.errors import Locked
from launcher.lock import locked
from launcher.places import Places

Stage = Literal["run", "freeze", "kill"]

_TICK_S: Final = 0.5


class _State(Struct, frozen=True):
    boot_id: str
    good_until: float
    armed: list[str]
    killed: list[str] = []


def stage(now: float, good_until: float, ttl_s: float) -> Stage:
    """Return what is to become of armed pods. Pure.

    Args:
        now: of the clock.
        good_until: when the lease ends at the earliest.
        ttl_s: its time.
    """
    if now >= good_until - ttl_s / 6:
        return "kill"
    return "freeze" if now >= good_until - ttl_s / 3 else "run"


def boottime() -> float:
    """Return the seconds since the boot, those of sleep included."""
    return time.clock_gettime(time.CLOCK_BOOTTIME)


class Fence:
    """Watches over one host's armed pods.

    Attributes:
        armed: pods that others may claim when this host's lease has ended.
        killed: those of them that were.
        fresh: no agent of this boot was before.
        leaving: no more are to be armed.
    """

    def __init__(self, places: Places, ttl_s: float, say: Callable[[str], None]) -> None:
        """Begin with what a former agent of this boot has left.

        Args:
            places: the instance.
            ttl_s: of the host's leases.
            say: tells an administrator.
        """
        self._places, self._ttl_s, self._say = places, ttl_s, say
        self._boot_id = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
        self._frozen: set[str] = set()
        self._good_until = 0.0
        self.armed: set[str] = set()
        self.killed: set[str] = set()
        self.leaving, self.fresh = False, True
        with suppress(FileNotFoundError, msgspec.DecodeError):
            state = msgspec.json.decode(self._file().read_bytes(), type=_State)
            if state.boot_id == self._boot_id:
                self._good_until, self.armed = state.good_until, set(state.armed)
                self.killed, self.fresh = set(state.killed), False
        self._doubtful = set(self.armed)  # a former agent may have frozen them

    def extend(self, good_until: float) -> None:
        """Learn that the lease lasts at least until then."""
        self._good_until = good_until
        self._save()

    def arm(self, pod: str) -> None:
        """Watch over a pod; before the fleet is told."""
        self.armed.add(pod)
        self._save()

    def disarm(self, pod: str) -> None:
        """Let a pod be; after the fleet was told."""
        self.armed.discard(pod)
        self.killed.discard(pod)
        self._save()

    async def watch(self) -> None:
        """Do it, until cancelled."""
        while True:
            self.look(boottime())
            await trio.sleep(min(_TICK_S, self._ttl_s / 60))

    def look(self, now: float) -> None:
        """Do what is to be done at a time."""
        what = stage(now, self._good_until, self._ttl_s) if self.armed else "run"
        if what == "run":
            for pod in sorted(self._frozen | self._doubtful):
                self._resume(pod)
        elif what == "freeze":
            for pod in sorted(self.armed):
                self._freeze(pod)
        else:
            for pod in sorted(self.armed):
                self._kill(pod)

    def _kill(self, name: str) -> None:
        pod = pods.find(self._places, name)
        if pod is not None:
            pods.kill(pod)
            if name not in self.killed:
                self._say(f"pod {name} is killed: others may restart it, the fleet is not reached")
                self.killed.add(name)
                self._save()
        self._frozen.discard(name)

    def _freeze(self, name: str) -> None:
        """Freeze a pod; each time, for a checkpoint may have resumed it."""
        if self._write(name, "1") and name not in self._frozen:
            self._frozen.add(name)
            self._say(f"pod {name} is frozen: the fleet has not been reached")

    def _resume(self, name: str) -> None:
        """Let a pod go on, unless somebody works on it, who may hold it, too: later then."""
        with suppress(Locked, OSError), locked(self._places, name):
            if self._write(name, "0") and name in self._frozen:
                self._say(f"pod {name} goes on: the fleet is there again")
            self._frozen.discard(name)
            self._doubtful.discard(name)

    def _write(self, name: str, word: str) -> bool:
        pod = pods.find(self._places, name)
        file = cgroups.freezer(pod.cgroups) if pod else None
        if file is None:
            return False
        with suppress(OSError):  # it has gone
            file.write_text(word)
            return True
        return False

    def _save(self) -> None:
        armed, killed = sorted(self.armed), sorted(self.killed)
        state = _State(self._boot_id, self._good_until, armed, killed)
        new = self._file().with_suffix(".new")
        new.write_bytes(msgspec.json.encode(state))
        os.replace(new, self._file())

    def _file(self) -> Path:
        return self._places.runs() / "fleet.json"
