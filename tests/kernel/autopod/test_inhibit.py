"""A reboot that an administrator orders waits for the pods, by a lock of logind's.

logind itself does not run where there is no systemd: its interface, as it is documented, is served
here, on a bus of Debian's own dbus-daemon.
"""

import contextlib
import os
import subprocess
import sys

import pytest
from jeepney import DBusAddress, HeaderFields, MessageType, new_method_return, new_signal
from jeepney.bus_messages import message_bus
from jeepney.io.blocking import open_dbus_connection

from examples.exim.mail import wait_until

pytestmark = [pytest.mark.needs("root", "fuse", "namespaces"), pytest.mark.slow]

MANAGER = DBusAddress(
    "/org/freedesktop/login1", "org.freedesktop.login1", "org.freedesktop.login1.Manager"
)


class Logind:
    """Serves what is asked of it until a lock is taken."""

    def __init__(self, bus):
        self.bus = bus
        self.lock = None

    def be_asked(self):
        """Answer until somebody has taken a lock."""
        while self.lock is None:
            self.answer(self.bus.receive(timeout=60))

    def answer(self, message):
        if message.header.message_type is not MessageType.method_call:
            return
        member = message.header.fields[HeaderFields.member]
        if member == "Get":
            assert message.body == (MANAGER.interface, "InhibitDelayMaxUSec")
            self.bus.send(new_method_return(message, "v", (("t", 60_000_000),)))
        elif member == "Inhibit":
            assert (message.body[0], message.body[3]) == ("shutdown", "delay")
            self.lock, given = os.pipe2(os.O_CLOEXEC)
            self.bus.send(new_method_return(message, "h", (given,)))
            os.close(given)

    def prepare_for_shutdown(self, begins):
        self.bus.send(new_signal(MANAGER, "PrepareForShutdown", "b", (begins,)))

    def pretend(self):
        """Be somebody else who says the same."""
        signal = new_signal(MANAGER, "PrepareForShutdown", "b", (True,))
        with open_dbus_connection("SYSTEM") as other:
            other.send(signal)

    def wait_for_release(self):
        """Answer until the lock is given up."""
        os.set_blocking(self.lock, False)

        def is_given_up():
            with contextlib.suppress(TimeoutError):
                self.answer(self.bus.receive(timeout=0))
            try:
                return os.read(self.lock, 1) == b""
            except BlockingIOError:
                return False

        wait_until(is_given_up, "the lock is given up", 60)
        os.close(self.lock)
        self.lock = None


@pytest.fixture
def logind(tmp_path, monkeypatch):
    address = f"unix:path={tmp_path}/bus"
    monkeypatch.setenv("DBUS_SYSTEM_BUS_ADDRESS", address)
    argv = ["dbus-daemon", "--session", "--nofork", "--nopidfile", f"--address={address}"]
    with subprocess.Popen([*argv, "--print-address"], stdout=subprocess.PIPE) as daemon:
        try:
            daemon.stdout.readline()
            with open_dbus_connection("SYSTEM", enable_fds=True) as bus:
                bus.send_and_get_reply(message_bus.RequestName("org.freedesktop.login1"))
                yield Logind(bus)
        finally:
            daemon.kill()


def test_a_reboot_waits_for_the_pods(host, debian_root, logind):
    host.configure("count", '[network]\nmode = "none"\n')
    host.run("autopod", "add", "count", "--base", debian_root)
    host.run("autopod", "addproc", "count", "/bin/sleep", "1000")
    argv = [sys.executable, "-m", "autopod.status.inhibit"]
    pipe = subprocess.PIPE
    with subprocess.Popen(argv, stdin=pipe, stderr=pipe, text=True) as process:
        logind.be_asked()
        logind.pretend()
        assert "ignored" in process.stderr.readline()
        assert host.pods()["count"]["state"] == "running"
        logind.prepare_for_shutdown(True)
        logind.wait_for_release()
        assert host.pods()["count"]["state"] != "running"
        [archive] = (host.prefix / "var/lib/autopod/.drains").glob("*/count.pod")
        host.run("ckpt", "verify", archive)
        logind.prepare_for_shutdown(False)  # it was called off
        logind.be_asked()
        assert host.pods()["count"]["state"] == "running"
        process.stdin.close()
        assert process.wait(60) == 0
        logind.wait_for_release()
