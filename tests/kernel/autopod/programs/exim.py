"""Exim: sessions that stay open and hand over one mail after the other."""

import collections
import re
import smtplib
import time
from contextlib import contextmanager

from examples.clients import TIMEOUT_S
from examples.exim.mail import wait_until

SENDERS = 4
LINES = 50
PAUSE_S = 0.1
MAILBOX = "home/alice/Maildir/new"


def patient(root):
    """Let a session hand over any number of mails, and have each delivered at once."""
    file = root / "etc/exim4/exim4.conf"
    options = "smtp_accept_max_per_connection = 0\nsmtp_accept_queue_per_connection = 0\n"
    file.write_text(options + file.read_text())


@contextmanager
def delivered(pod, clients):
    """Senders; at the end each mail that was accepted is in the mailbox once."""
    accepted = []
    for number in range(SENDERS):
        _send(pod, clients, number, accepted)
    _send_slowly(pod, clients, accepted)
    yield
    mailbox = pod.root / MAILBOX
    wait_until(lambda: len(list(mailbox.iterdir())) >= len(accepted), "all mails are delivered")
    mails = [file.read_text() for file in mailbox.iterdir()]
    found = [re.search(r"Subject: (.*)", mail)[1] for mail in mails]
    assert collections.Counter(found) == collections.Counter(accepted)
    slow = "".join(f"line {number}\n" for number in range(LINES))
    assert all(mail.endswith(slow) for mail in mails if "Subject: slow" in mail)


def _send_slowly(pod, clients, accepted):
    """A sender that is in the middle of DATA nearly all the time."""
    session = smtplib.SMTP(pod.address, timeout=TIMEOUT_S, local_hostname="slow.test")
    session.ehlo()
    sent = 0

    def expect(code, answer):
        if answer[0] != code:
            raise ValueError(f"{code} expected: {answer}")

    def ask():
        nonlocal sent
        sent += 1
        subject = f"slow mail {sent}"
        expect(250, session.mail("bob@elsewhere.test"))
        expect(250, session.rcpt("alice@pod.test"))
        expect(354, session.docmd("DATA"))
        session.send(f"Subject: {subject}\r\n\r\n")
        for number in range(LINES):
            session.send(f"line {number}\r\n")
            clients.over.wait(PAUSE_S / 5)
        asked = time.monotonic()
        expect(250, session.docmd("."))
        accepted.append(subject)
        clients.answered(asked)

    clients.add(ask, session.close)


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
