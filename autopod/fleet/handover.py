"""What asks the fleet for who builds a pod: a process with an event loop.

    python -m autopod.fleet.handover take POD FROM SESSION    takes over a pod that moves
    python -m autopod.fleet.handover consume POD CHECKPOINT   uses up what it is restarted from

It says `ready` when it can be done, waits for `go`, does it, and says `done`.
"""

import os
import signal
import sys

import trio

from autopod import hosts
from autopod.errors import Refused
from autopod.fleet import client, owners, recovery
from autopod.fleet.owners import Claim
from autopod.status import policy
from autopod.status.policy import Fleet
from launcher import abi, commandline
from launcher.places import Places


def main() -> int:
    """Be the process."""
    abi.prctl(abi.PR_SET_PDEATHSIG, signal.SIGKILL)  # a receiver has one thread
    places = Places.from_environment()
    try:
        what, pod, *more = sys.argv[1:]
        fleet = client.configured(policy.load(places))
        own = hosts.load_own(places).name
        if what == "take":
            former, session = more
            trio.run(_take, fleet, pod, Claim(own, former=former, session=session))
        else:
            [checkpoint] = more
            trio.run(_consume, fleet, pod, own, checkpoint)
    except Exception as e:  # noqa: BLE001 (it is told to the receiver)
        commandline.complain("autopod", e)
        return 1
    return 0


async def _take(fleet: Fleet, pod: str, wanted: Claim) -> None:
    async with client.opened(fleet) as store:
        owner, _ = await owners.read(store, pod)
        why = owners.against(owner, wanted)
        if why:
            raise Refused(f"pod {pod!r}: {why}")
        if await _told_to_go():
            await owners.claim(store, pod, wanted)
            _say("done")


async def _consume(fleet: Fleet, pod: str, own: str, checkpoint: str) -> None:
    async with client.opened(fleet) as store:
        await owners.read(store, pod)  # so that it is connected
        if await _told_to_go():
            await recovery.consume(store, pod, own, checkpoint)
            _say("done")


async def _told_to_go() -> bool:
    _say("ready")
    async with trio.lowlevel.FdStream(os.dup(0)) as builder:
        return await builder.receive_some() == b"go\n"


def _say(word: str) -> None:
    os.write(1, f"{word}\n".encode())


if __name__ == "__main__":
    sys.exit(main())
