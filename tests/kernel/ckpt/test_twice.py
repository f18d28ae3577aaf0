"""What a restart rebuilt can be checkpointed and restarted in its turn."""

import pytest

from tests.kernel.ckpt import harness

pytestmark = [pytest.mark.needs("root", "fuse", "namespaces", "cc"), pytest.mark.slow]

# The kinds whose rebuilt form differs most from what a program makes.
WORKLOADS = [
    "unlinked_files.py",
    "unix_sockets.py",
    "epolls.py",
    "ptys.py",
    "memfds.py",
    "guards.c",
    "sysv_shm.c",
    "sysv_semaphores.c",
    "sysv_messages.c",
]


@pytest.mark.parametrize("name", WORKLOADS)
def test_twice(places, debian_root, build, name):
    with harness.Pod(places, debian_root) as pod:
        pod.start(*harness.install(pod, name, build))
        pod.wait_for("ready\n")
        pid = min(pod.host_pids())
        for _ in range(2):
            assert pod.check() == []
            pod.dump()
            pod.restore()
        pod.finish(pid)
