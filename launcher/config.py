"""The configuration of a pod: `/etc/autopod/pods/POD.toml`.

Every table and key may be left out; docs/launcher.md is the reference. An error names the file,
the key and the value.
"""

import os
import re
from pathlib import Path
from typing import Final, Literal

import msgspec

from launcher import capabilities, policy, toml
from launcher.netconfig import Network
from launcher.places import Places, check_pod_name
from launcher.toml import ConfigError, Table, reject

__all__ = [
    "ConfigError",
    "Limits",
    "Log",
    "Network",
    "PodConfig",
    "Privileges",
    "Root",
    "Service",
    "User",
]

_SIZE: Final = re.compile(r"([0-9]+)([KMGT]?)")
_HOST_NAME: Final = re.compile(r"[A-Za-z0-9]([A-Za-z0-9.-]{0,62}[A-Za-z0-9])?")
_MOST_PIDS: Final = 1 << 22  # PID_MAX_LIMIT: proc(5), pid_max
_VARIABLE: Final = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")


def _bytes(key: str, value: int | str | None) -> int | None:
    """Return the number of bytes that *value* of *key* means: 512M."""
    if value is None or isinstance(value, int):
        return value
    size = _SIZE.fullmatch(value)
    if size is None:
        reject(key, value, "must be like 512M")
    return int(size[1]) << 10 * " KMGT".index(size[2] or " ")


def _check_size(key: str, value: int | str | None, least: str) -> None:
    """Refuse fewer bytes than *least* ("1M"), and more than the kernel can count."""
    found, fewest = _bytes(key, value), _bytes(key, least)
    if found is not None and fewest is not None and found < fewest:
        reject(key, value, f"is less than {least}")
    if found is not None and found >= 1 << 63:
        reject(key, value, "is more than there can be")


class Root(Table, frozen=True):
    """Where the pod's files come from.

    Attributes:
        lower: read-only directories that the pod's root is stacked from, top first. They are
            mounted by stackfs; the launcher only finds the result.
    """

    lower: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        for path in self.lower:
            if not path.startswith("/"):
                reject("lower", path, "must be an absolute path")


class Privileges(Table, frozen=True):
    """What the pod's programs may do beyond the ordinary.

    Attributes:
        profile: of launcher/policy.py; what follows changes it for this pod.
        own_capabilities: `capabilities`: in place of the profile's, if not None.
        add_capabilities: besides those.
        own_no_new_privileges: `no_new_privileges`: in place of the profile's, if not None.
        allow: system calls that the filter lets through, whatever the policy says.
        deny: system calls that fail with EPERM.
        seccomp: "none" is no filter at all.
    """

    profile: Literal["strict", "service", "debian"] = "strict"
    own_capabilities: tuple[str, ...] | None = msgspec.field(default=None, name="capabilities")
    add_capabilities: tuple[str, ...] = ()
    own_no_new_privileges: bool | None = msgspec.field(default=None, name="no_new_privileges")
    allow: tuple[str, ...] = ()
    deny: tuple[str, ...] = ()
    seccomp: Literal["default", "none"] = "default"

    def __post_init__(self) -> None:
        for key, value in (
            ("capabilities", self.own_capabilities or ()),
            ("add_capabilities", self.add_capabilities),
        ):
            for name in value:
                if name not in capabilities.NAMES:
                    reject(key, name, "is no capability (capabilities(7), without cap_)")
        for name in self.deny:
            if not policy.is_call(name):
                reject("deny", name, "is no system call (syscalls(2))")
        for name in self.allow:
            if name not in policy.restricted() or name in self.deny:
                reject("allow", name, "is no system call that the policy refuses")

    @property
    def capabilities(self) -> tuple[str, ...]:
        """The bounding set; those that the launcher has not itself are left out."""
        own = self.own_capabilities
        base = policy.PROFILES[self.profile].capabilities if own is None else own
        return tuple(dict.fromkeys((*base, *self.add_capabilities)))

    @property
    def no_new_privileges(self) -> bool:
        """Executing a set-user-ID program changes nothing (prctl(2))."""
        own = self.own_no_new_privileges
        return policy.PROFILES[self.profile].no_new_privileges if own is None else own

    @property
    def rules(self) -> policy.Rules | None:
        """What the filter holds; None for no filter."""
        if self.seccomp == "none":
            return None
        return policy.rules(self.profile, self.allow, self.deny)


class User(Table, frozen=True):
    """Who the pod's users are on the host.

    Attributes:
        namespace: somebody else: the pod has a user namespace, and ids of the host for its own
            (launcher.users). Else its user 0 is the host's, held by the policy alone.
    """

    namespace: bool = False


class Log(Table, frozen=True):
    """How much is kept of what the pod's programs write.

    Attributes:
        size: when the log is cut: bytes, or as limits.memory; None: never.
        keep: how many older parts of that size are kept.
    """

    size: int | str | None = None
    keep: int = 4

    def __post_init__(self) -> None:
        _check_size("size", self.size, "64K")
        if not 1 <= self.keep <= 99:
            reject("keep", self.keep, "must be 1 to 99")

    @property
    def size_bytes(self) -> int | None:
        """The size in bytes."""
        return _bytes("size", self.size)


