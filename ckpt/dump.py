"""`ckpt dump`: a running pod -> an archive.

The pod stands still only while what exists in the kernel alone is taken: registers, signals, maps,
open files, a copy-on-write copy of each process's memory, and a sealed layer of its file system.
Everything of size is read afterwards. If anything fails the pod goes on as it was, and no archive
is left.
"""

import os
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Final, Protocol

from msgspec import Struct

from ckpt import abi, connections, lazy, procfs, sealing, users
from ckpt.ahead import Ahead
from ckpt.archive.write import ArchiveWriter
from ckpt.check import check_processes, shows_files
from ckpt.copied import Copied
from ckpt.freeze import Freeze, FrozenProcess
from ckpt.kinds import memory, registers
from ckpt.model import Clocks, NotCheckpointable, Refusal
from ckpt.openfiles import FileCollector
from ckpt.progress import Progress
from ckpt.snapshot import Snapshot, clocks_of, collect_all, model_of
from ckpt.stackcommand import Packing
from ckpt.wire import Wire
from launcher import config, enter, holder, network, overlay, pods, userns
from launcher.places import Places

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
    from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PublicKey

    from ckpt.archive.read import Archive

_MORE_LOOKS: Final = 3
_PAUSE_S: Final = 0.02


class DumpReport(Struct, frozen=True):
    """What a dump took.

    Attributes:
        frozen_ns: from the first interrupt to the last detach, or until all but the pages was
            taken where it was not to go on.
        began_ns: when the freeze began, of time.monotonic_ns().
        total_ns: of the whole dump.
        archive_bytes: size of the archive.
        raw_bytes: what is in it, uncompressed.
        notes: what is not in it, and why.
    """

    frozen_ns: int
    began_ns: int
    total_ns: int
    archive_bytes: int
    raw_bytes: int
    notes: list[str]


class Handover(Protocol):
    """Who takes the pod over where it does not go on here.

    Attributes:
        below: ids of the sealed layers that are there already, bottommost first.
    """

    below: Sequence[str]

    def pass_on(self, fd: int, size: int, *, much: bool) -> None:
        """Take *size* bytes of the archive, which is being written to *fd*.

        What stands before the pages is not there yet. With *much* the rest comes soon, too.
        """

    def pass_files(self) -> None:
        """Take what was written to files so far, and add to *below*: soon the pod stands still."""

    def pass_last_files(self, sealed: sealing.Stack, clocks: Clocks, packing: Packing) -> None:
        """Take what was written since, and add to *below*: the pod stands still.

        Args:
            sealed: all that it has written.
            clocks: what they are in the pod.
            packing: ready for a layer.
        """

    def offer(self) -> None:
        """Take the archive, which is complete, while the pod is frozen; raise, and it goes on.

        Afterwards the archive and the pod's layers here are durable.
        """

    def release(self, held: Sequence[bytes]) -> None:
        """Let the pod go on elsewhere: here it has ended.

        Args:
            held: what has come for it since it stood still (launcher.held).
        """


def check(places: Places, pod: str) -> list[Refusal]:
    """Return what stands against a checkpoint of the running pod; nothing is touched.

    After a lazy restart this waits until all memory has arrived.

    Raises:
        PodError: the pod is not running.
    """
    running = _running(places, pod)
    policy = config.load(places, pod).network.tcp
    with _root_of(running) as root_fd:
        return _check(places, running, root_fd, policy)


