"""What of a machine goes into an archive, and what stands against another one."""

import os

import pytest

from ckpt.archive import host
from ckpt.archive.schema import Host


@pytest.mark.parametrize(
    ("cpuinfo", "machine", "features"),
    [
        (
            "processor\t: 0\nflags\t\t: fpu vme sse2 avx2 hypervisor aes\n\n"
            "processor\t: 1\nflags\t\t: sse2\n",
            "x86_64",
            ["aes", "avx2", "sse2"],
        ),
        ("processor\t: 0\nFeatures\t: fp asimd sve\n", "aarch64", ["asimd", "fp", "sve"]),
        ("processor\t: 0\nflags\t\t:\n", "x86_64", []),
        ("", "x86_64", []),
    ],
)
def test_features(cpuinfo, machine, features):
    assert host.cpu_features(cpuinfo, machine) == features


def test_this_machine_can_go_on_here():
    here = host.describe()
    assert here.kernel == os.uname().release
    assert host.missing(here) == []
    assert host.missing(Host("2.6.32", here.architecture, [])) == []


def test_what_stands_against_it():
    here = host.describe()
    assert host.missing(Host("6.1", "s390x", [])) == [
        f"it was taken on s390x, this is {here.architecture}"
    ]
    more = Host("6.1", here.architecture, [*here.cpu_features, "zz2", "zz1"])
    assert host.missing(more) == ["this CPU lacks zz1, zz2"]
