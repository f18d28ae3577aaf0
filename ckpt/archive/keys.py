"""Ed25519 keys in PEM files: the host's own pair, and the public keys that it trusts.

A key's *fingerprint* is the SHA-256 of its SubjectPublicKeyInfo (RFC 8410) in DER, as 64
hexadecimal digits: `openssl pkey -pubin -in KEY -outform DER | sha256sum` prints it. A private key
that others can read, and a trusted key that others can write, are refused.
"""

import hashlib
import os
import stat
from pathlib import Path
from typing import TYPE_CHECKING, Final

from ckpt.archive.errors import KeyFileError

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import (
        Ed25519PrivateKey,
        Ed25519PublicKey,
    )

PRIVATE: Final = "private.pem"
PUBLIC: Final = "public.pem"
_MAX_PEM: Final = 1 << 16


def fingerprint(key: "Ed25519PublicKey") -> str:
    """Return the fingerprint of *key*."""
    from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

    der = key.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    return hashlib.sha256(der).hexdigest()


def generate(directory: Path) -> "Ed25519PublicKey":
    """Make a key pair in *directory*, `private.pem` (0600) and `public.pem`; return the public key.

    Raises:
        FileExistsError: there is a private key already; it is left as it is.
    """
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
    from cryptography.hazmat.primitives.serialization import (
        Encoding,
        NoEncryption,
        PrivateFormat,
    )

    directory.mkdir(parents=True, exist_ok=True, mode=0o755)
    key = Ed25519PrivateKey.generate()
    pem = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    temporary = directory / f".{PRIVATE}.{os.getpid()}"
    _create(temporary, pem, 0o600)
    try:
        os.link(temporary, directory / PRIVATE)  # whole, or not at all, and never over another
    finally:
        temporary.unlink()
    _replace(directory / PUBLIC, _public_pem(key.public_key()))
    return key.public_key()


def ensure(keys: Path, trust: Path) -> tuple[str, bool]:
    """Make the host's pair in *keys* unless there is one, and trust it.

    Returns:
        Its fingerprint, and whether it is new.
    """
    try:
        public, new = generate(keys), True
    except FileExistsError:
        public, new = load_private(keys / PRIVATE).public_key(), False
        _replace(keys / PUBLIC, _public_pem(public))
    return accept(public, trust), new


def accept(key: "Ed25519PublicKey", trust: Path) -> str:
    """Add *key* to the directory of trusted keys; return its fingerprint."""
    trust.mkdir(parents=True, exist_ok=True, mode=0o755)
    name = fingerprint(key)
    _replace(trust / f"{name[:16]}.pem", _public_pem(key))
    return name


def load_private(path: Path) -> "Ed25519PrivateKey":
    """Return the private key in *path*.

    Raises:
        KeyFileError: it is missing, open to others, or not an Ed25519 key in PKCS #8 PEM.
    """
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
    from cryptography.hazmat.primitives.serialization import load_pem_private_key

    pem = _read(path, forbidden=0o077, hint="make the host's key pair with `ckpt keygen`")
    try:
        key = load_pem_private_key(pem, password=None)
    except (ValueError, TypeError) as e:
        raise KeyFileError(f"{path}: not a private key in PEM without a passphrase: {e}") from None
    if not isinstance(key, Ed25519PrivateKey):
        raise KeyFileError(f"{path}: not an Ed25519 key")
    return key


def load_public(path: Path) -> "Ed25519PublicKey":
    """Return the public key in *path*.

    Raises:
        KeyFileError: it is missing, or not an Ed25519 public key in PEM.
    """
    return _parse_public(path, _read(path, forbidden=0, hint=""))


def load_trusted(trust: Path) -> "dict[str, Ed25519PublicKey]":
    """Return the keys of the directory *trust* by fingerprint; none where there is no directory.

    Raises:
        KeyFileError: a `*.pem` in it is not a key, or directory or file can be written by others.
    """
    if not trust.is_dir():
        return {}
    _check_mode(trust, trust.stat(), 0o022)
    paths = sorted(trust.glob("*.pem"))
    keys = [_parse_public(p, _read(p, forbidden=0o022, hint="")) for p in paths]
    return {fingerprint(key): key for key in keys}


def _parse_public(path: Path, pem: bytes) -> "Ed25519PublicKey":
    from cryptography.exceptions import UnsupportedAlgorithm
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
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
    if not isinstance(key, Ed25519PublicKey):
        raise KeyFileError(f"{path}: not an Ed25519 key")
    return key


def _public_pem(key: "Ed25519PublicKey") -> bytes:
    from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

    return key.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)


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


def _replace(path: Path, data: bytes) -> None:
    """Make *path* hold *data*, for all to read, in one step."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    _create(temporary, data, 0o644)
    temporary.replace(path)
