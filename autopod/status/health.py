"""What is wrong with a host, decided from what it tells. Pure: text and numbers in, faults out."""

import re
from collections.abc import Iterable, Sequence
from typing import Final

import msgspec

_RECORD: Final = re.compile(r"(\d+),(\d+),(\d+),[^;]*;(.*)")
_ESCAPE: Final = re.compile(r"\\x([0-9a-f]{2})")
_UPS: Final = re.compile(r"[A-Za-z0-9_.][A-Za-z0-9_.-]*")
_PRESSURE: Final = re.compile(r"^(some|full) .*\bavg300=([0-9]+\.[0-9]+)", re.MULTILINE)

# What the kernel prints, by the words that have stayed the same over its versions.
_KNOWN: Final[tuple[tuple[str, re.Pattern[str]], ...]] = tuple(
    (kind, re.compile(pattern))
    for kind, pattern in (
        ("io-error", r"\bI/O error\b|\bmedium error\b|critical (?:target|medium) error"),
        ("io-error", r"^EXT4-fs error|^XFS .*(?:[Cc]orruption|metadata I/O)"),
        ("io-error", r"^BTRFS (?:error|critical)|^F2FS-fs .*(?:error|corrupt)"),
        ("io-error", r"^nvme .*(?:timeout|controller is down)|Remounting filesystem read-only"),
        ("machine-check", r"\[Hardware Error\]|^mce: .*(?:error|Uncorrected)|^EDAC .*\b[UC]E\b"),
        ("out-of-memory", r"^Out of memory: Kill|^Kernel panic - not syncing: Out of memory"),
        ("lockup", r"soft lockup|[Hh]ard LOCKUP|blocked for more than \d+ seconds"),
        ("lockup", r"^rcu: INFO: .*(?:stall|detected)|^INFO: rcu_\w+ .*stall"),
        ("kernel-bug", r"^BUG: |^Oops: |kernel BUG at|^general protection fault"),
    )
)  # fmt: skip


class Fault(msgspec.Struct, frozen=True):
    """Something is wrong.

    Attributes:
        kind: "io-error", "machine-check", "out-of-memory", "lockup", "kernel-bug", "disk-full",
            "pressure", "smart", "temperature", "power" (soon there may be none), "battery" (of a
            UPS) or "daemon".
        subject: what it is about.
        text: what is the case.
    """

    kind: str
    subject: str
    text: str


class Record(msgspec.Struct, frozen=True):
    """A message of the kernel; *at_us* in microseconds since the boot."""

    at_us: int
    text: str


def parse_kmsg(data: str) -> Record | None:
    """Understand what one read(2) of /dev/kmsg gives; None: it is not of the kernel, or no record.

    Who may write to /dev/kmsg cannot pass for the kernel: such records have another facility.

    Source: Documentation/ABI/testing/dev-kmsg.
    """
    found = _RECORD.match(data)
    if found is None or int(found[1]) >> 3:
        return None
    text = _ESCAPE.sub(lambda hexadecimal: chr(int(hexadecimal[1], 16)), found[4])
    return Record(int(found[3]), text)


def kernel_faults(records: Iterable[Record], since_us: int) -> list[Fault]:
    """Return of each kind how often the kernel has told of it since, and its last words."""
    counts: dict[str, int] = {}
    last: dict[str, str] = {}
    for record in records:
        if record.at_us < since_us:
            continue
        kind = next((kind for kind, pattern in _KNOWN if pattern.search(record.text)), None)
        if kind:
            counts[kind] = counts.get(kind, 0) + 1
            last[kind] = record.text
    return [Fault(kind, "kernel", f"{counts[kind]} times, last: {last[kind]}") for kind in counts]


def pressure_fault(resource: str, text: str, most: float) -> Fault | None:
    """Return what /proc/pressure/*resource* tells where all wait for it more than *most* percent.

    Source: Documentation/accounting/psi.rst.
    """
    shares = {kind: float(share) for kind, share in _PRESSURE.findall(text)}
    share = shares.get("full", 0)
    if share <= most:
        return None
    return Fault("pressure", resource, f"nothing went on for {share:g} % of the last five minutes")


