"""Processes being made: stopped, emptied of all memory but a scratch area, calls made in them.

The seed is seized and emptied; every other process is cloned from it, directly or not, stands in
the same scratch area, and shares the seed's open files. All of them die with this tracer until
they are let go. The area also keeps the kernel's own mappings (vDSO) until each process gets its.
"""

import ctypes
import errno
import os
import struct
import time
from collections.abc import Iterable, Sequence
from typing import Final

from msgspec import Struct, field

from ckpt import abi, procfs
from ckpt.arch import x86_64 as arch
from ckpt.inject import find_syscall
from ckpt.kinds.memory import Special
from ckpt.remote import Remote
from ckpt.tracee import ALL_SIGNALS, TIMEOUT_S, WALL, Memory, Tracee

PAGE: Final = 4096
_BUFFER: Final = 256 * 1024
_LOWEST: Final = 1 << 20
_AT_ONCE: Final = 1024  # numbers of threads in the buffer
_PROT_ALL: Final = 7
_MAP_PRIVATE, _MAP_ANONYMOUS, _MAP_FIXED_NOREPLACE = 2, 0x20, 0x10_0000
_MREMAP_MAYMOVE, _MREMAP_FIXED = 1, 2
_RSEQ_FLAG_UNREGISTER: Final = 1
_CLONE_VM, _CLONE_FS, _CLONE_FILES, _CLONE_SIGHAND = 0x100, 0x200, 0x400, 0x800
_CLONE_PTRACE, _CLONE_THREAD, _CLONE_SYSVSEM = 0x2000, 0x10000, 0x40000
_CLONE_CLEAR_SIGHAND: Final = 1 << 32
_SIGCHLD: Final = 17
_SS_DISABLE: Final = 2
_RLIMIT_CORE: Final = 4
_KERNEL_MADE: Final = {b"[vdso]", b"[vvar]", b"[vvar_vclock]"}


class Area(Struct, frozen=True):
    """The scratch area: a page of code, a buffer, and the parked kernel mappings.

    Attributes:
        start: first address.
        specials: the kernel's mappings where they are parked.
        vdso: content of the kernel's vDSO.
    """

    start: int
    specials: list[Special]
    vdso: bytes

    @property
    def buffer(self) -> tuple[int, int]:
        """Address and size of the buffer."""
        return self.start + PAGE, _BUFFER

    @property
    def size(self) -> int:
        """Bytes of code and buffer."""
        return PAGE + _BUFFER


class Embryo(Struct):
    """A process, or the leader of one, that is being made.

    Attributes:
        host_pid: its id in the host's pid namespace.
        remote: makes calls in it.
        threads: remotes of its threads by their ids in the pod, leader included.
    """

    host_pid: int
    remote: Remote
    threads: dict[int, Remote] = field(default_factory=dict)

    @property
    def pid(self) -> int:
        """Its id in the pod."""
        return self.remote.pid


def find_hole(ranges: Iterable[tuple[int, int]], size: int) -> int:
    """Return the lowest address, from 1 MiB on, of *size* bytes that no range touches. Pure."""
    at = _LOWEST
    for start, end in sorted(ranges):
        if start - at >= size:
            break
        at = max(at, end)
    return at


def take_seed(host_pid: int, pid: int, used: Iterable[tuple[int, int]]) -> tuple[Embryo, Area]:
    """Seize the seed, give it a scratch area where *used* leaves room, and empty it.

    Raises:
        OSError: a system call failed in it.
    """
    tracee = Tracee.seize(host_pid, abi.PTRACE_O_EXITKILL | abi.PTRACE_O_SUSPEND_SECCOMP)
    tracee.interrupt()
    if not tracee.wait_stop(time.monotonic() + TIMEOUT_S):
        raise ProcessLookupError("the seed ended")
    tracee.set_blocked(ALL_SIGNALS)
    mappings = procfs.parse_maps(procfs.read_bytes(host_pid, "maps"))
    kernel_made = [m for m in mappings if m.name in _KERNEL_MADE]
    parked_bytes = sum(m.end - m.start for m in kernel_made)
    own = [(m.start, m.end) for m in mappings]
    start = find_hole([*used, *own], PAGE + _BUFFER + parked_bytes)
    memory = Memory(host_pid)
    bare = Remote(
        pid,
        tracee,
        memory,
        instruction=find_syscall(memory, mappings),
        buffer=(0, 0),
        registers=tracee.registers(),
        fast=True,
    )
    flags = _MAP_PRIVATE | _MAP_ANONYMOUS | _MAP_FIXED_NOREPLACE
    bare.syscall("mmap", start, PAGE + _BUFFER, _PROT_ALL, flags, -1, 0)
    memory.write(start, arch.EMBRYO_CODE)
    vdso = b"".join(
        memory.read(m.start, m.end - m.start) for m in kernel_made if m.name == b"[vdso]"
    )
    remote = _remote(pid, tracee, memory, start)
    area = Area(start, _park(remote, kernel_made, start + PAGE + _BUFFER), vdso)
    _empty(remote, area)
    return Embryo(host_pid, remote, {pid: remote}), area


