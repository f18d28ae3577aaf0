"""Mails for a pod whose host is updated: each must be there in the end, and once."""

import contextlib
import itertools
import re
import smtplib
import threading
import time
from collections import Counter
from collections.abc import Callable
from email.message import EmailMessage
from pathlib import Path

from examples.clients import TIMEOUT_S, Clients

MAILS_PER_SESSION = 200
_SUBJECT = re.compile(r"^Subject: (\S+)$", re.MULTILINE)


class Mails:
    """What was accepted by the mail server.

    Attributes:
        again: how often a connection was refused or closed before the mail was handed over, and
            the sender has tried again, as mail servers do.
    """

    def __init__(self, address: str, clients: Clients, inside: Callable) -> None:
        """Send to the server at *address*; *inside* lets a thread be in the clients' network."""
        self._address, self._clients, self._inside = address, clients, inside
        self._lock = threading.Lock()
        self._accepted: set[str] = set()
        self.again = 0

    def correspond(self, name: str, pause_s: float) -> None:
        """Add a client that sends mail after mail in long sessions, none of which may be closed."""
        numbers = itertools.count(1)
        sessions = [self._connect()]

        def ask() -> None:
            number = next(numbers)
            if number % MAILS_PER_SESSION == 0:
                sessions.pop().quit()
                sessions.append(self._connect())
            self._send(sessions[0], f"{name}-{number}")
            self._clients.over.wait(pause_s)

        self._clients.add(ask, lambda: sessions.pop().close())

    def knock(self, name: str, pause_s: float) -> None:
        """Add a client that makes a connection for each mail, and another if that fails."""
        numbers = itertools.count(1)

        def ask() -> None:
            subject = f"{name}-{next(numbers)}"
            while True:
                try:
                    session = self._connect()
                except OSError:
                    with self._lock:
                        self.again += 1
                    continue
                break
            with contextlib.closing(session):
                self._send(session, subject)
                session.quit()
            self._clients.over.wait(pause_s)

        self._clients.add(ask, lambda: None)

    def accepted(self) -> set[str]:
        """Return the subjects of all that were accepted."""
        with self._lock:
            return set(self._accepted)

    def _connect(self) -> smtplib.SMTP:
        with self._inside():
            return smtplib.SMTP(self._address, timeout=TIMEOUT_S, local_hostname="client.test")

    def _send(self, session: smtplib.SMTP, subject: str) -> None:
        message = EmailMessage()
        message["From"], message["To"] = "bob@elsewhere.test", "alice@pod.test"
        message["Subject"] = subject
        message.set_content(f"{subject}\n")
        asked = time.monotonic()
        session.send_message(message)
        self._clients.answered(asked)
        with self._lock:
            self._accepted.add(subject)


def delivered(root: Path) -> Counter[str]:
    """Return how often each subject is in the mailbox of the pod that has that *root*."""
    folder = root / "home/alice/Maildir/new"
    found: Counter[str] = Counter()
    for path in folder.glob("*"):
        subject = _SUBJECT.search(path.read_text())
        found[subject[1] if subject else f"no subject: {path.name}"] += 1
    return found
