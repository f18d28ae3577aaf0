"""Open files through collector and workshop, without the process engine.

roundtrip() forks a process that sets up its descriptors and stops; collects it; ends it; rebuilds
the files in a second process, which gives them their numbers and checks them itself.
"""

import contextlib
import ctypes
import fcntl
import os
import pickle
import signal
import socket
import traceback

import msgspec

from ckpt.connections import Connections
from ckpt.kinds import terminal
from ckpt.model import Part, Process
from ckpt.openfiles import FileCollector
from ckpt.workshop import FileWorkshop

CLONE_NEWNET, CLONE_NEWNS = 0x40000000, 0x20000
FLOOR = 700  # above every number that a set-up uses
REPORT, CONSOLE = 690, 691
libc = ctypes.CDLL(None, use_errno=True)


def put(s, number):
    """Move a socket to descriptor *number*."""
    os.dup2(s.fileno(), number)
    s.close()


def take(number):
    """Return the socket that was put there."""
    return socket.socket(fileno=number)


class Pages:
    """A page store in memory."""

    def __init__(self):
        self.data = bytearray()

    def store(self, data):
        first, rest = divmod(len(self.data), 4096)
        assert not rest
        self.data += data
        return first

    def load(self, first, length):
        return bytes(self.data[first * 4096 : first * 4096 + length])


class OwnCalls:
    """A Remote that makes the calls in its own process."""

    def __init__(self, pid):
        self.pid = pid

    def syscall(self, name, *args):
        from ckpt.arch.x86_64 import SYSCALLS

        buffers = [
            ctypes.create_string_buffer(bytes(a), len(a)) if not isinstance(a, int) else None
            for a in args
        ]
        words = [
            ctypes.c_long(a) if buffer is None else buffer
            for a, buffer in zip(args, buffers, strict=True)
        ]
        result = libc.syscall(ctypes.c_long(SYSCALLS[name]), *words)
        if result == -1:
            err = ctypes.get_errno()
            raise OSError(err, f"{name}: {os.strerror(err)}")
        for a, buffer in zip(args, buffers, strict=True):
            if isinstance(a, bytearray):
                a[:] = buffer.raw
        return result


libc.syscall.restype = ctypes.c_long


def unshare(flags):
    if libc.unshare(flags) == -1:
        raise OSError(ctypes.get_errno(), "unshare")


def enter_namespaces(*, network=False, mounts=False):
    """A network with lo up; mounts that do not spread."""
    if network:
        unshare(CLONE_NEWNET)
        import socket
        import struct

        with socket.socket() as s:
            request = struct.pack("16sh14x", b"lo", 1)  # IFF_UP
            fcntl.ioctl(s, 0x8914, request)  # SIOCSIFFLAGS
    if mounts:
        unshare(CLONE_NEWNS)
        libc.mount(None, b"/", None, 0x44000, None)  # MS_REC | MS_PRIVATE
        while libc.umount2(b"/dev/shm", 0) == 0:
            pass  # the host's is not the pod's
        libc.mount(b"tmpfs", b"/dev/shm", b"tmpfs", 0, None)


def in_child(body):
    """Fork a process for *body*(report); return its pid and the end to read its report from."""
    out, into = os.pipe2(os.O_CLOEXEC)
    pid = os.fork()
    if pid:
        os.close(into)
        return pid, out
    status = 1
    try:
        os.dup2(into, REPORT)
        os.closerange(3, REPORT)
        os.closerange(REPORT + 1, 4096)
        signal.alarm(30)

        def report(value):
            os.write(REPORT, pickle.dumps(value))
            os.close(REPORT)

        try:
            body(report)
            status = 0
        except BaseException:  # noqa: BLE001 (the parent raises it)
            with contextlib.suppress(OSError):
                report(RuntimeError(traceback.format_exc()))
    finally:
        os._exit(status)


def read_report(fd):
    with open(fd, "rb") as f:
        data = f.read()
    value = pickle.loads(data) if data else RuntimeError("the process died without a word")
    if isinstance(value, Exception):
        raise value
    return value


@contextlib.contextmanager
def stopped(setup, *, network=False, mounts=False):
    """A process that has run setup() and stopped; gives its pid and what setup() returned."""

    def body(report):
        enter_namespaces(network=network, mounts=mounts)
        for number in range(3):
            os.dup2(os.open("/dev/null", os.O_RDWR | os.O_CLOEXEC), number)
        os.closerange(3, 10)
        report(setup())
        os.kill(os.getpid(), signal.SIGSTOP)

    pid, fd = in_child(body)
    try:
        value = read_report(fd)
        os.waitpid(pid, os.WUNTRACED)
        yield pid, value
    finally:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)


