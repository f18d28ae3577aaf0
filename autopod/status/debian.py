"""What apt and dpkg write, understood. Pure: text in, values out; the text may be hostile."""

import re
from collections.abc import Iterator
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from fnmatch import fnmatchcase
from typing import Final

import msgspec

from autopod.status import versions

_NAME: Final = r"[a-z0-9][a-z0-9+.-]*"
_INST: Final = re.compile(
    rf"Inst ({_NAME})(?::\S+)?(?: \[([^\]]*)\])? \((\S+) ([^()\[]*?)(?: ?\[([^\]]*)\])?\)"
)
_CONF: Final = re.compile(rf"Conf ({_NAME})(?::\S+)? \((\S+) ([^()\[]*?)(?: ?\[([^\]]*)\])?\)")
_REMV: Final = re.compile(rf"Remv ({_NAME})")
_KEPT: Final = "The following packages have been kept back:"
_KEPT_LINE: Final = re.compile(rf"   ({_NAME})(?::\S+)? \((\S+) => (\S+)\)")
_ADVISORY: Final = re.compile(r"\b(?:CVE-[0-9]{4}-[0-9]{4,7}|D[SL]A-[0-9]{2,5}-[0-9]{1,2})\b")
_ENTRY: Final = re.compile(rf"^{_NAME} \(([^)\s]+)\) [^;]*;", re.MULTILINE)
_PINS: Final = {"o": "Origin", "l": "Label", "n": "Codename", "a": "Suite", "v": "Version"}
_CONFIGURED: Final = frozenset({"installed", "triggers-awaited", "triggers-pending"})
_INSTALLED: Final = _CONFIGURED | {"half-configured", "unpacked"}


class Step(msgspec.Struct, frozen=True):
    """A package that apt would install.

    Attributes:
        package: its name.
        installed: the version that is installed; None: it is new, something needs it.
        candidate: the version that would be.
        origin: where that is from, in apt's words: `Debian-Security:12/oldstable-security`.
        kept: apt would not: the package is held, or what it needs cannot be had.
        broken_off: it is unpacked already, and apt would do the rest.
    """

    package: str
    installed: str | None
    candidate: str
    origin: str
    kept: bool = False
    broken_off: bool = False


class Plan(msgspec.Struct, frozen=True):
    """What `apt-get -s -V dist-upgrade` would do."""

    steps: list[Step]
    removed: list[str]


class Source(msgspec.Struct, frozen=True):
    """An archive of packages, as its Release file describes it.

    Attributes:
        label: as "Debian-Security".
        codename: as "bookworm-security".
        dated: when it was made; None: it does not say so.
        valid_until: None: it does not say so.
    """

    label: str
    codename: str
    dated: datetime | None
    valid_until: datetime | None


def parse_plan(text: str) -> Plan:
    """Understand what apt says it would do, with LC_ALL=C."""
    steps, removed, kept = [], [], False
    for line in text.splitlines():
        if kept and (held := _KEPT_LINE.match(line)):
            steps.append(Step(held[1], held[2], held[3], "", kept=True))
            continue
        kept = line == _KEPT
        if inst := _INST.match(line):
            steps.append(Step(inst[1], inst[2], inst[3], inst[4].strip()))
        elif (conf := _CONF.match(line)) and all(conf[1] != step.package for step in steps):
            steps.append(Step(conf[1], None, conf[2], conf[3].strip(), broken_off=True))
        elif gone := _REMV.match(line):
            removed.append(gone[1])
    return Plan(steps, removed)


def paragraphs(text: str) -> Iterator[dict[str, str]]:
    """Yield the paragraphs of a control file (deb822(5)); of a field its first line only."""
    found: dict[str, str] = {}
    for line in text.split("\n"):
        if not line.strip():
            if found:
                yield found
            found = {}
        elif not line[0].isspace() and ":" in line:
            key, _, value = line.partition(":")
            found[key] = value.strip()
    if found:
        yield found


def release_fields(text: str) -> dict[str, str]:
    """Return the fields of a Release file, or of an InRelease file, whose signature apt verified.

    It begins with lines of OpenPGP's, an empty one among them, where it is an InRelease file.
    """
    body = text.partition("\n\n")[2] if text.startswith("-----BEGIN PGP SIGNED") else text
    return next(paragraphs(body), {})


def is_security(pins: list[str], fields: dict[str, str]) -> bool:
    """Does one of *pins* (apt_preferences(5): `o=Debian,n=*-security`) fit a Release file?"""
    return any(all(_fits(part, fields) for part in pin.split(",")) for pin in pins)


