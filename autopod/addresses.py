"""Which address a new pod gets. Pure."""

from collections.abc import Iterable
from ipaddress import IPv4Interface


class AddressError(Exception):
    """The network is full."""


def next_free(wish: str, taken: Iterable[str]) -> str:
    """Return *wish* or, where another pod has it, the next free address of its network.

    Args:
        wish: `A.B.C.D/N`.
        taken: addresses of other pods, of the same form.

    Raises:
        AddressError: there is none.
    """
    wanted = IPv4Interface(wish)
    used = {int(IPv4Interface(address).ip) for address in taken}
    first = int(wanted.network.network_address) + 2  # after the network's own and the host's
    count = wanted.network.num_addresses - 3  # the last one is the broadcast address
    for step in range(count):
        candidate = first + (int(wanted.ip) - first + step) % count
        if candidate not in used:
            return str(IPv4Interface((candidate, wanted.network.prefixlen)))
    raise AddressError(f"no address of {wanted.network} is free")
