"""System calls made in a process that is being made: one by one, and in one go out of a table."""

import errno
import os
import subprocess

import pytest

from ckpt import embryo, procfs
from ckpt.arch import x86_64 as arch
from examples.exim.mail import wait_until

pytestmark = pytest.mark.needs("root")

SET_NAME = 15  # PR_SET_NAME


@pytest.fixture
def made():
    """A process in a pid namespace, with nothing but a scratch area; and that area."""
    argv = ["unshare", "--pid", "--fork", "--kill-child", "sh", "-c", "sleep infinity & wait"]
    process = subprocess.Popen(argv, stdin=subprocess.DEVNULL)
    init = child(process.pid, b"sh")
    seed, area = embryo.take_seed(child(init, b"sleep"), 2, [])
    yield seed, area
    for remote in reversed(seed.threads.values()):
        remote.tracee.kill()
    seed.remote.memory.close()
    process.kill()
    process.wait()


def child(parent, called):
    """Return the host pid of the child of that name, when it is there."""

    def look():
        children = procfs.read(parent, f"task/{parent}/children").split()
        return [int(pid) for pid in children if name(pid) == called]

    wait_until(look, f"the process {called!r}")
    return look()[0]


def name(host_pid):
    return procfs.read_bytes(host_pid, "comm").strip()


def rename(remote, text):
    remote.later("prctl", SET_NAME, text + b"\0", 0, 0, 0)


def test_calls_wait_for_one_another(made):
    seed, _ = made
    rename(seed.remote, b"one")
    rename(seed.remote, b"two")
    assert name(seed.host_pid) == b"sleep"
    seed.remote.flush()
    assert name(seed.host_pid) == b"two"


def test_a_call_with_a_result_comes_after_those_that_wait(made):
    seed, _ = made
    seed.remote.later("dup3", 0, 50, os.O_CLOEXEC)
    assert seed.remote.syscall("fcntl", 50, 1) == 1  # F_GETFD, FD_CLOEXEC


def test_the_first_that_fails_is_the_last_that_is_made(made):
    seed, _ = made
    rename(seed.remote, b"before")
    seed.remote.later("close", 999)
    rename(seed.remote, b"behind")
    with pytest.raises(OSError, match=f"^.*close in process {seed.pid}") as caught:
        seed.remote.flush()
    assert caught.value.errno == errno.EBADF
    assert name(seed.host_pid) == b"before"
    seed.remote.flush()
    assert name(seed.host_pid) == b"before"


def test_more_calls_than_the_buffer_holds(made):
    seed, _ = made
    many = 2 * embryo._BUFFER // arch.BATCH_ENTRY_SIZE
    for number in range(many):
        rename(seed.remote, b"%d" % number)
    seed.remote.flush()
    assert name(seed.host_pid) == b"%d" % (many - 1)


def test_data_that_is_put_is_there_for_those_that_wait(made):
    seed, _ = made
    seed.remote.later("prctl", SET_NAME, seed.remote.put(b"first\0"), 0, 0, 0)
    seed.remote.later("prctl", SET_NAME, seed.remote.put(b"second\0"), 0, 0, 0)
    assert name(seed.host_pid) == b"first"
    seed.remote.flush()
    assert name(seed.host_pid) == b"second"


def test_threads_have_their_numbers(made):
    seed, area = made
    embryo.clone_threads(seed, [300, 100, 200], area)
    assert sorted(seed.threads) == [2, 100, 200, 300]
    for tid, remote in seed.threads.items():
        rename(remote, b"thread %d" % tid)
        remote.flush()
        assert name(remote.tracee.tid) == b"thread %d" % tid
    inner = [
        procfs.inner_pid(procfs.parse_status(procfs.read(remote.tracee.tid, "status")))
        for remote in seed.threads.values()
    ]
    assert inner == [*seed.threads]


def test_threads_up_to_the_one_that_cannot_be(made):
    seed, area = made
    with pytest.raises(OSError, match="clone3") as caught:
        embryo.clone_threads(seed, [100, 1, 200], area)
    assert caught.value.errno == errno.EEXIST
    assert [*seed.threads] == [2, 100]  # known, so that it can be ended
