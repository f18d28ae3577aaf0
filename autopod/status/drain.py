"""A host is emptied, updated and rebooted, and its pods come back. Every step is written down.

    asking       for a reboot slot of the fleet; without one it is put off: nothing was touched
    stopping     each pod is moved to another host, or checkpointed to disk
    installing   the updates
    confirming   that what was to be installed is, and which kernel the boot is to bring
    ready        by hand, it waits here for the administrator
    rebooting    the order is given; the next boot tells that it was followed
    returning    the kernel is compared with the expected one; the pods are restarted
    undoing      something failed before the boot: the pods are restarted, and nothing else is done

Whoever is killed at any moment is followed by one that reads the record (autopod/status/store.py)
and does that step again: each can be done twice. A pod is worked on by the commands that people
use, which may be killed at any moment, too.
"""

import fcntl
import os
import uuid
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Final

from msgspec.structs import replace

from autopod.errors import Refused
from autopod.status import apt, kernels, processes
from autopod.status.placing import Placing
from autopod.status.policy import Policy
from autopod.status.report import Report
from autopod.status.store import ENDED, Drain, PodRecord, Store
from ckpt import dump
from ckpt.archive import recipients
from launcher import enter, pods
from launcher.lock import wait_until_free
from launcher.places import Places

_TRIES: Final = 3
_PATIENCE_S: Final = 60
_DOING: Final = {
    "stopping": "its pods were stopped",
    "installing": "the updates were installed",
    "confirming": "the installation was looked at",
}


class Failed(Exception):  # noqa: N818 (what is the case)
    """A step cannot be done; what was done is undone."""


