"""Keys in PEM files: made whole or not at all, refused where others could read or write them.

A key's *fingerprint* is the SHA-256 of its SubjectPublicKeyInfo (RFC 8410) in DER, as 64
hexadecimal digits: `openssl pkey -pubin -in KEY -outform DER | sha256sum` prints it.
"""

import hashlib
import os
import stat
from pathlib import Path
from typing import TYPE_CHECKING, Final, TypeVar

from ckpt.archive.errors import KeyFileError

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import (
        Ed25519PrivateKey,
        Ed25519PublicKey,
    )
    from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey

    Private = Ed25519PrivateKey | X25519PrivateKey
    Public = Ed25519PublicKey | X25519PublicKey

_MAX_PEM: Final = 1 << 16
_T = TypeVar("_T")


def fingerprint(key: "Public") -> str:
    """Return the fingerprint of *key*."""
    from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

    der = key.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    return hashlib.sha256(der).hexdigest()


def save_pair(key: "Private", private: Path, public: Path) -> None:
    """Write *key* to *private* (0600), and its public half to *public*.

    Raises:
        FileExistsError: there is a private key already; both are left as they are.
    """
    from cryptography.hazmat.primitives.serialization import (
        Encoding,
        NoEncryption,
        PrivateFormat,
    )

    private.parent.mkdir(parents=True, exist_ok=True, mode=0o755)
    pem = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    temporary = private.with_name(f".{private.name}.{os.getpid()}")
    _create(temporary, pem, 0o600)
    try:
        os.link(temporary, private)  # whole, or not at all, and never over another
    finally:
        temporary.unlink()
    save_public(key.public_key(), public)


def save_public(key: "Public", path: Path) -> None:
    """Make *path* hold *key*, for all to read, in one step."""
    from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

    pem = key.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    _create(temporary, pem, 0o644)
    temporary.replace(path)


def add(key: "Public", directory: Path) -> str:
    """Add *key* to a directory of public keys; return its fingerprint."""
    directory.mkdir(parents=True, exist_ok=True, mode=0o755)
    name = fingerprint(key)
    save_public(key, _file(directory, name))
    return name


def remove(name: str, directory: Path) -> None:
    """Take the key with the fingerprint *name*, which add() has put there, out of *directory*."""
    _file(directory, name).unlink(missing_ok=True)


def _file(directory: Path, name: str) -> Path:
    return directory / f"{name[:16]}.pem"


def load_private(path: Path, kind: type[_T], name: str, hint: str) -> _T:
    """Return the private key of *kind*, called *name*, in *path*.

    Raises:
        KeyFileError: it is missing, open to others, or not such a key in PKCS #8 PEM.
    """
    from cryptography.hazmat.primitives.serialization import load_pem_private_key

    pem = _read(path, forbidden=0o077, hint=hint)
    try:
        key = load_pem_private_key(pem, password=None)
    except (ValueError, TypeError) as e:
        raise KeyFileError(f"{path}: not a private key in PEM without a passphrase: {e}") from None
    if not isinstance(key, kind):
        raise KeyFileError(f"{path}: not an {name} key")
    return key


def load_public(path: Path, kind: type[_T], name: str, *, forbidden: int = 0) -> _T:
    """Return the public key of *kind*, called *name*, in *path*.

    Raises:
        KeyFileError: it is missing, not such a key, or has the permissions *forbidden*.
    """
    return _parse_public(path, _read(path, forbidden=forbidden, hint=""), kind, name)


def load_directory(directory: Path, kind: type[_T], name: str) -> list[_T]:
    """Return the public keys in `*.pem` of *directory*; none where there is no directory.

    Raises:
        KeyFileError: one is not such a key, or it or the directory can be written by others.
    """
    if not directory.is_dir():
        return []
    _check_mode(directory, directory.stat(), 0o022)
    paths = sorted(directory.glob("*.pem"))
    return [load_public(path, kind, name, forbidden=0o022) for path in paths]


def _parse_public(path: Path, pem: bytes, kind: type[_T], name: str) -> _T:
    from cryptography.exceptions import UnsupportedAlgorithm
    from cryptography.hazmat.primitives.serialization import load_pem_public_key

    if b"PRIVATE KEY" in pem:
        raise KeyFileError(
            f"{path}: this is a private key",
            "give the public one, and make a new pair if the private one has left its host",
        )
    try:
        key = load_pem_public_key(pem)
    except (ValueError, UnsupportedAlgorithm):
        raise KeyFileError(f"{path}: not a public key in PEM") from None
    if not isinstance(key, kind):
        raise KeyFileError(f"{path}: not an {name} key")
    return key


def _read(path: Path, *, forbidden: int, hint: str) -> bytes:
    """Return the file, unless *forbidden* permission bits are set on it."""
    try:
        with path.open("rb") as file:
            status = os.fstat(file.fileno())
            if not stat.S_ISREG(status.st_mode):
                raise KeyFileError(f"{path}: not a regular file")
            _check_mode(path, status, forbidden)
            return file.read(_MAX_PEM)
    except OSError as e:
        raise KeyFileError(f"{path}: {e.strerror}", hint) from None


def _check_mode(path: Path, status: os.stat_result, forbidden: int) -> None:
    if status.st_mode & forbidden:
        mode = status.st_mode & 0o7777
        verb = "read" if forbidden & 0o044 else "write"
        raise KeyFileError(
            f"{path}: mode {mode:04o} lets others {verb} it",
            f"chmod {mode & ~forbidden:o} {path}",
        )
    if forbidden and status.st_uid not in {0, os.geteuid()}:
        raise KeyFileError(f"{path}: belongs to user {status.st_uid}", f"chown root {path}")


def _create(path: Path, data: bytes, mode: int) -> None:
    """Make the new file *path*; nothing is left when that fails."""
    path.unlink(missing_ok=True)  # of a process that was killed and had our id
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, mode)
    try:
        with os.fdopen(fd, "wb") as file:
            os.fchmod(fd, mode)  # whatever the umask is
            file.write(data)
            file.flush()
            os.fsync(fd)
    except OSError:
        path.unlink()
        raise
