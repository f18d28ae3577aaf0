"""The entrance of a running pod: what must be known to place a program in it.

It follows from the pod's record and its configuration, by way of TOML, the policy, and the compiler
of the filter; and to import those takes longer than all that `launcher exec` does. So who has
worked it out leaves it at `/run/autopod/POD/entrance` for the next one. There it holds for one life
of the pod, one text of its configuration, and one version of this package and of Python; for
anything else it is worked out anew. The directory is root's alone, as for the pod's record.
"""

from __future__ import annotations

import marshal
import os
import sys
from contextlib import suppress

from launcher import confine
from launcher.enter import start_time

TYPE_CHECKING = False  # launcher.light says why
if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from typing import Any, Final

    from launcher.config import PodConfig
    from launcher.confine import Confinement
    from launcher.pods import Pod


class Entrance:
    """What must be known.

    Attributes:
        prefix: of the instance that the pod belongs to (launcher.places).
        run: `/run/autopod/POD` there.
        name: of the pod.
        init_pid: its init, on the host.
        init_start: when that started; both as in launcher.pods.Pod.
        groups: directories of its control groups.
        confinement: of its programs.
        environment: as in launcher.config.PodConfig.
        arguments: likewise.
    """

    def __init__(  # noqa: PLR0913 (by name only)
        self,
        *,
        prefix: str,
        name: str,
        init: tuple[int, int],
        groups: Sequence[str],
        confinement: Confinement,
        environment: Mapping[str, str],
        arguments: Mapping[str, tuple[str, ...]],
    ) -> None:
        self.prefix, self.name, self.groups = prefix, name, groups
        self.run = run(prefix, name)
        self.init_pid, self.init_start = init
        self.confinement, self.environment, self.arguments = confinement, environment, arguments


def of(pod: Pod, settings: PodConfig) -> Entrance:
    """Work out the entrance of *pod*."""
    return Entrance(
        prefix=os.fspath(pod.places.prefix),
        name=pod.name,
        init=(pod.init_pid, pod.init_start),
        groups=[os.fspath(path) for path in pod.cgroups],
        confinement=confine.of_programs(settings.privileges),
        environment=settings.environment,
        arguments=settings.arguments,
    )


def keep(entrance: Entrance, config_text: bytes) -> None:
    """Leave *entrance* for kept(); the caller holds the pod's lock.

    Args:
        entrance: of a running pod.
        config_text: the very text of the pod's configuration that was read for it.
    """
    fields = {
        "init": (entrance.init_pid, entrance.init_start),
        "groups": entrance.groups,
        "environment": entrance.environment,
        "arguments": entrance.arguments,
    }
    plain: Any = (_stamp(config_text), confine.to_plain(entrance.confinement), fields)
    path = f"{entrance.run}/entrance"
    flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW | os.O_CLOEXEC
    with suppress(OSError):  # a full disk: it is worked out anew
        with open(os.open(f"{path}.new", flags, 0o600), "wb") as file:
            file.write(marshal.dumps(plain))
        os.replace(f"{path}.new", path)


def kept(prefix: str, name: str) -> Entrance | None:
    """Return what somebody has left for pod *name*, if the pod runs and it still holds."""
    try:
        with open(f"{run(prefix, name)}/entrance", "rb") as file:
            stamp, confinement, fields = marshal.loads(file.read())  # noqa: S302 (root's own)
        if stamp != _stamp(_config_text(prefix, name)):
            return None
    except (OSError, ValueError, EOFError, TypeError):
        return None
    pid, start = fields["init"]
    if start_time(pid) != start:
        return None
    how = confine.from_plain(confinement)
    return Entrance(prefix=prefix, name=name, confinement=how, **fields)


def run(prefix: str, name: str) -> str:
    """Return what launcher.places, which takes long to import, calls `run`."""
    return os.path.join(prefix, "run/autopod", name)


def config(prefix: str, name: str) -> str:
    """Return the path of the pod's configuration, likewise."""
    return os.path.join(prefix, "etc/autopod/pods", f"{name}.toml")


def _config_text(prefix: str, name: str) -> bytes:
    """Return the text of the pod's configuration; b"", which means the same, without a file."""
    try:
        with open(config(prefix, name), "rb") as file:
            return file.read()
    except FileNotFoundError:
        return b""


def _stamp(config_text: bytes) -> tuple[object, ...]:
    """Return all that an entrance follows from, but for the pod's record."""
    with open("/proc/sys/kernel/random/boot_id") as file:
        boot = file.read()
    return boot, sys.version, os.uname().machine, _CODE, config_text


def _code() -> tuple[tuple[str, int, int], ...]:
    """Return which modules this package has: name, time of change, and size."""
    with os.scandir(os.path.dirname(__file__)) as entries:
        modules = [entry for entry in entries if entry.name.endswith(".py")]
    return tuple(sorted((e.name, e.stat().st_mtime_ns, e.stat().st_size) for e in modules))


_CODE: Final = _code()
"""As this process has loaded it; it may live longer than the files do."""
