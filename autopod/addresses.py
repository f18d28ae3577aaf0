"""Which address a new pod gets. Pure."""

from collections.abc import Iterable
from ipaddress import IPv4Interface, IPv4Network

NETWORK = IPv4Network("10.98.0.0/24")
FIRST = 10  # below: the bridge's own address, and room for an administrator's devices


class AddressError(Exception):
    """The network is full."""


def lowest_free(taken: Iterable[str], network: IPv4Network = NETWORK) -> str:
    """Return the lowest address of *network* from its FIRST on that is not *taken*.

    Args:
        taken: addresses as configurations hold them, `A.B.C.D/N`.
        network: where to look.

    Raises:
        AddressError: there is none.
    """
    used = {IPv4Interface(address).ip for address in taken}
    for address in list(network.hosts())[FIRST - 1 :]:
        if address not in used:
            return f"{address}/{network.prefixlen}"
    raise AddressError(f"no address of {network} is free")
