"""Which host of a fleet a pod is to go to. Pure: hosts are filtered, the others put in order.

What is asked is what the hosts last said of themselves; the host that is chosen looks itself before
it takes the pod (autopod/receive.py), and the next one is tried where it does not.
"""

import heapq
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from typing import Final

from msgspec import Struct

from autopod.fleet.members import Member

BEST: Final = 20
"""Of so many hosts a drain is told, for each pod."""

_LAYERS, _MEMORY, _SPREAD = 2.0, 1.0, 1.0  # how much each counts: what need not be sent, most


class Need(Struct, frozen=True):
    """What a pod needs.

    Attributes:
        pod: its name.
        machine: the architecture that its programs run on.
        cpu_features: that they may be using.
        memory: bytes that they have.
        layers: ids of its sealed layers.
    """

    pod: str
    machine: str
    cpu_features: Sequence[str]
    memory: int
    layers: Sequence[str]


class Choice(Struct, frozen=True):
    """What was found of one host.

    Attributes:
        host: its name.
        score: more is better; 0 where it cannot be.
        reasons: for the score, or why it cannot be.
        possible: it can be.
    """

    host: str
    score: float
    reasons: list[str]
    possible: bool


def place(
    need: Need,
    members: Sequence[Member],
    *,
    known: Mapping[str, str],
    busy: Collection[str],
    coming: Sequence[str] = (),
) -> list[Choice]:
    """Return what is found of all hosts, the best first, those that cannot be last.

    Args:
        need: of the pod.
        members: of the fleet.
        known: fingerprints of the hosts that this one knows, by name: pods go to no others.
        busy: hosts that have a reboot slot.
        coming: hosts that were sent pods of which they may not have told yet, once for each.
    """
    most = _most(members)
    found = []
    for member in members:
        others = coming.count(member.name)
        free = member.memory_free - others * need.memory
        against = [*_against(need, member, known, busy), *_full(need, member, free)]
        if against:
            found.append(Choice(member.name, 0, against, possible=False))
        else:
            found.append(_scored(need, member, free / most, len(member.pods) + others))
    return sorted(found, key=lambda one: (not one.possible, -one.score, one.host))


def plan(
    needs: Sequence[Need],
    members: Sequence[Member],
    *,
    known: Mapping[str, str],
    busy: Collection[str],
    coming: Sequence[str] = (),
) -> dict[str, list[Choice]]:
    """Return to which hosts pods of one host may go, that leave it one after the other.

    Each pod is placed as place() does it, with those before it at their best hosts; only what is
    possible is told, and of that the BEST. What all pods have in common is looked at once: among
    thousands of hosts that is most of it.

    Args:
        needs: of the pods.
        members: as for place(), like the rest.
        known: see there.
        busy: see there.
        coming: see there.
    """
    most, ahead, found = _most(members), Counter(coming), dict[str, list[Choice]]()
    fit: dict[tuple[str, ...], list[tuple[Member, frozenset[str]]]] = {}
    for need in needs:
        kind, wanted = (need.machine, *need.cpu_features), frozenset(need.layers)
        if kind not in fit:
            good = (one for one in members if not _against(need, one, known, busy))
            fit[kind] = [(one, frozenset(one.layers)) for one in good]
        ranked = []
        for member, layers in fit[kind]:
            others = ahead[member.name]
            free, pods = member.memory_free - others * need.memory, len(member.pods) + others
            if free >= need.memory and need.pod not in member.pods:
                score = _score(len(wanted), len(wanted & layers), free / most, pods)
                ranked.append((-score, member.name, member, free / most, pods))
        best = heapq.nsmallest(BEST, ranked)
        found[need.pod] = [_scored(need, member, free, n) for _, _, member, free, n in best]
        ahead.update(one.host for one in found[need.pod][:1])
    return found


def _most(members: Sequence[Member]) -> int:
    return max((one.memory_free for one in members), default=0) or 1


def _against(
    need: Need, member: Member, known: Mapping[str, str], busy: Collection[str]
) -> list[str]:
    """Return what speaks against a host, whatever else comes there."""
    against = []
    if member.name not in known:
        against.append("this host does not know it (autopod host join)")
    elif known[member.name] != member.fingerprint:
        against.append("this host knows another one by that name")
    if member.name in busy:
        against.append("it has a reboot slot")
    if member.machine != need.machine:
        against.append(f"it is {member.machine}, not {need.machine}")
    lacking = sorted(set(need.cpu_features) - set(member.cpu_features))
    if lacking:
        against.append(f"its CPU lacks {', '.join(lacking)}")
    return against


def _full(need: Need, member: Member, free: int) -> list[str]:
    full = []
    if free < need.memory:
        full.append(f"{max(free, 0) >> 20} MiB are free, {need.memory >> 20} MiB needed")
    if need.pod in member.pods:
        full.append("a pod of that name runs there")
    return full


def _score(layers: int, there: int, free: float, pods: int) -> float:
    share = there / layers if layers else 0.0
    return round(_LAYERS * share + _MEMORY * free + _SPREAD / (1 + pods), 3)


def _scored(need: Need, member: Member, free: float, pods: int) -> Choice:
    wanted = frozenset(need.layers)
    there = len(wanted.intersection(member.layers))
    reasons = [
        f"{there} of {len(wanted)} layers are there",
        f"{member.memory_free >> 20} MiB are free",
        f"{pods} pods run there",
    ]
    score = _score(len(wanted), there, free, pods)
    return Choice(member.name, score, reasons, possible=True)
