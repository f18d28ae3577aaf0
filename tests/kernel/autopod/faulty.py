"""The two ends of a migration, with a fault in one of them.

    faulty.py serve HOST PORT FAULT        answer one connection, as the service's processes do
    faulty.py migrate POD HOST FAULT

FAULT is WHAT:WHEN:WHERE. WHAT is `kill` (SIGKILL), `cut` (the connection), or `full`: the disk of
the pods' state has no room from then on, until somebody removes FILLER beside it. WHEN is `before`
or `after`; WHERE is a function of the project, `autopod.journal.depart`, or a message that is sent,
`send.Prepared`.
"""

import errno
import importlib
import os
import signal
import socket
import sys

from autopod import answer, migrate, wire
from ckpt.progress import Silent
from launcher import commandline
from launcher.places import Places

LINKS = []
FILLER = "filler"


def fail(what):
    if what == "kill":
        os.kill(os.getpid(), signal.SIGKILL)
    if what == "full":
        fill(Places.from_environment())
        return
    for link in LINKS:
        link._connection.shutdown(socket.SHUT_RDWR)


def fill(places):
    """Take all the room that there is, to the last page."""
    fd = os.open(places.states().parent / FILLER, os.O_WRONLY | os.O_CREAT)
    size, piece = os.fstat(fd).st_size, 1 << 30
    while piece >= 4096:
        try:
            os.posix_fallocate(fd, size, piece)
        except OSError as e:
            if e.errno != errno.ENOSPC:
                raise
            piece //= 2
        else:
            size += piece
    os.close(fd)


def inject(fault):
    what, when, where = fault.split(":")
    holder, name = where.rsplit(".", 1)
    if holder == "send":
        holder, attribute = wire.Link, "send"
    else:
        holder, attribute = importlib.import_module(holder), name
    real = getattr(holder, attribute)

    def faulty(*args, **kwargs):
        hit = holder is not wire.Link or type(args[1]).__name__ == name
        if hit and when == "before":
            fail(what)
        result = real(*args, **kwargs)
        if hit and when == "after":
            fail(what)
        return result

    setattr(holder, attribute, faulty)


def remember_links():
    real = wire.Link.__init__

    def init(self, *args):
        real(self, *args)
        LINKS.append(self)

    wire.Link.__init__ = init


def main(verb, one, other, fault):
    places = Places.from_environment()
    remember_links()
    inject(fault)
    if verb == "migrate":
        return commandline.run("autopod", Arguments(one, other))
    with socket.create_server((one, int(other)), reuse_port=True) as server:
        print("ready", flush=True)
        plain, _ = server.accept()
    try:
        answer.serve(places, plain)
    except wire.LinkCut as e:
        commandline.complain("autopod", e)
    return 0


class Arguments:
    debug = False

    def __init__(self, pod, host):
        self.pod, self.host = pod, host

    def run(self, places, _):
        print(migrate.migrate(places, self.pod, self.host, progress=Silent()))
        return 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
