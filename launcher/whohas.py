"""Asks a segment who has an address, without saying who asks: nobody's neighbour table changes.

Source: RFC 5227, 2.1.1; RFC 4862, 5.4; packet(7).
"""

import ipaddress
import select
import socket
import time
from collections.abc import Iterable, Iterator
from typing import Final

from launcher import packets

_ETH_P_ALL: Final = 0x0003
_TIMES: Final = 3


def ask(device: str, mac: str, addresses: Iterable[str], patience_s: float) -> dict[str, str]:
    """Return the MAC addresses of those behind *device* that have any of *addresses*.

    Args:
        device: a port of a bridge, or what may become one; the bridge's other ports do not hear it.
        mac: of who asks; answers come to it.
        addresses: IPv4 and IPv6.
        patience_s: how long to wait for answers, in seconds.

    Raises:
        OSError: as packet(7).
    """
    wanted = {ipaddress.ip_address(one): one for one in addresses}
    own = bytes.fromhex(mac.replace(":", ""))
    found: dict[str, str] = {}
    with socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(_ETH_P_ALL)) as s:
        s.bind((device, _ETH_P_ALL))
        for _ in range(_TIMES if wanted else 0):
            for address, text in wanted.items():
                if text not in found:
                    s.send(packets.who_has(own, address))
            for frame in _heard(s, time.monotonic() + patience_s / _TIMES):
                told = packets.has(frame)
                if told is not None and told[0] in wanted and told[1] != own:
                    found[wanted[told[0]]] = told[1].hex(":")
                if len(found) == len(wanted):
                    return found
    return found


def _heard(s: socket.socket, deadline: float) -> Iterator[bytes]:
    """Yield the frames that come until *deadline*, of time.monotonic()."""
    while (left := deadline - time.monotonic()) > 0:
        if select.select([s], [], [], left)[0]:
            frame, (_, _, kind, *_) = s.recvfrom(1 << 16)
            if kind != socket.PACKET_OUTGOING:
                yield frame
