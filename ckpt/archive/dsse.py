"""The signature: a DSSE envelope over the image manifest.

An envelope has one encoding for each payload, key and signature, so the reader makes the
envelope again from what it has verified, and compares: what is not signed has no freedom.

Source: github.com/secure-systems-lab/dsse, protocol.md and envelope.md, v1.0; RFC 8032 (Ed25519).
"""

import base64
import json
import re
from collections.abc import Mapping
from typing import TYPE_CHECKING, Final

from ckpt.archive.errors import BadSignature, FormatError, UntrustedKey
from ckpt.archive.schema import IMAGE_MANIFEST_TYPE

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import (
        Ed25519PrivateKey,
        Ed25519PublicKey,
    )

ENVELOPE_OVERHEAD: Final = 1024
"""More than an envelope has besides the payload in base64."""

_TAIL: Final = re.compile(rb'"keyid":"([0-9a-f]{64})","sig":"([A-Za-z0-9+/]{86}==)"\}\]\}')
_TAIL_BYTES: Final = len('"keyid":"","sig":""}]}') + 64 + 88


def pae(payload_type: str, payload: bytes) -> bytes:
    """Return what is signed: the pre-authentication encoding of type and payload."""
    kind = payload_type.encode()
    return b"DSSEv1 %d %b %d %b" % (len(kind), kind, len(payload), payload)


def sign(manifest: bytes, key: "Ed25519PrivateKey", keyid: str) -> bytes:
    """Return the envelope of *manifest*, signed by *key*, whose fingerprint is *keyid*."""
    return _envelope(manifest, keyid, key.sign(pae(IMAGE_MANIFEST_TYPE, manifest)))


def verify(manifest: bytes, envelope: bytes, trusted: "Mapping[str, Ed25519PublicKey]") -> str:
    """Check that *envelope* carries the signature of a trusted key over *manifest*.

    Args:
        manifest: the image manifest, not yet parsed by anyone.
        envelope: the envelope, likewise.
        trusted: keys by fingerprint.

    Returns:
        The fingerprint of the key.

    Raises:
        UntrustedKey: *envelope* names a key that is not among *trusted*.
        BadSignature: the key that it names did not sign *manifest*.
        FormatError: *envelope* is not one, or holds anything beside that signature.
    """
    from cryptography.exceptions import InvalidSignature

    tail = _TAIL.fullmatch(envelope[-_TAIL_BYTES:])
    if tail is None:
        raise FormatError("the signature's envelope is malformed")
    keyid, signature = tail[1].decode(), base64.b64decode(tail[2])
    if keyid not in trusted:
        raise UntrustedKey(f"signed by key {keyid}, which is not trusted here")
    try:
        trusted[keyid].verify(signature, pae(IMAGE_MANIFEST_TYPE, manifest))
    except InvalidSignature:
        raise BadSignature(f"the signature is not one of key {keyid} over this archive") from None
    if envelope != _envelope(manifest, keyid, signature):
        raise FormatError("the signature's envelope does not belong to the manifest")
    return keyid


def _envelope(payload: bytes, keyid: str, signature: bytes) -> bytes:
    envelope = {
        "payload": base64.b64encode(payload).decode(),
        "payloadType": IMAGE_MANIFEST_TYPE,
        "signatures": [{"keyid": keyid, "sig": base64.b64encode(signature).decode()}],
    }
    return json.dumps(envelope, separators=(",", ":")).encode()
