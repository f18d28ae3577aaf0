"""Exim: sessions that stay open and hand over one mail after the other."""

import collections
import re
import smtplib
import time
from contextlib import contextmanager

from examples.clients import TIMEOUT_S
from examples.exim.mail import wait_until

SENDERS = 4
PAUSE_S = 0.1
MAILBOX = "home/alice/Maildir/new"


def patient(root):
    """Let a session hand over any number of mails."""
    file = root / "etc/exim4/exim4.conf"
    file.write_text("smtp_accept_max_per_connection = 0\n" + file.read_text())


@contextmanager
def delivered(pod, clients):
    """Senders; at the end each mail that was accepted is in the mailbox once."""
    accepted = []
    for number in range(SENDERS):
        _send(pod, clients, number, accepted)
    yield
    mailbox = pod.root / MAILBOX
    wait_until(lambda: len(list(mailbox.iterdir())) >= len(accepted), "all mails are delivered")
    found = [re.search(r"Subject: (.*)", file.read_text())[1] for file in mailbox.iterdir()]
    assert collections.Counter(found) == collections.Counter(accepted)


def _send(pod, clients, number, accepted):
    session = smtplib.SMTP(pod.address, timeout=TIMEOUT_S, local_hostname="client.test")
    sent = 0

    def ask():
        nonlocal sent
        sent += 1
        subject = f"mail {sent} of sender {number}"
        asked = time.monotonic()
        session.sendmail("bob@elsewhere.test", "alice@pod.test", f"Subject: {subject}\n\n{subject}")
        accepted.append(subject)
        clients.answered(asked)
        clients.over.wait(PAUSE_S)

    clients.add(ask, session.close)
