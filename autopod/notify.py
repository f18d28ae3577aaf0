"""Telling systemd how a service is: sd_notify(3), a datagram."""

import os
import socket


def notify(state: str) -> None:
    """Send *state* (`READY=1`, `WATCHDOG=1`, `STATUS=…`) to systemd, if it is there."""
    address = os.environ.get("NOTIFY_SOCKET", "")
    if address:
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as to:
            to.connect("\0" + address[1:] if address.startswith("@") else address)
            to.sendall(state.encode())


def watchdog_s() -> float | None:
    """Return how often systemd is to be told that the service lives: twice as often as it asks."""
    every = os.environ.get("WATCHDOG_USEC", "")
    mine = os.environ.get("WATCHDOG_PID", str(os.getpid())) == str(os.getpid())
    return int(every) / 2e6 if mine and every.isascii() and every.isdecimal() else None
