"""The holder: the process of a pod that keeps descriptors open that must not be closed.

The masters of its terminals: a terminal hangs up when its last master is closed. So that neither
the end of a client nor a restart of the pod does that, masters belong to this process. It is no
relay: a client that attaches gets the master itself, and the holder only looks after those nobody
is attached to, reading what programs write so that they do not block, and keeping the last of it
for the next client. Whoever attaches last has the terminal.

The listeners of its filters: calls that are to be answered fail with ENOSYS when the last
descriptor of their listener is closed. So the monitor, which answers them (launcher.monitor), may
die: the holder starts a new one and gives it the listeners again, and calls wait meanwhile.

It cuts the pod's log, if that has a size (launcher.logfile), and sees to the pod's service, if it
has one that is to be started again (launcher.keeper).

One per pod, started when there is something to hold; ends with the pod. One thread, no trio: it
forks the monitor's hands (launcher.mounter).
"""

import contextlib
import os
import resource
import select
import socket
import sys
from typing import Final

import msgspec

from launcher import config as configuration
from launcher import (
    enter,
    holder,
    listener,
    logfile,
    pods,
    seccomp,  # noqa: F401 (what is imported later may be another version's by then)
)
from launcher.crew import Crew
from launcher.holder import SCROLLBACK, Reply, Request
from launcher.keeper import Keeper
from launcher.places import Places

_LOG_MS: Final = 2000.0
"""How often the log is looked at."""


class _Console(msgspec.Struct):
    master_fd: int
    client: socket.socket | None = None
    recent: bytearray = msgspec.field(default_factory=bytearray)


