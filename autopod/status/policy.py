"""`/etc/autopod/autopod.toml`: what the status service asks, and what it may do."""

import math
import re
from pathlib import Path
from typing import Final

import msgspec

from autopod import objects
from autopod.status import debian
from autopod.status.prometheus import Query
from autopod.status.receivers import Receiver
from autopod.status.windows import Blackout, Window
from autopod.web.listening import Web
from launcher import toml
from launcher.places import Places
from launcher.toml import Table, reject

_INSTALL: Final = (
    "apt-get", "{apt}", "-oDPkg::Lock::Timeout=600", "-oDpkg::Options::=--force-confold", "--yes",
    "--no-remove", "install", "{packages}",
)  # fmt: skip
_ENDPOINT: Final = re.compile(
    r"https://[A-Za-z0-9.\[\]:-]+(:[0-9]+)?|http://(127\.0\.0\.1|\[::1\]|localhost):[0-9]+"
)
_ROOT: Final = re.compile(r"/[a-z][A-Za-z0-9_.-]*")
_GROUP: Final = re.compile(r"[A-Za-z0-9.-]{1,64}")
_GRAMMAR: Final = "like l=Debian-Security or o=Debian,n=*-security (apt_preferences(5))"


class Apt(Table, frozen=True):
    """How security updates are asked for.

    Attributes:
        security: which archives are security's, as apt_preferences(5) pins releases.
        max_age_days: metadata that is older says nothing, whether or not it has an end of its own.
        changelogs_s: for how many seconds changelogs are fetched for the CVE and DSA numbers in
            them, what needs most first; 0: not at all.
        options: of apt.conf(5), for apt as the service runs it.
    """

    security: list[str] = msgspec.field(
        default_factory=lambda: ["l=Debian-Security", "n=*-security"]
    )
    max_age_days: float = 14
    changelogs_s: float = 30
    options: dict[str, str] = msgspec.field(default_factory=dict)

    def __post_init__(self) -> None:
        for pin in self.security:
            if not debian.is_pin(pin):
                reject("security", pin, f"it pins no release; {_GRAMMAR}")
        if not self.security:
            reject("security", self.security, "without one nothing is security's")
        if not 0 < self.max_age_days < 1000:
            reject("max_age_days", self.max_age_days, "use a number of days below 1000")


class Host(Table, frozen=True):
    """Where the service learns of the host; commands, that it can be told of another one.

    Attributes:
        running_kernel: prints release and version of the kernel that runs.
        boot_id: prints what is another one after each boot.
        reboot_required: the file by which installed packages ask for a reboot.
        dpkg_status: what is installed.
    """

    running_kernel: list[str] = msgspec.field(default_factory=lambda: ["uname", "-r", "-v"])
    boot_id: list[str] = msgspec.field(
        default_factory=lambda: ["cat", "/proc/sys/kernel/random/boot_id"]
    )
    reboot_required: str = "/run/reboot-required"
    dpkg_status: str = "/var/lib/dpkg/status"

    def __post_init__(self) -> None:
        for key in ("running_kernel", "boot_id"):
            if not getattr(self, key):
                reject(key, [], "a command has one word at least")


class Faults(Table, frozen=True):
    """What of the host is a fault.

    Attributes:
        hours: for how long what the kernel has logged counts.
        disk_percent: of a file system in use, of its blocks or its inodes.
        memory_pressure: percent of five minutes in which all waited for memory.
        io_pressure: likewise, for disks.
    """

    hours: float = 24
    disk_percent: float = 95
    memory_pressure: float = 20
    io_pressure: float = 60

    def __post_init__(self) -> None:
        for key in ("hours", "disk_percent", "memory_pressure", "io_pressure"):
            if not getattr(self, key) > 0:
                reject(key, getattr(self, key), "must be above 0")


class Act(Table, frozen=True):
    """What is done about it.

    Attributes:
        enabled: act at all; else it is reported only.
        hold: why nothing is done on this host for now; None: it may be.
        hold_pods: pods that are not to be stopped: while one of them runs, nothing is done.
        to: hosts that pods are moved to, in the order in which they are asked; a pod that none of
            them takes is written to disk, and comes back after the boot.
        configure: ends what an installation that was broken off has left, when the next one fails.
        install: installs; `{apt}` stands for the options of the private apt, `{packages}` for
            `NAME=VERSION` of each.
        reboot: reboots.
        window: when it may be done; none: at any time.
        blackout: when it may not.
        hold_shutdown: a shutdown that somebody orders waits until the pods are on disk, for as long
            as logind lets it wait (InhibitDelayMaxSec in logind.conf(5)).
        blocked_by_users: not while somebody is logged in.
        blocked_by: a command; not while it fails.
        blocked_by_query: not while a Prometheus server has an answer to one of these.
    """

    enabled: bool = False
    hold: str | None = None
    hold_pods: list[str] = msgspec.field(default_factory=list)
    to: list[str] = msgspec.field(default_factory=list)
    configure: list[str] = msgspec.field(default_factory=lambda: ["dpkg", "--configure", "-a"])
    install: list[str] = msgspec.field(default_factory=lambda: list(_INSTALL))
    reboot: list[str] = msgspec.field(default_factory=lambda: ["systemctl", "reboot"])
    window: list[Window] = msgspec.field(default_factory=list)
    blackout: list[Blackout] = msgspec.field(default_factory=list)
    hold_shutdown: bool = False
    blocked_by_users: bool = True
    blocked_by: list[str] = msgspec.field(default_factory=list)
    blocked_by_query: list[Query] = msgspec.field(default_factory=list)

    def __post_init__(self) -> None:
        for key in ("configure", "install", "reboot"):
            if not getattr(self, key):
                reject(key, [], "a command has one word at least")


