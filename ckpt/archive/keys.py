"""Ed25519 keys in PEM files: the host's own pair, and the public keys that it trusts.

A private key that others can read, and a trusted key that others can write, are refused.
"""

from pathlib import Path
from typing import TYPE_CHECKING, Final

from ckpt.archive import pem
from ckpt.archive.pem import fingerprint

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import (
        Ed25519PrivateKey,
        Ed25519PublicKey,
    )

__all__ = [
    "PRIVATE",
    "PUBLIC",
    "accept",
    "ensure",
    "fingerprint",
    "load_private",
    "load_public",
    "load_trusted",
]

PRIVATE: Final = "private.pem"
PUBLIC: Final = "public.pem"
_KIND: Final = "Ed25519"


def ensure(keys: Path, trust: Path) -> tuple[str, bool]:
    """Make the host's pair in *keys* unless there is one, and trust it.

    Returns:
        Its fingerprint, and whether it is new.
    """
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

    if not (keys / PRIVATE).exists():
        key = Ed25519PrivateKey.generate()
        # Trusted first: whoever finds a private key in its place need not ask for that.
        trusted = accept(key.public_key(), trust)
        try:
            pem.save_pair(key, keys / PRIVATE, keys / PUBLIC)
        except FileExistsError:  # another was quicker
            pem.remove(trusted, trust)
        else:
            return trusted, True
    public = load_private(keys / PRIVATE).public_key()
    pem.save_public(public, keys / PUBLIC)
    return accept(public, trust), False


def accept(key: "Ed25519PublicKey", trust: Path) -> str:
    """Add *key* to the directory of trusted keys; return its fingerprint."""
    return pem.add(key, trust)


def load_private(path: Path) -> "Ed25519PrivateKey":
    """Return the private key in *path*.

    Raises:
        KeyFileError: it is missing, open to others, or not an Ed25519 key in PKCS #8 PEM.
    """
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

    hint = "make the host's key pair with `ckpt keygen`"
    return pem.load_private(path, Ed25519PrivateKey, _KIND, hint)


def load_public(path: Path) -> "Ed25519PublicKey":
    """Return the public key in *path*.

    Raises:
        KeyFileError: it is missing, or not an Ed25519 public key in PEM.
    """
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

    return pem.load_public(path, Ed25519PublicKey, _KIND)


def load_trusted(trust: Path) -> "dict[str, Ed25519PublicKey]":
    """Return the keys of the directory *trust* by fingerprint; none where there is no directory.

    Raises:
        KeyFileError: a `*.pem` in it is not a key, or directory or file can be written by others.
    """
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

    return {fingerprint(key): key for key in pem.load_directory(trust, Ed25519PublicKey, _KIND)}
