"""The address space of a process: mappings, the pages of its own, and what mm_struct notes.

Collected in two steps: collect() takes the map while the process stands still; fill() reads the
pages, later, from a copy-on-write copy. Pages of files and of shared memory are not here: they
belong to open files, which mappings name by OpenFile.id.
"""

import os
import struct
from collections.abc import Callable, Collection, Iterable, Iterator
from functools import partial
from typing import Final

import msgspec

from ckpt import procfs
from ckpt.copied import Copied
from ckpt.kinds import advice, attachment, hugepages
from ckpt.kinds.attachment import Attachment
from ckpt.kinds.stages import Stage, Subject, Target
from ckpt.model import PAGE_SIZE
from ckpt.pagemap import PageMap
from ckpt.pagestore import PageStore, pieces
from ckpt.tracee import Memory

STAGE = Stage.BUILD

# <asm-generic/mman-common.h> and <linux/mman.h>
_PROTECTIONS: Final = {"read": 1, "write": 2, "exec": 4}
_MAP_SHARED, _MAP_PRIVATE = 1, 2
_MAP_FIXED_NOREPLACE: Final = 0x10_0000
_MAP_ANONYMOUS: Final = 0x20
_FLAGS: Final = {"growsdown": 0x100, "noreserve": 0x4000}
_PR_SET_MM, _PR_SET_MM_MAP = 35, 14
_NO_FD: Final = (1 << 32) - 1

_REFUSED: Final = {  # VmFlags: why
    "um": "userfaultfd watches it",
    "uw": "userfaultfd write-protects it",
    "ui": "userfaultfd watches it",
    "io": "it is memory of a device",
    "pf": "it is memory of a device",
    "ss": "it is a shadow stack",
}
KERNEL_MADE: Final = (b"[vdso]", b"[vvar]", b"[vvar_vclock]")
OUTSIDE: Final = b"[vsyscall]"
_ANONYMOUS_NAME: Final = b"[anon:"
_MAYBE_HUGE: Final = (b"/anon_hugepage", b"/memfd:")


class Run(msgspec.Struct, frozen=True, array_like=True):
    """Stored pages: address, number of pages, and the first of them in the archive."""

    address: int
    count: int
    first: int


class Mapping(msgspec.Struct, frozen=True):
    """A virtual memory area (mmap(2)).

    Attributes:
        start: first address.
        end: address after the last.
        protection: of "read", "write", "exec".
        shared: MAP_SHARED.
        file: OpenFile.id of what is mapped; None for anonymous memory.
        offset: in the file, in bytes.
        flags: of "accounted", "growsdown", "noreserve", "droppable", "locked", "locked-on-fault",
            "sealed".
        advice: what madvise(2) has set.
        name: PR_SET_VMA_ANON_NAME.
        runs: pages of its own.
        guards: ranges of MADV_GUARD_INSTALL.
        attachment: of System V shared memory; *file* is None then.
        huge: bytes of its pages, where they are huge ones of hugetlbfs.
    """

    start: int
    end: int
    protection: list[str]
    shared: bool
    file: int | None
    offset: int
    flags: list[str]
    advice: list[str]
    name: bytes = b""
    runs: list[Run] = []
    guards: list[tuple[int, int]] = []
    attachment: Attachment | None = None
    huge: int = 0


class Special(msgspec.Struct, frozen=True):
    """A mapping that the kernel makes: "vdso", "vvar" or "vvar_vclock"."""

    name: str
    start: int
    end: int


class Layout(msgspec.Struct, frozen=True):
    """What mm_struct notes of an address space; PR_SET_MM_MAP in prctl(2)."""

    start_code: int
    end_code: int
    start_data: int
    end_data: int
    start_brk: int
    brk: int
    start_stack: int
    arg_start: int
    arg_end: int
    env_start: int
    env_end: int


class State(msgspec.Struct, frozen=True):
    """An address space.

    Attributes:
        layout: addresses that the kernel keeps.
        auxv: the auxiliary vector.
        executable: OpenFile.id of /proc/PID/exe.
        mappings: by address, without those that the kernel makes.
        specials: those that the kernel makes, by address.
        vdso: content of "vdso".
        future: of "locked", "locked-on-fault": how memory mapped later is locked (MCL_FUTURE).
    """

    layout: Layout
    auxv: bytes
    executable: int
    mappings: list[Mapping]
    specials: list[Special]
    vdso: bytes
    future: list[str] = []


def collect(subject: Subject) -> State:
    """Take the map; pages follow with fill()."""
    files: dict[tuple[object, ...], int] = {}
    with PageMap(subject.host_pid) as pages:
        mappings = [
            _mapping(m, subject, files, pages)
            for m in subject.mappings
            if m.name not in KERNEL_MADE and m.name != OUTSIDE and not _is_scratch(m, subject)
        ]
    specials = [
        Special(m.name.decode().strip("[]"), m.start, m.end)
        for m in subject.mappings
        if m.name in KERNEL_MADE
    ]
    vdso = b"".join(
        subject.injection.memory.read(s.start, s.end - s.start)
        for s in specials
        if s.name == "vdso"
    )
    auxv = procfs.read_bytes(subject.host_pid, "auxv")
    return State(
        _layout(subject),
        auxv,
        subject.file_id("exe"),
        mappings,
        specials,
        vdso,
        advice.future(subject),
    )


