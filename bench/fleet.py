"""What a fleet costs as it grows: simulated hosts in the real stores (bench/simulated.py).

Measured is what the commands and processes of the project do with the store, each with a connection
of its own as they have. Left out is what does not depend on the size of the fleet: the start of an
interpreter for each command, and that a pod's memory and files are moved.
"""

import contextlib
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import msgspec
import trio

from autopod.fleet import client, owners, recovery, show
from autopod.fleet.lookout import Lookout
from autopod.fleet.owners import Claim
from autopod.fleet.place import Need
from autopod.status.policy import Fleet
from bench import picture, simulated
from bench.measure import aligned
from bench.renewals import Taken, Task
from ckpt.archive import host as machine
from launcher.places import Places
from tests.kernel.fleet import etcd

HOSTS = (10, 1_000, 10_000)
ROUNDS = 3
CHANGES = 100
PLACED = 7
RENEW_S = 10
WORKERS, AT_ONCE = 2, 16
MIB = 1 << 20
TICKS = os.sysconf("SC_CLK_TCK")

CHANGE, JOINED, PLACE, DRAIN, BEAT, LOOK = (
    "change of a pod's owner",
    "change of owner, with its connection",
    "placement of a pod",
    "drain of 100 pods",
    "beat of an agent with `recover`",
    "beat of one that looks at all hosts",
)
CAPTION = (
    "Simulated hosts with ten pods each, all armed, in three members of etcd with mutual TLS on "
    "this machine, and in a file. Medians, and what nineteen of twenty do not exceed (of few, the "
    "greatest). Each command's own connection is counted; the start of its interpreter and the "
    "move of memory and files are not."
)
Times = dict[str, list[float]]


class Costs(msgspec.Struct):
    """What one store cost with so many hosts.

    Attributes:
        hosts: how many.
        times: seconds, by what was done.
        build_s: seconds until all entries were there.
        disk: bytes of the database, of one member.
        memory: bytes of each of etcd's members.
        renewals: a second, as fast as they are answered, and
        renewal_s: how long one takes then.
        processor: seconds of a processor that a renewal costs all members of etcd.
    """

    hosts: int
    times: Times
    build_s: float = 0
    disk: int = 0
    memory: list[int] = []
    renewals: float = 0
    renewal_s: list[float] = []
    processor: float = 0


class File:
    """A store in a file of this machine."""

    name = "SQLite"

    def __init__(self, directory: Path) -> None:
        self._file = directory / "fleet.db"
        self.fleet = Fleet(file=os.fspath(self._file), patience_s=60)

    async def tidy(self) -> None:
        pass

    async def disk(self) -> int:
        return sum(path.stat().st_size for path in self._file.parent.glob("fleet.db*"))

    def memory(self) -> list[int]:
        return []

    def processor(self) -> float:
        return 0


class Cluster:
    """A store in three members of etcd, with mutual TLS."""

    name = "etcd"

    def __init__(self, cluster: etcd.Cluster) -> None:
        self._cluster = cluster
        access = msgspec.structs.asdict(cluster.access())
        known = ("endpoints", "ca", "certificate", "key", "patience_s")
        self.fleet = Fleet(**{key: access[key] for key in known})

    async def tidy(self) -> None:
        """Do what the option --auto-compaction-retention of docs/fleet.md does now and then."""
        now = (await self._cluster.call("kv/range", {"key": b"x"}))["header"]["revision"]
        await self._cluster.call("kv/compaction", {"revision": now})

    async def disk(self) -> int:
        said = await self._cluster.call("maintenance/status")
        return int(said["dbSize"])

    def memory(self) -> list[int]:
        return [_resident(pid) for pid in self._pids()]

    def processor(self) -> float:
        return sum(_processor(pid) for pid in self._pids())

    def _pids(self) -> list[int]:
        return [process.pid for process in self._cluster._members]


