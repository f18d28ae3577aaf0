"""Open TCP connections, with peers outside of the pod, through checkpoints and restarts."""

import contextlib
import os
import signal
import socket
from pathlib import Path

import pytest

from ckpt import dump
from ckpt.kinds import tcprepair
from ckpt.seed import RestoreError
from launcher import network
from tests.kernel.ckpt import harness, stream

pytestmark = [pytest.mark.needs("root", "fuse", "namespaces"), pytest.mark.slow]

TOML = '[network]\naddress = "10.98.7.10/24"\n'
ADDRESS = ("10.98.7.10", 4000)
ENOUGH = 100_000


@pytest.fixture
def pod(places, debian_root):
    with harness.Pod(places, debian_root, TOML) as pod:
        yield pod


def serve(pod, host="0.0.0.0"):
    pod.put("/tmp/stream.py", Path(stream.__file__).read_text())
    pod.start("/usr/bin/python3", "-I", "/tmp/stream.py", host, "4000")
    pod.wait_for("ready\n")


def test_twenty_connections_under_load(pod):
    serve(pod)
    with stream.Client(ADDRESS, 20) as client:
        for _ in range(2):
            client.run_until(ENOUGH)
            pod.dump()
            client.step()  # into the void
            pod.restore()
            client.run_until(ENOUGH)
        with stream.Client(ADDRESS, 1) as another:
            another.run_until(ENOUGH)
            another.finish()
        client.finish()


def test_a_pod_that_goes_on_notices_nothing(pod):
    serve(pod)
    with stream.Client(ADDRESS, 5) as client:
        client.run_until(ENOUGH)
        pod.dump(leave_running=True)
        client.run_until(ENOUGH)
        client.finish()


def test_a_checkpoint_that_fails_or_is_killed(pod, monkeypatch):
    """The connections go on: the wall goes with who built it."""
    serve(pod)
    with stream.Client(ADDRESS, 5) as client:
        client.run_until(ENOUGH)
        monkeypatch.setattr(dump.sealing, "seal", fail)
        with pytest.raises(OSError, match="no space"):
            pod.dump()
        client.run_until(ENOUGH)
        monkeypatch.setattr(dump.sealing, "seal", lambda *_: os.kill(os.getpid(), signal.SIGKILL))
        in_child_that_is_killed(pod.dump)
        client.run_until(ENOUGH)
        client.finish()


def in_child_that_is_killed(do):
    child = os.fork()
    if child == 0:
        with contextlib.suppress(BaseException):
            do()
        os._exit(1)
    assert os.waitpid(child, 0)[1] == signal.SIGKILL


def test_a_checkpoint_that_is_killed_in_repair_mode(pod, monkeypatch):
    """A socket would stay in that mode, and neither send nor receive."""
    serve(pod)
    monkeypatch.setattr(tcprepair, "_options", lambda _: os.kill(os.getpid(), signal.SIGKILL))
    with stream.Client(ADDRESS, 2) as client:
        client.run_until(ENOUGH)
        in_child_that_is_killed(pod.dump)
        client.run_until(ENOUGH)
        client.finish()


def fail(*_):
    raise OSError(28, "no space")


def test_a_restart_that_fails_tells_nobody(pod, monkeypatch):
    """It may be tried again: the peers have heard nothing."""
    serve(pod)
    with stream.Client(ADDRESS, 5) as client:
        client.run_until(ENOUGH)
        pod.dump()
        with monkeypatch.context() as patch:
            patch.setattr(network, "open_network", fail)
            with pytest.raises(OSError, match="no space"):
                pod.restore()
        client.step()
        pod.restore()
        client.run_until(ENOUGH)
        client.finish()


def test_a_restart_that_is_killed(pod, monkeypatch):
    """Also where the connections are out of repair mode: the peers have heard nothing."""
    serve(pod)
    with stream.Client(ADDRESS, 5) as client:
        client.run_until(ENOUGH)
        pod.dump()
        with monkeypatch.context() as patch:
            patch.setattr(network, "open_network", lambda *_: os.kill(os.getpid(), signal.SIGKILL))
            in_child_that_is_killed(pod.restore)
        client.step()
        pod.restore()
        client.run_until(ENOUGH)
        client.finish()


def test_an_address_that_is_not_here(pod):
    serve(pod)
    with stream.Client(ADDRESS, 1) as client:
        client.run_until(ENOUGH)
        pod.dump()
        pod.places.config(pod.name).write_text(TOML.replace(".10/", ".11/"))
        with pytest.raises(RestoreError, match=r"open connections at 10\.98\.7\.10") as refusal:
            pod.restore()
        assert "--tcp close" in refusal.value.hint
        pod.restore(tcp="close")
        pod.dump()


@pytest.mark.parametrize("when", ["dump", "restore"])
@pytest.mark.parametrize("policy", ["close", "listen-only"])
def test_policies(pod, when, policy):
    """The peers hear of the end, or nothing; the listener serves on, the program gets an error."""
    serve(pod)
    with stream.Client(ADDRESS, 3) as client:
        client.run_until(ENOUGH)
        pod.dump(tcp=policy if when == "dump" else None)
        if policy == "listen-only":
            client.step()
        pod.restore(tcp=policy if when == "restore" else None)
        # Where nobody tells them, their next packet does.
        harness.poll(lambda: all(is_over(end.socket) for end in client.ends), "end of all")
        with stream.Client(ADDRESS, 1) as another:
            another.run_until(ENOUGH)
            another.finish()
        assert "Error" not in pod.log()


def is_over(s):
    try:
        return not s.recv(1 << 16)
    except BlockingIOError:
        with contextlib.suppress(BlockingIOError):
            s.send(b"?")
        return False
    except OSError:
        return True


RELUCTANT = """
import socket, time
with socket.create_server(("0.0.0.0", 4001)) as once:
    print("ready", flush=True)
    s, _ = once.accept()
    s.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4 << 20)
    s.sendall(b"z" * (4 << 20))
    s.close()  # the kernel has it now
listener = socket.create_server(("0.0.0.0", 4000))
print("listens", flush=True)
time.sleep(1000)
"""


def test_what_is_lost_is_told(pod):
    """Connections that nobody has accepted, or that nobody has open any more."""
    pod.put("/tmp/reluctant.py", RELUCTANT)
    pod.start("/usr/bin/python3", "-I", "/tmp/reluctant.py")
    pod.wait_for("ready")
    with contextlib.ExitStack() as stack:
        closed = stack.enter_context(socket.socket())
        closed.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        closed.connect((ADDRESS[0], 4001))
        pod.wait_for("listens")
        waiting = [stack.enter_context(socket.create_connection(ADDRESS)) for _ in range(2)]
        assert pod.dump().notes == [
            "2 TCP connections that nobody has accepted yet are not in it",
            "1 closed TCP connections, not yet delivered, are not in it",
        ]
        pod.restore()
        for s in waiting:
            s.settimeout(60)
            with pytest.raises(ConnectionResetError):
                s.recv(1)
