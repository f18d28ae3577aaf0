"""The pod's users and groups: in an archive its own numbers, in this host's kernel others. Pure.

Without a user namespace they are the same. With one, the host sees the pod's user N as base + N
(launcher.users). The kinds collect and rebuild with the host's eyes and hands, and know nothing of
that; here a whole model is turned into the one form or the other. Whoever is none of the pod's
users, a program of the host at the other end of a socket, is the overflow user in the pod, and so
in the archive.
"""

import struct
from collections.abc import Callable
from typing import Any, Final

import msgspec

from ckpt.model import Part, Pod, Process, Thread
from launcher.users import COUNT

_OVERFLOW: Final = 65534
_OWNED: Final = frozenset(
    {
        "memfd", "mqueue", "netlink", "packet", "pipe", "pty", "raw", "regular", "shared_memory",
        "sysvmsg", "sysvsem", "sysvshm", "tcp", "tmpfs", "udp", "unix",
    }
)  # fmt: skip
"""Kinds of which something has an owner."""

_FIELDS: Final = frozenset({"uid", "gid", "cuid", "cgid", "user", "group"})
_CREDENTIALS: Final = frozenset({"users", "groups", "supplementary"})
_ACLS: Final = (b"system.posix_acl_access", b"system.posix_acl_default")
_ACL_ENTRY: Final = struct.Struct("<HHI")  # tag, permissions, id
_NAMED: Final = (0x02, 0x08)  # ACL_USER, ACL_GROUP
_CAPABILITY: Final = b"security.capability"
_CAPABILITY_V2, _CAPABILITY_V3 = 20, 24
_REVISION, _REVISION_2, _REVISION_3 = 0xFF000000, 0x02000000, 0x03000000

_Change = Callable[[int], int]


class NoSuchUser(Exception):  # noqa: N818 (it says what is wrong)
    """A pod with a user namespace cannot have a user or group of that number."""


def of_pod(pod: Pod, base: int | None) -> Pod:
    """Return *pod*, as this host sees it, with the pod's own users."""
    if base is None:
        return pod
    return _Changing(lambda n: n - base if base <= n < base + COUNT else _OVERFLOW).all_of(pod)


def of_host(pod: Pod, base: int | None) -> Pod:
    """Return *pod* as this host will see it; credentials stay, for they are set in the namespace.

    Raises:
        NoSuchUser: one is beyond the namespace.
    """
    if base is None:
        return pod

    def change(number: int) -> int:
        if not 0 <= number < COUNT:
            raise NoSuchUser(f"user or group {number} is beyond the {COUNT} of a user namespace")
        return base + number

    changing = _Changing(change, root=base)
    changing.all_of(pod)  # refuses credentials that there cannot be, too
    return changing.files_of(pod)


class _Changing:
    """A change of all ids.

    Args:
        change: of one.
        root: who has the capabilities of a file, if not whoever is root.
    """

    def __init__(self, change: _Change, root: int = 0) -> None:
        self._change, self._root = change, root

    def all_of(self, pod: Pod) -> Pod:
        """Return *pod* with all ids changed."""
        processes = [self._process(process) for process in pod.processes]
        return msgspec.structs.replace(self.files_of(pod), processes=processes)

    def files_of(self, pod: Pod) -> Pod:
        """Return *pod* with those changed that are not a process's."""
        replace = msgspec.structs.replace
        return replace(
            pod,
            files=[replace(file, part=self._part(file.part)) for file in pod.files],
            objects=[replace(shared, part=self._part(shared.part)) for shared in pod.objects],
            parts=[self._part(part) for part in pod.parts],
        )

    def _process(self, process: Process) -> Process:
        threads = [self._thread(thread) for thread in process.threads]
        return msgspec.structs.replace(process, threads=threads)

    def _thread(self, thread: Thread) -> Thread:
        return msgspec.structs.replace(thread, parts=[self._part(part) for part in thread.parts])

    def _part(self, part: Part) -> Part:
        if part.kind == "credentials":
            return self._encoded(part, self._credentials)
        if part.kind == "mounts":
            return self._encoded(part, self._mount)
        return self._encoded(part, self._owned) if part.kind in _OWNED else part

    def _encoded(self, part: Part, change: Callable[[Any], Any]) -> Part:
        state = change(msgspec.msgpack.decode(part.state))
        return Part(part.kind, msgspec.Raw(msgspec.msgpack.encode(state)))

    def _credentials(self, state: dict[str, Any]) -> dict[str, Any]:
        for field in _CREDENTIALS & state.keys():
            state[field] = [self._change(number) for number in state[field]]
        return state

    def _mount(self, state: dict[str, Any]) -> dict[str, Any]:
        """Change the owner of a tmpfs; the kernel tells of none where that is user 0."""
        if state["type"] == "tmpfs":
            options = [text.partition("=") for text in state["options"].split(",") if text]
            chosen = {"uid": "0", "gid": "0"} if self._root else {}
            chosen |= {key: value for key, _, value in options}
            for key in {"uid", "gid"} & chosen.keys():
                chosen[key] = str(self._change(int(chosen[key])))
            state["options"] = ",".join(f"{k}={v}" if v else k for k, v in chosen.items())
        return state

    def _owned(self, value: Any) -> Any:  # noqa: ANN401 (what MessagePack holds)
        """Return *value*, of whatever form, with the owners in it changed."""
        if isinstance(value, list):
            return [self._owned(item) for item in value]
        if not isinstance(value, dict):
            return value
        return {key: self._field(key, item) for key, item in value.items()}

    def _field(self, key: Any, value: Any) -> Any:  # noqa: ANN401
        if key in _FIELDS and isinstance(value, int):
            return self._change(value)
        if key == "credentials" and isinstance(value, list):  # process, user, group
            return [value[0], *map(self._change, value[1:])]
        if key == "xattrs" and isinstance(value, dict):
            return {name: self._xattr(name, text) for name, text in value.items()}
        return self._owned(value)

    def _xattr(self, name: bytes, value: bytes) -> bytes:
        if name in _ACLS:
            entries = (
                _ACL_ENTRY.pack(tag, bits, self._change(number) if tag in _NAMED else number)
                for tag, bits, number in _ACL_ENTRY.iter_unpack(value[4:])
            )
            return value[:4] + b"".join(entries)
        return self._capability(value) if name == _CAPABILITY else value

    def _capability(self, value: bytes) -> bytes:
        """Change whose root has a file's capabilities; version 2 says whoever is."""
        (magic,) = struct.unpack_from("<I", value)
        sets, flags = value[4:_CAPABILITY_V2], magic & ~_REVISION
        if len(value) == _CAPABILITY_V3:
            root = self._change(struct.unpack_from("<I", value, _CAPABILITY_V2)[0])
        elif len(value) == _CAPABILITY_V2:
            root = self._root
        else:
            return value
        if root:
            return struct.pack("<I", flags | _REVISION_3) + sets + struct.pack("<I", root)
        return struct.pack("<I", flags | _REVISION_2) + sets
