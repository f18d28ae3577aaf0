"""The daemon: mounts a stack, answers the kernel and the control socket until it is unmounted.

It never touches its own mount: its layers are private copies of their mounts, its working
directory is `/`, and whatever may wait for the mount (an unmount, which writes dirty pages out)
runs in a thread.
"""

import contextlib
import errno
import functools
import gc
import json
import logging
import os
import resource
import signal
import socket
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pyfuse3
import trio

from stackfs import abi, connection, control, holder, loop, mounts, stats, takeover
from stackfs.connection import Connection
from stackfs.control import Handler, Refused, Reply
from stackfs.holder import Board
from stackfs.journal import Journal, State
from stackfs.kept import Kept, close_all_but
from stackfs.layers.layer import Layer
from stackfs.layers.work import leftovers
from stackfs.operations import Operations
from stackfs.shift import Shift
from stackfs.shifted import ShiftedOperations
from stackfs.stack import Stack, resume_stack
from stackfs.tree import Tree

log = logging.getLogger(__name__)

_OPTIONS = {"allow_other", "default_permissions"}


@dataclass(slots=True)
class Daemon:
    """One pod's daemon.

    Attributes:
        kept: what it shares with the daemons before and after it.
        stack: its layers.
        state: what an earlier daemon left, until it is taken over.
    """

    kept: Kept
    board: Board
    stack: Stack
    tree: Tree
    operations: Operations
    state: State | None
    identities: dict[Layer, str]
    begun: float

    @classmethod
    def over(cls, kept: Kept, stack: Stack | None, board: Board) -> "Daemon":
        """Return a daemon for *stack*, or where that is None, one that takes over."""
        _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
        journal = Journal(kept.journal_fd)
        state = None
        if stack is None:
            state = journal.state()
            pinned = {pin.fd for pin in state.pins.values()}
            close_all_but({*kept.descriptors(), *pinned})
            stack = resume_stack(kept.spec, kept.base_fd, kept.work_fd, kept.lowers)
        shift = Shift(kept.spec.shift) if kept.spec.shift else None
        tree = Tree(stack.upper, stack.below, stack.work, journal, shift)
        operations = ShiftedOperations(tree, shift) if shift else Operations(tree)
        return cls(kept, board, stack, tree, operations, state, {}, time.monotonic())

    @property
    def pod(self) -> str:
        """The pod's name."""
        return self.kept.pod

    @property
    def point(self) -> Path:
        """The mount point."""
        return self.kept.point

    def serve(self, ready: Callable[[], None]) -> None:
        """Answer, having called *ready*, and return when the mount has gone."""
        os.umask(0)
        kept, journal = self.kept, self.tree.inodes.journal
        to_kernel = Connection(kept.fuse_fd, kept.init, answered=kept.answered)
        to_kernel.settle = journal.settle
        if self.state is not None:
            self._take_over(to_kernel, self.state)
        journal.settle()
        loop.install(to_kernel.before_wait, journal.settle)
        to_kernel.open(self.operations, _OPTIONS)
        _settle_process()
        if (mount := mounts.stack_at(self.point)) is not None:
            mounts.tune(mount)
        self._record()
        trio.run(self._main, ready)

    def _take_over(self, to_kernel: Connection, state: State) -> None:
        takeover.restore(self.tree, state)
        resent = connection.resent(self.kept.fuse_fd)
        replies, left = takeover.sort_out(self.tree, state.intent, resent)
        for reply in replies:
            with contextlib.suppress(FileNotFoundError):  # its caller has gone
                os.write(self.kept.fuse_fd, reply)
        to_kernel.queue.extend(left)
        self.state = None
        log.info("took over: %d inodes, %d requests", len(state.places), len(resent))

    async def _main(self, ready: Callable[[], None]) -> None:
        own = socket.socket(fileno=os.dup(self.kept.socket_fd))
        listener = trio.SocketListener(trio.socket.from_stdlib_socket(own))
        async with trio.open_nursery() as nursery:
            nursery.start_soon(control.serve, listener, self._handlers())
            nursery.start_soon(self._end_on_signal)
            nursery.start_soon(self._bound_memory)
            ready()
            # ECONNABORTED: the mount went while a request was being read, which is no failure
            # (fs/fuse/dev.c, fuse_dev_do_read()).
            try:
                await pyfuse3.main(min_tasks=1, max_tasks=loop.WORKERS)
            except* ConnectionAbortedError:
                log.info("the mount has gone while a request was on its way")
            nursery.cancel_scope.cancel()

    def _record(self) -> None:
        """Write what `stackfs list` reads."""
        spec = self.stack.spec
        record = {
            "pod": self.pod,
            "root": os.fspath(self.point / "root"),
            "pid": os.getpid(),
            "holder": os.getppid(),
            "lower": [os.fspath(path) for path in spec.lower],
            "upper": os.fspath(spec.upper),
            "shift": spec.shift,
        }
        new = self.kept.run / "stackfs.json.new"
        new.write_text(json.dumps(record) + "\n")
        new.replace(self.kept.run / "stackfs.json")

    async def _end_on_signal(self) -> None:
        """Unmount on SIGTERM or SIGINT; in use, the mount goes with its last user.

        SIGHUP says that the holder was killed: this process becomes the holder.
        """
        with trio.open_signal_receiver(signal.SIGTERM, signal.SIGINT, signal.SIGHUP) as signals:
            async for number in signals:
                if number == signal.SIGHUP:
                    holder.become(self.kept, holder.PROGRAM)
                try:
                    await self._unmount(0)
                except OSError as e:
                    log.warning("%s; detaching it", e)
                    await self._unmount(abi.MNT_DETACH)

    async def _bound_memory(self) -> None:
        """Have the kernel forget what no program uses, whenever there are too many inodes.

        Otherwise it remembers all that was ever seen, until its own memory runs short.
        """
        inodes = self.tree.inodes
        while True:
            crowded = trio.Event()
            inodes.crowded = crowded.set
            await crowded.wait()
            try:
                await trio.to_thread.run_sync(mounts.drop_unused, self.point)
            except OSError as e:  # unmounted lazily, or something is mounted over it
                log.warning("the kernel goes on to remember all inodes: %s", e)
            left = len(inodes) + 1
            while len(inodes) < left:  # what it forgets comes with the requests
                left = len(inodes)
                await trio.sleep(0.05)
            inodes.sweep()

    async def _unmount(self, flags: int) -> None:
        await trio.to_thread.run_sync(abi.umount2, os.fspath(self.point), flags)

    # --- control requests ------------------------------------------------------------------

    def _handlers(self) -> dict[str, Handler]:
        return {
            "status": self._status,
            "snapshot": self._snapshot,
            "replace": self._replace,
            "descriptors": self._descriptors,
            "stats": self._stats,
            "upgrade": self._upgrade,
            "quit": self._quit,
        }

    async def _status(self, asked: Reply) -> Reply:
        if asked.get("identify"):
            await self._identify()
        return {
            "pod": self.pod,
            "pid": os.getpid(),
            "holder": os.getppid(),
            "root": os.fspath(self.point / "root"),
            "lower": [
                {"path": os.fspath(layer.path), "identity": self.identities.get(layer)}
                for layer in self.stack.lowers
            ],
            "layers": self._layers(),
            "upper": os.fspath(self.stack.upper.path),
            "upper_empty": not leftovers(self.stack.upper.fd),
            "shift": self.stack.spec.shift,
        }

    def _layers(self) -> list[Reply]:
        return [_layer(layer) for layer in self.stack.sealed]

    async def _identify(self) -> None:
        """Work out the identities of the lower layers; they never change."""
        from stackfs.layers.identity import identity_of

        for layer in self.stack.lowers:
            if layer not in self.identities:
                work = functools.partial(identity_of, layer.fd, layer.image)
                self.identities[layer] = await trio.to_thread.run_sync(work)

    async def _snapshot(self, asked: Reply) -> Reply:
        sealed, begun = self.stack.upper, time.perf_counter()
        self.tree.seal(self.stack.seal())
        stopped = round((time.perf_counter() - begun) * 1000, 3)
        return {"layer": _layer(sealed), "layers": self._layers(), "stopped_ms": stopped}

    async def _replace(self, asked: Reply) -> Reply:
        """Use a merged layer that `stackfs flatten` has made in the work directory."""
        made = os.fsencode(asked["made"])
        old, new = self.stack.replace(made, asked["covers"], asked["number"])
        self.tree.replace(old, new)
        for layer in old:
            os.close(layer.fd)
        return {"layer": _layer(new)}

    async def _descriptors(self, asked: Reply) -> Reply:
        """Tell where the layers can be opened: whoever asks does the work, not this process."""
        stack = self.stack
        return {
            "pid": os.getpid(),
            "upper": [stack.upper.fd],
            "layers": [[int(layer.path.name), layer.fd] for layer in stack.sealed],
            "lower": [layer.fd for layer in stack.lowers],
        }

    async def _stats(self, asked: Reply) -> Reply:
        tree = self.tree
        requests = stats.requests.items()
        return {
            "pod": self.pod,
            "requests": {
                name: {"errors": stats.errors[name], "buckets": buckets}
                for name, buckets in requests
                if any(buckets)
            },
            "gauges": {
                "uptime_seconds": int(time.monotonic() - self.begun),
                "inodes": len(tree.inodes),
                "directory_descriptors": tree.inodes.open_directories,
                "file_descriptors": len(tree.inodes.contents),
                **stats.memory(),
            },
            "counters": {
                "names_remembered": tree.remembered,
                "inodes_read": tree.read,
                "directories_listed": tree.listed,
                "copy_ups": tree.copied_up,
            },
        }

    async def _upgrade(self, asked: Reply) -> Reply:
        """End, to be replaced: the next daemon answers whoever asks it."""
        if self.kept.foreground:
            raise Refused(
                f"{self.pod} is served in the foreground", "mount it without --foreground"
            )
        self.board.program = asked["program"]
        os._exit(holder.UPGRADE)

    async def _quit(self, asked: Reply) -> Reply:
        flags = abi.MNT_DETACH if asked.get("lazy") else 0
        try:
            await self._unmount(flags)
        except OSError as e:
            if e.errno == errno.EBUSY:
                raise Refused(f"{self.point} is in use") from e
            raise
        return {}


def _layer(layer: Layer) -> Reply:
    return {"id": layer.id, "path": os.fspath(layer.path)}


def _settle_process() -> None:
    """Make this a process that memory pressure does not deadlock.

    PR_SET_IO_FLUSHER (prctl(2)) keeps the kernel from writing this file system's own pages back
    to make room for an allocation of its daemon.
    """
    gc.freeze()
    gc.set_threshold(100_000, 50, 50)
    try:
        abi.prctl(abi.PR_SET_IO_FLUSHER, 1)
    except PermissionError as e:  # it needs CAP_SYS_RESOURCE
        log.info("going on without protection from memory pressure: %s", e)
