"""Makes what launcher.overlay says: the VXLAN device, and the ways to its members in each pod.

Part of the process of launcher.links. Each step may be taken again, and leaves what is as it should
be; what is not comes from another configuration, or from the host's last boot.
"""

import errno
import ipaddress
import os
import socket
import subprocess
from collections.abc import Iterable, Mapping
from contextlib import suppress
from typing import TYPE_CHECKING, Any, Final

from launcher import announce, netlink, overlay, ruleset, whohas
from launcher.errors import PodError
from launcher.identity import Identity, bridge_name
from launcher.overlay import Overlay, Path
from launcher.places import Places

if TYPE_CHECKING:
    from pyroute2 import IPRoute

_FAMILIES: Final = (socket.AF_INET, socket.AF_INET6)
_EVERYBODY: Final = "00:00:00:00:00:00"
_PATIENCE_S: Final = 0.6
_NODAD: Final = 0x02  # IFA_F_NODAD, <linux/if_addr.h>
_PERMANENT: Final = 0x80  # NUD_PERMANENT, <linux/neighbour.h>
_ONLINK: Final = 0x04  # RTNH_F_ONLINK, <linux/rtnetlink.h>
_MARKS: Final = (
    "/proc/sys/net/ipv4/tcp_fwmark_accept",
    "/proc/sys/net/ipv4/fwmark_reflect",
    "/proc/sys/net/ipv6/fwmark_reflect",
)


def check(ip: "IPRoute", wanted: Overlay) -> None:
    """Refuse what cannot be on this host.

    Raises:
        PodError: it cannot.
    """
    overlay.check_marks(wanted)
    mtus = {link["index"]: int(link.get_attr("IFLA_MTU")) for link in netlink.dump(ip.get_links)}
    has = {
        one.get_attr("IFA_ADDRESS"): mtus.get(one["index"], 0) for one in netlink.dump(ip.get_addr)
    }
    overlay.check_address(wanted, has)


def join(
    ip: "IPRoute",
    places: Places,
    wanted: Overlay,
    reached: Iterable[Identity],
    standing: Mapping[str, str],
) -> None:
    """Make this host a member, or what it is as one another. The bridge is there.

    Args:
        ip: netlink.
        places: the instance.
        wanted: the overlay.
        reached: pods that are reached through this host.
        standing: addresses of those that are here, and the pods' names.

    Raises:
        PodError: the kernel cannot do that; a pod here and another member's have one address.
    """
    bridge = int(ip.link_lookup(ifname=bridge_name(places))[0])
    device = _device(ip, places, wanted)
    _set_members(ip, device, wanted)
    own = overlay.gateways(wanted, reached)
    link = _link_local(wanted.own.mac)
    name = overlay.device_name(places)
    rules = overlay.host_rules(_table(places), name, wanted, own, link)
    nft(rules, "the overlay needs CONFIG_NF_TABLES_BRIDGE")
    if _master(ip, device) != bridge:
        try:
            _refuse_other_ways(ip, places, bridge)
            _refuse_doubles(name, wanted, standing)
        except PodError:
            leave(ip, places)
            raise
        ip.link("set", index=device, master=bridge)


def leave(ip: "IPRoute", places: Places) -> None:
    """Have this host be no member."""
    for device in ip.link_lookup(ifname=overlay.device_name(places)):
        ip.link("del", index=device)
        nft(overlay.no_host_rules(_table(places)))


def make_bridge(ip: "IPRoute", name: str, gateways: Iterable[str], wanted: Overlay | None) -> int:
    """Return the index of the bridge *name*, which has *gateways* from now on.

    Its MAC is set, else it is the least of its ports', and changes as pods come and go. It is the
    host's, so that two hosts' bridges may be joined.
    """
    mac = ":".join(f"{byte:02x}" for byte in (0x02, 0x50, *os.urandom(4)))
    if wanted is not None:
        gateways, mac = (*gateways, *wanted.gateways), wanted.own.mac
    if not ip.link_lookup(ifname=name):
        ip.link("add", ifname=name, kind="bridge", address=mac)
    index = int(ip.link_lookup(ifname=name)[0])
    if wanted is not None and ip.get_links(index)[0].get_attr("IFLA_ADDRESS") != mac:
        ip.link("set", index=index, address=mac)
        _tell_pods(ip, name, index, mac)
    for gateway in gateways:
        add_address(ip, "replace", index, gateway)
    ip.link("set", index=index, state="up")
    return index


