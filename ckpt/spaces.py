"""The address spaces of a pod's processes, while these are being made.

Each process is given its memory as soon as it has been cloned, and its own children are cloned with
that: what is the same they keep (ckpt/inheritance.py). Only what is to follow when the pod runs
(ckpt/lazy.py), or cannot be changed any more, is done when all processes are there.
"""

import contextlib
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Final, Protocol

import msgspec

from ckpt import embryo, inheritance, plan, vdso
from ckpt.arch import x86_64 as arch
from ckpt.embryo import Area
from ckpt.following import may_follow, page_at
from ckpt.inheritance import Kept
from ckpt.kinds import memory, registers
from ckpt.kinds.memory import Mapping, Special, State
from ckpt.kinds.stages import Target, name_of
from ckpt.model import Pod, Process
from ckpt.remote import Remote
from ckpt.seed import RestoreError
from ckpt.states import state_of

if TYPE_CHECKING:
    from ckpt.lazy import Lazy

_MAP_PRIVATE_ANONYMOUS_FIXED: Final = 0x10_0022
_PROT_READ_EXEC: Final = 5
_MADV_DONTNEED: Final = 4


class Pages(Protocol):
    """Stored pages."""

    def read(self, first: int, count: int) -> bytes:
        """Return *count* pages from number *first* on."""

    def runs(self, first: int, count: int) -> Iterable[tuple[int, int]]:
        """Yield what these pages are: first unique page, number of pages."""


class Spaces:
    """The address spaces of one restart."""

    def __init__(self, model: Pod, pages: Pages, lazy: "Lazy | None") -> None:
        """Those of *model*.

        Args:
            model: what the pod is to hold.
            pages: what is in its memory.
            lazy: brings memory that need not be there before the pod runs; None: all is.
        """
        self._pages, self._lazy = pages, lazy
        self._wanted = {
            process.pid: state_of(part, memory.State)
            for process in model.processes
            for part in process.parts
            if part.kind == name_of(memory)
        }
        self._held: dict[int, State] = {}
        self._following: dict[int, set[int]] = {}
        if lazy:
            self._choose_following(plan.plan(model.processes))

    def __contains__(self, pid: int) -> bool:
        """Has process *pid* one, which a zombie has not?"""
        return pid in self._wanted

    def occupied(self) -> Iterator[tuple[int, int]]:
        """Return the ranges that any of them uses, if only for a moment."""
        for space in self._wanted.values():
            yield from memory.occupied(space)

    def _choose_following(self, steps: Iterable[plan.Step]) -> None:
        """Choose the mappings whose pages follow: not those that are shared, by half at least."""
        for pid, space in self._wanted.items():
            self._following[pid] = {m.start for m in space.mappings if may_follow(m)}
        for step in steps:
            match step:
                case plan.Clone(maker, pid) | plan.CloneOrphan(maker, pid) if {maker, pid} <= {
                    *self._wanted
                }:
                    for pair in inheritance.kept(self._wanted[maker], self._wanted[pid]):
                        count = sum(run.count for run in pair.own.runs)
                        if 2 * inheritance.common(pair, self._pages.runs) >= max(count, 1):
                            self._following[maker].discard(pair.held.start)
                            self._following[pid].discard(pair.own.start)

    def _follows(self, pid: int, mapping: Mapping) -> bool:
        return mapping.start in self._following.get(pid, ())

    # --- the memory of one process -------------------------------------------------------

    def clone(self, maker: int, pid: int) -> None:
        """Note that *maker* has cloned process *pid*."""
        if maker in self._held:
            self._held[pid] = self._held[maker]

    def give(self, target: Target, area: Area) -> None:
        """Give a process that was just cloned its memory."""
        pid, remote = target.process.pid, target.remote
        own, held = self._wanted[pid], self._held.get(pid)
        pairs = self._kept(pid, held, own) if held else []
        placed = bool(pairs) and held is not None and _has_specials(held, own)
        if held:
            _clear(remote, held, area, [*_ranges(pair.own for pair in pairs)], placed=placed)
        memory.note_layout(own, target, executable=not pairs)
        memory.rebuild(own, target, but={pair.own.start for pair in pairs})
        if not placed:
            _place_vdso(own, remote, area)
        self._load(pid, own, remote, pairs)
        loaded = [
            msgspec.structs.replace(m, runs=[]) if self._follows(pid, m) else m
            for m in own.mappings
        ]
        self._held[pid] = msgspec.structs.replace(own, mappings=loaded)

    def _kept(self, pid: int, held: State, own: State) -> list[Kept]:
        return [pair for pair in inheritance.kept(held, own) if not self._follows(pid, pair.own)]

    def _load(self, pid: int, own: State, remote: Remote, pairs: list[Kept]) -> None:
        there = {pair.own.start for pair in pairs}
        written = [
            mapping.runs
            for mapping in own.mappings
            if mapping.start not in there and not self._follows(pid, mapping)
        ]
        for pair in pairs:
            protection = memory.protection_at_first(pair.own)
            if protection != memory.protection_at_first(pair.held):
                length = pair.own.end - pair.own.start
                remote.later("mprotect", pair.own.start, length, protection)
            changes = inheritance.changes(pair, self._pages.runs)
            for start, end in changes.dropped:
                remote.later("madvise", start, end - start, _MADV_DONTNEED)
            written.append(changes.written)
        remote.flush()
        for runs in written:
            memory.load(runs, remote.memory, self._pages.read)

    def finish(self, target: Target, area: Area) -> None:
        """Do the rest, when all processes are there: see memory.seal()."""
        process, remote = target.process, target.remote
        space = self._wanted[process.pid]
        following = [m for m in space.mappings if self._follows(process.pid, m)]
        if self._lazy and following:
            self._load_what_the_kernel_needs(process, following, remote)
            self._lazy.serve(remote, following)
        if not space.specials:
            for special in area.specials:
                remote.later("munmap", special.start, special.end - special.start)
        memory.seal(space, target)

    def _load_what_the_kernel_needs(
        self, process: Process, following: list[Mapping], remote: Remote
    ) -> None:
        for thread in process.threads:
            parts = {part.kind: part for part in thread.parts}
            state = state_of(parts[name_of(registers)], registers.State)
            if run := page_at(following, state.general["fs_base"]):
                remote.memory.write(run.address, self._pages.read(run.first, 1))

    def leave_area(self, remote: Remote, area: Area) -> None:
        """Unmap code and buffer by a `syscall` instruction of the program itself."""
        bare = Remote(
            remote.pid,
            remote.tracee,
            remote.memory,
            instruction=_own_syscall(remote, self._wanted[remote.pid]),
            buffer=(0, 0),
            registers=remote.tracee.registers(),
            fast=True,
        )
        bare.syscall("munmap", area.start, area.size)


