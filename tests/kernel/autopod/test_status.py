"""The security state of a host and its pods, by the real apt and an archive made on the spot."""

import json
import os
from datetime import timedelta

import pytest

from autopod.status import podfiles
from launcher.places import Places
from tests.kernel.autopod.repository import NEW, OLD, install, new_kernel

pytestmark = [pytest.mark.needs("root", "fuse", "namespaces"), pytest.mark.slow]


def ask(host, expect=None):
    """Known is also the state of a host that has faults: its exit status is another one."""
    return json.loads(host.run("autopod", "status", "--json", expect=expect))


def test_a_new_kernel_is_seen_before_its_installation_and_after_it(archive, host, prefix):
    unchanged = ask(host)
    assert (unchanged["level"], unchanged["updates"]) == ("none", [])
    assert unchanged["unknown"] is None
    assert unchanged["reboot_pending"] == []
    policy = prefix / "etc/autopod/autopod.toml"
    policy.write_text(policy.read_text().replace("changelogs_s = 0", "changelogs_s = 600"))
    new_kernel(archive)
    archive.add("libthing1", "1.1~deb12u1")
    archive.publish()
    report = ask(host)
    found = {update["package"]: update for update in report["updates"]}
    assert report["level"] == "reboot"
    assert report["reboot_pending"] == [], "nothing is installed yet"
    assert set(found) == {"linux-image-amd64", f"linux-image-{NEW}", "libthing1"}
    assert found["libthing1"]["level"] == "restart"
    assert found["linux-image-amd64"]["installed"] == "6.1.90-1"
    assert found["linux-image-amd64"]["advisories"] == ["CVE-2026-12345", "DSA-6001-1"]
    assert "Debian-Security" in found[f"linux-image-{NEW}"]["origin"]
    (prefix / "etc/autopod/rules.toml").write_text(
        '[[rule]]\npackages = ["linux-image-*"]\nlevel = "none"\nreason = "patched live"\n'
    )
    shown = host.run("autopod", "status", "--explain", expect=None)
    assert "patched live" in shown
    assert "installing them needs: restart" in shown
    install(prefix / "status", archive, NEW, "6.1.158-1")
    (prefix / "reboot-required").write_text("*** System restart required ***\n")
    (prefix / "reboot-required.pkgs").write_text("linux-base\nlinux-base\n")
    assert ask(host)["reboot_pending"] == [
        f"kernel {NEW} is installed, {OLD} runs",
        "asked for by linux-base",
    ]


def truncated(archive):
    archive.add("other", "1.0")  # apt need not fetch again what has not changed
    archive.publish()
    archive.truncate()


BROKEN = {
    "expired": lambda a: a.publish(age=timedelta(days=8)),
    "unsigned": lambda a: a.publish(key=None),
    "signed by somebody else": lambda a: a.publish(key="stranger"),
    "truncated": truncated,
    "unreachable": lambda a: a.suite.rename(a.suite.with_name("gone")),
}


def test_metadata_that_cannot_be_relied_upon_is_no_news(archive, host):
    """Although the lists that were fetched before are good, and tell of a new kernel."""
    new_kernel(archive)
    archive.publish()
    assert ask(host)["level"] == "reboot"
    for how, broken in BROKEN.items():
        broken(archive)
        report = ask(host, 3)
        assert (report["level"], report["updates"]) == ("unknown", []), how
        assert report["unknown"], how


def test_software_of_a_pod(archive, host, prefix):
    """Read beneath its root, which points to files of the host and holds what is no file."""
    root = prefix / "base"
    for directory in ("usr/lib", "var/lib/dpkg"):
        (root / directory).mkdir(parents=True)
    release, status = root / "usr/lib/os-release", root / "var/lib/dpkg/status"
    release.write_text("VERSION_CODENAME=bookworm\n")
    status.write_text(archive.installed(("libthing1", "1.0"), ("linux-image-amd64", "6.1.90-1")))
    archive.add("libthing1", "1.1")
    archive.publish()
    host.run("autopod", "add", "web", "--base", root)

    [pod] = ask(host)["pods"]
    [update] = pod["updates"]
    assert (update["package"], update["candidate"], update["level"]) == (
        "libthing1", "1.1", "restart",
    )  # fmt: skip
    seen = host.root("web") / "var/lib/dpkg/status"
    for make in (lambda: os.symlink("/var/lib/dpkg/status", seen), lambda: os.mkfifo(seen)):
        seen.unlink()
        make()
        with pytest.raises(podfiles.Unreadable):
            podfiles.read(Places(prefix), "web", "var/lib/dpkg/status")
