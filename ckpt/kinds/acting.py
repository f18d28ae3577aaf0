"""Being somebody else for a moment: the kernel notes who has made a thing."""

import contextlib
import os
from collections.abc import Iterator

from ckpt.kinds import abi


@contextlib.contextmanager
def acting_as(user: int, group: int) -> Iterator[None]:
    """Have these effective ids, with all capabilities kept."""
    if not user and not group:
        yield
        return
    bits = abi.prctl(abi.PR_GET_SECUREBITS)
    abi.prctl(abi.PR_SET_SECUREBITS, bits | abi.SECBIT_NO_SETUID_FIXUP)
    os.setresgid(-1, group, -1)
    os.setresuid(-1, user, -1)
    try:
        yield
    finally:
        os.setresuid(-1, 0, -1)
        os.setresgid(-1, 0, -1)
        abi.prctl(abi.PR_SET_SECUREBITS, bits)
