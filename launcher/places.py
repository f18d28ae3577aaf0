"""Where things live. Pure: names in, paths out.

Every place is below one prefix, `/` by default; AUTOPOD_PREFIX moves them all, so that tests and
a second instance never meet. Names that are global to the host (bridge, cgroup, interface) carry
`tag`, which derives from the prefix, for the same reason.
"""

import os
import re
from pathlib import Path

from msgspec import Struct

_POD = re.compile(r"[a-z0-9](?:[a-z0-9-]{0,30}[a-z0-9])?")


def check_pod_name(name: str) -> str:
    """Return *name* if it can name a pod: a host name of 1 to 32 letters, digits and hyphens.

    Raises:
        ValueError: the name is not of that form; the text says what is.
    """
    if not is_pod_name(name):
        raise ValueError(
            f"{name!r} cannot name a pod: use 1 to 32 of a-z, 0-9 and '-', "
            "beginning and ending with a letter or digit"
        )
    return name


def is_pod_name(name: str) -> bool:
    """Can *name* name a pod?"""
    return _POD.fullmatch(name) is not None


class Places(Struct, frozen=True):
    """The paths of one instance."""

    prefix: Path

    @classmethod
    def from_environment(cls) -> "Places":
        """Return the places below $AUTOPOD_PREFIX, or below `/`."""
        return cls(Path(os.environ.get("AUTOPOD_PREFIX") or "/").absolute())

    @property
    def tag(self) -> str:
        """Four hexadecimal digits that tell this instance's global names apart; "" for `/`."""
        if self.prefix == Path("/"):
            return ""
        import hashlib  # and with it OpenSSL, which most instances can do without

        return hashlib.sha256(os.fsencode(self.prefix)).hexdigest()[:4]

    def barrier(self, pod: str) -> Path:
        """The stackfs mount of *pod*, which is also its barrier directory."""
        return self.prefix / "autopod" / pod

    def root(self, pod: str) -> Path:
        """The root directory that the programs of *pod* see."""
        return self.barrier(pod) / "root"

    def config(self, pod: str) -> Path:
        """The pod's configuration file."""
        return self.prefix / "etc/autopod/pods" / f"{pod}.toml"

    def configs(self) -> Path:
        """The directory of all pods' configuration files."""
        return self.prefix / "etc/autopod/pods"

    def guard(self) -> Path:
        """A program that is asked before a pod is made; see launcher/guard.py."""
        return self.prefix / "etc/autopod/guard"

    def network_config(self) -> Path:
        """The pools that pods get addresses from."""
        return self.prefix / "etc/autopod/network.toml"

    def users_config(self) -> Path:
        """Which ids of the host are for pods' users; see launcher/users.py."""
        return self.prefix / "etc/autopod/users.toml"

    def users(self) -> Path:
        """Which ids of the host are whose pod's."""
        return self.states() / "users.json"

    def addresses(self) -> Path:
        """The identities of this host's pods in the network, and what was made for them."""
        return self.states() / "network.json"

    def overlay(self) -> Path:
        """What the overlay between hosts is to be; see launcher/overlay.py."""
        return self.states() / "overlay.json"

    def keys(self) -> Path:
        """Own keys: `private.pem` (0600) and `public.pem`; `identity.pem` and `recipient.pem`."""
        return self.prefix / "etc/autopod/keys"

    def trust(self) -> Path:
        """Public keys whose archives a restart accepts, one PEM file each."""
        return self.prefix / "etc/autopod/trust"

    def recipients(self) -> Path:
        """Public keys that archives of this host are encrypted to, one PEM file each."""
        return self.prefix / "etc/autopod/recipients"

    def state(self, pod: str) -> Path:
        """What survives a reboot: upper, earlier layers, log. Mode 0700."""
        return self.prefix / "var/lib/autopod" / pod

    def departure(self, pod: str) -> Path:
        """While it is there, the pod has been given to another host; see autopod/journal.py."""
        return self.state(pod) / "departing.json"

    def waiting(self, pod: str) -> Path:
        """While it is there, the pod is in an archive until the host has been rebooted."""
        return self.state(pod) / "waiting"

    def restarting(self, pod: str) -> Path:
        """While it is there, what is in the upper layer comes of a restart: ckpt/layers.py.

        In it are paths that the restart has made for a moment, each ending in a zero byte.
        """
        return self.state(pod) / "restarting"

    def states(self) -> Path:
        """The directory of all pods' state."""
        return self.prefix / "var/lib/autopod"

    def run(self, pod: str) -> Path:
        """What a reboot may forget: sockets, process ids, namespace handles."""
        return self.prefix / "run/autopod" / pod

    def runs(self) -> Path:
        """The directory of all pods' runtime files."""
        return self.prefix / "run/autopod"

    def log(self, pod: str) -> Path:
        """Where the output of programs started in *pod* goes."""
        return self.state(pod) / "log"
