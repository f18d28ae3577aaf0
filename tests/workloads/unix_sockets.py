"""Unix sockets: pairs, connections, queues, half-closed, credentials, two processes."""

import os
import signal
import socket
import struct
import sys

signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGUSR1})
sys.excepthook = lambda _, e, trace: print(f"fail: line {trace.tb_lineno}: {e!r}", flush=True)


a, b = socket.socketpair()
a.send(b"one")
a.send(b"two")
b.send(b"back")
packets = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
for packet in (b"first", b"second"):
    packets[0].send(packet)
half, other_half = socket.socketpair()
half.send(b"last")
half.shutdown(socket.SHUT_WR)
dead, orphan = socket.socketpair()
dead.send(b"testament")
dead.close()
listener = socket.socket(socket.AF_UNIX)
listener.bind("/tmp/listener")
listener.listen(5)
os.setresuid(-1, 1000, -1)
client = socket.socket(socket.AF_UNIX)
os.setresuid(-1, 0, -1)
os.chmod("/tmp/listener", 0o777)
os.setresuid(-1, 1000, -1)
client.connect("/tmp/listener")
os.setresuid(-1, 0, -1)
server, _ = listener.accept()
client.send(b"request")
waiting = socket.socket(socket.AF_UNIX)
waiting.connect("/tmp/listener")
unconnected = [socket.socket(socket.AF_UNIX) for _ in range(2)]
unconnected[1].bind("/tmp/unconnected")
idle = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
mine, childs = socket.socketpair()
child = os.fork()
if child == 0:
    mine.close()
    childs.send(childs.recv(100).upper())
    os._exit(0)
childs.close()

print("ready", flush=True)
signal.sigwait({signal.SIGUSR1})


assert b.recv(100) == b"onetwo"
assert a.recv(100) == b"back"
assert [packets[1].recv(100) for _ in range(2)] == [b"first", b"second"]
assert other_half.recv(100) + other_half.recv(100) == b"last"
other_half.send(b"x")
assert half.recv(10) == b"x"
assert orphan.recv(100) + orphan.recv(100) == b"testament"
assert server.recv(100) == b"request"
assert server.getsockname() == client.getpeername() == "/tmp/listener"
credentials = server.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12)
assert struct.unpack("iII", credentials)[1:] == (1000, 0)
accepted, _ = listener.accept()
accepted.send(b"welcome")
assert waiting.recv(100) == b"welcome"
mine.send(b"child")
assert mine.recv(100) == b"CHILD"
assert os.waitpid(child, 0)[1] == 0
assert os.stat("/tmp/listener").st_mode & 0o777 == 0o777
new = socket.socket(socket.AF_UNIX)
new.connect("/tmp/listener")
for s in unconnected:
    s.connect("/tmp/listener")
idle.bind("/tmp/idle")
idle.listen()

print("ok", flush=True)
