"""One ptraced thread, and the memory of a process.

Effects only; what a wait status means is decided in ckpt/stops.py. A Tracee belongs to the thread
of this process that seized it (ptrace(2): tracer and tracee are threads).
"""

import contextlib
import ctypes
import errno
import os
import signal
import time
from types import TracebackType
from typing import Final, NoReturn

from ckpt import abi
from ckpt.arch import x86_64 as arch
from ckpt.stops import EventStop, Exited, GroupStop, SignalStop, Stop, SyscallStop, decode

WALL: Final = 0x4000_0000
"""__WALL: wait for every kind of child (<linux/wait.h>)."""

TIMEOUT_S: Final = 5.0
"""How long a thread may take to stop that waits for no other, in seconds."""

_GLANCE_S: Final = 0.001

ALL_SIGNALS: Final = (1 << 64) - 1
_XSTATE_MAX: Final = 1 << 16


class DoesNotStop(Exception):  # noqa: N818 (a state of the tracee, which the caller may wait out)
    """A thread did not stop in time; a parent in vfork(2) does not, for instance.

    Attributes:
        tid: of the thread.
    """

    def __init__(self, tid: int) -> None:
        super().__init__(f"thread {tid} does not stop")
        self.tid = tid


class Tracee:
    """A thread that this thread traces.

    Attributes:
        tid: its id in the caller's pid namespace.
        stopped: the stop that interrupt() asked for has been seen.
        stopped_ns: time.monotonic_ns() when it was.
        stopped_by: the signal of the group stop it is in, None outside of one.
        gone: it has ended and was waited for: its number may be another's.
        held: stopping signals that arrived while it was controlled, to be sent again at the end.
        spares_traps: see spare_traps().
    """

    def __init__(self, tid: int) -> None:
        self.tid = tid
        self.stopped = False
        self.stopped_ns = 0
        self.stopped_by: signal.Signals | None = None
        self.held: list[int] = []
        self.gone = False
        self.spares_traps = False
        self._vector = abi.iovec()

    @classmethod
    def seize(cls, tid: int, options: int = 0) -> "Tracee":
        """Attach to *tid* without stopping it.

        Raises:
            OSError: EPERM if it is traced by another, or not permitted; ESRCH if it is gone.
        """
        abi.ptrace(abi.PTRACE_SEIZE, tid, 0, options)
        return cls(tid)

    def interrupt(self) -> None:
        """Ask the thread to stop; wait_stop() waits for it."""
        abi.ptrace(abi.PTRACE_INTERRUPT, self.tid)

    def set_options(self, options: int) -> None:
        """Set PTRACE_O_*."""
        abi.ptrace(abi.PTRACE_SETOPTIONS, self.tid, 0, options)

    def poll(self) -> Stop | None:
        """Return what has happened to the thread, None if nothing yet."""
        tid, status = os.waitpid(self.tid, WALL | os.WNOHANG)
        return decode(status) if tid else None

    def wait(self) -> Stop:
        """Wait until something happens to the thread."""
        return decode(os.waitpid(self.tid, WALL)[1])

    def wait_stop(self, deadline: float) -> bool:
        """Wait until the interrupt has stopped the thread; signals on the way are delivered.

        Args:
            deadline: on time.monotonic().

        Returns:
            False if the thread has exited instead.

        Raises:
            DoesNotStop: the deadline passed.
        """
        pause = 20e-6
        while True:
            match self.poll():
                case None:
                    if time.monotonic() > deadline:
                        raise DoesNotStop(self.tid)
                    time.sleep(pause)
                    pause = min(2 * pause, 2e-3)
                case Exited():
                    return False
                case GroupStop(sig):
                    self.stopped, self.stopped_ns, self.stopped_by = True, time.monotonic_ns(), sig
                    return True
                case EventStop():
                    self.stopped, self.stopped_ns = True, time.monotonic_ns()
                    return True
                case SignalStop(sig):
                    self.resume(sig)
                case _:
                    self.resume()

    def resume(self, sig: int = 0) -> None:
        """Let the thread run, delivering *sig* if it is not 0."""
        abi.ptrace(abi.PTRACE_CONT, self.tid, 0, sig)

    def call(self) -> None:
        """Let the thread make the system call at which its registers stand.

        Two stops, at its entry and at its exit: unlike a single step, which would end a thread
        whose tracer died (the trap flag stays), they leave nothing behind.

        Raises:
            ProcessLookupError: the thread died on it.
        """
        self._run_to(abi.PTRACE_SYSCALL, SyscallStop)
        self._run_to(abi.PTRACE_SYSCALL, SyscallStop)

    def park(self) -> None:
        """Bring a thread that stands at the exit of a call() to where interrupt() stops threads.

        Only there does the kernel look, when the thread goes on, whether its registers say that a
        system call is to be restarted.
        """
        self.interrupt()
        self._run_to(abi.PTRACE_CONT, (EventStop, GroupStop))

    def _run_to(self, request: int, goal: type[Stop] | tuple[type[Stop], ...]) -> None:
        while True:
            abi.ptrace(request, self.tid)
            stop = self.wait()
            if isinstance(stop, goal):
                return
            match stop:
                case SignalStop(signal.SIGSTOP as sig):
                    self.held.append(sig)
                case Exited(code):
                    self._fail(code)
                case SignalStop(sig):
                    raise RuntimeError(f"thread {self.tid}: signal {sig} in an injected call")
                case _:
                    pass

    def _fail(self, code: int) -> NoReturn:
        self.gone = True
        text = f"ended in an injected call: {code}"
        raise ProcessLookupError(errno.ESRCH, text, f"thread {self.tid}")

    def spare_traps(self) -> None:
        """Have step() raise no SIGTRAP any more, for a program's own is to stay; all is blocked.

        A step's can be neither blocked nor ignored: it ends that, and is mixed up with one that
        waits (Linux v6.1, kernel/signal.c, force_sig_info_to_task()).
        """
        options = abi.PTRACE_O_EXITKILL | abi.PTRACE_O_SUSPEND_SECCOMP | abi.PTRACE_O_TRACESYSGOOD
        self.set_options(options)
        self.set_blocked(ALL_SIGNALS)
        self.spares_traps = True

    def step(self) -> None:
        """Let the thread run one instruction, with the system call that it makes.

        One stop only, but for threads that are to die with their tracer; see spare_traps().

        Raises:
            ProcessLookupError: the thread died on it.
            RuntimeError: the instruction raised a signal other than SIGTRAP.
        """
        if self.spares_traps:
            self.call()
        else:
            self._run_to_trap(abi.PTRACE_SINGLESTEP)

    def run(self) -> None:
        """Let the thread run until an instruction stops it, such as int3; like step()."""
        self._run_to_trap(abi.PTRACE_CONT)

    def _run_to_trap(self, request: int) -> None:
        while True:
            abi.ptrace(request, self.tid)
            match self.wait():
                case SignalStop(signal.SIGTRAP):
                    return
                case SignalStop(signal.SIGSTOP as sig):
                    self.held.append(sig)
                case SignalStop(sig):
                    raise RuntimeError(f"thread {self.tid}: signal {sig} in an injected call")
                case Exited(code):
                    self._fail(code)
                case _:
                    pass

    def detach(self) -> bool:
        """Let the thread go on by itself.

        Returns:
            False if it was killed while it stood: it has still to be waited for, or its parent,
            to which its end is told only then, waits for ever.
        """
        try:
            for sig in self.held:
                os.kill(self.tid, sig)
            abi.ptrace(abi.PTRACE_DETACH, self.tid)
        except ProcessLookupError:
            self.stopped = False
            return False
        return True

    def has_ended(self) -> bool:
        """Has the thread, which was killed, ended by now? Then its parent is told."""
        try:
            while (stop := self.poll()) is not None:
                if isinstance(stop, Exited):
                    return True
        except ChildProcessError:
            return True
        return False

    def kill(self) -> None:
        """Kill the process of this thread and reap it as its tracer; nothing if that was done."""
        if not self.gone:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.tid, signal.SIGKILL)
            self.await_end()

    def await_end(self) -> None:
        """Wait until the thread, which is being killed, has ended."""
        try:
            while not isinstance(self.wait(), Exited):
                pass
        except ChildProcessError:
            pass
        self.gone = True

    # --- state of the stopped thread -----------------------------------------------------

    def registers(self) -> arch.Registers:
        """Return the general registers."""
        registers = arch.Registers()
        self._regset(abi.PTRACE_GETREGSET, abi.NT_PRSTATUS, registers)
        return registers

    def set_registers(self, registers: arch.Registers) -> None:
        """Set the general registers."""
        self._regset(abi.PTRACE_SETREGSET, abi.NT_PRSTATUS, registers)

    def xstate(self) -> bytes:
        """Return the extended (floating-point and vector) state, in XSAVE's standard format."""
        buffer = ctypes.create_string_buffer(_XSTATE_MAX)
        size = self._regset(abi.PTRACE_GETREGSET, abi.NT_X86_XSTATE, buffer)
        return ctypes.string_at(buffer, size)

    def set_xstate(self, state: bytes) -> None:
        """Set the extended state; *state* has exactly the size that xstate() returns here."""
        buffer = ctypes.create_string_buffer(state, len(state))
        self._regset(abi.PTRACE_SETREGSET, abi.NT_X86_XSTATE, buffer)

    def _regset(
        self, request: int, kind: int, buffer: ctypes.Structure | ctypes.Array[ctypes.c_char]
    ) -> int:
        vector = self._vector
        vector.iov_base, vector.iov_len = ctypes.addressof(buffer), ctypes.sizeof(buffer)
        abi.ptrace(request, self.tid, kind, ctypes.addressof(vector))
        return int(vector.iov_len)

    def blocked(self) -> int:
        """Return the mask of blocked signals; bit N-1 is signal N."""
        mask = ctypes.c_uint64()
        abi.ptrace(abi.PTRACE_GETSIGMASK, self.tid, 8, ctypes.addressof(mask))
        return mask.value

    def set_blocked(self, mask: int) -> None:
        """Set the mask of blocked signals."""
        word = ctypes.c_uint64(mask)
        abi.ptrace(abi.PTRACE_SETSIGMASK, self.tid, 8, ctypes.addressof(word))

    def pending(self, *, shared: bool) -> list[bytes]:
        """Return the siginfo_t of the queued signals, of the thread or of its whole process."""
        found: list[bytes] = []
        room = (ctypes.c_char * (abi.SIGINFO_BYTES * 32))()
        args = abi.ptrace_peeksiginfo_args(0, abi.PTRACE_PEEKSIGINFO_SHARED if shared else 0, 32)
        while True:
            args.off = len(found)
            count = abi.ptrace(
                abi.PTRACE_PEEKSIGINFO, self.tid, ctypes.addressof(args), ctypes.addressof(room)
            )
            size = abi.SIGINFO_BYTES
            found += [room.raw[i * size : (i + 1) * size] for i in range(count)]
            if count < 32:
                return found

    def rseq(self) -> tuple[int, int, int]:
        """Return address, size and signature of its registered struct rseq; address 0: none."""
        config = abi.ptrace_rseq_configuration()
        abi.ptrace(
            abi.PTRACE_GET_RSEQ_CONFIGURATION,
            self.tid,
            ctypes.sizeof(config),
            ctypes.addressof(config),
        )
        return config.rseq_abi_pointer, config.rseq_abi_size, config.signature


