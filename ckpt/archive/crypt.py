"""Encryption of an archive's blobs to recipients' public keys. Pure but for random keys.

What is encrypted is compressed before, and hashed and signed afterwards
(docs/notes/encryption.md): nothing is decrypted before its signature has been verified, and
everything can be verified without being decrypted.

A random *file key* is wrapped for each recipient, as the X25519 recipients of age do it, and bound
to the signer: what another key signs anew does not open. Each blob has a key of its own, derived
from the file key and its place; its pieces are numbered.

Source: RFC 7748 (X25519), RFC 5869 (HKDF), RFC 8439 (ChaCha20-Poly1305), C2SP age.md.
"""

import base64
import os
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Final

from ckpt.archive.errors import FormatError
from ckpt.archive.frames import FRAME_CONTENT
from ckpt.archive.schema import SCHEME, Encryption

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey

TAG: Final = 16
"""Bytes that encryption adds to a piece."""

MAX_RECIPIENTS: Final = 64
_KEY: Final = 32
_STANZA: Final = _KEY + _KEY + TAG
_WRAP: Final = b"autopod.pod.v1 recipient\0"
_BLOB: Final = b"autopod.pod.v1 blob\0"


class BlobCipher:
    """Encrypts and decrypts the pieces of one blob. Any thread may call."""

    def __init__(self, key: bytes) -> None:
        self._key = key

    def seal(self, number: int, data: bytes) -> bytes:
        """Return piece *number*, encrypted. A number is used once. Releases the GIL."""
        from cryptography.hazmat.primitives.ciphers.aead import ChaCha20Poly1305

        return ChaCha20Poly1305(self._key).encrypt(number.to_bytes(12), data, None)

    def open(self, number: int, data: bytes) -> bytes:
        """Return what piece *number* was before. Releases the GIL.

        Raises:
            FormatError: it was not encrypted with this key and number.
        """
        from cryptography.exceptions import InvalidTag
        from cryptography.hazmat.primitives.ciphers.aead import ChaCha20Poly1305

        try:
            return ChaCha20Poly1305(self._key).decrypt(number.to_bytes(12), data, None)
        except InvalidTag:
            raise FormatError("what was signed cannot be decrypted") from None

    def seal_all(self, data: bytes) -> bytes:
        """Return a blob that is not framed, encrypted in pieces of FRAME_CONTENT."""
        starts = range(0, max(1, len(data)), FRAME_CONTENT)
        return b"".join(
            self.seal(number, data[start : start + FRAME_CONTENT])
            for number, start in enumerate(starts)
        )

    def open_all(self, data: bytes) -> bytes:
        """Return what seal_all() was given.

        Raises:
            FormatError: it was not encrypted by seal_all() with this key.
        """
        step = FRAME_CONTENT + TAG
        return b"".join(
            self.open(number, data[start : start + step])
            for number, start in enumerate(range(0, max(1, len(data)), step))
        )


class ArchiveCipher:
    """The ciphers of an archive's blobs, by their places in the image manifest's `layers`."""

    def __init__(self, file_key: bytes) -> None:
        self._file_key = file_key

    def blob(self, place: int) -> BlobCipher:
        """Return the cipher of the blob in that place."""
        return BlobCipher(_derive(self._file_key, b"", _BLOB + place.to_bytes(4)))


def sealed_size(size: int) -> int:
    """Return how many bytes BlobCipher.seal_all() makes of *size*."""
    return size + TAG * max(1, -(-size // FRAME_CONTENT))


def encrypt(
    recipients: Sequence["X25519PublicKey"], signer: str
) -> tuple[Encryption, ArchiveCipher]:
    """Make a file key.

    Args:
        recipients: who is to have it: 1 to MAX_RECIPIENTS.
        signer: fingerprint of the key that will sign.

    Returns:
        What the manifest says of it, and the ciphers.

    Raises:
        ValueError: too many recipients, or one with a key that nobody can have.
    """
    from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey

    if not 1 <= len(recipients) <= MAX_RECIPIENTS:
        raise ValueError(f"{len(recipients)} recipients: 1 to {MAX_RECIPIENTS} can be")
    file_key = os.urandom(_KEY)
    stanzas = []
    for recipient in recipients:
        own = X25519PrivateKey.generate()
        public = own.public_key().public_bytes_raw()
        key = _wrapping(own.exchange(recipient), public, recipient, signer)
        stanzas.append(base64.b64encode(public + BlobCipher(key).seal(0, file_key)).decode())
    return Encryption(SCHEME, stanzas), ArchiveCipher(file_key)


def decrypt(
    encryption: Encryption, identities: Iterable["X25519PrivateKey"], signer: str
) -> ArchiveCipher | None:
    """Return the ciphers, if one of *identities* is a recipient's.

    Args:
        encryption: as the verified manifest has it.
        identities: private keys.
        signer: fingerprint of the key that has signed.

    Raises:
        FormatError: *encryption* is not as encrypt() makes it.
    """
    stanzas = _stanzas(encryption)
    for identity in identities:
        for stanza in stanzas:
            file_key = _unwrap(stanza, identity, signer)
            if file_key is not None:
                return ArchiveCipher(file_key)
    return None


def _stanzas(encryption: Encryption) -> list[bytes]:
    if encryption.scheme != SCHEME:
        raise FormatError(f"encrypted by scheme {encryption.scheme!r}, which is not known")
    if not 1 <= len(encryption.recipients) <= MAX_RECIPIENTS:
        raise FormatError(f"encrypted to {len(encryption.recipients)} recipients")
    try:
        stanzas = [base64.b64decode(text, validate=True) for text in encryption.recipients]
    except ValueError as e:
        raise FormatError(f"a recipient in the manifest: {e}") from None
    if any(len(stanza) != _STANZA for stanza in stanzas):
        raise FormatError(f"a recipient in the manifest that has not {_STANZA} bytes")
    return stanzas


def _unwrap(stanza: bytes, identity: "X25519PrivateKey", signer: str) -> bytes | None:
    from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PublicKey

    public = stanza[:_KEY]
    try:
        shared = identity.exchange(X25519PublicKey.from_public_bytes(public))
        key = _wrapping(shared, public, identity.public_key(), signer)
        return BlobCipher(key).open(0, stanza[_KEY:])
    except (ValueError, FormatError):  # a point of small order; another recipient's
        return None


def _wrapping(shared: bytes, public: bytes, recipient: "X25519PublicKey", signer: str) -> bytes:
    salt = public + recipient.public_bytes_raw()
    return _derive(shared, salt, _WRAP + bytes.fromhex(signer))


def _derive(secret: bytes, salt: bytes, info: bytes) -> bytes:
    from cryptography.hazmat.primitives.hashes import SHA256
    from cryptography.hazmat.primitives.kdf.hkdf import HKDF

    return HKDF(SHA256(), _KEY, salt or None, info).derive(secret)
