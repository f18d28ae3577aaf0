"""`launcher serve`, as systemd runs it; and the units."""

import os
import signal
import socket
import subprocess
from contextlib import contextmanager
from pathlib import Path

import pytest

from launcher import enter, holder, pods
from launcher.lock import locked

from .conftest import LAUNCHER, wait_until

pytestmark = pytest.mark.needs("root", "namespaces")

UNITS = Path(__file__).parents[3] / "systemd"
WAITS = '"-c", "trap \'echo ended; exit\' TERM; sleep 1000 & echo begun; wait"'


def configure(pod, arguments, restart="no"):
    pod.configure(
        "a",
        f'[service]\nprogram = "/bin/sh"\nrestart = "{restart}"\n'
        f'[arguments]\n"/bin/sh" = [{arguments}]',
    )


def log(pod):
    return pod.places.log("a").read_text()


@contextmanager
def served(pod, tmp_path):
    """A process that serves pod `a`, once it has said that the service runs."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as told:
        told.bind(os.fspath(tmp_path / "notify"))
        told.settimeout(60)
        environment = {**os.environ, "NOTIFY_SOCKET": os.fspath(tmp_path / "notify")}
        argv = [LAUNCHER, "serve", "a"]
        with subprocess.Popen(argv, env=environment, stderr=subprocess.PIPE, text=True) as process:
            try:
                assert told.recv(100) == b"READY=1"
                yield process
            finally:
                process.kill()
        (tmp_path / "notify").unlink()


def holder_of(pod):
    mark = os.fsencode(f"AUTOPOD_PREFIX={pod.places.prefix}")
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            is_ours = mark in (entry / "environ").read_bytes().split(b"\0")
            command = (entry / "cmdline").read_bytes()
            parent = (entry / "stat").read_text().rpartition(")")[2].split()[1]
        except OSError:
            continue
        if is_ours and b"launcher.holding" in command and parent == "1":
            return int(entry.name)
    return None


def test_from_begin_to_end(pod, tmp_path):
    configure(pod, WAITS)
    with served(pod, tmp_path) as process:
        wait_until(lambda: log(pod) == "begun\n")
        process.terminate()
        assert process.wait(60) == 0

    assert log(pod) == "begun\nended\n"
    assert pods.find(pod.places, "a") is None


def test_a_service_that_fails(pod, tmp_path):
    configure(pod, '"-c", "sleep 0.2; exit 3"')
    with served(pod, tmp_path) as process:
        assert process.wait(60) == 1
        assert process.stderr.read().startswith("launcher: error: the pod's service has failed\n")


def test_a_service_that_ends(pod, tmp_path):
    configure(pod, '"-c", "sleep 0.2"', "on-failure")
    with served(pod, tmp_path) as process:
        assert process.wait(60) == 0
    assert pods.find(pod.places, "a") is None


def test_a_pod_that_somebody_else_ends(pod, tmp_path):
    """As a checkpoint does, which holds the pod's lock until the pod has ended."""
    configure(pod, WAITS)
    with served(pod, tmp_path) as process:
        with locked(pod.places, "a"):
            holder.leave(pod.places, "a")
            with pytest.raises(subprocess.TimeoutExpired):
                process.wait(0.5)
            pods.destroy(pod.places, "a")
        assert process.wait(60) == 0, process.stderr.read()


def test_the_pod_outlives_who_serves_it(pod, tmp_path):
    configure(pod, WAITS)
    with served(pod, tmp_path) as process:
        wait_until(lambda: log(pod) == "begun\n")
        before = enter.pids(pod.pod("a"))
        process.kill()
        process.wait(60)
    assert enter.pids(pod.pod("a")) == before

    with served(pod, tmp_path) as process:
        assert enter.pids(pod.pod("a")) == before
        os.kill(holder_of(pod), signal.SIGKILL)
        wait_until(lambda: holder_of(pod) is not None)
        process.terminate()
        assert process.wait(60) == 0
    assert log(pod) == "begun\nended\n"


@pytest.mark.needs("systemd")
def test_systemd_understands_the_units(tmp_path):
    units = list(UNITS.glob("*@.service"))
    for unit in units:
        text = unit.read_text().replace("/usr/local/bin", os.fspath(LAUNCHER.parent))
        for name in (unit.name, unit.name.replace("@", "@mail")):
            (tmp_path / name).write_text(text)

    instances = sorted(tmp_path.glob("*@mail.service"))
    argv = ["systemd-analyze", "verify", "--man=no", *instances]
    run = subprocess.run(argv, capture_output=True, text=True, check=False)

    assert len(instances) == 3
    said = [line for line in run.stderr.splitlines() if "pod" in line]
    assert (run.returncode, said) == (0, [])
