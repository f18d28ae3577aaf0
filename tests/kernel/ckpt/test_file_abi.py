"""Numbers of the open-file kinds agree with the kernel's headers on this machine."""

import subprocess

import pytest

from ckpt.kinds import abi, inotify, ipcabi, late, locks, pty, sockets, terminal

HEADERS = [
    "asm/ioctls.h",
    "asm/termbits.h",
    "asm/unistd.h",
    "linux/eventpoll.h",
    "linux/fcntl.h",
    "linux/filter.h",
    "linux/if_packet.h",
    "linux/in.h",
    "linux/in6.h",
    "linux/inotify.h",
    "linux/ipc.h",
    "linux/kcmp.h",
    "linux/msg.h",
    "linux/netlink.h",
    "linux/openat2.h",
    "linux/prctl.h",
    "linux/sched.h",
    "linux/securebits.h",
    "linux/sem.h",
    "linux/shm.h",
    "linux/sockios.h",
    "linux/tcp.h",
    "linux/timerfd.h",
    "linux/udp.h",
    "linux/un.h",
    "asm/socket.h",
    "stdio.h",
]
NOT_IN_THESE_HEADERS = {
    "SPLICE_F_NONBLOCK",  # <fcntl.h>, which cannot stand beside <linux/fcntl.h>
    "SHM_DEST",  # <sys/shm.h>, the same
    "SHM_LOCKED",
}
CONSTANTS = {
    f"__NR_{name[3:].lower()}" if name.startswith("NR_") else name: value
    for name, value in {**vars(abi), **vars(ipcabi)}.items()
    if name[0].isupper() and isinstance(value, int) and name not in NOT_IN_THESE_HEADERS
}
CONSTANTS |= {f"IN_{name.upper()}": value for name, value in inotify._EVENTS.items()}
CONSTANTS |= {
    name.lstrip("_"): value
    for module in (pty, terminal)
    for name, value in vars(module).items()
    if name.startswith("_TIOC")
}
CONSTANTS |= {"F_OFD_SETLK": locks._F_OFD_SETLK, "FD_CLOEXEC": late._FD_CLOEXEC}


def _options():
    """The socket options, by their names in the headers."""
    prefixes = ("ip_", "ipv6_", "tcp_", "udp_", "netlink_", "packet_")
    newer = {"passpidfd", "ip_local_port_range", "ipv6_multicast_all"}  # than Debian 12's headers
    for table in (*sockets.TABLES.values(), sockets.TCP, sockets.UDP):
        for name, (_, number, _) in table.items():
            if name in newer or name in {"rcvtimeo", "sndtimeo"}:
                continue
            known = name.startswith(prefixes)
            yield (name.upper() if known else f"SO_{name.upper()}"), number


CONSTANTS |= dict(_options())


@pytest.mark.needs("cc")
def test_numbers_are_the_headers(tmp_path):
    lines = [f"#include <{header}>" for header in HEADERS]
    lines += ["int main(void) {"]
    lines += [f'printf("%lld\\n", (long long)({name}));' for name in CONSTANTS]
    source = tmp_path / "abi.c"
    source.write_text("\n".join([*lines, "}"]))
    subprocess.run(["cc", "-o", source.with_suffix(""), source], check=True)
    output = subprocess.check_output([source.with_suffix("")], text=True)
    theirs = dict(zip(CONSTANTS, map(int, output.split()), strict=True))
    assert {name: value & 0xFFFFFFFF for name, value in CONSTANTS.items()} == {
        name: value & 0xFFFFFFFF for name, value in theirs.items()
    }
