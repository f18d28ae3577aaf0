"""Notices go to a mail server that wants TLS and a password: Debian's Exim."""

import contextlib
import os
import signal
import subprocess

import pytest

from autopod.status import outbox, senders
from autopod.status.receivers import Mail
from examples.exim.mail import answers, wait_until
from tests.kernel.autopod.visitor import free_port
from tests.kernel.fleet.etcd import Authority

pytestmark = [pytest.mark.needs("root"), pytest.mark.slow]

USER, PASSWORD = "autopod", "s3cret horse"
LOG = "var/log/exim4/mainlog"

# Whoever logs in may send, and what is sent stays in the queue; a session without a mail leaves
# its commands in the log. It would take a password in the clear: that is not for it to prevent.
CONFIGURATION = """
primary_hostname = mail.test
local_interfaces = 127.0.0.1
daemon_smtp_ports = {open} : {wrapped}
tls_on_connect_ports = {wrapped}
tls_advertise_hosts = {tls}
tls_certificate = /etc/exim4/server.pem
tls_privatekey = /etc/exim4/server.key
auth_advertise_hosts = *
log_file_path = /var/log/exim4/%slog
log_selector = +smtp_no_mail
disable_ipv6 = true
keep_environment =
rfc1413_hosts =
queue_only = true
acl_smtp_rcpt = senders
begin acl
senders:
  accept authenticated = *
begin routers
all:
  driver = accept
  transport = nowhere
begin transports
nowhere:
  driver = appendfile
  file = /dev/null
begin authenticators
plain:
  driver = plaintext
  public_name = PLAIN
  server_condition = ${{if and{{{{eq{{$auth2}}{{{user}}}}}{{eq{{$auth3}}{{{password}}}}}}}}}
  server_set_id = $auth2
"""


class Server:
    """Exim in a copy of its tree; its certificate is for 127.0.0.1, by an authority of its own."""

    def __init__(self, root, ca):
        self.root, self.ca = root, os.fspath(ca)
        self.open, self.wrapped = free_port(), free_port()
        self.password = root / "password"
        self.password.write_text(f"{PASSWORD}\n")
        self.password.chmod(0o600)

    def log(self):
        return (self.root / LOG).read_text()

    def queue(self):
        """What Exim knows of each mail in its queue, and the mail's head."""
        return [file.read_text() for file in self.root.glob("var/spool/exim4/input/**/*-H")]

    def tell(self, tls, host="127.0.0.1", **changes):
        port = self.wrapped if tls == "implicit" else self.open
        login = {"user": USER, "password_file": os.fspath(self.password), "ca": self.ca}
        receiver = Mail(["ops@example.org"], smtp=f"{host}:{port}", tls=tls, **(login | changes))
        senders.tell(receiver, "alpha", outbox.Notice(0, "2026-11-27T10:00:00+00:00", "test", "x"))

    def refuses(self, says, *given, **changes):
        """It was not told, for what is said there, and the words have no part of the password."""
        with pytest.raises(senders.NotTold, match=says) as caught:
            self.tell(*given, **changes)
        assert not any(word in str(caught.value) for word in PASSWORD.split())
        assert self.queue() == []


@contextlib.contextmanager
def exim(tree, directory, tls_for):
    root, authority = directory / "root", Authority(directory)
    subprocess.run(["cp", "-a", tree, root], check=True)
    server = Server(root, authority.ca)
    for file, name in zip(authority.issue("server"), ("server.pem", "server.key"), strict=True):
        (root / "etc/exim4" / name).write_bytes(file.read_bytes())
    (root / "etc/exim4/exim4.conf").write_text(
        CONFIGURATION.format(
            open=server.open, wrapped=server.wrapped, tls=tls_for, user=USER, password=PASSWORD
        )
    )
    argv = ["chroot", root, "/usr/sbin/exim4", "-bdf"]
    with subprocess.Popen(argv, stdin=subprocess.DEVNULL, start_new_session=True) as process:
        try:
            wait_until(lambda: answers("127.0.0.1", server.open), "Exim answers")
            yield server
        finally:
            os.killpg(process.pid, signal.SIGKILL)


@pytest.fixture
def server(exim_root, tmp_path):
    with exim(exim_root, tmp_path, "*") as running:
        yield running


@pytest.mark.parametrize("tls", ["starttls", "implicit"])
def test_over_tls_with_a_password(server, tls):
    server.tell(tls)
    [mail] = server.queue()
    assert f"-auth_id {USER}\n" in mail
    assert "-received_protocol esmtpsa\n" in mail, "extended, secured, authenticated: RFC 3848"
    assert "[autopod] alpha: a trial" in mail


@pytest.mark.parametrize("tls", ["starttls", "implicit"])
def test_a_server_that_cannot_be_verified_is_told_nothing(server, tls):
    server.refuses("unable to get local issuer", tls, ca=None)
    server.refuses("not valid for 'localhost'", tls, host="localhost")
    assert "AUTH" not in server.log()


def test_without_tls_no_password_is_sent(exim_root, tmp_path):
    """As when somebody in between takes STARTTLS out of what the server offers."""
    with exim(exim_root, tmp_path, "") as server:
        server.refuses("STARTTLS", "starttls")
        wait_until(lambda: "C=EHLO,QUIT" in server.log(), "Exim has told of the session")
        assert "AUTH" not in server.log()


def test_a_password_that_is_no_good(server):
    server.password.write_text("a wrong one\n")
    server.refuses("535", "starttls")


@pytest.mark.parametrize(
    ("mode", "content", "says"),
    [
        (0o640, PASSWORD, "can be read by others"),
        (0o600, "", "no password"),
        (0o600, f"{PASSWORD}\nuser: autopod", "no password"),
        (0o600, f"{PASSWORD} ü", "no password"),
    ],
)
def test_a_file_that_holds_no_secret(server, mode, content, says):
    server.password.write_text(content)
    server.password.chmod(mode)
    server.refuses(f"{server.password}.*{says}", "starttls")


def test_files_that_are_not_there(server):
    server.refuses("/missing", "starttls", password_file="/missing")
    server.refuses("/missing", "starttls", ca="/missing")
