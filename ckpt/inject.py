"""System calls in a running program that survive the death of the tracer.

The program lends its registers for a moment. If its tracer is killed just then (kill -9, out of
memory), the program must neither crash nor notice. So one scratch area is mapped in it, which holds
the code of ckpt/arch (each way through it ends in rt_sigreturn(2)) and a signal frame with the
program's own registers, extended state and signal mask, to which the stack pointer points during
every call: the program, let loose anywhere, finishes the call and returns to where it was. Left
over is the mapping of the scratch area, a few pages.

The first call, which maps the area, and the last, which unmaps it, cannot use it. Their frame
stands in a page of the main stack that was never touched, but by an earlier frame, below all that
is in use there, and instead of code of ours they use two pieces that every program has: `syscall;
ret`, and the code to which its signal handlers return. (The rare program that lacks them could be
lost in these two calls.)

The layout of the area: code | buffer | signal frame. Below the frame the buffer doubles as a
stack for a signal handler that would run in between.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

from msgspec import Struct

from ckpt import abi, procfs
from ckpt.arch import x86_64 as arch
from ckpt.freeze import FrozenProcess
from ckpt.pagemap import PageMap
from ckpt.remote import Remote
from ckpt.stops import Exited
from ckpt.tracee import ALL_SIGNALS, WALL, Memory, Tracee

PAGE: Final = 4096
_BUFFER: Final = 8 * PAGE
_PROT_READ, _PROT_WRITE, _PROT_EXEC = 1, 2, 4
_MAP_PRIVATE, _MAP_ANONYMOUS = 2, 0x20
_CLONE_VM, _CLONE_FILES, _CLONE_PTRACE = 0x100, 0x400, 0x2000
_CLOSE_RANGE_UNSHARE: Final = 2


class Own(Struct, frozen=True):
    """What a stopped thread has of its own, and gets back when it was lent.

    Attributes:
        registers: the general ones.
        extended: the extended state, in XSAVE's standard format.
        blocked: the blocked signals.
    """

    registers: arch.Registers
    extended: bytes
    blocked: int

    @classmethod
    def of(cls, tracee: Tracee) -> "Own":
        """Ask the kernel."""
        return cls(tracee.registers(), tracee.xstate(), tracee.blocked())


class Foothold(Struct, frozen=True):
    """What a program has of its own by which a call can be made in it.

    Attributes:
        instruction: address of a `syscall`, followed by `ret` if there is a frame.
        returner: address of code that calls rt_sigreturn(2).
        frame: address of untouched stack for a signal frame; 0 if there is none.
    """

    instruction: int
    returner: int = 0
    frame: int = 0


class Injection:
    """The right to make system calls in the threads of one frozen process.

    As a context: at its end the scratch area is gone and every register is as it was.
    """

    def __init__(self, process: FrozenProcess, mappings: list[procfs.Mapping]) -> None:
        self.process = process
        self.memory = Memory(process.view)
        frame_size = 1024 + len(process.leader.xstate())
        self._foothold = _find_foothold(process, self.memory, mappings, frame_size)
        self._size = PAGE + _BUFFER + -(-frame_size // PAGE) * PAGE
        self._area = 0

    def __enter__(self) -> "Injection":
        try:
            with self._bare() as call:
                self._area = call.syscall(
                    "mmap", 0, self._size, _PROT_READ | _PROT_EXEC,
                    _MAP_PRIVATE | _MAP_ANONYMOUS, -1, 0,
                )  # fmt: skip
            self.memory.write(self._area, arch.INJECTED_CODE)
            with self.borrow(self.process.leader) as call:
                call.syscall(
                    "mprotect", self._area + PAGE, self._size - PAGE, _PROT_READ | _PROT_WRITE
                )
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        try:
            if self._area:
                with self._bare() as call:
                    call.syscall("munmap", self._area, self._size)
        finally:
            self._area = 0
            self.memory.close()

    @property
    def area(self) -> tuple[int, int]:
        """First address of the scratch area, and the one after it."""
        return self._area, self._area + self._size

    @contextmanager
    def borrow(self, tracee: Tracee, own: Own | None = None) -> Iterator[Remote]:
        """Let calls be made in *tracee*, a thread of the process, while the context lasts.

        *own*: what it has, if the caller knows.
        """
        saved = own or Own.of(tracee)
        lent = self._lend(tracee, saved, self._area + PAGE + _BUFFER, self._area + arch.RETURN)
        try:
            yield Remote(
                self.process.pid,
                tracee,
                self.memory,
                instruction=self._area + arch.CALL,
                buffer=(self._area + PAGE, _BUFFER),
                registers=lent,
            )
        finally:
            _give_back(tracee, saved)

    @contextmanager
    def _bare(self) -> Iterator[Remote]:
        """Let calls be made in the leader without the scratch area, and so without data."""
        tracee, foothold = self.process.leader, self._foothold
        saved = Own.of(tracee)
        if foothold.frame:
            lent = self._lend(tracee, saved, foothold.frame, foothold.returner)
            lent.rsp = foothold.frame  # for the `ret` behind the `syscall`
        else:
            lent = saved.registers
            tracee.set_blocked(ALL_SIGNALS)
        try:
            yield Remote(
                self.process.pid,
                tracee,
                self.memory,
                instruction=foothold.instruction,
                buffer=(0, 0),
                registers=lent,
            )
        finally:
            _give_back(tracee, saved)

    def _lend(self, tracee: Tracee, saved: Own, frame_at: int, returner: int) -> arch.Registers:
        """Make *tracee* one that would return by itself to where it was; block its signals."""
        frame, stack = arch.return_frame(
            saved.registers, saved.extended, saved.blocked, frame_at, returner
        )
        self.memory.write(frame_at, frame)
        lent = arch.copy(saved.registers)
        arch.prepare_return(lent, returner, stack)
        tracee.set_registers(lent)
        tracee.set_blocked(ALL_SIGNALS)
        return lent

    def copy(self) -> Tracee | None:
        """Return a copy-on-write copy of the process, to be read at leisure; None if it cannot be.

        The copy is a stopped process of the pod with the same memory, without open files, and a
        child of the pod's init. It dies with this tracer; the caller kills it. The program can see
        it in /proc only: a temporary process between them, which shares the program's memory,
        makes it and is waited for here.
        """
        leader = self.process.leader
        before = procfs.children(leader.tid)
        with self.borrow(leader) as call:
            lent = leader.registers()
            arch.prepare_copy(
                lent,
                self._area,
                _CLONE_VM | _CLONE_FILES | _CLONE_PTRACE,
                _CLONE_FILES | _CLONE_PTRACE,
            )
            leader.set_registers(lent)
            leader.call()
            pid = arch.result(leader.registers())
            if pid < 0:
                return None  # no memory, or a limit on the number of processes
            temporary = _await_born(procfs.children(leader.tid) - before)
            try:
                copy = self._copy_by(temporary)
            finally:
                self._end(temporary)
                call.syscall("wait4", pid, 0, WALL, 0)
        return copy

    def _copy_by(self, temporary: Tracee) -> Tracee | None:
        """Have the temporary process make the copy."""
        lent = temporary.registers()
        arch.prepare_copy_by(lent, self._area, _CLONE_FILES | _CLONE_PTRACE)
        temporary.set_registers(lent)
        temporary.call()
        if arch.result(temporary.registers()) < 0:
            return None
        copy = _await_born(procfs.children(temporary.tid))
        copy.set_options(abi.PTRACE_O_EXITKILL | abi.PTRACE_O_SUSPEND_SECCOMP)
        with Memory(copy.tid) as memory:
            remote = Remote(
                self.process.pid,
                copy,
                memory,
                instruction=self._area + arch.CALL,
                buffer=(0, 0),
                registers=lent,
                fast=True,
            )
            # It shared the table so as to hold no file open while it was being made.
            remote.syscall("close_range", 0, (1 << 32) - 1, _CLOSE_RANGE_UNSHARE)
        return copy

    def _end(self, temporary: Tracee) -> None:
        lent = temporary.registers()
        lent.rip = self._area + arch.COPY_EXIT
        lent.orig_rax = (1 << 64) - 1
        temporary.set_registers(lent)
        temporary.resume()
        while not isinstance(temporary.wait(), Exited):
            temporary.resume()


def _give_back(tracee: Tracee, saved: Own) -> None:
    """Make *tracee* what it was; from park() on the kernel restarts an interrupted call itself."""
    if not tracee.gone:
        tracee.park()
        tracee.set_blocked(saved.blocked)
        tracee.set_registers(saved.registers)


def _await_born(pids: set[int]) -> Tracee:
    """Return the one new process, which its parent's CLONE_PTRACE had us trace from birth."""
    (pid,) = pids
    tracee = Tracee(pid)
    tracee.wait()
    return tracee


