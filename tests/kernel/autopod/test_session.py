"""The test session itself: apart from the host, and it sees what a test leaves."""

import os
import subprocess
import sys

import pytest

from examples import leftovers

pytestmark = pytest.mark.needs("root", "namespaces")


def test_session_is_apart_from_the_host():
    links = subprocess.run(["ip", "-o", "link"], capture_output=True, text=True, check=True)
    assert [line.split(":")[1].strip() for line in links.stdout.splitlines()] == ["lo"]


def test_leftovers_are_found_and_removed(tmp_path):
    environment = {**os.environ, "AUTOPOD_PREFIX": os.fspath(tmp_path)}
    point = tmp_path / "mnt with space"
    point.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "none", point], check=True)
    link = f"ap{leftovers.tag(tmp_path)}x"
    subprocess.run(["ip", "link", "add", link, "type", "bridge"], check=True)
    code = "print(flush=True); import signal; signal.pause()"
    argv = [sys.executable, "-c", code]
    with subprocess.Popen(argv, env=environment, stdout=subprocess.PIPE) as child:
        child.stdout.readline()
        found = leftovers.everything(tmp_path)
        leftovers.remove(tmp_path)
    assert [line.split()[0] for line in found] == ["process", "mount", "network"]
    assert child.returncode == -9
    assert leftovers.everything(tmp_path) == []


def test_roots_are_complete(debian_root, exim_root):
    assert (debian_root / "usr/bin/bash").exists()
    programs = [
        path
        for path in exim_root.rglob("*")
        if path.is_file() and path.stat().st_mode & 0o111 and ".so" not in path.name
    ]
    assert programs == [exim_root / "usr/sbin/exim4"]
