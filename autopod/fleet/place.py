"""Which host of a fleet a pod is to go to. Pure: hosts are filtered, the others put in order.

What is asked is what the hosts last said of themselves; the host that is chosen looks itself before
it takes the pod (autopod/receive.py), and the next one is tried where it does not.
"""

from collections.abc import Collection, Mapping, Sequence

from msgspec import Struct

from autopod.fleet.members import Member

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
    most = max((one.memory_free for one in members), default=0) or 1
    found = []
    for member in members:
        others = coming.count(member.name)
        free = member.memory_free - others * need.memory
        against = _against(need, member, known, busy, free)
        if against:
            found.append(Choice(member.name, 0, against, possible=False))
        else:
            found.append(_scored(need, member, free / most, len(member.pods) + others))
    return sorted(found, key=lambda one: (not one.possible, -one.score, one.host))


def _against(
    need: Need, member: Member, known: Mapping[str, str], busy: Collection[str], free: int
) -> list[str]:
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
    if free < need.memory:
        against.append(f"{max(free, 0) >> 20} MiB are free, {need.memory >> 20} MiB needed")
    if need.pod in member.pods:
        against.append("a pod of that name runs there")
    return against


def _scored(need: Need, member: Member, free: float, pods: int) -> Choice:
    there = len(set(need.layers) & set(member.layers))
    layers = there / len(need.layers) if need.layers else 0.0
    score = _LAYERS * layers + _MEMORY * free + _SPREAD / (1 + pods)
    reasons = [
        f"{there} of {len(need.layers)} layers are there",
        f"{member.memory_free >> 20} MiB are free",
        f"{pods} pods run there",
    ]
    return Choice(member.name, round(score, 3), reasons, possible=True)
