"""Packet sockets: what they receive, their interface, memberships, options and filter."""
# toml: [network]
# toml: mode = "none"
# toml: [privileges]
# toml: add_capabilities = ["net_raw"]
# toml: allow = ["socket"]

import ctypes
import signal
import socket
import struct
import sys

signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGUSR1})
sys.excepthook = lambda _, e, trace: print(f"fail: line {trace.tb_lineno}: {e!r}", flush=True)

SOL_PACKET, ADD_MEMBERSHIP, AUXDATA, ORIGDEV, VERSION = 263, 1, 8, 9, 10
MINE, OTHER = 0x88B5, 0x88B6  # IEEE 802, for experiments
NOWHERE = bytes(6)


def join(s, kind, address=b""):
    request = struct.pack("=iHH8s", socket.if_nametoindex("lo"), kind, len(address), address)
    s.setsockopt(SOL_PACKET, ADD_MEMBERSHIP, request)


raw = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 0)
raw.bind(("lo", MINE))
raw.setsockopt(SOL_PACKET, AUXDATA, 1)
raw.setsockopt(SOL_PACKET, ORIGDEV, 1)
raw.setsockopt(SOL_PACKET, VERSION, 1)
join(raw, 1)
join(raw, 1)

# Of all that there is: frames whose first byte behind the header is `y`.
code = [(0x30, 0, 0, 14), (0x15, 0, 1, ord("y")), (0x06, 0, 0, 0xFFFF), (0x06, 0, 0, 0)]
program = ctypes.create_string_buffer(b"".join(struct.pack("=HBBI", *line) for line in code))
everything = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 0)
fprog = struct.pack("HxxxxxxP", len(code), ctypes.addressof(program))
everything.setsockopt(socket.SOL_SOCKET, 26, fprog)
everything.bind(("lo", 3))

anywhere = socket.socket(socket.AF_PACKET, socket.SOCK_DGRAM, socket.htons(OTHER))
sender = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 0)

print("ready", flush=True)
signal.sigwait({signal.SIGUSR1})


assert raw.getsockname()[:2] == ("lo", MINE), raw.getsockname()
assert [raw.getsockopt(SOL_PACKET, option) for option in (AUXDATA, ORIGDEV, VERSION)] == [1] * 3
assert anywhere.getsockname()[:2] == ("", OTHER)
assert everything.getsockname()[:2] == ("lo", 3)
for body in (b"no", b"yes"):
    for protocol in (MINE, OTHER):
        frame = 2 * NOWHERE + struct.pack("!H", protocol) + body
        sender.sendto(frame, ("lo", 0))
for s in (raw, everything, anywhere):
    s.settimeout(30)
assert [raw.recv(100)[14:] for _ in range(2)] == [b"no", b"yes"]
assert [anywhere.recv(100) for _ in range(2)] == [b"no", b"yes"]
assert everything.recv(100)[14:] == b"yes"

print("ok", flush=True)