class _Holder:
    """State and loop of the holder."""

    def __init__(self, places: Places, name: str, door: socket.socket, pod_fd: int) -> None:
        self._door, self._pod_fd = door, pod_fd
        self._consoles: dict[int, _Console] = {}
        self._visitors: list[socket.socket] = []
        self._listeners: dict[int, int] = {}  # slot -> descriptor
        self._next_slot = 0
        self._crew = Crew(name, pod_fd)
        self._keeper = Keeper(name, pod_fd)
        self._log = configuration.load(places, name).log
        self._places, self._name = places, name

    def run(self) -> None:
        """Serve until the pod has ended."""
        while True:
            ready = {fd for fd, _ in self._poll().poll(self._patience_ms())}
            if self._pod_fd in ready:
                self._crew.end()
                self._keeper.leave()
                return
            for slot in [n for n, fd in self._listeners.items() if fd in ready]:
                os.close(self._listeners.pop(slot))
            self._crew.tend(self._listeners)
            self._keeper.tend(ready)
            self._tend_log()
            for index, console in list(self._consoles.items()):
                self._tend(index, console, ready)
            for visitor in [v for v in self._visitors if v.fileno() in ready]:
                self._visitors.remove(visitor)
                self._serve(visitor)
            if self._door.fileno() in ready:
                self._visitors.append(self._door.accept()[0])

    def _patience_ms(self) -> float | None:
        every = (
            self._crew.patience_ms(self._listeners),
            self._keeper.patience_ms(),
            None if self._log.size is None else _LOG_MS,
        )
        return min((ms for ms in every if ms is not None), default=None)

    def _tend_log(self) -> None:
        if self._log.size is not None:
            try:
                logfile.rotate(self._places, self._name, self._log)
            except OSError as e:  # a full disk: programs go on, and it is tried again
                sys.stderr.write(f"the log cannot be cut: {e}\n")

    def _poll(self) -> select.poll:
        poll = select.poll()
        sources = [self._door.fileno(), self._pod_fd, *(v.fileno() for v in self._visitors)]
        sources += [c.client.fileno() if c.client else c.master_fd for c in self._consoles.values()]
        for fd in (*sources, *self._crew.pidfds, *self._keeper.fds):
            poll.register(fd, select.POLLIN)
        for fd in self._listeners.values():
            poll.register(fd, 0)  # that it hangs up is all that matters here
        return poll

    def _tend(self, index: int, console: _Console, ready: set[int]) -> None:
        """See to a console: its client has left, or its programs have written or closed it."""
        if console.client is not None:
            if console.client.fileno() in ready:  # a client says nothing: it has hung up
                console.client.close()
                console.client = None
        elif console.master_fd in ready:
            try:
                console.recent += os.read(console.master_fd, SCROLLBACK)
                del console.recent[:-SCROLLBACK]
            except OSError:  # EIO: nobody has the terminal open any more
                os.close(console.master_fd)
                del self._consoles[index]

    def _serve(self, visitor: socket.socket) -> None:
        fds: list[int] = []
        with contextlib.suppress(OSError, msgspec.DecodeError):
            packet, fds = holder.receive(visitor)
            request = msgspec.json.decode(packet, type=Request)
            if request.op == "hello":
                visitor.send(msgspec.json.encode(Reply()))
                self._visitors.append(visitor)
                return
            if request.op == "give" and request.index is not None and fds:
                self._take(request.index, fds.pop())
                visitor.send(msgspec.json.encode(Reply()))
            elif request.op == "listener" and fds:
                self._listen(fds.pop())
                visitor.send(msgspec.json.encode(Reply()))
            elif request.op in {"start", "keep"}:
                self._keeper.ask(visitor, start=request.op == "start")
                return
            elif request.op == "leave":
                self._keeper.leave()
                visitor.send(msgspec.json.encode(Reply()))
            elif request.op == "attach" and self._attach(visitor, request.index):
                return
        for fd in fds:
            os.close(fd)
        visitor.close()

    def _take(self, index: int, master_fd: int) -> None:
        old = self._consoles.pop(index, None)
        if old is not None:
            os.close(old.master_fd)
            if old.client is not None:
                old.client.close()
        self._consoles[index] = _Console(master_fd)

    def _listen(self, listener_fd: int) -> None:
        slot, self._next_slot = self._next_slot, (self._next_slot + 1) % listener.SLOTS
        if slot in self._listeners:
            os.close(self._listeners.pop(slot))
        self._crew.give(slot, listener_fd)
        self._listeners[slot] = listener_fd
        self._crew.tend(self._listeners)  # before the giver goes on, who may be alone with it soon

    def _attach(self, visitor: socket.socket, index: int | None) -> bool:
        """Give *visitor* a console; False if there is none for it."""
        chosen = (
            list(self._consoles) if index is None else [i for i in self._consoles if i == index]
        )
        if len(chosen) != 1:
            visitor.send(msgspec.json.encode(Reply(error=self._no_choice(index))))
            return False
        console = self._consoles[chosen[0]]
        reply = msgspec.json.encode(Reply(index=chosen[0]))
        socket.send_fds(visitor, [reply], [console.master_fd])
        visitor.send(b"\0" + console.recent)  # an empty packet would look like the end
        if console.client is not None:
            console.client.close()
        console.client = visitor
        return True

    def _no_choice(self, index: int | None) -> str:
        names = ", ".join(map(str, sorted(self._consoles))) or "none"
        if index is not None:
            return f"there is no terminal {index} to attach to (there are: {names})"
        return f"which terminal? There are: {names}"


def _main(name: str, ready: str) -> int:
    """Become the holder of pod *name*; the byte on descriptor *ready* says that it listens."""
    places = Places.from_environment()
    pod = pods.find(places, name)
    if pod is None:
        sys.stderr.write(f"pod {name!r} is not running\n")
        return 1
    pod_fd = enter.pidfd(pod)
    path = places.run(name) / "holder.sock"
    path.unlink(missing_ok=True)
    directory_fd = os.open(places.run(name), os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    door = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    door.bind(holder.address(directory_fd))
    os.close(directory_fd)
    door.listen()
    if os.fork():
        os._exit(0)  # the starter waits for this process; the holder is nobody's child
    os.setsid()
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    os.write(int(ready), b"1")
    os.close(int(ready))
    _Holder(places, name, door, pod_fd).run()
    return 0


if __name__ == "__main__":
    sys.exit(_main(*sys.argv[1:]))
