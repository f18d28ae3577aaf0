"""examples/apache: several processes of many threads, one listening socket, through a restart."""

import urllib.request
from pathlib import Path

import pytest

from examples.exim.mail import wait_until

pytestmark = [pytest.mark.needs("root", "fuse", "namespaces"), pytest.mark.slow]

POD_TOML = Path(__file__).parents[3] / "examples/apache/pod.toml"


def page(timeout=5):
    try:
        with urllib.request.urlopen("http://10.98.0.20/", timeout=timeout) as answer:
            return answer.read().decode()
    except OSError:
        return ""


def test_apache_serves_again(host, apache_root):
    host.configure("apache", POD_TOML.read_text())
    host.run("autopod", "add", "apache", "--base", apache_root)
    host.run("autopod", "addproc", "apache", "/usr/sbin/apache2")
    wait_until(lambda: "comes from a pod" in page(), "Apache serves its page")
    archive = host.prefix / "apache.pod"
    before = sorted(host.processes("apache"))
    host.run("autopod", "checkpoint", "apache", "-o", archive)
    assert page(timeout=0.2) == ""
    host.run("autopod", "restart", "apache", "-i", archive)
    assert "comes from a pod" in page()
    assert set(before) & set(host.processes("apache")), "the same processes serve"
