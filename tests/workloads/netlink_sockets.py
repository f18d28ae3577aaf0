"""A routing socket that listens for changes."""

import signal
import socket
import struct
import sys

signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGUSR1})
sys.excepthook = lambda _, e, trace: print(f"fail: line {trace.tb_lineno}: {e!r}", flush=True)


s = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, socket.NETLINK_ROUTE)
s.bind((4321, 0))
s.setsockopt(270, 1, 5)

print("ready", flush=True)
signal.sigwait({signal.SIGUSR1})


assert s.getsockname()[0] == 4321
assert struct.unpack_from("I", s.getsockopt(270, 9, 64))[0] == 1 << 4
s.send(struct.pack("=IHHIIB15x", 32, 18, 0x301, 1, 0, 0))
assert s.recv(4096)

print("ok", flush=True)
