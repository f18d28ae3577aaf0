"""System calls made in a stopped process.

A Remote borrows a stopped thread: it needs a `syscall` instruction in the process's memory and a
writable buffer there. It does not put registers back; whoever made it does.
"""

import os
from typing import Final

from ckpt.arch import x86_64 as arch
from ckpt.stops import EventStop
from ckpt.tracee import Memory, Tracee

_ALIGNMENT: Final = 16


class Remote:
    """A stopped thread in which system calls can be made (ckpt.kinds.protocol.Remote).

    Attributes:
        pid: id of its process in the pod.
        tracee: the thread.
        memory: the memory of its process.
    """

    def __init__(  # noqa: PLR0913 (by name only)
        self,
        pid: int,
        tracee: Tracee,
        memory: Memory,
        *,
        instruction: int,
        buffer: tuple[int, int],
        registers: arch.Registers,
        fast: bool = False,
    ) -> None:
        """Make calls at the `syscall` at address *instruction*, data in *buffer* (start, size).

        *registers* are those to start from: stack pointer and segments matter. *fast*: the thread
        dies with its tracer anyway (PTRACE_O_EXITKILL), so that single steps may be used.
        """
        self.pid = pid
        self.tracee = tracee
        self.memory = memory
        self._instruction = instruction
        self._buffer, self._size = buffer
        self._registers = arch.copy(registers)
        self._make_call = tracee.step if fast else tracee.call

    def syscall(self, name: str, *args: int | bytes | bytearray) -> int:
        """Make the system call *name* there and return its result.

        bytes are copied there and passed by address; a bytearray is copied back afterwards, too.

        Raises:
            OSError: as the call does; the text names call and process.
        """
        words: list[int] = []
        results: list[tuple[int, bytearray]] = []
        at = self._buffer
        for arg in args:
            if isinstance(arg, int):
                words.append(arg)
                continue
            at += -at % _ALIGNMENT
            if at + len(arg) > self._buffer + self._size:
                raise ValueError(f"{name}: arguments of more than {self._size} bytes")
            self.memory.write(at, bytes(arg))
            words.append(at)
            if isinstance(arg, bytearray):
                results.append((at, arg))
            at += len(arg)
        value = self._call(name, tuple(words))
        for address, target in results:
            target[:] = self.memory.read(address, len(target))
        return value

    def leave(self, name: str, *words: int) -> None:
        """Make the system call *name*, which ends the thread, and trace it no more.

        PTRACE_O_TRACEEXIT is set.
        """
        arch.prepare_call(self._registers, self._instruction, arch.SYSCALLS[name], words)
        self.tracee.set_registers(self._registers)
        self.tracee.resume()
        while not isinstance(self.tracee.wait(), EventStop):
            self.tracee.resume()
        self.tracee.detach()
        self.tracee.gone = True

    def put(self, data: bytes) -> int:
        """Copy *data* there and return its address, for a structure that points to it.

        It lies in the upper half of the buffer and stays until the next put().
        """
        if len(data) > self._size // 2:
            raise ValueError(f"more than {self._size // 2} bytes")
        at = self._buffer + self._size // 2
        self.memory.write(at, data)
        return at

    def _call(self, name: str, words: tuple[int, ...]) -> int:
        arch.prepare_call(self._registers, self._instruction, arch.SYSCALLS[name], words)
        self.tracee.set_registers(self._registers)
        self._make_call()
        value = arch.result(self.tracee.registers())
        if -4096 < value < 0:
            raise OSError(-value, f"{name} in process {self.pid}: {os.strerror(-value)}")
        return value
