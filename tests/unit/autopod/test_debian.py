"""What apt, dpkg, uname and needrestart write is understood, and none of it is fatal."""

import subprocess
from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec.structs import replace

from autopod.status import debian, kernels, rules, versions
from autopod.status.policy import Host
from launcher.places import Places
from launcher.toml import ConfigError

SIMULATED = """\
The following packages have been kept back:
   docker.io (20.10 => 20.11)
The following NEW packages will be installed:
   linux-image-6.1.0-41-amd64 (6.1.158-1)
Remv old-thing [1.0]
Inst linux-image-6.1.0-41-amd64 (6.1.158-1 Debian-Security:12/oldstable-security [amd64])
Inst libc6:i386 [2.36-9] (2.36-9+deb12u1 Debian:12.1/stable, Debian-Security:12/x [i386]) []
Conf libc6:i386 (2.36-9+deb12u1 Debian:12.1/stable [i386])
"""
NOW = datetime(2026, 11, 27, 7, tzinfo=UTC)


def test_a_plan():
    plan = debian.parse_plan(SIMULATED)
    assert plan.removed == ["old-thing"]
    assert [(s.package, s.installed, s.candidate, s.kept) for s in plan.steps] == [
        ("docker.io", "20.10", "20.11", True),
        ("linux-image-6.1.0-41-amd64", None, "6.1.158-1", False),
        ("libc6", "2.36-9", "2.36-9+deb12u1", False),
    ]
    assert plan.steps[1].origin == "Debian-Security:12/oldstable-security"
    assert plan.steps[2].origin == "Debian:12.1/stable, Debian-Security:12/x"


def test_a_package_whose_installation_was_broken_off():
    """Apt would do the rest of it, and says no more than that."""
    plan = debian.parse_plan(
        "Conf linux-image-6.1.0-41-amd64 (6.1.158-1 Debian-Security:12 [amd64])\n"
    )
    [step] = plan.steps
    assert (step.package, step.installed, step.candidate, step.broken_off) == (
        "linux-image-6.1.0-41-amd64", None, "6.1.158-1", True,
    )  # fmt: skip


@settings(deadline=None, max_examples=60)
@given(st.text())
def test_nothing_that_is_written_is_fatal(text):
    """A pod may write anything into its files."""
    debian.parse_plan(text)
    debian.parse_status(text)
    debian.source(debian.release_fields(text))
    debian.advisories(text, text)
    debian.codename(text)
    kernels.parse_running(text)
    kernels.parse_needrestart(text)
    versions.key(text)


VERSIONS = st.from_regex(r"([0-9]:)?[0-9][0-9a-z.+~]{0,5}(-[0-9a-z.+~]{1,3})?", fullmatch=True)


@settings(max_examples=40, deadline=None)
@given(VERSIONS, VERSIONS)
def test_versions_are_ordered_as_dpkg_does(one, two):
    is_less = versions.key(one) < versions.key(two)
    argv = ["dpkg", "--compare-versions", one, "lt", two]
    assert (subprocess.run(argv, check=False).returncode == 0) == is_less


@pytest.mark.parametrize(
    ("dated", "until", "says"),
    [
        (timedelta(), timedelta(days=7), None),
        (timedelta(days=-8), timedelta(days=-1), "valid until"),
        (timedelta(days=-30), None, "30 days ago"),
        (timedelta(days=3), None, "in the future"),
        (None, None, "no date"),
    ],
)
def test_age(dated, until, says):
    known = debian.Source(
        "Debian-Security",
        "bookworm-security",
        None if dated is None else NOW + dated,
        None if until is None else NOW + until,
    )
    found = debian.staleness(known, NOW, 14)
    assert found is None if says is None else says in found


def test_which_archives_are_security_s():
    release = {"Label": "Debian-Security", "Codename": "bookworm-security", "Origin": "Debian"}
    assert debian.is_security(["l=Other", "n=*-security"], release)
    assert debian.is_security(["o=Debian,l=Debian-Security"], release)
    assert not debian.is_security(["o=Other,n=*-security"], release)
    assert not debian.is_pin("l=x\nPin-Priority: 1000")


def test_a_signed_release_file():
    text = "-----BEGIN PGP SIGNED MESSAGE-----\nHash: SHA256\n\nLabel: L\nSHA256:\n aa 1 x\n"
    assert debian.release_fields(text)["Label"] == "L"
    assert debian.release_fields("Label: L\nCodename: c\n")["Codename"] == "c"


def test_software_that_is_older_than_offered():
    installed = debian.parse_status(
        "Package: a\nStatus: install ok installed\nArchitecture: amd64\nVersion: 1.0\n\n"
        "Package: b\nStatus: deinstall ok config-files\nArchitecture: amd64\nVersion: 1.0\n\n"
        "Package: c\nStatus: hold ok installed\nArchitecture: all\nVersion: 2.0\n"
    )
    offered = {("a", "amd64"): "1.0+deb12u1", ("b", "amd64"): "2.0", ("c", "all"): "2.0~1"}
    assert debian.outdated(installed, offered) == [("a", "1.0", "1.0+deb12u1")]