def _remote(pid: int, tracee: Tracee, memory: Memory, start: int) -> Remote:
    registers = tracee.registers()
    registers.rsp = start + PAGE
    registers.eflags = 0x202
    return Remote(
        pid,
        tracee,
        memory,
        instruction=start,
        buffer=(start + PAGE, _BUFFER),
        registers=registers,
        fast=True,
        batch=start + arch.BATCH,
    )


def _park(remote: Remote, kernel_made: Sequence[procfs.Mapping], to: int) -> list[Special]:
    """Move the kernel's mappings to *to*, one by one, as mremap(2) wants it."""
    parked = []
    for mapping in kernel_made:
        length = mapping.end - mapping.start
        move(remote, mapping.start, length, to)
        parked.append(Special(mapping.name.decode().strip("[]"), to, to + length))
        to += length
    return parked


def move(remote: Remote, start: int, length: int, to: int) -> None:
    """Move one mapping to an address where nothing is."""
    remote.syscall("mremap", start, length, length, _MREMAP_MAYMOVE | _MREMAP_FIXED, to)


def _empty(remote: Remote, area: Area) -> None:
    """Unmap all but the area, after the kernel has forgotten what it would write to there."""
    address, size, signature = remote.tracee.rseq()
    if address:
        remote.syscall("rseq", address, size, _RSEQ_FLAG_UNREGISTER, signature)
    remote.syscall("set_robust_list", 0, 24)
    remote.syscall("set_tid_address", 0)
    remote.syscall("sigaltstack", struct.pack("<QIIQ", 0, _SS_DISABLE, 0, 0), 0)
    end = max([area.start + area.size, *(s.end for s in area.specials)])
    remote.syscall("munmap", 0, area.start)
    remote.syscall("munmap", end, arch.TASK_SIZE - end)


def clone(maker: Embryo, pid: int, area: Area, *, quiet: bool = False, sharing: int = 0) -> Embryo:
    """Have *maker* clone process *pid*.

    Args:
        maker: the process that clones it.
        pid: its number.
        area: the scratch area, which it gets, too.
        quiet: without a signal to its parent at its end.
        sharing: further flags, of what the two are to share.

    Raises:
        OSError: EEXIST if the number is taken.
    """
    before = procfs.children(maker.host_pid)
    flags = _CLONE_PTRACE | _CLONE_CLEAR_SIGHAND | sharing
    number = maker.remote.put(struct.pack("<i", pid))
    maker.remote.syscall("clone3", *_clone_args(flags, number, 0 if quiet else _SIGCHLD))
    (host_pid,) = procfs.children(maker.host_pid) - before
    tracee = _newborn(host_pid)
    remote = _remote(pid, tracee, Memory(host_pid), area.start)
    return Embryo(host_pid, remote, {pid: remote})


class Numberer:
    """Says which number the next thread gets, where who makes it may not: in a user namespace.

    Which has no say over the pod's pid namespace. A process of that one, with the host's
    privileges still; while the others stand still, the kernel counts on from where it says.

    Source: pid_namespaces(7), /proc/sys/kernel/ns_last_pid.
    """

    def __init__(self, maker: Embryo, pid: int, area: Area, host_proc_fd: int) -> None:
        """Have *maker*, which has a descriptor *host_proc_fd* of the host's /proc, clone it."""
        self._process = clone(maker, pid, area, quiet=True)
        name = b"sys/kernel/ns_last_pid\0"
        self._fd = self._process.remote.syscall("openat", host_proc_fd, name, os.O_WRONLY, 0)

    def number(self, tid: int) -> None:
        """Let the next thread, of whatever process, be *tid*."""
        text = str(tid - 1).encode()
        self._process.remote.syscall("pwrite64", self._fd, text, len(text), 0)

    def end(self) -> None:
        """Have it end; the pod's init reaps it."""
        end(self._process)

    def kill(self) -> None:
        """Kill it."""
        self._process.remote.tracee.kill()
        self._process.remote.memory.close()


