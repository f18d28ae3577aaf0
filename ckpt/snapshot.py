"""The frozen pod: collected, and as the model."""

import time
from contextlib import ExitStack

from msgspec import Struct

from ckpt import collect, plan
from ckpt.arch import x86_64 as arch
from ckpt.descriptions import Files
from ckpt.freeze import FrozenProcess
from ckpt.kinds import memory, sharing, sysvsem
from ckpt.lineage import Lineage, lineages
from ckpt.model import MODEL_VERSION, Clocks, NotCheckpointable, Part, Pod, Process, Refusal
from ckpt.openfiles import FileCollector
from launcher import pods


class Living(Struct):
    """A frozen process with its state; the pages are still to be read."""

    process: FrozenProcess
    state: collect.Collected
    space: memory.State


class Snapshot(Struct, frozen=True):
    """The frozen pod, collected.

    Attributes:
        clocks: at the freeze.
        processes: all of them.
        family: where each stands, by host pid.
        living: by their ids in the pod.
        files: what they have open.
        shared: what processes share with their parents, by the ids of those that do.
    """

    clocks: Clocks
    processes: list[FrozenProcess]
    family: dict[int, Lineage]
    living: dict[int, Living]
    files: Files
    shared: dict[int, sharing.State]


def clocks_of(running: pods.Pod) -> Clocks:
    """Return what the clocks are in the pod, now."""
    return Clocks(
        time.clock_gettime_ns(time.CLOCK_MONOTONIC) + running.clocks.monotonic_ns,
        time.clock_gettime_ns(time.CLOCK_BOOTTIME) + running.clocks.boottime_ns,
        time.clock_gettime_ns(time.CLOCK_REALTIME),
    )


def collect_all(
    running: pods.Pod,
    frozen: list[FrozenProcess],
    collector: FileCollector,
    stack: ExitStack,
    clocks: Clocks,
    *,
    goes_on: bool,
) -> Snapshot:
    """Collect all but the pages. Copies of processes, if it *goes_on*, are ended by *stack*.

    *clocks* are those of the moment from which its time is to go on.

    Raises:
        NotCheckpointable: something cannot be carried over.
        PodError: there is no program.
    """
    semaphores = sysvsem.semaphores(running.init_pid)
    living: dict[int, Living] = {}
    refusals: list[Refusal] = []
    for process in frozen:
        if not process.threads:
            continue

        def file_id(name: str, process: FrozenProcess = process) -> int:
            path = f"/proc/{process.view}/{name}"
            return collector.add_path(process.host_pid, process.pid, path)

        collector.add_process(process.host_pid, process.pid, process.view)
        state = collect.collect(process, file_id, refusals, semaphores, goes_on=goes_on)
        living[process.pid] = Living(process, state, state.memory)
        if state.copy:
            stack.callback(state.copy.kill)
    family = lineages({process.host_pid: process.status for process in frozen})
    shared = _look_for_sharing(frozen, family, refusals)
    files = collector.finish()
    if refusals or files.refusals:
        raise NotCheckpointable(*refusals, *files.refusals)
    if not living:
        raise empty(running.name)
    return Snapshot(clocks, frozen, family, living, files, shared)


def _look_for_sharing(
    frozen: list[FrozenProcess], family: dict[int, Lineage], refusals: list[Refusal]
) -> dict[int, sharing.State]:
    living = {process.pid: process for process in frozen if process.threads}
    shared, refused = sharing.find(
        [
            sharing.Member(pid, family[process.host_pid].parent, process.view)
            for pid, process in living.items()
        ]
    )
    refusals += [living[pid].refusal(what, sharing.WHY) for pid, what in refused.items()]
    return shared


def empty(name: str) -> pods.PodError:
    """Return what stands against a checkpoint of pod *name*, in which no program runs."""
    return pods.PodError(f"no program runs in pod {name!r}: there is nothing to checkpoint")


def model_of(name: str, snapshot: Snapshot) -> Pod:
    """Return the model of pod *name*, whose pages have been read."""
    files = snapshot.files
    return Pod(
        version=MODEL_VERSION,
        name=name,
        architecture=arch.ARCHITECTURE,
        clocks=snapshot.clocks,
        processes=_sorted([_process(p, snapshot) for p in snapshot.processes]),
        files=files.files,
        objects=files.objects,
        parts=files.pod_parts,
    )


def _process(frozen: FrozenProcess, snapshot: Snapshot) -> Process:
    living, files = snapshot.living.get(frozen.pid), snapshot.files
    lineage = snapshot.family[frozen.host_pid]
    return Process(
        pid=frozen.pid,
        parent=lineage.parent,
        group=lineage.group,
        session=lineage.session,
        exit_status=None if living else int(frozen.stat[52]),
        descriptors=files.descriptors[frozen.pid] if living else [],
        threads=living.state.threads if living else [],
        parts=_parts(living, snapshot) if living else [],
    )


def _parts(living: Living, snapshot: Snapshot) -> list[Part]:
    pid = living.process.pid
    own = [collect.part(memory, living.space), *living.state.parts]
    if pid in snapshot.shared:
        own.insert(0, collect.part(sharing, snapshot.shared[pid]))
    return own + snapshot.files.process_parts[pid]


def _sorted(processes: list[Process]) -> list[Process]:
    """Return them parents before children."""
    children: dict[int, list[Process]] = {}
    for process in sorted(processes, key=lambda p: p.pid):
        children.setdefault(process.parent, []).append(process)
    ordered, waiting = [], children.pop(plan.INIT, [])
    while waiting:
        process = waiting.pop(0)
        ordered.append(process)
        waiting += children.pop(process.pid, [])
    return ordered
