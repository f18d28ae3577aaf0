"""Pods move between hosts on different networks: a router between them, clients elsewhere."""

import contextlib
import json
import socket
import struct

import pytest

from examples import hosts
from examples.exim.mail import wait_until
from launcher.identity import bridge_name
from launcher.overlay import device_name
from tests.kernel.autopod import lent
from tests.kernel.autopod.overlaid import (
    OVERLAY,
    TOML,
    connect,
    goes_on,
    inside,
    join_overlay,
    links,
    listed,
    netns,
    on_overlay,
    reach,
    refused,
    relays,
    serve,
)
from tests.kernel.autopod.test_migrate import migrate_with, settle
from tests.kernel.autopod.test_moving_connections import ENOUGH, migrate

pytestmark = [pytest.mark.needs("root", "fuse", "namespaces"), pytest.mark.long]


@pytest.fixture(scope="module")
def shared():
    with on_overlay("a", "b", "c") as (machines, client):
        yield [lent.Lent(machine) for machine in machines], client


@pytest.fixture
def three(shared):
    """Hosts a, b, c on an overlay, and a client that is on none: its network namespace.

    Another test had them before. Who ends a service makes hosts of its own.
    """
    all_lent, client = shared
    yield *(one.machine for one in all_lent), client
    for undo in (lent.Lent.clear, lent.Lent.restore, lent.Lent.check):
        for one in all_lent:
            undo(one)


@pytest.fixture
def two():
    """Hosts a and b, likewise, for this test only."""
    with on_overlay("a", "b") as (machines, client):
        yield *machines, client


@pytest.mark.parametrize(
    ("filtered", "strict"), [(1, 0), (0, 1)], ids=["br_netfilter", "rp_filter"]
)
def test_connections_go_on_by_the_way_they_came(three, debian_root, filtered, strict):
    """The former hosts' published ports, the overlay from a third host, the former host itself.

    With either: bridged packets go through the packet filter; packets whose source is looked for at
    another interface are dropped.
    """
    a, b, c, client = three
    for machine in (a, b, c):
        machine.run("sysctl", "-qw", f"net.bridge.bridge-nf-call-iptables={filtered}")
        machine.run("sysctl", "-qw", f"net.bridge.bridge-nf-call-ip6tables={filtered}")
        for which in ("all", "default", bridge_name(machine.places)):
            machine.run("sysctl", "-qw", f"net.ipv4.conf.{which}.rp_filter={strict}")
    serve(a, debian_root)
    with contextlib.ExitStack() as undo:
        clients = {
            "published": connect(client, a.address, 8080),
            "overlay": connect(netns(c), "10.98.7.10", 4000),
            "overlay, IPv6": connect(netns(c), "fd98::10", 4000),
            "the host": connect(netns(a), "10.98.7.10", 4000),
        }
        for each in clients.values():
            undo.enter_context(each)
        for number, (source, target) in enumerate([(a, b), (b, c), (c, a), (a, b)]):
            for each in clients.values():
                each.run_until(ENOUGH)
            said = migrate(source, target, clients.values())
            print(said, {n: f"{each.longest_gap * 1e3:.0f} ms" for n, each in clients.items()})
            for name, each in clients.items():
                print("move", number, name)
                each.run_until(ENOUGH)
            for host in (a, b, c)[: number + 2]:
                new = connect(client, host.address, 8080, 1)
                clients[f"published by {host.name} after {number}"] = undo.enter_context(new)
        for each in clients.values():
            each.finish()
    assert relays(a) == {
        "pod": {
            "pod": "pod",
            "host": "b",
            "addresses": ["10.98.7.10", "fd98::10"],
            "ports": ["8080/tcp"],
        }
    }
    assert relays(b) == {}
    a.run("autopod", "relay", "end", "pod")
    assert relays(a) == {}
    with pytest.raises(OSError, match="refused"):
        reach(client, a.address)
    goes_on(client, c.address)
    said = a.run("autopod", "relay", "end", "pod", expect=1)
    assert "autopod: error: pod 'pod' is not reached through this host\n" in said


OUTBOUND = """\
import socket, sys, threading
def echo(s):
    while data := s.recv(99):
        s.sendall(data)
def datagrams():
    while True:
        data, sender = u.recvfrom(99)
        if data == b"call":
            threading.Thread(target=echo, args=(socket.create_connection(server),)).start()
        u.sendto(data, sender)
server = ("10.7.0.1", 5000)
u = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
u.bind(("", 4001))
threading.Thread(target=datagrams).start()
echo(socket.create_connection(server))
"""


