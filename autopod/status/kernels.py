"""Which kernel runs, which should, and whether something installed asks for a reboot."""

import re
import shutil
import subprocess
from pathlib import Path
from typing import Final

import msgspec

from autopod.status import debian, versions
from autopod.status.policy import Host

_IMAGE: Final = re.compile(r"linux-image-([0-9][A-Za-z0-9.+~-]*?)(?:-unsigned)?")
_BUILD: Final = re.compile(r"\bDebian (\S+)")
_TIMEOUT_S: Final = 60


class Kernel(msgspec.Struct, frozen=True):
    """What is known after an installation, and not before it.

    Attributes:
        running: the release of the kernel that runs.
        build: its package's version, where it says so.
        expected: the release that the next boot brings; None: no kernel is installed as a package.
        newer: why another kernel than the running one is to be booted; None: it is not.
        reboot_required: the packages that have asked for a reboot; None: no one has.
        needrestart: what it has found; None where it is not installed.
        broken_off: releases that are unpacked, and that the boot loader was never told of.
    """

    running: str
    build: str | None
    expected: str | None
    newer: str | None
    reboot_required: list[str] | None
    needrestart: "NeedRestart | None"
    broken_off: list[str] = []

    @property
    def pending(self) -> list[str]:
        """Why the host is to be rebooted, by what is installed already."""
        reasons = [self.newer] if self.newer else []
        if self.reboot_required is not None:
            reasons.append(f"asked for by {' '.join(self.reboot_required) or 'a package'}")
        found = self.needrestart
        if found and found.kernel in {2, 3} and found.expected not in self.broken_off:
            reasons += [] if self.newer else [f"needrestart: {found.expected} is installed"]
        return reasons


class NeedRestart(msgspec.Struct, frozen=True):
    """What needrestart(1) says in batch mode.

    Attributes:
        kernel: 0 unknown, 1 current, 2 another build of the same, 3 a newer one is installed.
        expected: the newer kernel's release.
        services: units whose programs are older than what is installed.
    """

    kernel: int
    expected: str
    services: list[str]


def look(host: Host) -> Kernel:
    """Return what is the case now.

    Raises:
        OSError, ValueError: the running kernel cannot be told.
    """
    release, build = parse_running(ask(host.running_kernel))
    file = Path(host.dpkg_status)
    status = file.read_text(errors="replace") if file.exists() else ""
    images = _images(debian.parse_status(status, configured=True))
    expected = expect(images, release)
    return Kernel(
        running=release,
        build=build,
        expected=expected[0] if expected else None,
        newer=newer(expected, release, build),
        reboot_required=_reboot_required(Path(host.reboot_required)),
        needrestart=_needrestart(),
        broken_off=sorted(_images(debian.parse_status(status)).keys() - images.keys()),
    )


def ask(command: list[str]) -> str:
    """Return what *command* prints.

    Raises:
        OSError, ValueError: it cannot be run, fails, or prints nothing.
    """
    try:
        run = subprocess.run(
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            timeout=_TIMEOUT_S,
            check=True,
        )
    except subprocess.SubprocessError as e:
        raise ValueError(f"{' '.join(command)}: {e}") from e
    text = run.stdout.decode(errors="replace").strip()
    if not text:
        raise ValueError(f"{' '.join(command)}: it prints nothing")
    return text


def parse_running(text: str) -> tuple[str, str | None]:
    """Return release and package version of what `uname -r -v` prints. Pure."""
    release, _, version = text.partition(" ")
    found = _BUILD.search(version)
    return release, found[1] if found else None


def _images(installed: dict[tuple[str, str], str]) -> dict[str, str]:
    """Return the kernels among packages: release -> version. Pure."""
    return {
        found[1]: version
        for (package, _), version in installed.items()
        if (found := _IMAGE.fullmatch(package)) and not package.endswith("-dbg")
    }


def expect(images: dict[str, str], running: str) -> tuple[str, str] | None:
    """Return release and version of the kernel that a boot loader begins with. Pure.

    It is the newest one that it knows; where there are several flavours, of that which runs.
    """
    flavour = _flavour(running)
    same = [release for release in images if _flavour(release) == flavour]
    newest = max(same or images, key=versions.key, default=None)
    return None if newest is None else (newest, images[newest])


def _flavour(release: str) -> str:
    """Return what follows the numbers: `cloud-amd64` of `6.1.0-41-cloud-amd64`."""
    return re.sub(r"^[0-9.]+(?:[+~][^-]*)?(?:-[0-9.]+)*-?", "", release)


def newer(expected: tuple[str, str] | None, running: str, build: str | None) -> str | None:
    """Return why a boot would bring another kernel than the running one. Pure."""
    if expected is None:
        return None
    release, version = expected
    if release != running:
        return f"kernel {release} is installed, {running} runs"
    if build is not None and build != version:
        return f"kernel {release} is installed as {version}, it runs as {build}"
    return None


def _reboot_required(file: Path) -> list[str] | None:
    if not file.exists():
        return None
    packages = file.with_name(file.name + ".pkgs")
    return sorted(set(packages.read_text().split())) if packages.exists() else []


def _needrestart() -> NeedRestart | None:
    if not shutil.which("needrestart"):
        return None
    try:
        return parse_needrestart(ask(["needrestart", "-b", "-r", "l"]))
    except (OSError, ValueError):
        return None


def parse_needrestart(text: str) -> NeedRestart:
    """Understand `needrestart -b`. Pure."""
    lines = [line.partition(": ") for line in text.splitlines() if line.startswith("NEEDRESTART-")]
    found = {key: value for key, _, value in lines}
    state = found.get("NEEDRESTART-KSTA", "0")
    return NeedRestart(
        int(state) if state in {"0", "1", "2", "3"} else 0,
        found.get("NEEDRESTART-KEXP", ""),
        [value for key, _, value in lines if key == "NEEDRESTART-SVC"],
    )
