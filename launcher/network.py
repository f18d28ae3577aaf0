"""A pod's network namespace: made once, kept until the pod is removed.

It is bind-mounted at `/run/autopod/POD/net`, holds one end of a veth pair whose other end is a
port of the host's bridge, and is entered by each start, which so costs nothing. Everything is
made in the network namespace of the caller.

Only this module imports pyroute2, and only in a process of its own (`python -m
launcher.network`): the import takes 150 ms and starts an event loop, which no process may have
that is to fork into a pod.
"""

import fcntl
import os
import subprocess
import sys
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import msgspec

from launcher import abi
from launcher.config import PodConfig
from launcher.errors import PodError
from launcher.identity import Identity, identity
from launcher.places import Places

if TYPE_CHECKING:
    from pyroute2 import IPRoute


def path(places: Places, name: str) -> Path:
    """Return where the network namespace of pod *name* is kept."""
    return places.run(name) / "net"


def ensure(places: Places, config: PodConfig) -> None:
    """Make the network of a pod that is not running, or make it anew if its identity changed.

    Raises:
        PodError: it cannot be made.
    """
    with begin(places, config) as making:
        making.finish()


def begin(places: Places, config: PodConfig) -> "Making":
    """Begin what ensure() does; the caller may do something else meanwhile.

    Raises:
        PodError: the former network, of another identity, cannot be removed.
    """
    wanted = identity(places, config)
    if is_kept(path(places, config.name)) and _read(places, config.name) == _encode(wanted):
        return Making(config.name, None)
    remove_network(places, config.name)
    places.run(config.name).mkdir(mode=0o700, parents=True, exist_ok=True)
    _record(places, config.name).write_bytes(_encode(wanted))
    return Making(config.name, _spawn("make", places, config.name))


class Making:
    """A network that is being made. As a context manager it does not leave its process behind."""

    def __init__(self, name: str, process: subprocess.Popen[str] | None) -> None:
        self._name = name
        self._process = process

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        if self._process is not None:
            with self._process:
                pass

    def finish(self) -> None:
        """Return when it is made.

        Raises:
            PodError: it cannot be made.
        """
        if self._process is not None:
            _finish(self._process, self._name)


def remove_network(places: Places, name: str) -> None:
    """Remove the network of pod *name*, if it has one, and the bridge after the last.

    Raises:
        PodError: it cannot be removed.
    """
    if _record(places, name).exists() or path(places, name).exists():
        _finish(_spawn("remove", places, name), name)


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


def _record(places: Places, name: str) -> Path:
    return places.run(name) / "net.json"


def _encode(wanted: Identity | None) -> bytes:
    return msgspec.json.encode(wanted and asdict(wanted))


def _read(places: Places, name: str) -> bytes:
    try:
        return _record(places, name).read_bytes()
    except FileNotFoundError:
        return b""


def _spawn(verb: str, places: Places, name: str) -> subprocess.Popen[str]:
    argv = [sys.executable, "-P", "-m", "launcher.network", verb, name]
    environment = {**os.environ, "AUTOPOD_PREFIX": os.fspath(places.prefix)}
    return subprocess.Popen(
        argv,
        env=environment,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )


def _finish(process: subprocess.Popen[str], name: str) -> None:
    _, said = process.communicate()
    if process.returncode:
        raise PodError(f"network of pod {name!r}: {said.strip().rpartition(chr(10))[2]}")


# --- in the process of its own -------------------------------------------------------------


def _make(places: Places, name: str) -> None:
    """Make the namespace and what is in it. On failure nothing is left but the bridge."""
    wanted = msgspec.json.decode(_read(places, name), type=Identity | None)
    file = path(places, name)
    file.touch(mode=0o600)
    host_fd = os.open("/proc/self/ns/net", os.O_RDONLY | os.O_CLOEXEC)
    try:
        abi.unshare(abi.CLONE_NEWNET)
        abi.mount("/proc/self/ns/net", os.fspath(file), None, abi.MS_BIND)
        pod_fd = os.open(file, os.O_RDONLY | os.O_CLOEXEC)
        abi.setns(host_fd, abi.CLONE_NEWNET)
        if wanted is not None:
            _connect(wanted, pod_fd)
        abi.setns(pod_fd, abi.CLONE_NEWNET)
        _configure(wanted)
    except BaseException:
        abi.setns(host_fd, abi.CLONE_NEWNET)
        _remove(places, name)
        raise