def _tell_pods(ip: "IPRoute", name: str, index: int, mac: str) -> None:
    """Tell the pods on the bridge that it has another MAC."""
    with socket.socket(socket.AF_PACKET, socket.SOCK_RAW) as wire:
        for one in netlink.dump(lambda: ip.get_addr(index=index)):
            address = ipaddress.ip_address(one.get_attr("IFA_ADDRESS"))
            for frame in announce.frames(bytes.fromhex(mac.replace(":", "")), address):
                wire.sendto(frame, (name, 0))


def add_address(ip: "IPRoute", verb: str, index: int, text: str) -> None:
    """Give an interface the address *text*, with prefix length."""
    address, _, length = text.partition("/")
    flags = {"flags": _NODAD} if ":" in address else {}
    ip.addr(verb, index=index, address=address, prefixlen=int(length), **flags)


def set_paths(ip: "IPRoute", pod: Identity, wanted: Overlay | None) -> None:
    """In a pod's network namespace: have each connection go on by the member it came from.

    What is near goes its way at once, but for the gateway, which each member is. Ways that are
    there stay: connections use them.
    """
    paths = overlay.paths(wanted) if wanted is not None else []
    there = _rules(ip)
    if wanted is not None:
        ip.link("set", index=ip.link_lookup(ifname="eth0")[0], mtu=wanted.mtu)
        for path in paths:
            _add_path(ip, pod, path, there)
        for file in _MARKS:
            with suppress(FileNotFoundError), open(file, "w") as switch:  # a kernel without IPv6
                switch.write("1")
    for family, table in there - {(f, path.mark) for f in _FAMILIES for path in paths}:
        ip.rule("del", family=family, priority=overlay.PREFERENCE, table=table)
        ip.flush_routes(family=family, table=table)
    nft(overlay.pod_rules("autopod_paths", wanted), "the overlay needs CONFIG_NFT_CT")


def nft(text: str, hint: str = "") -> None:
    """Change the packet filter as *text* says, in one step; nft is run for it.

    Raises:
        PodError: it does not.
    """
    try:
        run = subprocess.run(
            ["nft", "-f", "-"], input=text, capture_output=True, text=True, check=False
        )
    except FileNotFoundError as e:
        raise PodError("the pods' network needs nft", "apt-get install nftables") from e
    if run.returncode:
        raise PodError(f"nft: {run.stderr.strip().partition(chr(10))[0]}", hint)


def _table(places: Places) -> str:
    return f"{ruleset.table_name(places.tag)}_overlay"


def _device(ip: "IPRoute", places: Places, wanted: Overlay) -> int:
    """Return the index of the device, which is up."""
    name = overlay.device_name(places)
    for index in ip.link_lookup(ifname=name):
        if _settings(ip.get_links(index)[0]) != (wanted.vni, wanted.port, wanted.own.address):
            ip.link("del", index=index)
    if not ip.link_lookup(ifname=name):
        local = "vxlan_local" if wanted.version == 4 else "vxlan_local6"
        try:
            ip.link(
                "add",
                ifname=name,
                kind="vxlan",
                vxlan_id=wanted.vni,
                vxlan_port=wanted.port,
                vxlan_learning=1,
                **{local: wanted.own.address},
            )
        except netlink.errors() as e:
            raise _explained(e.args[0], wanted) from e
    index = int(ip.link_lookup(ifname=name)[0])
    ip.link("set", index=index, mtu=wanted.mtu, state="up")
    return index


def _explained(code: int, wanted: Overlay) -> PodError:
    if code == errno.EOPNOTSUPP:
        return PodError("overlay: this kernel has no VXLAN", "CONFIG_VXLAN; modprobe vxlan")
    if code == errno.EEXIST:
        hint = "network.toml, [overlay] vni; ip -d link show type vxlan"
        return PodError(f"overlay: another device has vni {wanted.vni}", hint)
    return PodError(f"overlay: VXLAN device: {os.strerror(code)}")


def _settings(link: Any) -> tuple[int, int, str]:  # noqa: ANN401 (pyroute2 has no types)
    data = link.get_nested("IFLA_LINKINFO", "IFLA_INFO_DATA")
    local = data.get_attr("IFLA_VXLAN_LOCAL") or data.get_attr("IFLA_VXLAN_LOCAL6")
    port = data.get_attr("IFLA_VXLAN_PORT")
    return int(data.get_attr("IFLA_VXLAN_ID")), int(port), str(local)


