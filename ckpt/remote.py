"""System calls made in a stopped process.

A Remote borrows a stopped thread: it needs a `syscall` instruction in the process's memory and a
writable buffer there. It does not put registers back; whoever made it does.

To stop a thread behind a call, and to set it up for the next one, takes longer than most calls.
Where there is the code for it (a process that is being made), calls whose results nobody needs wait
until there are some, and are then made in one go out of a table.
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
        batch: int = 0,
    ) -> None:
        """Make calls at the `syscall` at address *instruction*, data in *buffer* (start, size).

        *registers* are those to start from: stack pointer and segments matter. *fast*: the thread
        dies with its tracer anyway (PTRACE_O_EXITKILL), so that single steps may be used. *batch*:
        address of the code that makes many calls; 0: each is made at once.
        """
        self.pid = pid
        self.tracee = tracee
        self.memory = memory
        self._instruction = instruction
        self._buffer, self._size = buffer
        self._registers = arch.copy(registers)
        self._make_call = tracee.step if fast else tracee.call
        self._batch = batch
        self._waiting: list[str] = []
        self._table, self._data = bytearray(), bytearray()

    def syscall(self, name: str, *args: int | bytes | bytearray) -> int:
        """Make the system call *name* there and return its result, after those that wait.

        bytes are copied there and passed by address; a bytearray is copied back afterwards, too.

        Raises:
            OSError: as the call does; the text names call and process.
        """
        self.flush()
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

    def later(self, name: str, *args: int | bytes) -> None:
        """Make the system call *name* at the next flush() or syscall(), or sooner.

        Raises:
            OSError: as this call does, or one that waited.
        """
        room = arch.BATCH_ENTRY_SIZE + sum(
            len(arg) + _ALIGNMENT for arg in args if isinstance(arg, bytes)
        )
        if not self._batch or self.tracee.spares_traps or room > self._size // 2:
            self.syscall(name, *args)
            return
        if len(self._data) + len(self._table) + _ALIGNMENT + room > self._size // 2:
            self.flush()
        words = tuple(arg if isinstance(arg, int) else self._place(arg) for arg in args)
        self._table += arch.batch_entry(arch.SYSCALLS[name], words)
        self._waiting.append(name)

    def flush(self) -> None:
        """Make the calls that wait; the first that fails is the last that is made.

        Raises:
            OSError: as a call does; the text names call and process.
        """
        if not self._waiting:
            return
        start = self._place(b"")
        end = start + len(self._table)
        self.memory.write(self._buffer, bytes(self._data + self._table))
        waiting, self._waiting = self._waiting, []
        self._data.clear()
        self._table.clear()
        registers = arch.copy(self._registers)
        arch.prepare_batch(registers, self._batch, start, end)
        self.tracee.set_registers(registers)
        self.tracee.run()
        at, value = arch.batch_end(self.tracee.registers())
        self._check(waiting[(at - start) // arch.BATCH_ENTRY_SIZE - 1], value)

    def leave(self, name: str, *words: int) -> None:
        """Make the system call *name*, which ends the thread, and trace it no more.

        PTRACE_O_TRACEEXIT is set.
        """
        self.flush()
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
        self.flush()  # what waits may need what is there
        at = self._buffer + self._size // 2
        self.memory.write(at, data)
        return at

    def _place(self, data: bytes) -> int:
        """Have *data* be in the buffer when the calls that wait are made; return its address."""
        self._data += bytes(-len(self._data) % _ALIGNMENT)
        at = self._buffer + len(self._data)
        self._data += data
        return at

    def _call(self, name: str, words: tuple[int, ...]) -> int:
        arch.prepare_call(self._registers, self._instruction, arch.SYSCALLS[name], words)
        self.tracee.set_registers(self._registers)
        self._make_call()
        return self._check(name, arch.result(self.tracee.registers()))

    def _check(self, name: str, value: int) -> int:
        if -4096 < value < 0:
            raise OSError(-value, f"{name} in process {self.pid}: {os.strerror(-value)}")
        return value
