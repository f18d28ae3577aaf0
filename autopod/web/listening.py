"""`[web]` of `/etc/autopod/autopod.toml`: whether there is a page, and for whom. Pure."""

from ipaddress import IPv4Address, IPv6Address, ip_address

import msgspec

from launcher.toml import Table, reject


class Web(Table, frozen=True):
    """The page: autopod/web/.

    Attributes:
        listen: `ADDRESS:PORT`; None: there is no page.
        names: by which browsers reach it, besides the address itself and, on the loopback,
            "localhost"; a request for any other is refused.
        certificate: in PEM, for TLS; needed where others than this host can connect.
        key: its private key.
        client_ca: in PEM; who has a certificate of it needs no token, all others are refused.
        loopback_reads: whoever is on this host may read, all of its users.
        fleetlock: whoever connects may take reboot slots of the fleet by the FleetLock protocol,
            which has no secret.
    """

    listen: str | None = None
    names: list[str] = msgspec.field(default_factory=list)
    certificate: str | None = None
    key: str | None = None
    client_ca: str | None = None
    loopback_reads: bool = False
    fleetlock: bool = False

    def __post_init__(self) -> None:
        if (self.certificate is None) != (self.key is None):
            reject("key", self.key, "certificate and key go together")
        if self.client_ca is not None and self.certificate is None:
            reject("client_ca", self.client_ca, "without a certificate of our own there is no TLS")
        if self.listen is not None:
            address, _ = _split(self.listen)
            if not address.is_loopback and self.certificate is None:
                reject("listen", self.listen, "others can connect: certificate and key are needed")

    def address(self) -> tuple[IPv4Address | IPv6Address, int] | None:
        """Return where it listens."""
        return None if self.listen is None else _split(self.listen)


def _split(listen: str) -> tuple[IPv4Address | IPv6Address, int]:
    host, _, port = listen.rpartition(":")
    try:
        address = ip_address(host.removeprefix("[").removesuffix("]"))
    except ValueError:
        reject("listen", listen, "use ADDRESS:PORT, like 127.0.0.1:7464 or [::1]:7464")
    if not (port.isascii() and port.isdecimal() and 0 < int(port) < 65536):
        reject("listen", listen, "a port is a number from 1 to 65535")
    return address, int(port)
