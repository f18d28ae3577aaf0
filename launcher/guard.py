"""The host's guard: a program of the administrator's that is asked before a pod is made."""

import os
from typing import Final

from launcher.errors import PodError
from launcher.places import Places

_PATIENCE_S: Final = 120


def ask(places: Places, name: str) -> None:
    """Ask whether pod *name* may be made here; without a guard it may.

    Raises:
        PodError: it may not, or the guard cannot say; with its last words.
    """
    guard = places.guard()
    if not guard.exists():
        return
    import subprocess  # which most starts of a pod can do without

    try:
        run = subprocess.run(
            [guard, name],
            env={**os.environ, "AUTOPOD_PREFIX": os.fspath(places.prefix)},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            timeout=_PATIENCE_S,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired) as e:
        raise PodError(f"pod {name!r}: {guard} cannot be asked: {e}") from e
    if run.returncode:
        said = run.stderr.decode(errors="replace").strip().splitlines()
        hints = [line.partition(" hint: ")[2] for line in said if " hint: " in line]
        errors = [line.partition(" error: ")[2] for line in said if " error: " in line]
        why = (errors or said or ["it says no"])[-1]
        raise PodError(f"pod {name!r} is not to be started here: {why}", "".join(hints[-1:]))
