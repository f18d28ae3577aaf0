"""What a process shares with its parent, though it is no thread of it: clone(2).

CLONE_FILES: the table of descriptors. CLONE_FS: current directory, root and umask.
"""

from collections.abc import Iterable, Sequence
from functools import cmp_to_key
from typing import Final

import msgspec

from ckpt.kinds.abi import kcmp

_KCMP: Final = {"files": 2, "directory": 3}  # <linux/kcmp.h>
_CLONE: Final = {"files": 0x400, "directory": 0x200}
_WORDS: Final = {"files": "its table of descriptors", "directory": "its current directory"}
WHY: Final = "it is shared with a process that is neither its parent nor a thread of it"
"""Why such a process is refused."""

_ORDER: Final = {0: 0, 1: -1, 2: 1}


class State(msgspec.Struct, frozen=True):
    """Each: is it shared with the parent?"""

    files: bool
    directory: bool


class Member(msgspec.Struct, frozen=True):
    """A process of the pod.

    Attributes:
        pid: its id in the pod.
        parent: that of its parent.
        view: host id of one of its threads.
    """

    pid: int
    parent: int
    view: int


def find(members: Sequence[Member]) -> tuple[dict[int, State], dict[int, str]]:
    """Look who shares something with whom.

    Returns:
        For each process that shares something with its parent what that is; for each that shares
        something with others only, which cannot be made, what.

    Raises:
        ProcessLookupError: one has ended meanwhile.

    Source: kcmp(2).
    """
    shared: dict[str, set[int]] = {}
    refused: dict[int, str] = {}
    for name, resource in _KCMP.items():
        groups = _groups(members, resource)
        shared[name] = {m.pid for m in members if groups[m.pid] == groups.get(m.parent)}
        roots: set[int] = set()
        for member in members:
            if member.pid not in shared[name]:
                group = groups[member.pid]
                if group in roots:
                    refused[member.pid] = _WORDS[name]
                roots.add(group)
    pids = set.union(*shared.values())
    return {pid: State(*(pid in shared[name] for name in _KCMP)) for pid in pids}, refused


def clone_flags(state: State) -> int:
    """Return the flags with which a process is cloned from its parent."""
    return sum(flag for name, flag in _CLONE.items() if getattr(state, name))


def _groups(members: Iterable[Member], resource: int) -> dict[int, int]:
    """Return for each process the number of the group with which it shares the resource."""

    def compare(one: Member, other: Member) -> int:
        return _ORDER[kcmp(one.view, other.view, resource, 0, 0)]

    groups: dict[int, int] = {}
    before: Member | None = None
    for member in sorted(members, key=cmp_to_key(compare)):
        same = before is not None and compare(before, member) == 0
        groups[member.pid] = groups[before.pid] if same and before else member.pid
        before = member
    return groups
