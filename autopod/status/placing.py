"""Where the pods of a drain are to go: the fleet is asked for all of them at once.

Hosts tell of themselves three times a minute, and a question reads what all have told: asked anew
for each pod it would read the same again, which among thousands of hosts takes longer than to move
a small pod.
"""

import time
from collections.abc import Callable, Sequence
from typing import Final

Ask = Callable[[Sequence[str], Sequence[str]], dict[str, list[str]]]

FRESH_S: Final = 60.0
"""So old an answer may be."""


class Placing:
    """Remembers the fleet's last answer while it is fresh."""

    def __init__(self, ask: Ask, clock: Callable[[], float] = time.monotonic) -> None:
        """Begin without one.

        Args:
            ask: for the hosts of pods, the best first, after hosts were sent others.
            clock: seconds.
        """
        self._ask, self._clock = ask, clock
        self._found: dict[str, list[str]] = {}
        self._until = 0.0

    def targets(self, pod: str, rest: Sequence[str], sent: Sequence[str]) -> list[str]:
        """Return the hosts that *pod* may go to, the best first.

        Args:
            pod: that leaves now.
            rest: pods that leave after it.
            sent: hosts that were sent pods already, once for each.
        """
        now = self._clock()
        if now >= self._until or pod not in self._found:
            names = [pod, *rest]
            found = self._ask(names, sent)
            # That no pod can go anywhere may be for want of an answer: the next one asks again.
            self._found = {name: found.get(name, []) for name in names} if found else {}
            self._until = self._clock() + FRESH_S
        return self._found.pop(pod, [])
