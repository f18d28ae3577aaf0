"""What an older kernel does not tell of an event counter is found out, and changes nothing."""

import os

import pytest

from ckpt.kinds import eventfd


@pytest.mark.parametrize("count", [0, 1, 2, 7, 2**64 - 2])
@pytest.mark.parametrize("semaphore", [False, True])
def test_a_semaphore_is_told_from_a_counter(count, semaphore):
    fd = os.eventfd(0, os.EFD_NONBLOCK | (os.EFD_SEMAPHORE if semaphore else 0))
    try:
        if count:
            os.eventfd_write(fd, count)
        assert eventfd.is_semaphore(fd, count) == semaphore
        with open(f"/proc/self/fdinfo/{fd}") as info:
            assert f"eventfd-count: {count:16x}\n" in info.read()
    finally:
        os.close(fd)
