"""Unix sockets through collector and workshop; and a filter that no socket may have."""

import ctypes
import os
import socket
import struct

import pytest

from ckpt.kinds import sockdiag
from tests.kernel.ckpt.roundtrip import put, refusals, roundtrip, take

pytestmark = pytest.mark.needs("root")


def peer_user(s):
    return struct.unpack("iII", s.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12))[1:]


@pytest.mark.parametrize("kind", [socket.SOCK_STREAM, socket.SOCK_SEQPACKET, socket.SOCK_DGRAM])
def test_socket_pair_with_messages_both_ways(kind):
    def setup():
        a, b = socket.socketpair(socket.AF_UNIX, kind)
        a.setblocking(False)
        a.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 30_000)
        for message in (b"one", b"two" * 5000):
            a.send(message)
        b.send(b"back")
        put(a, 10)
        put(b, 11)

    def check(_):
        a, b = take(10), take(11)
        assert not os.get_blocking(10)
        assert a.getsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF) == 60_000
        assert b.getsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF) != 60_000
        if kind == socket.SOCK_STREAM:
            assert b.recv(20_000) == b"one" + b"two" * 5000
        else:
            assert b.recv(20_000) == b"one"
            assert b.recv(20_000) == b"two" * 5000
        assert a.recv(100) == b"back"
        with pytest.raises(BlockingIOError):
            a.recv(1)
        b.send(b"alive")
        assert a.recv(100) == b"alive"

    roundtrip(setup, check)


def test_half_closed_pair():
    def setup():
        a, b = socket.socketpair()
        a.send(b"last words")
        a.shutdown(socket.SHUT_WR)
        put(a, 10)
        put(b, 11)

    def check(_):
        a, b = take(10), take(11)
        assert b.recv(100) == b"last words"
        assert b.recv(100) == b""
        b.send(b"answer")
        assert a.recv(100) == b"answer"
        with pytest.raises(BrokenPipeError):
            a.send(b"x")

    roundtrip(setup, check)


def test_end_whose_other_is_closed():
    def setup():
        a, b = socket.socketpair()
        a.send(b"testament")
        a.close()
        put(b, 11)

    def check(_):
        b = take(11)
        assert b.recv(100) == b"testament"
        assert b.recv(100) == b""

    roundtrip(setup, check)


@pytest.mark.parametrize("abstract", [True, False])
def test_listener_with_accepted_and_waiting_clients(tmp_path, abstract):
    path = b"\0name" if abstract else os.fsencode(tmp_path / "socket")

    def setup():
        listener = socket.socket(socket.AF_UNIX)
        listener.bind(path)
        if not abstract:
            os.chmod(path, 0o712)
            os.chown(path, 33, 34)
        listener.listen(7)
        client = socket.socket(socket.AF_UNIX)
        os.setresuid(-1, 1000, 0)
        os.setresuid(-1, 0, 0)
        client.connect(path)
        server, _ = listener.accept()
        client.send(b"request")
        waiting = socket.socket(socket.AF_UNIX)
        waiting.connect(path)
        put(listener, 10)
        put(client, 11)
        put(server, 12)
        put(waiting, 13)

    def check(_):
        listener, client, server, waiting = map(take, range(10, 14))
        name = path if abstract else os.fsdecode(path)
        assert listener.getsockname() == server.getsockname() == client.getpeername() == name
        assert client.getsockname() == ""
        assert server.recv(100) == b"request"
        accepted, _ = listener.accept()
        waiting.send(b"patient")
        assert accepted.recv(100) == b"patient"
        if not abstract:
            stat = os.stat(path)
            assert (stat.st_mode & 0o777, stat.st_uid, stat.st_gid) == (0o712, 33, 34)
        info = sockdiag.unix_sockets(os.getpid())[os.fstat(10).st_ino]
        assert info.backlog == 7
        new = socket.socket(socket.AF_UNIX)
        new.connect(path)
        listener.accept()[0].send(b"hello")
        assert new.recv(100) == b"hello"

    roundtrip(setup, check, network=True)


