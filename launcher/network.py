"""A pod's network namespace: made once, kept until the pod is removed.

It is bind-mounted at `/run/autopod/POD/net` and entered by each start, which so costs nothing. What
is in it follows from the pod's identity (launcher.addresses). launcher.links makes it, in a process
of its own: pyroute2 takes 150 ms to import and starts an event loop, which no process may have that
is to fork into a pod.
"""

import errno
import fcntl
import os
import socket
import struct
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Final, Self

import msgspec

from launcher import abi, addresses, users, wall
from launcher.config import PodConfig
from launcher.errors import PodError
from launcher.identity import Identity, adopted, pinned
from launcher.places import Places

if TYPE_CHECKING:
    import subprocess

_NOTHING: Final = b""
_SIOCBRADDIF: Final = 0x89A2  # <linux/sockios.h>


class Failure(msgspec.Struct, frozen=True):
    """What launcher.links prints if it fails."""

    error: str
    hint: str = ""


def path(places: Places, name: str) -> Path:
    """Return where the network namespace of pod *name* is kept."""
    return places.run(name) / "net"


def ensure(places: Places, config: PodConfig) -> Identity | None:
    """Make the network of a pod that is not running, if it is not there, or to be another.

    Returns:
        The pod's identity; None if it has no network.

    Raises:
        PodError: it cannot be made.
    """
    with begin(places, config) as making:
        making.finish()
    return addresses.identity_of(places, config.name)


def begin(places: Places, config: PodConfig, *, walled: bool = False) -> "Making":
    """Begin what ensure() does; the caller may do something else meanwhile.

    With *walled* all packets are kept out of it, from its first moment on, until open_network().

    Raises:
        PodError: the address book is damaged.
    """
    entry = addresses.read(places).pods.get(config.name)
    base = users.ensure(places, config)
    if (
        entry
        and (entry.asked, entry.base) == (config.network, base)
        and _stands(places, config.name, entry.identity)
    ):
        with opened(path(places, config.name)) as fd:
            if walled:
                wall.build_lasting(fd)
            else:
                _join_bridge(places, config.name)
                wall.remove(fd)
        return Making(places, config.name, None, is_new=False)
    asked = msgspec.json.encode(config)
    process = _spawn("make-walled" if walled else "make", places, config.name, asked)
    return Making(places, config.name, process, entry is None)


class Making:
    """A network that is being made. As a context manager it does not leave its process behind."""

    def __init__(
        self, places: Places, name: str, process: "subprocess.Popen[bytes] | None", is_new: bool
    ) -> None:
        self._places, self._name = places, name
        self._process = process
        self._is_new = is_new

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        if self._process is not None:
            with self._process:
                pass

    def finish(self) -> None:
        """Return when it is made.

        Raises:
            PodError: it cannot be made; what there was before of the pod's identity is kept.
        """
        if self._process is not None:
            _finish(self._process, self._name)

    def undo(self) -> None:
        """Remove the network if the pod had none before. Called after the end of the context."""
        if self._is_new:
            withdraw_network(self._places, self._name)


def open_network(places: Places, name: str) -> None:
    """Let packets pass into the network of pod *name*, if it is walled; announce_network() follows.

    Raises:
        OSError: as netlink(7).
    """
    _join_bridge(places, name)
    with opened(path(places, name)) as fd:
        wall.open_lasting(fd)


def port(places: Places, name: str) -> str | None:
    """Return the host's end of the veth pair of pod *name*; None if it has none."""
    found = addresses.identity_of(places, name)
    return found.port if found is not None and found.bridge is not None else None


def announce_network(places: Places, name: str) -> None:
    """Tell neighbours and switches, who may know pod *name* from elsewhere, that it is here.

    It takes some 20 ms, for which nobody need wait.

    Raises:
        OSError: as netlink(7), packet(7).
    """
    from launcher import announce

    with opened(path(places, name)) as fd:
        announce.announce(fd)
        wall.remove(fd)


def leave_network(places: Places, name: str) -> None:
    """Have pod *name*, which has ended, no more be heard from; its network is made anew if needed.

    Its addresses are another host's from now on. Whatever is left goes with remove_network().

    Raises:
        OSError: as netdevice(7).
    """
    from launcher import announce

    file = path(places, name)
    with opened(file) as fd:
        announce.fall_silent(fd)
    abi.umount2(os.fspath(file), abi.MNT_DETACH)


