"""Makes and removes pods' networks: a process of its own, `python -m launcher.links`.

The only importer of pyroute2, used synchronously and by one thread: it enters other network
namespaces. What is to be made is in the address book first; the namespace gets its name last. So
whatever is interrupted is found not to be there, and is made anew from the book; each step is such
that it may be taken again.
"""

import os
import subprocess
import sys
from contextlib import suppress
from pathlib import Path
from typing import Final

import msgspec
from pyroute2 import IPRoute
from pyroute2.netlink.exceptions import NetlinkError

from launcher import abi, addresses, hosts, netconfig, network, ruleset, wall
from launcher.addresses import Book, Entry
from launcher.config import PodConfig
from launcher.errors import PodError
from launcher.identity import Identity, bridge_name, identity, port_name
from launcher.network import Failure
from launcher.places import Places
from launcher.toml import ConfigError

_NODAD: Final = 0x02  # IFA_F_NODAD, <linux/if_addr.h>: it is nobody else's, and usable at once
_FORWARDING: Final = Path("/proc/sys/net/ipv4/ip_forward")


def make(places: Places, config: PodConfig, *, walled: bool) -> None:
    """Make the network of a pod; on failure nothing is left but what was in the book before.

    With *walled* there is a wall around it before it has an address (launcher.wall), and it is no
    port of the bridge: the pod may still have its address and MAC elsewhere.
    """
    before = addresses.read(places)
    book = _with(places, before, config)
    found = book.identities.get(config.name)
    if found is not None:
        _refuse_busy(found, before.identities.get(config.name))
    addresses.write(places, book)
    try:
        pod_fd = _make_namespace(places, config.name, found, walled=walled)
        _settle(places, before, book)
        _keep(places, config.name, pod_fd)
    except BaseException:
        _remove_namespace(places, config.name)
        _settle(places, book, before)
        addresses.write(places, before)
        raise


def remove(places: Places, name: str) -> None:
    """Remove all that there is for pod *name*."""
    before = addresses.read(places)
    book = _forwarding({n: e for n, e in before.pods.items() if n != name}, before)
    _remove_namespace(places, name)
    hosts.path(places, name).unlink(missing_ok=True)
    _settle(places, before, book)
    addresses.write(places, book)


def _with(places: Places, before: Book, config: PodConfig) -> Book:
    """Return the book with the pod in it."""
    entry = before.pods.get(config.name)
    others = {n: found for n, found in before.identities.items() if n != config.name}
    pools = netconfig.pools(places)
    found = identity(places, config, pools, entry.identity if entry else None, others)
    return _forwarding({**before.pods, config.name: Entry(config.network, found)}, before)


def _forwarding(pods: dict[str, Entry], before: Book) -> Book:
    """Return the book of *pods*: the host forwards because of them if it did not by itself."""
    book = Book(pods)
    needed = ruleset.needed(book.identities)
    forwards = needed and (before.forwards or _FORWARDING.read_text().strip() == "0")
    return msgspec.structs.replace(book, forwards=forwards)


def _refuse_busy(found: Identity, before: Identity | None) -> None:
    """Refuse ports on which a program of the host listens: rules would hide it."""
    import socket

    kinds = {"tcp": socket.SOCK_STREAM, "udp": socket.SOCK_DGRAM}
    for port in found.ports:
        if before is not None and port in before.ports:
            continue
        with socket.socket(socket.AF_INET, kinds[port.protocol]) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, port.protocol == "tcp")
            try:
                probe.bind((port.host or "0.0.0.0", port.port))  # noqa: S104 (nothing listens)
            except OSError as e:
                raise PodError(f"port {port.shown} of the host: {e.strerror}", "ss -lntup") from e


# --- what all pods share -------------------------------------------------------------------


def _settle(places: Places, before: Book, book: Book) -> None:
    """Make rules, forwarding and hosts files what the book says."""
    hosts.update(places, book.identities)
    if ruleset.needed(before.identities) or ruleset.needed(book.identities):
        table, bridge = ruleset.table_name(places.tag), bridge_name(places)
        _nft(ruleset.ruleset(table, bridge, book.identities))
    if book.forwards:
        _FORWARDING.write_text("1")
    elif before.forwards:
        _FORWARDING.write_text("0")


def _nft(text: str) -> None:
    try:
        run = subprocess.run(
            ["nft", "-f", "-"], input=text, capture_output=True, text=True, check=False
        )
    except FileNotFoundError as e:
        raise PodError("network.nat and .publish need nft", "apt-get install nftables") from e
    if run.returncode:
        raise PodError(f"nft: {run.stderr.strip().partition(chr(10))[0]}")


# --- what is one pod's ---------------------------------------------------------------------


