"""UDP sockets: bound, connected, with options."""

import signal
import socket
import sys

signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGUSR1})
sys.excepthook = lambda _, e, trace: print(f"fail: line {trace.tb_lineno}: {e!r}", flush=True)


server = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
server.bind(("127.0.0.1", 53))
client = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
client.setsockopt(socket.IPPROTO_IP, socket.IP_TOS, 0x10)
client.connect(("127.0.0.1", 53))
name = client.getsockname()
six = socket.socket(socket.AF_INET6, socket.SOCK_DGRAM)
six.bind(("::1", 54))

print("ready", flush=True)
signal.sigwait({signal.SIGUSR1})


assert client.getsockname() == name
assert client.getsockopt(socket.IPPROTO_IP, socket.IP_TOS) == 0x10
client.send(b"query")
data, sender = server.recvfrom(100)
assert (data, sender) == (b"query", name)
server.sendto(b"answer", sender)
assert client.recv(100) == b"answer"
assert six.getsockname()[1] == 54

print("ok", flush=True)