@contextmanager
def exclusive(places: Places) -> Iterator[None]:
    """Be the only one who drains this host, or decides whether to.

    Raises:
        Refused: somebody else does.
    """
    places.runs().mkdir(mode=0o755, parents=True, exist_ok=True)
    fd = os.open(places.runs() / "drain.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as e:
            hint = "the service looks at intervals, for seconds: try again"
            raise Refused("another process looks after this host, or drains it", hint) from e
        yield
    finally:
        os.close(fd)


def running(places: Places) -> list[str]:
    """Return the pods in which programs run."""
    return [name for name in pods.names(places) if _runs(places, name)]


def preflight(places: Places, names: Sequence[str]) -> None:
    """Look, before anything is touched, whether each of the pods can be checkpointed.

    Raises:
        Refused: one of them cannot.
    """
    readable(places)
    for name in names:
        refusals = dump.check(places, name)
        if refusals:
            raise Refused(f"pod {name!r} cannot be checkpointed: {refusals[0]}")


def readable(places: Places) -> list[str]:
    """Return what `autopod checkpoint` needs to be told, so that this host can read the archive.

    Raises:
        Refused: archives are encrypted, and this host has no key to read one with.
    """
    others = recipients.load_recipients(places.recipients())
    own = places.keys() / recipients.RECIPIENT
    if not others:
        return []
    if not own.exists():
        hint = "make it a key: ckpt keygen --encryption"
        raise Refused("archives of this host are encrypted to others only", hint)
    mine = recipients.load_recipient(own).public_bytes_raw()
    known = any(one.public_bytes_raw() == mine for one in others)
    return [] if known else ["--recipient", os.fspath(own)]


def begin(
    places: Places, settings: Policy, report: Report | None, wanted: list[str], *, automatic: bool
) -> Drain:
    """Return the record of a new drain. Nothing has been done yet, and nothing is written down.

    Args:
        places: the instance.
        settings: the host's.
        report: what is to be installed; None: nothing is.
        wanted: why.
        automatic: go on to the reboot.

    Raises:
        Refused: a pod cannot be checkpointed.
        OSError, ValueError: the boot cannot be told from others.
    """
    names = running(places)
    preflight(places, names)
    return Drain(
        id=uuid.uuid4().hex[:12],
        phase="asking" if settings.fleet else "stopping",
        automatic=automatic,
        wanted=wanted,
        boot_id=kernels.ask(settings.host.boot_id),
        packages=packages(report),
        expected=None,
        pods=[PodRecord(name) for name in names],
        slot=settings.fleet.group if settings.fleet else None,
    )


def packages(report: Report | None) -> list[str]:
    """Return what is to be installed, as apt-get takes it. Pure."""
    updates = report.updates if report else []
    return [f"{one.package}={one.candidate}" for one in updates if not one.kept]


def resume(places: Places, settings: Policy, store: Store) -> Drain | None:
    """Go on with a drain that was broken off, or that the host was rebooted by; there may be none.

    Raises:
        OSError, ValueError: the boot cannot be told from others: nothing was done.
    """
    drain = store.last_drain()
    if drain is None or drain.phase in ENDED:
        return None
    if kernels.ask(settings.host.boot_id) != drain.boot_id:
        drain = booted(drain)
    elif drain.phase == "rebooting" and drain.reboots >= _TRIES:
        drain = _fail(drain, f"the host was told {drain.reboots} times to reboot, and has not")
    return Runner(places, settings, store).run(drain)


def booted(drain: Drain) -> Drain:
    """Return the record of a drain after a boot. Pure.

    A boot that nobody has ordered is told as a failure, and the service does not begin anew by
    itself: what it did may have brought the host down, and would do so again.
    """
    if drain.phase == "returning":
        return drain
    if drain.phase in _DOING:
        drain = replace(drain, failed=f"the host went down while {_DOING[drain.phase]}")
    return replace(drain, phase="returning")


class Runner:
    """Does one step after the other, and writes each down before the next."""

    def __init__(self, places: Places, settings: Policy, store: Store) -> None:
        self._places, self._settings, self._store = places, settings, store
        self._placing = Placing(partial(processes.placed, places))

    def run(self, drain: Drain) -> Drain:
        """Go on until the drain has ended, waits for the administrator, or for the reboot."""
        steps: dict[str, Callable[[Drain], Drain]] = {
            "asking": self._ask,
            "stopping": self._stop,
            "installing": self._install,
            "confirming": self._confirm,
            "rebooting": self._reboot,
            "returning": self._return,
            "undoing": self._undo,
        }
        self._store.save(drain)
        while drain.phase in steps:
            phase = drain.phase
            try:
                drain = steps[phase](drain)
            except Failed as e:
                drain = _fail(self._store.last_drain() or drain, str(e))
            self._store.save(drain)
            if phase == drain.phase == "rebooting":
                break
        return self._give_back(drain)

    def _ask(self, drain: Drain) -> Drain:
        """Take a slot; that there may be one is written down already."""
        why = processes.slot(self._places, "take", drain.slot or "")
        if why:
            return replace(drain, phase="put off", put_off=why)
        return replace(drain, phase="stopping")

    def _give_back(self, drain: Drain) -> Drain:
        """Let others reboot; if that cannot be done now, autopod/fleet/agent.py does it later."""
        if drain.owes and not processes.slot(self._places, "give", drain.slot or ""):
            drain = replace(drain, slot=None)
            self._store.save(drain)
        return drain

    def _stop(self, drain: Drain) -> Drain:
        _archives(self._places, drain).mkdir(mode=0o700, parents=True, exist_ok=True)
        for pod in drain.pods:
            if pod.place == "here":
                drain = _with(drain, self._take_away(drain, pod))
                self._store.save(drain)
        return replace(drain, phase="installing")

    def _take_away(self, drain: Drain, pod: PodRecord) -> PodRecord:
        """Move a pod, or write it to disk; this may have been broken off before."""
        file = archive(self._places, drain, pod.pod)
        if not _runs(self._places, pod.pod):
            return replace(pod, place="archive" if file.exists() else "ended")
        for host in self._targets(drain, pod):
            if not self._verb("migrate", pod.pod, host):
                return replace(pod, place="moved", host=host)
        waiting = self._places.waiting(pod.pod)
        waiting.write_text(f"{drain.id}\n")
        why = self._verb("checkpoint", pod.pod, "-o", os.fspath(file), *readable(self._places))
        if why:
            waiting.unlink()
            raise Failed(f"pod {pod.pod!r}: {why}")
        return replace(pod, place="archive")

    def _targets(self, drain: Drain, pod: PodRecord) -> Sequence[str]:
        """Return the hosts to which a pod may be moved, in the order in which they are asked."""
        if self._settings.act.to or self._settings.fleet is None:
            return self._settings.act.to
        sent = [one.host for one in drain.pods if one.place == "moved" and one.host]
        names = [one.pod for one in drain.pods if one.place == "here"]
        return self._placing.targets(pod.pod, names[names.index(pod.pod) + 1 :], sent)

    def _install(self, drain: Drain) -> Drain:
        if drain.packages:
            private = apt.private(self._places, self._settings)
            with private.locked():
                argv = _filled(self._settings.act.install, private.options(), drain.packages)
                why = processes.run(argv)
                if why:  # as apt does while one that was killed has not been brought to its end
                    why = processes.run(self._settings.act.configure) or processes.run(argv)
            if why:
                raise Failed(f"the installation: {why}")
        return replace(drain, phase="confirming")

    def _confirm(self, drain: Drain) -> Drain:
        try:
            kernel = kernels.look(self._settings.host)
        except (OSError, ValueError) as e:
            raise Failed(f"which kernel is installed cannot be told: {e}") from e
        images = [one for one in drain.packages if one.startswith("linux-image-")]
        if images and not kernel.newer:
            raise Failed(f"{images[0]} was to be installed, and no newer kernel is there")
        drain = replace(drain, expected=kernel.expected)
        return replace(drain, phase="rebooting" if drain.automatic else "ready")

    def _reboot(self, drain: Drain) -> Drain:
        """Order the reboot. That it was ordered is written down first: it may end us at once."""
        drain = replace(drain, reboots=drain.reboots + 1)
        self._store.save(drain)
        why = processes.run(self._settings.act.reboot)
        if why:
            raise Failed(f"the reboot: {why}")
        return drain

    def _return(self, drain: Drain) -> Drain:
        """Bring the pods back, whichever kernel runs; then say whether it is the right one."""
        drain = self._bring_back(drain)
        try:
            runs = kernels.look(self._settings.host).running
        except (OSError, ValueError) as e:
            runs = f"none that could be told ({e})"
        wrong = drain.expected is not None and runs != drain.expected
        reasons = [drain.failed] if drain.failed else []
        reasons += [f"kernel {runs} runs, {drain.expected} was expected"] if wrong else []
        reasons += _lost(drain)
        return _ended(drain, reasons, well=not reasons)

    def _undo(self, drain: Drain) -> Drain:
        drain = self._bring_back(drain)
        lost = _lost(drain)
        return _ended(drain, [*([drain.failed] if drain.failed else []), *lost], well=not lost)

    def _bring_back(self, drain: Drain) -> Drain:
        for pod in drain.pods:
            file = archive(self._places, drain, pod.pod)
            if pod.place == "here" and file.exists() and not _runs(self._places, pod.pod):
                pod = replace(pod, place="archive")  # noqa: PLW2901 (killed before it was written)
            if pod.place != "archive":
                self._places.waiting(pod.pod).unlink(missing_ok=True)
                continue
            drain = _with(drain, self._restart(pod, file))
            self._store.save(drain)
            if drain.pods[[one.pod for one in drain.pods].index(pod.pod)].place == "back":
                file.unlink(missing_ok=True)
        return drain

    def _restart(self, pod: PodRecord, file: Path) -> PodRecord:
        self._places.waiting(pod.pod).unlink(missing_ok=True)
        if _runs(self._places, pod.pod):  # done, and killed before it was written down
            return replace(pod, place="back")
        wait_until_free(self._places, pod.pod, _PATIENCE_S)  # a boot may just add it
        why = self._verb("restart", pod.pod, "-i", os.fspath(file))
        if why:
            self._store.add_event("alert", f"pod {pod.pod}: {why}; its archive is {file}")
            return replace(pod, place="lost", why=why)
        return replace(pod, place="back")

    def _verb(self, *words: str) -> str | None:
        """Run a command of ours; return why it failed, None if it did not."""
        return processes.ours(self._places, "autopod.cli", *words)


def call_off(places: Places, settings: Policy, store: Store) -> Drain:
    """Bring the pods back without a reboot. A drain that went by itself is not to begin anew.

    Raises:
        Refused: no drain is under way.
    """
    drain = store.last_drain()
    if drain is None or drain.phase in ENDED:
        raise Refused("no drain is under way")
    undone = _fail(drain, "it was called off") if drain.automatic else drain
    return Runner(places, settings, store).run(replace(undone, phase="undoing"))


def archive(places: Places, drain: Drain, pod: str) -> Path:
    """Return where a pod's archive is while it does not run."""
    return _archives(places, drain) / f"{pod}.pod"


def _archives(places: Places, drain: Drain) -> Path:
    return places.states() / ".drains" / drain.id


def _runs(places: Places, name: str) -> bool:
    found = pods.find(places, name)
    return found is not None and bool(enter.pids(found))


def _with(drain: Drain, pod: PodRecord) -> Drain:
    return replace(drain, pods=[pod if one.pod == pod.pod else one for one in drain.pods])


def _fail(drain: Drain, why: str) -> Drain:
    return replace(drain, phase="undoing", failed=drain.failed or why)


def _lost(drain: Drain) -> list[str]:
    return [f"pod {pod.pod} did not come back: {pod.why}" for pod in drain.pods if pod.why]


def _ended(drain: Drain, reasons: list[str], *, well: bool) -> Drain:
    if reasons:
        return replace(drain, phase="failed", failed="; ".join(reasons), well=well)
    return replace(drain, phase="done", well=well)


def _filled(command: Sequence[str], options: list[str], packages: list[str]) -> list[str]:
    """Return *command* with what its words stand for. Pure."""
    meant = {"{apt}": options, "{packages}": packages}
    return [word for one in command for word in meant.get(one, [one])]
