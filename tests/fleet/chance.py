"""What a round of part 2 is to do: from a seed and a number, so that it can be done again. Pure."""

import random
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

Moment = Literal["idle", "checkpoint", "migration", "recovery"]
Kind = Literal["member", "agent", "service", "host", "network"]

_MOMENTS: Mapping[Moment, int] = {"idle": 3, "checkpoint": 2, "migration": 6, "recovery": 4}
_KINDS: Mapping[Kind, int] = {"member": 3, "agent": 2, "service": 2, "host": 6, "network": 2}
_LONGEST_S: Mapping[Moment, float] = {
    "idle": 1.0,
    "checkpoint": 1.0,
    "migration": 3.0,
    "recovery": 2.0,
}


@dataclass(frozen=True, slots=True)
class Round:
    """What is done.

    Attributes:
        moment: what goes on meanwhile; at *recovery* a host has died before, and its pods are just
            being restarted.
        kind: what is killed; *service* with its agent; *network*: the host's cables are pulled.
        pod: that is worked on.
        target: where it goes, if it moves.
        victim: the host at which something is killed.
        follows: at *recovery* it is the one that restarts the pod, instead.
        delay_s: after how long.
    """

    moment: Moment
    kind: Kind
    pod: str
    target: str
    victim: str
    follows: bool
    delay_s: float


def draw(seed: int, number: int, where: Mapping[str, str]) -> Round:
    """Return what a round does.

    Args:
        seed: of all.
        number: of the round.
        where: the pods, and the host at which each runs.
    """
    chance = random.Random(f"{seed}-{number}")
    moment = chance.choices(list(_MOMENTS), list(_MOMENTS.values()))[0]
    kind = chance.choices(list(_KINDS), list(_KINDS.values()))[0]
    pod = chance.choice(sorted(where))
    others = [name for name in "abc" if name != where[pod]]
    target = chance.choice(others)
    # While a host is dead, something of one that lives is killed.
    victim = chance.choice(others if moment == "recovery" else list("abc"))
    follows, delay_s = chance.random() < 0.7, chance.random() * _LONGEST_S[moment]
    return Round(moment, kind, pod, target, victim, follows, delay_s)