def find_syscall(memory: Memory, mappings: list[procfs.Mapping]) -> int:
    """Return the address of a `syscall` instruction in the program, in its vDSO where it has one.

    Raises:
        LookupError: there is none.
    """
    for mapping in sorted(_code(mappings), key=lambda m: m.name != b"[vdso]"):
        offset = _read(memory, mapping).find(arch.SYSCALL_INSTRUCTION)
        if offset >= 0:
            return mapping.start + offset
    raise LookupError("the program holds no `syscall` instruction")


def _find_foothold(
    process: FrozenProcess, memory: Memory, mappings: list[procfs.Mapping], frame_size: int
) -> Foothold:
    """Return where a call can be made that ends by a signal frame; without one if need be.

    Raises:
        LookupError: there is no `syscall` instruction at all.
    """
    frame = _unused_stack(process, memory, mappings, frame_size)
    instruction = returner = 0
    # The C library is the likeliest place for both.
    for mapping in sorted(_code(mappings), key=lambda m: b"libc" not in m.name):
        if not frame or (instruction and returner):
            break
        data = _read(memory, mapping)
        found = data.find(arch.CALL_AND_RET)
        if not instruction and found >= 0:
            instruction = mapping.start + found
        for pattern in arch.RETURNERS:
            found = data.find(pattern)
            if not returner and found >= 0:
                returner = mapping.start + found
    if frame and instruction and returner:
        return Foothold(instruction, returner, frame)
    return Foothold(find_syscall(memory, mappings))