def _ranges(mappings: Iterable[Mapping | Special]) -> Iterator[tuple[int, int]]:
    return ((m.start, m.end) for m in mappings)


def _has_specials(held: State, own: State) -> bool:
    return held.specials == own.specials and held.vdso == own.vdso


def _clear(
    remote: Remote, held: State, area: Area, stay: list[tuple[int, int]], *, placed: bool
) -> None:
    """Unmap what a process was cloned with, but for *stay* and, if *placed*, the kernel's own."""
    if placed:
        stay += _ranges(held.specials)
    elif _are_moved(held, area):
        for there, parked in zip(held.specials, area.specials, strict=True):
            embryo.move(remote, there.start, there.end - there.start, parked.start)
    stay += [(area.start, area.start + area.size), *_ranges(area.specials)]
    at = 0
    for start, end in sorted(stay):
        if at < start:
            remote.later("munmap", at, start - at)
        at = max(at, end)
    remote.later("munmap", at, arch.TASK_SIZE - at)


def _are_moved(space: State, area: Area) -> bool:
    """Are the kernel's own mappings as they are where *space* has its, and not parked?"""
    return bool(space.specials) and vdso.same(space.specials, space.vdso, area.specials, area.vdso)


def _place_vdso(space: State, remote: Remote, area: Area) -> None:
    """Put the kernel's code where the program expects it: see ckpt/vdso.py."""
    if _are_moved(space, area):
        for old, new in zip(space.specials, area.specials, strict=True):
            embryo.move(remote, new.start, new.end - new.start, old.start)
    elif space.specials:
        _redirect_vdso(space, remote, area)


def _redirect_vdso(space: State, remote: Remote, area: Area) -> None:
    (old,) = (s for s in space.specials if s.name == "vdso")
    (new,) = (s for s in area.specials if s.name == "vdso")
    try:
        image = vdso.redirect(space.vdso, area.vdso, new.start)
    except ValueError as e:
        raise RestoreError(f"process {remote.pid} cannot run here: {e}") from e
    flags = _MAP_PRIVATE_ANONYMOUS_FIXED
    remote.syscall("mmap", old.start, old.end - old.start, _PROT_READ_EXEC, flags, -1, 0)
    remote.memory.write(old.start, image)


def _own_syscall(remote: Remote, space: State) -> int:
    """Return the address of a `syscall` instruction in the rebuilt memory.

    Raises:
        RestoreError: there is none.
    """
    places = [(s.start, s.end) for s in space.specials if s.name == "vdso"]
    places += [(m.start, m.end) for m in space.mappings if "exec" in m.protection]
    for start, end in places:
        with contextlib.suppress(OSError):
            offset = remote.memory.read(start, end - start).find(arch.SYSCALL_INSTRUCTION)
            if offset >= 0:
                return start + offset
    raise RestoreError(f"process {remote.pid} has no `syscall` instruction to leave by")