def _fits(part: str, fields: dict[str, str]) -> bool:
    key, _, glob = part.strip().partition("=")
    return fnmatchcase(fields.get(_PINS.get(key, ""), ""), glob)


def is_pin(text: str) -> bool:
    """Is it of that form? Nothing else may go into the file that apt reads."""
    return all(
        re.fullmatch(r"[olnav]=[A-Za-z0-9.*?+~_-]+", part.strip()) for part in text.split(",")
    )


def source(fields: dict[str, str]) -> Source:
    """Return what a Release file says of its archive."""
    return Source(
        fields.get("Label", ""),
        fields.get("Codename", "") or fields.get("Suite", ""),
        _date(fields.get("Date", "")),
        _date(fields.get("Valid-Until", "")),
    )


def _date(text: str) -> datetime | None:
    try:
        found = parsedate_to_datetime(text)
    except ValueError:
        return None
    return found.replace(tzinfo=UTC) if found.tzinfo is None else found.astimezone(UTC)


def staleness(found: Source, now: datetime, max_age_days: float) -> str | None:
    """Return why what an archive says is too old to be relied upon; None: it is not."""
    if found.valid_until is not None and found.valid_until < now:
        return f"{found.codename}: valid until {found.valid_until:%Y-%m-%d %H:%M} UTC only"
    if found.dated is None:
        return f"{found.codename}: its Release file has no date"
    age = (now - found.dated).total_seconds() / 86400
    if age > max_age_days:
        return f"{found.codename}: made {age:.0f} days ago, more than {max_age_days:g}"
    if age < -1:
        return f"{found.codename}: made {-age:.0f} days in the future"
    return None


def parse_status(text: str, *, configured: bool = False) -> dict[tuple[str, str], str]:
    """Return what is installed by dpkg's status file: (package, architecture) -> version.

    Args:
        text: of the file.
        configured: without what was unpacked only: its postinst has never run to the end.
    """
    return {
        (found["Package"], found.get("Architecture", "")): found["Version"]
        for found in paragraphs(text)
        if found.get("Status", "").rpartition(" ")[2] in _INSTALLED
        and not (configured and _is_new(found))
        and found.get("Version")
        and re.fullmatch(_NAME, found.get("Package", ""))
    }


def _is_new(found: dict[str, str]) -> bool:
    """Has no version of it been configured yet? `Config-Version` names the last that was."""
    state = found["Status"].rpartition(" ")[2]
    return state not in _CONFIGURED and "Config-Version" not in found


def parse_packages(text: str) -> Iterator[tuple[tuple[str, str], str]]:
    """Yield what a Packages file offers: (package, architecture), version."""
    for found in paragraphs(text):
        if "Package" in found and "Version" in found:
            yield (found["Package"], found.get("Architecture", "")), found["Version"]


def advisories(changelog: str, installed: str | None) -> list[str]:
    """Return the CVE and DSA numbers in the entries of a changelog after version *installed*."""
    entries = list(_ENTRY.finditer(changelog))
    end = next((found.start() for found in entries if found[1] == installed), None)
    if end is None:  # a new package, or one of which the changelog does not know: the last entry
        end = entries[1].start() if len(entries) > 1 else len(changelog)
    return sorted(set(_ADVISORY.findall(changelog[:end])))


def codename(os_release: str) -> str | None:
    """Return VERSION_CODENAME of os-release(5)."""
    found = re.search(r'^VERSION_CODENAME="?([a-z0-9._-]+)"?$', os_release, re.MULTILINE)
    return found[1] if found else None


def newest(
    into: dict[tuple[str, str], str], offered: Iterator[tuple[tuple[str, str], str]]
) -> None:
    """Add *offered* to *into*, of each package the newest version."""
    for key, version in offered:
        if key not in into or versions.key(into[key]) < versions.key(version):
            into[key] = version


def outdated(
    installed: dict[tuple[str, str], str], offered: dict[tuple[str, str], str]
) -> list[tuple[str, str, str]]:
    """Return what is installed in an older version than offered: package, installed, offered.

    A package "all" may become one of an architecture, and the other way round.
    """
    found = []
    for (package, architecture), version in sorted(installed.items()):
        there = offered.get((package, architecture)) or offered.get((package, "all"))
        if there and versions.key(version) < versions.key(there):
            found.append((package, version, there))
    return found
