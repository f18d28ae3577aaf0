"""Two pods with the same users and the same ports: neither sees anything of the other."""

import socket

import pytest

from .conftest import wait_until

pytestmark = pytest.mark.needs("root", "namespaces")

SERVES = """if True:
    import ctypes, os, socket, sys
    mark = sys.argv[1]
    os.setgid(1000), os.setuid(1000)
    open(f"/tmp/{mark}", "w"), open(f"/dev/shm/{mark}", "w")
    ctypes.CDLL(None).shmget(0x1234, 4096, 0o1666)
    abstract = socket.socket(socket.AF_UNIX)
    abstract.bind("\\0" + mark)
    abstract.listen()
    local = socket.create_server(("127.0.0.1", 4000))
    datagrams = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    datagrams.bind(("", 4000))
    print("up", flush=True)
    while True: print(datagrams.recv(100).decode(), flush=True)
"""
LOOKS = """if True:
    import os
    print([d for d in os.listdir("/proc") if d.isdecimal() and "other" in
           open(f"/proc/{d}/cmdline").read().split("\\0")])
    print(sorted(os.listdir("/tmp") + os.listdir("/dev/shm")))
    print(len(open("/proc/sysvipc/shm").readlines()) - 1)
    print([line.split()[-1] for line in open("/proc/net/unix") if "@" in line])
    print(sum(":0FA0 " in line for line in open("/proc/net/tcp")))
"""
PACKETS = 50


def received(pod, name):
    """How many packets have come in at eth0 of the pod."""
    table = pod.launch("exec", name, "/bin/cat", "/proc/net/dev").stdout
    line = next(line for line in table.splitlines() if "eth0:" in line)
    return int(line.split(":")[1].split()[1])


def test_two_pods_with_the_same_users_and_ports(pod, debian_root):
    pod.mount("b", debian_root)
    addresses = {"a": "10.98.7.10", "b": "10.98.7.11"}
    for name, mark in (("a", "mine"), ("b", "other")):
        pod.configure(name, f'[network]\naddress = "{addresses[name]}/24"')
        pod.launch("start", name, "/usr/bin/python3", "-c", SERVES, mark)
        wait_until(lambda name=name: pod.places.log(name).read_text() == "up\n")

    seen = pod.launch("exec", "a", "/usr/bin/python3", "-c", LOOKS).stdout.splitlines()

    assert seen == ["[]", "['mine', 'mine']", "1", "['@mine']", "1"]

    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sender:
        sender.sendto(b"first", (addresses["b"], 4000))
        wait_until(lambda: "first" in pod.places.log("b").read_text())
        before = received(pod, "a")
        for _ in range(PACKETS):
            sender.sendto(b"secret", (addresses["b"], 4000))
        wait_until(lambda: pod.places.log("b").read_text().count("secret") == PACKETS)
    assert received(pod, "a") - before < PACKETS / 2  # neighbours are looked for meanwhile
    assert "secret" not in pod.places.log("a").read_text()
