"""`ckpt restore`: an archive -> a running pod.

First everything is checked that can be; then the file system, the namespaces, the open files and
the processes are built, and only when all of them stand are the processes let go. If anything
fails, what was made is undone, and the pod's former state on this host is as it was.
"""

import ipaddress
import pkgutil
import re
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING

from msgspec import Struct

from ckpt import connections, following, huge, kinds, layers
from ckpt.archive import host
from ckpt.archive.read import Archive, open_archive
from ckpt.ground import Ground
from ckpt.model import PAGE_SIZE, Pod
from ckpt.progress import Progress
from ckpt.raising import raise_processes
from ckpt.seed import RestoreError
from ckpt.users import NoSuchUser, of_host
from launcher import cgroups, config, holder, network, pods, users
from launcher.held import Delivery
from launcher.places import Places

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
    from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey

    from ckpt.archive.frameread import PageReader
    from ckpt.archive.seen import Seen
    from ckpt.lazy import Lazy
    from ckpt.stackcommand import Mounting


class RestoreReport(Struct, frozen=True):
    """What a restart took.

    Attributes:
        total_ns: of the whole restart.
        processes: how many run again.
        notes: what is not quite as it was, and why.
    """

    total_ns: int
    processes: int
    notes: list[str]


class Following(Struct, frozen=True):
    """How memory is to follow.

    Attributes:
        rate: how many bytes a second come that no program waits for; None: as many as go.
        least: bytes that may follow; if there are fewer, they are there before.
        seen: what of the archive was hashed as it came.
        kept: the name that the archive has as long as memory follows; None: its own, for good.
    """

    rate: int | None = None
    least: int = 1
    seen: "Seen | None" = None
    kept: Path | None = None


def restore(  # noqa: PLR0913 (the command's own choices)
    places: Places,
    pod: str,
    path: Path,
    *,
    trusted: "Mapping[str, Ed25519PublicKey]",
    lowers: Sequence[Path] | None,
    replace: bool,
    progress: Progress,
    tcp: str | None = None,
    mounting: "Mounting | None" = None,
    ground: Ground | None = None,
    gate: Callable[[], Sequence[bytes]] = lambda: (),
    lives: Callable[[list[str]], None] = lambda _notes: None,
    identities: "Sequence[X25519PrivateKey]" = (),
    since: Path | None = None,
    lazy: Following | None = None,
) -> RestoreReport:
    """Restart *pod* from the archive *path*.

    Args:
        places: the instance.
        pod: its name here.
        path: the archive.
        trusted: keys whose archives are accepted, by fingerprint.
        lowers: directories to take the lower layers from; see layers.install().
        replace: move other state of the pod on this host aside.
        progress: is told of the long steps.
        tcp: what becomes of TCP connections: "keep", "close" or "listen-only"; None: as configured.
        mounting: see layers.install().
        ground: where it is to run, if the caller has made that; it is kept if all goes well.
        gate: called when the pod stands, before its processes are let go; returns what has come for
            it over the network since it stood still (launcher.held). If it raises, the restart has
            failed.
        lives: called with the report's notes when they run, and nothing can fail any more but that
            neighbours in the network learn of it late.
        identities: private keys that the archive may be encrypted to.
        since: the earlier archive, if it builds upon one; None: look beside it.
        lazy: let memory follow while the processes run already.

    Raises:
        RestoreError: the archive cannot be restarted here.
        ArchiveError: it is refused; the class says why.
        layers.InstallError: the file system cannot be had.
        PodError: the pod cannot be made.
        OSError: a system call failed; notes say at what.
    """
    began = time.monotonic_ns()
    with ExitStack() as undo:
        new = undo.enter_context(ExitStack())
        if not places.state(pod).exists():
            new.callback(_remove_state, places, pod)
        if mounting:
            undo.enter_context(mounting)
        archive = undo.enter_context(open_archive(path, trusted, identities, since))
        _check(archive, pod)
        settings = config_of(places, pod, archive.config())
        model = _model(archive, settings, tcp)
        walled = _check_addresses(settings, model)
        files = layers.files_of(archive, places)
        if ground is None:
            ground = undo.enter_context(Ground(places, settings, walled=walled))
            model = _with_users(model, users.base(places, pod))
            with progress.step("file system"):
                ground.lay(files, lowers, replace, mounting)
            ground.connect()
            ground.make(model.clocks)
        else:
            _check_ground(ground, settings, files, model)
            model = _with_users(model, users.base(places, pod))

        running, failed = ground.running, undo.enter_context(ExitStack())
        opening = _Opening(places, pod, gate)
        failed.callback(opening.close)
        with (
            _follow(running, model, archive, progress, lazy) as (server, note),
            progress.step("processes", archive.pages.count * PAGE_SIZE),
        ):
            notes = note + _raise(running, model, archive, progress, opening, server)
        _keep(places, pod, settings)
        failed.pop_all()
        ground.keep()
        new.pop_all()
        if replaced := ground.installed.replaced:
            notes = [*notes, f"the state that was here before is kept in {replaced}"]
        lives(notes)
        network.announce_network(places, pod)
        opening.close()
    return RestoreReport(time.monotonic_ns() - began, len(model.processes), notes)


