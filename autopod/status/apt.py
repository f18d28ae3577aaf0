"""apt as the status service runs it: the host's sources and keyrings, lists of its own.

apt itself verifies the signature of whatever it reads; what it says when it could not (a mirror
that is down, a signature that is missing, wrong or too old, a file that is not what was signed) is
never taken for "nothing to do". Neither the host's lists nor its packages are touched.
"""

import fcntl
import os
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

from autopod.status import debian
from autopod.status.debian import Plan, Source
from autopod.status.policy import Policy
from launcher.places import Places

_TIMEOUT_S: Final = 600
_MAX_LIST: Final = 512 << 20

# Hooks of the host's configuration are for its own lists. deb-src and desktops' data say nothing
# of updates. `-c` is read after the host's files, and so may clear what they set: apt-get(8).
_CONFIGURATION: Final = """\
#clear APT::Update::Pre-Invoke;
#clear APT::Update::Post-Invoke;
#clear APT::Update::Post-Invoke-Success;
#clear Acquire::IndexTargets::deb-src;
#clear Acquire::IndexTargets::deb::DEP-11;
#clear Acquire::IndexTargets::deb::Contents-deb;
"""

# They come after the administrator's: verification cannot be configured away.
_FIXED: Final = {
    "APT::Update::Error-Mode": "any",
    "APT::Get::AllowUnauthenticated": "false",
    "Acquire::AllowInsecureRepositories": "false",
    "Acquire::AllowWeakRepositories": "false",
    "Acquire::AllowDowngradeToInsecureRepositories": "false",
    "Acquire::Check-Valid-Until": "true",
    "Acquire::Check-Date": "true",
}
_DEFAULTS: Final = {
    "Acquire::Languages": "none",
    "Acquire::Retries": "1",
    "Acquire::http::Timeout": "30",
    "Acquire::https::Timeout": "30",
}


class Unknown(Exception):  # noqa: N818 (what is the case)
    """What the host needs cannot be told; the text says why."""


