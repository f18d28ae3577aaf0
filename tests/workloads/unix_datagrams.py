"""Datagrams between named and unnamed unix sockets."""

import os
import signal
import socket
import sys

signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGUSR1})
sys.excepthook = lambda _, e, trace: print(f"fail: line {trace.tb_lineno}: {e!r}", flush=True)


server = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
server.bind("/tmp/datagrams")
named = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
named.bind("\0sender")
client = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
client.connect("/tmp/datagrams")
named.sendto(b"first", "/tmp/datagrams")
client.send(b"")
client.send(b"third")
os.chdir("/tmp")
relative = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
relative.bind("relative")
os.unlink("relative")
newer = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
newer.bind("relative")
itself = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
itself.bind("/tmp/itself")
itself.connect("/tmp/itself")
itself.send(b"note")
os.makedirs("/tmp/scratch/deep")
homeless = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
homeless.bind("/tmp/scratch/deep/socket")
guest = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
guest.connect("/tmp/scratch/deep/socket")
os.unlink("/tmp/scratch/deep/socket")
os.removedirs("/tmp/scratch/deep")

print("ready", flush=True)
signal.sigwait({signal.SIGUSR1})


assert server.recvfrom(100) == (b"first", b"\0sender")
assert server.recvfrom(100) == (b"", None)
assert server.recvfrom(100) == (b"third", None)
client.send(b"fourth")
assert server.recv(100) == b"fourth"
server.sendto(b"answer", "\0sender")
assert named.recvfrom(100) == (b"answer", "/tmp/datagrams")
assert relative.getsockname() == newer.getsockname() == "relative"
client.connect("/tmp/relative")
client.send(b"x")
assert newer.recv(10) == b"x"
assert itself.getpeername() == itself.getsockname() == "/tmp/itself"
itself.send(b"again")
assert itself.recv(10) + itself.recv(10) == b"noteagain"
assert homeless.getsockname() == guest.getpeername() == "/tmp/scratch/deep/socket"
guest.send(b"x")
assert homeless.recv(10) == b"x"
assert not os.path.exists("/tmp/scratch")

print("ok", flush=True)
