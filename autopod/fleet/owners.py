"""Which host of a fleet has which pod: one entry per pod, changed by compare-and-swap.

A pod is claimed before it is made (`autopod fleet claim`, which launcher/guard.py runs), and given
to another host when it moves. The revision of the entry is the fencing token: it is another one
after each change of hands.

Where a pod moves, the journal of the two hosts decides (autopod/journal.py), and the owner follows.
Its new host takes it over in the name of the session just before it decides to release it. If it
does not come to that, its former host, which has been told so for good, takes it back in the name
of the same session.
"""

import os
from datetime import UTC, datetime
from typing import Final

import msgspec
from msgspec import Struct

from autopod import hosts, journal
from autopod.errors import Refused
from autopod.fleet import history
from autopod.fleet.store import Change, Compare, Delete, FleetError, Put, Store, decode
from autopod.fleet.takeover import ARRIVING
from launcher.places import Places, check_pod_name

PREFIX: Final = "/pods/"
ARMED: Final = "/armed/"
_TRIES: Final = 20


class Owner(Struct, frozen=True):
    """Who has a pod.

    Attributes:
        host: its name.
        since: by its clock.
        session: in which it came there by a move; None: it did not.
    """

    host: str
    since: datetime
    session: str | None = None


class Claim(Struct, frozen=True):
    """What a host says for itself when it wants a pod.

    Attributes:
        host: its name.
        former: the host from which it may take the pod, whatever that does: None: from none.
        returned: the session in which the pod has left it and has come back.
        session: the session in which the pod comes to it.
    """

    host: str
    former: str | None = None
    returned: str | None = None
    session: str | None = None


def against(owner: Owner | None, claim: Claim) -> str | None:
    """Return what speaks against a claim; None: nothing. Pure."""
    if owner is None or owner.host in (claim.host, claim.former):
        return None
    if claim.returned is not None and claim.returned == owner.session:
        return None
    return f"host {owner.host} has it, since {owner.since:%F %R} UTC"


async def claim(store: Store, pod: str, wanted: Claim) -> int:
    """Let a host have a pod; return the fencing token.

    Raises:
        Refused: another host has it.
        FleetError: it may have it, or not.
    """
    for _ in range(_TRIES):
        owner, revision = await read(store, pod)
        why = against(owner, wanted)
        if why:
            hint = f"autopod fleet claim {pod} --from HOST, once that is known not to run it"
            raise Refused(f"pod {pod!r}: {why}", hint)
        if owner and _has(owner, wanted):
            return revision
        # One that has come back is written even so: a hand-over that is still on its way is not
        # done then.
        new = Owner(wanted.host, datetime.now(UTC), wanted.session)
        text = f"{pod} is at {wanted.host} now{f', was at {owner.host}' if owner else ''}"
        changes: list[Change] = [
            Put(key(pod), msgspec.json.encode(new)),
            history.told(new.host, "owner", text),
        ]
        if owner:
            changes.append(Delete(armed(owner.host, pod)))
        done = await store.apply([Compare(key(pod), revision)], changes)
        if done:
            return done
    raise FleetError(f"pod {pod!r}: others claim it all the time")


async def disown(store: Store, pod: str, host: str) -> None:
    """Let nobody have a pod that a host has.

    Raises:
        Refused: it has not.
        FleetError: it may have it yet.
    """
    owner, revision = await read(store, pod)
    if owner is None or owner.host != host:
        raise Refused(f"pod {pod!r} is not {host}'s", "autopod fleet shows whose it is")
    told = history.told(host, "owner", f"{pod} is no longer at {host}")
    changes: list[Change] = [Delete(key(pod)), Delete(armed(host, pod)), told]
    if not await store.apply([Compare(key(pod), revision)], changes):
        raise FleetError(f"pod {pod!r}: somebody else claims it just now")


async def read(store: Store, pod: str) -> tuple[Owner | None, int]:
    """Return who has a pod, and the fencing token.

    Raises:
        FleetError: it cannot be told.
    """
    entry = await store.get(key(pod))
    return (decode(entry, Owner), entry.revision) if entry else (None, 0)


async def of_all(store: Store) -> dict[str, Owner]:
    """Return who has which pod, by pod.

    Raises:
        FleetError: it cannot be told.
    """
    found = (await store.scan(PREFIX)).entries
    owned = [entry for entry in found if entry.key.endswith("/owner")]
    return {entry.key.split("/")[2]: decode(entry, Owner) for entry in owned}


def local_claim(places: Places, pod: str, former: str | None) -> Claim | None:
    """Return what this host says for itself; None: it builds a pod that comes, and claims it later.

    Raises:
        Refused: it has no name.
    """
    session = journal.arriving(places, pod)
    if session is not None and os.environ.get(ARRIVING) == session:
        return None
    returning = journal.returning(places, pod)
    name = hosts.load_own(places).name
    return Claim(name, former, returning.session if returning else None)


def put(pod: str, host: str) -> Put:
    """Return what makes a host the owner of a pod, whatever was before."""
    return Put(key(pod), msgspec.json.encode(Owner(host, datetime.now(UTC))))


def _has(owner: Owner, wanted: Claim) -> bool:
    """Is nothing to be written?"""
    same = owner.host == wanted.host and wanted.session in (None, owner.session)
    return same and wanted.returned is None


def armed(host: str, pod: str) -> str:
    """Return under which name it stands that others restart a pod of a host; recovery.py."""
    return f"{ARMED}{host}/{pod}"


def key(pod: str) -> str:
    """Return under which name the owner of a pod stands."""
    return f"{PREFIX}{check_pod_name(pod)}/owner"