def _connect(wanted: Identity, pod_fd: int) -> None:
    """Make bridge and veth pair, from the host's namespace."""
    from pyroute2 import IPRoute

    with IPRoute() as ip:
        bridge = _bridge(ip, wanted)
        _refuse_twice(ip, bridge, wanted)
        peer = {"ifname": "eth0", "net_ns_fd": pod_fd, "address": wanted.mac}
        ip.link("add", ifname=wanted.port, kind="veth", peer=peer)
        port = ip.link_lookup(ifname=wanted.port)[0]
        ip.link("set", index=port, master=bridge, state="up", ifalias=wanted.address)


def _bridge(ip: "IPRoute", wanted: Identity) -> int:
    """Return the index of the bridge, which has the gateway's address from now on."""
    if not ip.link_lookup(ifname=wanted.bridge):
        ip.link("add", ifname=wanted.bridge, kind="bridge")
    index = int(ip.link_lookup(ifname=wanted.bridge)[0])
    address, _, length = wanted.gateway.partition("/")
    ip.addr("replace", index=index, address=address, prefixlen=int(length))
    ip.link("set", index=index, state="up")
    return index


def _refuse_twice(ip: "IPRoute", bridge: int, wanted: Identity) -> None:
    """Refuse an address that another pod on the bridge has; each port's alias says whose it is."""
    address = wanted.address.partition("/")[0]
    for link in ip.get_links():
        alias = link.get_attr("IFLA_IFALIAS") or ""
        if link.get_attr("IFLA_MASTER") == bridge and alias.partition("/")[0] == address:
            raise PodError(f"address {address} is another pod's: set network.address")


def _configure(wanted: Identity | None) -> None:
    """Set addresses and routes, from the pod's namespace."""
    from pyroute2 import IPRoute

    with IPRoute() as ip:
        ip.link("set", index=1, state="up")
        if wanted is None:
            return
        index = ip.link_lookup(ifname="eth0")[0]
        address, _, length = wanted.address.partition("/")
        ip.addr("add", index=index, address=address, prefixlen=int(length))
        ip.link("set", index=index, state="up")
        ip.route("add", dst="0.0.0.0/0", gateway=wanted.gateway.partition("/")[0])


def _remove(places: Places, name: str) -> None:
    wanted = msgspec.json.decode(_read(places, name) or b"null", type=Identity | None)
    if wanted is not None:
        _disconnect(wanted)
    file = path(places, name)
    if is_kept(file):
        abi.umount2(os.fspath(file), abi.MNT_DETACH)
    file.unlink(missing_ok=True)
    _record(places, name).unlink(missing_ok=True)


def _disconnect(wanted: Identity) -> None:
    """Delete the veth pair now, not when its namespace is gone; and a bridge without ports."""
    from pyroute2 import IPRoute

    with IPRoute() as ip:
        for port in ip.link_lookup(ifname=wanted.port):
            ip.link("del", index=port)
        for bridge in ip.link_lookup(ifname=wanted.bridge):
            if not any(link.get_attr("IFLA_MASTER") == bridge for link in ip.get_links()):
                ip.link("del", index=bridge)


def _main(verb: str, name: str) -> int:
    from pyroute2.netlink.exceptions import NetlinkError

    places = Places.from_environment()
    act: Any = {"make": _make, "remove": _remove}[verb]
    try:
        with open(places.runs() / "network.lock", "a") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)  # one bridge for all pods
            act(places, name)
    except NetlinkError as e:
        sys.stderr.write(f"{os.strerror(e.code)}\n")
        return 1
    except (PodError, OSError) as e:
        sys.stderr.write(f"{e}\n")
        return 1
    return 0


if __name__ == "__main__":
    with suppress(KeyboardInterrupt):
        sys.exit(_main(*sys.argv[1:]))