def clone_threads(
    embryo: Embryo, tids: Sequence[int], area: Area, numberer: Numberer | None = None
) -> None:
    """Give *embryo* further threads with the numbers *tids*.

    Raises:
        OSError: EEXIST if a number is taken.
    """
    before = set(procfs.threads(embryo.host_pid))
    flags = _CLONE_VM | _CLONE_FS | _CLONE_FILES | _CLONE_SIGHAND | _CLONE_THREAD | _CLONE_SYSVSEM
    flags |= _CLONE_PTRACE
    try:
        if numberer is None:
            _clone_all(embryo.remote, flags, tids)
        else:
            for tid in tids:
                numberer.number(tid)
                embryo.remote.syscall("clone3", *_clone_args(flags))
    finally:  # those that there are must be known, to be ended
        for host_tid in set(procfs.threads(embryo.host_pid)) - before:
            tracee = _newborn(host_tid)
            tid = procfs.inner_pid(procfs.parse_status(procfs.read(host_tid, "status")))
            embryo.threads[tid] = _remote(embryo.pid, tracee, embryo.remote.memory, area.start)
    if missing := set(tids) - embryo.threads.keys():
        raise OSError(errno.EEXIST, f"there is no thread {min(missing)} to be had", "")


def _clone_all(remote: Remote, flags: int, tids: Sequence[int]) -> None:
    for first in range(0, len(tids), _AT_ONCE):
        some = tids[first : first + _AT_ONCE]
        numbers = remote.put(struct.pack(f"<{len(some)}i", *some))
        for index in range(len(some)):
            remote.later("clone3", *_clone_args(flags, numbers + 4 * index))
        remote.flush()


def _clone_args(flags: int, number_at: int = 0, exit_signal: int = 0) -> tuple[bytes, int]:
    """Return the arguments of clone3(2); at *number_at* stands what number it is to have."""
    args = abi.clone_args(
        flags=flags, exit_signal=exit_signal, set_tid=number_at, set_tid_size=bool(number_at)
    )
    return bytes(args), ctypes.sizeof(args)


def _newborn(tid: int) -> Tracee:
    tracee = Tracee(tid)
    tracee.wait()
    tracee.set_blocked(ALL_SIGNALS)
    return tracee


def end(embryo: Embryo, status: int = 0) -> None:
    """Have *embryo* end with wait status *status*; its parent is told, its children are init's."""
    tracee = embryo.remote.tracee
    if os.WIFSIGNALED(status):
        embryo.remote.syscall("prlimit64", 0, _RLIMIT_CORE, struct.pack("<QQ", 0, 0), 0)
        tracee.set_blocked(0)
        tracee.resume(os.WTERMSIG(status))
        tracee.await_end()
    else:
        try:
            embryo.remote.syscall("exit_group", os.WEXITSTATUS(status))
        except ProcessLookupError:
            tracee.gone = True
    embryo.remote.memory.close()


def end_leader(embryo: Embryo, heir: int) -> None:
    """Have the first thread end, as by pthread_exit(3); thread *heir* makes the calls from now on.

    That it has ended is told when all others have (ptrace(2)); so this waits until it is about to,
    and has left the program's memory for good.
    """
    tracee = embryo.threads.pop(embryo.pid).tracee
    tracee.set_options(
        abi.PTRACE_O_EXITKILL | abi.PTRACE_O_SUSPEND_SECCOMP | abi.PTRACE_O_TRACEEXIT
    )
    embryo.remote.leave("exit", 0)
    embryo.remote = embryo.threads[heir]


def reap(maker: Embryo, pid: int) -> None:
    """Have *maker* forget its child *pid*, which has ended."""
    maker.remote.syscall("wait4", pid, 0, WALL, 0)