def exchange(s, text):
    s.settimeout(20)
    s.sendall(text)
    assert s.recv(99) == text


def test_what_a_pod_has_begun_goes_on_by_its_former_host(three, debian_root):
    """Its connections outwards; datagrams that come by the former host are answered by it."""
    a, b, c, client = three
    a.configure("pod", '[network]\nnat = true\npublish = ["53:4001/udp"]\n')
    a.run("autopod", "add", "pod", "--base", debian_root)
    (a.root("pod") / "var/tmp/out.py").write_text(OUTBOUND)
    with contextlib.ExitStack() as undo:
        with inside(client):
            server = undo.enter_context(socket.create_server(("", 5000)))
            asking = undo.enter_context(socket.socket(socket.AF_INET, socket.SOCK_DGRAM))
            asking.connect((a.address, 53))
        server.settimeout(20)
        a.run("autopod", "addproc", "pod", "/usr/bin/python3", "/var/tmp/out.py")
        calls = [undo.enter_context(server.accept()[0])]
        assert calls[0].getpeername()[0] == a.address
        for source, target in [(a, b), (b, c), (c, a)]:
            for call in calls:
                exchange(call, b"before")
            exchange(asking, b"datagram")
            source.run("autopod", "migrate", "pod", target.name)
            for call in calls:
                exchange(call, b"after")
            exchange(asking, b"call")
            calls.append(undo.enter_context(server.accept()[0]))
            assert calls[-1].getpeername()[0] == target.address, "what is new goes by the new host"


def test_connections_that_are_older_than_the_overlay(debian_root):
    """They were made with larger segments than pass now, and without a mark."""
    with hosts.routed("a", "b") as ((a, b), client):
        serve(a, debian_root)
        clients = [
            connect(client, a.address, 8080),
            connect(netns(a), "10.98.7.10", 4000),
        ]
        with clients[0], clients[1]:
            for each in clients:
                each.run_until(ENOUGH)
            for machine in (a, b):
                join_overlay(machine)
            for source, target in [(a, b), (b, a), (a, b)]:
                for each in clients:
                    each.run_until(ENOUGH)
                migrate(source, target, clients)
            for each in clients:
                each.run_until(ENOUGH)
                each.finish()


def test_a_pod_finds_the_others_wherever_they_are(three, debian_root):
    """Pods of several hosts speak to each other; each has its gateway at hand."""
    a, b, _, _ = three
    serve(a, debian_root, "", "one")
    serve(b, debian_root, "", "two")
    own = {row["pod"]: row["address"] for m in (a, b) for row in listed(m)}
    assert own["one"] != own["two"]
    ask = "import socket, sys; socket.create_connection((sys.argv[1], 4000)).recv(9)"
    knock = "import socket, sys; socket.socket().connect_ex((sys.argv[1], 4000))"
    address = own["two"].partition("/")[0]
    a.run("launcher", "exec", "one", "/usr/bin/python3", "-c", ask, address)
    a.run("autopod", "migrate", "one", "b")
    b.run("launcher", "exec", "one", "/usr/bin/python3", "-c", ask, address)
    b.run("autopod", "migrate", "two", "a")
    b.run("launcher", "exec", "one", "/usr/bin/python3", "-c", ask, address)
    b.run("launcher", "exec", "one", "/usr/bin/python3", "-c", knock, "10.98.0.1")
    gateway = b.run("nsenter", f"--net={b.places.run('one') / 'net'}", "ip", "neigh", "show")
    mac = {r["host"]: r["mac"] for r in json.loads(b.run("autopod", "overlay", "list", "--json"))}
    assert f"10.98.0.1 dev eth0 lladdr {mac['b']} " in gateway


def test_pods_of_one_name_have_addresses_of_their_own(three, debian_root):
    a, b, *_ = three
    for machine in (a, b):
        machine.run("autopod", "add", "pod", "--base", debian_root)
    own = [listed(machine)[0]["address"] for machine in (a, b)]
    assert own[0] != own[1]
    for machine in (a, b):
        machine.run("autopod", "addproc", "pod", "/bin/sleep", "1000")
    assert "a pod 'pod' runs here" in refused(a, "autopod", "migrate", "pod", "b")


def test_a_former_host_that_boots_anew_is_a_relay_again(two, debian_root):
    a, _, client = two
    serve(a, debian_root)
    a.run("autopod", "migrate", "pod", "b")
    goes_on(client, a.address)
    a.stop_service()
    for link in links(a):
        a.run("ip", "link", "del", link)
    a.run("nft", "flush", "ruleset")
    a.run("sysctl", "-qw", "net.ipv4.ip_forward=0")
    with pytest.raises(OSError, match="refused"):
        reach(client, a.address)
    a.serve()
    wait_until(lambda: not links(a) ^ {bridge_name(a.places), device_name(a.places)}, "it is made")
    wait_until(lambda: "dnat" in a.run("nft", "list", "ruleset"), "the port is published")
    goes_on(client, a.address)