def _make_namespace(places: Places, name: str, found: Identity | None, *, walled: bool) -> int:
    """Return a descriptor of a new namespace that has all that the pod needs.

    The process is in the host's before and after.
    """
    _remove_namespace(places, name)
    host_fd = os.open("/proc/self/ns/net", os.O_RDONLY | os.O_CLOEXEC)
    abi.unshare(abi.CLONE_NEWNET)
    try:
        pod_fd = os.open("/proc/self/ns/net", os.O_RDONLY | os.O_CLOEXEC)
        if walled:
            wall.build_lasting(pod_fd)
        if found is not None:
            abi.setns(host_fd, abi.CLONE_NEWNET)
            with IPRoute() as ip:
                if found.bridge:
                    _plug(ip, found, pod_fd, joined=not walled)
                else:
                    _branch(ip, found, pod_fd)
            abi.setns(pod_fd, abi.CLONE_NEWNET)
        with IPRoute() as ip:
            _configure(ip, found)
    finally:
        abi.setns(host_fd, abi.CLONE_NEWNET)
        os.close(host_fd)
    return pod_fd


def _keep(places: Places, name: str, pod_fd: int) -> None:
    """Give the namespace its name: from here on it is made."""
    file = network.path(places, name)
    file.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    file.touch(mode=0o600)
    abi.mount(f"/proc/self/fd/{pod_fd}", os.fspath(file), None, abi.MS_BIND)
    os.close(pod_fd)


def _remove_namespace(places: Places, name: str) -> None:
    """Remove the pod's namespace and what it has on the host; and a bridge without ports."""
    with IPRoute() as ip:
        for port in ip.link_lookup(ifname=port_name(places, name)):
            ip.link("del", index=port)  # now, not when the namespace is gone
        for bridge in ip.link_lookup(ifname=bridge_name(places)):
            if not any(link.get_attr("IFLA_MASTER") == bridge for link in ip.get_links()):
                ip.link("del", index=bridge)
    file = network.path(places, name)
    if network.is_kept(file):
        abi.umount2(os.fspath(file), abi.MNT_DETACH)
    file.unlink(missing_ok=True)


def _plug(ip: IPRoute, found: Identity, pod_fd: int, *, joined: bool) -> None:
    """Make a veth pair to the namespace *pod_fd*, from the bridge if it is *joined* to that now."""
    bridge = _bridge(ip, found)
    peer = {"ifname": "eth0", "net_ns_fd": pod_fd, "address": found.mac}
    ip.link("add", ifname=found.port, kind="veth", peer=peer)
    port = ip.link_lookup(ifname=found.port)[0]
    ip.link("set", index=port, state="up", ifalias=found.pairs[0][0])
    if joined:
        ip.link("set", index=port, master=bridge)


def _bridge(ip: IPRoute, found: Identity) -> int:
    """Return the index of the bridge, which has the gateways' addresses from now on.

    Its MAC is set, else it is the least of its ports', and changes as pods come and go. It is
    the host's, so that two hosts' bridges may be joined.
    """
    if not ip.link_lookup(ifname=found.bridge):
        mac = ":".join(f"{byte:02x}" for byte in (0x02, 0x50, *os.urandom(4)))
        ip.link("add", ifname=found.bridge, kind="bridge", address=mac)
    index = int(ip.link_lookup(ifname=found.bridge)[0])
    for _, gateway in found.pairs:
        if gateway is not None:
            _add_address(ip, "replace", index, gateway)
    ip.link("set", index=index, state="up")
    return index


def _branch(ip: IPRoute, found: Identity, pod_fd: int) -> None:
    """Make a macvlan of the host's interface, in the namespace *pod_fd*."""
    parents = ip.link_lookup(ifname=found.parent)
    if not parents:
        raise PodError(f"network.parent: there is no interface {found.parent!r}", "ip link")
    ip.link(
        "add",
        ifname="eth0",
        kind="macvlan",
        link=parents[0],
        macvlan_mode="bridge",
        address=found.mac,
        net_ns_fd=pod_fd,
    )


def _configure(ip: IPRoute, found: Identity | None) -> None:
    """Set addresses and routes, in the pod's namespace."""
    ip.link("set", index=1, state="up")
    if found is None:
        return
    index = ip.link_lookup(ifname="eth0")[0]
    for address, _ in found.pairs:
        _add_address(ip, "add", index, address)
    ip.link("set", index=index, state="up")
    for _, gateway in found.pairs:
        if gateway is not None:
            every = "::/0" if ":" in gateway else "0.0.0.0/0"
            ip.route("add", dst=every, gateway=gateway.partition("/")[0], oif=index)


def _add_address(ip: IPRoute, verb: str, index: int, text: str) -> None:
    address, _, length = text.partition("/")
    flags = {"flags": _NODAD} if ":" in address else {}
    ip.addr(verb, index=index, address=address, prefixlen=int(length), **flags)


def _main(verb: str, name: str) -> int:
    places = Places.from_environment()
    try:
        with addresses.locked(places):
            if verb == "remove":
                remove(places, name)
            else:
                config = msgspec.json.decode(sys.stdin.buffer.read(), type=PodConfig)
                make(places, config, walled=verb == "make-walled")
    except NetlinkError as e:
        failure = Failure(os.strerror(e.code))
    except (PodError, ConfigError) as e:
        failure = Failure(str(e), getattr(e, "hint", ""))
    except OSError as e:
        failure = Failure(f"{e.strerror}{f': {e.filename}' if e.filename else ''}")
    else:
        return 0
    sys.stdout.buffer.write(msgspec.json.encode(failure))
    return 1


if __name__ == "__main__":
    with suppress(KeyboardInterrupt):
        sys.exit(_main(*sys.argv[1:]))
