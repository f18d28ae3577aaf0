"""A pod's identity in the network. Pure: configuration in, names and addresses out."""

import hashlib
from dataclasses import dataclass

from launcher.config import PodConfig
from launcher.places import Places


@dataclass(frozen=True, slots=True)
class Identity:
    """What the pod's network is made of.

    Attributes:
        bridge: name of the host's bridge, one for all pods of an instance.
        port: name of the host's end of the pod's veth pair; the pod's own is `eth0`.
        address: the pod's, with prefix length.
        gateway: the host's address on the bridge, with prefix length.
        mac: of the pod's end.
    """

    bridge: str
    port: str
    address: str
    gateway: str
    mac: str


def identity(places: Places, config: PodConfig) -> Identity | None:
    """Return the identity of the pod, or None if it has no network.

    What the configuration leaves open follows from the pod's name, so that it is the same after
    every start.
    """
    network = config.network
    if network.mode == "none":
        return None
    digest = hashlib.sha256(f"{places.tag}/{config.name}".encode()).digest()
    address = network.address or _default_address(digest)
    return Identity(
        bridge=f"ap{places.tag}br" if places.tag else "autopod0",
        port=f"ap{places.tag}v{digest[:4].hex()}",
        address=address,
        gateway=_gateway(address, network.gateway),
        mac=network.mac or ":".join(f"{byte:02x}" for byte in (0x02, 0x50, *digest[4:8])),
    )


def _default_address(digest: bytes) -> str:
    """Return an address in 10.98.0.0/16 that is neither the first nor the last of a /24."""
    return f"10.98.{digest[8]}.{2 + digest[9] % 252}/16"


def _gateway(address: str, gateway: str | None) -> str:
    import ipaddress

    network = ipaddress.IPv4Interface(address).network
    return f"{gateway or network.network_address + 1}/{network.prefixlen}"
