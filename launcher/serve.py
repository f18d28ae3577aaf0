"""`launcher serve`: a pod's service from begin to end, for a service manager (Type=notify).

Only watches: the service is the keeper's (launcher.keeper). Killed, it leaves the pod running, and
whoever serves the pod next takes it as it is.
"""

import os
import select
import signal
import socket
from collections.abc import Callable
from contextlib import closing, suppress

import msgspec

from launcher import enter, holder, pods
from launcher.errors import PodError
from launcher.holder import Reply
from launcher.places import Places
from launcher.pods import Pod


class _Told(BaseException):
    """SIGTERM or SIGINT: the service is to end."""


def serve(places: Places, name: str, begin: Callable[[], socket.socket]) -> bool:
    """Serve pod *name* until its service is over, or the pod, or SIGTERM comes.

    Args:
        places: the instance.
        name: of the pod.
        begin: starts the service, or finds it running, as holder.keep() does.

    Returns:
        Is there a pod that is to be ended?

    Raises:
        PodError: the service cannot be started, or has failed for good.
    """
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, _tell)
    try:
        connection = begin()
        pod = pods.find(places, name)
        if pod is None:
            connection.close()
            return False
        notify("READY=1")
        return _watch(places, pod, connection)
    except _Told:
        notify("STOPPING=1")
        return True
    finally:
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, signal.SIG_IGN)  # what follows is the end already


def _tell(*_: object) -> None:
    raise _Told


def _watch(places: Places, pod: Pod, connection: socket.socket) -> bool:
    pod_fd = enter.pidfd(pod)
    try:
        while True:
            with closing(connection):
                ready = select.select([pod_fd, connection.fileno()], [], [])[0]
                if pod_fd in ready:
                    return False
                packet = connection.recv(1 << 12)
            if packet:
                reply = msgspec.json.decode(packet, type=Reply)
                if reply.error is not None:
                    raise PodError(reply.error, f"launcher logs {pod.name}")
                return True
            connection = holder.keep(places, pod.name, start=False)  # the holder was killed
    finally:
        os.close(pod_fd)


def notify(text: str) -> None:
    """Tell the service manager, if there is one: sd_notify(3)."""
    path = os.environ.get("NOTIFY_SOCKET")
    if not path:
        return
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as s, suppress(OSError):
        s.sendto(text.encode(), f"\0{path[1:]}" if path.startswith("@") else path)