def _code(mappings: list[procfs.Mapping]) -> list[procfs.Mapping]:
    return [m for m in mappings if m.mode[2] == "x" and m.name != b"[vsyscall]"]


def _read(memory: Memory, mapping: procfs.Mapping) -> bytes:
    return memory.read(mapping.start, mapping.end - mapping.start)


def _unused_stack(
    process: FrozenProcess, memory: Memory, mappings: list[procfs.Mapping], size: int
) -> int:
    """Return the address of *size* bytes of the main stack that the program never touched, or 0."""
    stacks = [mapping for mapping in mappings if mapping.name == b"[stack]"]
    for stack in stacks:
        with PageMap(process.view) as pages:
            touched = pages.own_pages(stack.start, stack.end)
        at = stack.start
        for start, end in [*touched, (stack.end, stack.end)]:
            if start - at >= size:
                return at
            if start == at and _is_old_frame(process, memory, at, size):
                return at
            at = end
    return 0


def _is_old_frame(process: FrozenProcess, memory: Memory, at: int, size: int) -> bool:
    """Did the last to touch the stack there put a frame of ours there?"""
    mark = memory.read(at + arch.FRAME_MARK_OFFSET, len(arch.FRAME_MARK))
    return mark == arch.FRAME_MARK and at + size < process.leader.registers().rsp
