"""A root tree made by an enemy cannot turn the making of a pod against the host."""

import os
import shutil
from pathlib import Path

import pytest

from launcher import cgroups, config, network, pods
from launcher.errors import PodError

pytestmark = pytest.mark.needs("root", "namespaces", "cc")

PROBE = r"""
#include <stdio.h>
#include <sys/stat.h>
int main(int argc, char **argv) {
    struct stat st;
    for (int i = 1; i < argc; i++) {
        if (lstat(argv[i], &st)) perror(argv[i]);
        else printf("%s %o %x\n", argv[i], st.st_mode, (unsigned) st.st_rdev);
    }
    return 0;
}
"""


@pytest.fixture
def tree(host, small_tree):
    """A tree with a program only, mounted as the root of pod `a`."""
    tree = Path(small_tree(PROBE))
    host.mount("a", tree)
    return tree


def refused(host, match):
    network.ensure(host.places, config.load(host.places, "a"))  # which is kept
    before = Path("/proc/self/mountinfo").read_text()
    with pytest.raises(PodError, match=match):
        host.create("a")
    assert Path("/proc/self/mountinfo").read_text() == before
    assert pods.find(host.places, "a") is None
    assert cgroups.leftovers(host.places, "a") == []


def test_missing_mount_points_are_made(host, tree):
    out = host.launch("run", "a", "/probe", "/dev/null", "/proc/self/exe", "/sys").stdout

    assert out.splitlines()[0] == "/dev/null 20666 103"
    assert sorted(os.listdir(host.places.root("a"))) == ["dev", "probe", "proc", "sys"]


@pytest.mark.parametrize("name", ["dev", "proc", "sys"])
@pytest.mark.parametrize("target", ["/", "/tmp", "../../../../../..", "/proc/self/root"])
def test_mount_point_is_a_symbolic_link(host, tree, name, target):
    (tree / name).symlink_to(target)

    refused(host, f"on /{name} .*: Too many levels of symbolic links")


@pytest.mark.parametrize("name", ["dev", "proc", "sys"])
def test_mount_point_is_a_file(host, tree, name):
    (tree / name).write_text("")

    refused(host, f"on /{name} .*: Not a directory")


def test_device_in_the_tree_is_a_link_to_the_host(host, tree):
    """The device that masks and programs use is one that we made, in a new file system."""
    core_pattern = Path("/proc/sys/kernel/core_pattern").read_bytes()
    (tree / "dev").mkdir()
    (tree / "dev/null").symlink_to("/proc/sys/kernel/core_pattern")
    (tree / "dev/pts").symlink_to("/tmp")
    (tree / "dev/shm").symlink_to("/tmp")

    out = host.launch("run", "a", "/probe", "/dev/null", "/dev/pts/ptmx", "/proc/kallsyms").stdout

    assert out.splitlines() == [
        "/dev/null 20666 103",
        "/dev/pts/ptmx 20666 502",
        "/proc/kallsyms 20666 103",
    ]
    assert Path("/proc/sys/kernel/core_pattern").read_bytes() == core_pattern


def test_proc_in_the_tree_looks_like_proc(host, tree):
    (tree / "proc/sys").mkdir(parents=True)
    (tree / "proc/kallsyms").symlink_to("/probe")
    (tree / "proc/self").symlink_to("/")

    out = host.launch("run", "a", "/probe", "/proc/kallsyms", "/proc/self/exe").stdout

    assert out.splitlines() == ["/proc/kallsyms 20666 103", "/proc/self/exe 120777 0"]


def test_a_program_of_the_launchers_that_lies_in_the_tree_is_not_used(host, tree):
    """Whatever the launcher loads while it enters, it does not load from the pod."""
    library = Path(f"{tree}/usr/lib/python3.11/encodings")
    library.mkdir(parents=True)
    (library / "__init__.py").write_text("raise SystemExit('taken over')")
    shutil.copy(tree / "probe", tree / "catatonit")

    assert host.launch("run", "a", "/probe", "/probe").stdout.startswith("/probe 100")
