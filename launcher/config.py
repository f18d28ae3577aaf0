"""The configuration of a pod: `/etc/autopod/pods/POD.toml`.

Every table and key may be left out; docs/launcher.md is the reference. An error names the file,
the key and the value.
"""

import os
import re
import tomllib
from pathlib import Path
from typing import Final, Literal

import msgspec

from launcher import capabilities, policy
from launcher.places import Places, check_pod_name

_SIZE: Final = re.compile(r"([0-9]+)([KMGT]?)")
_MAC: Final = re.compile(r"[0-9a-f]{2}(:[0-9a-f]{2}){5}")
_HOST_NAME: Final = re.compile(r"[A-Za-z0-9]([A-Za-z0-9.-]{0,62}[A-Za-z0-9])?")
_UNKNOWN: Final = re.compile(r"Object contains unknown field `(.*)`")
_VARIABLE: Final = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")


class ConfigError(Exception):
    """The configuration is wrong; the text names file, key and value."""


class _Table(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """A table of the file."""


def _reject(key: str, value: object, reason: str) -> None:
    raise ValueError(f"{key} = {value!r}: {reason}")


class Root(_Table, frozen=True):
    """Where the pod's files come from.

    Attributes:
        lower: read-only directories that the pod's root is stacked from, top first. They are
            mounted by stackfs; the launcher only finds the result.
    """

    lower: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        for path in self.lower:
            if not path.startswith("/"):
                _reject("lower", path, "must be an absolute path")


class Network(_Table, frozen=True):
    """The pod's address on its host's bridge. It belongs to the pod and moves with it.

    Attributes:
        mode: "bridge", or "none": a loopback interface only.
        address: IPv4 address with prefix length; None: derived from the pod's name, in
            10.98.0.0/16 (launcher.identity.identity()).
        gateway: the host's own address on the bridge; None: the first of the pod's network.
        mac: None: derived from instance and pod name.
    """

    mode: Literal["bridge", "none"] = "bridge"
    address: str | None = None
    gateway: str | None = None
    mac: str | None = None

    def __post_init__(self) -> None:
        if self.mac is not None and not _MAC.fullmatch(self.mac):
            _reject(
                "mac", self.mac, "must be six pairs of lower-case hexadecimal digits, like 02:50:…"
            )
        if self.mac is not None and int(self.mac[:2], 16) & 1:
            _reject("mac", self.mac, "is a multicast address")
        if self.address is not None or self.gateway is not None:
            self._check_addresses()

    def _check_addresses(self) -> None:
        import ipaddress

        if self.address is None:
            return _reject("gateway", self.gateway, "needs an address beside it")
        try:
            interface = ipaddress.IPv4Interface(self.address)
        except ValueError:
            return _reject("address", self.address, "must be like 10.98.0.10/24")
        if "/" not in self.address or not 1 <= interface.network.prefixlen <= 30:
            _reject("address", self.address, "needs a prefix length of 1 to 30")
        if interface.ip in (interface.network.network_address, interface.network.broadcast_address):
            _reject("address", self.address, "is the address of the network itself")
        try:
            gateway = ipaddress.IPv4Address(self.gateway) if self.gateway else None
        except ValueError:
            return _reject("gateway", self.gateway, "must be an IPv4 address")
        if gateway is not None and gateway not in interface.network:
            _reject("gateway", self.gateway, f"is outside of the pod's network {interface.network}")
        if interface.ip == (gateway or interface.network.network_address + 1):
            _reject("address", self.address, "is the gateway's")
        return None


class Privileges(_Table, frozen=True):
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
                    _reject(key, name, "is no capability (capabilities(7), without cap_)")
        for name in self.deny:
            if not policy.is_call(name):
                _reject("deny", name, "is no system call (syscalls(2))")
        for name in self.allow:
            if name not in policy.restricted() or name in self.deny:
                _reject("allow", name, "is no system call that the policy refuses")

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


class Limits(_Table, frozen=True):
    """Upper bounds by control groups; None: no bound.

    Attributes:
        memory: bytes, or a string with K, M, G or T (powers of 1024). Swap is counted with it.
        pids: processes and threads.
        cpus: processors' worth of time: 0.5 is half of one.
    """

    memory: int | str | None = None
    pids: int | None = None
    cpus: float | None = None

    def __post_init__(self) -> None:
        if self.memory_bytes is not None and self.memory_bytes < 1 << 20:
            _reject("memory", self.memory, "is less than 1M")
        if self.pids is not None and self.pids < 2:
            _reject("pids", self.pids, "must be 2 or more: the pod's init is one")
        if self.cpus is not None and not 0.01 <= self.cpus <= 4096:
            _reject("cpus", self.cpus, "must be 0.01 or more")

    @property
    def memory_bytes(self) -> int | None:
        """The limit of memory in bytes."""
        if self.memory is None or isinstance(self.memory, int):
            return self.memory
        size = _SIZE.fullmatch(self.memory)
        if size is None:
            raise ValueError(f"memory = {self.memory!r}: must be like 512M")
        return int(size[1]) << 10 * " KMGT".index(size[2] or " ")


class PodConfig(_Table, frozen=True):
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
    limits: Limits = Limits()
    environment: dict[str, str] = {}  # msgspec copies it
    arguments: dict[str, tuple[str, ...]] = {}

    def __post_init__(self) -> None:
        if self.hostname is not None and not _HOST_NAME.fullmatch(self.hostname):
            _reject(
                "hostname", self.hostname, "is no host name (hostname(7)) of up to 64 characters"
            )
        for name, value in self.environment.items():
            if not _VARIABLE.fullmatch(name):
                _reject("environment", name, "is no name of a variable")
            if "\0" in value:
                _reject(f"environment.{name}", value, "contains a null byte")

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
    check_pod_name(name)
    path = places.config(name)
    try:
        text = path.read_bytes()
    except FileNotFoundError:
        return PodConfig(name=name)
    return parse(text, name, path)


def parse(text: bytes, name: str, path: Path) -> PodConfig:
    """Return the configuration that *text*, the content of *path*, gives to pod *name*.

    Raises:
        ConfigError: it cannot be understood.
    """
    try:
        content = tomllib.loads(text.decode())
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as e:
        raise ConfigError(f"{path}: {e}") from e
    if "name" in content:
        raise ConfigError(
            f"{path}: name = {content['name']!r}: the pod is named by its file's name"
        )
    try:
        return msgspec.convert({**content, "name": name}, PodConfig)
    except msgspec.ValidationError as e:
        raise ConfigError(f"{path}: {_explain(str(e), content)}") from e


def _explain(message: str, content: dict[str, object]) -> str:
    """Turn msgspec's "REASON - at `$.KEY`" into "KEY = VALUE: reason"."""
    reason, _, at = message.partition(" - at `$")
    key = at.rstrip("`").removeprefix(".")
    if " = " in reason:  # ours, from __post_init__: it names the last part of the key itself
        return f"{key}.{reason}" if key else reason
    unknown = _UNKNOWN.fullmatch(reason)
    if unknown:
        key, reason = f"{key}.{unknown[1]}".removeprefix("."), "there is no such key"
    reason = re.sub(r"`(.*?)(?: \| null)?`", r"\1", reason[:1].lower() + reason[1:])
    value = _value(content, key)
    return (
        f"{key} = {value!r}: {reason}"
        if key and value is not None
        else f"{key or 'file'}: {reason}"
    )


def _value(content: object, key: str) -> object:
    """Return what stands at *key* ("limits.pids", "root.lower[0]")."""
    for part in re.findall(r"[^.\[\]]+", key):
        if isinstance(content, dict):
            content = content.get(part)
        elif isinstance(content, list) and part.isdecimal():
            content = content[int(part)]
    return content


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
