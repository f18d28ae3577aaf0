"""What an agent does at each beat for the pods that others are to restart if this host dies.

Pods that run here and are this host's are armed, those that do not run any more are disarmed. Of
other hosts that have died they are claimed and restarted. So are this host's own, where the fleet
was not to be reached and the fence has killed them, or where the host has died and is back first.

A host looks whether it could restart a pod before it claims it: one that could not leaves it to the
next, whose turn is half of a lease's time later.
"""

import os
import subprocess
import sys
from collections import Counter
from contextlib import suppress
from math import inf
from pathlib import Path
from typing import Final

import msgspec
import trio

from autopod import checkpoints, hosts, journal, stored
from autopod.fleet import client, history, recovery, takeover
from autopod.fleet.fence import Fence, boottime
from autopod.fleet.lookout import Lookout
from autopod.fleet.recovery import Charge, Patience, Survey
from autopod.fleet.store import FleetError, Store
from autopod.retention import Taken
from autopod.status import drain
from autopod.status.policy import Fleet
from launcher.lock import is_locked
from launcher.places import Places

_SAID: Final = 300
_TRIES: Final = 3
_AGAIN_S: Final = 600.0
"""After so long it is looked anew whether a pod can be restarted here."""

_GLANCE_S: Final = 0.5
_ANSWER_S: Final = 30
_CLI: Final = "autopod.cli"


class _Row(msgspec.Struct):
    """Of what `autopod checkpoints --json` prints."""

    file: str