@dataclass(frozen=True, slots=True)
class Apt:
    """A private apt.

    Attributes:
        home: its directory.
        policy: of the host.
    """

    home: Path
    policy: Policy

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Be the only one who uses it; wait for that. Its directories are made."""
        for directory in ("lists/partial", "cache/archives/partial"):
            (self.home / directory).mkdir(mode=0o755, parents=True, exist_ok=True)
        fd = os.open(self.home / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(fd, fcntl.LOCK_EX)
            (self.home / "apt.conf").write_text(_CONFIGURATION)
            (self.home / "preferences").write_text(_preferences(self.policy.apt.security))
            yield
        finally:
            os.close(fd)

    def options(self) -> list[str]:
        """Return the words that make any of apt's programs work in here."""
        places = {
            "Dir::State::lists": f"{self.home}/lists/",
            "Dir::Cache": f"{self.home}/cache/",
            "Dir::Cache::pkgcache": "pkgcache.bin",
            "Dir::Cache::srcpkgcache": "srcpkgcache.bin",
            "Dir::Etc::preferences": f"{self.home}/preferences",
            "Dir::Etc::preferencesparts": "/dev/null",
            "Dir::State::status": self.policy.host.dpkg_status,
        }
        merged = {**_DEFAULTS, **self.policy.apt.options, **places, **_FIXED}
        return [
            "-c", f"{self.home}/apt.conf", *(f"-o{key}={text}" for key, text in merged.items())
        ]  # fmt: skip

    def update(self) -> None:
        """Fetch what the archives have to say.

        Raises:
            Unknown: of one of them at least that could not be had, or is not genuine.
        """
        self._run("apt-get", "-q", "update")

    def sources(self, now: datetime) -> list[Source]:
        """Return the security archives among the sources.

        Raises:
            Unknown: there is none, or what one of them says is too old.
        """
        found = [debian.source(fields) for fields in self._releases().values()]
        if not found:
            raise Unknown("none of apt's sources is an archive of security updates")
        stale = [debian.staleness(one, now, self.policy.apt.max_age_days) for one in found]
        reasons = [reason for reason in stale if reason]
        if reasons:
            raise Unknown("; ".join(reasons))
        return found

    def plan(self) -> Plan:
        """Return what is to be installed for security's sake.

        Raises:
            Unknown: apt cannot tell.
        """
        return debian.parse_plan(self._run("apt-get", "-q", "-s", "-V", "dist-upgrade"))

    def offers(self) -> dict[str, dict[tuple[str, str], str]]:
        """Return by codename of the security archives what they offer, the newest version each.

        Raises:
            Unknown: a list cannot be read.
        """
        offers: dict[str, dict[tuple[str, str], str]] = {}
        for stem, fields in self._releases().items():
            offered = offers.setdefault(debian.source(fields).codename, {})
            for path in self.home.glob(f"lists/{stem}_*_Packages*"):
                debian.newest(offered, debian.parse_packages(self._cat(path)))
        return offers

    def changelog(self, package: str, timeout_s: float) -> str:
        """Return the changelog of *package*'s candidate.

        Raises:
            Unknown: it is not to be had; few archives have it.
        """
        return self._run("apt-get", "-q", "changelog", package, timeout_s=timeout_s)

    def _releases(self) -> dict[str, dict[str, str]]:
        """Return the Release files of security archives, by the beginning of their lists' names."""
        found = {}
        for path in sorted(self.home.glob("lists/*Release")):
            stem = path.name.removesuffix("InRelease").removesuffix("Release").rstrip("_")
            fields = debian.release_fields(path.read_text(errors="replace"))
            if debian.is_security(self.policy.apt.security, fields):
                found[stem] = fields
        return found

    def _cat(self, path: Path) -> str:
        return self._run("/usr/lib/apt/apt-helper", "cat-file", os.fspath(path))[:_MAX_LIST]

    def _run(self, program: str, *arguments: str, timeout_s: float = _TIMEOUT_S) -> str:
        argv = [program, *self.options(), *arguments]
        environment = {**os.environ, "LC_ALL": "C", "PAGER": "cat"}
        try:
            run = subprocess.run(
                argv,
                env=environment,
                stdin=subprocess.DEVNULL,
                capture_output=True,
                timeout=timeout_s,
                check=False,
            )
        except (OSError, subprocess.TimeoutExpired) as e:
            raise Unknown(f"{program}: {e}") from e
        if run.returncode:
            raise Unknown(_complaint(program, run.stderr.decode(errors="replace")))
        return run.stdout.decode(errors="replace")


def private(places: Places, policy: Policy) -> Apt:
    """Return the instance's apt; all in its directory can be had again."""
    return Apt(places.prefix / "var/cache/autopod/apt", policy)


def now() -> datetime:
    """Return the time."""
    return datetime.now(UTC)


def _preferences(pins: Sequence[str]) -> str:
    """Return what makes security's versions the only ones that anything is upgraded to.

    Priority 50 installs what is not installed, and upgrades nothing: apt_preferences(5). So a
    kernel may bring what it newly depends on.
    """
    others = "Package: *\nPin: release o=*\nPin-Priority: 50\n"
    secure = (f"Package: *\nPin: release {pin}\nPin-Priority: 500\n" for pin in pins)
    return "\n".join([*secure, others])


def _complaint(program: str, stderr: str) -> str:
    """Return what apt says went wrong, on one line, the errors first."""
    lines = [line.strip() for line in stderr.splitlines() if line.strip()]
    errors = [line[3:] for line in lines if line.startswith("E: ")]
    warned = [line[3:] for line in lines if line.startswith("W: ")]
    said = dict.fromkeys([*errors, *warned] or lines[-1:] or ["it failed without a word"])
    return f"{program}: {'; '.join(said)}"
