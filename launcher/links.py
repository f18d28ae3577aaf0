"""Makes and removes pods' networks: a process of its own, `python -m launcher.links`.

With launcher.vxlan the only user of pyroute2 (launcher.netlink), synchronously and by one thread:
it enters other network namespaces. What is to be made is in the address book first; the namespace
gets its name last. So whatever is interrupted is found not to be there, and is made anew from the
book; each step is such that it may be taken again.
"""

import os
import signal
import sys
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Final

from launcher import light  # noqa: F401 (first: it makes the others cheaper)

# isort: split
import msgspec

from launcher import (
    abi,
    addresses,
    commandline,
    hosts,
    netconfig,
    netlink,
    network,
    overlay,
    ruleset,
    userns,
    users,
    vxlan,
    wall,
    whohas,
)
from launcher.addresses import Book, Entry, Relay
from launcher.config import PodConfig
from launcher.errors import PodError
from launcher.identity import Identity, bridge_name, identity, port_name
from launcher.network import Failure
from launcher.places import Places
from launcher.toml import ConfigError

if TYPE_CHECKING:
    from pyroute2 import IPRoute

_PATIENCE_S: Final = 0.6
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
        _refuse_busy(found, before.reached.get(config.name))
    addresses.write(places, book)
    try:
        _settle(places, before, book)
        if found is not None and not walled:
            _refuse_double(places, found)
        base = book.pods[config.name].base
        pod_fd = _make_namespace(places, config.name, found, base, walled=walled)
        _keep(places, config.name, pod_fd)
    except BaseException:
        try:
            _remove_namespace(places, config.name)
            _settle(places, book, before)
        finally:
            addresses.write(places, before)
        raise


def remove(places: Places, name: str) -> None:
    """Remove all that there is for pod *name*, wherever it is."""
    before = addresses.read(places)
    _withdraw(places, before, name, {n: r for n, r in before.relays.items() if n != name})


def withdraw(places: Places, name: str, host: str) -> None:
    """Remove what there is for pod *name*, which lives at *host*; "": elsewhere.

    With a *host* of the overlay it is reached through this one from now on; else if it was before.
    """
    before = addresses.read(places)
    found, wanted = before.identities.get(name), overlay.read(places)
    relays = dict(before.relays)
    if found and found.bridge and wanted and host in {one.name for one in wanted.members}:
        relays[name] = Relay(found, host)
    _withdraw(places, before, name, relays)


def settle(places: Places) -> None:
    """Make the overlay, and all that hangs on it, what it is to be; or nothing of it."""
    wanted, book = overlay.read(places), addresses.read(places)
    if wanted is None and book.relayed:
        name, relay = next(iter(book.relayed.items()))
        hint = f"end that first: autopod relay end {name}"
        raise PodError(f"pod {name!r} at host {relay.host} is reached through this host", hint)
    if wanted is not None:
        with netlink.connect() as ip:
            vxlan.check(ip, wanted)
    try:
        _settle(places, book, book)
    finally:
        _remove_bridge(places)
    for name, found in book.identities.items():
        if found.bridge and network.is_kept(network.path(places, name)):
            _refresh(places, name, found, wanted)


def end_relay(places: Places, name: str) -> None:
    """Have pod *name*, which is elsewhere, no more be reached through this host."""
    before = addresses.read(places)
    relays = {n: r for n, r in before.relays.items() if n != name}
    book = _forwarding(msgspec.structs.replace(before, relays=relays))
    _settle(places, before, book)
    addresses.write(places, book)


def _withdraw(places: Places, before: Book, name: str, relays: dict[str, Relay]) -> None:
    pods = {n: e for n, e in before.pods.items() if n != name}
    book = _forwarding(msgspec.structs.replace(before, pods=pods, relays=relays))
    _remove_namespace(places, name)
    hosts.path(places, name).unlink(missing_ok=True)
    _settle(places, before, book)
    addresses.write(places, book)


def _with(places: Places, before: Book, config: PodConfig) -> Book:
    """Return the book with the pod in it."""
    known, mark = before.pods.get(config.name), overlay.own_mark(places)
    others = {n: found for n, found in before.reached.items() if n != config.name}
    pools, kept = netconfig.pools(places), known.identity if known else None
    found = identity(places, config, pools, kept, others, f"@{mark:x}" if mark else "")
    entry = Entry(config.network, found, users.base(places, config.name))
    pods = {**before.pods, config.name: entry}
    return _forwarding(msgspec.structs.replace(before, pods=pods))


