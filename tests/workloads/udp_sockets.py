"""UDP sockets: bound, connected, with options, groups, and datagrams that wait."""

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
six.setsockopt(socket.IPPROTO_IPV6, 78, 1)  # IPV6_FREEBIND
six.bind(("::1", 54))

waiting = socket.socket(socket.AF_INET6, socket.SOCK_DGRAM)
waiting.bind(("::", 55))
for number in range(20):
    six.sendto(b"%d" % number, ("::1", 55))
    server.sendto(b"four %d" % number, ("127.0.0.1", 55))
corked = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
corked.setsockopt(socket.IPPROTO_UDP, 1, 1)  # UDP_CORK
corked.connect(("127.0.0.1", 53))
group = socket.inet_aton("239.1.2.3") + socket.inet_aton("127.0.0.1")
member = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
member.bind(("", 56))
member.setsockopt(socket.IPPROTO_IP, socket.IP_ADD_MEMBERSHIP, group)
halves = [socket.socket(socket.AF_INET, socket.SOCK_DGRAM) for _ in range(2)]
for half, how in zip(halves, (socket.SHUT_WR, socket.SHUT_RD), strict=True):
    half.connect(("127.0.0.1", 53))
    half.shutdown(how)

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
assert six.getsockopt(socket.IPPROTO_IPV6, 78) == 1
waiting.settimeout(30)
got = [waiting.recvfrom(100) for _ in range(40)]
assert [data for data, whom in got if whom[0] == "::1"] == [b"%d" % n for n in range(20)]
assert [d for d, whom in got if whom[:2] == ("::ffff:127.0.0.1", 53)] == [
    b"four %d" % n for n in range(20)
]
member.settimeout(30)
server.setsockopt(socket.IPPROTO_IP, socket.IP_MULTICAST_IF, socket.inet_aton("127.0.0.1"))
server.sendto(b"to all", ("239.1.2.3", 56))
assert member.recv(100) == b"to all"
corked.send(b"in two ")
corked.send(b"parts")
corked.setsockopt(socket.IPPROTO_UDP, 1, 0)
assert server.recv(100) == b"in two parts"
try:
    halves[0].send(b"no more")
except BrokenPipeError:
    pass
else:
    raise AssertionError("what was shut down can send")
assert halves[1].recv(100) == b""
assert halves[1].send(b"still") == 5
assert server.recv(100) == b"still"

print("ok", flush=True)