def remove_network(places: Places, name: str) -> None:
    """Remove the network of pod *name*, if it has one, and the bridge after the last.

    Raises:
        PodError: it cannot be removed.
    """
    book = addresses.read(places)
    if path(places, name).exists() or name in book.pods or name in book.relays:
        _finish(_spawn("remove", places, name, _NOTHING), name)
    users.forget(places, name)


def withdraw_network(places: Places, name: str, host: str = "") -> None:
    """Do what remove_network() does for a pod that lives elsewhere.

    If *host*, where it went from here, is on the overlay, it is still reached through this host,
    by the ports that it publishes, too, until end_relay(). Who was a relay for it is one still.

    Raises:
        PodError: it cannot be removed.
    """
    if path(places, name).exists() or name in addresses.read(places).pods:
        _finish(_spawn("withdraw", places, name, host.encode()), name)
    users.forget(places, name)


def end_relay(places: Places, name: str) -> None:
    """Have pod *name*, which has moved away, no more be reached through this host.

    Raises:
        PodError: it is not.
    """
    if name not in addresses.read(places).relayed:
        raise PodError(f"pod {name!r} is not reached through this host", "autopod relay list")
    _finish(_spawn("end-relay", places, name, _NOTHING), name)


def settle_overlay(places: Places) -> None:
    """Make the overlay what launcher.overlay.read() says.

    Raises:
        PodError: it cannot be.
    """
    process = _spawn("settle", places, "", _NOTHING)
    _finish(process, None)


def pin(places: Places, config: PodConfig) -> PodConfig:
    """Return *config* with the identity that the pod has: what it needs to be the same elsewhere.

    Raises:
        PodError: the address book is damaged.
    """
    network = pinned(config.network, addresses.identity_of(places, config.name))
    return msgspec.structs.replace(config, network=network)


def adopt(config: PodConfig, archived: PodConfig) -> PodConfig:
    """Return *config* with the identity of *archived* where it leaves that open. Pure."""
    return msgspec.structs.replace(config, network=adopted(config.network, archived.network))


def is_kept(file: Path) -> bool:
    """Is a namespace mounted on *file*? After a reboot it is an empty file."""
    try:
        fd = os.open(file, os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError:
        return False
    try:
        return abi.fstatfs_type(fd) == abi.NSFS_MAGIC
    finally:
        os.close(fd)


def _stands(places: Places, name: str, found: Identity | None) -> bool:
    """Is the pod's network there, with both ends of its veth pair?"""
    if found is not None and found.bridge is not None:
        with suppress(OSError):
            return socket.if_nametoindex(found.port) > 0 and is_kept(path(places, name))
        return False
    return is_kept(path(places, name))


def _join_bridge(places: Places, name: str) -> None:
    """Make the host's end of the pod's veth pair a port of the bridge, if it is none.

    By ioctl(2): netlink would take the import of pyroute2, and the pod may be standing still.
    Source: Linux v6.1, net/bridge/br_ioctl.c, add_del_if().
    """
    found = addresses.identity_of(places, name)
    if found is None or found.bridge is None:
        return
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as s:
        request = struct.pack("16si12x", found.bridge.encode(), socket.if_nametoindex(found.port))
        try:
            fcntl.ioctl(s, _SIOCBRADDIF, request)
        except OSError as e:
            if e.errno != errno.EBUSY:  # it is one
                raise


@contextmanager
def opened(file: Path) -> Iterator[int]:
    """Have a descriptor of the network namespace that is kept at *file*."""
    fd = os.open(file, os.O_RDONLY | os.O_CLOEXEC)
    try:
        yield fd
    finally:
        os.close(fd)


def _spawn(verb: str, places: Places, name: str, text: bytes) -> "subprocess.Popen[bytes]":
    """Start launcher.links; *text*, which fits into a pipe, is its standard input.

    Ctrl-C, which a terminal sends to both, reaches it when it is loaded.
    """
    import signal
    import subprocess

    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        process = subprocess.Popen(
            [sys.executable, "-P", "-m", "launcher.links", verb, name],
            env={**os.environ, "AUTOPOD_PREFIX": os.fspath(places.prefix)},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        )
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
    assert process.stdin is not None  # noqa: S101 (for the type checker)
    with process.stdin:
        process.stdin.write(text)
    process.stdin = None
    return process


def _finish(process: "subprocess.Popen[bytes]", name: str | None) -> None:
    said, _ = process.communicate()
    if process.returncode:
        failure = Failure("its maker was killed")
        if said:
            failure = msgspec.json.decode(said, type=Failure)
        whose = f"network of pod {name!r}: " if name is not None else ""
        raise PodError(f"{whose}{failure.error}", failure.hint)