class Service(Table, frozen=True):
    """The service.

    Attributes:
        every_s: from one look to the next; 0: it does not look.
    """

    every_s: float = 3600

    def __post_init__(self) -> None:
        if not (self.every_s == 0 or 1 <= self.every_s < math.inf):
            reject("every_s", self.every_s, "use a second at least, or 0 for never")


class Fleet(Table, frozen=True):
    """The fleet that the host belongs to: see autopod/fleet/.

    Attributes:
        endpoints: of etcd's members, as `https://192.0.2.1:2379`; or
        file: what the instances of one machine share.
        ca: of etcd's certificates, a file; None: those that the system trusts.
        certificate: this host's for etcd, a file, and
        key: its key.
        user: of etcd, and
        password_file: where its password stands.
        root: below which etcd has what is ours.
        group: the hosts of which only some reboot at a time.
        slots: how many of the group; the same at each of its hosts. 0: none.
        ttl_s: after how long a host that is not heard of has gone.
        patience_s: for how long an answer is waited for.
        recover: the directory, the same for all, with the kept checkpoints of pods that are
            restarted elsewhere when their host dies; or `store`: they are where [archives] says.
            None: they are not restarted.
    """

    endpoints: list[str] = msgspec.field(default_factory=list)
    file: str | None = None
    ca: str | None = None
    certificate: str | None = None
    key: str | None = None
    user: str | None = None
    password_file: str | None = None
    root: str = "/autopod"
    group: str = "default"
    slots: int = 1
    ttl_s: float = 60
    patience_s: float = 10
    recover: str | None = None

    def __post_init__(self) -> None:
        if bool(self.endpoints) == bool(self.file):
            reject("endpoints", self.endpoints, "give endpoints of etcd, or a file, one of both")
        for endpoint in self.endpoints:
            if not _ENDPOINT.fullmatch(endpoint):
                reject("endpoints", endpoint, "use https://HOST:PORT; http:// to this host only")
        for one, other in (("certificate", "key"), ("user", "password_file")):
            if (getattr(self, one) is None) != (getattr(self, other) is None):
                reject(one, getattr(self, one), f"it goes with {other}")
        self._check_numbers()
        if not _ROOT.fullmatch(self.root):
            reject("root", self.root, "use /NAME")
        if not is_group(self.group):
            reject("group", self.group, "use 1 to 64 of A-Z, a-z, 0-9, '.' and '-'")

    def _check_numbers(self) -> None:
        for key, low, high in (("slots", 0, 1000), ("ttl_s", 5, 3600), ("patience_s", 1, 60)):
            if not low <= getattr(self, key) <= high:
                reject(key, getattr(self, key), f"use {low} to {high}")
        if self.recover is not None and not (
            (self.recover.startswith("/") or self.from_store) and self.ttl_s >= 10
        ):
            reason = "use a whole path, or 'store'; it needs a ttl_s of 10 at least"
            reject("recover", self.recover, reason)

    @property
    def from_store(self) -> bool:
        """Are pods of a host that has died restarted from what [archives] says?"""
        return self.recover == "store"


class Archives(Table, frozen=True):
    """Where kept checkpoints are copied to, besides this host's own disk: autopod/stored.py.

    Attributes:
        url: `s3://BUCKET/PREFIX`, `gs://…`, `az://…`, `file:///DIRECTORY`; None: nowhere. Who may
            write there is told by the environment, as with other programs (AWS_ACCESS_KEY_ID, …,
            ~/.aws), never here.
        endpoint: of another service than Amazon's that speaks S3.
    """

    url: str | None = None
    endpoint: str | None = None

    def __post_init__(self) -> None:
        if self.url is not None:
            try:
                objects.check_url(self.url)
            except ValueError as e:
                reject("url", self.url, str(e))
        if self.endpoint is not None and not _ENDPOINT.fullmatch(self.endpoint):
            reject("endpoint", self.endpoint, "use https://HOST:PORT; http:// to this host only")


def is_group(text: str) -> bool:
    """Can *text* name a group of hosts? As the FleetLock protocol has it."""
    return _GROUP.fullmatch(text) is not None


class Policy(Table, frozen=True):
    """The file."""

    apt: Apt = Apt()
    host: Host = Host()
    faults: Faults = Faults()
    act: Act = Act()
    service: Service = Service()
    web: Web = Web()
    notify: list[Receiver] = msgspec.field(default_factory=list)
    fleet: Fleet | None = None
    archives: Archives = Archives()

    def __post_init__(self) -> None:
        if self.fleet and self.fleet.from_store and self.archives.url is None:
            reject("fleet.recover", self.fleet.recover, "it needs archives.url")


def path(places: Places) -> Path:
    """Return where the policy is."""
    return places.keys().parent / "autopod.toml"


def load(places: Places) -> Policy:
    """Return the host's policy; without a file, the default.

    Raises:
        ConfigError: it cannot be understood.
    """
    file = path(places)
    try:
        return toml.decode(file.read_bytes(), file, Policy)
    except FileNotFoundError:
        return Policy()
