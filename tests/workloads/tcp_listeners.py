"""Listening, bound and fresh TCP sockets with their options."""

import os
import select
import signal
import socket
import sys

signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGUSR1})
sys.excepthook = lambda _, e, trace: print(f"fail: line {trace.tb_lineno}: {e!r}", flush=True)


listener = socket.socket(socket.AF_INET6)
listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
listener.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
listener.bind(("::", 25))
listener.listen(9)
epoll = select.epoll()
epoll.register(listener, select.EPOLLIN)
bound = socket.socket()
bound.bind(("127.0.0.1", 2525))
fresh = socket.socket()
fresh.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
shared = [socket.socket() for _ in range(2)]
for s in shared:
    s.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
    s.bind(("127.0.0.1", 80))
    s.listen()
given_up = [socket.socket() for _ in range(2)]
for s in given_up:
    s.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
    s.bind(("127.0.0.1", 81))
    s.listen()
given_up[0].setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 0)
child = os.fork()
if child == 0:
    connection, _ = listener.accept()
    connection.send(b"220 ready")
    connection.recv(1)
    os._exit(0)

print("ready", flush=True)
signal.sigwait({signal.SIGUSR1})


client = socket.create_connection(("127.0.0.1", 25))
assert client.recv(100) == b"220 ready"
client.send(b"x")
assert os.waitpid(child, 0)[1] == 0
socket.create_connection(("::1", 25))
assert epoll.poll(30) == [(listener.fileno(), select.EPOLLIN)]
assert listener.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY) == 1
bound.listen()
assert fresh.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE) == 1
fresh.connect(("127.0.0.1", 2525))
socket.create_connection(("127.0.0.1", 80))
assert [s.getsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT) for s in given_up] == [0, 1]
socket.create_connection(("127.0.0.1", 81))
assert select.select(given_up, [], [], 30)[0]

print("ok", flush=True)
