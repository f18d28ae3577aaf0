"""Who may see the page, and who may do something. Pure, but for the files of the tokens.

Users of the host are not all administrators, so whoever connects, from the loopback too, brings a
token or, where the policy has an authority for them, a certificate. A token is sent as
`Authorization: Bearer`, or exchanged once for a session: a cookie, and a secret that goes to the
page's script. Every request of a session needs both. Cookies are sent to all ports of a host, and
by pages of others that have a browser send requests; the secret is neither.
"""

import hashlib
import hmac
import os
import secrets
import stat
from collections.abc import Iterable
from contextlib import suppress
from ipaddress import ip_address
from pathlib import Path
from typing import Final, Literal
from urllib.parse import urlsplit

import msgspec

from autopod.errors import Refused
from autopod.web.ended import Ended
from autopod.web.listening import Web
from launcher.places import Places

Role = Literal["admin", "reader"]

SESSION_S: Final = 12 * 3600
_SHORTEST: Final = 20


class Tokens(msgspec.Struct, frozen=True):
    """The secrets of a host: *admin* may all, *reader* may look (a monitoring system's)."""

    admin: str
    reader: str


class Claims(msgspec.Struct, frozen=True):
    """What a request brings.

    Attributes:
        peer: its address.
        certified: it came with a certificate of the policy's authority.
        bearer: the token; None: none.
        cookie: likewise.
        secret: what the page's script adds to its requests.
    """

    peer: str
    certified: bool = False
    bearer: str | None = None
    cookie: str | None = None
    secret: str | None = None


class Session(msgspec.Struct, frozen=True):
    """What a login gives: a cookie, and the secret that goes with it."""

    role: Role
    cookie: str
    secret: str


class _Known(msgspec.Struct, frozen=True):
    """What a cookie says: as whom, until when, and by which name the session is known here."""

    role: Role
    until: int
    name: str


def paths(places: Places) -> tuple[Path, Path]:
    """Return where the tokens are: the administrator's, and the reader's."""
    directory = places.keys().parent
    return directory / "web.token", directory / "web-reader.token"


def ensure(places: Places) -> Tokens:
    """Return the host's tokens; they are made where there are none.

    Raises:
        Refused: others can read one, or it is too short to be one.
    """
    return Tokens(*map(_ensure, paths(places)))


def _ensure(file: Path) -> str:
    file.parent.mkdir(parents=True, exist_ok=True)
    if not file.exists():
        new = file.with_name(f".{file.name}.{os.getpid()}")
        fd = os.open(new, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
        with os.fdopen(fd, "w") as stream:
            stream.write(f"{secrets.token_urlsafe(32)}\n")
            stream.flush()
            os.fsync(fd)
        with suppress(FileExistsError):  # another one was first, and its token holds
            os.link(new, file)
        new.unlink()
    if stat.S_IMODE(file.stat().st_mode) & 0o077:
        raise Refused(f"{file} can be read by others", f"chmod 600 {file}")
    token = file.read_text().strip()
    if len(token) < _SHORTEST:
        raise Refused(f"{file} holds no token", "remove it: a new one is made")
    return token


class Gate:
    """Decides, from what a request brings."""

    def __init__(self, tokens: Tokens, settings: Web, ended: Ended) -> None:
        self._tokens, self._settings, self._ended = tokens, settings, ended
        both = f"{tokens.admin}\0{tokens.reader}".encode()
        self._key = hashlib.sha256(b"autopod page\0" + both).digest()

    def login(self, token: str, claims: Claims, now: float) -> Session | None:
        """Return a session for who has *token*, or needs none; None: nobody gets in."""
        role = self._of_token(token) or self._of_place(claims)
        if role is None:
            return None
        cookie = f"{role}.{int(now) + SESSION_S}.{secrets.token_hex(8)}"
        cookie = f"{cookie}.{self._sign('cookie', cookie)}"
        return Session(role, cookie, self._sign("secret", cookie))

    def end(self, claims: Claims, now: float) -> None:
        """End the session of the cookie, wherever else it may be."""
        found = self._session(claims.cookie, now)
        if found is not None:
            self._ended.add(found.name, found.until, now)

    def visitor(self, claims: Claims, now: float) -> Role | None:
        """Return as whom the bearer of the cookie is known: enough for an empty page only."""
        return self._of_cookie(claims.cookie, now)

    def reads(self, claims: Claims, now: float) -> Role | None:
        """Return as whom the state may be read; None: not at all."""
        return self.acts(claims, now) or self._of_place(claims)

    def acts(self, claims: Claims, now: float) -> Role | None:
        """Return who it is for sure: not somebody else's page in their browser."""
        if claims.bearer is not None:
            return self._of_token(claims.bearer)
        if claims.cookie is None or claims.secret is None:
            return None
        if not _same(claims.secret, self._sign("secret", claims.cookie)):
            return None
        return self._of_cookie(claims.cookie, now)

    def _of_token(self, token: str) -> Role | None:
        if _same(token, self._tokens.admin):
            return "admin"
        return "reader" if _same(token, self._tokens.reader) else None

    def _of_place(self, claims: Claims) -> Role | None:
        if claims.certified:
            return "admin"
        near = self._settings.loopback_reads and ip_address(claims.peer).is_loopback
        return "reader" if near else None

    def _of_cookie(self, cookie: str | None, now: float) -> Role | None:
        found = self._session(cookie, now)
        return found.role if found else None

    def _session(self, cookie: str | None, now: float) -> _Known | None:
        said, _, signature = (cookie or "").rpartition(".")
        if not _same(signature, self._sign("cookie", said)):
            return None
        role, until, name = said.split(".")  # ours: it was signed
        if now > int(until) or name in self._ended:
            return None
        return _Known("admin" if role == "admin" else "reader", int(until), name)

    def _sign(self, what: str, text: str) -> str:
        return hmac.new(self._key, f"{what}\0{text}".encode(), hashlib.sha256).hexdigest()


def _same(one: str, other: str) -> bool:
    return hmac.compare_digest(one.encode(errors="replace"), other.encode())


def own_names(settings: Web) -> frozenset[str]:
    """Return the names by which browsers may reach the page, in small letters. Pure."""
    found = settings.address()
    if found is None:
        return frozenset()
    address, _ = found
    near = {"localhost", "127.0.0.1", "::1"} if address.is_loopback else set()
    return frozenset(name.lower() for name in {str(address), *near, *settings.names})


def is_for(host: str, names: Iterable[str]) -> bool:
    """Is a Host header one of *names*, with whatever port?

    Another name means that its owner let it point here, to reach the page from theirs (DNS
    rebinding).
    """
    try:
        return (urlsplit(f"//{host}").hostname or "") in names
    except ValueError:
        return False


def is_from(origin: str | None, host: str, *, tls: bool) -> bool:
    """Is a request from a page of ours, or from no page at all? Pure."""
    return origin is None or origin == f"{'https' if tls else 'http'}://{host}"
