"""Memory of huge pages (hugetlbfs) comes back as it was, or is refused by name."""

import fcntl
from pathlib import Path

import pytest

from ckpt.seed import RestoreError
from tests.kernel.ckpt import harness

pytestmark = [pytest.mark.needs("root", "fuse", "namespaces", "cc", "huge_pages"), pytest.mark.slow]

POOL = Path("/sys/kernel/mm/hugepages/hugepages-2048kB")
PAGES = 16
ORDINARY = '[network]\nmode = "none"\n[memory]\nhuge_pages = "ordinary"\n'


def resize(pages):
    (POOL / "nr_hugepages").write_text(str(pages))
    return int((POOL / "free_hugepages").read_text())


@pytest.fixture
def pool():
    """Some huge pages of the host, for as long as the test takes; one test at a time has them."""
    with (POOL / "nr_hugepages").open() as number:
        fcntl.flock(number, fcntl.LOCK_EX)
        before = int(number.read())
        try:
            assert resize(before + PAGES) >= PAGES, "the host has no such memory free"
            yield before
        finally:
            resize(before)


def start(pod, build):
    pod.put("/tmp/hugetlb", build(Path(__file__).with_name("hugetlb.c")).read_bytes())
    pod.start("/tmp/hugetlb")
    pod.wait_for_match("^(ready|fail.*)$")
    return min(pod.host_pids())


@pytest.mark.parametrize("goes_on", [False, True])
def test_all_kinds(places, exim_root, build, pool, goes_on):
    with harness.Pod(places, exim_root) as pod:
        pid = start(pod, build)
        assert pod.check() == []
        pod.dump(leave_running=goes_on)
        if goes_on:
            pod.finish(pid)
            assert "huge mappings: 6\n" in pod.log()
            harness.tool("launcher", "kill", pod.name)
            places.log(pod.name).write_text("")
        pod.restore()
        pod.finish(pid)
        assert "huge mappings: 6\n" in pod.log()


def test_a_host_without_them_refuses(places, exim_root, build, pool):
    with harness.Pod(places, exim_root) as pod:
        pid = start(pod, build)
        pod.dump()
        resize(0)  # what others have is kept
        with pytest.raises(RestoreError, match="huge pages of 2048 KiB") as refused:
            pod.restore()
        assert "memory.huge_pages" in refused.value.hint
        assert pod.running() is None
        places.config(pod.name).write_text(ORDINARY)
        pod.restore()
        pod.finish(pid)
        assert "huge mappings: 0\n" in pod.log()