def dump(  # noqa: PLR0913 (the command's own choices)
    places: Places,
    pod: str,
    path: Path,
    *,
    leave_running: bool,
    key: "Ed25519PrivateKey",
    progress: Progress,
    handover: Handover | None = None,
    tcp: str | None = None,
    recipients: "Sequence[X25519PublicKey]" = (),
    earlier: "Archive | None" = None,
) -> DumpReport:
    """Checkpoint a running pod into the archive *path*.

    Args:
        places: the instance.
        pod: its name.
        path: the archive to write.
        leave_running: let the pod go on; else it has ended when this returns.
        key: signs the archive.
        progress: is told of the long steps.
        handover: takes the pod over when it ends here.
        tcp: what becomes of TCP connections: "keep", "close" or "listen-only"; None: as configured.
        recipients: whom the archive is encrypted to; none: it is not.
        earlier: the archive that it builds upon; not with *handover*.

    Raises:
        NotCheckpointable: the pod holds what cannot be carried over; nothing was changed.
        PodError: the pod is not running, no program runs in it, or it cannot be ended.
        OSError: the pod goes on, and there is no archive.
    """
    began = time.monotonic_ns()
    running = _running(places, pod)
    settings = config.load(places, pod)
    policy = tcp or settings.network.tcp
    with ExitStack() as stack:
        root_fd = stack.enter_context(_root_of(running))
        packing = _packing(places, stack)  # it takes long to start: while the pod runs
        _raise_any(_check(places, running, root_fd, policy))
        writer = stack.enter_context(
            ArchiveWriter(path, key, progress=progress, recipients=recipients, earlier=earlier)
        )
        ahead = stack.enter_context(Ahead(running, writer.pages.add))
        _copy_ahead(ahead, writer, handover, progress)
        abi.syncfs(root_fd)  # so that little is left to write while the pod stands still
        wire = stack.enter_context(Wire(running))  # entering and leaving it takes a while
        freeze = stack.enter_context(Freeze())
        stack.callback(wire.open)
        frozen = _stop(running, freeze, wire if handover else None)
        clocks = clocks_of(running)
        sealed = _seal(places, pod, root_fd)
        if handover:  # these first: where it goes they are needed before all else
            handover.pass_last_files(sealed, clocks, packing)
        copied = ahead.finish(frozen)
        collector = stack.enter_context(
            _collector(places, running, root_fd, policy, writer.pages.add, wire)
        )
        snapshot = collect_all(running, frozen, collector, stack, clocks, goes_on=leave_running)
        wire.have_read(connections.in_use(collector.sources()))
        if leave_running:
            _read_while_frozen(snapshot, writer)
            _let_go(freeze, snapshot, collector, wire)
        frozen_ns = time.monotonic_ns() - freeze.began_ns
        _read_pages(snapshot, writer, copied, progress, frozen=not leave_running)
        writer.set_model(users.of_pod(model_of(pod, snapshot), userns.base(running.init_pid)))
        writer.set_config(config.dump(network.pin(places, settings)).encode())
        with progress.step("file system"):
            sealing.write_layers(
                writer, sealed, packing, handover.below if handover else (), durable=not handover
            )
        summary = writer.commit(durable=not handover)
        if handover:
            handover.offer()
        if not leave_running:
            _end(running, freeze, collector, wire)
            _release(running, freeze, handover, wire)
    return DumpReport(
        frozen_ns,
        freeze.began_ns,
        time.monotonic_ns() - began,
        summary.bytes,
        summary.raw_bytes,
        wire.lost,
    )


def _seal(places: Places, pod: str, root_fd: int) -> sealing.Stack:
    """Seal what the pod, which stands still, has written."""
    abi.syncfs(root_fd)
    return sealing.seal(places, pod)


def _stop(running: pods.Pod, freeze: Freeze, wire: Wire | None) -> list[FrozenProcess]:
    """Stop the pod's processes; what comes for it from now on is held back by *wire*."""
    frozen = freeze.stop_all(lambda: enter.pids(running))
    if wire is not None:
        wire.hold()
    return frozen


def _copy_ahead(
    ahead: Ahead, writer: ArchiveWriter, handover: Handover | None, progress: Progress
) -> None:
    """Store memory while the pod runs, if somebody is there to be given it."""
    if handover is None:
        return
    give = handover.pass_on

    def settle() -> None:
        writer.pages.settle()
        give(*writer.so_far(), much=False)

    with progress.step("memory, while it runs"):
        ahead.copy(lambda: give(*writer.so_far(), much=True), settle)
        handover.pass_files()


def _packing(places: Places, stack: ExitStack) -> Packing:
    packing = Packing(places)
    stack.callback(packing.abandon)
    return packing


def _raise_any(refusals: list[Refusal]) -> None:
    if refusals:
        raise NotCheckpointable(*refusals)


def _running(places: Places, pod: str) -> pods.Pod:
    """Return the pod, when all of its memory is there."""
    running = pods.find(places, pod)
    if running is None:
        raise pods.PodError(f"pod {pod!r} is not running", f"see launcher start {pod} PROGRAM")
    lazy.wait(places, pod)
    return running


