"""systemd is told how the service is."""

import os
import socket

import pytest

from autopod import notify


@pytest.mark.parametrize("address", ["path", "abstract"])
def test_a_datagram(tmp_path, monkeypatch, address):
    name = os.fspath(tmp_path / "notify")
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as listener:
        listener.bind(name if address == "path" else f"\0{name}")
        monkeypatch.setenv("NOTIFY_SOCKET", name if address == "path" else f"@{name}")
        notify.notify("WATCHDOG=1")
        assert listener.recv(100) == b"WATCHDOG=1"


def test_nobody_asks(monkeypatch):
    monkeypatch.delenv("NOTIFY_SOCKET", raising=False)
    notify.notify("READY=1")


@pytest.mark.parametrize(
    ("usec", "pid", "every"),
    [
        ("", None, None),
        ("60000000", None, 30),
        ("60000000", "ours", 30),
        ("60000000", "1", None),
        ("x", None, None),
    ],
)
def test_watchdog(monkeypatch, usec, pid, every):
    monkeypatch.setenv("WATCHDOG_USEC", usec)
    monkeypatch.delenv("WATCHDOG_PID", raising=False)
    if pid:
        monkeypatch.setenv("WATCHDOG_PID", str(os.getpid()) if pid == "ours" else pid)
    assert notify.watchdog_s() == every
