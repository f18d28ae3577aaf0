"""A process that renews leases as fast as it is answered; `bench/fleet.py` starts several.

    python -m bench.renewals AT_ONCE SECONDS <FILE

FILE is JSON: the table `fleet`, and leases. It prints the seconds that each renewal took, and the
seconds that this process was on a processor meanwhile.
"""

import itertools
import sys
import time

import msgspec
import trio

from autopod.fleet import client
from autopod.status.policy import Fleet


class Task(msgspec.Struct):
    """What is to be done."""

    fleet: Fleet
    leases: list[int]


class Taken(msgspec.Struct):
    """What it took, in seconds."""

    each: list[float]
    processor: float


async def renew(task: Task, at_once: int, seconds: float) -> Taken:
    each: list[float] = []
    async with client.opened(task.fleet) as store:
        for lease in task.leases[:at_once]:  # connections are there then
            await store.renew(lease)
        begin, end = time.process_time(), time.monotonic() + seconds
        turn = itertools.cycle(task.leases)

        async def work() -> None:
            while time.monotonic() < end:
                asked = time.perf_counter()
                await store.renew(next(turn))
                each.append(time.perf_counter() - asked)

        async with trio.open_nursery() as nursery:
            for _ in range(at_once):
                nursery.start_soon(work)
    return Taken(each, time.process_time() - begin)


def main() -> None:
    at_once, seconds = int(sys.argv[1]), float(sys.argv[2])
    task = msgspec.json.decode(sys.stdin.buffer.read(), type=Task)
    sys.stdout.buffer.write(msgspec.json.encode(trio.run(renew, task, at_once, seconds)))


if __name__ == "__main__":
    main()
