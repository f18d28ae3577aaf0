"""The `ckpt` command: arguments in, lines out; what it does stands elsewhere.

Modules are imported by the command that needs them: a restart must not pay for what it does not
use.
"""

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

from launcher import commandline
from launcher.places import Places

if TYPE_CHECKING:
    from ckpt.archive.read import Archive
    from ckpt.registry import Reference

_PUSH = (
    "Copy an archive, and the signature over it, to a registry; what it has already is not sent."
)
_PULL = "Get an archive that was pushed, verify it, and write it as it was to a file."


def command() -> NoReturn:
    """Be the command."""
    commandline.be(main)


def main(argv: list[str] | None = None) -> int:
    """Run the command line *argv*, or that of the process; return the exit status."""
    return commandline.run("ckpt", _parser().parse_args(argv))


def _parser() -> argparse.ArgumentParser:
    parser = commandline.Parser(
        prog="ckpt", description="Checkpoint pods to signed archives, and restart them."
    )
    parser.add_argument(
        "--debug", action="store_true", help="show a traceback when something fails"
    )
    verbs = parser.add_subparsers(title="commands", required=True, metavar="COMMAND")

    dump = verbs.add_parser("dump", help="checkpoint a pod and end it")
    dump.set_defaults(run=_dump)
    dump.add_argument("pod", metavar="POD", type=commandline.pod)
    dump.add_argument("-o", dest="file", metavar="FILE", type=Path, required=True)
    dump.add_argument("--leave-running", action="store_true", help="let the pod go on afterwards")
    commandline.add_tcp(dump)
    commandline.add_recipient(dump)
    commandline.add_since(dump, new=True)

    restore = verbs.add_parser("restore", help="restart a pod from an archive")
    restore.set_defaults(run=_restore)
    restore.add_argument("pod", metavar="POD", type=commandline.pod)
    restore.add_argument("-i", dest="file", metavar="FILE", type=Path, required=True)
    restore.add_argument(
        "--lower",
        metavar="DIR",
        type=Path,
        action="append",
        help="a directory with a lower layer of the pod (default: as configured, or as archived); "
        "it is told by what is in it",
    )
    restore.add_argument(
        "--replace", action="store_true", help="move other state of the pod on this host aside"
    )
    commandline.add_tcp(restore)
    commandline.add_identity(restore)
    commandline.add_since(restore)
    commandline.add_lazy(restore)

    _add_reading(verbs)

    check = verbs.add_parser("check", help="tell what of a running pod cannot be checkpointed")
    check.set_defaults(run=_check)
    check.add_argument("pod", metavar="POD", type=commandline.pod)
    check.add_argument("--json", action="store_true", help="as a JSON array")

    _add_registry(verbs)
    _add_keys(verbs)
    return parser


def _add_reading(verbs: "argparse._SubParsersAction[commandline.Parser]") -> None:
    verify = verbs.add_parser("verify", help="check signature and every byte of an archive")
    verify.set_defaults(run=_verify)
    verify.add_argument("file", metavar="FILE", type=Path)
    commandline.add_since(verify)

    show = verbs.add_parser("show", help="tell what is in an archive")
    show.set_defaults(run=_show)
    show.add_argument("file", metavar="FILE", type=Path)
    show.add_argument("--json", action="store_true", help="everything, as one JSON object")
    commandline.add_identity(show)
    commandline.add_since(show)

    diff = verbs.add_parser("diff", help="tell what changed between two archives of a pod")
    diff.set_defaults(run=_diff)
    diff.add_argument("first", metavar="A", type=Path, help="the older one")
    diff.add_argument("second", metavar="B", type=Path)
    diff.add_argument("--json", action="store_true", help="as one JSON object")
    commandline.add_identity(diff)
    commandline.add_since(diff)

    whole = verbs.add_parser(
        "whole",
        help="write an archive that needs no other",
        description="Write what FILE and the archive that it builds upon have together to NEWFILE, "
        "signed with this host's key.",
    )
    whole.set_defaults(run=_whole)
    whole.add_argument("file", metavar="FILE", type=Path)
    whole.add_argument("new", metavar="NEWFILE", type=Path)
    commandline.add_recipient(whole)
    commandline.add_identity(whole)
    commandline.add_since(whole)


