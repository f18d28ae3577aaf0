"""The `stackfs` command."""

import argparse
import contextlib
import errno
import json
import os
import sys
from dataclasses import asdict
from typing import Any, NoReturn

from stackfs import light, streams  # noqa: F401 (light first)
from stackfs.control import Refused, refusal
from stackfs.places import Places, check_pod_name
from stackfs.streams import printable

_MAX_LINE = 1 << 16


class _Parser(argparse.ArgumentParser):
    """A parser whose errors have the form of all our errors."""

    def error(self, message: str) -> NoReturn:  # type: ignore[explicit-override]
        """Say it and exit with status 2."""
        _say_error(message, f"see {self.prog} --help")
        raise SystemExit(2)


def _pod(name: str) -> str:
    try:
        return check_pod_name(name)
    except ValueError as e:
        raise argparse.ArgumentTypeError(str(e)) from e


def _parser() -> _Parser:
    parser = _Parser(
        prog="stackfs",
        description="Stack read-only directories below a writable one, as a pod's root.",
        epilog="Exit status: 0 done, 1 failed, 2 usage. AUTOPOD_PREFIX moves every place.",
    )
    parser.add_argument("--debug", action="store_true", help="show where an error comes from")
    verbs = parser.add_subparsers(dest="verb", required=True, metavar="VERB", parser_class=_Parser)
    _add_daemon_verbs(verbs)
    _add_stack_verbs(verbs)
    _add_layer_verbs(verbs)
    return parser


def _add_daemon_verbs(verbs: Any) -> None:  # noqa: ANN401 (argparse has no public type for it)
    mount = verbs.add_parser(
        "mount",
        help="mount a pod's stack at /autopod/POD; its root is /autopod/POD/root",
        description="Mount a pod's stack; returns when the pod's root answers. Without --lower "
        "the layers of the last time are used.",
    )
    mount.add_argument("pod", type=_pod, metavar="POD")
    mount.add_argument(
        "--lower",
        action="append",
        metavar="DIR",
        help="a read-only directory, or a squashfs or erofs image; given several times, the first "
        "is the topmost; /proc/self/fd/N stands for an inherited descriptor",
    )
    mount.add_argument(
        "--upper", metavar="DIR", help="the writable directory (default: in the pod's state)"
    )
    mount.add_argument(
        "--shift",
        type=int,
        metavar="BASE",
        help="tell the kernel that the files of user or group N are those of BASE + N, for a pod "
        "whose user namespace has 65536 ids from BASE on; on disk they stay N's (0: do not)",
    )
    mount.add_argument("--foreground", action="store_true", help="do not become a daemon")
    mount.add_argument(
        "--spec",
        choices=["-"],
        help='read {"lower": [DIR...], "upper": DIR or null, "shift": BASE} from standard input',
    )
    mount.set_defaults(run=_mount)
    umount = verbs.add_parser("umount", help="unmount a pod's stack; its files stay")
    umount.add_argument("pod", type=_pod, metavar="POD")
    umount.add_argument(
        "--lazy", action="store_true", help="although it is in use; it ends with its last user"
    )
    umount.set_defaults(run=_umount)


