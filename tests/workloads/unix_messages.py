"""Messages with descriptors and credentials that wait in unix sockets."""

import array
import os
import signal
import socket
import struct
import sys

signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGUSR1})
sys.excepthook = lambda _, e, trace: print(f"fail: line {trace.tb_lineno}: {e!r}", flush=True)


def pipe_with(data):
    """Return the end to read from of a pipe that nobody else has."""
    out, into = os.pipe()
    os.write(into, data)
    os.close(into)
    return out


def give(sender, data, *fds):
    socket.send_fds(sender, [data], fds)
    for fd in fds:
        os.close(fd)


def take(receiver, size=100):
    data, fds, _, _ = socket.recv_fds(receiver, size, 10)
    return data, fds


# A stream, in which only some pieces have descriptors.
a, b = socket.socketpair()
a.send(b"plain ")
a.send(b"too")
give(a, b"with", pipe_with(b"one"), pipe_with(b"two"))
a.send(b"after")
# The end of a pipe whose other end is only here.
to_be_read, into = os.pipe()
post = socket.socketpair()
give(post[0], b"p", to_be_read)
# A file that is open here as well, and one that was deleted.
kept = os.open("/tmp/kept", os.O_CREAT | os.O_RDWR)
gone = os.open("/tmp/gone", os.O_CREAT | os.O_RDWR)
os.write(gone, b"deleted")
os.unlink("/tmp/gone")
packets = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
socket.send_fds(packets[0], [b"shared"], [kept])
give(packets[0], b"gone", gone)
# A socket in a message in a socket in a message; and one that waits in itself.
outer, inner, innermost = (socket.socketpair() for _ in range(3))
give(innermost[0], b"i", pipe_with(b"deep"))
give(inner[0], b"m", innermost[1].detach())
give(outer[0], b"o", inner[1].detach())
own = socket.socketpair()
socket.send_fds(own[0], [b"c"], [own[1].fileno(), own[0].fileno()])
# The other end is closed already.
dead, orphan = socket.socketpair()
give(dead, b"testament", pipe_with(b"left"))
dead.close()
# Datagrams with credentials, from two users.
receiver = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
receiver.setsockopt(socket.SOL_SOCKET, socket.SO_PASSCRED, 1)
receiver.bind("/tmp/receiver")
sender = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
sender.connect("/tmp/receiver")
sender.send(b"mine")
forged = struct.pack("iII", os.getpid(), 33, 34)
sender.sendmsg([b"theirs"], [(socket.SOL_SOCKET, socket.SCM_CREDENTIALS, forged)])

print("ready", flush=True)
signal.sigwait({signal.SIGUSR1})


assert take(b, 6) == (b"plain ", [])
data, fds = take(b)
if data == b"too":
    data, fds = take(b)
    assert data == b"with"
else:
    assert data == b"toowith"
assert [os.read(fd, 10) for fd in fds] == [b"one", b"two"]
assert [os.read(fd, 10) for fd in fds] == [b"", b""]
assert take(b) == (b"after", [])
data, (fd,) = take(packets[1])
os.lseek(kept, 5, os.SEEK_SET)
assert data == b"shared"
assert os.lseek(fd, 0, os.SEEK_CUR) == 5, "it is not the same open file"
data, (fd,) = take(packets[1])
assert data == b"gone"
assert os.pread(fd, 10, 0) == b"deleted"
assert os.lseek(fd, 0, os.SEEK_CUR) == 7
data, (fd,) = take(post[1])
os.write(into, b"through")
assert os.read(fd, 10) == b"through"
data, fds = take(outer[1])
for expected in (b"m", b"i"):
    with socket.socket(fileno=fds[0]) as s:
        data, fds = take(s)
        assert data == expected
assert os.read(fds[0], 10) == b"deep"
data, (one, other) = take(own[1])
os.write(other, b"to myself")
assert os.read(one, 20) == b"to myself"
data, (fd,) = take(orphan)
assert data == b"testament"
assert os.read(fd, 10) == b"left"
assert orphan.recv(1) == b""
for text, user, group in ((b"mine", 0, 0), (b"theirs", 33, 34)):
    data, ((_, kind, raw),), _, _ = receiver.recvmsg(100, 100)
    assert (data, kind) == (text, socket.SCM_CREDENTIALS)
    assert array.array("i", raw)[1:].tolist() == [user, group], array.array("i", raw)
sender.send(b"later")
assert receiver.recv(10) == b"later"

print("ok", flush=True)
