"""The page server: brings the memory of processes that run already, from the archive.

Who touches a page that is not there waits, and is served first; meanwhile the rest is brought in
the order of addresses. When all is there the descriptors are closed, and nothing is left.

One thread. Between two looks at what the kernel has to tell it copies FRAME bytes at most. What it
knows is in a ledger (ckpt/ledger.py), so that it may be killed.
"""

import errno
import os
import select
import socket
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import partial
from itertools import islice
from typing import Final

import msgspec

from ckpt import absent, procfs, userfault
from ckpt.archive.frames import FRAME_CONTENT
from ckpt.copied import Copied
from ckpt.kinds.memory import Run
from ckpt.ledger import Ledger, Memory, Range, State
from ckpt.model import PAGE_SIZE
from ckpt.standstill import Standstill
from ckpt.userfault import Change, Changing, Fault, Fork, Gone, NotThere
from launcher import cgroups, enter
from launcher.pods import Pod

_AROUND: Final = 16 * PAGE_SIZE
"""Bytes that are brought with a page that somebody waits for."""

_RESTLESS_S: Final = 30.0
"""How long a change may take, and for that long nothing is told."""

_MANY: Final = 64
"""After how many processes more those are looked for that have ended."""

_TICK_S: Final = 0.001
"""How long to wait for what is about to be told."""

_BREATH_S: Final = 0.1
"""How long to wait where the pod has no memory left."""


READY: Final = b"1"
"""The word that all Given has been noted."""


class Space(msgspec.Struct):
    """The memory of a process.

    Attributes:
        fd: of userfaultfd(2). Owned.
        host_pid: of the process; None: a child that was forked since.
        absent: what has not arrived.
        waiting: addresses of pages that somebody waits for.
    """

    fd: int
    host_pid: int | None
    absent: Copied
    waiting: set[int] = msgspec.field(default_factory=set)


class Given(msgspec.Struct, frozen=True):
    """What the restart says with a descriptor: whose memory it is, and what is to come there."""

    host_pid: int
    runs: list[Run]


