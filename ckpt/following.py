"""Which memory of a process may arrive while it runs already (ckpt/lazy.py). Pure."""

from collections.abc import Iterable
from typing import Final

from ckpt.kinds import memory
from ckpt.kinds.memory import Mapping, Run
from ckpt.kinds.stages import name_of
from ckpt.model import PAGE_SIZE, Pod
from ckpt.states import state_of

_HARMLESS: Final = {"random", "sequential", "hugepage", "nohugepage", "dontdump"}
_LEAST_PAGES: Final = 64


def may_follow(mapping: Mapping) -> bool:
    """May the pages of a mapping arrive while the program runs, and is it worth the while?

    Plain memory only: what the kernel must have there, or makes of it in children in another way,
    is written before.
    """
    return (
        mapping.file is None
        and mapping.attachment is None
        and not (mapping.shared or mapping.guards or mapping.huge)
        and {"read", "write"} <= {*mapping.protection}
        and {*mapping.flags} <= {"accounted", "noreserve"}
        and {*mapping.advice} <= _HARMLESS
        and sum(run.count for run in mapping.runs) >= _LEAST_PAGES
    )


def count(model: Pod) -> int:
    """Return how many pages of a pod may follow."""
    spaces = (
        state_of(part, memory.State)
        for process in model.processes
        for part in process.parts
        if part.kind == name_of(memory)
    )
    mappings = (mapping for space in spaces for mapping in space.mappings)
    return sum(run.count for m in mappings if may_follow(m) for run in m.runs)


def page_at(mappings: Iterable[Mapping], address: int) -> Run | None:
    """Return the stored page of *address*, as a run of its own; None: there is none."""
    for mapping in mappings:
        for run in mapping.runs:
            number = (address - run.address) // PAGE_SIZE
            if 0 <= number < run.count:
                return Run(run.address + number * PAGE_SIZE, 1, run.first + number)
    return None
