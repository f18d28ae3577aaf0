"""The monitor: carries out what the programs of a pod may not ask of the kernel themselves.

Its own process, on trio; the holder starts it, and starts another if it dies. It receives calls
from the listeners of the pod's filters, reads their arguments out of the caller's memory, decides
(launcher.emulation), has the mounter do what is to be done, and answers. The caller's memory is
read once, and what was read is what is done: the call itself is never let through.

It has no capability but sys_ptrace. Whatever goes wrong in it, the call fails with EPERM.
"""

import errno
import gc
import os
import resource
import socket
import sys
import traceback
from typing import Final

import msgspec
import trio

from launcher import capabilities, confine, emulation, listener, userns
from launcher.emulation import Request
from launcher.listener import Slots, seccomp_notif
from launcher.policy import UMOUNT_FLAGS
from launcher.syscalls import NUMBERS

_NUMBERS: Final = NUMBERS[os.uname().machine]
_MOUNT: Final = _NUMBERS["mount"]
_UMOUNT: Final = _NUMBERS["umount2"]
_PATH_MAX: Final = 4096
_TYPE_MAX: Final = 64


class _Monitor:
    """State of the monitor.

    Args:
        holder: gives listeners: a packet with the number of a slot, and a descriptor.
        mounter: takes requests, one at a time.
        slots: what was received and not answered.
        root: who the pod's root is on the host.
    """

    def __init__(
        self, holder: socket.socket, mounter: socket.socket, slots: Slots, root: int
    ) -> None:
        self._holder, self._mounter, self._slots = holder, mounter, slots
        self._root = root
        self._mounter_is_free = trio.Lock()

    async def run(self, pod_fd: int) -> None:
        """Answer until the pod has ended."""
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._take, nursery)
            await trio.lowlevel.wait_readable(pod_fd)
            nursery.cancel_scope.cancel()

    async def _take(self, nursery: trio.Nursery) -> None:
        """Take listeners from the holder; without it, go on with those that there are."""
        while True:
            await trio.lowlevel.wait_readable(self._holder)
            packet, fds, _, _ = socket.recv_fds(self._holder, 64, 1)
            if not packet:
                return
            if fds:  # else we have too many descriptors
                nursery.start_soon(self._serve, fds[0], self._slots[int(packet)])

    async def _serve(self, listener_fd: int, slot: seccomp_notif) -> None:
        """Answer the calls of a listener until it hangs up."""
        again = bool(slot.id)
        while True:
            if not slot.id:
                await trio.lowlevel.wait_readable(listener_fd)
                if not listener.receive(listener_fd, slot):
                    if listener.has_ended(listener_fd):
                        break
                    continue
            error = await self._judge(listener_fd, slot, again=again)
            listener.answer(listener_fd, slot, error)
            again = False
        trio.lowlevel.notify_closing(listener_fd)
        os.close(listener_fd)

    async def _judge(self, listener_fd: int, call: seccomp_notif, *, again: bool) -> int:
        """Return the errno of *call*, or 0 when it is done."""
        try:
            request = _request(call, self._root)
            if isinstance(request, int):
                return request
            return await self._do(listener_fd, call, request, again=again)
        except OSError as e:
            return e.errno if e.errno in (errno.EFAULT, errno.ENAMETOOLONG) else errno.EPERM
        except Exception:  # noqa: BLE001 (a caller waits: it must get an answer, and not leave)
            traceback.print_exc()
            return errno.EPERM

    async def _do(
        self, listener_fd: int, call: seccomp_notif, request: Request, *, again: bool
    ) -> int:
        """Have the mounter do *request* where the caller is."""
        fds = []
        try:
            fds += [os.open(f"/proc/{call.pid}/{name}", os.O_PATH) for name in ("root", "cwd")]
            if _user(call.pid) != self._root:
                return errno.EPERM
            if not listener.is_valid(listener_fd, call):
                return errno.EPERM  # nobody hears it
            if again:
                request = msgspec.structs.replace(request, again=True)
            return await self._ask(request, fds)
        finally:
            for fd in fds:
                os.close(fd)

    async def _ask(self, request: Request, fds: list[int]) -> int:
        async with self._mounter_is_free:
            packet = msgspec.msgpack.encode(request)
            socket.send_fds(self._mounter, [packet], fds)
            await trio.lowlevel.wait_readable(self._mounter)
            reply = self._mounter.recv(64)
        if not reply:  # the mounter has ended; the holder starts both anew
            os._exit(1)
        return msgspec.msgpack.decode(reply, type=int)


def _request(call: seccomp_notif, root: int) -> Request | int:
    """Return what the caller asks for, or the errno that it gets.

    Raises:
        OSError: its arguments cannot be read.
    """
    pid, args = call.pid, call.data.args
    if call.data.nr == _MOUNT:
        if not args[2]:
            return errno.EINVAL
        kind = listener.read_string(pid, args[2], _TYPE_MAX)
        if not emulation.is_mountable(kind):
            return errno.EPERM
        options = listener.read_string(pid, args[4], _PATH_MAX) if args[4] else b""
        target = listener.read_string(pid, args[1], _PATH_MAX)
        return emulation.of_mount(target, kind, args[3] & 0xFFFFFFFF, options, root)
    if call.data.nr == _UMOUNT:
        target = listener.read_string(pid, args[0], _PATH_MAX)
        return emulation.Unmount(target, follow=not args[1] & UMOUNT_FLAGS["nofollow"])
    return errno.EPERM


def _user(pid: int) -> int:
    """Return the effective user of thread *pid*. See proc_pid_status(5)."""
    with open(f"/proc/{pid}/status", "rb") as status:
        return next(int(line.split()[2]) for line in status if line.startswith(b"Uid:"))


async def _main(fds: list[int]) -> None:
    holder_fd, mounter_fd, slots_fd, pod_fd = fds
    with socket.socket(fileno=holder_fd) as holder, socket.socket(fileno=mounter_fd) as mounter:
        root = userns.of(pod_fd) or 0
        await _Monitor(holder, mounter, Slots(slots_fd), root).run(pod_fd)


if __name__ == "__main__":
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    confine.apply(confine.Confinement(capabilities.mask(["sys_ptrace"]), True, b""))
    gc.freeze()
    trio.run(_main, [int(text) for text in sys.argv[2:]])
