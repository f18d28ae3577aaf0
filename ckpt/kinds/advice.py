"""What programs have told the kernel about memory: madvise(2), mlock(2), mlockall(2), mseal(2).

Some of it is younger than kernels to which a pod may go. What such a kernel lacks is replaced by
what it has, and the user is told.
"""

import errno
from typing import Final

from ckpt import procfs
from ckpt.kinds.stages import Subject, Target
from ckpt.model import PAGE_SIZE
from ckpt.pagemap import PageMap

_MADV_GUARD_INSTALL: Final = 102
_PROT_NONE, _PROT_READ = 0, 1
_MAP_PRIVATE, _MAP_DROPPABLE, _MAP_ANONYMOUS = 2, 8, 0x20
_PR_SET_VMA, _PR_SET_VMA_ANON_NAME = 0x53564D41, 0
_MLOCK_ONFAULT: Final = 1
_MCL_FUTURE, _MCL_ONFAULT = 2, 4

_ADVICE: Final = {  # name: VmFlags, MADV_*
    "random": ("rr", 1),
    "sequential": ("sr", 2),
    "dontfork": ("dc", 10),
    "mergeable": ("mg", 12),
    "hugepage": ("hg", 14),
    "nohugepage": ("nh", 15),
    "dontdump": ("dd", 16),
    "wipeonfork": ("wf", 18),
}


def names(flags: frozenset[str]) -> list[str]:
    """Return what VmFlags say that madvise(2) has set. Pure."""
    return [name for name, (flag, _) in _ADVICE.items() if flag in flags]


def advise(start: int, length: int, advice: list[str], name: bytes, target: Target) -> None:
    """Give advice and a name to a mapping."""
    for word in advice:
        target.remote.later("madvise", start, length, _ADVICE[word][1])
    if name:
        text = target.remote.put(name + b"\0")
        option = _PR_SET_VMA_ANON_NAME
        _try(target, "", "prctl", _PR_SET_VMA, option, start, length, text)


def guard(start: int, length: int, target: Target) -> None:
    """Make a guard range; on a kernel before Linux v6.13 one that is a mapping of its own."""
    lost = "guard ranges (MADV_GUARD_INSTALL) became mappings without access: this kernel has none"
    if not _try(target, lost, "madvise", start, length, _MADV_GUARD_INSTALL):
        target.remote.syscall("mprotect", start, length, _PROT_NONE)


def droppable(target: Target) -> int:
    """Return the kind of a mapping that the kernel may drop: MAP_DROPPABLE where there is such."""
    flags = _MAP_DROPPABLE | _MAP_ANONYMOUS
    try:
        tried = target.remote.syscall("mmap", 0, PAGE_SIZE, _PROT_NONE, flags, -1, 0)
    except OSError as e:
        if e.errno != errno.EINVAL:
            raise
        target.note("memory that may be dropped (MAP_DROPPABLE) is kept: this kernel drops none")
        return _MAP_PRIVATE
    target.remote.syscall("munmap", tried, PAGE_SIZE)
    return _MAP_DROPPABLE


def lock(start: int, length: int, flags: list[str], target: Target) -> None:
    """Lock a mapping in memory, and seal it, as *flags* (memory.Mapping) say."""
    if "locked" in flags:
        on_fault = _MLOCK_ONFAULT if "locked-on-fault" in flags else 0
        target.remote.later("mlock2", start, length, on_fault)
    if "sealed" in flags:
        lost = "sealed memory (mseal(2)) is not sealed any more: this kernel does not know it"
        _try(target, lost, "mseal", start, length, 0)


def locks(m: procfs.Mapping, pages: PageMap) -> list[str]:
    """Return how a mapping is locked: nothing, "locked", and "locked-on-fault".

    What is locked without MLOCK_ONFAULT is all there, unless it cannot be: memory without access,
    guards. VmFlags tell of MLOCK_ONFAULT since Linux v6.18 only.
    """
    if "lo" not in m.flags:
        return []
    on_fault = "lf" in m.flags or not pages.is_full(m.start, m.end)
    return ["locked", "locked-on-fault"] if on_fault else ["locked"]


def future(subject: Subject) -> list[str]:
    """Return how memory to come is locked: as locks() says it.

    Only new memory shows it, and the scratch area of the injection is new; with MCL_ONFAULT a new
    page is not there yet.
    """
    now = procfs.parse_status(procfs.read(subject.host_pid, "status"))
    if now["VmLck"] == subject.process.status["VmLck"]:
        return []
    call, there = subject.remote.syscall, bytearray(8)
    page = call("mmap", 0, PAGE_SIZE, _PROT_READ, _MAP_PRIVATE | _MAP_ANONYMOUS, -1, 0)
    try:
        call("mincore", page, PAGE_SIZE, there)
    finally:
        call("munmap", page, PAGE_SIZE)
    return ["locked"] if there[0] & 1 else ["locked", "locked-on-fault"]


def promise(flags: list[str], target: Target) -> None:
    """Have memory to come locked, as future() said; after all memory is there."""
    if "locked" in flags:
        on_fault = _MCL_ONFAULT if "locked-on-fault" in flags else 0
        target.remote.syscall("mlockall", _MCL_FUTURE | on_fault)


def _try(target: Target, lost: str, call: str, *args: int) -> bool:
    """Make a call that older kernels lack; note what is *lost*, once, if this one does."""
    try:
        target.remote.syscall(call, *args)
    except OSError as e:
        if e.errno not in {errno.EINVAL, errno.ENOSYS}:
            raise
        if lost:
            target.note(lost)
        return False
    return True
