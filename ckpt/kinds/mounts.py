"""File systems that the pod's programs have mounted themselves: launcher.emulation.

They are made anew as the pod's monitor would make them, within its bounds, whatever the archive
says. What is in a tmpfs is the business of its own kind.
"""

import os
from collections.abc import Iterator

import msgspec

from ckpt.kinds import location
from ckpt.kinds.protocol import Dump, Mount, Workshop
from launcher import abi, emulation, hosts, mounter
from launcher.policy import MOUNT_FLAGS

_LAUNCHERS = frozenset({b"", b"dev", b"proc", b"sys"})
"""Below which names in the root launcher.plan mounts what it does, but for hosts.TARGET."""

_OPTIONS = frozenset({"size", "nr_inodes", "mode", "uid", "gid", "hidepid"})


class PodState(msgspec.Struct, frozen=True):
    """A mount.

    Attributes:
        point: where, on the pod's root file system.
        type: "tmpfs" or "proc".
        options: of the file system, as mount(8) takes them, separated by commas.
        flags: of the mount, by their names in mount(8).
    """

    point: bytes
    type: str
    options: str
    flags: list[str]


def is_own(mount: Mount) -> bool:
    """Has a program of the pod mounted it?"""
    return mount.source == emulation.SOURCE


def is_foreign(mount: Mount) -> bool:
    """Has somebody mounted it who is neither the pod's launcher nor its monitor?"""
    if is_own(mount) or mount.point == os.fsencode(hosts.TARGET):
        return False
    return mount.point.split(b"/")[1] not in _LAUNCHERS


def collect_pod(dump: Dump) -> Iterator[PodState]:
    """See protocol.PodKind."""
    for mount in dump.mounts().values():
        if is_own(mount):
            kept = [o for o in mount.super_options.split(",") if o.partition("=")[0] in _OPTIONS]
            yield PodState(mount.point, mount.fstype, ",".join(kept), _flags(mount))


def _flags(mount: Mount) -> list[str]:
    flags = [name for name in mount.options.split(",") if name in MOUNT_FLAGS]
    return flags if {"noatime", "relatime"} & {*flags} else [*flags, "strictatime"]


def rebuild_pod(state: PodState, workshop: Workshop) -> None:
    """See protocol.PodKind.

    Raises:
        ValueError: no pod can have mounted it.
    """
    flags = sum(MOUNT_FLAGS[name] for name in {*state.flags} & MOUNT_FLAGS.keys())
    request = emulation.of_mount(state.point, state.type.encode(), flags, state.options.encode())
    if isinstance(request, int):
        raise ValueError(
            f"{state.type} with {state.options!r} on {state.point!r} is no pod's mount"
        )
    target_fd = location.open_in_pod(None, state.point, os.O_PATH | os.O_DIRECTORY)
    mount_fd = mounter.make(request)
    abi.move_mount(mount_fd, target_fd)
    os.close(mount_fd)
    os.close(target_fd)
