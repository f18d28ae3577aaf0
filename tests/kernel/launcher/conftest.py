"""Pods on the kernel: a root tree mounted where stackfs would mount it, and the command."""

import functools
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest

from launcher import config, network, pods
from tests.patience import DEADLINE_S

LAUNCHER = Path(sys.executable).with_name("launcher")


def wait_until(predicate, seconds=DEADLINE_S):
    """Poll until *predicate* is true; return what it gave."""
    deadline = time.monotonic() + seconds
    while not (found := predicate()):
        assert time.monotonic() < deadline, "did not come true in time"
        time.sleep(0.01)
    return found


class Host:
    """One instance: mounts roots, runs the command, knows what it has to take away."""

    def __init__(self, places):
        self.places = places
        self._mounted = []

    def mount(self, name, tree):
        """Mount *tree* as the root of pod *name*; what is written goes elsewhere."""
        root = self.places.root(name)
        upper, work = (self.places.prefix / part / name for part in ("upper", "work"))
        for directory in (root, upper, work):
            directory.mkdir(parents=True)
        options = f"lowerdir={tree},upperdir={upper},workdir={work}"
        subprocess.run(["mount", "-t", "overlay", "-o", options, "overlay", root], check=True)
        self._mounted.append(name)
        return root

    def configure(self, name, text):
        path = self.places.config(name)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)

    def launch(self, *argv, expect=0, text="", timeout=2 * DEADLINE_S):
        """Run `launcher ARGV`; return what it wrote. None expects nothing of the status."""
        run = subprocess.run(
            [LAUNCHER, *argv],
            input=text,
            capture_output=True,
            text=True,
            check=False,
            timeout=timeout,
        )
        assert expect in (None, run.returncode), (run.returncode, run.stdout, run.stderr)
        return run

    def pod(self, name):
        pod = pods.find(self.places, name)
        assert pod is not None
        return pod

    def create(self, name, **more):
        return pods.create(self.places, config.load(self.places, name), **more)

    def close(self):
        """End the pods; the roots must then unmount at once."""
        for name in self._mounted:
            pods.destroy(self.places, name)
            network.remove_network(self.places, name)
            subprocess.run(["umount", self.places.root(name)], check=True)


@pytest.fixture
def host(places):
    host = Host(places)
    yield host
    host.close()


@pytest.fixture
def pod(host, debian_root):
    """The root of pod `a` is a full Debian tree; the pod does not run yet."""
    host.mount("a", debian_root)
    return host


@pytest.fixture(scope="session")
def compile_static(tmp_path_factory):
    """Compile C text into a static program, once."""

    @functools.cache
    def compile_(text):
        directory = tmp_path_factory.mktemp("probe")
        (directory / "probe.c").write_text(text)
        argv = ["cc", "-static", "-Wall", "-o", directory / "probe", directory / "probe.c"]
        subprocess.run(argv, check=True)
        return directory / "probe"

    return compile_


@pytest.fixture
def small_tree(tmp_path, compile_static):
    """Make a root tree of nothing but a program, `/probe`, and what a pod needs to stand on."""

    def make(text, *directories):
        tree = tmp_path / "tree"
        tree.mkdir()
        shutil.copy(compile_static(text), tree / "probe")
        for directory in directories:
            (tree / directory).mkdir()
        return os.fspath(tree)

    return make


def ip(*words, **more):
    subprocess.run(["ip", *words], check=True, **more)


def shown(pod, name, *words):
    net = f"--net={network.path(pod.places, name)}"
    return subprocess.check_output(["nsenter", net, "ip", *words], text=True)


@pytest.fixture
def no_forwarding():
    before = FORWARDING.read_text()
    FORWARDING.write_text("0")
    yield
    assert FORWARDING.read_text() == "0\n", "what pods need is not needed any more"
    FORWARDING.write_text(before)


FORWARDING = Path("/proc/sys/net/ipv4/ip_forward")