def _add_stack_verbs(verbs: Any) -> None:  # noqa: ANN401
    upgrade = verbs.add_parser(
        "upgrade",
        help="replace a pod's daemon by this version of the program; the pod notices a pause",
    )
    upgrade.add_argument("pod", type=_pod, metavar="POD")
    upgrade.set_defaults(run=_upgrade)
    listing = verbs.add_parser("list", help="list the stacks")
    listing.add_argument("--json", action="store_true", help="as an array of objects")
    listing.set_defaults(run=_list)
    stats = verbs.add_parser(
        "stats", help="tell what a pod's daemon was asked, how long it took, and what it holds"
    )
    stats.add_argument("pod", type=_pod, metavar="POD")
    form = stats.add_mutually_exclusive_group()
    form.add_argument("--json", action="store_true", help="as an object")
    form.add_argument("--prometheus", action="store_true", help="in Prometheus's text format")
    stats.set_defaults(run=_stats)
    snapshot = verbs.add_parser(
        "snapshot",
        help="make what was written so far a read-only layer",
        description="Seal the upper layer and open a fresh one; prints the layer. It holds what "
        "the disk would hold after a power failure at that moment: all that was written before "
        "the command, and what programs have synced until then.",
    )
    diff = verbs.add_parser(
        "diff",
        help="list what the pod changed: A added, C changed, D deleted",
        description="List what the pod changed: A added, C changed, D deleted; the size in bytes "
        "(of a deleted file: what it was), and the path; what of it cannot be printed is escaped.",
    )
    diff.add_argument(
        "--from",
        dest="since",
        default="0",
        metavar="N",
        help="since snapshot N, its number or id (default: against the lower layers)",
    )
    flatten = verbs.add_parser(
        "flatten",
        help="merge the snapshots of a pod, which may run, into one",
        description="Merge a pod's sealed layers into one with a new id; prints it. Their contents "
        "are copied, and the copies on disk before the old ones are removed.",
    )
    flatten.add_argument("--below", metavar="N", help="only those below snapshot N (number or id)")
    check = verbs.add_parser("check", help="check a pod's directories; remove half-made files")
    rollback = verbs.add_parser(
        "rollback",
        help="let a pod that is not mounted be as it was at a snapshot",
        description="Go back to a snapshot of a pod that is not mounted. What was written since is "
        "moved to a directory of its own, which is printed.",
    )
    rollback.add_argument(
        "--to",
        required=True,
        metavar="N",
        help="the snapshot, by number or id; 0: the lower layers",
    )
    rollback.add_argument("--force", action="store_true", help="remove what was written since")
    runs = {
        snapshot: _snapshot,
        diff: _diff,
        flatten: _flatten,
        rollback: _rollback,
        check: _check,
    }
    for verb, run in runs.items():
        verb.add_argument("pod", type=_pod, metavar="POD")
        verb.add_argument("--json", action="store_true", help="as JSON")
        verb.set_defaults(run=run)


def _add_layer_verbs(verbs: Any) -> None:  # noqa: ANN401
    pack = verbs.add_parser("pack", help="write a layer as an OCI layer tar to standard output")
    pack.add_argument(
        "--redirects",
        action="store_true",
        help="write also what an OCI layer cannot say, a directory that was moved without its "
        "files, for stackfs unpack",
    )
    unpack = verbs.add_parser("unpack", help="make a layer from an OCI layer tar at standard input")
    unpack.add_argument(
        "--below",
        action="append",
        default=[],
        metavar="DIR",
        help="a layer below, top first: other tools' archives leave out directories in which only "
        "files changed; they are made as they are there",
    )
    identity = verbs.add_parser(
        "identity", help="print the SHA-256 identity of what is in DIR, or in an image"
    )
    later = "; -: standard input begins with a line that names it, a JSON string"
    for verb, run, more in (
        (pack, _pack, later), (unpack, _unpack, later), (identity, _identity, "")
    ):  # fmt: skip
        verb.add_argument("directory", metavar="DIR", help=f"the layer's directory{more}")
        verb.set_defaults(run=run)


def _mount(places: Places, asked: argparse.Namespace) -> None:
    from stackfs import mounting

    def ask() -> mounting.Request:
        if asked.spec:
            return mounting.read_request(sys.stdin)
        lower = tuple(asked.lower) if asked.lower else None
        return mounting.Request(lower, asked.upper, asked.shift)

    if asked.spec and (asked.lower or asked.upper or asked.shift is not None):
        raise UsageError("--spec takes the place of --lower, --upper and --shift")
    mounting.mount(places, asked.pod, ask, foreground=asked.foreground)


class UsageError(Exception):
    """The command line makes no sense."""


def _umount(places: Places, asked: argparse.Namespace) -> None:
    from stackfs import mounting

    mounting.umount(places, asked.pod, lazy=asked.lazy)


def _upgrade(places: Places, asked: argparse.Namespace) -> None:
    from stackfs import mounting

    mounting.upgrade(places, asked.pod)


def _list(places: Places, asked: argparse.Namespace) -> None:
    from stackfs import mounting

    found = mounting.stacks(places)
    if asked.json:
        print(json.dumps(found, indent=2))
        return
    for one in found:
        state = "mounted" if one["mounted"] else "dead"
        shift = f"  shift {one['shift']}" if one.get("shift") else ""
        print(f"{one['pod']:16} {state:8} {one['pid']:>8}  {':'.join(one['lower'])}{shift}")


def _stats(places: Places, asked: argparse.Namespace) -> None:
    from stackfs import control, stats

    told = control.ask(places, asked.pod, "stats")
    if asked.json:
        print(json.dumps(stats.summary(told), indent=2))
        return
    for line in stats.prometheus(told) if asked.prometheus else stats.table(told):
        print(line)


def _snapshot(places: Places, asked: argparse.Namespace) -> None:
    from stackfs import history

    layer = history.snapshot(places, asked.pod)
    print(json.dumps(layer, indent=2) if asked.json else f"{layer['id']} {layer['path']}")


