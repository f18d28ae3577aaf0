"""The pod's network: addresses, how it is reached, what it reaches; what a crash leaves of it."""

import os
import shutil
import socket
import subprocess
import sys
from contextlib import ExitStack

import pytest

from launcher import addresses, hosts, network, pods
from launcher.errors import PodError

from .conftest import FORWARDING, ip, shown, wait_until

pytestmark = [pytest.mark.needs("root", "namespaces"), pytest.mark.usefixtures("no_forwarding")]

WHO = """if True:
    import socket, sys
    family = socket.AF_INET6 if sys.argv[1] == "6" else socket.AF_INET
    s = socket.create_server(("", int(sys.argv[2])), family=family)
    print("up", flush=True)
    while True:
        c, peer = s.accept()
        c.sendall(peer[0].encode())
        c.close()
"""
ASK = """if True:
    import socket, sys
    print(socket.create_connection(sys.argv[1:3], int(sys.argv[3])).recv(99).decode())
"""


@pytest.fixture
def outside():
    """A machine beyond the host, 203.0.113.2, that has no route to pods; as a descriptor."""
    with ExitStack() as undo:
        holder = subprocess.Popen(["unshare", "--net", "sleep", "1000"])
        undo.callback(holder.wait)
        undo.callback(holder.kill)
        ours = os.stat("/proc/self/ns/net").st_ino
        theirs = f"/proc/{holder.pid}/ns/net"
        wait_until(lambda: os.stat(theirs).st_ino != ours)
        peer = ("peer", "name", "eth0", "netns", str(holder.pid))
        ip("link", "add", "uplink", "type", "veth", *peer)
        undo.callback(ip, "link", "del", "uplink")
        ip("addr", "add", "203.0.113.1/24", "dev", "uplink")
        ip("link", "set", "uplink", "up")
        inside = ("nsenter", f"--net={theirs}", "ip")
        for words in ("addr add 203.0.113.2/24 dev eth0", "link set eth0 up", "link set lo up"):
            subprocess.run([*inside, *words.split()], check=True)
        yield theirs


def serve(pod, name, port=4000, version=4):
    pod.launch("start", name, "/usr/bin/python3", "-c", WHO, str(version), str(port))
    wait_until(lambda: pod.places.log(name).read_text().endswith("up\n"))


def ask(pod, name, address, port=4000, seconds=60, **more):
    argv = ("/usr/bin/python3", "-c", ASK, address, str(port), str(seconds))
    return pod.launch("exec", name, *argv, **more).stdout.strip()


def ask_from(namespace, address, port):
    argv = ["nsenter", f"--net={namespace}", sys.executable, "-c", ASK, address, str(port), "60"]
    return subprocess.run(argv, capture_output=True, text=True, check=True).stdout.strip()


def two(pod, debian_root, a, b):
    pod.mount("b", debian_root)
    for name, text in (("a", a), ("b", b)):
        pod.configure(name, f"[network]\n{text}")


def test_ipv6_at_once(pod, debian_root):
    two(pod, debian_root, 'address6 = "fd98::a/64"', 'address6 = "fd98::b/64"')
    serve(pod, "b", version=6)
    pod.launch("start", "a", "/bin/sleep", "1000")

    assert ask(pod, "a", "fd98::b") == "fd98::a"
    assert "default via fd98::1 dev eth0" in shown(pod, "a", "-6", "route")


def test_addresses_come_from_the_hosts_pools(pod, debian_root):
    pod.places.network_config().parent.mkdir(parents=True)
    pod.places.network_config().write_text('pool = "192.0.2.0/29"\npool6 = "fd98:1::/64"\n')
    pod.mount("b", debian_root)
    for name in ("a", "b"):
        pod.create(name)

    found = [addresses.identity_of(pod.places, name) for name in ("a", "b")]

    assert found[0].address != found[1].address
    for name, identity in zip(("a", "b"), found, strict=True):
        assert identity.address.startswith("192.0.2.")
        assert identity.address6.startswith("fd98:1:")
        text = shown(pod, name, "-o", "addr")
        assert f" {identity.address} " in text
        assert f" {identity.address6} " in text
        assert identity.mac in shown(pod, name, "link")
    pod.configure("a", '[network]\naddress = "10.98.0.9/16"')
    pods.destroy(pod.places, "a")
    with pytest.raises(PodError, match=r"is outside of this host's pool 192\.0\.2\.0/29"):
        pod.create("a")


def test_macvlan(pod):
    ip("link", "add", "lan0", "type", "veth", "peer", "name", "lan1")
    try:
        for name in ("lan0", "lan1"):
            ip("link", "set", name, "up")
        ip("addr", "add", "192.0.2.1/24", "dev", "lan1")
        pod.configure(
            "a",
            '[network]\nmode = "macvlan"\nparent = "lan0"\naddress = "192.0.2.9/24"\n'
            'gateway = "192.0.2.1"',
        )
        serve(pod, "a")
        with socket.create_connection(("192.0.2.9", 4000), timeout=60) as connection:
            assert connection.recv(99) == b"192.0.2.1"
        assert "default via 192.0.2.1 dev eth0" in shown(pod, "a", "route")
        assert addresses.identity_of(pod.places, "a").mac in shown(pod, "a", "link")
        pods.destroy(pod.places, "a")
        network.remove_network(pod.places, "a")
    finally:
        ip("link", "del", "lan0")


