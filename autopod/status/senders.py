"""How a receiver is told: an HTTP request, a mail, a command."""

import os
import signal
import smtplib
import ssl
import stat
import subprocess
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime
from email.message import EmailMessage
from email.utils import format_datetime
from http.client import HTTPException, HTTPMessage
from types import FrameType
from typing import IO, Final, NoReturn
from urllib.error import HTTPError

import msgspec

from autopod.status.outbox import Notice
from autopod.status.receivers import Mail, Receiver, Webhook

_PATIENCE_S: Final = 30
_WORDS: Final = 200


class NotTold(Exception):  # noqa: N818 (what is the case)
    """A receiver has not taken a notice; the text says why."""


def tell(receiver: Receiver, host: str, notice: Notice) -> None:
    """Give *notice* of *host* to *receiver*, within half a minute. The main thread calls.

    Raises:
        NotTold: it was not taken, or that is not known.
    """
    try:
        with _patience():
            if isinstance(receiver, Webhook):
                _post(receiver, as_json(host, notice), f"{host}-{notice.event}")
            elif isinstance(receiver, Mail):
                _mail(receiver, letter(receiver, host, notice))
            else:
                _run(receiver.run, as_json(host, notice))
    except HTTPError as e:
        e.close()
        raise NotTold(f"it answers {e.code}") from e
    except (OSError, HTTPException, smtplib.SMTPException, ValueError) as e:
        raise NotTold(" ".join((str(e) or type(e).__name__).split())[:_WORDS]) from e


def as_json(host: str, notice: Notice) -> bytes:
    """Return a notice for a program. Pure."""
    return msgspec.json.encode(
        {"host": host, "subject": notice.subject, **msgspec.structs.asdict(notice)}
    )


def letter(receiver: Mail, host: str, notice: Notice) -> EmailMessage:
    """Return a notice as a mail. Pure.

    The same event has the same Message-ID, by which a second copy can be told.
    """
    made = EmailMessage()
    made["From"] = receiver.sender or f"root@{host}"
    made["To"] = ", ".join(receiver.to)
    made["Subject"] = _line(f"[autopod] {host}: {notice.subject}")
    made["Date"] = format_datetime(datetime.fromisoformat(notice.at))
    made["Message-ID"] = f"<autopod.{notice.event}.{datetime.fromisoformat(notice.at):%s}@{host}>"
    made["Auto-Submitted"] = "auto-generated"  # RFC 3834: nobody answers it
    made.set_content(f"{notice.text}\n\nhost: {host}\ntime: {notice.at}\nevent: {notice.event}\n")
    return made


def _line(text: str) -> str:
    return "".join(c if c.isprintable() else " " for c in text)[:_WORDS]


class _Stay(urllib.request.HTTPRedirectHandler):
    """Follows nobody elsewhere: what is told is for the one that was named."""

    def redirect_request(  # type: ignore[explicit-override]
        self,
        req: urllib.request.Request,
        fp: IO[bytes],
        code: int,
        msg: str,
        headers: HTTPMessage,
        newurl: str,
    ) -> None:
        """Make no request: HTTPError is raised."""


def _post(receiver: Webhook, body: bytes, name: str) -> None:
    known = {"Content-Type": "application/json", "User-Agent": "autopod", "Idempotency-Key": name}
    request = urllib.request.Request(  # noqa: S310 (its scheme was looked at: receivers.py)
        receiver.url, data=body, headers={**known, **receiver.headers}, method="POST"
    )
    with urllib.request.build_opener(_Stay).open(request, timeout=_PATIENCE_S):
        pass


def _mail(receiver: Mail, mail: EmailMessage) -> None:
    if receiver.smtp is None:
        _run(receiver.program, mail.as_bytes())
        return
    password = None if receiver.password_file is None else _password(receiver.password_file)
    with _connected(receiver.smtp, receiver.tls, receiver.ca) as server:
        if receiver.user is not None and password is not None:
            server.login(receiver.user, password)
        refused = server.send_message(mail)
    if refused:
        raise NotTold(f"refused for {' '.join(refused)}")


@contextmanager
def _connected(address: str, tls: str, ca: str | None) -> Iterator[smtplib.SMTP]:
    """Give a session, which with *tls* is encrypted, with a server that is who it says."""
    host, _, port = address.rpartition(":")
    where = host.removeprefix("[").removesuffix("]"), int(port)
    if tls == "implicit":
        with smtplib.SMTP_SSL(*where, timeout=_PATIENCE_S, context=_trust(ca)) as server:
            yield server
        return
    with smtplib.SMTP(*where, timeout=_PATIENCE_S) as server:
        if tls == "starttls":
            server.starttls(context=_trust(ca))  # raises where the server does not offer it
        yield server


def _trust(ca: str | None) -> ssl.SSLContext:
    try:
        return ssl.create_default_context(cafile=ca)
    except OSError as e:
        raise NotTold(f"{ca}: {e}") from e


def _password(file: str) -> str:
    """Return what *file* holds; no error shows any of it."""
    with open(file, "rb") as stream:
        if stat.S_IMODE(os.fstat(stream.fileno()).st_mode) & 0o077:
            raise NotTold(f"{file} can be read by others: chmod 600 {file}")
        password = stream.read().removesuffix(b"\n").decode("latin-1")
    if not (password.isascii() and password.isprintable() and password):
        raise NotTold(f"{file} holds no password, a line of printable ASCII")
    return password


def _run(argv: list[str], words: bytes) -> None:
    """Run a command; what it has started ends with it where it does not end in time."""
    with subprocess.Popen(
        argv,
        stdin=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        start_new_session=True,
    ) as process:
        try:
            _, said = process.communicate(words)
        except BaseException:
            os.killpg(process.pid, signal.SIGKILL)
            raise
    if process.returncode:
        last = said.decode(errors="replace").strip().rpartition("\n")[2]
        raise NotTold(f"{argv[0]}: exit status {process.returncode}: {last}"[:_WORDS])


@contextmanager
def _patience() -> Iterator[None]:
    """Raise TimeoutError where the block takes longer: sockets have a limit for each read only."""

    def over(_number: int, _frame: FrameType | None) -> NoReturn:
        raise TimeoutError("it takes too long")

    before = signal.signal(signal.SIGALRM, over)
    signal.setitimer(signal.ITIMER_REAL, _PATIENCE_S)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