def check(
    places: Places,
    pod: str,
    path: Path,
    *,
    trusted: "Mapping[str, Ed25519PublicKey]",
    identities: "Sequence[X25519PrivateKey]" = (),
) -> int:
    """Look whether *pod* can be restarted here, as far as that can be told without beginning.

    Nothing is changed, and of pages and layers nothing is read. Arguments and errors are those of
    restore().

    Returns:
        How many bytes of memory it had filled.
    """
    with open_archive(path, trusted, identities) as archive:
        _check(archive, pod)
        settings = config_of(places, pod, archive.config())
        _check_addresses(settings, _model(archive, settings, None))
        mounted = layers.mounted_lowers(places, pod) or []
        paths = [lower.path for lower in mounted]
        likely = layers.likely_lowers(archive.manifest.base, places, pod, paths)
        with layers.identities(places, likely) as running:
            found = {directory: identity.result() for directory, identity in running.items()}
        layers.match(archive.manifest.base, found)
        return archive.pages.count * PAGE_SIZE


def _keep(places: Places, pod: str, settings: config.PodConfig) -> None:
    """See to what belongs to a pod that runs: its file, its keeper, its log."""
    if not places.config(pod).exists():
        config.save(places, settings)
    if settings.service.restart != "no":
        holder.keep(places, pod, start=False).close()
    elif settings.log.size is not None:
        holder.connect(places, pod).close()  # it cuts the log


def _remove_state(places: Places, pod: str) -> None:
    """Remove the directories of a pod that is not here after all, where nothing else is in them."""
    places.log(pod).unlink(missing_ok=True)
    for path in (places.state(pod), places.barrier(pod)):
        with suppress(OSError):  # gone, or not ours to remove
            path.rmdir()


def _raise(
    running: pods.Pod,
    model: Pod,
    archive: Archive,
    progress: Progress,
    opening: "_Opening",
    lazy: "Lazy | None",
) -> list[str]:
    places = running.places
    if lazy is None:
        archive.pages.begin()  # while their processes are made

    def give_console(index: int, master_fd: int) -> None:
        holder.give_console(places, running.name, index, master_fd)

    def give_listener(listener_fd: int) -> None:
        with holder.connect(places, running.name) as connection:
            holder.give_listener(connection, listener_fd)

    return raise_processes(
        running,
        model,
        pages=_Pages(archive.pages, progress),
        give_console=give_console,
        give_listener=give_listener,
        gate=opening.pass_gate,
        open_network=opening.open_network,
        lazy=lazy,
    )


class _Pages:
    """Those of an archive; *progress* is told of what is read."""

    def __init__(self, pages: "PageReader", progress: Progress) -> None:
        self._pages, self._progress, self.runs = pages, progress, pages.runs

    def read(self, first: int, count: int) -> bytes:
        self._progress.advance(count * PAGE_SIZE)
        return self._pages.read(first, count)


@contextmanager
def _follow(
    running: pods.Pod, model: Pod, archive: Archive, progress: Progress, wish: Following | None
) -> Iterator[tuple["Lazy | None", list[str]]]:
    """Start what brings memory that is to follow, if some is; and say so.

    All of the archive's pages are verified before.

    Raises:
        ArchiveError: they are not what was signed.
    """
    size = following.count(model) * PAGE_SIZE if wish else 0
    if wish is None or size < wish.least:
        yield None, []
        return
    from ckpt import lazy, userfault

    against = ""
    if not userfault.is_there():
        against = "this kernel has no userfaultfd for that"
    elif cgroups.freezer(running.cgroups) is None:  # else the order of changes may not be told
        against = "this host cannot stop it for a moment (cgroup v2)"
    elif size > _free_memory():  # to be found out while the pod can still be had where it was
        against = "this host has little memory free"
    if against:
        yield None, [f"its memory was there before it ran: {against}"]
        return
    with progress.step("verify", archive.pages.count * PAGE_SIZE):
        archive.check_pages(progress, wish.seen)
    with lazy.Lazy(running, archive, wish.rate, wish.kept) as server:
        yield server, [f"{size / 2**20:.0f} MiB of its memory follow while it runs"]


