"""Each self-checking program of tests/workloads survives a checkpoint and a restart."""

import os

import pytest

from launcher import userns, users
from tests.kernel.ckpt import harness

pytestmark = [pytest.mark.needs("root", "fuse", "namespaces", "cc"), pytest.mark.slow]


OWNED = [
    *(
        "credentials.py",
        "emulated_calls.py",
        "file_locks.py",
        "first_thread.c",
        "jailed.py",
        "mappings.c",
    ),
    *("memfds.py", "mounts.py", "owners.py", "packet_sockets.py", "posix_queues.c", "ptys.py"),
    *("regular_files.py", "robust.c", "shared_memory.py", "sysv_messages.c", "sysv_semaphores.c"),
    *("sysv_shm.c", "tcp_connections.py", "threads.py", "tree.py", "ttys.py"),
    *("unix_datagrams.py", "unix_messages.py", "unix_sockets.py", "unlinked_files.py"),
]
"""Those in which somebody owns something, or a thread is made."""

STAY = {"mappings.c"}
"""What tells the device of its root, another one when that is mounted anew."""


def toml_of(name):
    return harness.configuration((harness.WORKLOADS / name).read_text())


@pytest.mark.parametrize("name", harness.names())
def test_workload(places, debian_root, build, name):
    with harness.Pod(places, debian_root, toml_of(name)) as pod:
        pod.start(*harness.install(pod, name, build))
        pod.wait_for("ready\n")
        pids = pod.host_pids().keys()
        pod.dump()
        assert pod.running() is None
        pod.restore()
        assert pod.host_pids().keys() == pids
        pod.finish(min(pids))


@pytest.mark.parametrize("name", OWNED)
def test_workload_with_other_users_of_the_host(places, debian_root, build, name):
    """In a user namespace, and then in one with other ids, as another host gives them."""
    toml = f"{toml_of(name)}\n[user]\nnamespace = true\n"
    with harness.Pod(places, debian_root, toml) as pod:
        pod.start(*harness.install(pod, name, build))
        pod.wait_for("ready\n")
        pids, before = pod.host_pids().keys(), userns.base(pod.running().init_pid)
        pod.dump()
        moved = pod.move_users() if name not in STAY else 0
        pod.restore()
        assert pod.host_pids().keys() == pids
        assert userns.base(pod.running().init_pid) == before + moved
        namespaces = {os.readlink(f"/proc/{p}/ns/user") for p in pod.host_pids().values()}
        assert namespaces == {os.readlink(f"/proc/{pod.running().init_pid}/ns/user")}
        pod.finish(min(pids))
        users.forget(places, "other")
