"""What takes a pod over in the fleet while its receiver builds it: a process with an event loop.

    python -m autopod.fleet.handover POD FROM SESSION

It says `ready` when it can be done, waits for `go`, does it, and says `done`.
"""

import os
import signal
import sys

import trio

from autopod import hosts
from autopod.errors import Refused
from autopod.fleet import client, owners
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
        pod, former, session = sys.argv[1:]
        fleet = client.configured(policy.load(places))
        wanted = Claim(hosts.load_own(places).name, former=former, session=session)
        trio.run(_take, fleet, pod, wanted)
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
        _say("ready")
        async with trio.lowlevel.FdStream(os.dup(0)) as receiver:
            if await receiver.receive_some() != b"go\n":
                return
        await owners.claim(store, pod, wanted)
    _say("done")


def _say(word: str) -> None:
    os.write(1, f"{word}\n".encode())


if __name__ == "__main__":
    sys.exit(main())
