"""What a restart rebuilt can be checkpointed and restarted in its turn."""

import pytest

from tests.kernel.ckpt import harness

pytestmark = [pytest.mark.needs("root", "fuse", "namespaces", "cc"), pytest.mark.slow]

# The kinds whose rebuilt form differs most from what a program makes.
WORKLOADS = [
    "unlinked_files.py",
    "unix_sockets.py",
    "unix_messages.py",
    "epolls.py",
    "ptys.py",
    "memfds.py",
    "guards.c",
    "posix_queues.c",
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


@pytest.mark.parametrize(
    "name", ["posix_queues.c", "sysv_shm.c", "sysv_semaphores.c", "unix_messages.py"]
)
def test_nothing_is_touched(places, debian_root, build, name):
    """Looking at these takes more than reading; a pod that goes on must not notice."""
    with harness.Pod(places, debian_root) as pod:
        pod.start(*harness.install(pod, name, build))
        pod.wait_for("ready\n")
        pod.dump(leave_running=True)
        pod.finish(min(pod.host_pids()))