def measure(scratch: Path, sizes: tuple[int, ...] = HOSTS, say=print) -> dict[str, list[Costs]]:
    """Return what each store costs with each number of hosts."""
    found: dict[str, list[Costs]] = {}
    for hosts in sizes:
        for opened in (_file, _etcd):
            directory = scratch / f"{opened.__name__}{hosts}"
            directory.mkdir()
            with opened(directory) as store:
                costs = trio.run(_measure, store, hosts)
                _renew(store, costs, costs.times.pop("leases"))
            say(f"{store.name}, {hosts:,} hosts: built in {costs.build_s:.0f} s")
            found.setdefault(store.name, []).append(costs)
    return found


@contextlib.contextmanager
def _file(directory: Path) -> Iterator[File]:
    yield File(directory)


@contextlib.contextmanager
def _etcd(directory: Path) -> Iterator[Cluster]:
    with etcd.running(directory) as cluster:
        yield Cluster(cluster)


async def _measure(store: File | Cluster, hosts: int) -> Costs:
    places = Places.from_environment()
    fingerprint = simulated.acquaint(places, hosts)
    begin = time.perf_counter()
    leases = await simulated.build(store.fleet, hosts, fingerprint)
    costs = Costs(hosts, {"leases": leases}, time.perf_counter() - begin)
    await store.tidy()
    costs.disk, costs.memory = await store.disk(), store.memory()
    taken, fleet = costs.times, store.fleet
    taken[CHANGE] = await _changes(fleet, hosts)
    taken[JOINED] = await _hand_overs(fleet, hosts)
    taken[PLACE] = [await _timed(_place, fleet, places) for _ in range(PLACED)]
    for what, lot in ((BEAT, 1.0), (LOOK, 0.0)):
        taken[what] = [await _beat(fleet, lot) for _ in range(PLACED)]
    taken[DRAIN] = []
    for _ in range(ROUNDS):
        taken[DRAIN].append(await _timed(_drain, fleet, places))
        async with client.opened(fleet) as opened:
            await simulated.put_back(opened)
    return costs


async def _timed(do, *arguments) -> float:
    begin = time.perf_counter()
    await do(*arguments)
    return time.perf_counter() - begin


async def _changes(fleet: Fleet, hosts: int) -> list[float]:
    """Pods change hands, as a receiver takes them over that was let go on."""
    taken = []
    async with client.opened(fleet) as store:
        for at in range(CHANGES):
            number = at % (hosts - 1) + 1
            pod, new = simulated.pods_of(number)[0], simulated.name(number - 1)
            wanted = Claim(new, former=simulated.name(number), session=f"there{at}")
            taken.append(await _timed(owners.claim, store, pod, wanted))
            back = Claim(simulated.name(number), former=new, session=f"back{at}")
            taken.append(await _timed(owners.claim, store, pod, back))
    return taken