@contextmanager
def _root_of(running: pods.Pod) -> Iterator[int]:
    fd = os.open(f"/proc/{running.init_pid}/root", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        yield fd
    finally:
        os.close(fd)


def _check(places: Places, running: pods.Pod, root_fd: int, tcp: str) -> list[Refusal]:
    """Look at a pod that runs, and so changes under the look: what counts is found every time."""
    found = _look(places, running, root_fd, tcp)
    for _ in range(_MORE_LOOKS):
        if not found:
            break
        time.sleep(_PAUSE_S)
        again = _look(places, running, root_fd, tcp)
        found = [refusal for refusal in found if refusal in again]
    return found


def _look(places: Places, running: pods.Pod, root_fd: int, tcp: str) -> list[Refusal]:
    host_pids = enter.pids(running)
    found = check_processes(running.init_pid, host_pids)
    with _collector(places, running, root_fd, tcp) as collector:
        for pid in host_pids:
            _add_process(collector, pid)
        found += collector.finish().refusals
    return found


def _add_process(collector: FileCollector, host_pid: int) -> None:
    """Look at the descriptors of a process that may end meanwhile."""
    try:
        status = procfs.parse_status(procfs.read(host_pid, "status"))
        view = procfs.view(host_pid)
        if view is not None and shows_files(view):  # else check_processes() has refused it
            collector.add_process(host_pid, procfs.inner_pid(status), view)
    except (FileNotFoundError, ProcessLookupError):
        pass


def _collector(
    places: Places,
    running: pods.Pod,
    root_fd: int,
    tcp: str,
    store: Callable[[bytes | memoryview], int] | None = None,
    wire: Wire | None = None,
) -> FileCollector:
    return FileCollector(
        pod_root_fd=root_fd,
        init_host_pid=running.init_pid,
        log_path=os.fspath(places.log(running.name)),
        store=store,
        tcp=tcp,
        mark=overlay.own_mark(places),
        hold_network=wire.hold_for if wire else lambda _fd: None,
    )


def _read_while_frozen(snapshot: Snapshot, writer: ArchiveWriter) -> None:
    """Read what the copies lack, or everything of a process that has none."""
    for living in snapshot.living.values():
        pid, add = living.process.view, writer.pages.add
        if memory.unforked(living.space):
            living.space = memory.fill(living.space, pid, add, only_unforked=True)
        if living.state.copy is None:
            living.space = memory.fill(living.space, pid, add, only_unforked=False)


def _read_pages(
    snapshot: Snapshot,
    writer: ArchiveWriter,
    copied: dict[int, Copied],
    progress: Progress,
    *,
    frozen: bool,
) -> None:
    """Read from the processes that stay *frozen* what is not stored already, or the copies."""
    add = writer.pages.add
    with progress.step("memory"):
        for living in snapshot.living.values():
            pid, copy = living.process.view, living.state.copy
            stored = copied.get(living.process.host_pid)
            if frozen:
                for only in (True, False):
                    living.space = memory.fill(
                        living.space, pid, add, only_unforked=only, copied=stored
                    )
            elif copy:
                living.space = memory.fill(living.space, copy.tid, add, only_unforked=False)
                copy.kill()


def _let_go(freeze: Freeze, snapshot: Snapshot, collector: FileCollector, wire: Wire) -> None:
    collector.close()  # what the program closes is to be closed
    wire.open()
    for living in snapshot.living.values():
        for tracee in living.state.quiet:
            registers.repeat_quietly(tracee)
    freeze.thaw()


def _end(running: pods.Pod, freeze: Freeze, collector: FileCollector, wire: Wire) -> None:
    """End the pod; its connections without a word to their peers, unless they are to be closed."""
    holder.leave(running.places, running.name)  # what is killed now is not to be started again
    pods.kill(running)
    freeze.kill_all()
    if collector.tcp != "close":
        wire.keep_closed()
        connections.silence(collector.sources())


def _release(running: pods.Pod, freeze: Freeze, handover: Handover | None, wire: Wire) -> None:
    """Take away what is left of a pod that has ended; whoever takes it over may let it go on."""
    try:
        if handover:
            network.leave_network(running.places, running.name)
            handover.release(wire.caught())
    finally:
        freeze.await_end()
    pods.destroy(running.places, running.name)