class PageServer:
    """Serves until all has arrived or the pod has ended."""

    def __init__(
        self,
        channel: socket.socket | None,
        door: socket.socket,
        *,
        read: Callable[[int, int], bytes],
        running: Pod,
        rate: int | None,
        ledger: Ledger,
    ) -> None:
        """Begin with nothing, or where another server was killed.

        Args:
            channel: brings Given with descriptors, until the sender shuts it down, and is told then
                that all of it is READY. None: it has been, and the ledger has it.
            door: who connects to it wants all to be there soon, and waits for the end.
            read: returns pages of the archive: first, count.
            running: the pod.
            rate: how many bytes a second are brought that nobody waits for; None: all that goes.
            ledger: what must not be forgotten.
        """
        self._channel = channel
        self._door = door
        self._read, self._rate = read, rate
        self._pids = partial(enter.pids, running)
        self._ledger = ledger
        self._spaces: dict[int, Space] = {}
        self._closing: list[int] = []  # what nobody needs when the ledger has no word of it
        self._standstill = Standstill(
            cgroups.freezer(running.cgroups), ledger.hold, begun=ledger.held
        )
        self._many = _MANY
        self._lingers = False  # has the last standstill threads that have not gone on yet?
        self._next_s = 0.0  # when to bring more, on time.monotonic()

    def recall(self) -> None:
        """Go on where another server was killed, with what the ledger tells.

        Raises:
            Ambiguous, OSError: it is not known what is to come where.
        """
        state, read = self._ledger.recall()
        self._rate = state.rate
        for memory in state.memories:
            pages = Copied()
            for one in memory.absent:
                pages.put(one.start, one.end, one.first)
            self._spaces[memory.fd] = Space(memory.fd, memory.host_pid, pages)
        if read:
            space, changes = self._spaces[read[0].fd], [one.change for one in read]
            if self._ledger.held or not read[0].certain:
                doubtful = sum(not one.certain for one in read)
                self._settle(space, changes[:doubtful], changes[doubtful:])
            else:
                self._note(space, changes)
        else:
            self._standstill.end()
        for space in self._spaces.values():
            userfault.wake_all(space.fd)

    def run(self, ends: Sequence[int]) -> bool:
        """Serve until all is there, or one of the descriptors *ends* becomes readable.

        Returns:
            Is all there?

        Raises:
            Ambiguous, OSError, ArchiveError: some of it cannot be brought.
        """
        while self._channel or self._spaces:
            poll = select.poll()
            for fd in (*ends, *(file.fileno() for file in self._doors()), *self._spaces):
                poll.register(fd, select.POLLIN)
            ready = {fd for fd, _ in poll.poll(self._patience_ms())}
            if ready.intersection(ends):
                return False
            self._lingers = self._lingers and self._standstill.tend()
            self._greet(ready)
            for space in list(self._spaces.values()):
                if self._spaces.get(space.fd) is not space:
                    continue  # it has ended meanwhile
                if space.fd in ready:
                    self._serve(space)
                while space.waiting and space.fd in self._spaces:
                    self._bring(space, space.waiting.pop())
            if self._fills and time.monotonic() >= self._next_s:
                self._fill()
        return True

    @property
    def _fills(self) -> bool:
        return self._channel is None and self._rate != 0

    def _doors(self) -> list[socket.socket]:
        return [self._channel, self._door] if self._channel else [self._door]

    def _patience_ms(self) -> float | None:
        if any(space.waiting for space in self._spaces.values()):
            return 0
        if self._lingers:
            return 1
        return 1000 * max(0.0, self._next_s - time.monotonic()) if self._fills else None

    def _greet(self, ready: set[int]) -> None:
        if self._door.fileno() in ready:
            self._door.accept()[0].detach()  # it is closed when this process has ended
            self._rate, self._next_s = None, 0.0
            self._commit()
        if self._channel and self._channel.fileno() in ready and not self._take(self._channel):
            channel, self._channel = self._channel, None
            self._ledger.begin(self._state())
            with suppress(OSError):  # the restart was killed, and with it the pod
                channel.send(READY)

    def _take(self, channel: socket.socket) -> bool:
        """Take a process; return False at the end."""
        head, fds, _, _ = socket.recv_fds(channel, 8, 1)
        if not head:
            return False
        body = bytearray()
        while len(body) < int.from_bytes(head):
            piece = channel.recv(int.from_bytes(head) - len(body))
            if not piece:  # the restart was killed, and with it that process
                os.close(fds[0])
                return False
            body += piece
        given, pages = msgspec.msgpack.decode(body, type=Given), Copied()
        for run in given.runs:
            pages.put(run.address, run.address + run.count * PAGE_SIZE, run.first)
        self._spaces[fds[0]] = Space(fds[0], given.host_pid, pages)
        return True

    def _drop(self, space: Space) -> None:
        """Have the kernel watch it no more: all is there, or it is gone."""
        del self._spaces[space.fd]
        self._closing.append(space.fd)
        self._commit()

    def _commit(self) -> None:
        """Have what is known now be what the server after this one knows."""
        if self._channel is None:
            self._ledger.note(self._state())
        for fd in self._closing:
            os.close(fd)
        self._closing.clear()

    def _state(self) -> State:
        return State(
            [
                Memory(space.fd, space.host_pid, [Range(*one) for one in space.absent])
                for space in self._spaces.values()
            ],
            self._rate,
        )

    # --- who waits -----------------------------------------------------------------------

    def _serve(self, space: Space) -> None:
        """Do what the kernel asks for, as far as it can be told at once."""
        if userfault.is_changing(space.fd):
            self._settle(space, [])
            return
        message = self._ledger.read(space.fd, certain=False)
        if isinstance(message, Fault):
            space.waiting.add(message.address)
        elif message is not None:  # who has waited for a page does so no more
            self._settle(space, [message])

    def _bring(self, space: Space, address: int) -> None:
        """Bring the page at *address*, whatever it is, and some behind it."""
        while space.fd in self._spaces:
            try:
                found = absent.look(space.absent, address, _AROUND)
                if found is None:
                    userfault.clear(space.fd, address)
                    return
                first, length = found
                if self._copy(space, address, self._read(first, length // PAGE_SIZE)):
                    userfault.wake(space.fd, address)  # if all was there already
                    return
            except Changing:
                self._settle(space, [])
            except (FileExistsError, NotThere):
                userfault.wake(space.fd, address)
                return
            except Gone:
                self._drop(space)

    # --- the rest ------------------------------------------------------------------------

    def _fill(self) -> None:
        """Bring the next piece of the process that has waited longest."""
        if not self._spaces:
            return
        space = next(iter(self._spaces.values()))
        piece = next(iter(space.absent), None)
        if piece is None:
            if not userfault.is_changing(space.fd):  # what is told of it would have to be read
                self._drop(space)
            return
        start, end, first = piece
        length = min(end - start, FRAME_CONTENT)
        if self._rate:
            length = min(length, max(PAGE_SIZE, self._rate // 16 & -PAGE_SIZE))
            self._next_s = time.monotonic() + length / self._rate
        data = self._read(first, length // PAGE_SIZE)
        try:
            self._copy(space, start, data)
        except Gone:
            self._drop(space)

    def _copy(self, space: Space, address: int, data: bytes) -> bool:
        """Copy pages; return False if the memory has changed and it is to be looked at anew."""
        done, step = 0, len(data)
        while done < len(data):
            at, length = address + done, min(step, len(data) - done)
            try:
                copied = userfault.copy(space.fd, at, data, done, length)
            except FileExistsError:
                copied = PAGE_SIZE
            except Changing:
                self._settle(space, [])
                return False
            except NotThere:
                if userfault.is_changing(space.fd):
                    self._settle(space, [])
                    return False
                if length > PAGE_SIZE:  # it is more than one mapping by now
                    step = max(PAGE_SIZE, length // 2 & -PAGE_SIZE)
                    continue
                copied = PAGE_SIZE  # nobody will ask for it
            except OSError as e:
                if e.errno != errno.ENOMEM:
                    raise
                time.sleep(_BREATH_S)
                continue
            space.absent.cut(at, at + copied)
            done += copied
        return True

    # --- changes -------------------------------------------------------------------------

    def _settle(self, space: Space, read: list[Change], sure: Sequence[Change] = ()) -> None:
        """Read what has changed, and note it.

        What a single thread does comes one after another. Of several ones none may go on before all
        was read, or what it does next would be taken for what others have done meanwhile.

        Args:
            space: what is, or was, changed.
            read: what was read of it already, by mistake, when all threads could go on.
            sure: what was read of it after that, when none could.
        """
        if not read and not sure and self._is_alone(space):
            self._note(space, self._read_changes(space, most=1, certain=True))
            return
        certain = self._standstill.begin(self._pids())
        changes = [*sure, *self._read_changes(space, most=None, certain=certain)]
        doubtful = read if certain else [*read, *changes]
        for number, change in enumerate(doubtful):
            if absent.clash(change, [*read, *changes][number + 1 :]):
                raise absent.Ambiguous("several threads have changed the same memory")
        self._note(space, read, changes)
        self._standstill.end()
        self._lingers = True

    def _read_changes(self, space: Space, *, most: int | None, certain: bool) -> list[Change]:
        """Read messages until nothing is being changed any more, or *most* changes were read.

        *certain*: can nobody build upon what they tell before it was read?
        """
        changes: list[Change] = []
        deadline = time.monotonic() + _RESTLESS_S
        while (most is None or len(changes) < most) and userfault.is_changing(space.fd):
            match self._ledger.read(space.fd, certain=certain):
                case None:
                    if time.monotonic() > deadline:
                        raise OSError(errno.ETIMEDOUT, "memory does not come to rest")
                    time.sleep(_TICK_S)
                case Fault(address):
                    space.waiting.add(address)
                case change:
                    changes.append(change)
                    deadline = time.monotonic() + _RESTLESS_S
        return changes

    def _note(self, space: Space, *groups: Sequence[Change]) -> None:
        """Note groups of changes, of which those of one came at once, or one of them."""
        for changes in groups:
            before = space.absent
            others = [change for change in changes if not isinstance(change, Fork)]
            for change in changes:
                if isinstance(change, Fork):
                    self._adopt(change.fd, before, others)
            space.absent = absent.after(before, others, partial(_has, space.fd))
        self._commit()
        if len(self._spaces) > self._many:
            self._bury()
            self._many = len(self._spaces) + _MANY

    def _adopt(self, fd: int, before: Copied, others: Sequence[Change]) -> None:
        """Take a child that was forked beside *others*."""
        try:
            pages = absent.of_child(before, others, lambda at: userfault.has(fd, at))
        except Changing:
            raise absent.Ambiguous("a child changes what its parent was changing") from None
        except Gone:
            self._closing.append(fd)
        else:
            self._spaces[fd] = Space(fd, None, pages)

    def _bury(self) -> None:
        """Drop children that have ended before it was their turn: each holds a descriptor."""
        for space in [one for one in self._spaces.values() if one.host_pid is None]:
            try:
                for start, _, _ in islice(space.absent, 1):
                    userfault.has(space.fd, start)
            except Changing:
                continue
            except Gone:
                self._drop(space)

    def _is_alone(self, space: Space) -> bool:
        """Has the process that has this memory a single thread?"""
        pids = self._pids() if space.host_pid is None else [space.host_pid]
        return all(len(procfs.threads(pid)) <= 1 for pid in pids)


def _has(fd: int, address: int) -> bool:
    """Is there memory of that descriptor at *address*, now that all changes were told?"""
    try:
        return userfault.has(fd, address)
    except Changing:
        raise absent.Ambiguous("it cannot be seen what has changed") from None
    except Gone:
        return False