def _forwarding(book: Book) -> Book:
    """Return the book of these pods: the host forwards because of them if it did not by itself."""
    needed = ruleset.needed(book.reached)
    forwards = needed and (book.forwards or _FORWARDING.read_text().strip() == "0")
    return msgspec.structs.replace(book, forwards=forwards)


def _standing(places: Places, book: Book) -> dict[str, str]:
    """Return the addresses of the pods that have a network here now, and their names."""
    return {
        address.partition("/")[0]: name
        for name, found in book.identities.items()
        for address, _ in found.pairs
        if found.bridge and network.is_kept(network.path(places, name))
    }


def _refuse_double(places: Places, found: Identity) -> None:
    """Refuse an address that somebody on the overlay has."""
    wanted = overlay.read(places)
    if wanted is None or not found.bridge:
        return
    own = [address.partition("/")[0] for address, _ in found.pairs]
    there = whohas.ask(overlay.device_name(places), wanted.own.mac, own, _PATIENCE_S)
    for address, mac in there.items():
        hint = "give the pod another one: network.address, or autopod add --ip"
        raise PodError(f"address {address} is taken on the overlay, by {mac}", hint)


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
    """Make overlay, rules, forwarding and hosts files what the book says."""
    wanted = overlay.read(places)
    if wanted is not None:
        gateways = [g for r in book.relayed.values() for _, g in r.identity.pairs if g]
        with netlink.connect() as ip:
            vxlan.make_bridge(ip, bridge_name(places), gateways, wanted)
            vxlan.join(ip, places, wanted, book.reached.values(), _standing(places, book))
    elif netlink.is_there(overlay.device_name(places)):
        with netlink.connect() as ip:
            vxlan.leave(ip, places)
    hosts.update(places, book.reached)
    if ruleset.needed(before.reached) or ruleset.needed(book.reached):
        table, bridge = ruleset.table_name(places.tag), bridge_name(places)
        vxlan.nft(ruleset.ruleset(table, bridge, book.reached))
    if book.forwards:
        _FORWARDING.write_text("1")
    elif before.forwards:
        _FORWARDING.write_text("0")


# --- what is one pod's ---------------------------------------------------------------------


def _make_namespace(
    places: Places, name: str, found: Identity | None, base: int | None, *, walled: bool
) -> int:
    """Return a descriptor of a new namespace that has all that the pod needs.

    The process is in the host's before and after.
    """
    _remove_namespace(places, name)
    wanted = overlay.read(places)
    host_fd = os.open("/proc/self/ns/net", os.O_RDONLY | os.O_CLOEXEC)
    try:
        if base is None:
            abi.unshare(abi.CLONE_NEWNET)
            pod_fd = os.open("/proc/self/ns/net", os.O_RDONLY | os.O_CLOEXEC)
        else:
            pod_fd = userns.new_network(base)
            abi.setns(pod_fd, abi.CLONE_NEWNET)
        if walled:
            wall.build_lasting(pod_fd)
        if found is not None:
            abi.setns(host_fd, abi.CLONE_NEWNET)
            with netlink.connect() as ip:
                if found.bridge:
                    _plug(ip, found, pod_fd, wanted, joined=not walled)
                else:
                    _branch(ip, found, pod_fd)
            abi.setns(pod_fd, abi.CLONE_NEWNET)
        netlink.raise_loopback()
        if found is not None:
            with netlink.connect() as ip:
                _configure(ip, found)
                if found.bridge and wanted is not None:
                    vxlan.set_paths(ip, found, wanted)
    finally:
        abi.setns(host_fd, abi.CLONE_NEWNET)
        os.close(host_fd)
    return pod_fd


def _refresh(places: Places, name: str, found: Identity, wanted: overlay.Overlay | None) -> None:
    """Bring the network of a pod up to date with the overlay."""
    if wanted is not None:
        with netlink.connect() as ip:
            for port in ip.link_lookup(ifname=found.port):
                ip.link("set", index=port, mtu=wanted.mtu)
    with network.opened(network.path(places, name)) as fd, wall.inside(fd), netlink.connect() as ip:
        vxlan.set_paths(ip, found, wanted)