def private_mappings(view: int) -> list[procfs.Mapping]:
    """Return the mappings, with pages of its own, of the process that has the thread *view*.

    Not those that may be of huge pages: they are copied while all stand still.
    """
    mappings = procfs.parse_maps(procfs.read_bytes(view, "maps"))
    others = {*KERNEL_MADE, OUTSIDE}
    return [
        m
        for m in mappings
        if not m.shared and m.name not in others and not m.name.startswith(_MAYBE_HUGE)
    ]


def refusals(mappings: Iterable[procfs.Mapping]) -> Iterable[tuple[str, str]]:
    """Return what of a memory map cannot be carried over, and why."""
    for m in mappings:
        what = f"mapping {m.link} {m.name.decode(errors='replace')}".rstrip()
        for flag in sorted(m.flags & _REFUSED.keys()):
            if m.name not in KERNEL_MADE:
                yield what, _REFUSED[flag]
        if "ht" in m.flags and m.name.startswith(b"/SYSV"):
            yield what, "it is System V shared memory of huge pages (SHM_HUGETLB)"
        elif "ht" in m.flags and not m.name.startswith(_MAYBE_HUGE):
            yield what, "it is a file of hugetlbfs"
        if m.name.startswith(b"/[aio]"):
            yield what, "it is a context of io_setup(2)"


def _is_scratch(m: procfs.Mapping, subject: Subject) -> bool:
    return m.start < subject.injection.area[1] and m.end > subject.injection.area[0]


def _mapping(
    m: procfs.Mapping, subject: Subject, files: dict[tuple[object, ...], int], pages: PageMap
) -> Mapping:
    """Return the model of *m*; *files* remembers which file is which OpenFile.

    A copy of the process has the guards of anonymous private memory only: fill() finds these.
    """
    file, attached, huge = None, attachment.of(m, subject.host_pid), 0
    if "ht" in m.flags:
        huge = os.stat(f"/proc/{subject.host_pid}/map_files/{m.link}").st_blksize
    anonymous = not m.inode or (not m.shared and m.name == hugepages.ANONYMOUS.encode())
    if not anonymous and not attached:
        key = (m.device, m.inode, m.name, m.shared)
        file = files.get(key)
        if file is None:
            file = files[key] = subject.file_id(f"map_files/{m.link}")
    guards = [] if anonymous else pages.guards(m.start, m.end)
    modes = zip(m.mode, _PROTECTIONS, strict=False)
    flags = {
        "accounted": "ac",
        "growsdown": "gd",
        "noreserve": "nr",
        "droppable": "dp",
        "sealed": "sl",
    }
    name = m.name[len(_ANONYMOUS_NAME) : -1] if m.name.startswith(_ANONYMOUS_NAME) else b""
    return Mapping(
        m.start,
        m.end,
        [name for letter, name in modes if letter != "-"],
        m.shared,
        file,
        0 if anonymous else m.offset,
        [name for name, flag in flags.items() if flag in m.flags] + advice.locks(m, pages),
        advice.names(m.flags),
        name,
        guards=guards,
        attachment=attached,
        huge=huge,
    )


def _layout(subject: Subject) -> Layout:
    """Source: proc_pid_stat(5); the break is not among the fields."""
    stat = subject.process.stat
    start_brk, *rest = (int(stat[n]) for n in range(47, 52))
    return Layout(
        int(stat[26]),
        int(stat[27]),
        int(stat[45]),
        int(stat[46]),
        start_brk,
        subject.remote.syscall("brk", 0),
        int(stat[28]),
        *rest,
    )


def occupied(state: State) -> Iterator[tuple[int, int]]:
    """Return the ranges that a rebuilt process uses, if only for a moment."""
    for m in state.mappings:
        yield m.start, m.end
        if m.attachment is not None:
            yield m.attachment.base, m.attachment.base + m.attachment.size
    for special in state.specials:
        yield special.start, special.end


def unforked(state: State) -> bool:
    """Has the process memory that its copies lack, and that must be read while it is stopped?"""
    return any(_unforked(m) for m in state.mappings)


def _unforked(mapping: Mapping) -> bool:
    if mapping.huge:  # the kernel takes a copy's pages away if it has no others for the program
        return True
    return not {"dontfork", "wipeonfork"}.isdisjoint(mapping.advice)