def _free_memory() -> int:
    """Return how many bytes programs may still take without others being killed."""
    text = Path("/proc/meminfo").read_text()
    found = re.findall(r"^(?:MemAvailable|SwapFree):\s+([0-9]+) kB$", text, re.MULTILINE)
    return 1024 * sum(map(int, found))


class _Opening:
    """The moment at which a pod is let go."""

    def __init__(self, places: Places, pod: str, gate: Callable[[], Sequence[bytes]]) -> None:
        self._places, self._pod, self._gate = places, pod, gate
        self._held: Sequence[bytes] = ()
        self._delivery = Delivery()

    def pass_gate(self) -> None:
        self._held = self._gate()
        self._places.restarting(self._pod).unlink()

    @contextmanager
    def open_network(self) -> Iterator[None]:
        """Let packets pass; what has come before is delivered when the context is left."""
        network.open_network(self._places, self._pod)
        yield
        if port := network.port(self._places, self._pod):
            self._delivery.send(port, self._held)

    def close(self) -> None:
        self._delivery.close()


def _with_users(model: Pod, base: int | None) -> Pod:
    """Return *model* with users as this host will know them.

    Raises:
        RestoreError: the pod cannot have one of them.
    """
    try:
        return of_host(model, base)
    except NoSuchUser as e:
        raise RestoreError(str(e), "set user.namespace = false") from e


def _check_ground(
    ground: Ground, settings: config.PodConfig, files: layers.Files, model: Pod
) -> None:
    """Make sure that the pod stands on what the archive was signed with.

    Raises:
        RestoreError: it was told something else before.
    """
    there = ground.files and (ground.files.base, ground.files.layers)
    announced = ground.settings, there, ground.clocks
    if announced != (settings, (files.base, files.layers), model.clocks):
        raise RestoreError(f"the archive is not that of pod {settings.name!r} as it was announced")


def _check(archive: Archive, pod: str) -> None:
    against = host.missing(archive.manifest.host)
    known = {module.name for module in pkgutil.iter_modules(kinds.__path__)}
    unknown = sorted(set(archive.manifest.kinds) - known)
    if unknown:
        against.append(f"this version does not know its {', '.join(unknown)}")
    if against:
        raise RestoreError(f"pod {pod!r} cannot run here: {'; '.join(against)}")


def _model(archive: Archive, settings: config.PodConfig, tcp: str | None) -> Pod:
    """Return what is to be built, as the pod's configuration wants it.

    Raises:
        RestoreError: this host has too few huge pages for it.
    """
    model = connections.apply(archive.model(), tcp or settings.network.tcp)
    if settings.memory.huge_pages == "ordinary":
        return huge.ordinary(model)
    if missing := huge.missing(model):
        raise RestoreError(
            f"the pod needs {missing} here",
            'sysctl vm.nr_hugepages=…; or memory.huge_pages = "ordinary" in the pod\'s file',
        )
    return model


def _check_addresses(settings: config.PodConfig, model: Pod) -> bool:
    """Are there connections, whose addresses the pod will have?

    Raises:
        RestoreError: there are, and it will not have them.
    """
    used = {_plain(host) for host in connections.addresses(model)}
    outside = {host for host in used if not (host.is_loopback or host.is_link_local)}
    network = settings.network
    wanted = [text for text in (network.address, network.address6) if text is not None]
    missing = sorted(map(str, outside - {ipaddress.ip_interface(text).ip for text in wanted}))
    if missing:
        raise RestoreError(
            f"the pod has open connections at {', '.join(missing)}, and no such address here",
            "set network.address to it, or give the connections up: --tcp close",
        )
    return bool(used)


def _plain(host: str) -> "ipaddress.IPv4Address | ipaddress.IPv6Address":
    """Return the address; IPv4 where it stands in an IPv6 one."""
    address = ipaddress.ip_address(host)
    return getattr(address, "ipv4_mapped", None) or address


def config_of(places: Places, pod: str, text: bytes) -> config.PodConfig:
    """Return the configuration on this host, else that with which it comes: *text*.

    The pod keeps its identity in the network, unless the former gives it another.
    """
    archived = config.parse(text, pod, places.config(pod))
    if not places.config(pod).exists():
        return archived
    return network.adopt(config.load(places, pod), archived)