def disk_fault(path: str, total: int, free: int, most: float) -> Fault | None:
    """Return whether more than *most* percent of *total* blocks, or inodes, is in use."""
    used = 100 * (total - free) / total if total else 0.0
    return Fault("disk-full", path, f"{used:.0f} % in use") if used > most else None


def temperature_fault(zone: str, now: int, trips: Sequence[tuple[str, int]]) -> Fault | None:
    """Return whether a thermal zone is near the point where it turns the host off.

    Args:
        zone: what it measures.
        now: thousandths of a degree.
        trips: kind and temperature of its trip points.
    """
    limits = [limit for kind, limit in trips if kind in {"hot", "critical"} and limit > 0]
    if not limits or now < min(limits) - 5000:
        return None
    return Fault("temperature", zone, f"{now / 1000:.0f} °C, its limit is {min(limits) / 1000:.0f}")


class Supply(msgspec.Struct, frozen=True):
    """What feeds the host, a directory of /sys/class/power_supply.

    Attributes:
        name: of the directory.
        kind: "Battery", "UPS", or what brings power from outside: "Mains", "USB", ….
        online: does it bring it?
        status: of a battery: "Charging", "Discharging", "Not charging", "Full" or "Unknown".
        capacity: what is left in it, percent; empty: it does not say.

    Source: Documentation/ABI/testing/sysfs-class-power.
    """

    name: str
    kind: str
    online: bool = False
    status: str = ""
    capacity: str = ""

    @property
    def stores(self) -> bool:
        """Is it a battery?"""
        return self.kind in {"Battery", "UPS"}


def battery_fault(supplies: Sequence[Supply]) -> Fault | None:
    """Return whether the host has nothing but a battery now.

    Raises:
        ValueError: that cannot be told; the text says of which.
    """
    if any(one.online for one in supplies if not one.stores):
        return None
    stores = [one for one in supplies if one.stores]
    for one in stores:
        if one.status == "Discharging":
            left = f"; {one.capacity} % are left" if one.capacity else ""
            return Fault("power", one.name, f"it discharges{left}")
    for one in stores:
        if one.status not in {"Charging", "Not charging", "Full"}:
            raise ValueError(f"{one.name} does not say whether it discharges")
    return None


def upses(text: str) -> list[str]:
    """Return the names that `upsc -l` prints."""
    return [line for line in text.splitlines() if _UPS.fullmatch(line)]


def ups_fault(name: str, status: str) -> Fault | None:
    """Return what is wrong with the UPS *name* of NUT's, by its ups.status.

    Raises:
        ValueError: it says neither that it is on the mains nor that it is not.

    Source: NUT's docs/new-drivers.txt, "Status data".
    """
    said = set(status.split())
    if "FSD" in said:
        return Fault("power", f"UPS {name}", "it turns off what it feeds")
    if "OB" in said:
        low = ", which is nearly empty" if "LB" in said else ""
        return Fault("power", f"UPS {name}", f"it runs on its battery{low}")
    if "OL" not in said:
        raise ValueError(f"UPS {name} does not say whether it has the mains")
    return Fault("battery", f"UPS {name}", "it is to be replaced") if "RB" in said else None


class _Smart(msgspec.Struct):
    passed: bool


class _Health(msgspec.Struct):
    smart_status: _Smart | None = None


class _Device(msgspec.Struct):
    name: str


class _Scan(msgspec.Struct):
    devices: list[_Device] = []


def smart_devices(text: str) -> list[str]:
    """Return the devices that `smartctl --scan --json` names."""
    try:
        return [device.name for device in msgspec.json.decode(text, type=_Scan).devices]
    except msgspec.DecodeError:
        return []


def smart_fault(device: str, text: str) -> Fault | None:
    """Return whether a disk says of itself, in `smartctl -H --json`, that it is failing."""
    try:
        health = msgspec.json.decode(text, type=_Health).smart_status
    except msgspec.DecodeError:
        return None
    failing = health is not None and not health.passed
    return Fault("smart", device, "the disk says that it is failing") if failing else None
