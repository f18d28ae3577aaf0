"""Why an archive, or a key, is refused. A leaf.

One class per decision that a caller takes; the text says what is wrong with which file, `hint` what
to do about it.
"""


class ArchiveError(Exception):
    """The archive cannot be used; nothing was taken from it."""

    hint = ""


class FormatError(ArchiveError):
    """The file is not an archive of this format, or is damaged."""


class Damaged(FormatError):  # noqa: N818 (it names the state, as in docs/format.md)
    """A part of the archive is not what was signed."""

    hint = "the archive was changed after it was signed; take another copy"


class UnsupportedVersion(FormatError):  # noqa: N818
    """The archive is whole, and written in a version of the format that we do not read."""

    hint = "use the version of the tool that wrote it, or a newer one"


class UnsupportedFeature(FormatError):  # noqa: N818
    """The archive is whole, and needs a feature that we do not have."""

    hint = "use the version of the tool that wrote it, or a newer one"


class BadSignature(ArchiveError):  # noqa: N818
    """The signature names a trusted key and is not that key's signature of this archive."""

    hint = Damaged.hint


class UntrustedKey(ArchiveError):  # noqa: N818
    """The signature names a key that is not trusted here."""

    hint = "if its public key is known to be genuine, accept it with `ckpt trust KEY` and try again"


class NotARecipient(ArchiveError):  # noqa: N818
    """The archive is encrypted, and none of the identities given is a recipient's."""

    hint = "give the private key of a recipient: --identity KEY"


class NoEarlier(ArchiveError):  # noqa: N818
    """The archive builds upon an earlier one, which is not there; or none can build upon that."""

    def __init__(self, message: str, hint: str = "") -> None:
        super().__init__(message)
        self.hint = hint or "put it beside this one, or say where it is: --since FILE"


class KeyFileError(Exception):
    """A key file is missing, malformed, or open to others."""

    def __init__(self, message: str, hint: str = "") -> None:
        super().__init__(message)
        self.hint = hint
