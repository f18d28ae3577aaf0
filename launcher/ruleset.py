"""The host's packet filter rules for its pods, as text for nft(8). Pure.

A table of our own, replaced as a whole in one transaction, so that rules are never half there, and
nobody else's are touched. Translation looks at the first packet of a connection only. A connection
that a pod has brought along from another host (a restart) begins in its middle here, and must not
be translated: so of TCP only a SYN is.
"""

from collections.abc import Iterable, Mapping

from launcher.identity import Identity
from launcher.netconfig import Port


def table_name(tag: str) -> str:
    """Return the name of the table of the instance with *tag* (launcher.places)."""
    return f"autopod_{tag}" if tag else "autopod"


def needed(pods: Mapping[str, Identity]) -> bool:
    """Do any of *pods* need rules?"""
    return any(pod.nat or pod.ports for pod in pods.values())


def ruleset(table: str, bridge: str, pods: Mapping[str, Identity]) -> str:
    """Return the commands that make the table what *pods* need, whatever it was before.

    Args:
        table: its name.
        bridge: name of the bridge.
        pods: their identities.
    """
    begin = f"table inet {table}\ndelete table inet {table}\n"
    if not needed(pods):
        return begin
    chains = [
        _chain("outbound", "postrouting", "srcnat", _outbound(bridge, pods.values())),
        _chain("published", "prerouting", "dstnat", _published(pods.values())),
        _chain("published_to_host", "output", "-100", _published(pods.values())),
    ]
    return f"{begin}table inet {table} {{\n{''.join(chains)}}}\n"


def _chain(name: str, hook: str, priority: str, rules: Iterable[str]) -> str:
    lines = [f"type nat hook {hook} priority {priority};", *rules]
    body = "".join(f"\t\t{line}\n" for line in lines)
    return f"\tchain {name} {{\n{body}\t}}\n"


def _outbound(bridge: str, pods: Iterable[Identity]) -> list[str]:
    """Return the rules that give pods the host's address.

    First of all where a pod reaches a published port of another one by way of the host: answered
    directly, over the bridge, it would not know who answers.
    """
    pods = list(pods)
    rules = []
    for family, every in (("ip", _ips(pods, 4)), ("ip6", _ips(pods, 6))):
        if every:
            both = f"{family} saddr {{ {every} }} {family} daddr {{ {every} }}"
            rules.append(f"{both} ct status dnat masquerade")
    for family, some in (("ip", _ips(pods, 4, nat=True)), ("ip6", _ips(pods, 6, nat=True))):
        if some:
            leaving = f'{family} saddr {{ {some} }} oifname != "{bridge}"'
            rules.append(f"{leaving} meta l4proto != tcp masquerade")
            rules.append(f"{leaving} tcp flags & (syn | ack) == syn masquerade")
    return rules


def _ips(pods: Iterable[Identity], version: int, *, nat: bool = False) -> str:
    chosen = [pod for pod in pods if pod.nat or not nat]
    addresses = [pod.address if version == 4 else pod.address6 for pod in chosen]
    return ", ".join(address.partition("/")[0] for address in addresses if address)


def _published(pods: Iterable[Identity]) -> list[str]:
    return [rule for pod in pods for port in pod.ports for rule in _port(pod, port)]


def _port(pod: Identity, port: Port) -> list[str]:
    """Return the rules of a published port. The host's loopback address cannot be translated."""
    match = f"fib daddr type local {port.protocol} dport {port.port}"
    rules = []
    if pod.address:
        to = f"dnat ip to {pod.address.partition('/')[0]}:{port.to}"
        at = f"ip daddr {port.host}" if port.host else "ip daddr != 127.0.0.0/8"
        rules.append(f"{at} {match} {to}")
    if pod.address6 and port.host is None:
        to = f"dnat ip6 to [{pod.address6.partition('/')[0]}]:{port.to}"
        rules.append(f"ip6 daddr != ::1 {match} {to}")
    return rules
