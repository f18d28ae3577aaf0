"""The hosts that a host knows, and what it is known by itself: its key.

The Ed25519 pair that signs a host's archives (ckpt.archive.keys) also stands in the self-signed
certificate by which it speaks TLS: whoever has the certificate knows the host, wherever it is.
TLS 1.3 and DSSE put different words before what they sign (RFC 8446, section 4.4.3; the DSSE
protocol), so that a signature made for one means nothing to the other.
"""

import datetime
import hashlib
import os
import re
import socket
import ssl
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Final, TypeVar
from urllib.parse import urlsplit

import msgspec
import tomli_w

from autopod.errors import Refused
from ckpt.archive import keys
from launcher.places import Places

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import (
        Ed25519PrivateKey,
        Ed25519PublicKey,
    )

PORT: Final = 7463
_NAME: Final = re.compile(r"[a-z0-9](?:[a-z0-9-]{0,61}[a-z0-9])?")
_ADDRESS: Final = re.compile(r"[A-Za-z0-9._:%\[\]-]+")
_MAX_FILE: Final = 1 << 16
_CERTIFICATE: Final = "certificate.pem"

_T = TypeVar("_T")


class Host(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A host, as its file has it.

    Attributes:
        address: where its service answers, `NAME:PORT` or `[IPv6]:PORT`.
        certificate: in PEM.
    """

    address: str
    certificate: str

    @property
    def fingerprint(self) -> str:
        """SHA-256 of the certificate in DER, 64 hexadecimal digits."""
        return hashlib.sha256(ssl.PEM_cert_to_DER_cert(self.certificate)).hexdigest()

    @property
    def key(self) -> "Ed25519PublicKey":
        """The key in the certificate.

        Raises:
            ValueError: it is not an Ed25519 key.
        """
        from cryptography import x509
        from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

        key = x509.load_pem_x509_certificate(self.certificate.encode()).public_key()
        if not isinstance(key, Ed25519PublicKey):
            raise ValueError("the certificate's key is not an Ed25519 key")
        return key


class Own(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """This host's own name, and the address that it tells others; `/etc/autopod/host.toml`."""

    name: str
    address: str


class Row(msgspec.Struct, frozen=True):
    """A host, as `autopod host list` shows it; *key* is the fingerprint of its key."""

    host: str
    address: str
    key: str
    own: bool = False


def init(places: Places, name: str | None, address: str | None) -> Own:
    """Give this host a name, a key pair and a certificate; what it has is kept.

    Args:
        places: the instance.
        name: that others shall know it by; None: its host name.
        address: where others reach its service, with or without port; None: its host name.

    Raises:
        Refused: it has another name or address already, or the name cannot be one.
        KeyFileError: its key pair cannot be used.
    """
    file = _own_file(places)
    if file.exists():
        own = load_own(places)
        if (name or own.name, address and with_port(address)) not in {
            (own.name, own.address),
            (own.name, None),
        }:
            hint = f"change or remove {file} first; the hosts that know it must join anew"
            raise Refused(f"this host is {own.name} at {own.address} already", hint)
    else:
        system = re.sub(r"[^a-z0-9-]", "-", socket.gethostname().lower())
        named = check_name(system if name is None else name)
        own = Own(named, with_port(socket.gethostname() if address is None else address))
    keys.ensure(places.keys(), places.trust())
    _ensure_certificate(places, own.name)
    if not file.exists():
        _write(file, tomli_w.dumps(msgspec.to_builtins(own)))
    return own


def has_name(places: Places) -> bool:
    """Has this host been given a name, without which others do not reach it?"""
    return _own_file(places).exists()


def own_name(places: Places) -> str:
    """Return what this host is called: as other hosts know it, else its host name.

    Raises:
        Refused: its file cannot be understood.
    """
    return load_own(places).name if has_name(places) else socket.gethostname()


def load_own(places: Places) -> Own:
    """Return this host's name and address.

    Raises:
        Refused: it has none yet, or the file cannot be understood.
    """
    try:
        return _load(_own_file(places), Own)
    except FileNotFoundError:
        raise Refused("this host has no name and certificate", "autopod host init") from None


def own_certificate(places: Places) -> Path:
    """Return the file with this host's certificate."""
    return places.keys() / _CERTIFICATE


def own_fingerprint(places: Places) -> str:
    """Return the fingerprint of this host's certificate, as Host.fingerprint."""
    return Host("", own_certificate(places).read_text()).fingerprint


def known(places: Places) -> dict[str, Host]:
    """Return the hosts that this one knows, by name.

    Raises:
        Refused: a file cannot be understood.
    """
    files = sorted(_directory(places).glob("*.toml"))
    return {file.stem: _load(file, Host) for file in files}


def load(places: Places, name: str) -> Host:
    """Return host *name*.

    Raises:
        Refused: it is not known.
    """
    try:
        return _load(_file(places, check_name(name)), Host)
    except FileNotFoundError:
        if has_name(places) and own_name(places) == name:
            raise Refused(f"host {name!r} is this one") from None
        names = ", ".join(known(places)) or "none"
        hint = f"known are: {names}; autopod host join makes two hosts known to each other"
        raise Refused(f"host {name!r} is not known here", hint) from None


def save(places: Places, name: str, host: Host) -> None:
    """Let this host know another one, and trust the archives that it signs.

    Raises:
        Refused: the name is another host's, or this one's own, or the certificate is none.
    """
    check_name(name)
    try:
        key, host_fingerprint = host.key, host.fingerprint
    except ValueError as e:
        raise Refused(f"host {name!r}: its certificate cannot be used: {e}") from e
    if name == load_own(places).name:
        raise Refused(f"{name!r} is this host's own name", "autopod host init --name NAME there")
    with suppress(FileNotFoundError):
        if _load(_file(places, name), Host).fingerprint != host_fingerprint:
            raise Refused(f"another host {name!r} is known here", f"autopod host rm {name}")
    keys.accept(key, places.trust())
    _write(_file(places, name), tomli_w.dumps(msgspec.to_builtins(host)))


def rows(places: Places) -> list[Row]:
    """Return this host and those that it knows.

    Raises:
        Refused: it has no name yet.
    """
    own = load_own(places)
    key = keys.fingerprint(keys.load_public(places.keys() / keys.PUBLIC))
    others = known(places).items()
    return [
        Row(own.name, own.address, key, own=True),
        *(Row(name, host.address, keys.fingerprint(host.key)) for name, host in others),
    ]


def remove(places: Places, name: str) -> None:
    """Forget host *name*, and no longer trust its archives.

    Raises:
        Refused: it is not known.
    """
    host = load(places, name)
    _file(places, name).unlink()
    (places.trust() / f"{keys.fingerprint(host.key)[:16]}.pem").unlink(missing_ok=True)


def check_name(name: str) -> str:
    """Return *name* if it can name a host.

    Raises:
        Refused: it cannot.
    """
    if not _NAME.fullmatch(name):
        hint = "use 1 to 63 of a-z, 0-9 and '-', beginning and ending with a letter or digit"
        raise Refused(f"{name!r} cannot name a host", hint)
    return name


def with_port(address: str) -> str:
    """Return *address*, `HOST`, `HOST:PORT` or `[IPv6]:PORT`, with a port. Pure.

    Raises:
        Refused: it is not an address.
    """
    host, port = split(address)
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def split(address: str) -> tuple[str, int]:
    """Return host and port of an address; the default port, if it has none. Pure.

    Raises:
        Refused: it is not an address.
    """
    try:
        parts = urlsplit(f"//{address}")
        host, port = parts.hostname, PORT if parts.port is None else parts.port
    except ValueError:
        host, port = None, 0
    if not host or not port or not _ADDRESS.fullmatch(address):
        raise Refused(f"{address!r} is not an address", "HOST, HOST:PORT, or [IPv6]:PORT")
    return host, port


def _ensure_certificate(places: Places, name: str) -> None:
    """Make the certificate, unless there is one for the key that the host has."""
    from cryptography import x509

    file, key = own_certificate(places), keys.load_private(places.keys() / keys.PRIVATE)
    if file.exists():
        there = x509.load_pem_x509_certificate(file.read_bytes()).public_key()
        if there == key.public_key():
            return
    _write(file, _certificate(name, key))


def _certificate(name: str, key: "Ed25519PrivateKey") -> str:
    """Return a self-signed certificate in PEM. It does not expire: the key is what counts.

    Source: RFC 5280, section 4.1.2.5: 99991231235959Z for no well-defined expiration date.
    """
    from cryptography import x509
    from cryptography.hazmat.primitives.serialization import Encoding
    from cryptography.x509.oid import NameOID

    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
    certificate = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(datetime.datetime(2020, 1, 1))
        .not_valid_after(datetime.datetime(9999, 12, 31, 23, 59, 59))
        .sign(key, None)
    )
    return certificate.public_bytes(Encoding.PEM).decode()


def _directory(places: Places) -> Path:
    return places.keys().parent / "hosts"


def _file(places: Places, name: str) -> Path:
    return _directory(places) / f"{name}.toml"


def _own_file(places: Places) -> Path:
    return places.keys().parent / "host.toml"


def _load(file: Path, kind: type[_T]) -> _T:
    with file.open("rb") as stream:
        data = stream.read(_MAX_FILE)
    try:
        return msgspec.toml.decode(data, type=kind)
    except (msgspec.DecodeError, msgspec.ValidationError, UnicodeDecodeError) as e:
        raise Refused(f"{file}: {e}") from e


def _write(file: Path, text: str) -> None:
    """Write a file that others may read, in one step."""
    file.parent.mkdir(mode=0o755, parents=True, exist_ok=True)
    new = file.with_name(f".{file.name}.{os.getpid()}")
    new.write_text(text)
    new.chmod(0o644)
    new.replace(file)
