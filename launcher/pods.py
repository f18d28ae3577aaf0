"""Pods as a whole: make one, find it, end it.

A pod runs as long as its init lives. The record of a running pod is `/run/autopod/POD/pod.json`.
Nothing here locks: commands hold launcher.lock.locked() around it.
"""

import os
import select
import signal
from collections.abc import Sequence
from contextlib import ExitStack, closing, suppress
from pathlib import Path
from typing import Final

import msgspec

from launcher import abi, addresses, cgroups, confine, guard, hosts, iolimits, network, users
from launcher.config import PodConfig
from launcher.enter import open_control_groups, start_time
from launcher.errors import PodError
from launcher.init import Init
from launcher.places import Places, is_pod_name
from launcher.plan import Plan, plan

__all__ = ["ClockOffsets", "Pod", "PodError", "create", "destroy", "find", "names", "start_time"]

_BELOW_ROOT: Final = abi.RESOLVE_IN_ROOT | abi.RESOLVE_NO_MAGICLINKS
_DEATH_S: Final = 10.0
_STUCK: Final = "a process in uninterruptible sleep (state D in `ps`) holds it; see the kernel log"


class ClockOffsets(msgspec.Struct, frozen=True):
    """What a pod's clocks are ahead of the host's, in nanoseconds (time_namespaces(7))."""

    monotonic_ns: int = 0
    boottime_ns: int = 0


class Pod(msgspec.Struct, frozen=True):
    """A running pod.

    Attributes:
        name: its name.
        init_pid: process id of its init in the host's pid namespace.
        init_start: that process's start time in clock ticks since boot (proc_pid_stat(5)).
        cgroups: directories of its control groups; the cgroup2 one, if there is any, first.
        clocks: its clocks against the host's.
        places: the instance that it belongs to.
    """

    name: str
    init_pid: int
    init_start: int
    cgroups: tuple[Path, ...]
    clocks: ClockOffsets
    places: Places


class _Record(msgspec.Struct, frozen=True):
    """`pod.json`. A reboot starts process ids anew, so it holds for one boot only."""

    boot_id: str
    init_pid: int
    init_start: int
    cgroups: list[str]
    clocks: ClockOffsets


class _Mounted(msgspec.Struct, frozen=True):
    """What of stackfs's record matters here."""

    shift: int = 0


def names(places: Places) -> list[str]:
    """Return the names of all pods that this host knows (configuration, state or runtime)."""
    known = {path.stem for path in places.configs().glob("*.toml")}
    known |= {path.name for path in places.states().glob("*") if path.is_dir()}
    # Records only: the lock or log of a command that was refused makes no pod.
    known |= {path.parent.name for path in places.runs().glob("*/*.json")}
    known |= addresses.read(places).pods.keys()
    return sorted(name for name in known if is_pod_name(name))


def find(places: Places, name: str) -> Pod | None:
    """Return pod *name* if it is running."""
    record = _read_record(places, name)
    if record is None or record.boot_id != _boot_id():
        return None
    if start_time(record.init_pid) != record.init_start:
        return None
    groups = tuple(map(Path, record.cgroups))
    return Pod(name, record.init_pid, record.init_start, groups, record.clocks, places)


def create(
    places: Places,
    config: PodConfig,
    *,
    clocks: ClockOffsets | None = None,
    has_network: bool = False,
) -> Pod:
    """Make the pod: control groups, namespaces, mounts, init; no program.

    With *has_network* its network has just been made: network.begin().

    On failure everything is undone, but for the network, which is made once and kept.

    Raises:
        PodError: the pod runs already, or its root is not mounted, or the host's guard is
            against it, or something else is missing; the text says what failed.
        OSError: a file of the launcher's own cannot be written.
    """
    name, clocks = config.name, clocks or ClockOffsets()
    if find(places, name) is not None:
        raise PodError(f"pod {name!r} is running already")
    if places.departure(name).exists():
        hint = "the service of this host asks the other one; so does autopod migrate"
        raise PodError(f"pod {name!r} has been given to another host, or is on its way", hint)
    if places.waiting(name).exists():
        hint = "autopod statusd restarts it after the boot; autopod drain --undo, now"
        raise PodError(f"pod {name!r} is in an archive until this host is rebooted", hint)
    _check_root(places, name)
    guard.ask(places, name)
    destroy(places, name)
    _sweep(places, name)
    if not has_network:
        network.ensure(places, config)
    base = users.base(places, name)
    _check_shift(places, name, base)
    the_plan = plan_of(places, config, clocks, hosts.prepare(places, config), base)
    return _make(places, config, the_plan, clocks)


def _make(places: Places, config: PodConfig, the_plan: Plan, clocks: ClockOffsets) -> Pod:
    with ExitStack() as undo:
        groups = cgroups.make(places, config.name, config.limits)
        undo.callback(cgroups.remove, groups)
        iolimits.make(places, config.name, config.limits)
        undo.callback(iolimits.remove, places, config.name)
        first = _build(the_plan, config, groups)
        undo.callback(_kill_init, first.pid)
        with closing(first):
            pod = Pod(config.name, first.pid, start_time(first.pid), groups, clocks, places)
            undo.callback(_forget, places, config.name)
            _write_record(places, pod)
            first.begin()
        undo.pop_all()
    return pod


def plan_of(
    places: Places,
    config: PodConfig,
    clocks: ClockOffsets,
    hosts_file: Path | None,
    base: int | None,
) -> Plan:
    """Return how create() would make the pod.

    *hosts_file* is of launcher.hosts, *base* of launcher.users.
    """
    return plan(
        config,
        places.root(config.name),
        network.path(places, config.name),
        (clocks.monotonic_ns, clocks.boottime_ns),
        hosts_file,
        base,
    )