def _keep(places: Places, name: str, pod_fd: int) -> None:
    """Give the namespace its name: from here on it is made."""
    file = network.path(places, name)
    file.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    file.touch(mode=0o600)
    abi.mount(f"/proc/self/fd/{pod_fd}", os.fspath(file), None, abi.MS_BIND)
    os.close(pod_fd)


def _remove_namespace(places: Places, name: str) -> None:
    """Remove the pod's namespace and what it has on the host; and a bridge without ports."""
    if netlink.is_there(port_name(places, name)):
        with netlink.connect() as ip:
            for port in ip.link_lookup(ifname=port_name(places, name)):
                ip.link("del", index=port)  # now, not when the namespace is gone
    _remove_bridge(places)
    file = network.path(places, name)
    if network.is_kept(file):
        abi.umount2(os.fspath(file), abi.MNT_DETACH)
    file.unlink(missing_ok=True)


def _remove_bridge(places: Places) -> None:
    """Remove a bridge without ports."""
    if not netlink.is_there(bridge_name(places)):
        return
    with netlink.connect() as ip:
        for bridge in ip.link_lookup(ifname=bridge_name(places)):
            links = netlink.dump(ip.get_links)
            if not any(link.get_attr("IFLA_MASTER") == bridge for link in links):
                ip.link("del", index=bridge)


def _plug(
    ip: "IPRoute", found: Identity, pod_fd: int, wanted: overlay.Overlay | None, *, joined: bool
) -> None:
    """Make a veth pair to the namespace *pod_fd*, from the bridge if it is *joined* to that now."""
    gateways = [gateway for _, gateway in found.pairs if gateway is not None]
    bridge = vxlan.make_bridge(ip, str(found.bridge), gateways, wanted)
    mtu = {"mtu": wanted.mtu} if wanted is not None else {}
    peer = {"ifname": "eth0", "net_ns_fd": pod_fd, "address": found.mac, **mtu}
    ip.link("add", ifname=found.port, kind="veth", peer=peer, **mtu)
    port = ip.link_lookup(ifname=found.port)[0]
    ip.link("set", index=port, state="up", ifalias=found.pairs[0][0])
    if joined:
        ip.link("set", index=port, master=bridge)


def _branch(ip: "IPRoute", found: Identity, pod_fd: int) -> None:
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


def _configure(ip: "IPRoute", found: Identity | None) -> None:
    """Set addresses and routes, in the pod's namespace."""
    ip.link("set", index=1, state="up")
    if found is None:
        return
    index = ip.link_lookup(ifname="eth0")[0]
    for address, _ in found.pairs:
        vxlan.add_address(ip, "add", index, address)
    ip.link("set", index=index, state="up")
    for _, gateway in found.pairs:
        if gateway is not None:
            every = "::/0" if ":" in gateway else "0.0.0.0/0"
            ip.route("add", dst=every, gateway=gateway.partition("/")[0], oif=index)


def _main(verb: str, name: str) -> int:
    places = Places.from_environment()
    try:
        with addresses.locked(places):
            if verb == "remove":
                remove(places, name)
            elif verb == "withdraw":
                withdraw(places, name, sys.stdin.read())
            elif verb == "end-relay":
                end_relay(places, name)
            elif verb == "settle":
                settle(places)
            else:
                config = msgspec.json.decode(sys.stdin.buffer.read(), type=PodConfig)
                make(places, config, walled=verb == "make-walled")
    except (PodError, ConfigError) as e:
        failure = Failure(str(e), getattr(e, "hint", ""))
    except OSError as e:
        failure = Failure(*commandline.system_call(e))
    except netlink.errors() as e:
        failure = Failure(os.strerror(e.args[0]))
    else:
        return 0
    with suppress(BrokenPipeError):  # who has asked has failed itself
        sys.stdout.buffer.write(msgspec.json.encode(failure))
        sys.stdout.flush()
    return 1


if __name__ == "__main__":
    try:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})  # launcher.network blocks it
        sys.exit(_main(*sys.argv[1:]))
    except KeyboardInterrupt:
        sys.exit(130)
