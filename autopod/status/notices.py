"""Who tells people: a process beside the service, and `autopod notify`.

python -m autopod.status.notices     tells what there is to tell, until its standard input ends
"""

import fcntl
import os
import select
import sys
import time
from collections.abc import Sequence
from contextlib import closing
from datetime import UTC, datetime
from typing import Final

from autopod import hosts
from autopod.status import outbox, policy, senders
from autopod.status.receivers import Receiver
from autopod.status.store import Store, opened
from launcher import commandline
from launcher.places import Places

_LOOK_S: Final = 2.0


def main() -> int:
    """Be the process."""
    places = Places.from_environment()
    try:
        receivers = named(policy.load(places).notify)
        with opened(places) as store, closing(_only_one(places)):
            while True:
                deliver(store, receivers, hosts.own_name(places))
                if select.select([0], [], [], _LOOK_S)[0]:  # nothing is ever written there
                    return 0
    except Exception as e:  # noqa: BLE001 (it is told, and the service starts it again)
        commandline.complain("autopod", e)
        return 1


def _only_one(places: Places) -> "_Lock":
    """Wait until nobody else tells: another service's process that is on its way out."""
    places.runs().mkdir(mode=0o755, parents=True, exist_ok=True)
    return _Lock(os.fspath(places.runs() / "notices.lock"))


class _Lock:
    """A lock that dies with its holder."""

    def __init__(self, path: str) -> None:
        self._fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        fcntl.flock(self._fd, fcntl.LOCK_EX)

    def close(self) -> None:
        """Give it up."""
        os.close(self._fd)


def deliver(store: Store, receivers: dict[str, Receiver], host: str) -> None:
    """Tell what there is to tell, once each; who does not take it is asked again later."""
    if outbox.is_behind(store, receivers):
        outbox.queue(store, list(receivers))
    while due := outbox.due(store, time.time()):
        for one in due:
            try:
                senders.tell(receivers[one.receiver], host, one.notice)
            except senders.NotTold as e:
                sys.stderr.write(f"autopod: {one.receiver} was not told: {e}\n")
                outbox.failed(store, one, str(e), time.time())
            else:
                outbox.delivered(store, one)


def named(receivers: Sequence[Receiver]) -> dict[str, Receiver]:
    """Return the receivers by names that differ. Pure."""
    found: dict[str, Receiver] = {}
    for receiver in receivers:
        same = sum(one.name == receiver.name for one in found.values())
        found[f"{receiver.name} ({same + 1})" if same else receiver.name] = receiver
    return found


def test(places: Places) -> dict[str, str | None]:
    """Tell every receiver something that says nothing; return why each was not told.

    Raises:
        ConfigError: the policy cannot be understood.
    """
    said: dict[str, str | None] = {}
    for name, receiver in named(policy.load(places).notify).items():
        try:
            senders.tell(receiver, hosts.own_name(places), outbox.trial(datetime.now(UTC)))
            said[name] = None
        except senders.NotTold as e:
            said[name] = str(e)
    return said


if __name__ == "__main__":
    sys.exit(main())