def collect(*pids, store=None, log_path="/nonexistent", extra=lambda collector: None):
    """Collect stopped processes as those of a pod."""
    root_fd = os.open(f"/proc/{pids[0]}/root", os.O_PATH)
    try:
        with FileCollector(
            pod_root_fd=root_fd, init_host_pid=pids[0], log_path=log_path, store=store
        ) as collector:
            for pid in pids:
                collector.add_process(pid, pid)
            extra(collector)
            return collector.finish()
    finally:
        os.close(root_fd)


def rebuild(files, pid, pages, log_path=None, give_console=lambda index, fd: None, pod=False):
    """In this process: rebuild *files* and take the descriptors of *pid*."""
    proc_fd = os.open("/proc", os.O_RDONLY)
    log_fd = os.open(log_path or "/dev/null", os.O_WRONLY | os.O_APPEND)
    workshop = FileWorkshop(
        files.files,
        files.objects,
        load=pages.load,
        host_proc_fd=proc_fd,
        log_fd=log_fd,
        floor_fd=FLOOR,
        give_console=give_console,
    )
    if pod:
        workshop.rebuild_pod(files.pod_parts)
    rebuilt = workshop.rebuild()
    with Connections(files.files, lambda file: os.dup(rebuilt[file]), pages.load) as connections:
        connections.settle()
        connections.release()
    os.close(proc_fd)
    os.close(log_fd)
    assert all(fd >= FLOOR for fd in rebuilt.values())
    leftover = {int(n) for n in os.listdir("/proc/self/fd")} - {
        *rebuilt.values(),
        REPORT,
        CONSOLE,
        0,
        1,
        2,
    }
    leftover = {n for n in leftover if os.path.exists(f"/proc/self/fd/{n}")}
    assert not leftover, {n: os.readlink(f"/proc/self/fd/{n}") for n in leftover}
    for descriptor in files.descriptors[pid]:
        if descriptor.fd != REPORT:
            os.dup2(rebuilt[descriptor.file], descriptor.fd, not descriptor.cloexec)
    os.closerange(FLOOR, 4096)
    process = Process(
        pid=os.getpid(),
        parent=1,
        group=1,
        session=1,
        exit_status=None,
        descriptors=[d for d in files.descriptors[pid] if d.fd != REPORT],
        threads=[],
        parts=[_own_group(part) for part in files.process_parts[pid]],
    )
    remote = OwnCalls(process.pid)
    workshop.take_terminal(process, remote)
    workshop.finish(process, remote)


def _own_group(part):
    """Put this process's group in the place of that of the dumped one, which is gone."""
    if part.kind != "terminal":
        return part
    state = msgspec.msgpack.decode(part.state, type=terminal.ProcessState)
    state = msgspec.structs.replace(state, foreground=os.getpgrp())
    return Part(part.kind, msgspec.Raw(msgspec.msgpack.encode(state)))


def roundtrip(
    setup,
    check,
    *,
    network=False,
    mounts=False,
    log_path=None,
    before=lambda: None,
    give_console=lambda index, fd: None,
):
    """Run setup() in a process, carry its files over to another, and run check(setup's value).

    *before* runs in the other process ahead of everything; where *mounts* is set, the contents of
    tmpfs are carried over, too.
    """
    pages = Pages()
    with stopped(setup, network=network, mounts=mounts) as (pid, value):
        files = collect(pid, store=pages.store, log_path=log_path or "/nonexistent")
        assert not files.refusals, files.refusals
    files = msgspec.msgpack.decode(msgspec.msgpack.encode(files), type=type(files))

    def body(report):
        enter_namespaces(network=network, mounts=mounts)
        before()
        rebuild(files, pid, pages, log_path, give_console, pod=mounts)
        check(value)
        report(None)

    child, fd = in_child(body)
    try:
        read_report(fd)
    finally:
        os.waitpid(child, 0)


def refusals(setup, *, look=True, **namespaces):
    """Return why a process after setup() is refused; a mere look says the same if *look*."""
    with stopped(setup, **namespaces) as (pid, _):
        found = collect(pid, store=Pages().store).refusals
        assert collect(pid).refusals == (found if look else [])
        return found
