"""What an administrator is told when a command does not do what it was asked."""


class Refused(Exception):  # noqa: N818 (it names an outcome)
    """A command is not carried out; nothing was changed. *hint* says what may help, or is ""."""

    def __init__(self, message: str, hint: str = "") -> None:
        super().__init__(message)
        self.hint = hint