def bury(dying: list[Tracee], within_s: float = 1.0) -> list[Tracee]:
    """Wait for threads that were killed while they stood; return those that have not ended.

    A leader's end is told when that of all other threads was.
    """
    deadline = time.monotonic() + within_s
    while (dying := [tracee for tracee in dying if not tracee.has_ended()]) and (
        time.monotonic() < deadline
    ):
        time.sleep(_GLANCE_S)
    return dying


class Memory:
    """The address space of a process, by /proc/PID/mem. Owns its descriptor."""

    def __init__(self, host_pid: int) -> None:
        self._fd = os.open(f"/proc/{host_pid}/mem", os.O_RDWR | os.O_CLOEXEC)

    def __enter__(self) -> "Memory":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, e: BaseException | None, tb: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Give the descriptor back."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    def read(self, address: int, length: int) -> bytes:
        """Return *length* bytes from *address*.

        Raises:
            OSError: EIO where nothing is mapped.
        """
        data = os.pread(self._fd, length, address)
        while len(data) < length:
            more = os.pread(self._fd, length - len(data), address + len(data))
            if not more:
                raise OSError(errno.EIO, f"memory ends at {address + len(data):#x}")
            data += more
        return data

    def write(self, address: int, data: bytes | memoryview) -> None:
        """Write *data* to *address*, also where the program itself may not write.

        Raises:
            OSError: EIO where nothing is mapped.
        """
        done = 0
        while done < len(data):
            done += os.pwrite(self._fd, data[done:], address + done)
