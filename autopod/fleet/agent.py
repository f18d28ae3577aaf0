"""Keeps this host in its fleet: a process of `autopod statusd`, which starts it again if it ends.

    python -m autopod.fleet.agent        until its standard input ends

What it cannot do now, for the fleet is not to be reached, it does later; nobody waits for it. At
its end others are told not to claim pods of this host, for nobody would end them here.
"""

import fcntl
import os
import random
import signal
import sys
from contextlib import suppress
from typing import Final

import trio
from msgspec.structs import replace

from autopod import hosts
from autopod.errors import Refused
from autopod.fleet import client, history, members, slots
from autopod.fleet.fence import Fence, boottime
from autopod.fleet.keeping import Keeper
from autopod.fleet.members import Announced
from autopod.fleet.store import FleetError, LeaseGone, Store
from autopod.status import drain, policy
from autopod.status import store as memory
from autopod.status.policy import Fleet
from launcher import commandline
from launcher.places import Places

_PAUSE_S: Final = 5.0
_PRUNED: Final = 50  # beats from one time to the next
_BEATS: Final = 3  # in the time of a lease
_CLOSE_BEATS: Final = 6  # where pods are ended with it


def main() -> int:
    """Be the process."""
    places = Places.from_environment()
    try:
        fleet = client.configured(policy.load(places))
        hosts.load_own(places)
        places.runs().mkdir(mode=0o755, parents=True, exist_ok=True)
        fd = os.open(places.runs() / "fleet.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        fcntl.flock(fd, fcntl.LOCK_EX)  # one that a killed service has left is on its way out
        trio.run(_run, places, fleet)
    except Exception as e:  # noqa: BLE001 (it is told, and the service goes on)
        commandline.complain("autopod", e)
        return 1
    return 0


async def _run(places: Places, fleet: Fleet) -> None:
    fence = Fence(places, fleet.ttl_s, _say)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(fence.watch)
        keeper = Keeper(places, fleet, fence, nursery)
        nursery.start_soon(_keep, places, fleet, fence, keeper)
        await _asked_to_end()
        fence.leaving = True
        await _leave(places, fleet, fence, keeper)
        nursery.cancel_scope.cancel()


async def _asked_to_end() -> None:
    async def until_eof(nursery: trio.Nursery) -> None:
        async with trio.lowlevel.FdStream(os.dup(0)) as service:
            with suppress(trio.BrokenResourceError):
                while await service.receive_some():
                    pass
        nursery.cancel_scope.cancel()

    with trio.open_signal_receiver(signal.SIGTERM) as signals:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(until_eof, nursery)
            await anext(signals)
            nursery.cancel_scope.cancel()


async def _leave(places: Places, fleet: Fleet, fence: Fence, keeper: Keeper) -> None:
    """Disarm all pods, or wait until the fence has killed those that run."""
    while fence.armed:
        with suppress(FleetError):
            async with client.opened(fleet) as store:
                await keeper.disarm_all(store)
        if not fence.armed & set(drain.running(places)):
            return
        await trio.sleep(0.1)


async def _keep(places: Places, fleet: Fleet, fence: Fence, keeper: Keeper) -> None:
    complain = _Complaints()
    patient = replace(fleet, patience_s=max(fleet.patience_s, fleet.ttl_s / 3))
    while True:
        try:
            async with client.opened(patient) as store:
                await _stay(places, fleet, store, fence, keeper)
        except FleetError as e:
            complain.of(e)
        await trio.sleep(_about(min(_PAUSE_S, fleet.ttl_s / 12)))


async def _stay(places: Places, fleet: Fleet, store: Store, fence: Fence, keeper: Keeper) -> None:
    """Be there, until the lease is lost.

    Raises:
        FleetError: the host may have gone, for the fleet.
    """
    asked, lease = boottime(), await store.grant(fleet.ttl_s)
    known = Announced()
    await known.announce(store, members.describe(places, fleet), lease.id)
    fence.extend(asked + fleet.ttl_s)
    every = fleet.ttl_s / (_CLOSE_BEATS if fleet.recover else _BEATS)

    async def work() -> None:
        """Do what may fail and take its time: the lease does not depend on it."""
        complain, beat = _Complaints(), random.randrange(_PRUNED)  # noqa: S311 (no secret)
        while True:
            try:
                await known.announce(store, members.describe(places, fleet), lease.id)
                await keeper.beat(store)
                await give_owed(places, store)
                if beat % _PRUNED == 0:
                    await history.prune(store)
            except FleetError as e:
                complain.of(e)
            beat += 1
            with trio.move_on_after(_about(every)):
                await keeper.news()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(work)
        failed = await _renew(fleet, store, fence, lease.id, every)
        nursery.cancel_scope.cancel()
    raise failed


async def _renew(
    fleet: Fleet, store: Store, fence: Fence, lease: int, every_s: float
) -> FleetError:
    """Renew a lease until it has ended; return why it is thought that it has.

    That no answer came is no reason to give it up: to make another one is more to be done by a
    store that may be slow already.
    """
    complain, good_until = _Complaints(), boottime() + fleet.ttl_s
    pause_s = 0.0  # much of its time may have gone by until the host was announced
    while True:
        await trio.sleep(_about(pause_s))
        asked = boottime()
        try:
            await store.renew(lease)
        except LeaseGone as e:
            return e
        except FleetError as e:
            if boottime() >= good_until:
                return e
            complain.of(e)
            pause_s = min(_PAUSE_S, fleet.ttl_s / 12)
            continue
        good_until, pause_s = asked + fleet.ttl_s, every_s
        fence.extend(good_until)


def _about(seconds: float) -> float:
    """Return a little less, by chance: hosts that were started together shall not stay together."""
    return seconds * (1 - random.random() / 10)  # noqa: S311 (no secret)


class _Complaints:
    """Tells the same only once in a row."""

    def __init__(self) -> None:
        self._said = ""

    def of(self, error: FleetError) -> None:
        """Tell it."""
        if str(error) != self._said:
            self._said = str(error)
            commandline.complain("autopod", error)


async def give_owed(places: Places, store: Store) -> None:
    """Give back the slot of a drain that has ended well, where that could not be done then.

    Raises:
        FleetError: nor now.
    """
    if not _owed(places):
        return
    try:
        with drain.exclusive(places), memory.opened(places) as record:
            last = record.last_drain()
            if last and last.owes and last.slot:
                await slots.give(store, last.slot, hosts.load_own(places).name)
                record.save(replace(last, slot=None))
    except Refused:  # somebody drains: another time
        return


def _owed(places: Places) -> bool:
    if not memory.path(places).exists():
        return False
    with memory.opened(places) as record:
        last = record.last_drain()
    return last is not None and last.owes


def _say(text: str) -> None:
    sys.stderr.write(f"autopod: {text}\n")


if __name__ == "__main__":
    sys.exit(main())
