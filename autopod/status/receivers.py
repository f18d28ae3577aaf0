"""`[[notify]]` of `/etc/autopod/autopod.toml`: who is told of what happens, and how. Pure."""

import re
from typing import Final, Literal
from urllib.parse import urlsplit

import msgspec

from launcher.toml import Table, reject

_HEADER: Final = re.compile(r"[A-Za-z0-9!#$%&'*+.^_`|~-]+")  # RFC 9110, "token"
_MAIL: Final = re.compile(r"[A-Za-z0-9.!#$%&'*+/=?^_`{|}~-]+(@[A-Za-z0-9.-]+)?")


class Webhook(Table, frozen=True, tag="webhook", tag_field="by"):
    """A notice as a POST of JSON to *url*; *headers* are sent along."""

    url: str
    headers: dict[str, str] = msgspec.field(default_factory=dict)

    def __post_init__(self) -> None:
        found = urlsplit(self.url)
        if found.scheme not in {"http", "https"} or not found.hostname:
            reject("url", self.url, "use http://… or https://…")
        for name, value in self.headers.items():
            if not _HEADER.fullmatch(name) or not value.isprintable():
                reject("headers", name, "it, or its value, cannot be a header of HTTP")

    @property
    def name(self) -> str:
        """What the receiver is called in words; without its path, which may be a secret."""
        return f"webhook {urlsplit(self.url).hostname}"


class Mail(Table, frozen=True, tag="mail", tag_field="by"):
    """A notice as a mail.

    Attributes:
        to: addresses.
        sender: address; None: root at this host.
        smtp: `HOST:PORT` that takes it; None: *program* does.
        tls: "starttls", or "implicit" from the first byte on (RFC 8314), or "none". The server's
            certificate must hold for HOST.
        ca: of that certificate, a file; None: those that the system trusts.
        user: of the server, and
        password_file: where its password stands; nobody else may read that.
        program: takes a whole mail on its standard input, as sendmail(1) does.
    """

    to: list[str]
    sender: str | None = None
    smtp: str | None = None
    tls: Literal["none", "starttls", "implicit"] = "none"
    ca: str | None = None
    user: str | None = None
    password_file: str | None = None
    program: list[str] = msgspec.field(default_factory=lambda: ["/usr/sbin/sendmail", "-t", "-oi"])

    def __post_init__(self) -> None:
        for address in [*self.to, *([self.sender] if self.sender is not None else [])]:
            if not _MAIL.fullmatch(address):
                reject("to", address, "it is no address of mail")
        if not self.to:
            reject("to", self.to, "somebody must get it")
        if not self.program:
            reject("program", self.program, "a command has one word at least")
        if self.smtp is not None:
            host, _, port = self.smtp.rpartition(":")
            if not (host and port.isascii() and port.isdecimal() and int(port) < 65536):
                reject("smtp", self.smtp, "use HOST:PORT")
        self._check_tls()

    def _check_tls(self) -> None:
        if self.tls != "none" and self.smtp is None:
            reject("tls", self.tls, "it goes with smtp")
        if self.tls == "none" and self.ca is not None:
            reject("ca", self.ca, "without TLS no certificate is seen")
        if (self.user is None) != (self.password_file is None):
            reject("user", self.user, "it goes with password_file")
        if self.user is not None:
            if self.tls == "none":
                reject("user", self.user, "a password goes over TLS only")
            if not (self.user.isascii() and self.user.isprintable() and self.user):
                reject("user", self.user, "use printable characters of ASCII")

    @property
    def name(self) -> str:
        """What the receiver is called in words."""
        return f"mail {' '.join(self.to)}"


class Command(Table, frozen=True, tag="command", tag_field="by"):
    """A notice as JSON on the standard input of *run*; it has failed unless that returns 0."""

    run: list[str]

    def __post_init__(self) -> None:
        if not self.run:
            reject("run", [], "a command has one word at least")

    @property
    def name(self) -> str:
        """What the receiver is called in words."""
        return f"command {self.run[0]}"


Receiver = Webhook | Mail | Command