def _diff(places: Places, asked: argparse.Namespace) -> None:
    from stackfs import history

    found = history.diff(places, asked.pod, asked.since)
    if asked.json:
        objects = [{**asdict(change), "path": os.fsdecode(change.path)} for change in found]
        print(json.dumps(objects, indent=2))
        return
    for change in found:
        size = change.before if change.size is None else change.size
        print(f"{change.kind} {size or 0:12d} {printable(os.fsdecode(change.path))}")


def _flatten(places: Places, asked: argparse.Namespace) -> None:
    from stackfs import merging

    layer = merging.flatten(places, asked.pod, asked.below)
    if asked.json:
        print(json.dumps(layer, indent=2))
    elif layer is None:
        print(f"{asked.pod}: there are no two layers to merge")
    else:
        print(f"{layer['id']} {layer['path']}")


def _rollback(places: Places, asked: argparse.Namespace) -> None:
    from stackfs import history

    aside = history.rollback(places, asked.pod, asked.to, force=asked.force)
    if asked.json:
        print(json.dumps({"aside": None if aside is None else os.fspath(aside)}))
    elif aside is not None:
        print(aside)


def _check(places: Places, asked: argparse.Namespace) -> None:
    from stackfs import checking

    found = checking.check(places, asked.pod)
    if asked.json:
        print(json.dumps({"removed": found.removed, "faults": found.faults}, indent=2))
    else:
        for line in [*found.removed, *found.faults] or [f"{asked.pod}: no fault found"]:
            print(line)
    if found.faults:
        raise SystemExit(1)


def _pack(places: Places, asked: argparse.Namespace) -> None:
    from stackfs.layers.oci import pack

    try:
        pack(_named(asked), sys.stdout.buffer, redirects=asked.redirects)
    except OSError as e:
        if e.errno in (errno.ENOSPC, errno.EDQUOT):  # who only reads needs no room
            e.filename = streams.OUTPUT
        raise


def _unpack(places: Places, asked: argparse.Namespace) -> None:
    from stackfs.layers.unpack import unpack
    from stackfs.stack import open_lower

    with contextlib.ExitStack() as opened:
        below = [open_lower(path) for path in asked.below]
        for fd in below:
            opened.callback(os.close, fd)
        unpack(sys.stdin.buffer, _named(asked), below)


def _named(asked: argparse.Namespace) -> str:
    """Return DIR, or what standard input calls it: who has no time starts us before knowing it."""
    if asked.directory != "-":
        return str(asked.directory)
    line = sys.stdin.buffer.readline(_MAX_LINE)
    try:
        name = json.loads(line)
    except ValueError:
        name = None
    if not isinstance(name, str):
        raise Refused("standard input does not begin with the name of a directory")
    return name


def _identity(places: Places, asked: argparse.Namespace) -> None:
    from stackfs.layers.identity import identity

    print(identity(asked.directory))


def command() -> NoReturn:
    """Be the command; end without taking the interpreter apart, which takes long, for nothing."""
    try:
        status = main()
    except KeyboardInterrupt:  # while the command line is read
        status = 130
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError, ValueError):  # nobody reads it, or it is closed
            stream.flush()
    os._exit(status)


def main(arguments: list[str] | None = None) -> int:
    """Run the command line; return the exit status."""
    asked = _parser().parse_args(arguments)
    streams.open_closed()
    streams.prepare_output()
    try:
        asked.run(Places.from_environment(), asked)
        sys.stdout.flush()
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:  # the reader of our output has gone; nothing more can be told
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        return 1
    except UsageError as e:
        _say_error(str(e), "see stackfs mount --help")
        return 2
    except (Refused, OSError, ValueError) as e:
        if asked.debug:
            raise
        refused = _refusal(e)
        _say_error(refused.error, refused.hint)
        return 1
    return 0


def _refusal(error: Refused | OSError | ValueError) -> Refused:
    """Return *error* in words."""
    if isinstance(error, Refused):
        return error
    if isinstance(error, ValueError):
        return Refused(str(error))
    if error.filename == streams.OUTPUT:
        return Refused(f"{error.strerror}: {error.filename}")
    return refusal(error)


def _say_error(error: str, hint: str = "") -> None:
    print(f"stackfs: error: {printable(error)}", file=sys.stderr)
    if hint:
        print(f"stackfs: hint: {printable(hint)}", file=sys.stderr)


if __name__ == "__main__":
    command()
