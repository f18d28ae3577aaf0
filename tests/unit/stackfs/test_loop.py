"""The workers that read requests: none waits for a turn that never comes."""

import errno

import trio
import trio.testing

from stackfs import loop


async def test_a_worker_that_ends_wakes_the_one_that_waits():
    """As when a read says that the connection is gone, which poll(2) before it did not."""
    lock = loop.ReadLock()
    reading = trio.Event()

    async def reader():
        async with lock:
            reading.set()
            await trio.testing.wait_all_tasks_blocked()  # the other one waits for its turn

    async def waiter():
        await reading.wait()
        async with lock:
            pass

    try:
        with trio.fail_after(5):
            async with loop.open_nursery() as nursery:
                nursery.start_soon(reader, name="reader")
                nursery.start_soon(waiter, name="waiter")
    finally:
        loop._locks.remove(lock)


async def test_a_worker_that_finds_nothing_to_read_begins_anew():
    """As a pyfuse3 without our patch tells it, once the request was taken back."""
    tries = []

    async def worker():
        tries.append(None)
        if len(tries) < 3:
            raise OSError(errno.EAGAIN, "fuse_session_receive_buf failed")

    async with loop.open_nursery() as nursery:
        nursery.start_soon(worker)
    assert len(tries) == 3
