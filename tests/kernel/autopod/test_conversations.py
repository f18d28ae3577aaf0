"""Clients of real services that are in the midst of something do not notice a restart."""

import contextlib
import hashlib
import http.client
import os
import smtplib
from pathlib import Path

import pytest

from examples.exim import mail
from examples.exim.mail import wait_until

pytestmark = [pytest.mark.needs("root", "fuse", "namespaces"), pytest.mark.slow]

EXAMPLES = Path(__file__).parents[3] / "examples"
WEB, MAIL = "10.98.0.20", "10.98.0.10"
BIG = 30_000_000


def restart(host, pod):
    archive = host.prefix / f"{pod}.pod"
    host.run("autopod", "checkpoint", pod, "-o", archive)
    host.run("autopod", "restart", pod, "-i", archive)


def add(host, pod, base):
    host.configure(pod, (EXAMPLES / pod / "pod.toml").read_text())
    host.run("autopod", "add", pod, "--base", base)


def get(client, path):
    client.request("GET", path)
    return client.getresponse()


def test_browsers_keep_their_connections(host, apache_root):
    """Requests go on over connections that were open; downloads are whole."""
    add(host, "apache", apache_root)
    with (host.root("apache") / "etc/apache2/apache2.conf").open("a") as configuration:
        configuration.write("KeepAliveTimeout 120\n")  # however slow this machine is
    host.run("autopod", "addproc", "apache", "/usr/sbin/apache2")
    content = os.urandom(BIG)
    (host.root("apache") / "var/www/html/big").write_bytes(content)
    browsers = [http.client.HTTPConnection(WEB, timeout=60) for _ in range(7)]
    with contextlib.ExitStack() as stack:
        for browser in browsers:
            stack.callback(browser.close)
        browse(host, browsers, content)


def browse(host, browsers, content):
    wait_until(lambda: serves(browsers[0]), "Apache serves")
    for browser in browsers:
        assert b"comes from a pod" in get(browser, "/").read()
    ends = [browser.sock.getsockname() for browser in browsers]
    downloads = [get(browser, "/big") for browser in browsers[:2]]
    begun = [download.read(1_000_000) for download in downloads]
    restart(host, "apache")
    for browser in browsers[2:]:
        assert b"comes from a pod" in get(browser, "/").read()
    for first, download in zip(begun, downloads, strict=True):
        whole = hashlib.sha256(first + download.read())
        assert whole.digest() == hashlib.sha256(content).digest()
    assert [browser.sock.getsockname() for browser in browsers] == ends


def serves(browser):
    try:
        return bool(get(browser, "/").read())
    except OSError:
        browser.close()
        return False


def test_a_mail_in_the_midst_of_its_data(host, exim_root):
    """And another client that has said no more than hello."""
    add(host, "exim", exim_root)
    host.run("autopod", "addproc", "exim", "/usr/sbin/exim4")
    wait_until(lambda: mail.answers(MAIL), "Exim greets")
    with (
        smtplib.SMTP(MAIL, timeout=60, local_hostname="client.test") as sender,
        smtplib.SMTP(MAIL, timeout=60, local_hostname="other.test") as other,
    ):
        other.ehlo()
        sender.ehlo()
        assert sender.mail("friend@client.test")[0] == 250
        assert sender.rcpt("alice@pod.test")[0] == 250
        assert sender.docmd("DATA")[0] == 354
        sender.send("Subject: long\r\n\r\n" + "before the restart\r\n" * 20_000)
        restart(host, "exim")
        sender.send("after the restart\r\n" * 20_000 + ".\r\n")
        assert sender.getreply()[0] == 250
        other.sendmail("friend@other.test", "alice@pod.test", "Subject: short\r\n\r\nhello\r\n")
    box = host.root("exim") / "home/alice/Maildir/new"
    wait_until(lambda: box.exists() and len(list(box.iterdir())) == 2, "both are delivered")
    text = max((path.read_text() for path in box.iterdir()), key=len)
    assert text.count("before the restart\n") == text.count("after the restart\n") == 20_000