def test_who_does_not_get_the_pod_back_is_a_relay_still(two, debian_root):
    a, b, client = two
    serve(a, debian_root)
    a.run("autopod", "migrate", "pod", "b")
    said = migrate_with(b, a, "target", "kill:before:send.Prepared")
    assert settle((a, b)) == [b], said
    goes_on(client, a.address)
    goes_on(client, b.address)
    assert relays(a)["pod"]["host"] == "b"


def test_without_the_overlay_nothing_of_it_is_left(three):
    a, *_ = three
    assert links(a)
    a.places.network_config().write_text("")
    a.run("autopod", "overlay", "sync")
    assert not links(a)
    assert a.run("nft", "list", "ruleset") == ""
    hint = f"write [overlay] into {a.places.network_config()}; then autopod overlay sync"
    assert a.run("autopod", "overlay", "list", expect=1) == (
        f"autopod: error: this host is in no overlay\nautopod: hint: {hint}\n"
    )
    said = f"no overlay is wanted: {a.places.network_config()} has no [overlay]\n"
    assert a.run("autopod", "overlay", "sync") == said
    join_overlay(a)
    before = a.run("nft", "list", "ruleset")
    a.run("autopod", "overlay", "sync")
    assert a.run("nft", "list", "ruleset") == before


def test_a_relay_is_ended_before_the_overlay(three, debian_root):
    a, *_ = three
    serve(a, debian_root)
    a.run("autopod", "migrate", "pod", "b")
    assert refused(a, "autopod", "add", "pod", "--base", debian_root) == (
        "autopod: error: pod 'pod' is at host b, reached through this one\n"
        "autopod: hint: autopod relay end pod; or give the new one another name\n"
    )
    assert relays(a)["pod"]["host"] == "b"
    a.places.network_config().write_text("")
    assert a.run("autopod", "overlay", "sync", expect=1) == (
        "autopod: error: pod 'pod' at host b is reached through this host\n"
        "autopod: hint: end that first: autopod relay end pod\n"
    )
    a.run("autopod", "relay", "end", "pod")
    a.run("autopod", "overlay", "sync")
    assert not links(a)


def test_what_does_not_come_from_a_member_is_dropped(three):
    a, _, c, client = three
    for where, mac in ((client, b"\x02\x66\0\0\0\1"), (netns(c), b"\x02\x66\0\0\0\2")):
        frame = b"\xff" * 6 + mac + b"\x88\xb5" + bytes(46)
        packet = struct.pack("!II", 1 << 27, 7463 << 8) + frame
        with inside(where), socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as s:
            s.sendto(packet, (a.address, 7463))
    wait_until(lambda: "02:66:00:00:00:02" in a.run("bridge", "fdb"), "the member's frame is there")
    assert "02:66:00:00:00:01" not in a.run("bridge", "fdb")


def test_a_host_that_is_forgotten_is_no_member(three):
    a, b, c, _ = three
    assert c.address in a.run("bridge", "fdb")
    a.run("autopod", "host", "rm", "c")
    rows = json.loads(a.run("autopod", "overlay", "list", "--json"))
    assert [(row["host"], row["address"]) for row in rows] == [("a", a.address), ("b", b.address)]
    assert f"{c.address} self permanent" not in a.run("bridge", "fdb")
    assert c.address not in a.run("nft", "list", "ruleset")


# --- what cannot be --------------------------------------------------------------------------


def test_a_pod_that_does_not_answer_over_the_overlay_stays(three, debian_root):
    """As when a firewall drops it."""
    a, b, _, client = three
    serve(a, debian_root)
    chain = "chain i { type filter hook input priority -300; udp dport 7463 drop; }"
    b.run("nft", f"table inet x {{ {chain}\n }}")
    said = refused(a, "autopod", "migrate", "pod", "b")
    assert "host b: pod 'pod' does not answer over the overlay at 10.98.7.10\n" in said
    assert "UDP port 7463 must pass" in said
    b.run("nft", "delete table inet x")
    a.run("autopod", "migrate", "pod", "b")
    goes_on(client, a.address)