def kill(pod: Pod) -> None:
    """Kill every process of the pod at once; they may take a while to end.

    With cgroup.kill none goes on even if the caller dies at any moment, and with it a tracer that
    held them: they are all killed by one write, or none is. Without it (before Linux v5.14) their
    init's end kills the others a moment later.
    """
    cgroups.kill(pod.cgroups)
    with suppress(ProcessLookupError):
        os.kill(pod.init_pid, signal.SIGKILL)


def destroy(places: Places, name: str) -> None:
    """Kill every process of the pod at once, wait for its end, remove groups and record.

    Idempotent, also after a crash of any command. The pod's network is kept.

    Raises:
        PodError: a process did not die in time.
    """
    pod = find(places, name)
    record = _read_record(places, name)
    groups = [Path(path) for path in record.cgroups] if record else []
    groups += [path for path in cgroups.leftovers(places, name) if path not in groups]
    cgroups.kill(groups)
    if pod is not None:
        _kill_init(pod.init_pid)
    if (places.run(name) / "holder.sock").exists():
        from launcher import holder

        holder.wait_for_end(places, name, _DEATH_S)
    iolimits.remove(places, name)
    try:
        cgroups.remove(groups)
    except OSError as e:
        raise PodError(f"pod {name!r} does not end: {e.strerror}: {e.filename}") from e
    _forget(places, name)


def _check_root(places: Places, name: str) -> None:
    """Refuse a pod whose root is no mount: its programs would write to the host's own disk."""
    mounts = {line.split()[4] for line in Path("/proc/self/mountinfo").read_text().splitlines()}
    candidates = (places.root(name), places.barrier(name))
    hint = f"stackfs mount {name} --lower DIR"
    if not any(os.fspath(path).replace(" ", "\\040") in mounts for path in candidates):
        raise PodError(f"nothing is mounted at {candidates[0]}", hint)
    try:
        places.root(name).stat()
    except OSError as e:
        raise PodError(f"{candidates[0]}: {e.strerror}", f"stackfs umount {name}; {hint}") from e


def _sweep(places: Places, name: str) -> None:
    """Remove from the pod's root what a restart that was killed had made for a moment only."""
    marker = places.restarting(name)
    with suppress(FileNotFoundError):
        for path in reversed(marker.read_bytes().split(b"\0")[:-1]):
            _remove(places.root(name), path)
        marker.unlink()


def _remove(root: Path, path: bytes) -> None:
    """Remove *path* below *root*, if it can be reached there and holds nothing."""
    directory, base = os.path.split(path.lstrip(b"/"))
    with suppress(OSError), ExitStack() as stack:
        root_fd = os.open(root, os.O_PATH | os.O_DIRECTORY)
        stack.callback(os.close, root_fd)
        flags = os.O_PATH | os.O_DIRECTORY
        above = abi.openat2(root_fd, os.fsdecode(directory) or ".", flags, _BELOW_ROOT)
        stack.callback(os.close, above)
        try:
            os.unlink(base, dir_fd=above)
        except IsADirectoryError:
            os.rmdir(base, dir_fd=above)


def _check_shift(places: Places, name: str, base: int | None) -> None:
    """Refuse a root whose files are other users' than the pod's.

    stackfs leaves word of what it has mounted (`stackfs list`); nobody else can shift users.
    """
    try:
        record = (places.run(name) / "stackfs.json").read_bytes()
        shift = msgspec.json.decode(record, type=_Mounted).shift
    except (FileNotFoundError, msgspec.DecodeError, msgspec.ValidationError):
        shift = 0
    if shift != (base or 0):
        hint = f"stackfs umount {name}; stackfs mount {name} --shift {base or 0}"
        ids = f"begin at {base} of the host" if base else "are the host's"
        raise PodError(f"the users of pod {name!r} {ids}, those of its root at {shift}", hint)


def _build(the_plan: Plan, config: PodConfig, groups: Sequence[Path]) -> Init:
    cgroup_fds = open_control_groups(groups)
    try:
        return Init(the_plan, confine.of_init(config.privileges), cgroup_fds)
    finally:
        for fd in cgroup_fds:
            os.close(fd)


def _kill_init(pid: int) -> None:
    """Kill a pod's init and wait: when it is gone, so is every process of its namespace."""
    try:
        fd = os.pidfd_open(pid)
    except ProcessLookupError:
        return
    try:
        with suppress(ProcessLookupError):
            signal.pidfd_send_signal(fd, signal.SIGKILL)
        if not select.select([fd], [], [], _DEATH_S)[0]:
            raise PodError(f"process {pid}, the pod's init, does not die", _STUCK)
    finally:
        os.close(fd)


def _boot_id() -> str:
    return Path("/proc/sys/kernel/random/boot_id").read_text().strip()


def _record_path(places: Places, name: str) -> Path:
    return places.run(name) / "pod.json"


def _read_record(places: Places, name: str) -> _Record | None:
    try:
        return msgspec.json.decode(_record_path(places, name).read_bytes(), type=_Record)
    except (FileNotFoundError, NotADirectoryError):
        return None
    except (msgspec.DecodeError, msgspec.ValidationError):
        return None  # written by nobody of ours: no pod to be found by it


def _write_record(places: Places, pod: Pod) -> None:
    record = _Record(
        _boot_id(), pod.init_pid, pod.init_start, [os.fspath(p) for p in pod.cgroups], pod.clocks
    )
    path = _record_path(places, pod.name)
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    new = path.with_suffix(".new")
    new.write_bytes(msgspec.json.encode(record))
    os.replace(new, path)


def _forget(places: Places, name: str) -> None:
    for file in ("pod.json", "pod.new", "entrance", "entrance.new", "holder.sock", "pages.sock"):
        (places.run(name) / file).unlink(missing_ok=True)