def _add_registry(verbs: "argparse._SubParsersAction[commandline.Parser]") -> None:
    more = (
        "By skopeo (Debian: skopeo), with the users of `skopeo login` and what "
        "/etc/containers/registries.conf says of registries."
    )
    push = verbs.add_parser(
        "push", help="copy an archive to an OCI registry", description=f"{_PUSH} {more}"
    )
    push.set_defaults(run=_push)
    push.add_argument("file", metavar="FILE", type=Path)
    push.add_argument("reference", metavar="HOST[:PORT]/NAME:TAG", type=_reference)

    pull = verbs.add_parser(
        "pull", help="get an archive from an OCI registry", description=f"{_PULL} {more}"
    )
    pull.set_defaults(run=_pull)
    pull.add_argument("reference", metavar="HOST[:PORT]/NAME:TAG", type=_reference)
    pull.add_argument("file", metavar="FILE", type=Path)


def _add_keys(verbs: "argparse._SubParsersAction[commandline.Parser]") -> None:
    keygen = verbs.add_parser("keygen", help="make this host's key pair, unless there is one")
    keygen.set_defaults(run=_keygen)
    keygen.add_argument(
        "--encryption",
        action="store_true",
        help="the pair that archives are encrypted to, and encrypt this host's from now on",
    )

    recipient = verbs.add_parser(
        "recipient",
        help="encrypt this host's archives to somebody",
        description="Encrypt the archives of this host from now on, to this key among others. "
        "`ckpt keygen --encryption` makes such a pair on the host that shall restart from them: "
        "give its recipient.pem. Remove it from /etc/autopod/recipients to end that.",
    )
    recipient.set_defaults(run=_recipient)
    recipient.add_argument("key", metavar="KEY", type=Path, help="a public key, a PEM file")

    trust = verbs.add_parser("trust", help="accept the archives of another host")
    trust.set_defaults(run=_trust)
    trust.add_argument("key", metavar="KEY", type=Path, help="its public key, a PEM file")


def _dump(places: Places, arguments: argparse.Namespace) -> int:
    from ckpt import commands

    commands.checkpoint(
        places,
        arguments.pod,
        arguments.file,
        leave_running=arguments.leave_running,
        tcp=arguments.tcp,
        recipients=arguments.recipient,
        since=arguments.since,
    )
    return 0


def _restore(places: Places, arguments: argparse.Namespace) -> int:
    from ckpt import commands

    commands.restart(
        places,
        arguments.pod,
        arguments.file,
        lowers=arguments.lower,
        replace=arguments.replace,
        tcp=arguments.tcp,
        identity=arguments.identity,
        since=arguments.since,
        lazy=arguments.lazy,
        rate=arguments.lazy_rate,
    )
    return 0


def _verify(places: Places, arguments: argparse.Namespace) -> int:
    from ckpt import commands

    archive = commands.verify(places, arguments.file, since=arguments.since)
    more = f", and so is {archive.earlier.path}, which it builds upon" if archive.earlier else ""
    print(
        f"{arguments.file}: good: pod {archive.manifest.pod} of {archive.manifest.created}, "
        f"signed by {archive.signer}{more}"
    )
    return 0


def _show(places: Places, arguments: argparse.Namespace) -> int:
    from ckpt import show

    with _open(places, arguments.file, arguments) as archive:
        print(show.as_json(archive) if arguments.json else show.as_text(archive), end="")
    return 0


