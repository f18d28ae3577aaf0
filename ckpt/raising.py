"""Model -> processes, in a pod that is fresh and has none.

Built in stages (ckpt/kinds/stages.py), each in all processes before the next begins. Everything
ptrace happens on this thread, and nothing made here outlives it until the release at the end.
"""

import contextlib
import itertools
import os
import struct
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, ExitStack
from functools import partial
from typing import TYPE_CHECKING, Any, Final

from ckpt import abi, collect, embryo, plan
from ckpt.connections import Connections
from ckpt.embryo import Embryo
from ckpt.kinds import credentials, registers, sharing, thread_signals
from ckpt.kinds.abi import pidfd_open
from ckpt.kinds.stages import Stage, Target, name_of
from ckpt.model import PAGE_SIZE, Pod, Process, Thread
from ckpt.remote import Remote
from ckpt.seed import RestoreError, Seed, plant
from ckpt.spaces import Pages, Spaces
from ckpt.states import state_of
from ckpt.tracee import ALL_SIGNALS, Tracee, bury
from ckpt.workshop import FileWorkshop
from launcher import enter, pods

if TYPE_CHECKING:
    from ckpt.lazy import Lazy

_KINDS: Final = {name_of(kind): kind for kind in (*collect.PROCESS_KINDS, *collect.THREAD_KINDS)}
_NO_LIMIT: Final = (1 << 32) - 1
_ALL_SIGNALS: Final = struct.pack("<Q", ALL_SIGNALS)
_NO_TIME: Final = struct.pack("<QQ", 0, 0)


