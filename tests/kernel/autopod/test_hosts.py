"""Hosts become known to each other, and only so can one ask another for anything."""

import json
import os
import socket
import ssl
import subprocess
import sys

import pytest

from autopod import hosts, joining, wire
from autopod.errors import Refused
from launcher.places import Places

pytestmark = pytest.mark.needs("root")


@pytest.fixture
def two(tmp_path):
    made = []
    for name in ("a", "b"):
        places = Places(tmp_path / name)
        hosts.init(places, name, f"{name}.example")
        made.append(places)
    return made


def introduce(one, other):
    """Let each know the other, without a connection."""
    for at, to in ((one, other), (other, one)):
        own = hosts.load_own(to)
        certificate = hosts.own_certificate(to).read_text()
        hosts.save(at, own.name, hosts.Host(own.address, certificate))


def answered(places, plain):
    """Let a process answer on *plain*, as the service does; return it."""
    return subprocess.Popen(
        [sys.executable, "-m", "autopod.answer"],
        stdin=plain.fileno(),
        stderr=subprocess.PIPE,
        env={**os.environ, "AUTOPOD_PREFIX": str(places.prefix)},
    )


def conversation(server, speak):
    """Let *speak* talk to a process of *server*; return what it says, and what the process says."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        near = socket.create_connection(listener.getsockname())
        far, _ = listener.accept()
    with far:
        process = answered(server, far)
    with process, near:
        result = speak(near)
        near.close()
        said = process.communicate(timeout=60)[1].decode()
    assert "Traceback" not in said
    return result, said


def client(places, near, *, certificate=True, trusted=None):
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    if certificate:
        keys = places.keys()
        context.load_cert_chain(keys / "certificate.pem", keys / "private.pem")
    return wire.Link(context.wrap_socket(near), "server", "")


def ask(link, message):
    link.send(message)
    return link.receive(wire.Gone, wire.Living, wire.Joined)


def test_init_keeps_what_there_is(two):
    a, _ = two
    before = {path: path.read_bytes() for path in a.keys().iterdir()}
    assert hosts.init(a, None, None) == hosts.Own("a", "a.example:7463")
    assert hosts.init(a, "a", "a.example") == hosts.Own("a", "a.example:7463")
    assert {path: path.read_bytes() for path in a.keys().iterdir()} == before
    with pytest.raises(Refused, match="this host is a at"):
        hosts.init(a, "other", None)


def test_an_empty_name_or_address_is_none(places):
    for name, address in (("", None), ("a", ""), ("A B", None), ("a", "a b")):
        with pytest.raises(Refused, match=r"cannot name a host|is not an address"):
            hosts.init(places, name, address)
    assert not hosts.has_name(places)


def test_an_invitation_holds_once(two):
    a, b = two
    secret = joining.invite(a)[64:]
    request = wire.Join(secret, "b", hosts.Host("b:1", hosts.own_certificate(b).read_text()))
    assert joining.answer(a, request).name == "a"
    assert set(hosts.known(a)) == {"b"}
    with pytest.raises(Refused, match="does not hold"):
        joining.answer(a, request)


def test_a_name_cannot_be_taken_over(two, tmp_path):
    a, b = two
    introduce(a, b)
    thief = Places(tmp_path / "thief")
    hosts.init(thief, "b", "thief.example")
    certificate = hosts.own_certificate(thief).read_text()
    with pytest.raises(Refused, match="another host 'b' is known"):
        hosts.save(a, "b", hosts.Host("thief.example:7463", certificate))
    with pytest.raises(Refused, match="own name"):
        hosts.save(a, "a", hosts.Host("thief.example:7463", certificate))


def test_a_removed_host_is_no_longer_trusted(two):
    a, b = two
    introduce(a, b)
    assert len(list(a.trust().iterdir())) == 2
    hosts.remove(a, "b")
    assert len(list(a.trust().iterdir())) == 1
    with pytest.raises(Refused, match="not known"):
        hosts.load(a, "b")


@pytest.mark.parametrize(
    "message", [wire.Ask("0" * 32), wire.Join("0" * 32, "x", hosts.Host("", ""))]
)
def test_nobody_gets_nothing(two, message):
    a, b = two

    def speak(near):
        with client(b, near, certificate=False) as link, pytest.raises(wire.PeerFailed):
            ask(link, message)

    conversation(a, speak)
    assert not list(a.states().glob(".arrivals/*"))


def test_an_unknown_certificate_ends_the_connection(two):
    a, b = two

    def speak(near):
        with pytest.raises((wire.LinkCut, ssl.SSLError)), client(b, near) as link:
            ask(link, wire.Ask("0" * 32))

    _, said = conversation(a, speak)
    assert "another certificate" in said


@pytest.mark.parametrize(
    "sent",
    [b"", b"\0", b"GET / HTTP/1.1\r\n\r\n", b"\x16\x03\x01\xff\xff" + b"x" * 70000],
)
def test_what_is_not_tls_ends_the_connection(two, sent):
    def speak(near):
        near.sendall(sent)
        near.shutdown(socket.SHUT_WR)

    _, said = conversation(two[0], speak)
    assert said.startswith("autopod: error: host ")


@pytest.mark.parametrize(
    "frame",
    [
        b"\0\0\0\0",
        b"\0\0\0\x01\xc1",
        b"\xff\xff\xff\xff",
        b"\0\0\0\x05\x81\xa4type",
        b"\0\0\0\x0b\x81\xa4type\xa4Gone",
        b"\0\0\0\x10" + b"\x91" * 16,
    ],
)
def test_what_is_no_message_is_refused(two, frame):
    a, b = two
    introduce(a, b)

    def speak(near):
        with client(b, near) as link:
            link._connection.sendall(frame)
            with pytest.raises(wire.PeerFailed, match="sent"):
                link.receive(wire.Gone)

    conversation(a, speak)


def test_a_known_host_is_answered(two):
    a, b = two
    introduce(a, b)

    def speak(near):
        with client(b, near) as link:
            return ask(link, wire.Ask("0" * 32))

    assert conversation(a, speak)[0] == wire.Gone()


def test_list(two):
    a, b = two
    introduce(a, b)
    run = subprocess.run(
        [sys.executable, "-m", "autopod.cli", "host", "list", "--json"],
        env={**os.environ, "AUTOPOD_PREFIX": str(a.prefix)},
        stdout=subprocess.PIPE,
        check=True,
    )
    assert [(row["host"], row["own"]) for row in json.loads(run.stdout)] == [
        ("a", True),
        ("b", False),
    ]


def test_a_host_is_not_another_one(tmp_path):
    places = Places(tmp_path)
    hosts.init(places, "a", "192.0.2.1")
    with pytest.raises(Refused, match="host 'a' is this one"):
        hosts.load(places, "a")
    with pytest.raises(Refused, match="host 'b' is not known here"):
        hosts.load(places, "b")