def _diff(places: Places, arguments: argparse.Namespace) -> int:
    import msgspec

    from ckpt import diff, difftext

    with (
        _open(places, arguments.first, arguments) as first,
        _open(places, arguments.second, arguments) as second,
    ):
        found = diff.compare(first, second)
        if arguments.json:
            print(msgspec.json.encode(found).decode())
        else:
            print(difftext.as_text(found, first, second), end="")
    return 0


def _whole(places: Places, arguments: argparse.Namespace) -> int:
    from ckpt import commands

    with _open(places, arguments.file, arguments) as archive:
        commands.make_whole(places, archive, arguments.new, recipients=arguments.recipient)
    return 0


def _check(places: Places, arguments: argparse.Namespace) -> int:
    from ckpt import dump, snapshot
    from launcher import enter, pods
    from launcher.lock import locked

    with locked(places, arguments.pod):
        refusals = dump.check(places, arguments.pod)
        running = pods.find(places, arguments.pod)
    if running is None or not enter.pids(running):
        raise snapshot.empty(arguments.pod)
    if arguments.json:
        import msgspec

        print(msgspec.json.encode(refusals).decode())
    elif not refusals:
        print(f"pod {arguments.pod} can be checkpointed")
    else:
        from ckpt.model import NotCheckpointable

        commandline.complain("ckpt", NotCheckpointable(*refusals))
    return 1 if refusals else 0


def _reference(text: str) -> "Reference":
    from ckpt import registry

    try:
        return registry.reference(text)
    except ValueError as e:
        raise argparse.ArgumentTypeError(str(e)) from e


def _push(places: Places, arguments: argparse.Namespace) -> int:
    from ckpt import registry
    from ckpt.archive import keys

    to = arguments.reference
    if to.digest:
        raise ValueError(f"{to.text}: the registry makes digests: give it a tag")
    digest = registry.push(arguments.file, to, keys.load_trusted(places.trust()))
    print(f"{to.name}:{to.tag}@{digest}")
    return 0


def _pull(places: Places, arguments: argparse.Namespace) -> int:
    from ckpt import progress, registry
    from ckpt.archive import keys

    trusted = keys.load_trusted(places.trust())
    registry.pull(arguments.reference, arguments.file, trusted, progress.for_terminal())
    print(f"{arguments.file}: got, and good")
    return 0


def _keygen(places: Places, arguments: argparse.Namespace) -> int:
    from ckpt.archive import keys, recipients

    if arguments.encryption:
        fingerprint, new = recipients.ensure(places.keys(), places.recipients())
        state = "made" if new else "is there already"
        file = places.keys() / recipients.RECIPIENT
        print(f"key {fingerprint} {state}, archives are encrypted to it: {file}")
        return 0
    fingerprint, new = keys.ensure(places.keys(), places.trust())
    state = "made and trusted" if new else "is there already, trusted"
    print(f"key {fingerprint} {state}: {places.keys() / keys.PUBLIC}")
    return 0


def _trust(places: Places, arguments: argparse.Namespace) -> int:
    from ckpt.archive import keys

    fingerprint = keys.accept(keys.load_public(arguments.key), places.trust())
    print(f"key {fingerprint} is trusted")
    return 0


def _recipient(places: Places, arguments: argparse.Namespace) -> int:
    from ckpt.archive import recipients

    key = recipients.load_recipient(arguments.key)
    fingerprint = recipients.accept(key, places.recipients())
    print(f"archives are encrypted to key {fingerprint}")
    if not (places.keys() / recipients.IDENTITY).exists():
        print("this host itself cannot restart from them: see ckpt keygen --encryption")
    return 0


def _open(places: Places, path: Path, arguments: argparse.Namespace) -> "Archive":
    from ckpt.archive import keys, recipients
    from ckpt.archive.read import open_archive

    identities = recipients.load_identities(places.keys(), arguments.identity)
    return open_archive(path, keys.load_trusted(places.trust()), identities, arguments.since)


if __name__ == "__main__":
    command()
