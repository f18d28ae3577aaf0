"""The TCP connections of a pod: what a restart needs more than the workshop, and policies.

The workshop gives each its addresses, sequence numbers and what it has received, and leaves it in
repair mode. When all processes stand, the send queues are filled and repair mode ends, all behind
the wall; then packets pass again, and what the peers must hear or have sent is made up for. So the
clocks of retransmission start as late as they can, and no peer ever speaks to a kernel that lacks
its connection.
"""

import os
from collections.abc import Callable, Iterable, Sequence
from contextlib import closing
from typing import Self

import msgspec

from ckpt.kinds import sockets, tcp, udp
from ckpt.kinds.forge import Forge
from ckpt.kinds.protocol import Loader, Source
from ckpt.kinds.table import name
from ckpt.model import OpenFile, Part, Pod
from ckpt.states import state_of


def addresses(model: Pod) -> set[str]:
    """Return the pod's own addresses that connections of *model* have, as text."""
    return {
        state.address.host
        for _, state in _states(model.files)
        if state.state == "connected" and state.address is not None
    }


def apply(model: Pod, policy: str) -> Pod:
    """Return *model* with its connections as the policy has them; see launcher.config.Network."""
    if policy == "keep":
        return model
    files = list(model.files)
    for at, state in _states(model.files):
        if state.state in {"connected", "connecting"}:
            over = tcp.ended(state, tell_peer=policy == "close")
            part = Part(name(tcp), msgspec.Raw(msgspec.msgpack.encode(over)))
            files[at] = msgspec.structs.replace(files[at], part=part)
    return msgspec.structs.replace(model, files=files)


def silence(sources: Iterable[Source]) -> None:
    """Have the connections of a pod that has ended close without a word to their peers.

    Its processes have gone: the duplicates in *sources* are all that holds the sockets.
    """
    for fd in _sockets(sources):
        tcp.silence(fd)


def in_use(sources: Iterable[Source]) -> int:
    """Return how many of the open files are TCP sockets that listen or have a connection."""
    return sum(map(tcp.is_in_use, _sockets(sources)))


def _sockets(sources: Iterable[Source]) -> list[int]:
    """Return our duplicates of the sockets among *sources*."""
    return [s.local_fd for s in sources if s.fd >= 0 and s.link.startswith("socket:[")]


def _states(files: Sequence[OpenFile]) -> list[tuple[int, tcp.State]]:
    return [
        (at, state_of(file.part, tcp.State))
        for at, file in enumerate(files)
        if file.part.kind == name(tcp)
    ]


class Connections:
    """Duplicates of the pod's Internet sockets with something to be made up for.

    Leaving the context closes them. If that happens before release(), TCP connections end without
    a word to their peers.

    Args:
        files: the open files of the pod.
        duplicate: returns a descriptor of a rebuilt file, by its OpenFile.id.
        load: returns stored data, by first page and length in bytes.
    """

    def __init__(
        self, files: Sequence[OpenFile], duplicate: Callable[[int], int], load: Loader
    ) -> None:
        self._load = load
        self._tcp: list[tuple[tcp.State, int]] = []
        self._udp: list[tuple[udp.State, int]] = []
        self._released = False
        try:
            for file in files:
                if file.part.kind == name(tcp):
                    state = state_of(file.part, tcp.State)
                    if tcp.is_late(state):
                        self._tcp.append((state, duplicate(file.id)))
                elif file.part.kind == name(udp):
                    datagrams = state_of(file.part, udp.State)
                    if udp.is_late(datagrams):
                        self._udp.append((datagrams, duplicate(file.id)))
        except BaseException:
            self.__exit__()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        for _state, fd in self._tcp:
            if not self._released:
                tcp.silence(fd)
            os.close(fd)
        for _datagrams, fd in self._udp:
            os.close(fd)
        self._tcp.clear()
        self._udp.clear()

    def settle(self) -> None:
        """Fill the send queues of TCP connections and end repair mode; no packet passes yet.

        Raises:
            OSError: as socket(7).
        """
        for state, fd in self._tcp:
            with sockets.borrowed(fd) as s:
                tcp.settle(state, s, self._load)

    def release(self) -> None:
        """Have all go on: packets pass again. Called in the pod's network namespace.

        Raises:
            OSError: as socket(7), raw(7).
        """
        if self._tcp or self._udp:
            with closing(Forge()) as forge:
                for state, fd in self._tcp:
                    with sockets.borrowed(fd) as s:
                        tcp.release(state, s, self._load, forge)
                for datagrams, fd in self._udp:
                    with sockets.borrowed(fd) as s:
                        udp.release(datagrams, s, self._load, forge)
        self._released = True