def raise_processes(  # noqa: PLR0913 (what a restart lends it)
    running: pods.Pod,
    model: Pod,
    *,
    pages: Pages,
    give_console: Callable[[int, int], None],
    give_listener: Callable[[int], None],
    gate: Callable[[], None],
    open_network: Callable[[], AbstractContextManager[None]],
    lazy: "Lazy | None" = None,
) -> list[str]:
    """Make the processes of *model* in the pod and let them go.

    Args:
        running: the pod; it has its init only.
        model: what it is to hold.
        pages: what is in memory.
        give_console: see ckpt.seed.plant().
        give_listener: takes the listener of a filter, and duplicates it.
        gate: called when all stand, before one is let go; if it raises, none is.
        open_network: lets packets pass when it is entered, after the gate; when it is left, TCP
            connections can take what comes.
        lazy: brings memory that need not be there before; None: all is.

    Returns:
        What is not quite as it was, and why.

    Raises:
        RestoreError: the model cannot be built here.
        OSError: a system call failed; notes say where.
    """

    def load(first: int, length: int) -> bytes:
        return pages.read(first, -(-length // PAGE_SIZE))[:length]

    used = plan.used_pids(model.processes)
    spare = (pid for pid in itertools.count(2) if pid not in used)
    seed_pid = next(spare)
    seed = plant(running, model, seed_pid, load=load, give_console=give_console)
    with ExitStack() as stack:
        stack.callback(seed.end)
        # The kernel takes 10 ms and more for that, and computes nothing.
        joined = stack.enter_context(ThreadPoolExecutor(1)).submit(
            enter.join_cgroups, running, seed.host_pid
        )
        tcp = stack.enter_context(Connections(model.files, seed.duplicate, load))
        raising = _Raising(
            model, seed, seed_pid, spare, pages, give_listener=give_listener, lazy=lazy
        )
        stack.callback(raising.kill)
        joined.result()  # before it has children
        raising.build()
        tcp.settle()
        if lazy:
            lazy.settle()
        gate()
        with open_network(), enter.network(running):
            tcp.release()
        raising.release()
    return raising.notes


class _Raising:
    """One restart.

    Attributes:
        notes: what is not quite as it was.
    """

    def __init__(  # noqa: PLR0913 (what a restart lends it)
        self,
        model: Pod,
        seed: Seed,
        seed_pid: int,
        spare: Iterator[int],
        pages: Pages,
        *,
        give_listener: Callable[[int], None],
        lazy: "Lazy | None",
    ) -> None:
        self._give_listener = give_listener
        self.notes: list[str] = []
        self._model = model
        self._processes = {process.pid: process for process in model.processes}
        self._living = [p for p in model.processes if p.exit_status is None]
        self._seed = seed
        self._spare = spare
        self._shared = {
            process.pid: state_of(part, sharing.State)
            for process in model.processes
            for part in process.parts
            if part.kind == name_of(sharing)
        }
        self._tables = self._find_tables()
        self._spaces = Spaces(model, pages, lazy)
        occupied = self._spaces.occupied()
        first, self._area = embryo.take_seed(seed.host_pid, seed_pid, occupied)
        self._embryos: dict[int, Embryo] = {plan.SEED: first}
        self._numberer: embryo.Numberer | None = None
        self._timeouts: list[tuple[registers.Timeout, Target]] = []
        self._files = FileWorkshop(
            model.files,
            model.objects,
            load=lambda _first, _length: b"",
            host_proc_fd=-1,
            log_fd=-1,
            floor_fd=seed.floor_fd,
            give_console=lambda _index, _fd: None,
        )

    def _find_tables(self) -> dict[int, list[int]]:
        """Return who has one table of descriptors, by each of those; parents come first.

        Raises:
            RestoreError: one shares that of a parent who is not there.
        """
        tables: dict[int, list[int]] = {}
        for process in self._living:
            pid, parent = process.pid, process.parent
            shares = pid in self._shared and self._shared[pid].files
            if shares and parent not in tables:
                raise RestoreError(f"process {pid} has the descriptors of a parent, but no parent")
            tables[pid] = tables[parent] if shares else []
            tables[pid].append(pid)
        return tables

    def build(self) -> None:
        """Build everything."""
        self._make_tree()
        for process in self._living:
            self._build(process)
        if self._numberer is not None:
            self._numberer.end()
            self._numberer = None
        for process in self._model.processes:
            if process.exit_status is not None:
                ended = self._embryos[process.pid]
                self._leave_host(ended.remote)
                embryo.end(ended, process.exit_status)
        for process in self._living[:1]:
            self._files.finish_pod(self._model.parts, self._embryos[process.pid].remote)
        for process in self._living:
            self._files.finish(process, self._embryos[process.pid].remote)
        for stage in (Stage.SETTLE, Stage.CONFINE):
            for process in self._living:
                self._rebuild(process, stage)
        for process in self._living:
            _drain(self._embryos[process.pid].remote)
            self._rebuild(process, Stage.ARM)
            self._complete(process)

    def release(self) -> None:
        """Let all go; the first ones may kill others that are still to go."""
        for timeout, target in self._timeouts:
            registers.shorten(timeout, target)
        killed: list[Tracee] = []
        for process in self._living:
            made = self._embryos.pop(process.pid)
            tracees = [remote.tracee for remote in made.threads.values()]
            killed += [tracee for tracee in tracees if not tracee.detach()]
            made.remote.memory.close()
        bury(killed)

    def kill(self) -> None:
        """Kill what was not let go."""
        if self._numberer is not None:
            self._numberer.kill()
        for made in self._embryos.values():
            # The leader, which is the first, is reported when the others have been waited for.
            for remote in reversed(made.threads.values()):
                remote.tracee.kill()
            made.remote.memory.close()

    # --- the tree ------------------------------------------------------------------------

    def _make_tree(self) -> None:
        """Clone all processes; the seed, the workshop and all helpers end."""
        first = self._embryos[plan.SEED]
        if self._seed.users_fd is not None:
            self._numberer = embryo.Numberer(
                first, next(self._spare), self._area, self._seed.host_proc_fd
            )
        credentials.narrow(self._credentials(), first.remote)
        first.remote.syscall("close_range", 0, self._seed.floor_fd - 1, 0)
        for step in plan.plan(self._model.processes):
            self._take(step)
        self._seed.end()

    def _credentials(self) -> Iterator[credentials.State]:
        for thread in itertools.chain.from_iterable(p.threads for p in self._living):
            for part in thread.parts:
                if part.kind == name_of(credentials):
                    yield state_of(part, credentials.State)

    def _take(self, step: plan.Step) -> None:
        match step:
            case plan.Clone(maker, pid):
                quiet = pid not in self._spaces and not self._is_zombie(pid)
                flags = sharing.clone_flags(self._shared[pid]) if pid in self._shared else 0
                self._embryos[pid] = embryo.clone(
                    self._embryos[maker], pid, self._area, quiet=quiet, sharing=flags
                )
                self._give_memory(maker, pid)
            case plan.CloneOrphan(maker, pid):
                parent = self._embryos[maker]
                between = embryo.clone(parent, next(self._spare), self._area, quiet=True)
                self._embryos[pid] = embryo.clone(between, pid, self._area)
                embryo.end(between)
                embryo.reap(parent, between.pid)
                self._give_memory(maker, pid)
            case plan.NewSession(pid):
                self._embryos[pid].remote.syscall("setsid")
                for process in self._living:
                    if process.pid == pid:
                        self._files.take_terminal(process, self._embryos[pid].remote)
            case plan.JoinGroup(pid, group):
                self._embryos[pid].remote.syscall("setpgid", 0, group)
            case plan.End(pid, maker):
                ended = self._embryos.pop(pid)
                embryo.end(ended)
                if maker in self._spaces:
                    embryo.reap(self._embryos[maker], pid)

    def _give_memory(self, maker: int, pid: int) -> None:
        """Give a process that *maker* has just cloned its memory, if it has one."""
        self._spaces.clone(maker, pid)
        if pid in self._spaces:
            remote = self._embryos[pid].remote
            self._spaces.give(self._target(self._processes[pid], pid, remote), self._area)

    def _is_zombie(self, pid: int) -> bool:
        return any(p.pid == pid and p.exit_status is not None for p in self._model.processes)

    # --- one process ---------------------------------------------------------------------

    def _build(self, process: Process) -> None:
        """Descriptors, directory, threads, and what its memory still lacks."""
        made = self._embryos[process.pid]
        remote, sharers = made.remote, self._tables[process.pid]
        for descriptor in process.descriptors if process.pid == sharers[0] else ():
            flags = os.O_CLOEXEC if descriptor.cloexec else 0
            remote.later("dup3", self._seed.files[descriptor.file], descriptor.fd, flags)
        target = self._target(process, process.pid, remote)
        self._spaces.finish(target, self._area)
        self._rebuild_parts(process, target, Stage.BUILD)
        self._leave_host(remote)
        if process.pid == sharers[-1]:
            remote.syscall("close_range", self._seed.floor_fd, _NO_LIMIT, 0)
        further = [thread.tid for thread in process.threads if thread.tid != process.pid]
        embryo.clone_threads(made, further, self._area, self._numberer)
        first = process.threads[0]
        if first.tid != process.pid:
            self._end_leader(process, made, first)

    def _leave_host(self, remote: Remote) -> None:
        """Have a process enter the pod's user namespace, if it has one, while it has one thread."""
        if self._seed.users_fd is not None:
            credentials.enter_namespace(self._seed.users_fd, remote)

    def _end_leader(self, process: Process, made: Embryo, heir: Thread) -> None:
        """End the first thread, which others outlive, before a child can ask to be told of it.

        Whoever sends signals to the process is still compared with its credentials.
        """
        for part in heir.parts:
            if part.kind == name_of(credentials):
                state = state_of(part, credentials.State)
                credentials.rebuild(state, self._target(process, process.pid, made.remote))
        embryo.end_leader(made, heir.tid)

    def _target(self, process: Process, tid: int, remote: Remote) -> Target:
        return Target(
            process=process,
            tid=tid,
            host_pid=remote.tracee.tid,
            remote=remote,
            file=self._seed.files.__getitem__,
            note=partial(self._note, process.pid),
            give_listener=partial(self._fetch_listener, process.pid),
        )

    def _note(self, pid: int, text: str) -> None:
        note = f"process {pid}: {text}"
        if note not in self.notes:
            self.notes.append(note)

    def _fetch_listener(self, pid: int, target_fd: int) -> None:
        """Hand the listener *target_fd* of process *pid* over."""
        pidfd = pidfd_open(self._embryos[pid].remote.tracee.tid)
        try:
            listener_fd = abi.pidfd_getfd(pidfd, target_fd)
        finally:
            os.close(pidfd)
        try:
            self._give_listener(listener_fd)
        finally:
            os.close(listener_fd)

    def _rebuild(self, process: Process, stage: Stage) -> None:
        """Do one stage of a process: its threads, then what belongs to all of them."""
        made = self._embryos[process.pid]
        for thread in process.threads:
            target = self._target(process, thread.tid, made.threads[thread.tid])
            self._rebuild_parts(thread, target, stage)
        first = process.threads[0].tid
        self._rebuild_parts(process, self._target(process, first, made.remote), stage)

    def _rebuild_parts(self, owner: Process | Thread, target: Target, stage: Stage) -> None:
        for part in owner.parts:
            kind: Any = _KINDS.get(part.kind)
            if kind is None or stage != kind.STAGE or kind is registers:
                continue
            state = state_of(part, kind.State)
            with _noting(f"{part.kind} of thread {target.tid}"):
                kind.rebuild(state, target)
        with _noting(f"thread {target.tid}"):
            target.remote.flush()

    def _complete(self, process: Process) -> None:
        """Take the scratch area away and set the registers: it is the program again."""
        made = self._embryos[process.pid]
        self._spaces.leave_area(made.remote, self._area)
        for thread in process.threads:
            target = self._target(process, thread.tid, made.threads[thread.tid])
            parts = {part.kind: part for part in thread.parts}
            signals = state_of(parts[name_of(thread_signals)], thread_signals.State)
            state = state_of(parts[name_of(registers)], registers.State)
            registers.rebuild(state, target)
            if state.timeout is not None:
                self._timeouts.append((state.timeout, target))
            target.tracee.set_blocked(thread_signals.mask(signals))


@contextlib.contextmanager
def _noting(what: str) -> Iterator[None]:
    """Say in an error what was being rebuilt."""
    try:
        yield
    except OSError as e:
        e.add_note(f"while rebuilding {what}")
        raise


def _drain(remote: Remote) -> None:
    """Take away the signals that came of the restart itself (SIGCHLD of zombies, above all)."""
    with contextlib.suppress(BlockingIOError):
        while True:
            remote.syscall("rt_sigtimedwait", _ALL_SIGNALS, 0, _NO_TIME, 8)
