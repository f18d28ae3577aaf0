"""`autopod fleet`: the hosts that work together, and who may reboot. Arguments in, lines out."""

import argparse

from launcher import commandline
from launcher.places import Places

_UNKNOWN = 3
_FLEET = """\
Show the fleet that this host belongs to: its members, who has a reboot slot, who owns which
pod, and what has happened."""
_EPILOG = """\
exit status:
  1   it failed; claim: another host has the pod
  3   claim: the fleet cannot be asked

files:
  /etc/autopod/guard          runs `autopod fleet claim "$1"` where hosts claim pods
  /etc/autopod/autopod.toml   table fleet: where it is kept, this host's group
"""


def add_verbs(verbs: "argparse._SubParsersAction[commandline.Parser]") -> None:
    """Add `fleet`."""
    fleet = verbs.add_parser(
        "fleet",
        help="show the hosts that work together, and who of them may reboot",
        description=_FLEET,
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    fleet.set_defaults(run=_fleet)
    fleet.add_argument("--json", action="store_true", help="as an object")
    more = fleet.add_subparsers(title="commands", metavar="COMMAND")
    claim = more.add_parser("claim", help="let this host have a pod; what /etc/autopod/guard runs")
    claim.set_defaults(run=_claim)
    claim.add_argument("pod", metavar="POD", type=commandline.pod)
    claim.add_argument(
        "--from",
        dest="former",
        metavar="HOST",
        help="take it from there: only when that host is known to be off, or not to run it",
    )
    disown = more.add_parser("disown", help="let nobody have a pod that this host has")
    disown.set_defaults(run=_disown)
    disown.add_argument("pod", metavar="POD", type=commandline.pod)
    place = more.add_parser("place", help="say to which hosts running pods would go, and why")
    place.set_defaults(run=_place)
    place.add_argument(
        "pod",
        metavar="POD",
        type=commandline.pod,
        nargs="+",
        help="of one, what is found of every host; of several, where each goes if all leave",
    )
    place.add_argument("--json", action="store_true", help="as an array of objects")
    place.add_argument(
        "--coming",
        metavar="HOST",
        action="append",
        default=[],
        help="it was just sent another pod, of which it may not have told yet",
    )
    release = more.add_parser(
        "release", help="free the reboot slot of a host that will not come back"
    )
    release.set_defaults(run=_release)
    release.add_argument("host", metavar="HOST", help="as autopod fleet shows it")


def _fleet(places: Places, arguments: argparse.Namespace) -> int:
    from autopod.fleet import client, show
    from autopod.status import policy

    found = client.ask(client.configured(policy.load(places)), show.gather)
    print(show.as_json(found) if arguments.json else show.text(found), end="")
    return 0


def _claim(places: Places, arguments: argparse.Namespace) -> int:
    from autopod.fleet import client, owners
    from autopod.fleet.store import FleetError
    from autopod.status import policy

    pod, fleet = arguments.pod, client.configured(policy.load(places))
    wanted = owners.local_claim(places, pod, arguments.former)
    if wanted is None:
        return 0
    try:
        token = client.ask(fleet, lambda store: owners.claim(store, pod, wanted))
    except FleetError as e:
        commandline.complain("autopod", e)
        return _UNKNOWN
    print(f"pod {pod}: {wanted.host} has it; token {token}")
    return 0


def _disown(places: Places, arguments: argparse.Namespace) -> int:
    from autopod import hosts
    from autopod.fleet import client, owners
    from autopod.status import policy

    pod, fleet = arguments.pod, client.configured(policy.load(places))
    own = hosts.load_own(places).name
    client.ask(fleet, lambda store: owners.disown(store, pod, own))
    return 0


def forget(places: Places, pod: str) -> None:
    """Let nobody have a pod that was removed; where that cannot be done now, say so."""
    from autopod import hosts
    from autopod.errors import Refused
    from autopod.fleet import client, owners
    from autopod.fleet.store import FleetError
    from autopod.status import policy

    settings = policy.load(places)
    if settings.fleet is None:
        return
    try:
        own = hosts.load_own(places).name
        client.ask(settings.fleet, lambda store: owners.disown(store, pod, own))
    except Refused:  # it was not this host's
        return
    except FleetError as e:
        print(f"pod {pod}: note: later, autopod fleet disown {pod}: {e}")


def _place(places: Places, arguments: argparse.Namespace) -> int:
    from autopod import overview
    from autopod.fleet import client, show
    from autopod.status import policy

    fleet = client.configured(policy.load(places))
    known, coming = show.known(places), arguments.coming
    if len(arguments.pod) > 1:
        return _plan(places, arguments, known)
    need = show.need(places, arguments.pod[0])
    found = client.ask(fleet, lambda store: show.choices(store, need, known, coming))
    rows = overview.columns(show.table(found))
    print(overview.as_json(show.placed({need.pod: found})) if arguments.json else rows, end="")
    return 0 if any(one.possible for one in found) else 1


def _plan(places: Places, arguments: argparse.Namespace, known: dict[str, str]) -> int:
    """Place several pods; one that has ended meanwhile, or does not answer, is left out."""
    from autopod import overview
    from autopod.fleet import client, show
    from autopod.status import policy

    needs, coming = show.needs(places, arguments.pod), arguments.coming
    fleet = client.configured(policy.load(places))
    found = client.ask(fleet, lambda store: show.plan(store, needs, known, coming))
    rows = overview.columns(show.plan_table(found))
    print(overview.as_json(show.placed(found)) if arguments.json else rows, end="")
    return 0 if len(found) == len(arguments.pod) and all(found.values()) else 1


def _release(places: Places, arguments: argparse.Namespace) -> int:
    from autopod.fleet import client, show
    from autopod.status import policy

    fleet = client.configured(policy.load(places))
    groups = client.ask(fleet, lambda store: show.release(store, arguments.host))
    print(f"{arguments.host}: no longer has a slot of {', '.join(groups)}")
    return 0