def test_peer_credentials():
    def setup():
        listener = socket.socket(socket.AF_UNIX)
        listener.bind(b"\0credentials")
        os.setresgid(-1, 101, -1)
        os.setresuid(-1, 100, -1)
        listener.listen()
        os.setresuid(-1, 0, -1)
        os.setresgid(-1, 201, -1)
        os.setresuid(-1, 200, -1)
        client = socket.socket(socket.AF_UNIX)
        client.connect(b"\0credentials")
        os.setresuid(-1, 0, -1)
        os.setresgid(-1, 0, -1)
        server, _ = listener.accept()
        listener.close()
        put(client, 11)
        put(server, 12)

    def check(_):
        assert peer_user(take(11)) == (100, 101)
        assert peer_user(take(12)) == (200, 201)

    roundtrip(setup, check, network=True)


def test_relative_and_removed_names(tmp_path):
    def setup():
        os.chdir(tmp_path)
        old = socket.socket(socket.AF_UNIX)
        old.bind("socket")
        old.listen()
        os.unlink("socket")
        new = socket.socket(socket.AF_UNIX)
        new.bind("socket")
        new.listen()
        put(new, 10)
        put(old, 11)

    def check(_):
        new, old = take(10), take(11)
        assert new.getsockname() == old.getsockname() == "socket"
        client = socket.socket(socket.AF_UNIX)
        client.connect(str(tmp_path / "socket"))
        new.setblocking(False)
        new.accept()
        assert os.listdir(tmp_path) == ["socket"]

    roundtrip(setup, check, network=True)


def test_datagrams_to_a_name(tmp_path):
    path = str(tmp_path / "log")

    def setup():
        server = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        server.bind(path)
        named = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        named.bind("\0sender")
        named.connect(path)
        named.send(b"first")
        client = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        client.connect(path)
        client.send(b"")
        client.send(b"third")
        put(server, 10)
        put(client, 11)
        put(named, 12)

    def check(_):
        server, client = take(10), take(11)
        assert server.recvfrom(100) == (b"first", b"\0sender")
        assert server.recvfrom(100) == (b"", None)
        assert server.recvfrom(100) == (b"third", None)
        client.send(b"fourth")
        assert server.recv(100) == b"fourth"
        assert client.getpeername() == path

    roundtrip(setup, check, network=True)


def test_what_cannot_be_carried_over_is_refused():
    def setup():
        a, b = socket.socketpair()
        pidfd = os.pidfd_open(os.getpid())
        socket.send_fds(a, [b"x"], [pidfd])
        os.close(pidfd)
        put(a, 10)
        put(b, 11)

    (refusal,) = refusals(setup, look=False)
    assert refusal.what == "file in a message at descriptor 11, anon_inode:[pidfd]"
    assert refusal.why == "only the process that receives it can open it"


def test_a_bpf_program_at_a_socket_is_refused():
    def setup():
        program = struct.pack("=BBhiBBhi", 0xB7, 0, 0, 0, 0x95, 0, 0, 0)  # r0 = 0; exit
        code, license_ = ctypes.create_string_buffer(program), ctypes.create_string_buffer(b"GPL")
        fields = (1, 2, ctypes.addressof(code), ctypes.addressof(license_))
        attributes = struct.pack("=IIQQ", *fields) + bytes(96)
        fd = ctypes.CDLL(None).syscall(321, 5, attributes, len(attributes))  # BPF_PROG_LOAD
        s = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        s.setsockopt(socket.SOL_SOCKET, 50, fd)  # SO_ATTACH_BPF
        os.close(fd)
        put(s, 10)

    (refusal,) = refusals(setup)
    assert refusal.what.startswith("descriptor 10 (socket:[")
    assert refusal.why == "a BPF program filters it that cannot be read"
