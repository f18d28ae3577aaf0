"""The mail service on its journey, by the commands that a user has.

Before it leaves, a mail is delivered and another waits in the queue, for its server is down. Where
it arrives that server comes up, and the restarted Exim delivers both that mail and a new one.
"""

import shutil
from pathlib import Path
from typing import TYPE_CHECKING

from examples.exim import mail
from launcher.places import Places
from tests.kernel.ckpt.harness import tool

if TYPE_CHECKING:
    from tests.kernels.guest import Leg

NAME = "exim"
POD, SMARTHOST = "10.98.0.10", "10.98.0.1"
_TIMEOUT_S = 600
_CONFIGURATION = Path(__file__).parents[2] / "examples/exim/pod.toml"


def pass_on(here: "Leg") -> None:
    """Do this leg."""
    try:
        if here.leg == 0:
            begin(here.places, here.exim_root)
        else:
            archive = here.archive(here.leg - 1, NAME)
            tool(
                "autopod",
                "restart",
                NAME,
                "-i",
                archive,
                "--base",
                here.exim_root,
                timeout=_TIMEOUT_S,
            )
            _wait(lambda: mail.answers(POD), "Exim greets again")
        if here.leg == here.last:
            check(here.places)
        else:
            tool(
                "autopod",
                "checkpoint",
                NAME,
                "-o",
                here.archive(here.leg, NAME),
                timeout=_TIMEOUT_S,
            )
    finally:
        here.remove(NAME)


def begin(places: Places, base: Path) -> None:
    """Make the pod; deliver a mail, and put one into its queue."""
    configuration = places.config(NAME)
    configuration.parent.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(_CONFIGURATION, configuration)
    tool("autopod", "add", NAME, "--base", base, timeout=_TIMEOUT_S)
    # Not each second, as in the example: an emulated processor would do nothing else.
    tool("autopod", "addproc", NAME, "/usr/sbin/exim4", "-bd", "-q1h", timeout=_TIMEOUT_S)
    _wait(lambda: mail.answers(POD), "Exim greets")
    _deliver(places, "before the journey")
    mail.send(POD, "alice@pod.test", "friend@elsewhere.test", "in the queue")
    assert "friend@elsewhere.test" in queue(), queue()


def queue() -> str:
    """Return what waits in the queue, in Exim's words."""
    return tool("launcher", "exec", NAME, "/usr/sbin/exim4", "-bp", timeout=_TIMEOUT_S)


def check(places: Places) -> None:
    """See that the queued mail goes out, a new one is delivered, and the old one is there."""
    with mail.smarthost(SMARTHOST) as received:
        tool("launcher", "exec", NAME, "/usr/sbin/exim4", "-qff", timeout=_TIMEOUT_S)
        _wait(lambda: bool(received), "the queued mail arrives")
        assert "Subject: in the queue" in received[0], received
    _deliver(places, "after the journey")
    assert _in_mailbox(places, "before the journey"), "the mail delivered before is gone"


def _deliver(places: Places, subject: str) -> None:
    mail.send(POD, "bob@elsewhere.test", "alice@pod.test", subject)
    _wait(lambda: _in_mailbox(places, subject), f"the mail {subject} is in the mailbox")


def mailbox(places: Places) -> list[Path]:
    """Return the files of the mails that were delivered."""
    return sorted((places.root(NAME) / "home/alice/Maildir/new").glob("*"))


def _in_mailbox(places: Places, subject: str) -> bool:
    return any(f"Subject: {subject}\n" in path.read_text() for path in mailbox(places))


def _wait(true, what: str) -> None:
    mail.wait_until(true, what, _TIMEOUT_S)