class Keeper:
    """Does it, for one agent."""

    def __init__(self, places: Places, fleet: Fleet, fence: Fence, nursery: trio.Nursery) -> None:
        self._places, self._fleet, self._fence, self._nursery = places, fleet, fence, nursery
        self._name = hosts.load_own(places).name
        self._patience, self._lookout = Patience(self._name), Lookout()
        self._first = fence.fresh
        self._turn = trio.Lock()
        self._said = ""
        self._seen = set[str]()
        self._tries = Counter[str]()
        self._restarting = set[str]()
        # Pods of others: from what each can be restarted here, if at all, and how long that counts.
        self._fit: dict[str, tuple[float, tuple[int, str] | None]] = {}
        self._hurry = False

    async def beat(self, store: Store) -> None:
        """Do what is to be done now. The caller has a lease that is good.

        Raises:
            FleetError: it is done at the next beat.
        """
        self._seen = set(drain.running(self._places))
        if self._fleet.recover is not None and takeover.are_kept(self._places):
            async with self._turn:
                await self._beat(store)

    async def news(self) -> None:
        """Wait until a pod runs that did not at the last beat, which is not to wait to be armed.

        Or until it is known that one of a host that has died can be restarted here.
        """
        while True:
            await trio.sleep(_GLANCE_S)
            if self._fleet.recover and not self._seen.issuperset(drain.running(self._places)):
                return
            if self._hurry:
                self._hurry = False
                return

    async def disarm_all(self, store: Store) -> None:
        """Let nobody claim pods of this host's any more.

        Raises:
            FleetError: somebody may.
        """
        async with self._turn:
            for pod in sorted(self._fence.armed):
                await self._disarm(store, pod)

    async def _beat(self, store: Store) -> None:
        mine = await recovery.armed_pods(store, self._name)
        running = set(drain.running(self._places))
        for pod in running - mine:
            await self._arm(store, pod)
        for pod in mine - running:
            await self._recover_own(store, pod)
        for pod in self._fence.armed - mine - running:
            self._fence.disarm(pod)
        await self._recover_others(store, await self._lookout.look(store))
        self._first = False

    async def _disarm(self, store: Store, pod: str) -> None:
        await recovery.disarm(store, pod, self._name)
        self._fence.disarm(pod)

    async def _arm(self, store: Store, pod: str) -> None:
        if self._fence.leaving or not self._share(pod):
            return
        self._fence.arm(pod)
        if not await recovery.arm(store, pod, self._name, self._fleet.ttl_s):
            self._fence.disarm(pod)

    async def _recover_own(self, store: Store, pod: str) -> None:
        """Take up a pod of this host's that does not run, unless somebody has ended it."""
        if pod in self._restarting or is_locked(self._places, pod):
            return
        charge = await recovery.charge(store, self._name, pod)
        if charge is None:
            return
        waits = self._places.waiting(pod).exists()
        moves = journal.is_moving(self._places, pod)
        again = charge.unborn and self._tries[pod] < _TRIES
        died = self._first or again or pod in self._fence.killed
        if died and not (waits or moves or self._fence.leaving):
            newest = await self._newest(charge)
            if newest is not None:
                await self._claim(store, charge, newest)
        else:
            await self._disarm(store, pod)

    async def _recover_others(self, store: Store, found: Survey) -> None:
        """Recover pods of hosts that have died, those of which it is known that it can be done."""
        due = {charge.pod: charge for charge in self._patience.due(found, boottime())}
        self._fit = {pod: known for pod, known in self._fit.items() if pod in due}
        for pod, charge in due.items():
            until, fit = self._fit.get(pod, (0.0, None))
            if self._fence.leaving:
                return
            if boottime() >= until:
                self._fit[pod] = (inf, None)
                self._nursery.start_soon(self._look, charge)
            elif fit is not None:
                del self._fit[pod]
                if fit == await self._newest(charge):
                    await self._claim(store, charge, fit)

    async def _look(self, charge: Charge) -> None:
        """Look whether a pod can be restarted here; that takes seconds."""
        pod, newest = charge.pod, await self._newest(charge)
        if newest is None:
            self._fit.pop(pod, None)
            return
        file = await self._file(pod, newest[0])
        done = await _ours("autopod.fleet.restart", pod, file, "--check") if file else None
        fit = done is not None and done.returncode == 0
        self._fit[pod] = (boottime() + _AGAIN_S, newest if fit else None)
        self._hurry |= fit
        if not fit:
            said = done.stderr.decode(errors="replace").strip() if done else self._said
            await self._tell(f"{pod} cannot be restarted at {self._name}: {said}")

    async def _newest(self, charge: Charge) -> tuple[int, str] | None:
        """Return number and name of the checkpoint that a pod is to be restarted from, if any."""
        known = await self._known(charge.pod) if self._share(charge.pod) else []
        names = {one.number: checkpoints.name_of(one) for one in known}
        name = recovery.newest(names, charge.consumed)
        return None if name is None else (max(names), name)

    async def _claim(self, store: Store, charge: Charge, newest: tuple[int, str]) -> None:
        """Claim a pod, and restart it from a checkpoint."""
        pod, (number, name) = charge.pod, newest
        self._fence.disarm(pod)  # nor is it one that was killed
        self._fence.arm(pod)  # from the moment on at which it may stand
        if await recovery.claim(store, charge, self._name, name, self._fleet.ttl_s):
            self._restarting.add(pod)
            self._nursery.start_soon(self._restart, pod, number)
        else:
            self._fence.disarm(pod)

    async def _known(self, pod: str) -> list[Taken]:
        """Return the kept checkpoints that all hosts have, the oldest first."""
        if not self._fleet.from_store:
            return checkpoints.known(self._places, pod)
        with trio.move_on_after(_ANSWER_S):  # it has threads: not in this process
            done = await _ours(_CLI, "checkpoints", pod, "--from", stored.CONFIGURED, "--json")
            if done.returncode == 0:
                rows = msgspec.json.decode(done.stdout, type=list[_Row])
                return checkpoints.among([one.file.rpartition("/")[2] for one in rows])
            self._complain(done.stderr.decode(errors="replace").strip())
        return []

    async def _restart(self, pod: str, number: int) -> None:
        """Restart a pod that was claimed; it is not broken off when the agent ends."""
        self._tries[pod] += 1
        try:
            got = await self._file(pod, number)
            done = await _ours("autopod.fleet.restart", pod, got) if got else None
        finally:
            self._restarting.discard(pod)
        said = done.stderr.decode(errors="replace").strip() if done else self._said
        well = done is not None and done.returncode == 0
        if well:
            del self._tries[pod]
        await self._tell(f"{pod} runs at {self._name} again" if well else f"{pod}: {said}")

    async def _tell(self, text: str) -> None:
        sys.stderr.write(f"autopod: {text}\n")
        told = history.told(self._name, "recovery", text[:_SAID])
        with suppress(FleetError):
            async with client.opened(self._fleet) as store:
                await store.apply([], [told])

    async def _file(self, pod: str, number: int) -> str | None:
        """Return the archive; None: it is not to be had, and why has been said."""
        if not self._fleet.from_store:
            found = {one.number: one for one in checkpoints.known(self._places, pod)}
            return os.fspath(checkpoints.path_of(self._places, pod, found[number]))
        get = ("--from", stored.CONFIGURED, "--get", str(number))
        done = await _ours(_CLI, "checkpoints", pod, *get)
        if done.returncode == 0:
            return os.fsdecode(done.stdout.rstrip(b"\n"))
        self._complain(done.stderr.decode(errors="replace").strip())
        return None

    def _complain(self, said: str) -> None:
        """Tell the same only once in a row."""
        if said != self._said:
            self._said = said
            sys.stderr.write(f"{said}\n")

    def _share(self, pod: str) -> bool:
        """See to it that the pod's kept checkpoints are where all hosts have them."""
        if self._fleet.from_store:
            return True
        own, shared = checkpoints.directory(self._places, pod), Path(self._fleet.recover or "/")
        there = shared / own.name
        try:
            if not own.is_symlink() and not own.exists():
                for directory, mode in ((own.parent, 0o755), (there, 0o700)):
                    directory.mkdir(mode=mode, parents=True, exist_ok=True)
                own.symlink_to(there)
            return own.samefile(there)
        except OSError as e:
            self._complain(f"autopod: error: {e.strerror}: {e.filename}")
            return False


async def _ours(module: str, *words: str) -> "subprocess.CompletedProcess[bytes]":
    """Run a module of ours, which is not broken off when the agent ends."""

    async def let_it_be(_process: trio.Process) -> None:
        pass

    argv = [sys.executable, "-m", module, *words]
    return await trio.run_process(
        argv,
        stdin=b"",
        capture_stdout=True,
        capture_stderr=True,
        check=False,
        deliver_cancel=let_it_be,
    )
