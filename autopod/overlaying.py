"""The verbs `autopod overlay` and `autopod relay`: arguments in, lines out."""

import argparse
import sys

from launcher import commandline
from launcher.places import Places


def add_verbs(verbs: "argparse._SubParsersAction[commandline.Parser]") -> None:
    """Add them to the command line."""
    parser = verbs.add_parser("overlay", help="one segment for pods of hosts on different networks")
    ours = parser.add_subparsers(title="commands", required=True, metavar="COMMAND")
    syncing = ours.add_parser("sync", help="make it what network.toml and the known hosts say")
    syncing.set_defaults(run=_sync)
    listing = ours.add_parser("list", help="show this host and the others in it")
    listing.set_defaults(run=_list)
    listing.add_argument("--json", action="store_true", help="as an array of objects")

    parser = verbs.add_parser("relay", help="pods that moved, and are reached through this host")
    ours = parser.add_subparsers(title="commands", required=True, metavar="COMMAND")
    listing = ours.add_parser("list", help="show them, and the ports that lead to them")
    listing.set_defaults(run=_list_relays)
    listing.add_argument("--json", action="store_true", help="as an array of objects")
    ending = ours.add_parser("end", help="have a pod no more be reached through this host")
    ending.set_defaults(run=_end_relay)
    ending.add_argument("pod", metavar="POD", type=commandline.pod)


def follow(places: Places) -> int:
    """Bring the overlay up to date, if there is one; return the exit status."""
    from autopod import overlay

    return _sync(places, None) if overlay.is_wanted(places) else 0


def _sync(places: Places, _arguments: argparse.Namespace | None) -> int:
    """Exit status 1 tells that hosts are left out."""
    from autopod import overlay

    if not overlay.is_wanted(places):
        sys.stdout.write(f"no overlay is wanted: {places.network_config()} has no [overlay]\n")
    problems = overlay.sync(places)
    for problem in problems:
        commandline.print_error("autopod", f"overlay: {problem}", "it is left out")
    return 1 if problems else 0


def _list(places: Places, arguments: argparse.Namespace) -> int:
    from autopod import overlay, overview

    rows = overlay.rows(places)
    text = overview.as_json(rows) if arguments.json else overview.columns(overlay.table(rows))
    sys.stdout.write(text)
    return 0


def _list_relays(places: Places, arguments: argparse.Namespace) -> int:
    from autopod import overlay, overview

    rows = overlay.relays(places)
    cells = [(r.pod, r.host, " ".join(r.addresses), " ".join(r.ports) or "-") for r in rows]
    lines = [("POD", "HOST", "ADDRESSES", "PORTS"), *cells]
    sys.stdout.write(overview.as_json(rows) if arguments.json else overview.columns(lines))
    return 0


def _end_relay(places: Places, arguments: argparse.Namespace) -> int:
    from launcher import network

    network.end_relay(places, arguments.pod)
    return 0
