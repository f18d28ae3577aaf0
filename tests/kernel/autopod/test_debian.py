"""A whole Debian as a pod: packages are installed and purged in it, as the article promises."""

import re
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import HOST_NETWORK

pytestmark = [pytest.mark.needs("root", "fuse", "namespaces"), pytest.mark.slow]

GATEWAY = "10.98.0.1"
TROUBLE = re.compile(r"(?im)^[EW]: |sandbox|not permitted|denied|not implemented")


@pytest.fixture
def proxy(pytestconfig):
    """The port of a proxy at the gateway that leads to the Debian archive."""
    network = pytestconfig.stash[HOST_NETWORK]
    with socket.create_server(("", 0)) as listener:
        fd = listener.fileno()
        argv = ["nsenter", f"--net=/proc/self/fd/{network}", sys.executable]
        argv += [Path(__file__).with_name("proxy.py"), str(fd)]
        with subprocess.Popen(argv, pass_fds=[network, fd]) as running:
            yield listener.getsockname()[1]
            running.kill()


@pytest.fixture(params=["false", "true"], ids=["", "user namespace"])
def debian(host, debian_root, proxy, request):
    host.configure(
        "deb",
        f"""
        [network]
        address = "10.98.0.30/16"
        gateway = "{GATEWAY}"
        [privileges]
        profile = "debian"
        [user]
        namespace = {request.param}
        [environment]
        http_proxy = "http://{GATEWAY}:{proxy}"
        DEBIAN_FRONTEND = "noninteractive"
        """,
    )
    host.run("autopod", "add", "deb", "--base", debian_root)
    return host


def test_packages_are_installed_and_purged(debian):
    """They make a user, set capabilities, and hold a set-user-ID program."""

    def inside(*argv):
        out = debian.run("launcher", "run", "deb", *argv)
        assert not TROUBLE.search(out), out
        return out

    inside("apt-get", "update")
    inside("apt-get", "install", "-y", "iputils-ping", "uuid-runtime", "at")
    assert "ii  at" in inside("dpkg", "-l", "at")
    assert "uuidd:" in inside("getent", "passwd", "uuidd")
    inside("dpkg", "--purge", "iputils-ping", "uuid-runtime", "at")
    inside("dpkg", "--purge", "exim4-base", "exim4-config", "exim4-daemon-light")
    debian.run("launcher", "run", "deb", "dpkg", "-l", "at", expect=1)
