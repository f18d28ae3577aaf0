"""X25519 keys in PEM files: whom this host's archives are encrypted to, and its own identity.

An *identity* is a private key, a *recipient* the public one that belongs to it. What is in the
directory of recipients is whom every archive of this host is encrypted to; none: it is not.
"""

from pathlib import Path
from typing import TYPE_CHECKING, Final

from ckpt.archive import pem

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey

IDENTITY: Final = "identity.pem"
RECIPIENT: Final = "recipient.pem"
_KIND: Final = "X25519"


def ensure(keys: Path, recipients: Path) -> tuple[str, bool]:
    """Make the host's identity in *keys* unless there is one, and make it a recipient.

    Returns:
        Its fingerprint, and whether it is new.
    """
    from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey

    identity, new = X25519PrivateKey.generate(), True
    try:
        pem.save_pair(identity, keys / IDENTITY, keys / RECIPIENT)
    except FileExistsError:
        identity, new = load_identity(keys / IDENTITY), False
        pem.save_public(identity.public_key(), keys / RECIPIENT)
    return accept(identity.public_key(), recipients), new


def accept(key: "X25519PublicKey", recipients: Path) -> str:
    """Add *key* to the directory of recipients; return its fingerprint."""
    return pem.add(key, recipients)


def load_identity(path: Path) -> "X25519PrivateKey":
    """Return the private key in *path*.

    Raises:
        KeyFileError: it is missing, open to others, or not an X25519 key in PKCS #8 PEM.
    """
    from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey

    hint = "make the host's with `ckpt keygen --encryption`"
    return pem.load_private(path, X25519PrivateKey, _KIND, hint)


def load_identities(keys: Path, more: Path | None = None) -> "list[X25519PrivateKey]":
    """Return the identity in *more*, if given, and the host's in *keys*, if there is one.

    Raises:
        KeyFileError: as load_identity().
    """
    own = keys / IDENTITY
    paths = [path for path in (more, own if own.exists() else None) if path is not None]
    return [load_identity(path) for path in paths]


def load_recipient(path: Path) -> "X25519PublicKey":
    """Return the public key in *path*.

    Raises:
        KeyFileError: it is missing, or not an X25519 public key in PEM.
    """
    from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PublicKey

    return pem.load_public(path, X25519PublicKey, _KIND)


def load_recipients(directory: Path) -> "list[X25519PublicKey]":
    """Return the keys of the *directory*; none where there is none.

    Raises:
        KeyFileError: a `*.pem` in it is not a key, or directory or file can be written by others.
    """
    from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PublicKey

    return pem.load_directory(directory, X25519PublicKey, _KIND)