def test_both_hosts_are_on_the_overlay_or_connections_end(three, debian_root):
    a, b, *_ = three
    serve(a, debian_root)
    b.places.network_config().write_text("[overlay]\nport = 4789\n")
    b.run("autopod", "overlay", "sync")
    said = refused(a, "autopod", "migrate", "pod", "b", "--dry-run")
    assert "does not answer" in said
    assert "port and vni, in network.toml, are the same on all hosts" in said
    b.places.network_config().write_text("")
    b.run("autopod", "overlay", "sync")
    said = refused(a, "autopod", "migrate", "pod", "b", "--dry-run")
    assert "the pod's host is on an overlay, and this one is not" in said
    a.configure("pod", f'{TOML}tcp = "close"\n')
    a.run("autopod", "migrate", "pod", "b", "--dry-run")


def test_an_address_is_one_pods(three, debian_root):
    a, b, c, _ = three
    serve(a, debian_root)
    b.configure("other", '[network]\naddress = "10.98.7.10/16"\n')
    said = refused(b, "autopod", "add", "other", "--base", debian_root)
    assert "address 10.98.7.10 is taken on the overlay" in said
    # It was there before the overlay was: who has it does not get in.
    c.places.network_config().write_text("")
    c.run("autopod", "overlay", "sync")
    c.configure("other", '[network]\naddress = "10.98.7.10/16"\n')
    c.run("autopod", "add", "other", "--base", debian_root)
    c.places.network_config().write_text(OVERLAY)
    said = refused(c, "autopod", "overlay", "sync")
    assert "overlay: 10.98.7.10 of pod 'other' is another machine's there, too" in said
    assert device_name(c.places) not in links(c)


def test_pools_that_overlap_are_refused(three, debian_root):
    a, b, *_ = three
    serve(a, debian_root)
    b.places.network_config().write_text('pool = "10.98.0.0/20"\n[overlay]\n')
    b.run("autopod", "overlay", "sync")
    said = refused(a, "autopod", "migrate", "pod", "b")
    assert "the pod's network 10.98.0.0/16 overlaps this host's pool 10.98.0.0/20" in said


@pytest.fixture(scope="module")
def alone():
    """Host a, which is on no overlay, and gets on none."""
    with hosts.routed("a") as ((a,), _):
        yield a


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('address = "192.0.2.77"', "overlay: 192.0.2.77 is not an address of this host"),
        ('address = "127.0.0.1"', "overlay: no other host reaches this one by 127.0.0.1"),
        ('address = "x"', "overlay.address = 'x': 'x' does not appear to be an IPv4 or IPv6"),
        ("mtu = 1500", "overlay: 10.7.1.1 carries packets of 1500 bytes, not 1500"),
        ("mtu = 9", "overlay.mtu = 9: must be 1280 to 65535"),
        ("vni = 0", "overlay.vni = 0: must be 1 to 16777215"),
    ],
)
def test_wrong_configuration(alone, text, message):
    alone.places.network_config().write_text(f"[overlay]\n{text}\n")
    assert message in alone.run("autopod", "overlay", "sync", expect=1)
    assert not links(alone)


def test_a_host_name_that_is_loopback_s_is_no_address():
    """As Debian's /etc/hosts has it: `autopod host init` without --address."""
    with hosts.routed("a") as ((a,), _):
        file = a.prefix / "etc/autopod/host.toml"
        file.write_text(file.read_text().replace(a.address, "localhost"))
        a.places.network_config().write_text("[overlay]\n")
        said = refused(a, "autopod", "overlay", "sync")
        assert "overlay: no other host reaches this one by " in said
        assert f"hint: {a.places.network_config()}, [overlay] address" in said
        assert not links(a)


def test_a_bridge_that_is_joined_in_another_way_is_refused(debian_root):
    """Frames would go round in a circle."""
    with hosts.routed("a", "b") as ((a, b), _), hosts.switch((a, b), "10.98.7.2/16"):
        a.places.network_config().write_text(OVERLAY)
        said = refused(a, "autopod", "overlay", "sync")
        assert "overlay: the pods' bridge has a port of its own, uplink" in said
        assert device_name(a.places) not in links(a)


def test_a_member_whose_address_is_not_known_is_left_out(three):
    a, b, *_ = three
    file = a.prefix / "etc/autopod/hosts/b.toml"
    file.write_text(file.read_text().replace(b.address, "nowhere.invalid"))
    said = a.run("autopod", "overlay", "sync", expect=1)
    assert "autopod: error: overlay: host b: nowhere.invalid:7463: " in said
    rows = {r["host"]: r for r in json.loads(a.run("autopod", "overlay", "list", "--json"))}
    assert rows["b"]["address"] is None
    assert rows["c"]["problem"] is None