class Limits(Table, frozen=True):
    """Upper bounds by control groups; None: no bound.

    Attributes:
        memory: bytes, or a string with K, M, G or T (powers of 1024). Swap is counted with it.
        pids: processes and threads.
        cpus: processors' worth of time: 0.5 is half of one.
        io_read: bytes per second from the disk that holds the pods' files, or as memory.
        io_write: to it.
    """

    memory: int | str | None = None
    pids: int | None = None
    cpus: float | None = None
    io_read: int | str | None = None
    io_write: int | str | None = None

    def __post_init__(self) -> None:
        _check_size("memory", self.memory, "1M")
        if self.pids is not None and not 2 <= self.pids <= _MOST_PIDS:
            reject("pids", self.pids, f"must be 2 to {_MOST_PIDS}: the pod's init is one")
        _check_size("io_read", self.io_read, "64K")
        _check_size("io_write", self.io_write, "64K")
        if self.cpus is not None and not 0.01 <= self.cpus <= 4096:
            reject("cpus", self.cpus, "must be 0.01 to 4096")

    @property
    def memory_bytes(self) -> int | None:
        """The limit of memory in bytes."""
        return _bytes("memory", self.memory)

    @property
    def io_read_bytes(self) -> int | None:
        """The limit of reading in bytes per second."""
        return _bytes("io_read", self.io_read)

    @property
    def io_write_bytes(self) -> int | None:
        """The limit of writing in bytes per second."""
        return _bytes("io_write", self.io_write)


class Service(Table, frozen=True):
    """What the pod is for: `launcher start POD` starts it, and so does the host when it boots.

    Attributes:
        program: its path in the pod; `arguments` has its arguments.
        restart: is it started again when it has ended: "no"; "on-failure": unless its exit status
            was 0; "always". A daemon that goes to the background fails when its last process ends.
        stop_timeout: seconds from SIGTERM to SIGKILL when the pod is stopped.
    """

    program: str | None = None
    restart: Literal["no", "on-failure", "always"] = "no"
    stop_timeout: float = 10.0

    def __post_init__(self) -> None:
        if self.program is not None and (not self.program or "\0" in self.program):
            reject("program", self.program, "names no program")
        if self.restart != "no" and self.program is None:
            reject("restart", self.restart, "needs a program beside it")
        if not 0 <= self.stop_timeout <= 86400:
            reject("stop_timeout", self.stop_timeout, "must be 0 to 86400 seconds")


class Memory(Table, frozen=True):
    """What memory a restart gives.

    Attributes:
        huge_pages: "keep": what was of huge pages (hugetlbfs) is so again, or the restart is
            refused; "ordinary": it is of ordinary pages.
    """

    huge_pages: Literal["keep", "ordinary"] = "keep"


class PodConfig(Table, frozen=True):
    """All of it. *name* is the file's name and does not stand in the file.

    Attributes:
        hostname: None: the pod's name.
        environment: variables added to those that every program gets (launcher.program).
        arguments: for a program (as it is called), the arguments that it gets where the command
            line has none: `autopod addproc mail /usr/sbin/exim4` starts the daemon.
    """

    name: str
    hostname: str | None = None
    root: Root = Root()
    network: Network = Network()
    privileges: Privileges = Privileges()
    user: User = User()
    limits: Limits = Limits()
    memory: Memory = Memory()
    service: Service = Service()
    log: Log = Log()
    environment: dict[str, str] = {}  # noqa: RUF012 (msgspec copies it)
    arguments: dict[str, tuple[str, ...]] = {}  # noqa: RUF012

    def __post_init__(self) -> None:
        if self.hostname is not None and not _HOST_NAME.fullmatch(self.hostname):
            reject(
                "hostname", self.hostname, "is no host name (hostname(7)) of up to 64 characters"
            )
        for name, value in self.environment.items():
            if not _VARIABLE.fullmatch(name):
                reject("environment", name, "is no name of a variable")
            if "\0" in value:
                reject(f"environment.{name}", value, "contains a null byte")
        for program, words in self.arguments.items():
            for word in words:
                if "\0" in word:
                    reject(f"arguments.{program}", word, "contains a null byte")

    @property
    def host_name(self) -> str:
        """What gethostname(2) says in the pod."""
        return self.hostname or self.name


def load(places: Places, name: str) -> PodConfig:
    """Return the configuration of pod *name*; without a file, the defaults.

    Raises:
        ConfigError: the file cannot be understood.
        ValueError: *name* cannot name a pod.
    """
    return read(places, name)[1]


def read(places: Places, name: str) -> tuple[bytes, PodConfig]:
    """Return the text of the configuration, b"" without a file, and what it says, as load()."""
    check_pod_name(name)
    path = places.config(name)
    try:
        text = path.read_bytes()
    except FileNotFoundError:
        text = b""
    except (IsADirectoryError, NotADirectoryError) as e:
        raise ConfigError(f"{path}: {e.strerror}") from e
    return text, parse(text, name, path)


def parse(text: bytes, name: str, path: Path) -> PodConfig:
    """Return the configuration that *text*, the content of *path*, gives to pod *name*.

    Raises:
        ConfigError: it cannot be understood.
    """
    return toml.decode(text, path, PodConfig, name=name)


def dump(config: PodConfig) -> str:
    """Return *config* as the text of its file: what differs from the defaults."""
    import tomli_w

    content: dict[str, object] = msgspec.to_builtins(config)
    del content["name"]
    return tomli_w.dumps({key: value for key, value in content.items() if value != {}})


def save(places: Places, config: PodConfig) -> None:
    """Write *config* as the pod's file, in one step.

    Raises:
        OSError: it cannot be written.
    """
    path = places.config(config.name)
    path.parent.mkdir(parents=True, exist_ok=True)
    new = path.with_suffix(".new")
    new.write_text(dump(config))
    os.replace(new, path)