async def _hand_overs(fleet: Fleet, hosts: int) -> list[float]:
    taken = []
    for at in range(CHANGES // 4):
        number = at % (hosts - 1) + 1
        pod, mine, other = simulated.pods_of(number)[1], number, number - 1
        taken.append(await _timed(_hand_over, fleet, pod, mine, simulated.name(other)))
        back = Claim(simulated.name(mine), former=simulated.name(other))
        async with client.opened(fleet) as store:
            await owners.claim(store, pod, back)
    return taken


async def _hand_over(fleet: Fleet, pod: str, former: int, new: str) -> None:
    """Do what autopod/fleet/handover.py does, without the wait for the pod."""
    wanted = Claim(new, former=simulated.name(former), session="session")
    async with client.opened(fleet) as store:
        owner, _ = await owners.read(store, pod)
        if owners.against(owner, wanted):
            raise RuntimeError(f"{pod}: it is not where it should be: {owner}")
        await owners.claim(store, pod, wanted)


async def _place(fleet: Fleet, places: Places) -> str:
    """Do what `autopod fleet place POD` does once it knows what the pod needs."""
    known = show.known(places)
    async with client.opened(fleet) as store:
        found = await show.choices(store, _need(0), known, [])
    return found[0].host


async def _beat(fleet: Fleet, lot: float) -> float:
    """Let an agent look once, on the connection that it has; tell how long that took."""
    lookout = Lookout(lambda: lot)
    async with client.opened(fleet) as store:
        await lookout.look(store)  # it counts the members, and connects
        begin = time.perf_counter()
        await recovery.armed_pods(store, simulated.name(1))
        await lookout.look(store)
        return time.perf_counter() - begin


async def _drain(fleet: Fleet, places: Places) -> None:
    """Do what a drain does with the store: ask for all pods, then hand over one after the other."""
    known, pods = show.known(places), simulated.pods_of(simulated.DRAINED)
    async with client.opened(fleet) as store:
        found = await show.plan(store, [_need(at) for at in range(len(pods))], known, [])
    for pod in pods:
        await _hand_over(fleet, pod, simulated.DRAINED, found[pod][0].host)


def _need(at: int) -> Need:
    """What a pod of the host that is drained needs."""
    here = machine.describe()
    layers = simulated.layers_of(at)
    pod = simulated.pods_of(simulated.DRAINED)[at]
    return Need(pod, here.architecture, here.cpu_features, 512 * MIB, layers)


def _renew(store: File | Cluster, costs: Costs, leases: list[int]) -> None:
    """Renew leases from several processes, as fast as they are answered."""
    before = store.processor()
    workers = [
        subprocess.Popen(
            [sys.executable, "-m", "bench.renewals", str(AT_ONCE), str(RENEW_S)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        )
        for _ in range(WORKERS)
    ]
    for at, worker in enumerate(workers):
        worker.stdin.write(msgspec.json.encode(Task(store.fleet, leases[at::WORKERS])))
        worker.stdin.close()
    taken = [msgspec.json.decode(worker.stdout.read(), type=Taken) for worker in workers]
    for worker in workers:
        worker.stdout.close()
        worker.wait()
    costs.renewal_s = [one for each in taken for one in each.each]
    costs.renewals = len(costs.renewal_s) / RENEW_S
    costs.processor = (store.processor() - before) / len(costs.renewal_s)


def _resident(pid: int) -> int:
    text = Path(f"/proc/{pid}/status").read_text()
    [line] = [line for line in text.splitlines() if line.startswith("VmRSS:")]
    return int(line.split()[1]) * 1024


def _processor(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / TICKS


def tables(found: dict[str, list[Costs]]) -> str:
    """Return what was measured as Markdown, a table for each store."""
    return "\n".join(f"### {name}\n\n{aligned(_lines(each))}" for name, each in found.items())


def growth(found: dict[str, list[Costs]]) -> dict[str, picture.Lines]:
    """Return what picture.lines() draws: medians in milliseconds, by number of hosts."""
    return {
        store: {
            what: {one.hosts: 1000 * statistics.median(one.times[what]) for one in each}
            for what in each[0].times
        }
        for store, each in found.items()
    }


def _lines(each: list[Costs]) -> list[tuple[str, ...]]:
    lines = [
        ("", *(f"{one.hosts:,} hosts" for one in each)),
        *((f"{what}, ms", *(_spread(one.times[what]) for one in each)) for what in each[0].times),
        ("build of all entries, s", *(f"{one.build_s:.1f}" for one in each)),
        ("database, MiB", *(f"{one.disk / MIB:.1f}" for one in each)),
        ("renewals of leases, a second", *(f"{one.renewals:.0f}" for one in each)),
        ("a renewal then, ms", *(_spread(one.renewal_s) for one in each)),
    ]
    if each[0].memory:
        memory = (" / ".join(f"{one >> 20}" for one in costs.memory) for costs in each)
        processor = (f"{1000 * one.processor:.2f}" for one in each)
        lines += [
            ("memory of etcd's members, MiB", *memory),
            ("processor of all members for a renewal, ms", *processor),
        ]
    return lines


def _spread(seconds: list[float]) -> str:
    """Median, and the value that nineteen of twenty do not exceed, in milliseconds."""
    values = sorted(1000 * one for one in seconds)
    late = values[min(len(values) - 1, len(values) * 95 // 100)]
    return f"{statistics.median(values):,.1f} (95 %: {late:,.1f})"
