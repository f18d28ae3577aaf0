"""add, rm and list: what they make, what they refuse, what they leave."""

import json
import os
import signal
import subprocess

import pytest

from examples.exim.mail import wait_until
from launcher.lock import locked

pytestmark = pytest.mark.needs("root", "fuse", "namespaces")


@pytest.fixture
def base(tmp_path):
    base = tmp_path / "base"
    base.mkdir()
    (base / "hello").write_text("from the base\n")
    return base


def test_a_pod_comes_and_goes(host, base):
    host.run("autopod", "add", "one", "--base", base)
    row = host.pods()["one"]
    assert row["state"] == "stopped"
    assert row["address"].startswith("10.98.")
    assert row["lower"] == [str(base)]
    assert (host.root("one") / "hello").read_text() == "from the base\n"
    host.run("autopod", "rm", "one")
    assert host.pods() == {}


def test_two_pods_get_different_addresses(host, base):
    for pod in ("one", "two"):
        host.run("autopod", "add", pod, "--base", base)
    assert len({row["address"] for row in host.pods().values()}) == 2


def test_a_taken_address_is_refused_and_nothing_is_left(host, base):
    host.run("autopod", "add", "one", "--base", base, "--ip", "10.98.7.7/16")
    output = host.run("autopod", "add", "two", "--base", base, "--ip", "10.98.7.7/16", expect=1)
    assert "10.98.7.7" in output
    assert list(host.pods()) == ["one"]
    assert not (host.prefix / "etc/autopod/pods/two.toml").exists()


def test_the_base_may_be_bind_mounted_at_the_root(host, base):
    point = host.root("one")
    point.mkdir(parents=True)
    subprocess.run(["mount", "-o", "bind", base, point], check=True)
    try:
        host.run("autopod", "add", "one")
        assert host.pods()["one"]["lower"] == [str(base)]
        (point / "new").write_text("")
        assert not (base / "new").exists()
        host.run("autopod", "rm", "one", "--purge")
        assert (point / "hello").exists()  # the administrator's own mount is still there
    finally:
        subprocess.run(["umount", point], check=True)


def test_after_a_reboot_it_is_added_from_what_is_remembered(host, base):
    host.run("autopod", "add", "one", "--base", base)
    (host.root("one") / "data").write_text("kept")
    host.run("stackfs", "umount", "one")
    assert host.pods()["one"]["state"] == "unmounted"
    host.run("autopod", "add", "one")
    assert (host.root("one") / "data").read_text() == "kept"


def test_a_daemon_that_was_killed_is_made_good(host, base):
    host.run("autopod", "add", "one", "--base", base)
    (host.root("one") / "data").write_text("kept")
    [daemon] = json.loads(host.run("stackfs", "list", "--json"))
    for pid in (daemon["holder"], daemon["pid"]):
        os.kill(pid, signal.SIGKILL)
    wait_until(lambda: host.pods()["one"]["state"] == "unmounted", "the daemon is gone")
    host.run("autopod", "add", "one")
    assert (host.root("one") / "data").read_text() == "kept"


def test_the_file_of_an_administrator_is_never_changed(host, base):
    text = f'# mine\n[root]\nlower = ["{base}"]\n[network]\naddress = "10.98.3.4/16"\n'
    host.configure("one", text)
    host.run("autopod", "add", "one")
    assert host.pods()["one"]["address"] == "10.98.3.4/16"
    assert (host.prefix / "etc/autopod/pods/one.toml").read_text() == text


def test_a_configuration_in_the_way_is_named(host, base, tmp_path):
    host.configure("one", f'[root]\nlower = ["{base}"]\n[network]\naddress = "10.98.3.4/16"\n')
    output = host.run("autopod", "add", "one", "--base", tmp_path, expect=1)
    assert f"names another base: {base}" in output
    output = host.run("autopod", "add", "one", "--ip", "10.98.3.5/16", expect=1)
    assert "gives the pod another address: 10.98.3.4/16" in output


def test_a_broken_configuration_is_shown_not_hidden(host, base):
    host.configure("one", "[limits]\npids = 1\n")
    assert "limits.pids = 1" in host.run("autopod", "list")
    assert "limits.pids = 1" in host.run("autopod", "add", "one", "--base", base, expect=1)


def test_files_of_its_own_are_not_lost_by_accident(host, base):
    host.run("autopod", "add", "one", "--base", base)
    (host.root("one") / "mail").write_text("dear")
    output = host.run("autopod", "rm", "one", expect=1)
    assert "autopod: error: pod 'one' has files of its own" in output
    assert "--purge deletes them" in output
    assert (host.root("one") / "mail").read_text() == "dear"
    host.run("autopod", "rm", "one", "--purge")
    assert (base / "hello").exists()


@pytest.mark.parametrize(
    ("argv", "status", "said"),
    [
        (["add", "one"], 1, "has no base directory"),
        (["add", "one", "--base", "/nowhere"], 1, "the base /nowhere is not a directory"),
        (["add", "Upper", "--base", "/"], 2, "'Upper' cannot name a pod"),
        (["add", "one", "--base", "/", "--ip", "10.0.0.1"], 2, "lacks the prefix length"),
        (["rm", "one"], 1, "there is no pod 'one'"),
        (["addproc", "one", "/bin/true"], 1, "nothing is mounted at"),
        (["addproc", "one"], 2, "required: PROGRAM"),
        (["checkpoint", "one", "-o", "/tmp/never"], 1, "is not running"),
        (["restart", "one", "-i", "/nowhere.pod"], 1, "/nowhere.pod"),
        (["frobnicate"], 2, "invalid choice"),
    ],
)
def test_wrong_input_gets_words(host, argv, status, said):
    output = host.run("autopod", *argv, expect=status)
    assert said in output
    assert output.startswith("autopod: error: ")


def test_adding_twice_is_refused(host, base):
    host.run("autopod", "add", "one", "--base", base)
    assert "already added" in host.run("autopod", "add", "one", "--base", base, expect=1)


def test_base_and_bind_mount_together_are_refused(host, base, tmp_path):
    point = host.root("one")
    point.mkdir(parents=True)
    subprocess.run(["mount", "-o", "bind", base, point], check=True)
    try:
        output = host.run("autopod", "add", "one", "--base", tmp_path, expect=1)
    finally:
        subprocess.run(["umount", point], check=True)
    assert "give the base in one way" in output


def test_one_command_at_a_time(host, places, base):
    with locked(places, "one"):
        output = host.run("autopod", "add", "one", "--base", base, expect=1)
    assert "is being worked on by process" in output