def fill(
    state: State,
    host_pid: int,
    add: Callable[[memoryview], int],
    *,
    only_unforked: bool,
    copied: Copied | None = None,
) -> State:
    """Read the pages and store them.

    Args:
        state: as collect() or a former fill() gave it.
        host_pid: the process or a copy of it.
        add: takes page data and returns the number of its first page in the archive.
        only_unforked: read just what a copy would lack; else all the rest.
        copied: what is stored already.
    """
    with PageMap(host_pid) as pages, Memory(host_pid) as memory:
        store = PageStore(memory, add)
        wanted = [
            m
            for m in state.mappings
            if _unforked(m) is only_unforked and not m.shared and "droppable" not in m.flags
        ]
        ranges = {
            m.start: [
                run
                for start, end in pages.own_pages(m.start, m.end)
                for run in _runs(store, start, end, copied)
            ]
            for m in wanted
        }
        store.flush()
        guards = {m.start: pages.guards(m.start, m.end) for m in wanted if m.file is None}
    mappings = [
        msgspec.structs.replace(
            m, runs=[run() for run in ranges[m.start]], guards=guards.get(m.start, m.guards)
        )
        if m.start in ranges
        else m
        for m in state.mappings
    ]
    return msgspec.structs.replace(state, mappings=mappings)


def _runs(
    store: PageStore, start: int, end: int, copied: Copied | None
) -> Iterator[Callable[[], Run]]:
    """Read what is not copied; the runs are known once the store was flushed."""
    for at, stop, first in copied.look(start, end) if copied else [(start, end, None)]:
        if first is not None:
            yield partial(Run, at, (stop - at) // PAGE_SIZE, first)
            continue
        for piece, length in pieces(at, stop):
            number = store.read(piece, length)
            yield partial(_run, piece, length, number)


def _run(at: int, length: int, number: Callable[[], int]) -> Run:
    return Run(at, length // PAGE_SIZE, number())


# --- restart ---------------------------------------------------------------------------------


def rebuild(state: State, target: Target, but: Collection[int] = ()) -> None:
    """Map everything; the pages are written by load() afterwards, from outside.

    Args:
        state: what to map.
        target: where.
        but: where the mappings begin that are there already.
    """
    attached: dict[Attachment, list[tuple[int, int, int]]] = {}
    for m in state.mappings:
        if m.attachment:
            attached.setdefault(m.attachment, []).append((m.start, m.end, _protection(m)))
    attachment.attach(attached, target)
    for m in state.mappings:
        if m.start in but:
            continue
        if not m.attachment:
            _map(m, target)
        advice.advise(m.start, m.end - m.start, m.advice, m.name, target)


def _map(mapping: Mapping, target: Target) -> None:
    call, length = target.remote.later, mapping.end - mapping.start
    flags = _MAP_SHARED if mapping.shared else _MAP_PRIVATE
    if "droppable" in mapping.flags:
        flags = advice.droppable(target)
    flags |= _MAP_FIXED_NOREPLACE
    flags |= sum(number for name, number in _FLAGS.items() if name in mapping.flags)
    fd = -1
    if mapping.file is None:
        flags |= _MAP_ANONYMOUS | hugepages.map_flags(mapping.huge)
    else:
        fd = target.file(mapping.file)
    call("mmap", mapping.start, length, protection_at_first(mapping), flags, fd, mapping.offset)


def protection_at_first(mapping: Mapping) -> int:
    """Return how a mapping is protected, as in mmap(2), until seal()."""
    wanted = _protection(mapping)
    return wanted | _PROTECTIONS["write"] if _was_writable(mapping) else wanted


def _protection(mapping: Mapping) -> int:
    return sum(_PROTECTIONS[name] for name in mapping.protection)


def _was_writable(mapping: Mapping) -> bool:
    """Was memory writable that is not now? It stays accounted for once it has been written to.

    Huge pages are not accounted for, and nobody can write to them without permission.

    Source: mm/mprotect.c, mprotect_fixup(); mm/gup.c, check_vma_flags().
    """
    now = mapping.shared or "write" in mapping.protection
    return not now and ("accounted" in mapping.flags or bool(mapping.huge and mapping.runs))


def load(runs: Iterable[Run], memory: Memory, read: Callable[[int, int], bytes]) -> None:
    """Write stored pages; *read* gives a number of pages of the archive from the first on."""
    for run in runs:
        memory.write(run.address, read(run.first, run.count))


def seal(state: State, target: Target) -> None:
    """Do what can only follow when the pages stand: protections, guard ranges, locks, seals."""
    call = target.remote.later
    for mapping in state.mappings:
        length = mapping.end - mapping.start
        if _was_writable(mapping):
            call("mprotect", mapping.start, length, _protection(mapping))
        for start, end in mapping.guards:
            advice.guard(start, end - start, target)
        advice.lock(mapping.start, length, mapping.flags, target)
    advice.promise(state.future, target)


def note_layout(state: State, target: Target, *, executable: bool) -> None:
    """Set what the kernel notes of the address space, and the *executable*, unless it is that.

    Before anything is mapped: the kernel refuses to change the executable while the old one is.

    Source: kernel/sys.c, prctl_set_mm_map(); kernel/fork.c, replace_mm_exe_file().
    """
    auxv = target.remote.put(state.auxv)
    raw = struct.pack(
        "<12QII",
        *msgspec.structs.astuple(state.layout),
        auxv,
        len(state.auxv),
        target.file(state.executable) if executable else _NO_FD,
    )
    target.remote.syscall("prctl", _PR_SET_MM, _PR_SET_MM_MAP, raw, len(raw), 0)