def _set_members(ip: "IPRoute", device: int, wanted: Overlay) -> None:
    """Have what goes to everybody go to each member: bridge(8), `fdb append`."""
    entries = netlink.dump(lambda: ip.fdb("dump", ifindex=device))
    flooded = {
        e.get_attr("NDA_DST")
        for e in entries
        if e["ifindex"] == device and e.get_attr("NDA_LLADDR") == _EVERYBODY
    }
    members = {one.address for one in wanted.members}
    for address in members - flooded:
        ip.fdb("append", ifindex=device, lladdr=_EVERYBODY, dst=address)
    for address in flooded - members:
        ip.fdb("del", ifindex=device, lladdr=_EVERYBODY, dst=address)


def _refuse_other_ways(ip: "IPRoute", places: Places, bridge: int) -> None:
    """Refuse a bridge that is a part of a network already: frames could go round in a circle."""
    ours = f"ap{places.tag}v"
    for link in netlink.dump(ip.get_links):
        name = link.get_attr("IFLA_IFNAME")
        if link.get_attr("IFLA_MASTER") == bridge and not name.startswith(ours):
            hint = f"ip link set {name} nomaster, or take [overlay] out of network.toml"
            raise PodError(f"overlay: the pods' bridge has a port of its own, {name}", hint)


def _refuse_doubles(device: str, wanted: Overlay, standing: Mapping[str, str]) -> None:
    """Refuse to join with an address that somebody has there."""
    for address in whohas.ask(device, wanted.own.mac, standing, _PATIENCE_S):
        pod = standing[address]
        hint = f"give the pod another one, network.address, or remove one of them: {pod}"
        raise PodError(f"overlay: {address} of pod {pod!r} is another machine's there, too", hint)


def _master(ip: "IPRoute", index: int) -> int | None:
    found: int | None = ip.get_links(index)[0].get_attr("IFLA_MASTER")
    return found


def _link_local(mac: str) -> str:
    """Return the address that the kernel gives an interface: RFC 4291, appendix A."""
    b = [int(part, 16) for part in mac.split(":")]
    return f"fe80::{b[0] ^ 2:02x}{b[1]:02x}:{b[2]:02x}ff:fe{b[3]:02x}:{b[4]:02x}{b[5]:02x}"


def _rules(ip: "IPRoute") -> set[tuple[int, int]]:
    """Return family and routing table of the members' rules that are there."""
    return {
        (family, rule.get_attr("FRA_TABLE"))
        for family in _FAMILIES
        for rule in ip.get_rules(family=family)
        if rule.get_attr("FRA_PRIORITY") == overlay.PREFERENCE
    }


def _add_path(ip: "IPRoute", pod: Identity, path: Path, there: set[tuple[int, int]]) -> None:
    """Make the way to a member, whose rules may be *there*."""
    index = ip.link_lookup(ifname="eth0")[0]
    for address, gateway in pod.pairs:
        six = ":" in address
        family, hop = _FAMILIES[six], path.next_hop6 if six else path.next_hop
        own = {"family": family, "oif": index, "table": path.mark}
        ip.neigh(
            "replace", family=family, dst=hop, lladdr=path.mac, ifindex=index, state=_PERMANENT
        )
        for near in (_network(address), *(["fe80::/64"] if six else [])):
            ip.route("replace", dst=near, **own)
        far = ["::/0" if six else "0.0.0.0/0"]
        far += [f"{gateway.partition('/')[0]}/{128 if six else 32}"] if gateway else []
        for destination in far:
            ip.route("replace", dst=destination, gateway=hop, flags=_ONLINK, **own)
        if (family, path.mark) not in there:
            rule = {"family": family, "fwmark": path.mark, "table": path.mark}
            try:
                ip.rule("add", priority=overlay.PREFERENCE, **rule)
            except netlink.errors() as e:
                hint = "the overlay needs CONFIG_IP_MULTIPLE_TABLES"
                raise PodError(f"ip rule: {os.strerror(e.args[0])}", hint) from e


def _network(address: str) -> str:
    return str(ipaddress.ip_interface(address).network)
