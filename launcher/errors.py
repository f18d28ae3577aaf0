"""The launcher's own errors. System calls that fail are OSError, as everywhere."""


class PodError(Exception):
    """A pod cannot be made, found, entered or ended; *hint* says what may help, or is ""."""

    def __init__(self, message: str, hint: str = "") -> None:
        super().__init__(message)
        self.hint = hint


class Locked(PodError):  # noqa: N818 (it names a state)
    """Another command works on the pod."""


class SpawnFailed(PodError):  # noqa: N818 (it says what happened)
    """A process ended before it executed its program.

    Attributes:
        errno: of the system call that failed, or 0.
    """

    def __init__(self, message: str, errno: int = 0) -> None:
        super().__init__(message)
        self.errno = errno


class StepFailed(Exception):  # noqa: N818 (it says what happened)
    """A step of the plan failed: the text says which and why."""