IMAGES = {
    ("linux-image-6.1.0-9-amd64", "amd64"): "6.1.27-1",
    ("linux-image-6.1.0-41-amd64", "amd64"): "6.1.158-1",
    ("linux-image-6.1.0-42-cloud-amd64", "amd64"): "6.1.159-1",
    ("linux-image-amd64", "amd64"): "6.1.158-1",
}


@pytest.mark.parametrize(
    ("uname", "says"),
    [
        ("6.1.0-41-amd64 #1 SMP Debian 6.1.158-1 (2026-01-01)", None),
        ("6.1.0-9-amd64 #1 SMP Debian 6.1.27-1 (2023-01-01)", "6.1.0-41-amd64 is installed"),
        ("6.1.0-41-amd64 #1 SMP Debian 6.1.150-1 (2026-01-01)", "it runs as 6.1.150-1"),
        ("6.1.0-42-cloud-amd64 #1 SMP Debian 6.1.159-1 (2026-01-01)", None),
    ],
)
def test_which_kernel_the_next_boot_brings(uname, says):
    running, build = kernels.parse_running(uname)
    found = kernels.newer(kernels.expect(kernels._images(IMAGES), running), running, build)
    assert found is None if says is None else says in found


STATUS = """\
Package: linux-image-6.1.0-40-amd64
Status: install ok installed
Version: 6.1.90-1

Package: linux-image-6.1.0-41-amd64
Status: install ok {}
Version: 6.1.158-1
"""


@pytest.mark.parametrize(
    ("state", "brings", "broken_off"),
    [
        ("installed", "6.1.0-41-amd64", []),
        ("triggers-pending", "6.1.0-41-amd64", []),
        ("unpacked", "6.1.0-40-amd64", ["6.1.0-41-amd64"]),
        ("half-configured", "6.1.0-40-amd64", ["6.1.0-41-amd64"]),
        ("half-configured\nConfig-Version: 6.1.150-1", "6.1.0-41-amd64", []),
        ("half-installed", "6.1.0-40-amd64", []),
    ],
)
def test_a_kernel_that_the_boot_loader_was_never_told_of(tmp_path, state, brings, broken_off):
    """Its postinst tells it; once told, it has the kernel, whatever becomes of an upgrade."""
    (tmp_path / "status").write_text(STATUS.format(state))
    running = ["echo", "6.1.0-40-amd64 #1 SMP Debian 6.1.90-1 (2024-05-03)"]
    host = Host(running, dpkg_status=f"{tmp_path}/status", reboot_required=f"{tmp_path}/required")
    found = kernels.look(host)
    assert (found.expected, found.broken_off) == (brings, broken_off)
    assert (found.newer is None) == (brings == found.running)


def test_what_needrestart_finds_in_boot_may_be_broken_off():
    seen = kernels.NeedRestart(3, "6.1.0-41-amd64", [])
    found = kernels.Kernel("6.1.0-40-amd64", None, "6.1.0-40-amd64", None, None, seen)
    assert found.pending == ["needrestart: 6.1.0-41-amd64 is installed"]
    assert replace(found, broken_off=["6.1.0-41-amd64"]).pending == []


def test_needrestart():
    found = kernels.parse_needrestart(
        "NEEDRESTART-VER: 3.6\nNEEDRESTART-KCUR: 6.1.0-40-amd64\n"
        "NEEDRESTART-KEXP: 6.1.0-41-amd64\nNEEDRESTART-KSTA: 3\nNEEDRESTART-SVC: ssh.service\n"
    )
    assert found == kernels.NeedRestart(3, "6.1.0-41-amd64", ["ssh.service"])


@pytest.mark.parametrize(
    ("package", "level"),
    [
        ("linux-image-6.1.0-41-amd64", "reboot"),
        ("linux-headers-6.1.0-41-amd64", "none"),
        ("libc6", "restart"),
        ("tzdata", "none"),
        ("intel-microcode", "reboot"),
        ("exim4-daemon-light", "restart"),
    ],
)
def test_the_rules_that_are_shipped(tmp_path, package, level):
    found, reason = rules.judge(rules.load(Places(tmp_path)), package)
    assert (found, bool(reason)) == (level, True)


def test_own_rules_come_first_and_errors_name_the_key(tmp_path):
    file = tmp_path / "etc/autopod/rules.toml"
    file.parent.mkdir(parents=True)
    file.write_text('[[rule]]\npackages = ["tz*"]\nlevel = "reboot"\nreason = "clocks"\n')
    assert rules.judge(rules.load(Places(tmp_path)), "tzdata") == ("reboot", "clocks")
    file.write_text('[[rule]]\npackages = ["tz*"]\nlevel = "boot"\nreason = "clocks"\n')
    with pytest.raises(ConfigError, match=r"rule.*level"):
        rules.load(Places(tmp_path))
