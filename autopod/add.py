"""`autopod add`: a pod comes to this host.

Its root is mounted from the base directories and its network identity is made, so that no start
pays for either. After a reboot the same command does it again, from what is remembered.
"""

import os
from collections.abc import Iterable
from contextlib import ExitStack
from pathlib import Path

import msgspec

from autopod import binds
from autopod.errors import Refused
from ckpt import stack
from launcher import addresses, config, network
from launcher.config import Network, PodConfig, Root
from launcher.identity import Identity
from launcher.places import Places


def add(places: Places, name: str, bases: Iterable[Path], address: str | None) -> Identity | None:
    """Mount the root of pod *name* and make its network identity. The caller holds its lock.

    Without a configuration file one is written; one that is there is never changed.

    Args:
        places: the instance.
        name: of the pod.
        bases: its lower directories, topmost first; if none, what is bind-mounted at the pod's
            root, or those of the configuration, or those of the last time.
        address: of the pod, `A.B.C.D/N`; None: the configuration's, or one that is free.

    Returns:
        The pod's identity in the network; None if it has none.

    Raises:
        Refused: it is here already, or reached through here, or the arguments contradict each
            other or the file.
        config.ConfigError: the configuration file cannot be understood.
        PodError: the network cannot be made.
        StackError: the root cannot be mounted.
    """
    if stack.is_mounted(places, name):
        raise Refused(f"pod {name!r} is already added", f"start a program: autopod addproc {name}")
    _check_relay(places, name)
    known = config.load(places, name)
    chosen = choose_lowers(name, known, [_directory(base) for base in bases], _bound(places, name))
    if not chosen and not (places.state(name) / "stack.json").exists():
        hint = f"mount -o bind DIR {places.root(name)}, or autopod add {name} --base DIR"
        raise Refused(f"pod {name!r} has no base directory", hint)
    new = _configure(places, known, chosen, address)
    with ExitStack() as undo:
        if not places.config(name).exists():
            config.save(places, new)
            undo.callback(places.config(name).unlink)
        making = network.begin(places, new)
        undo.callback(making.undo)
        with making:
            making.finish()
        stack.mount(places, name, chosen)
        undo.pop_all()
    return addresses.identity_of(places, name)


def _check_relay(places: Places, name: str) -> None:
    """Refuse a second pod *name* where the first is reached: it would no more be."""
    relay = addresses.read(places).relayed.get(name)
    if relay is not None:
        hint = f"autopod relay end {name}; or give the new one another name"
        raise Refused(f"pod {name!r} is at host {relay.host}, reached through this one", hint)


def choose_lowers(
    name: str, known: PodConfig, bases: list[Path], bound: Path | None
) -> tuple[Path, ...]:
    """Return the lower directories of pod *name*, topmost first; none if nothing names any. Pure.

    Raises:
        Refused: two sources name different ones.
    """
    if bases and bound:
        hint = "give the base in one way: unmount it, or leave out --base"
        raise Refused(f"--base is given, and {bound} is mounted at the pod's root", hint)
    given = tuple(bases) or ((bound,) if bound else ())
    configured = tuple(Path(path) for path in known.root.lower)
    if given and configured and given != configured:
        listed = ", ".join(map(str, configured))
        hint = "change root.lower in the file, or leave out the other base"
        raise Refused(f"the configuration of pod {name!r} names another base: {listed}", hint)
    return given or configured


def _directory(base: Path) -> Path:
    if not base.is_dir():
        raise Refused(f"the base {base} is not a directory")
    return Path(os.path.realpath(base))


def _bound(places: Places, name: str) -> Path | None:
    try:
        return binds.source(places.root(name))
    except binds.BindError as e:
        hint = (
            f"mount it at a place of its own, and bind that: mount -o bind DIR {places.root(name)}"
        )
        raise Refused(str(e), hint) from e


def _configure(
    places: Places, known: PodConfig, lowers: tuple[Path, ...], address: str | None
) -> PodConfig:
    """Return *known* with what the arguments add to it, if they may."""
    file = places.config(known.name)
    if not file.exists():
        chosen = Network(address=address)
        root = Root(lower=tuple(map(str, lowers)))
        return msgspec.structs.replace(known, root=root, network=chosen)
    if address and address != known.network.address:
        hint = "change network.address in the file, or leave out --ip"
        raise Refused(f"{file} gives the pod another address: {known.network.address}", hint)
    return known
