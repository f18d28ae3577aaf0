"""What a drain runs for its reboot slot: a process, for the drain itself has no event loop.

python -m autopod.fleet.slot take|give|look GROUP
"""

import sys
from collections.abc import Awaitable

from autopod import hosts
from autopod.fleet import client, slots
from autopod.fleet.store import Store
from autopod.status import policy
from launcher import commandline
from launcher.places import Places


def main() -> int:
    """Be the process."""
    places = Places.from_environment()
    try:
        [what, group] = sys.argv[1:]
        fleet = client.configured(policy.load(places))
        who = hosts.load_own(places).name

        def do(store: Store) -> Awaitable[object]:
            if what == "give":
                return slots.give(store, group, who)
            asked = slots.take if what == "take" else slots.look
            return asked(store, group, who, fleet.slots)

        client.ask(fleet, do)
    except Exception as e:  # noqa: BLE001 (it is told, and nothing is done)
        commandline.complain("autopod", e)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
