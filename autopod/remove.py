"""`autopod rm`: a pod leaves this host for good."""

import shutil
from contextlib import suppress
from pathlib import Path

from autopod import checkpoints, journal, overview
from autopod.errors import Refused
from ckpt import stack
from launcher import network, pods
from launcher.places import Places


def remove(places: Places, name: str, *, purge: bool) -> None:
    """Kill the pod's processes; remove mount, network identity, state, configuration.

    What the administrator bind-mounted at the pod's root, and the base directories, are left
    alone. The caller holds the pod's lock, which goes with it.

    Args:
        places: the instance.
        name: of the pod.
        purge: even if the pod has files of its own, or kept checkpoints, which are deleted then.

    Raises:
        Refused: there is no such pod, or a pinned checkpoint, or not *purge* and what it deletes.
        pods.PodError: a process did not die.
        StackError: its root cannot be unmounted.
    """
    overview.check_known(places, name)
    if not purge and has_files(places.state(name)):
        hint = f"checkpoint it first if you need them; autopod rm {name} --purge deletes them"
        raise Refused(f"pod {name!r} has files of its own below {places.state(name)}", hint)
    _check_checkpoints(places, name, purge=purge)
    pods.destroy(places, name)
    with suppress(stack.NotMounted):
        stack.status(places, name)
        stack.umount(places, name)
    network.remove_network(places, name)
    places.config(name).unlink(missing_ok=True)
    own = (places.state(name), places.run(name), journal.cache(places, name))
    for tree in (*own, checkpoints.directory(places, name)):
        if tree.is_symlink():  # to what hosts share: autopod/fleet/keeping.py
            tree.unlink()
        elif tree.exists():
            shutil.rmtree(tree)
    with suppress(OSError):  # not empty: the administrator's own mount point is in it
        places.barrier(name).rmdir()


def has_files(state: Path) -> bool:
    """Return whether a pod has written anything: into its upper layer, or into sealed ones."""
    return any(any((state / part).glob("*")) for part in ("upper", "layers"))


def _check_checkpoints(places: Places, name: str, *, purge: bool) -> None:
    kept = checkpoints.known(places, name)
    pinned = [str(one.number) for one in kept if one.pinned]
    if kept and not purge:
        hint = f"copy away those that you need; autopod rm {name} --purge deletes them"
        raise Refused(f"pod {name!r} has {len(kept)} kept checkpoints", hint)
    if pinned:
        hint = f"autopod checkpoints {name} --unpin NUMBER"
        raise Refused(f"checkpoints of pod {name!r} are pinned: {', '.join(pinned)}", hint)
