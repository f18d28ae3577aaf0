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
itself.bind("\0itself")
itself.connect("\0itself")
itself.send(b"to itself")

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
assert itself.recvfrom(100) == (b"to itself", b"\0itself")
itself.send(b"and again")
assert itself.recv(100) == b"and again"

print("ok", flush=True)