def test_macvlan_without_its_interface(pod):
    pod.configure("a", '[network]\nmode = "macvlan"\nparent = "lan7"\naddress = "192.0.2.9/24"')

    failed = pod.launch("start", "a", "/bin/true", expect=1)

    assert failed.stderr == (
        "launcher: error: network of pod 'a': network.parent: there is no interface 'lan7'\n"
        "launcher: hint: ip link\n"
    )
    assert addresses.read(pod.places) == addresses.Book()


def test_nat_is_for_those_that_have_it(pod, debian_root, outside):
    two(pod, debian_root, "nat = true", "")
    server = subprocess.Popen(
        ["nsenter", f"--net={outside}", sys.executable, "-c", WHO, "4", "4000"],
        stdout=subprocess.PIPE,
    )
    with server:
        server.stdout.readline()
        for name in ("a", "b"):
            pod.launch("start", name, "/bin/sleep", "1000")
        assert ask(pod, "a", "203.0.113.2") == "203.0.113.1"
        assert ask(pod, "b", "203.0.113.2", seconds=1, expect=1) == ""
        server.kill()


def test_published_port(pod, debian_root, outside):
    two(pod, debian_root, 'publish = ["8080:4000", "203.0.113.1:9090:4000"]', "")
    serve(pod, "a")
    pod.launch("start", "b", "/bin/sleep", "1000")
    own, other = (addresses.identity_of(pod.places, n).address.split("/")[0] for n in ("a", "b"))

    assert ask_from(outside, "203.0.113.1", 8080) == "203.0.113.2"
    assert ask_from(outside, "203.0.113.1", 9090) == "203.0.113.2"
    with socket.create_connection(("203.0.113.1", 8080), timeout=60) as connection:
        assert connection.recv(99)
    assert ask(pod, "b", "203.0.113.1", 8080) not in (own, other, ""), "by way of the host"
    with pytest.raises(OSError, match="refused"):
        socket.create_connection(("127.0.0.1", 8080), timeout=60)


def test_the_host_forwards_as_long_as_a_pod_needs_it(pod):
    pod.configure("a", "[network]\nnat = true")
    pod.create("a")
    assert FORWARDING.read_text() == "1\n"
    pods.destroy(pod.places, "a")
    network.remove_network(pod.places, "a")

    assert FORWARDING.read_text() == "0\n"
    assert subprocess.check_output(["nft", "list", "ruleset"], text=True) == ""


def test_who_forwards_anyway_goes_on(pod):
    FORWARDING.write_text("1")
    pod.configure("a", "[network]\nnat = true")
    pod.create("a")
    pods.destroy(pod.places, "a")
    network.remove_network(pod.places, "a")

    assert FORWARDING.read_text() == "1\n"
    FORWARDING.write_text("0")


def test_a_port_in_use_is_refused(pod):
    with socket.create_server(("", 0)) as server:
        port = server.getsockname()[1]
        pod.configure("a", f'[network]\npublish = ["{port}:80"]')
        with pytest.raises(PodError, match=f"port {port}/tcp of the host: Address already in use"):
            pod.create("a")
    assert addresses.read(pod.places) == addresses.Book()


def test_names_of_other_pods(pod, debian_root):
    two(pod, debian_root, "", "")
    root = pod.places.root("a")
    (root / "etc/hosts").write_text("127.0.0.1 localhost\n192.0.2.5 elsewhere\n")
    pod.create("a")
    names = "/usr/bin/getent"

    def known(name, inside="a", expect=0):
        return pod.launch("exec", inside, names, "ahostsv4", name, expect=expect).stdout.split()[:1]

    def address(name):
        return [addresses.identity_of(pod.places, name).address.split("/")[0]]

    assert known("a") == address("a")
    assert known("elsewhere") == ["192.0.2.5"]
    pod.launch("exec", "a", names, "hosts", "b", expect=2)
    pod.create("b")
    assert known("b") == address("b")
    assert known("a", inside="b") == address("a")
    assert pod.launch("exec", "b", names, "hosts", "elsewhere", expect=2)
    pods.destroy(pod.places, "b")
    network.remove_network(pod.places, "b")
    pod.launch("exec", "a", names, "hosts", "b", expect=2)
    denied = pod.launch("exec", "a", "/bin/sh", "-c", "echo > /etc/hosts", expect=2)
    assert "Read-only file system" in denied.stderr


@pytest.mark.parametrize("kind", ["symlink", "directory", "fifo", "no etc"])
def test_another_kind_of_hosts_file_is_left_alone(pod, kind):
    root = pod.places.root("a")
    if kind == "no etc":
        shutil.rmtree(root / "etc")
    else:
        (root / "etc/hosts").unlink(missing_ok=True)
        file = root / "etc/hosts"
        {
            "symlink": lambda: file.symlink_to("/etc/passwd"),
            "directory": file.mkdir,
            "fifo": lambda: os.mkfifo(file),
        }[kind]()

    pod.create("a")

    mounts = pod.launch("exec", "a", "/bin/cat", "/proc/self/mountinfo").stdout
    assert "/etc/hosts" not in mounts


def test_a_reader_never_sees_half_a_line(tmp_path):
    file = tmp_path / "hosts"
    texts = [b"1.1.1.1 a\n" * 300, b"2.2.2.2 bb\n"]
    file.write_bytes(texts[0])
    seen = set()
    with open(file, "rb", buffering=0) as reader:
        for number in range(50):
            hosts._overwrite(file, texts[(number + 1) % 2])
            reader.seek(0)
            seen.add(reader.read(1 << 16))

    assert seen == set(texts)
